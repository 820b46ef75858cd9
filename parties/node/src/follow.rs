//! P0 and P2 check what P1 proposes, and take part in it when all three have agreed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tercet_core::Geometry;
use tercet_net::{Connection, Fault, PartyId};
use tokio::sync::OwnedSemaphorePermit;

use crate::desk::{Held, RequestKey, STOPPING};
use crate::models::Model;
use crate::plan::{Agreement, BatchPlan, PeerMessage, fresh};
use crate::session::{self, Room};
use crate::shared::Shared;

/// How long a plan waits for requests that P1 has and this node has not yet.
const STRAGGLER_PATIENCE: Duration = Duration::from_secs(3);

/// How long a plan waits for a place: P1 may see a session end before this node does.
const PLACE_PATIENCE: Duration = Duration::from_secs(10);

/// How long an accepted plan may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Plans under consideration at once.
const PROPOSALS_AT_ONCE: usize = 256;

/// The plans that this node considers or has accepted, by session.
pub(crate) type Proposals = BTreeMap<u128, Proposal>;

/// A plan between its arrival and its start.
pub(crate) struct Proposal {
    from: Connection,
    /// None while it is considered.
    accepted: Option<Accepted>,
}

struct Accepted {
    plan: BatchPlan,
    hash: [u8; 32],
    nonce: [u8; 32],
    model: Arc<Model>,
    requests: Vec<Held>,
    place: OwnedSemaphorePermit,
}

struct Refusal {
    fault: Fault,
    reason: String,
    missing: Vec<RequestKey>,
}

impl Refusal {
    fn nodes(reason: impl Into<String>) -> Refusal {
        Refusal { fault: Fault::Nodes, reason: reason.into(), missing: Vec::new() }
    }
}

impl Shared {
    fn proposals(&self) -> MutexGuard<'_, Proposals> {
        self.proposals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// P1 proposes a session.
    pub(crate) fn proposed(self: &Arc<Self>, plan: BatchPlan, from: &Connection) {
        let session = plan.session;
        let refusal = {
            let mut proposals = self.proposals();
            let full = proposals.len() >= PROPOSALS_AT_ONCE;
            match proposals.entry(session) {
                _ if full => Some(Refusal { fault: Fault::Busy, ..Refusal::nodes("too many plans at once") }),
                Entry::Occupied(_) => Some(Refusal::nodes("this session was proposed before")),
                Entry::Vacant(free) => {
                    free.insert(Proposal { from: from.clone(), accepted: None });
                    None
                }
            }
        };
        let (shared, from) = (self.clone(), from.clone());
        self.spawn(async move {
            let answer = match refusal {
                Some(refusal) => Err(refusal),
                None => shared.consider(plan).await,
            };
            let message = match answer {
                Ok(message) => message,
                Err(Refusal { fault, reason, missing }) => {
                    tracing::info!(reason, "refused a plan");
                    PeerMessage::Refuse { session, fault, reason, missing }
                }
            };
            if let Err(error) = from.send_message(&message).await {
                tracing::debug!(%error, "a plan could not be answered");
            }
            if matches!(message, PeerMessage::Accept { .. }) {
                tokio::time::sleep(START_PATIENCE).await;
                shared.cancelled(session);
            }
        });
    }

    /// Checks everything in a plan; it is accepted or forgotten afterwards.
    async fn consider(&self, plan: BatchPlan) -> Result<PeerMessage, Refusal> {
        let session = plan.session;
        let considered = self.accept(plan).await;
        let mut proposals = self.proposals();
        match (considered, proposals.get_mut(&session)) {
            (Ok(accepted), Some(proposal)) => {
                let (plan_hash, nonce) = (accepted.hash, accepted.nonce);
                proposal.accepted = Some(accepted);
                Ok(PeerMessage::Accept { session, plan_hash, nonce })
            }
            (Ok(accepted), None) => {
                drop(proposals);
                self.desk.put_back(accepted.requests);
                Err(Refusal::nodes("the plan was cancelled"))
            }
            (Err(refusal), _) => {
                proposals.remove(&session);
                Err(refusal)
            }
        }
    }

    async fn accept(&self, plan: BatchPlan) -> Result<Accepted, Refusal> {
        let model = self.models.get(&plan.model).filter(|model| model.share.digest() == plan.digest).cloned();
        let model = model.ok_or_else(|| Refusal::nodes(format!("it does not hold this model {:?}", plan.model)))?;
        let hash = plan.hash().map_err(|error| Refusal::nodes(error.to_string()))?;
        if !self.fits(&model, plan.geometry) {
            let Geometry { batch, rows } = plan.geometry;
            return Err(Refusal::nodes(format!("{batch} inputs of {rows} rows are more than it has room for")));
        }
        let place = tokio::time::timeout(PLACE_PATIENCE, self.places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Refusal { fault: Fault::Busy, ..Refusal::nodes("all its places are taken") });
        };
        if !self.is_serving() {
            return Err(Refusal::nodes(STOPPING));
        }
        let collected = self.desk.collect(&plan.requests, STRAGGLER_PATIENCE).await;
        let requests = collected.map_err(|missing| Refusal {
            fault: Fault::Nodes,
            reason: "its part of the request did not come, or the client left it".into(),
            missing,
        })?;
        let inputs: usize = requests.iter().map(|held| held.geometry.batch).sum();
        let odd: Vec<RequestKey> = requests
            .iter()
            .filter(|held| held.geometry.rows != plan.geometry.rows || !Arc::ptr_eq(&held.model, &model))
            .map(|held| held.key)
            .collect();
        if !odd.is_empty() || requests.len() != plan.requests.len() || inputs != plan.geometry.batch {
            self.desk.put_back(requests);
            let reason = "the shapes of its parts are not those of the plan: the client sent parts that do not match";
            return Err(Refusal { fault: Fault::Request, reason: reason.into(), missing: odd });
        }
        Ok(Accepted { plan, hash, nonce: fresh(), model, requests, place })
    }

    /// All three have agreed: the session begins.
    pub(crate) fn started(self: &Arc<Self>, session: u128, nonces: [[u8; 32]; 3]) {
        let Some(Proposal { from, accepted: Some(accepted) }) = self.proposals().remove(&session) else {
            return tracing::info!("a session was started that was not accepted, or no longer");
        };
        let Accepted { plan, hash, nonce, model, requests, place } = accepted;
        if nonces[self.me.index()] != nonce {
            tracing::error!("P1 did not pass this node's part of a session's seeds on; the session is not run");
            return self.desk.put_back(requests);
        }
        let shared = self.clone();
        self.spawn(async move {
            let other = if shared.me == PartyId::P0 { PartyId::P2 } else { PartyId::P0 };
            match shared.endpoint.wait_party(other, START_PATIENCE).await {
                Ok(connection) => {
                    let room = Room { model, connections: [from, connection], place };
                    session::run(shared, Agreement { plan, hash, nonces }, requests, room).await;
                }
                Err(error) => session::refuse_all(&shared, requests, &error.to_string()),
            }
        });
    }

    /// A session does not take place, if it has not begun: its requests wait on.
    pub(crate) fn cancelled(&self, session: u128) {
        let proposal = self.proposals().remove(&session);
        if let Some(accepted) = proposal.and_then(|proposal| proposal.accepted) {
            self.desk.put_back(accepted.requests);
        }
    }

    /// Nothing proposed over a connection begins once it is over.
    pub(crate) fn forget_proposals(&self, from: &Connection) {
        let sessions: Vec<u128> =
            self.proposals().iter().filter(|(_, proposal)| proposal.from.same(from)).map(|(id, _)| *id).collect();
        for session in sessions {
            self.cancelled(session);
        }
    }

    /// P1 has given requests up.
    pub(crate) fn dropped(&self, requests: Vec<RequestKey>, fault: Fault, reason: &str) {
        for held in requests.into_iter().filter_map(|key| self.desk.withdraw(key)) {
            held.refuse(fault, reason);
        }
    }
}
