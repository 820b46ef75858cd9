//! Where requests wait for their session: held by key, in order of arrival, taken by whole batches.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tercet_core::Geometry;
use tercet_engine::Parsed;
use tercet_net::{Fault, NodeMessage, PartyId, PublicKey};
use tokio::sync::{Notify, oneshot};

use crate::models::Model;

/// For how long a request's number is remembered after its use, and how many are at most.
const REPLAY_MEMORY: (Duration, u64) = (Duration::from_secs(24 * 3600), 1 << 18);

/// Requests that others may announce to the lead before it has them.
const ANNOUNCED_AT_MOST: usize = 1 << 16;

/// What a client hears whose request came too late.
pub(crate) const STOPPING: &str = "this node is being stopped: try again when it is back";

/// Who decides what runs together.
pub(crate) const LEAD: PartyId = PartyId::P1;

/// Names a request at all three nodes: whose it is, and its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct RequestKey {
    /// The client's public key, so that no client can meddle with another's request.
    client: [u8; 32],
    id: [u8; 16],
}

impl RequestKey {
    pub(crate) fn new(client: &PublicKey, id: [u8; 16]) -> RequestKey {
        RequestKey { client: *client.as_bytes(), id }
    }
}

impl std::fmt::Display for RequestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A request that waits.
pub(crate) struct Held {
    pub(crate) key: RequestKey,
    pub(crate) model: Arc<Model>,
    pub(crate) geometry: Geometry,
    pub(crate) input: Parsed,
    pub(crate) arrived: Instant,
    /// Whether its client asked where the time goes.
    profile: bool,
    reply: oneshot::Sender<NodeMessage>,
}

impl Held {
    pub(crate) fn answer(self, message: NodeMessage) {
        // The client may have left.
        let _ = self.reply.send(message);
    }

    pub(crate) fn refuse(self, fault: Fault, reason: impl Into<String>) {
        self.answer(NodeMessage::Refused { fault, reason: reason.into() });
    }

    /// The input, and the rest.
    pub(crate) fn split(self) -> (Parsed, Waiting) {
        (self.input, Waiting { arrived: self.arrived, profile: self.profile, reply: self.reply })
    }
}

/// A request whose input is in a session: what is left is to answer it.
pub(crate) struct Waiting {
    pub(crate) arrived: Instant,
    /// Whether its client asked where the time goes.
    pub(crate) profile: bool,
    reply: oneshot::Sender<NodeMessage>,
}

impl Waiting {
    pub(crate) fn answer(self, message: NodeMessage) {
        // The client may have left.
        let _ = self.reply.send(message);
    }
}

/// Why a request is not taken in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotHeld {
    Full,
    Replayed,
    Closed,
}

/// The requests that wait at one node.
pub(crate) struct Desk {
    state: Mutex<State>,
    /// Rings when a request came, left, or the desk closed.
    changed: Notify,
    seen: Cache<RequestKey, ()>,
    capacity: usize,
}

#[derive(Default)]
struct State {
    held: BTreeMap<RequestKey, Held>,
    /// In order of arrival; keys of requests that have gone are skipped.
    order: VecDeque<RequestKey>,
    /// Those that a batch has taken out and that may come back.
    out: BTreeSet<RequestKey>,
    /// At the lead: which of the others have their part, by party.
    elsewhere: BTreeMap<RequestKey, [bool; 3]>,
    closed: bool,
}

impl Desk {
    pub(crate) fn new(capacity: usize) -> Desk {
        let (memory, most) = REPLAY_MEMORY;
        // The least recently used goes first: a new number is never the one that is forgotten.
        let policy = EvictionPolicy::lru();
        let seen = Cache::builder().max_capacity(most).eviction_policy(policy).time_to_live(memory).build();
        Desk { state: Mutex::default(), changed: Notify::new(), seen, capacity }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request in; its answer comes out of the receiver.
    pub(crate) fn hold(
        &self,
        key: RequestKey,
        model: Arc<Model>,
        geometry: Geometry,
        input: Parsed,
        profile: bool,
    ) -> Result<oneshot::Receiver<NodeMessage>, NotHeld> {
        let (reply, answer) = oneshot::channel();
        let mut state = self.lock();
        if state.closed {
            return Err(NotHeld::Closed);
        }
        if state.held.len() >= self.capacity {
            return Err(NotHeld::Full);
        }
        if !self.seen.entry(key).or_insert(()).is_fresh() {
            return Err(NotHeld::Replayed);
        }
        let arrived = Instant::now();
        state.held.insert(key, Held { key, model, geometry, input, arrived, profile, reply });
        state.order.push_back(key);
        drop(state);
        self.changed.notify_waiters();
        Ok(answer)
    }

    /// Takes a request out again; none if a session has it already.
    pub(crate) fn withdraw(&self, key: RequestKey) -> Option<Held> {
        let mut state = self.lock();
        let held = state.held.remove(&key);
        if held.is_some() {
            state.order.retain(|other| *other != key);
        }
        drop(state);
        self.changed.notify_waiters();
        held
    }

    /// Another node has its parts of these requests.
    pub(crate) fn announced(&self, by: PartyId, requests: &[RequestKey]) {
        let mut state = self.lock();
        for key in requests {
            if state.elsewhere.len() < ANNOUNCED_AT_MOST || state.elsewhere.contains_key(key) {
                state.elsewhere.entry(*key).or_default()[by.index()] = true;
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Another node no longer has its part of this request, or of any.
    pub(crate) fn renounced(&self, by: PartyId, request: Option<RequestKey>) {
        self.lock().elsewhere.retain(|key, parties| {
            if request.is_none_or(|request| request == *key) {
                parties[by.index()] = false;
            }
            parties.contains(&true)
        });
    }

    /// Which of the others have not announced their part of a request.
    pub(crate) fn lacking(&self, key: RequestKey) -> Vec<PartyId> {
        let here = self.lock().elsewhere.get(&key).copied().unwrap_or_default();
        LEAD.others().into_iter().filter(|party| !here[party.index()]).collect()
    }

    /// Everything that waits here, in order of arrival.
    pub(crate) fn keys(&self) -> Vec<RequestKey> {
        self.lock().order.iter().copied().collect()
    }

    /// The oldest request that all three have, with all others that may run beside it, as far as `fits` allows their sum:
    /// same model, same rows. Waits until there is one; none once the desk is closed.
    pub(crate) async fn next_batch(&self, fits: impl Fn(&Model, Geometry) -> bool) -> Option<Vec<Held>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                let batch = state.take_batch(&fits);
                if !batch.is_empty() {
                    return Some(batch);
                }
            }
            changed.await;
        }
    }

    /// All requests of these keys, as soon as all are here, at most after `patience`; else those that are not. A request
    /// that was here and went is not waited for.
    pub(crate) async fn collect(&self, keys: &[RequestKey], patience: Duration) -> Result<Vec<Held>, Vec<RequestKey>> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let missing = {
                let mut state = self.lock();
                let missing: Vec<RequestKey> =
                    keys.iter().filter(|key| !state.held.contains_key(key)).copied().collect();
                if missing.is_empty() {
                    return Ok(keys.iter().filter_map(|key| state.take(*key)).collect());
                }
                missing
            };
            let gone = |key: &RequestKey| self.seen.contains_key(key) && !self.lock().is_here(key);
            let gone: Vec<RequestKey> = missing.iter().filter(|key| gone(key)).copied().collect();
            if !gone.is_empty() {
                return Err(gone);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(missing);
            }
        }
    }

    /// Puts requests back to the front, in their order: their session did not start.
    pub(crate) fn put_back(&self, requests: Vec<Held>) {
        let mut state = self.lock();
        for held in requests.into_iter().rev() {
            state.out.remove(&held.key);
            if state.closed {
                held.refuse(Fault::Nodes, STOPPING);
            } else if !held.reply.is_closed() {
                // A client that left meanwhile waits no more.
                state.order.push_front(held.key);
                state.held.insert(held.key, held);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// These requests were taken out for good.
    pub(crate) fn settle(&self, keys: &[RequestKey]) {
        let mut state = self.lock();
        for key in keys {
            state.out.remove(key);
            state.elsewhere.remove(key);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Takes nothing in any more, and gives out what waits.
    pub(crate) fn close(&self) -> Vec<Held> {
        let mut state = self.lock();
        state.closed = true;
        state.order.clear();
        let held = std::mem::take(&mut state.held).into_values().collect();
        drop(state);
        self.changed.notify_waiters();
        held
    }
}

impl State {
    fn is_here(&self, key: &RequestKey) -> bool {
        self.held.contains_key(key) || self.out.contains(key)
    }

    fn take(&mut self, key: RequestKey) -> Option<Held> {
        let held = self.held.remove(&key)?;
        self.out.insert(key);
        self.order.retain(|other| *other != key);
        Some(held)
    }

    fn take_batch(&mut self, fits: &impl Fn(&Model, Geometry) -> bool) -> Vec<Held> {
        let everywhere = |key: &RequestKey| {
            let parties = self.elsewhere.get(key);
            parties.is_some_and(|parties| LEAD.others().into_iter().all(|party| parties[party.index()]))
        };
        let oldest = self.order.iter().find(|key| everywhere(key)).and_then(|key| self.held.get(key));
        let Some(oldest) = oldest else { return Vec::new() };
        let (model, rows) = (oldest.model.clone(), oldest.geometry.rows);
        let mut sum = Geometry { batch: 0, rows };
        let mut chosen = Vec::new();
        for key in self.order.iter().filter(|key| everywhere(key)) {
            let Some(held) = self.held.get(key) else { continue };
            let more = Geometry { batch: sum.batch + held.geometry.batch, rows };
            let same = Arc::ptr_eq(&held.model, &model) && held.geometry.rows == rows;
            // The oldest goes in any case: it was let in because it fits alone.
            if same && (chosen.is_empty() || fits(&model, more)) {
                sum = more;
                chosen.push(*key);
            }
        }
        chosen.into_iter().filter_map(|key| self.take(key)).collect()
    }
}
