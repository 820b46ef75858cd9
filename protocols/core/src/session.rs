//! One party's side of one computation.
//!
//! All three parties run the same program, and every draw, dealing and exchange takes the next number at all three, also
//! where a party has nothing to do in it. The number is both the frame tag and the stream of shared randomness, so no
//! mask is drawn twice and no frame is taken for another. A tag also carries a hash of the labels in force, so two parties
//! that disagree about where they are find out at the next frame.

use bytes::Bytes;
use tercet_net::{PartyId, Transport, Work, WorkProfile};
use tercet_ring::{Element, Pool, Prg, pack};

use crate::cost::split_deal;
use crate::profile::Profiler;
use crate::prss::{Drawn, PairSeeds, Prss};
use crate::{Cost, Error, Result};

/// The handle that every primitive takes: party, randomness, links, worker threads and meters.
pub struct Session {
    party: PartyId,
    transport: Box<dyn Transport>,
    prss: Prss,
    pool: Pool,
    steps: u64,
    path: Vec<&'static str>,
    label: String,
    rounds: u64,
    largest_frame: u64,
    profiler: Profiler,
}

/// A numbered step: the name of its frames and of its randomness.
#[derive(Clone, Copy)]
struct Step {
    number: u64,
    tag: u64,
}

/// An exchange whose own half is on the way.
#[must_use = "an exchange that is not waited for leaves the peer's half unread"]
pub struct Posted {
    step: Step,
    depth: u64,
    payload: usize,
}

impl Session {
    /// A session over `transport` with the seeds of this session alone: never pass the same seeds to two sessions.
    pub fn new(transport: Box<dyn Transport>, seeds: &PairSeeds, pool: Pool) -> Result<Session> {
        let party = transport.party();
        let prss = Prss::new(party, seeds);
        if !prss.complete(party) {
            return Err(Error::Misuse(format!("{party} lacks a pair seed")));
        }
        let (path, label, profiler) = (Vec::new(), String::new(), Profiler::new());
        Ok(Session { party, transport, prss, pool, steps: 0, path, label, rounds: 0, largest_frame: 0, profiler })
    }

    /// Whose session this is.
    pub fn party(&self) -> PartyId {
        self.party
    }

    /// Whether this party is the helper.
    pub fn is_helper(&self) -> bool {
        self.party == PartyId::P0
    }

    /// The worker threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Rounds so far: the longest chain of exchanges each of which needed the one before.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// What has travelled so far, seen from this party: rounds, and only the links that it has an end of.
    pub fn cost(&self) -> Cost {
        let (meter, me) = (self.transport.meter(), self.party.index());
        let mut cost = Cost { rounds: self.rounds, largest_frame: self.largest_frame, ..Cost::NONE };
        for peer in self.party.others().map(PartyId::index) {
            cost.bytes[me][peer] = meter.sent[peer].bytes;
            cost.frames[me][peer] = meter.sent[peer].frames;
            cost.bytes[peer][me] = meter.received[peer].bytes;
            cost.frames[peer][me] = meter.received[peer].frames;
        }
        cost
    }

    /// Where the time went so far, by operation of the model and scope; its times add up to the session's own.
    pub fn profile(&mut self) -> WorkProfile {
        self.profiler.report()
    }

    /// Runs `inner` under a label, which names steps in errors and tags, and a place in the profile.
    pub fn scope<R>(&mut self, label: &'static str, inner: impl FnOnce(&mut Session) -> Result<R>) -> Result<R> {
        self.path.push(label);
        let outer = self.profiler.enter(label);
        let result = inner(self);
        self.profiler.leave(outer);
        self.path.pop();
        result
    }

    /// Names the operation of the model that runs now (`layer3/attention`), for errors and the profile.
    pub fn set_label(&mut self, label: &str) {
        self.label.clear();
        self.label.push_str(label);
        self.profiler.operation(label);
    }

    /// Counts the time that `work` takes as one of its kind, but for stretches within it that are timed as another.
    pub fn timed<R>(&mut self, kind: Work, work: impl FnOnce(&mut Session) -> R) -> R {
        let outer = self.profiler.turn_to(kind);
        let result = work(self);
        self.profiler.turn_to(outer);
        result
    }

    /// Fresh masks of `len` elements: uniform lanes, of which the halves that this party knows are filled.
    pub fn draw<E: Element>(&mut self, len: usize) -> Drawn<E> {
        let step = self.step();
        self.timed(Work::Randomness, |s| s.prss.draw(step.number, len))
    }

    /// Fresh masks as from [`Session::draw`], one for each element of `half`, to which `add` joins this evaluator's while it is
    /// at hand. The helper passes nothing, and how many there are in `len`.
    pub fn draw_onto<E: Element>(&mut self, len: usize, half: &mut [E], add: impl Fn(E, E) -> E) -> Drawn<E> {
        let step = self.step();
        self.timed(Work::Randomness, |s| s.prss.draw_onto(step.number, len, half, add))
    }

    /// The helper hands out a fresh additive sharing, modulo `2^bits`, of `len` values that it knows. Returns this
    /// evaluator's half (lanes are reduced), and nothing at the helper. Each half alone is uniform: one is drawn from
    /// a seed that its receiver does not know, the other is the value minus that.
    ///
    /// Half of the elements are drawn with P1 and sent to P2, the others drawn with P2 and sent to P1.
    pub fn deal<E: Element>(
        &mut self,
        len: usize,
        bits: u32,
        values: impl FnOnce(&mut Session) -> Vec<E>,
    ) -> Result<Vec<E>> {
        self.deal_with(len, bits, values, Prg::subtract_from)
    }

    /// As [`Session::deal`], but the halves add up by exclusive or.
    pub fn deal_xor<E: Element>(
        &mut self,
        len: usize,
        bits: u32,
        values: impl FnOnce(&mut Session) -> Vec<E>,
    ) -> Result<Vec<E>> {
        self.deal_with(len, bits, values, Prg::xor_into)
    }

    fn deal_with<E: Element>(
        &mut self,
        len: usize,
        bits: u32,
        values: impl FnOnce(&mut Session) -> Vec<E>,
        subtract: impl Fn(&Prg, u64, u64, &mut [E]),
    ) -> Result<Vec<E>> {
        let step = self.step();
        let (to_second, to_first) = split_deal(len);
        if self.party == PartyId::P0 {
            let mut values = values(self);
            assert_eq!(values.len(), len, "dealt values");
            let (first, second) = values.split_at_mut(to_second);
            self.timed(Work::Randomness, |s| {
                s.prss.each(|prg, with_first| {
                    subtract(prg, step.number, 0, if with_first { &mut *first } else { &mut *second });
                })
            });
            self.send(PartyId::P2, step, first, bits)?;
            if to_first > 0 {
                self.send(PartyId::P1, step, second, bits)?;
            }
            return Ok(Vec::new());
        }
        let mut half = vec![E::ZERO; len];
        let (first, second) = half.split_at_mut(to_second);
        let (drawn, received) = if self.party == PartyId::P1 { (first, second) } else { (second, first) };
        self.timed(Work::Randomness, |s| s.prss.each(|prg, _| prg.fill_low(step.number, 0, bits, drawn)));
        // P1 has nothing to wait for where all was drawn with it; P2 always has a frame.
        if self.party == PartyId::P2 || to_first > 0 {
            self.receive(PartyId::P0, step, received, bits)?;
        }
        Ok(half)
    }

    /// The helper tells both evaluators the same `len` values of `bits` bits: what each of them may know. Nothing at the helper.
    pub fn tell<E: Element>(
        &mut self,
        len: usize,
        bits: u32,
        values: impl FnOnce(&mut Session) -> Vec<E>,
    ) -> Result<Vec<E>> {
        let step = self.step();
        if self.party == PartyId::P0 {
            let values = values(self);
            assert_eq!(values.len(), len, "told values");
            self.send(PartyId::P2, step, &values, bits)?;
            self.send(PartyId::P1, step, &values, bits)?;
            return Ok(Vec::new());
        }
        let mut told = vec![E::ZERO; len];
        self.receive(PartyId::P0, step, &mut told, bits)?;
        Ok(told)
    }

    /// P1 tells the helper `len` bytes that are public by now, for it to deal by. Returns them at the helper, and nothing at the
    /// evaluators. It is a round: what the helper deals from here on arrives one later than what the evaluators do alone.
    pub fn report(&mut self, len: usize, payload: impl FnOnce(&mut Session) -> Vec<u8>) -> Result<Bytes> {
        let step = self.step();
        self.profiler.rounds(1);
        self.rounds += 1;
        match self.party {
            PartyId::P0 => {
                let payload = self.receive_bytes(PartyId::P1, step)?;
                if payload.len() != len {
                    return Err(self.wrong_length(PartyId::P1, step, payload.len()));
                }
                return Ok(payload);
            }
            PartyId::P1 => {
                let payload = payload(self);
                assert_eq!(payload.len(), len, "reported bytes");
                self.send_bytes(PartyId::P0, step, payload.into())?;
            }
            PartyId::P2 => {}
        }
        Ok(Bytes::new())
    }

    /// Starts an exchange between the evaluators: this one's `values`, `bits` bits each, go to the other. At the helper it
    /// counts the round and does nothing else.
    pub fn post<E: Element>(&mut self, values: &[E], bits: u32) -> Result<Posted> {
        let payload = self.packed(values, bits);
        self.post_bytes(payload)
    }

    /// Starts an exchange of bytes.
    pub fn post_bytes(&mut self, payload: Vec<u8>) -> Result<Posted> {
        let step = self.step();
        let posted = Posted { step, depth: self.rounds, payload: payload.len() };
        self.profiler.exchange();
        if let Some(peer) = self.other_evaluator() {
            self.send_bytes(peer, step, payload.into())?;
        }
        Ok(posted)
    }

    /// Ends an exchange: the other evaluator's values, as many as were posted. Empty at the helper.
    pub fn wait<E: Element>(&mut self, posted: Posted, len: usize, bits: u32) -> Result<Vec<E>> {
        let Some((peer, step, payload)) = self.wait_frame(posted)? else { return Ok(Vec::new()) };
        let mut out = vec![E::ZERO; len];
        self.unpack(peer, step, &payload, &mut out, bits)?;
        Ok(out)
    }

    /// Ends an exchange of bytes; empty at the helper.
    pub fn wait_bytes(&mut self, posted: Posted) -> Result<Bytes> {
        let expected = posted.payload;
        let Some((peer, step, payload)) = self.wait_frame(posted)? else { return Ok(Bytes::new()) };
        if payload.len() != expected {
            return Err(self.wrong_length(peer, step, payload.len()));
        }
        Ok(payload)
    }

    fn wait_frame(&mut self, posted: Posted) -> Result<Option<(PartyId, Step, Bytes)>> {
        let rounds = self.rounds.max(posted.depth + 1);
        self.profiler.rounds(rounds - self.rounds);
        self.rounds = rounds;
        let Some(peer) = self.other_evaluator() else { return Ok(None) };
        let payload = self.receive_bytes(peer, posted.step)?;
        Ok(Some((peer, posted.step, payload)))
    }

    /// Ends the session in good order: everything sent has left.
    pub fn finish(&mut self) -> Result<()> {
        let flushed = self.timed(Work::Sending, |s| s.transport.flush());
        flushed.map_err(|source| Error::Transport { step: self.place(), source })
    }

    /// Tells the peers that this session is over and why.
    pub fn abort(&mut self, reason: &str) {
        self.transport.abort(reason);
    }

    fn step(&mut self) -> Step {
        let number = self.steps;
        self.steps += 1;
        // FNV-1a over the labels in force.
        let hash = self
            .path
            .iter()
            .flat_map(|part| part.bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        Step { number, tag: (number << 24) | (hash >> 40) }
    }

    fn other_evaluator(&self) -> Option<PartyId> {
        match self.party {
            PartyId::P0 => None,
            PartyId::P1 => Some(PartyId::P2),
            PartyId::P2 => Some(PartyId::P1),
        }
    }

    fn send<E: Element>(&mut self, to: PartyId, step: Step, values: &[E], bits: u32) -> Result<()> {
        let payload = self.packed(values, bits);
        self.send_bytes(to, step, payload.into())
    }

    /// The payload of a frame: allocated once, with the room that packing in blocks asks for beyond the last byte.
    fn packed<E: Element>(&mut self, values: &[E], bits: u32) -> Vec<u8> {
        self.timed(Work::Packing, |_| {
            let mut payload = Vec::with_capacity(pack::packed_len(values.len(), bits) + size_of::<[u64; 8]>());
            pack::pack(values, bits, &mut payload);
            payload
        })
    }

    fn send_bytes(&mut self, to: PartyId, step: Step, payload: Bytes) -> Result<()> {
        self.profiler.sent(to, payload.len());
        self.largest_frame = self.largest_frame.max(payload.len() as u64);
        let sent = self.timed(Work::Sending, |s| s.transport.send(to, step.tag, payload));
        sent.map_err(|source| Error::Transport { step: self.place(), source })
    }

    fn receive<E: Element>(&mut self, from: PartyId, step: Step, out: &mut [E], bits: u32) -> Result<()> {
        let payload = self.receive_bytes(from, step)?;
        self.unpack(from, step, &payload, out, bits)
    }

    fn receive_bytes(&mut self, from: PartyId, step: Step) -> Result<Bytes> {
        let received = self.timed(Work::wait_for(from), |s| s.transport.recv(from, step.tag));
        let payload = received.map_err(|source| Error::Transport { step: self.place(), source })?;
        self.profiler.received(from, payload.len());
        self.largest_frame = self.largest_frame.max(payload.len() as u64);
        Ok(payload)
    }

    fn unpack<E: Element>(&mut self, from: PartyId, step: Step, bytes: &[u8], out: &mut [E], bits: u32) -> Result<()> {
        let unpacked = self.timed(Work::Packing, |_| pack::unpack(bytes, bits, out));
        unpacked.map_err(|_| self.wrong_length(from, step, bytes.len()))
    }

    fn wrong_length(&self, party: PartyId, step: Step, len: usize) -> Error {
        Error::Peer { party, step: self.place(), what: format!("a frame of {len} bytes for step {}", step.number) }
    }

    /// Where this session is, for errors: public labels only.
    fn place(&self) -> String {
        let mut place = self.label.clone();
        for part in &self.path {
            if !place.is_empty() {
                place.push('/');
            }
            place.push_str(part);
        }
        place
    }
}
