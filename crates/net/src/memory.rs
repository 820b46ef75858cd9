//! Links between three parties in one process, for tests, oracles and benches.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::mailbox::{FrameLimits, Mailbox, clean_reason};
use crate::shaped::{LinkClock, LinkShape};
use crate::{Meter, PartyId, Transport, TransportError};

/// Three parties linked in memory, in order, each to be moved to its own thread. `deadline` bounds every wait.
pub fn memory_world(deadline: Duration) -> [MemoryTransport; 3] {
    memory_world_with(deadline, FrameLimits::default(), LinkShape::NONE)
}

/// As [`memory_world`], with chosen bounds on what may wait unread, and links of a given shape.
pub fn memory_world_with(deadline: Duration, limits: FrameLimits, shape: LinkShape) -> [MemoryTransport; 3] {
    let boxes = PartyId::ALL.map(|party| Mailbox::new(party, limits));
    PartyId::ALL.map(|party| MemoryTransport {
        party,
        boxes: boxes.clone(),
        clocks: PartyId::ALL.map(|_| (!shape.is_none()).then(|| Mutex::new(LinkClock::new(shape)))),
        meter: Meter::default(),
        deadline,
    })
}

/// One party's end of a [`memory_world`]. Dropping it is seen by the others as a lost connection.
pub struct MemoryTransport {
    party: PartyId,
    boxes: [Arc<Mailbox>; 3],
    /// One for each receiver.
    clocks: [Option<Mutex<LinkClock>>; 3],
    meter: Meter,
    deadline: Duration,
}

impl std::fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryTransport").field("party", &self.party).finish_non_exhaustive()
    }
}

impl Transport for MemoryTransport {
    fn party(&self) -> PartyId {
        self.party
    }

    fn send(&mut self, to: PartyId, tag: u64, payload: Bytes) -> Result<(), TransportError> {
        if to == self.party {
            return Err(TransportError::Protocol { party: to, what: "sends to itself".into() });
        }
        if let Some(fatal) = self.boxes[self.party.index()].fatal() {
            return Err(fatal);
        }
        let mailbox = &self.boxes[to.index()];
        if mailbox.left() {
            return Err(TransportError::Lost { party: to, reason: "it left the session".into() });
        }
        let cap = mailbox.limits().frame_cap;
        if payload.len() > cap {
            let what = format!("a frame of {} bytes, over the limit of {cap}", payload.len());
            return Err(TransportError::Protocol { party: self.party, what });
        }
        if self.party == PartyId::P0 {
            mailbox.wait_room(self.party, payload.len(), self.deadline)?;
        }
        self.meter.sent[to.index()].count(payload.len());
        mailbox.deliver(self.party, tag, payload, self.clocks[to.index()].as_ref());
        Ok(())
    }

    fn recv(&mut self, from: PartyId, tag: u64) -> Result<Bytes, TransportError> {
        let (payload, waited) = self.boxes[self.party.index()].take(from, tag, self.deadline)?;
        self.meter.received[from.index()].count(payload.len());
        self.meter.waiting += waited;
        Ok(payload)
    }

    fn abort(&mut self, reason: &str) {
        let error = TransportError::Aborted { party: self.party, reason: clean_reason(reason) };
        for mailbox in &self.boxes {
            mailbox.fail(error.clone());
        }
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        Ok(())
    }

    fn meter(&self) -> Meter {
        self.meter
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.boxes[self.party.index()].leave();
        for peer in self.party.others() {
            let error = TransportError::Lost { party: self.party, reason: "it left the session".into() };
            self.boxes[peer.index()].end(self.party, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FRAME_HEADER_BYTES;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_helper_waits_for_room_and_evaluators_do_not() {
        let limits = FrameLimits { helper_window: 1000, unread_cap: 4000, frame_cap: 2000 };
        let [mut p0, mut p1, mut p2] = memory_world_with(SHORT, limits, LinkShape::NONE);
        let block = Bytes::from(vec![7u8; 600]);
        p0.send(PartyId::P1, 1, block.clone()).unwrap();
        let refused = p0.send(PartyId::P1, 2, block.clone());
        assert!(matches!(refused, Err(TransportError::Deadline { party: PartyId::P1, .. })), "{refused:?}");
        for tag in 0..5 {
            p2.send(PartyId::P1, tag, block.clone()).unwrap();
        }
        assert_eq!(p1.recv(PartyId::P0, 1).unwrap(), block);
        p0.send(PartyId::P1, 2, block.clone()).unwrap();
        assert_eq!(p0.meter().sent[1].bytes, 2 * (600 + FRAME_HEADER_BYTES as u64));
        // The evaluator's cap is an error of the sender, seen by the receiver.
        p2.send(PartyId::P1, 5, block.clone()).unwrap();
        p2.send(PartyId::P1, 6, block.clone()).unwrap();
        assert!(matches!(p1.recv(PartyId::P0, 2), Err(TransportError::Protocol { party: PartyId::P2, .. })));
    }

    #[test]
    fn a_full_window_does_not_stop_a_reader_that_waits_for_a_later_frame() {
        let limits = FrameLimits { helper_window: 100, unread_cap: 1 << 20, frame_cap: 1 << 20 };
        let [mut p0, mut p1, _p2] = memory_world_with(LONG, limits, LinkShape::NONE);
        let sender = std::thread::spawn(move || {
            for tag in 0..20 {
                p0.send(PartyId::P1, tag, Bytes::from(vec![tag as u8; 90])).unwrap();
            }
        });
        for tag in (0..20).rev() {
            assert_eq!(p1.recv(PartyId::P0, tag).unwrap()[0], tag as u8);
        }
        sender.join().unwrap();
    }

    #[test]
    fn a_shaped_frame_is_held_back() {
        let shape = LinkShape { delay: Duration::from_millis(30), bandwidth: None };
        let [mut p0, mut p1, _p2] = memory_world_with(LONG, FrameLimits::default(), shape);
        let sent_at = std::time::Instant::now();
        p0.send(PartyId::P1, 1, Bytes::from_static(b"x")).unwrap();
        drop(p0);
        p1.recv(PartyId::P0, 1).unwrap();
        assert!(sent_at.elapsed() >= shape.delay);
        assert!(matches!(p1.recv(PartyId::P0, 2), Err(TransportError::Lost { party: PartyId::P0, .. })));
    }
}
