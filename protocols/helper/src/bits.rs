//! Masked bits, 64 to a word: `b = beta ^ s1 ^ s2`, `beta` at P1 and P2, `s1` at P0 and P1, `s2` at P0 and P2.

use tercet_core::{Cost, Posted, Result, Session};
use tercet_net::PartyId;

/// One bit per element, packed: bit `i` is bit `i % 64` of word `i / 64`. Bits past the length are unspecified.
pub type Plane = Vec<u64>;

/// Words that hold `len` bits.
pub fn words(len: usize) -> usize {
    len.div_ceil(64)
}

/// Packs `bit(i)` for `i` in `0..len`; each must be 0 or 1.
#[inline(always)]
pub fn collect(len: usize, bit: impl Fn(usize) -> u64) -> Plane {
    (0..words(len))
        .map(|w| {
            let from = w * 64;
            (from..len.min(from + 64)).fold(0, |word, i| word | bit(i) << (i - from))
        })
        .collect()
}

/// Bit `i` of a plane.
#[inline(always)]
pub fn bit(plane: &[u64], i: usize) -> u64 {
    (plane[i / 64] >> (i % 64)) & 1
}

/// `len` masked bits as one party sees them.
#[derive(Clone)]
pub struct MaskedBits {
    party: PartyId,
    len: usize,
    /// P0: `s1, s2`. P1: `beta, s1`. P2: `beta, s2`.
    planes: [Plane; 2],
}

impl MaskedBits {
    /// From this party's two planes.
    pub fn new(party: PartyId, len: usize, planes: [Plane; 2]) -> MaskedBits {
        assert!(planes.iter().all(|p| p.len() == words(len)), "planes of {len} bits");
        MaskedBits { party, len, planes }
    }

    /// The words of some planes one after the other, with what their last words carry past their lengths.
    pub fn chain<'a>(parts: impl Iterator<Item = &'a MaskedBits> + Clone) -> MaskedBits {
        let plane = |i: usize| parts.clone().flat_map(|part| &part.planes[i]).copied().collect::<Plane>();
        let (party, planes) = (parts.clone().next().map_or(PartyId::P0, |part| part.party), [plane(0), plane(1)]);
        MaskedBits { party, len: planes[0].len() * u64::BITS as usize, planes }
    }

    /// Number of bits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no bit.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// This party's two planes.
    pub fn planes(&self) -> &[Plane; 2] {
        &self.planes
    }

    /// The masked bits; evaluators only.
    pub fn beta(&self) -> &[u64] {
        debug_assert_ne!(self.party, PartyId::P0);
        &self.planes[0]
    }

    /// The mask half of this evaluator.
    pub fn own_mask(&self) -> &[u64] {
        debug_assert_ne!(self.party, PartyId::P0);
        &self.planes[1]
    }

    /// The mask; helper only.
    pub fn sigma(&self) -> Plane {
        debug_assert_eq!(self.party, PartyId::P0);
        self.planes[0].iter().zip(&self.planes[1]).map(|(a, b)| a ^ b).collect()
    }

    /// The bits at these places, in this order.
    pub fn at(&self, places: &[usize]) -> MaskedBits {
        let plane = |i: usize| collect(places.len(), |at| bit(&self.planes[i], places[at]));
        MaskedBits { party: self.party, len: places.len(), planes: [plane(0), plane(1)] }
    }

    /// The complement.
    pub fn not(mut self) -> MaskedBits {
        if self.party != PartyId::P0 {
            self.planes[0].iter_mut().for_each(|w| *w = !*w);
        }
        self
    }

    /// Exclusive or.
    pub fn xor(mut self, other: &MaskedBits) -> MaskedBits {
        for (a, b) in self.planes.iter_mut().zip(&other.planes) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
        }
        self
    }
}

/// Bits being re-masked.
#[must_use]
pub struct Remasking {
    posted: Posted,
    len: usize,
    /// Evaluators: what was sent, and the own masks. Helper: both masks. All planes end to end.
    held: [Plane; 2],
}

/// The wire cost of re-masking `planes` planes of `len` bits.
pub fn remask_cost(planes: usize, len: usize) -> Cost {
    Cost::exchange_bytes(planes * len.div_ceil(8))
}

/// Starts turning planes that the evaluators share by exclusive or into masked bits: one round, one bit each way per bit.
/// An evaluator receives the other's half under a uniform mask. The helper passes the number of planes alone.
pub fn post_remask(s: &mut Session, planes: usize, len: usize, halves: Vec<Plane>) -> Result<Remasking> {
    s.scope("remask", |s| {
        let mut sum = halves.concat();
        let masks = s.draw_onto(planes * words(len), &mut sum, |half, mask| half ^ mask);
        let held = match s.party() {
            PartyId::P0 => [masks.first, masks.second],
            PartyId::P1 => [sum, masks.first],
            PartyId::P2 => [sum, masks.second],
        };
        let payload = if s.is_helper() { Vec::new() } else { to_bytes(&held[0], len) };
        let posted = s.post_bytes(payload)?;
        Ok(Remasking { posted, len, held })
    })
}

impl Remasking {
    /// Ends it: one set of masked bits a plane, in order.
    pub fn finish(self, s: &mut Session) -> Result<Vec<MaskedBits>> {
        let Remasking { posted, len, held: [mut first, second] } = self;
        let theirs = s.wait_bytes(posted)?;
        if !s.is_helper() {
            from_bytes(&theirs, len, &mut first);
        }
        let count = words(len).max(1);
        let party = s.party();
        let pairs = first.chunks(count).zip(second.chunks(count));
        Ok(pairs.map(|(a, b)| MaskedBits::new(party, len, [a.to_vec(), b.to_vec()])).collect())
    }
}

/// Opens `len` bits, of which the evaluators hold halves, to all three nodes: the evaluators exchange their halves, and P1 reports the
/// bits to the helper. Only for what is to be public; the halves must say no more than the bits do, as those of a fresh sharing do.
pub fn open(s: &mut Session, len: usize, half: Plane) -> Result<Plane> {
    s.scope("open", |s| {
        let mut opened = half;
        opened.resize(words(len), 0);
        if let (Some(last), used @ 1..) = (opened.last_mut(), len % 64) {
            *last &= (1 << used) - 1;
        }
        let payload = if s.is_helper() { Vec::new() } else { to_bytes(&opened, len) };
        let posted = s.post_bytes(payload)?;
        let theirs = s.wait_bytes(posted)?;
        from_bytes(&theirs, len, &mut opened);
        let told = s.report(len.div_ceil(8), |_| to_bytes(&opened, len))?;
        from_bytes(&told, len, &mut opened);
        Ok(opened)
    })
}

/// Whole bytes of every plane; the unused bits of a last byte carry mask bits.
fn to_bytes(planes: &[u64], len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(planes.len() * 8);
    for plane in planes.chunks(words(len).max(1)) {
        let start = out.len();
        plane.iter().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
        out.truncate(start + len.div_ceil(8));
    }
    out
}

/// Adds received planes into `into`.
fn from_bytes(bytes: &[u8], len: usize, into: &mut [u64]) {
    let per_plane = len.div_ceil(8).max(1);
    for (plane, bytes) in into.chunks_mut(words(len).max(1)).zip(bytes.chunks(per_plane)) {
        for (word, chunk) in plane.iter_mut().zip(bytes.chunks(8)) {
            let mut le = [0; 8];
            le[..chunk.len()].copy_from_slice(chunk);
            *word ^= u64::from_le_bytes(le);
        }
    }
}
