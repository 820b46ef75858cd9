//! What the tasks of one node have in common.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tercet_net::{Connection, Endpoint, ModelCard, PartyId, SessionSettings, WireBytes};
use tercet_ring::Pool;
use tokio::sync::{Semaphore, watch};

use crate::control::name;
use crate::counters::Counters;
use crate::desk::{Desk, LEAD};
use crate::follow::Proposals;
use crate::key::RequestKey;
use crate::lead::Asked;
use crate::models::{Model, Models};
use crate::plan::{Capacity, PeerMessage, fresh_session};
use crate::quota::Quotas;
use crate::shape::Shape;

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// What was let in runs to its end, and nothing more is let in.
    Stopping,
    /// What has not ended is given up.
    Closing,
    Stopped,
}

/// What requests and sessions are held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_batch: usize,
    pub(crate) max_sessions: usize,
    /// Working memory of one session.
    pub(crate) session_bytes: u64,
    /// The longest that a request waits for its session.
    pub(crate) request_deadline: Duration,
    /// The longest that a generation lasts.
    pub(crate) generation_deadline: Duration,
    /// The longest that a generation waits for its client.
    pub(crate) idle_deadline: Duration,
}

impl Limits {
    /// What this node lets one session take.
    pub(crate) fn capacity(&self) -> Capacity {
        Capacity { batch: self.max_batch as u64, bytes: self.session_bytes }
    }
}

/// One node, to its tasks.
pub(crate) struct Shared {
    pub(crate) me: PartyId,
    pub(crate) endpoint: Endpoint,
    pub(crate) models: Models,
    pub(crate) desk: Arc<Desk>,
    /// What clients may occupy.
    pub(crate) quotas: Quotas,
    /// Drawn at the start: a request names it, so that none outlives the node's memory of what was
    /// asked before.
    pub(crate) start_id: [u8; 16],
    pub(crate) pool: Pool,
    pub(crate) settings: SessionSettings,
    pub(crate) limits: Limits,
    /// One permit for each session that may run, or is being agreed upon.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) counters: Counters,
    pub(crate) phase: watch::Sender<Phase>,
    /// Requests on channels, not yet answered to the end.
    pub(crate) open_requests: watch::Sender<usize>,
    /// Plans of P1 that this node considers or has accepted.
    pub(crate) proposals: Mutex<Proposals>,
    /// Where the answers to plans of this node go.
    pub(crate) verdicts: Mutex<BTreeMap<(u128, PartyId), Asked>>,
    peers: Mutex<[PeerState; 3]>,
    /// What each node lets one session take, as it said last.
    capacities: Mutex<[Option<Capacity>; 3]>,
    pub(crate) started: Instant,
}

/// What is known of another node.
#[derive(Default)]
struct PeerState {
    /// The connection that is served, and what its other end holds.
    current: Option<(Connection, Option<Vec<ModelCard>>)>,
    /// Of connections that are over.
    past: WireBytes,
    session_sent: u64,
    session_received: u64,
}

impl Shared {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        me: PartyId,
        endpoint: Endpoint,
        models: Models,
        desk: Arc<Desk>,
        quotas: Quotas,
        pool: Pool,
        settings: SessionSettings,
        limits: Limits,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            me,
            endpoint,
            models,
            desk,
            quotas,
            start_id: fresh_session().to_le_bytes(),
            pool,
            settings,
            limits,
            places: Arc::new(Semaphore::new(limits.max_sessions)),
            counters: Counters::default(),
            phase: watch::Sender::new(Phase::Serving),
            open_requests: watch::Sender::new(0),
            proposals: Mutex::default(),
            verdicts: Mutex::default(),
            peers: Mutex::default(),
            capacities: Mutex::default(),
            started: Instant::now(),
        })
    }

    /// Runs a task until its end or the node's.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let mut phase = self.phase.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = phase.wait_for(|phase| *phase == Phase::Stopped) => {}
            }
        });
    }

    pub(crate) fn is_serving(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
    }

    fn capacities(&self) -> MutexGuard<'_, [Option<Capacity>; 3]> {
        self.capacities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a run of this shape has room in a batch and in the memory of one session, at all nodes that are known.
    pub(crate) fn fits(&self, model: &Model, shape: &Shape) -> bool {
        let known = *self.capacities();
        let most = known.into_iter().flatten().fold(self.limits.capacity(), Capacity::and);
        let frame = self.settings.limits.frame_cap as u64;
        shape.len() as u64 <= most.batch && model.check_room(shape, most.bytes, frame).is_ok()
    }

    /// A node says what it lets one session take.
    pub(crate) fn peer_allows(&self, peer: PartyId, most: Capacity) {
        self.capacities()[peer.index()] = Some(most);
    }

    fn peers(&self) -> MutexGuard<'_, [PeerState; 3]> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to a node begins to be served.
    pub(crate) fn peer_met(&self, peer: PartyId, connection: &Connection) {
        let mut peers = self.peers();
        let state = &mut peers[peer.index()];
        if let Some((older, _)) = state.current.replace((connection.clone(), None)) {
            state.past = sum(state.past, older.wire_bytes());
            // The new connection begins with what is there now.
            self.desk.renounced(peer, None);
        }
    }

    pub(crate) fn peer_holds(&self, peer: PartyId, connection: &Connection, cards: Vec<ModelCard>) {
        if let Some((current, known)) = &mut self.peers()[peer.index()].current
            && current.same(connection)
        {
            *known = Some(cards);
        }
    }

    pub(crate) fn peer_left(&self, peer: PartyId, connection: &Connection) {
        let mut peers = self.peers();
        let state = &mut peers[peer.index()];
        if let Some((left, _)) = state.current.take_if(|(current, _)| current.same(connection)) {
            state.past = sum(state.past, left.wire_bytes());
            self.desk.renounced(peer, None);
        }
    }

    /// A request has come and waits: the lead hears of it, and as the lead this node says so to
    /// those that announced it.
    pub(crate) async fn came(&self, key: RequestKey) {
        if self.me != LEAD {
            return self.tell_lead(PeerMessage::Here { requests: vec![key] }).await;
        }
        let lacking = self.desk.lacking(key);
        for peer in LEAD.others().into_iter().filter(|peer| key.step == 0 && !lacking.contains(peer)) {
            if let Some(connection) = self.endpoint.party(peer) {
                name(connection, vec![key]).await;
            }
        }
    }

    /// Tells P1 something, if this is another node and P1 is connected; else it hears when it is.
    pub(crate) async fn tell_lead(&self, message: PeerMessage) {
        if self.me == LEAD {
            return;
        }
        let Some(lead) = self.endpoint.party(LEAD) else { return };
        if let Err(error) = lead.send_message(&message).await {
            tracing::debug!(%error, "P1 could not be told");
        }
    }

    /// Why a model cannot be run with the nodes that are connected, as far as is known.
    pub(crate) fn disagreement(&self, model: &Model) -> Option<String> {
        let (name, digest) = (model.name(), model.share.digest());
        let peers = self.peers();
        for peer in self.me.others() {
            let Some((_, Some(cards))) = &peers[peer.index()].current else { continue };
            let mend = "share it again and give all three nodes their parts";
            match cards.iter().find(|card| card.name == name) {
                None => return Some(format!("{peer} does not hold model {name:?}; {mend}")),
                Some(card) if card.digest != digest => {
                    let (here, there) = (short(&digest), short(&card.digest));
                    let me = self.me;
                    return Some(format!("{peer} holds model {name:?} {there}, {me} holds {here}; {mend}"));
                }
                Some(_) => {}
            }
        }
        None
    }

    /// Counts what a session sent to and received from a node.
    pub(crate) fn count_session_bytes(&self, peer: PartyId, sent: u64, received: u64) {
        let mut peers = self.peers();
        peers[peer.index()].session_sent += sent;
        peers[peer.index()].session_received += received;
    }

    /// Whether a node is connected, session bytes sent and received, wire bytes.
    pub(crate) fn traffic(&self, peer: PartyId) -> (Option<Connection>, [u64; 2], WireBytes) {
        let peers = self.peers();
        let state = &peers[peer.index()];
        let current = state.current.as_ref().map(|(connection, _)| connection.clone());
        let now = current.as_ref().map_or(WireBytes::default(), Connection::wire_bytes);
        let living = current.filter(|connection| !connection.is_closed());
        (living, [state.session_sent, state.session_received], sum(state.past, now))
    }
}

fn sum(a: WireBytes, b: WireBytes) -> WireBytes {
    WireBytes { sent: a.sent + b.sent, received: a.received + b.received }
}

/// The first digits of a digest.
fn short(digest: &[u8; 32]) -> String {
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
