//! Where requests wait for their session: held by key, in order of arrival, taken by whole batches.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tercet_net::{Fault, PartyId};
use tokio::sync::{Notify, oneshot};

use crate::clients::Refusal;
use crate::held::{Answer, Held, Work};
use crate::key::{Name, RequestKey};
use crate::models::Model;
use crate::shape::Shape;
use crate::turns::{Kind, Turn, Turns};

/// For how long a request's number is remembered after its use, and how many are at most.
const REPLAY_MEMORY: (Duration, u64) = (Duration::from_secs(24 * 3600), 1 << 18);

/// For how long it is remembered why a generation ended: longer than a step takes; and of how many at most.
const ENDS_MEMORY: (Duration, u64) = (Duration::from_secs(3600), 1 << 12);

/// Requests that others may announce to the lead before it has them.
const ANNOUNCED_AT_MOST: usize = 1 << 16;

/// What a client hears whose request came too late.
pub(crate) const STOPPING: &str = "this node is being stopped: try again when it is back";

/// Who decides what runs together.
pub(crate) const LEAD: PartyId = PartyId::P1;

/// Why a request is not taken in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotHeld {
    Replayed,
    Closed,
    /// The generation of which it is a step has ended.
    Ended(Refusal),
}

/// The requests that wait at one node.
pub(crate) struct Desk {
    state: Mutex<State>,
    /// Rings when a request came, left, or the desk closed.
    changed: Notify,
    /// The numbers that were used, with the last step of each.
    seen: Cache<Name, u32>,
    /// Why generations ended before their time, here or at the lead.
    ended: Cache<Name, Refusal>,
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
    turns: Turns,
    /// Nothing is taken before.
    rests: Option<Instant>,
    closed: bool,
}

/// A generation that is alive at this node, until this is dropped.
pub(crate) struct Alive {
    desk: Arc<Desk>,
    name: Name,
}

impl Alive {
    /// It ends for this reason.
    pub(crate) fn end(&self, why: Refusal) {
        self.desk.end(self.name, why);
    }

    /// Waits until it has ended, and says why.
    pub(crate) async fn ended(&self) -> Refusal {
        loop {
            let changed = self.desk.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(why) = self.desk.ended.get(&self.name) {
                return why;
            }
            changed.await;
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        // Nobody is left to wait for it.
        let left = state.take_all(self.name);
        state.turns.leave(self.name);
        drop(state);
        drop(left);
        self.desk.changed.notify_waiters();
    }
}

/// What runs together next.
pub(crate) struct Batch {
    pub(crate) requests: Vec<Held>,
    pub(crate) shape: Shape,
    /// Where they are generations that decode.
    pub(crate) turn: Option<Decoding>,
}

/// A batch, its shape, and what kind of decoding it is.
type Taken = (Vec<Held>, Shape, Option<Kind>);

/// While this lives no other batch of its kind decodes.
pub(crate) struct Decoding {
    desk: Arc<Desk>,
    kind: Kind,
}

impl Drop for Decoding {
    fn drop(&mut self) {
        self.desk.lock().turns.end(&self.kind, Instant::now());
        self.desk.changed.notify_waiters();
    }
}

impl Desk {
    pub(crate) fn new() -> Arc<Desk> {
        let (memory, most) = REPLAY_MEMORY;
        // The least recently used goes first: a new number is never the one that is forgotten.
        let policy = EvictionPolicy::lru();
        let seen = Cache::builder().max_capacity(most).eviction_policy(policy.clone()).time_to_live(memory).build();
        let (memory, most) = ENDS_MEMORY;
        let ended = Cache::builder().max_capacity(most).eviction_policy(policy).time_to_live(memory).build();
        Arc::new(Desk { state: Mutex::default(), changed: Notify::new(), seen, ended })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation begins.
    pub(crate) fn join(self: &Arc<Self>, name: Name, kind: Kind) -> Result<Alive, NotHeld> {
        if !self.lock().turns.join(name, kind) {
            return Err(NotHeld::Replayed);
        }
        Ok(Alive { desk: self.clone(), name })
    }

    /// Takes work in, for which there is a place; its answer comes out of the receiver.
    pub(crate) fn hold(&self, work: Work) -> Result<oneshot::Receiver<Answer>, NotHeld> {
        let key = work.key;
        let mut state = self.lock();
        if state.closed {
            return Err(NotHeld::Closed);
        }
        if key.step > 0 {
            if let Some(why) = self.ended.get(&key.name) {
                return Err(NotHeld::Ended(why));
            }
            self.seen.insert(key.name, key.step);
        } else if !self.seen.entry(key.name).or_insert(0).is_fresh() {
            return Err(NotHeld::Replayed);
        }
        let (held, answer) = Held::new(work);
        state.held.insert(key, held);
        state.order.push_back(key);
        drop(state);
        self.changed.notify_waiters();
        Ok(answer)
    }

    /// Takes a request out again; none if a session has it already.
    pub(crate) fn withdraw(&self, key: RequestKey) -> Option<Held> {
        self.withdraw_for(key, None)
    }

    /// As [`Desk::withdraw`], and remembers why a generation goes on no more.
    pub(crate) fn withdraw_for(&self, key: RequestKey, why: Option<&Refusal>) -> Option<Held> {
        let mut state = self.lock();
        let held = state.held.remove(&key);
        if held.is_some() {
            state.order.retain(|other| *other != key);
            why.into_iter().for_each(|why| self.remember(&state, key.name, why));
        }
        drop(state);
        self.changed.notify_waiters();
        held
    }

    /// Refuses what waits of a request or generation, and all further steps.
    pub(crate) fn end(&self, name: Name, why: Refusal) {
        let mut state = self.lock();
        let left = state.take_all(name);
        state.elsewhere.extract_if(RequestKey::all_of(name), |_, _| true).for_each(drop);
        self.remember(&state, name, &why);
        drop(state);
        left.into_iter().for_each(|held| held.refuse(why.fault, &why.reason));
        self.changed.notify_waiters();
    }

    fn remember(&self, state: &State, name: Name, why: &Refusal) {
        if state.turns.is_alive(&name) {
            self.ended.insert(name, why.clone());
        }
    }

    /// Why a generation ended before its time, if that is known.
    pub(crate) fn why(&self, name: &Name) -> Option<Refusal> {
        self.ended.get(name)
    }

    /// Another node has its parts of these requests. Those of them that are here too.
    pub(crate) fn announced(&self, by: PartyId, requests: &[RequestKey]) -> Vec<RequestKey> {
        let mut state = self.lock();
        let here = requests.iter().filter(|key| state.is_here(key)).copied().collect();
        for key in requests {
            let room = state.elsewhere.len() < ANNOUNCED_AT_MOST || state.elsewhere.contains_key(key);
            if room && !self.ended.contains_key(&key.name) {
                state.elsewhere.entry(*key).or_default()[by.index()] = true;
            }
        }
        drop(state);
        self.changed.notify_waiters();
        here
    }

    /// The lead has its parts of these requests, too.
    pub(crate) fn named(&self, requests: &[RequestKey]) {
        let mut state = self.lock();
        for key in requests {
            if let Some(held) = state.held.get_mut(key) {
                held.named = true;
            }
        }
    }

    /// Whether a request waits here of which the lead has not said that it has its part.
    pub(crate) fn is_unnamed(&self, key: &RequestKey) -> bool {
        self.lock().held.get(key).is_some_and(|held| !held.named)
    }

    /// Whether a request waits here that must make room for another client's.
    pub(crate) fn gives_way(&self, key: &RequestKey) -> bool {
        self.lock().held.get(key).is_some_and(|held| held.work.gives_way())
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
        let state = self.lock();
        if state.held.get(&key).is_some_and(|held| held.work.comes_by_itself()) {
            return Vec::new();
        }
        let here = state.elsewhere.get(&key).copied().unwrap_or_default();
        LEAD.others().into_iter().filter(|party| !here[party.index()]).collect()
    }

    /// Everything that waits here, in order of arrival.
    pub(crate) fn keys(&self) -> Vec<RequestKey> {
        self.lock().order.iter().copied().collect()
    }

    /// The oldest request that all three have, with all others that may run beside it, as far as `fits` allows their sum.
    /// Generations that decode are gathered first ([`crate::turns`]). Waits until there is one; none once the desk is
    /// closed.
    pub(crate) async fn next_batch(self: &Arc<Self>, fits: impl Fn(&Model, &Shape) -> bool) -> Option<Batch> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let again = {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                match state.take_batch(&fits, Instant::now()) {
                    Ok((requests, shape, kind)) => {
                        let turn = kind.map(|kind| Decoding { desk: self.clone(), kind });
                        return Some(Batch { requests, shape, turn });
                    }
                    Err(again) => again,
                }
            };
            match again {
                Some(again) => _ = tokio::time::timeout_at(again.into(), changed).await,
                None => changed.await,
            }
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
            let gone = |key: &RequestKey| {
                let state = self.lock();
                let used = self.seen.get(&key.name).is_some_and(|step| key.step <= step);
                // A generation that is alive may still come to this step; one that is not, never.
                let over = key.step > 0 && !state.turns.is_alive(&key.name);
                (used || over) && !state.is_here(key)
            };
            let gone: Vec<RequestKey> = missing.iter().filter(|key| gone(key)).copied().collect();
            if !gone.is_empty() {
                return Err(gone);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(missing);
            }
        }
    }

    /// Puts requests back, and lets no batch begin for a while.
    pub(crate) fn put_back_for(&self, requests: Vec<Held>, pause: Duration) {
        self.lock().rests = Some(Instant::now() + pause);
        self.put_back(requests);
    }

    /// Puts requests back to the front, in their order: their session did not start.
    pub(crate) fn put_back(&self, requests: Vec<Held>) {
        let mut state = self.lock();
        for held in requests.into_iter().rev() {
            let key = held.key();
            state.out.remove(&key);
            if state.closed {
                held.refuse(Fault::Nodes, STOPPING);
            } else if let Some(why) = self.ended.get(&key.name) {
                held.refuse(why.fault, why.reason);
            } else if !held.is_left() {
                // A client that left meanwhile waits no more.
                state.turns.back(&key.name);
                state.order.push_front(key);
                state.held.insert(key, held);
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

    /// The steps of these generations have ended: the next ones are expected.
    pub(crate) fn back(&self, keys: &[RequestKey]) {
        let mut state = self.lock();
        keys.iter().for_each(|key| state.turns.back(&key.name));
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Generations alive now.
    pub(crate) fn generations(&self) -> usize {
        self.lock().turns.len()
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

    /// All that waits under a name, for good.
    fn take_all(&mut self, name: Name) -> Vec<Held> {
        self.order.retain(|key| key.name != name);
        self.held.extract_if(RequestKey::all_of(name), |_, _| true).map(|(_, held)| held).collect()
    }

    fn take(&mut self, key: RequestKey) -> Option<Held> {
        let mut held = self.held.remove(&key)?;
        // By the plan that takes it, or at the lead itself.
        held.named = true;
        self.out.insert(key);
        self.turns.taken(&key.name);
        self.order.retain(|other| *other != key);
        Some(held)
    }

    /// Whether all three have this, as far as the lead knows.
    fn is_everywhere(&self, key: &RequestKey) -> bool {
        let announced = self.elsewhere.get(key);
        let announced = announced.is_some_and(|parties| LEAD.others().into_iter().all(|party| parties[party.index()]));
        announced || self.held.get(key).is_some_and(|held| held.work.comes_by_itself())
    }

    /// What runs next; else when to look again even if nothing changes.
    fn take_batch(&mut self, fits: &impl Fn(&Model, &Shape) -> bool, now: Instant) -> Result<Taken, Option<Instant>> {
        if let Some(rests) = self.rests.filter(|rests| now < *rests) {
            return Err(Some(rests));
        }
        let ready: Vec<RequestKey> = self.order.iter().filter(|key| self.is_everywhere(key)).copied().collect();
        let names: BTreeSet<Name> = ready.iter().map(|key| key.name).collect();
        let mut again: Option<Instant> = None;
        for (at, oldest) in ready.iter().enumerate() {
            let Some(held) = self.held.get(oldest) else { continue };
            let kind = held.work.kind();
            let turn = kind.as_ref().map(|kind| self.turns.may_begin(kind, |name| names.contains(name), now));
            match turn {
                Some(Turn::Busy) => continue,
                Some(Turn::Later(time)) => {
                    again = Some(again.map_or(time, |other| other.min(time)));
                    continue;
                }
                Some(Turn::Now) | None => {}
            }
            let (model, mut shape) = (held.work.model.clone(), held.work.shape.clone());
            // The oldest goes in any case: it was let in because it fits alone.
            let mut chosen = vec![*oldest];
            for key in &ready[at + 1..] {
                let Some(held) = self.held.get(key).filter(|held| Arc::ptr_eq(&held.work.model, &model)) else {
                    continue;
                };
                if let Some(more) = shape.with(&held.work.shape).filter(|more| fits(&model, more)) {
                    shape = more;
                    chosen.push(*key);
                }
            }
            if let Some(kind) = &kind {
                self.turns.begin(kind, now);
            }
            let requests = chosen.into_iter().filter_map(|key| self.take(key)).collect();
            return Ok((requests, shape, kind));
        }
        Err(again)
    }
}
