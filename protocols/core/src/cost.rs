//! What a protocol costs on the wire, declared before it runs.

use serde::{Deserialize, Serialize};
use tercet_net::{FRAME_HEADER_BYTES, PartyId};
use tercet_ring::pack::packed_len;

/// Rounds, frames and bytes on each directed link, and the largest frame. Bytes include frame
/// headers, not TLS, QUIC or TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Dependent exchanges between the evaluators: the length of the longest chain.
    pub rounds: u64,
    /// Bytes `[from][to]`.
    pub bytes: [[u64; 3]; 3],
    /// Frames `[from][to]`.
    pub frames: [[u64; 3]; 3],
    /// Payload bytes of the largest frame: what a link must take at once.
    #[serde(skip)]
    pub largest_frame: u64,
}

impl Cost {
    /// Nothing.
    pub const NONE: Cost = Cost { rounds: 0, bytes: [[0; 3]; 3], frames: [[0; 3]; 3], largest_frame: 0 };

    /// One frame of `payload` bytes.
    pub fn frame(from: PartyId, to: PartyId, payload: usize) -> Cost {
        let mut cost = Cost::NONE;
        cost.bytes[from.index()][to.index()] = (payload + FRAME_HEADER_BYTES) as u64;
        cost.frames[from.index()][to.index()] = 1;
        cost.largest_frame = payload as u64;
        cost
    }

    /// One exchange between the evaluators of `payload` bytes each way: one round.
    pub fn exchange_bytes(payload: usize) -> Cost {
        let both = Cost::frame(PartyId::P1, PartyId::P2, payload).and(Cost::frame(PartyId::P2, PartyId::P1, payload));
        Cost { rounds: 1, ..both }
    }

    /// One exchange of `len` elements of `bits` bits.
    pub fn exchange(len: usize, bits: u32) -> Cost {
        Cost::exchange_bytes(packed_len(len, bits))
    }

    /// One dealing of `len` elements of `bits` bits (see [`crate::Session::deal`]).
    pub fn deal(len: usize, bits: u32) -> Cost {
        let (to_second, to_first) = split_deal(len);
        let mut cost = Cost::frame(PartyId::P0, PartyId::P2, packed_len(to_second, bits));
        if to_first > 0 {
            cost = cost.and(Cost::frame(PartyId::P0, PartyId::P1, packed_len(to_first, bits)));
        }
        cost
    }

    /// `len` elements of `bits` bits that the helper tells both evaluators (see [`crate::Session::tell`]).
    pub fn tell(len: usize, bits: u32) -> Cost {
        let payload = packed_len(len, bits);
        Cost::frame(PartyId::P0, PartyId::P2, payload).and(Cost::frame(PartyId::P0, PartyId::P1, payload))
    }

    /// `payload` bytes that P1 reports to the helper (see [`crate::Session::report`]).
    pub fn report(payload: usize) -> Cost {
        Cost { rounds: 1, ..Cost::frame(PartyId::P1, PartyId::P0, payload) }
    }

    /// Both, one after the other.
    pub fn then(self, next: Cost) -> Cost {
        Cost { rounds: self.rounds + next.rounds, ..self.and(next) }
    }

    /// Both, side by side: the rounds are those of the longer.
    pub fn and(mut self, other: Cost) -> Cost {
        self.rounds = self.rounds.max(other.rounds);
        self.largest_frame = self.largest_frame.max(other.largest_frame);
        for from in 0..3 {
            for to in 0..3 {
                self.bytes[from][to] += other.bytes[from][to];
                self.frames[from][to] += other.frames[from][to];
            }
        }
        self
    }

    /// The same without its rounds: where the exchange rides in rounds that are counted elsewhere.
    pub fn hidden(self) -> Cost {
        Cost { rounds: 0, ..self }
    }

    /// The same `times` over, side by side.
    pub fn side_by_side(self, times: usize) -> Cost {
        (0..times).fold(Cost::NONE, |sum, _| sum.and(self))
    }

    /// Bytes on all links.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().flatten().sum()
    }

    /// Bytes from one evaluator to the other.
    pub fn online_bytes(&self) -> u64 {
        self.bytes[1][2]
    }

    /// Bytes from the helper.
    pub fn dealt_bytes(&self) -> u64 {
        self.bytes[0].iter().sum()
    }
}

/// How a dealing of `len` elements is split: `(sent to P2, sent to P1)`. The elements whose halves are sent to P2 have their
/// other half drawn with P1, and the reverse, so that both of the helper's links carry half the load.
pub(crate) fn split_deal(len: usize) -> (usize, usize) {
    const WORTH_TWO_FRAMES: usize = 256;
    if len < WORTH_TWO_FRAMES { (len, 0) } else { (len - len / 2, len / 2) }
}
