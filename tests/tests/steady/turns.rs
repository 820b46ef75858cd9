//! Three parties that run in turns, one at a time until it waits for a frame that is not there, so that a run makes and
//! drops everything in the same order every time.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use tercet_net::{Meter, PartyId, Transport, TransportError};

/// Whose turn it is, and the frames on the way.
#[derive(Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    turn: usize,
    /// What each party waits for: a frame of this party, with this tag.
    awaited: [Option<(usize, u64)>; 3],
    gone: [bool; 3],
    /// By receiver and sender.
    frames: [[BTreeMap<u64, Bytes>; 3]; 3],
    /// All that are left wait for one another.
    stuck: bool,
}

impl State {
    fn ready(&self, party: usize) -> bool {
        let there = |(from, tag): (usize, u64)| self.frames[party][from].contains_key(&tag);
        !self.gone[party] && self.awaited[party].is_none_or(there)
    }

    fn pass(&mut self) {
        match (0..3).map(|step| (self.turn + step) % 3).find(|&party| self.ready(party)) {
            Some(party) => self.turn = party,
            None => self.stuck = true,
        }
    }
}

impl Turns {
    /// Back to the beginning; nobody has a part.
    pub(crate) fn reset(&self) {
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no party panics in its turn's books")
    }

    fn wait_for_turn<'a>(&self, mut state: MutexGuard<'a, State>, me: usize) -> MutexGuard<'a, State> {
        while state.turn != me && !state.stuck {
            state = self.changed.wait(state).expect("no party panics in its turn's books");
        }
        state
    }
}

/// A party's part in the turns, from its first turn until this is dropped.
pub(crate) struct Part {
    turns: Arc<Turns>,
    party: PartyId,
}

impl Part {
    /// Waits for the first turn.
    pub(crate) fn begin(turns: &Arc<Turns>, party: PartyId) -> Part {
        drop(turns.wait_for_turn(turns.state(), party.index()));
        Part { turns: turns.clone(), party }
    }

    /// This party's links, for as long as it has its part.
    pub(crate) fn links(&self) -> Links {
        Links { turns: self.turns.clone(), party: self.party }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.gone[self.party.index()] = true;
        state.pass();
        self.turns.changed.notify_all();
    }
}

pub(crate) struct Links {
    turns: Arc<Turns>,
    party: PartyId,
}

impl Transport for Links {
    fn party(&self) -> PartyId {
        self.party
    }

    fn send(&mut self, to: PartyId, tag: u64, payload: Bytes) -> Result<(), TransportError> {
        self.turns.state().frames[to.index()][self.party.index()].insert(tag, payload);
        Ok(())
    }

    fn recv(&mut self, from: PartyId, tag: u64) -> Result<Bytes, TransportError> {
        let me = self.party.index();
        let mut state = self.turns.state();
        state.awaited[me] = Some((from.index(), tag));
        state.pass();
        self.turns.changed.notify_all();
        state = self.turns.wait_for_turn(state, me);
        state.awaited[me] = None;
        let lost = || TransportError::Lost { party: from, reason: "nobody can go on".into() };
        state.frames[me][from.index()].remove(&tag).ok_or_else(lost)
    }

    fn abort(&mut self, _: &str) {}

    fn flush(&mut self) -> Result<(), TransportError> {
        Ok(())
    }

    fn meter(&self) -> Meter {
        Meter::default()
    }
}
