//! What has arrived for one session at one party: an ordered queue a peer, the frames that overtook, and their bounds.
//!
//! Memory, QUIC and TCP links all deliver here, so a session behaves the same on each of them:
//!
//! - Frames of one peer keep their order. A frame that is not yet asked for is set aside under its tag.
//! - A tag is used once a session and direction: a second frame with the same tag is a replay and ends the session.
//! - The helper's queue has a *window*: its sender waits for room, which bounds how far the helper runs ahead. Whoever
//!   waits for a later frame moves the earlier ones out of the queue, so the window cannot deadlock.
//! - Everything unread has a *cap*, also what evaluators sent: beyond it the session fails, nobody blocks.
//! - An abort or a broken rule is seen at once on every lane; a lost connection only after what it had delivered.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::shaped::LinkClock;
use crate::{FRAME_HEADER_BYTES, PartyId, TransportError};

/// Bookkeeping that an unread frame costs here beyond its payload, in bytes; empty frames are not free.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Longest abort reason that is kept, in characters.
const REASON_CHARS: usize = 300;

/// How much may wait unread in one session at one party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Bytes from the helper that may queue before its sender has to wait.
    pub helper_window: usize,
    /// Bytes from one peer that may wait in all; more is an error of that peer.
    pub unread_cap: usize,
    /// Payload bytes of one frame.
    pub frame_cap: usize,
}

impl Default for FrameLimits {
    /// 32 MiB of helper frames ahead at each end; 1 GiB unread; 512 MiB a frame.
    fn default() -> Self {
        Self { helper_window: 32 << 20, unread_cap: 1 << 30, frame_cap: 512 << 20 }
    }
}

/// What arrived for one session at one party.
pub(crate) struct Mailbox {
    me: PartyId,
    limits: FrameLimits,
    state: Mutex<State>,
    arrived: Condvar,
    room: Condvar,
    async_room: [Notify; 3],
}

#[derive(Default)]
struct State {
    lanes: [Lane; 3],
    /// Ends the session on every lane, at once.
    fatal: Option<TransportError>,
    /// The session's thread has let go of its transport.
    reader_gone: bool,
}

/// One peer's frames.
#[derive(Default)]
struct Lane {
    queue: VecDeque<Held>,
    queued_bytes: usize,
    overtook: HashMap<u64, Bytes>,
    overtook_bytes: usize,
    seen: HashSet<u64>,
    end: Option<TransportError>,
}

struct Held {
    tag: u64,
    payload: Bytes,
    /// When a shaped link would have delivered it.
    ready: Option<Instant>,
}

fn weight(payload: &Bytes) -> usize {
    payload.len() + FRAME_OVERHEAD_BYTES
}

impl Mailbox {
    pub(crate) fn new(me: PartyId, limits: FrameLimits) -> Arc<Self> {
        Arc::new(Self {
            me,
            limits,
            state: Mutex::default(),
            arrived: Condvar::new(),
            room: Condvar::new(),
            async_room: Default::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> FrameLimits {
        self.limits
    }

    /// Takes in a frame from `from`; the link's clock, if it is shaped, says when it may be read.
    pub(crate) fn deliver(&self, from: PartyId, tag: u64, payload: Bytes, clock: Option<&Mutex<LinkClock>>) {
        let ready = clock.map(|clock| {
            let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
            clock.arrival(Instant::now(), payload.len() + FRAME_HEADER_BYTES)
        });
        let mut state = self.lock();
        if state.fatal.is_some() || state.reader_gone {
            return;
        }
        let lane = &mut state.lanes[from.index()];
        let unread = lane.queued_bytes + lane.overtook_bytes + weight(&payload);
        if payload.len() > self.limits.frame_cap || unread > self.limits.unread_cap {
            let what = format!("more than {} bytes wait unread", self.limits.unread_cap.min(self.limits.frame_cap));
            state.fatal = Some(TransportError::Protocol { party: from, what });
        } else if !lane.seen.insert(tag) {
            let what = format!("a second frame with tag {tag:#018x}");
            state.fatal = Some(TransportError::Protocol { party: from, what });
        } else {
            lane.queued_bytes += weight(&payload);
            lane.queue.push_back(Held { tag, payload, ready });
        }
        drop(state);
        self.arrived.notify_all();
    }

    /// The frame with `tag` from `from`, and how long that took. Blocks until it is here, or the session or the deadline ends.
    pub(crate) fn take(
        &self,
        from: PartyId,
        tag: u64,
        deadline: Duration,
    ) -> Result<(Bytes, Duration), TransportError> {
        if from == self.me {
            return Err(TransportError::Protocol { party: self.me, what: "receives from itself".into() });
        }
        let mut started = None;
        let mut state = self.lock();
        loop {
            if let Some(fatal) = &state.fatal {
                return Err(fatal.clone());
            }
            let lane = &mut state.lanes[from.index()];
            let (found, next_ready) = lane.find(tag);
            if lane.queued_bytes < self.limits.helper_window {
                self.room.notify_all();
                self.async_room[from.index()].notify_one();
            }
            if let Some(payload) = found {
                return Ok((payload, started.map_or(Duration::ZERO, |at: Instant| at.elapsed())));
            }
            if next_ready.is_none()
                && let Some(end) = &lane.end
            {
                return Err(end.clone());
            }
            let now = Instant::now();
            let waited = now - *started.get_or_insert(now);
            if waited >= deadline {
                return Err(TransportError::Deadline { party: from, waited_ms: waited.as_millis() as u64 });
            }
            let mut pause = deadline - waited;
            if let Some(ready) = next_ready {
                pause = pause.min(ready.saturating_duration_since(now));
            }
            state = self.arrived.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until a frame of `bytes` from `from` has room in the window; memory links call it from the sender's thread.
    pub(crate) fn wait_room(&self, from: PartyId, bytes: usize, deadline: Duration) -> Result<(), TransportError> {
        let mut state = self.lock();
        let mut quiet_since = Instant::now();
        let mut queued_before = usize::MAX;
        loop {
            if state.reader_gone {
                return Err(TransportError::Lost { party: self.me, reason: "it left the session".into() });
            }
            let queued = state.lanes[from.index()].queued_bytes;
            if state.fatal.is_some() || queued == 0 || queued + bytes <= self.limits.helper_window {
                return Ok(());
            }
            // The deadline is on progress: a slow reader that still reads is not a dead one.
            if queued < queued_before {
                quiet_since = Instant::now();
            }
            queued_before = queued;
            let waited = quiet_since.elapsed();
            if waited >= deadline {
                return Err(TransportError::Deadline { party: self.me, waited_ms: waited.as_millis() as u64 });
            }
            state = self.room.wait_timeout(state, deadline - waited).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Mailbox::wait_room`], for a task that reads a network link; false when nobody will read any more.
    pub(crate) async fn room(&self, from: PartyId, bytes: usize) -> bool {
        loop {
            {
                let state = self.lock();
                if state.reader_gone || state.fatal.is_some() {
                    return false;
                }
                let queued = state.lanes[from.index()].queued_bytes;
                if queued == 0 || queued + bytes <= self.limits.helper_window {
                    return true;
                }
            }
            // `notify_one` leaves a permit when it comes between the check and this line.
            self.async_room[from.index()].notified().await;
        }
    }

    /// The link to `from` ended: frames that had arrived are still read, then this error.
    pub(crate) fn end(&self, from: PartyId, error: TransportError) {
        self.lock().lanes[from.index()].end.get_or_insert(error);
        self.arrived.notify_all();
    }

    /// The session is over on every lane; the first reason stays.
    pub(crate) fn fail(&self, error: TransportError) {
        self.lock().fatal.get_or_insert(error);
        self.wake_all();
    }

    /// What ended the session on every lane.
    pub(crate) fn fatal(&self) -> Option<TransportError> {
        self.lock().fatal.clone()
    }

    /// The session's thread reads no more.
    pub(crate) fn leave(&self) {
        self.lock().reader_gone = true;
        self.wake_all();
    }

    /// Whether the session's thread reads no more.
    pub(crate) fn left(&self) -> bool {
        self.lock().reader_gone
    }

    fn wake_all(&self) {
        self.arrived.notify_all();
        self.room.notify_all();
        for room in &self.async_room {
            room.notify_one();
        }
    }
}

impl Lane {
    /// The frame with this tag, if it may be read now; else when the next frame in line may be.
    fn find(&mut self, tag: u64) -> (Option<Bytes>, Option<Instant>) {
        if let Some(payload) = self.overtook.remove(&tag) {
            self.overtook_bytes -= weight(&payload);
            return (Some(payload), None);
        }
        while let Some(held) = self.queue.front() {
            if let Some(ready) = held.ready
                && ready > Instant::now()
            {
                return (None, Some(ready));
            }
            let Some(held) = self.queue.pop_front() else { break };
            self.queued_bytes -= weight(&held.payload);
            if held.tag == tag {
                return (Some(held.payload), None);
            }
            self.overtook_bytes += weight(&held.payload);
            self.overtook.insert(held.tag, held.payload);
        }
        (None, None)
    }
}

/// A reason that came from a peer, made fit for logs and errors: bounded, without control characters.
pub(crate) fn clean_reason(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect()
}
