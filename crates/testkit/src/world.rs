//! Running a program at three parties.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tercet_core::{Cost, PairSeeds, Result, Session};
use tercet_net::{Meter, PartyId, Transport, TransportError, memory_world};
use tercet_ring::{Pool, Seed};

use crate::replay::{Frame, Recorded};

/// Settings of a world.
pub struct World {
    deadline: Duration,
    pool: Pool,
    seeds: Option<[[u8; 32]; 2]>,
    recorded: bool,
}

/// What a run gave.
pub struct Run<R> {
    /// What each party returned.
    pub outputs: [R; 3],
    /// What was measured; every link was counted alike at both its ends.
    pub cost: Cost,
    /// Every payload byte that each party received, in order.
    pub received: [Vec<u8>; 3],
}

impl Default for World {
    fn default() -> World {
        World { deadline: Duration::from_secs(30), pool: Pool::default(), seeds: None, recorded: true }
    }
}

impl World {
    /// A world whose parties have this many worker threads each.
    pub fn with_threads(threads: usize) -> World {
        World { pool: Pool::new(threads), ..World::default() }
    }

    /// The same with given pair seeds instead of fresh ones: every run draws the same masks. For comparing runs, and for
    /// nothing else.
    pub fn seeded(self, seeds: [[u8; 32]; 2]) -> World {
        World { seeds: Some(seeds), ..self }
    }

    /// The same, but what parties receive is not kept: for runs of gigabytes.
    pub fn unrecorded(self) -> World {
        World { recorded: false, ..self }
    }

    /// Runs `program` at all three parties, with fresh seeds unless some were given.
    ///
    /// # Panics
    /// Where a party fails, or the parties disagree on what travelled.
    pub fn run<R: Send>(&self, program: impl Fn(&mut Session) -> Result<R> + Sync) -> Run<R> {
        self.log(program, self.recorded).0
    }

    /// As [`World::run`], and gives each party's part of it, to be run again alone.
    ///
    /// # Panics
    /// As [`World::run`].
    pub fn record<R: Send>(&self, program: impl Fn(&mut Session) -> Result<R> + Sync) -> (Run<R>, [Recorded; 3]) {
        let (run, seeds, logs) = self.log(program, true);
        (run, PartyId::ALL.map(|party| Recorded::new(party, seeds, &logs)))
    }

    /// A run, its seeds, and what each party received where that is wanted.
    fn log<R: Send>(
        &self,
        program: impl Fn(&mut Session) -> Result<R> + Sync,
        wanted: bool,
    ) -> (Run<R>, [[u8; 32]; 2], [Vec<Frame>; 3]) {
        let seeds = self.seeds.unwrap_or_else(|| [*Seed::random().as_bytes(), *Seed::random().as_bytes()]);
        let logs: [Log; 3] = Default::default();
        let transports = memory_world(self.deadline);
        let program = &program;
        let finished: Vec<(R, Cost)> = std::thread::scope(|scope| {
            let run = |(transport, log): (_, &Log)| {
                let [first, second] = seeds.map(|seed| Some(Seed::from_bytes(seed)));
                let logging = Logging { inner: transport, log: wanted.then(|| log.clone()) };
                let pool = self.pool.clone();
                scope.spawn(move || {
                    let mut session = Session::new(Box::new(logging), &PairSeeds { first, second }, pool)?;
                    let outcome = program(&mut session).and_then(|r| session.finish().map(|()| r));
                    if let Err(error) = &outcome {
                        session.abort(&error.to_string());
                    }
                    let cost = session.cost();
                    outcome.map(|r| (r, cost))
                })
            };
            let threads: Vec<_> = transports.into_iter().zip(&logs).map(run).collect();
            let joined: Vec<_> = threads.into_iter().map(|t| t.join().expect("a party panicked")).collect();
            joined.into_iter().map(|r| r.expect("a party failed")).collect()
        });
        let cost = merged(&finished.iter().map(|(_, cost)| *cost).collect::<Vec<_>>());
        let outputs: Vec<R> = finished.into_iter().map(|(r, _)| r).collect();
        let logs = logs.map(|log| std::mem::take(&mut *log.lock().expect("no party panicked")));
        let received = logs.each_ref().map(|log| log.iter().flat_map(|frame| &frame.payload).copied().collect());
        let run = Run { outputs: outputs.try_into().unwrap_or_else(|_| unreachable!("three parties")), cost, received };
        (run, seeds, logs)
    }
}

/// The three views of what travelled, checked against one another.
fn merged(views: &[Cost]) -> Cost {
    let largest_frame = views.iter().map(|view| view.largest_frame).max().unwrap_or(0);
    let mut all = Cost { rounds: views[0].rounds, largest_frame, ..Cost::NONE };
    assert!(views.iter().all(|v| v.rounds == all.rounds), "parties count different rounds");
    for from in 0..3 {
        for to in (0..3).filter(|&to| to != from) {
            let (sent, received) = (views[from], views[to]);
            assert_eq!(sent.bytes[from][to], received.bytes[from][to], "bytes from P{from} to P{to}");
            all.bytes[from][to] = sent.bytes[from][to];
            all.frames[from][to] = sent.frames[from][to];
        }
    }
    all
}

/// What a party received, in the order in which it asked for it.
type Log = Arc<Mutex<Vec<Frame>>>;

/// A transport that keeps what it receives.
struct Logging<T> {
    inner: T,
    log: Option<Log>,
}

impl<T: Transport> Transport for Logging<T> {
    fn party(&self) -> PartyId {
        self.inner.party()
    }

    fn send(&mut self, to: PartyId, tag: u64, payload: Bytes) -> std::result::Result<(), TransportError> {
        self.inner.send(to, tag, payload)
    }

    fn recv(&mut self, from: PartyId, tag: u64) -> std::result::Result<Bytes, TransportError> {
        let payload = self.inner.recv(from, tag)?;
        if let Some(Ok(mut log)) = self.log.as_ref().map(|log| log.lock()) {
            log.push(Frame { from, to: self.party(), tag, payload: payload.clone() });
        }
        Ok(payload)
    }

    fn abort(&mut self, reason: &str) {
        self.inner.abort(reason);
    }

    fn flush(&mut self) -> std::result::Result<(), TransportError> {
        self.inner.flush()
    }

    fn meter(&self) -> Meter {
        self.inner.meter()
    }
}
