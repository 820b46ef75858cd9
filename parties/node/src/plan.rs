//! What the nodes say to each other: which models they hold, and which requests run together.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tercet_core::PairSeeds;
use tercet_net::{Connection, Fault, ModelCard, NetError, PartyId, codec};
use tercet_ring::Seed;

use crate::key::RequestKey;
use crate::shape::Shape;
use crate::shown::Shown;

/// What makes a session's seeds unlike those of any other purpose.
const SEED_LABEL: &str = "tercet session seed v1";

/// One message on the control stream between two nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum PeerMessage {
    /// The models that the sender serves, and what it lets one session take; first on every connection.
    Models { cards: Vec<ModelCard>, most: Capacity },
    /// P0 or P2 to P1: these requests have come, or are still here on a new connection.
    Here { requests: Vec<RequestKey> },
    /// P1 to P0 or P2: these requests of those that it announced have come here, too.
    Named { requests: Vec<RequestKey> },
    /// P0 or P2 to P1: this request waits here no more.
    Gone { request: RequestKey },
    /// P1 proposes a session.
    Plan(BatchPlan),
    /// P0 or P2 has all that the plan names, has read the same plan, shows what it holds in common
    /// with the others, and adds its part to the session's seeds.
    Accept { session: u128, plan_hash: [u8; 32], nonce: [u8; 32], shown: Shown },
    /// P0 or P2 will not run the plan.
    Refuse { session: u128, objection: Objection },
    /// Both have accepted.
    Start { session: u128, nonces: [[u8; 32]; 3] },
    /// The session does not take place; its requests wait on.
    Cancel { session: u128 },
    /// P1 has given these requests up, and the generations of which they are steps.
    Drop { requests: Vec<RequestKey>, fault: Fault, reason: String },
}

/// Why a plan is not run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Objection {
    /// With [`Fault::Busy`] it is not run now.
    pub(crate) fault: Fault,
    pub(crate) reason: String,
    /// The requests that it fails for, if it is those.
    pub(crate) missing: Vec<RequestKey>,
}

impl Objection {
    pub(crate) fn nodes(reason: impl Into<String>) -> Objection {
        Objection { fault: Fault::Nodes, reason: reason.into(), missing: Vec::new() }
    }

    /// There is no room now: what the plan names waits on.
    pub(crate) fn busy(reason: impl Into<String>) -> Objection {
        Objection { fault: Fault::Busy, ..Objection::nodes(reason) }
    }
}

/// The most that one session may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capacity {
    /// Inputs, or generations.
    pub(crate) batch: u64,
    /// Working memory.
    pub(crate) bytes: u64,
}

impl Capacity {
    /// What both allow.
    pub(crate) fn and(self, other: Capacity) -> Capacity {
        Capacity { batch: self.batch.min(other.batch), bytes: self.bytes.min(other.bytes) }
    }
}

/// A session: which requests run together, in order. Public to all three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchPlan {
    /// Drawn at random.
    pub(crate) session: u128,
    pub(crate) model: String,
    pub(crate) digest: [u8; 32],
    /// Of all requests together.
    pub(crate) shape: Shape,
    pub(crate) requests: Vec<RequestKey>,
}

impl BatchPlan {
    /// SHA-256 of the whole plan.
    pub(crate) fn hash(&self) -> Result<[u8; 32], NetError> {
        let bytes = codec::encode(self).map_err(|error| NetError::Local { what: error.to_string() })?;
        Ok(Sha256::new().chain_update(b"tercet batch plan v2").chain_update(bytes).finalize().into())
    }
}

/// A plan that all three have accepted.
#[derive(Clone, Debug)]
pub(crate) struct Agreement {
    pub(crate) plan: BatchPlan,
    pub(crate) hash: [u8; 32],
    /// A fresh random string of each party: each is sure by its own that the session's seeds were never used before,
    /// whatever the others send.
    pub(crate) nonces: [[u8; 32]; 3],
}

impl Agreement {
    /// The seeds of this session, from those of the connections over which it runs.
    pub(crate) fn seeds(&self, me: PartyId, connections: &[Connection; 2]) -> PairSeeds {
        let mut context = self.plan.session.to_le_bytes().to_vec();
        context.extend(self.hash);
        context.extend(self.nonces.as_flattened());
        let with = |peer: PartyId| {
            let to = connections.iter().find(|connection| connection.peer().role.party() == Some(peer));
            let pair = to.and_then(Connection::pair_seed);
            pair.map(|pair| Seed::from_bytes(*pair.expose()).derive(SEED_LABEL, &context))
        };
        match me {
            PartyId::P0 => PairSeeds { first: with(PartyId::P1), second: with(PartyId::P2) },
            PartyId::P1 => PairSeeds { first: with(PartyId::P0), second: None },
            PartyId::P2 => PairSeeds { first: None, second: with(PartyId::P0) },
        }
    }
}

/// A nonce or a session's number.
pub(crate) fn fresh() -> [u8; 32] {
    *Seed::random().as_bytes()
}

/// A session's number.
pub(crate) fn fresh_session() -> u128 {
    let bytes = fresh();
    bytes[..16].iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}
