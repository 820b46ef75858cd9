//! One party of a run, again and alone.
//!
//! What a party does depends on its program, its seeds and the frames that it receives. A [`Recorded`] holds the last
//! two, so the program runs again at that party with nobody else at work: frames are there before they are asked for,
//! and what is sent goes nowhere. That is how the work of one party is measured on a machine with fewer cores than
//! parties.

use std::sync::Arc;

use bytes::Bytes;
use tercet_core::{Cost, PairSeeds, Result, Session};
use tercet_net::{FRAME_HEADER_BYTES, Meter, PartyId, Traffic, Transport, TransportError};
use tercet_ring::{Pool, Seed};

/// A frame between two parties.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) from: PartyId,
    pub(crate) to: PartyId,
    pub(crate) tag: u64,
    pub(crate) payload: Bytes,
}

/// What one party drew from, received and sent in a run of three. Made by [`World::record`](crate::World::record).
pub struct Recorded {
    party: PartyId,
    seeds: [[u8; 32]; 2],
    /// In the order in which the party asked for them.
    received: Arc<Vec<Frame>>,
    /// From each sender in the order in which a peer asked for them.
    sent: Arc<Vec<Frame>>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorded({}, {} frames)", self.party, self.received.len())
    }
}

impl Recorded {
    pub(crate) fn new(party: PartyId, seeds: [[u8; 32]; 2], logs: &[Vec<Frame>; 3]) -> Recorded {
        let sent = logs.iter().flatten().filter(|frame| frame.from == party).cloned().collect();
        Recorded { party, seeds, received: Arc::new(logs[party.index()].clone()), sent: Arc::new(sent) }
    }

    /// Whose part this is.
    pub fn party(&self) -> PartyId {
        self.party
    }

    /// What the party sent and received, payloads and headers.
    pub fn bytes(&self) -> u64 {
        let frames = self.received.iter().chain(self.sent.iter());
        frames.map(|frame| (frame.payload.len() + FRAME_HEADER_BYTES) as u64).sum()
    }

    /// Runs `program` at this party alone, on the calling thread. It must be the program that was recorded; what it sends
    /// is dropped unseen.
    ///
    /// # Errors
    /// Those of the program; also where it asks for another frame than was recorded.
    pub fn replay<R>(&self, program: impl FnOnce(&mut Session) -> Result<R>) -> Result<R> {
        self.run(program, false).map(|(result, _)| result)
    }

    /// As [`Recorded::replay`], but what is sent must be what was sent when it was recorded. Also gives the cost that
    /// the party saw.
    ///
    /// # Errors
    /// Those of [`Recorded::replay`]; also where a frame is sent that is not the recorded one.
    pub fn verify<R>(&self, program: impl FnOnce(&mut Session) -> Result<R>) -> Result<(R, Cost)> {
        self.run(program, true)
    }

    fn run<R>(&self, program: impl FnOnce(&mut Session) -> Result<R>, compare: bool) -> Result<(R, Cost)> {
        let [first, second] = self.seeds.map(|seed| Some(Seed::from_bytes(seed)));
        let transport = Replay {
            party: self.party,
            received: self.received.clone(),
            next: 0,
            expected: compare.then(|| self.sent.clone()),
            meter: Meter::default(),
        };
        let mut session = Session::new(Box::new(transport), &PairSeeds { first, second }, Pool::default())?;
        let result = program(&mut session)?;
        session.finish()?;
        Ok((result, session.cost()))
    }
}

/// Serves recorded frames.
struct Replay {
    party: PartyId,
    received: Arc<Vec<Frame>>,
    next: usize,
    /// What was sent, where that is to be compared.
    expected: Option<Arc<Vec<Frame>>>,
    meter: Meter,
}

impl Replay {
    fn other_program(&self, what: String) -> TransportError {
        TransportError::Protocol {
            party: self.party,
            what: format!("it runs another program than was recorded: {what}"),
        }
    }
}

fn count(traffic: &mut Traffic, payload: &Bytes) {
    traffic.frames += 1;
    traffic.bytes += (payload.len() + FRAME_HEADER_BYTES) as u64;
}

impl Transport for Replay {
    fn party(&self) -> PartyId {
        self.party
    }

    fn send(&mut self, to: PartyId, tag: u64, payload: Bytes) -> std::result::Result<(), TransportError> {
        count(&mut self.meter.sent[to.index()], &payload);
        if let Some(expected) = &self.expected {
            let frame = Frame { from: self.party, to, tag, payload };
            if !expected.contains(&frame) {
                return Err(self.other_program(format!("a frame of {} bytes to {to}", frame.payload.len())));
            }
        }
        Ok(())
    }

    fn recv(&mut self, from: PartyId, tag: u64) -> std::result::Result<Bytes, TransportError> {
        let Some(frame) = self.received.get(self.next).filter(|frame| frame.from == from && frame.tag == tag) else {
            return Err(self.other_program(format!("it waits for frame {} from {from}", self.next)));
        };
        self.next += 1;
        count(&mut self.meter.received[from.index()], &frame.payload);
        Ok(frame.payload.clone())
    }

    fn abort(&mut self, _: &str) {}

    fn flush(&mut self) -> std::result::Result<(), TransportError> {
        Ok(())
    }

    fn meter(&self) -> Meter {
        self.meter
    }
}

#[cfg(test)]
mod tests {
    use tercet_core::Error;
    use tercet_helper::{Masked, compare, select, truncate};

    use super::*;
    use crate::World;
    use crate::sharing::{reveal, share};

    /// Rectified values: dealings, exchanges, shared and own randomness.
    fn rectify(s: &mut Session, x: &[Masked<u32>; 3], threshold: i64) -> Result<Masked<u32>> {
        let x = &x[s.party().index()];
        let flags = compare::at_least(s, x, 1, &[threshold])?;
        let chosen = select::select(s, &flags[0], x)?;
        truncate::remask(s, chosen, 20)
    }

    #[test]
    fn each_party_alone_does_what_it_did_among_three() {
        let values: Vec<i64> = (0..700).map(|i| (i * 37) % 2001 - 1000).collect();
        let x = share::<u32>(&values, &[700], 20, 5);
        let (run, recorded) = World::default().record(|s| rectify(s, &x, 0));
        let rectified: Vec<i64> = values.iter().map(|v| *v.max(&0)).collect();
        assert_eq!(reveal(&run.outputs), rectified);
        let mut alone = Vec::new();
        for (recorded, party) in recorded.iter().zip(PartyId::ALL) {
            assert_eq!(recorded.party(), party);
            let (output, cost) = recorded.verify(|s| rectify(s, &x, 0)).expect("the recorded program");
            assert_eq!(cost.rounds, run.cost.rounds);
            let me = party.index();
            for peer in party.others().map(PartyId::index) {
                assert_eq!(cost.bytes[me][peer], run.cost.bytes[me][peer], "{party} sends");
                assert_eq!(cost.bytes[peer][me], run.cost.bytes[peer][me], "{party} receives");
            }
            let links = [(me, (me + 1) % 3), (me, (me + 2) % 3), ((me + 1) % 3, me), ((me + 2) % 3, me)];
            assert_eq!(recorded.bytes(), links.iter().map(|&(a, b)| run.cost.bytes[a][b]).sum::<u64>());
            assert!(recorded.replay(|s| rectify(s, &x, 0)).is_ok(), "again");
            alone.push(output);
        }
        let alone: [Masked<u32>; 3] = alone.try_into().expect("three parties");
        assert_eq!(reveal(&alone), rectified);
        for (a, b) in alone.iter().zip(&run.outputs) {
            assert!(a.planes().iter().zip(b.planes()).all(|(a, b)| a.data() == b.data()), "the same shares");
        }
    }

    #[test]
    fn another_program_is_noticed() {
        let x = share::<u32>(&[5; 300], &[300], 20, 6);
        let (_, [helper, first, _]) = World::default().record(|s| rectify(s, &x, 0));
        // The other threshold changes what an evaluator sends, in frames of the same sizes; the helper does not know it.
        let refused = first.verify(|s| rectify(s, &x, 3)).map(|_| ());
        assert!(matches!(&refused, Err(Error::Transport { .. })), "{refused:?}");
        assert!(helper.verify(|s| rectify(s, &x, 3)).is_ok());
        let refused = first.replay(|s| truncate::remask::<u32, u32>(s, x[1].to_additive(), 20)).map(|_| ());
        assert!(matches!(&refused, Err(Error::Transport { .. })), "{refused:?}");
    }
}
