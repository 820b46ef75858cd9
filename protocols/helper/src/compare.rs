//! Comparison with public thresholds (protocol.md, "Thresholds").
//!
//! For public `c = m - T`, `x >= T` exactly where the top bit of `c - lambda` is 0, that is
//! `1 ^ msb c ^ msb lambda ^ borrow`. P0 deals exclusive-or sharings of the one-hot encoding of each 5-bit chunk of `lambda`; a
//! share of `[c_j < lambda_j]` is the parity of the one-hot above `c_j`, and one of `[c_j = lambda_j]` is one of its bits, at any
//! number of points. These bits are re-masked (round 1); the borrow is an exclusive or of ANDs; the result is
//! re-masked (round 2).
//!
//! *Error*: none. *Security*: an evaluator receives halves of fresh sharings and the other's halves under uniform masks.

use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::bits::{self, MaskedBits, Plane, Remasking, post_remask, remask_cost, words};
use crate::boolean::{self, Polynomial};
use crate::masked::Masked;

/// Width of a chunk: a one-hot is one word of 32 bits.
const CHUNK_BITS: u32 = 5;

/// Dealt one-hot encodings of the chunks of a mask, low chunk first.
pub struct OneHots {
    chunks: Vec<Chunk>,
}

struct Chunk {
    low: u32,
    width: u32,
    /// This evaluator's halves: `2^width` bits each; empty at the helper.
    words: Vec<u32>,
}

/// `(lowest bit, width)` of the chunks of `bits` bits.
fn chunks(bits: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..bits).step_by(CHUNK_BITS as usize).map(move |low| (low, CHUNK_BITS.min(bits - low)))
}

impl OneHots {
    /// The wire cost of dealing `len` masks of `bits` bits.
    pub fn cost(len: usize, bits: u32) -> Cost {
        chunks(bits).fold(Cost::NONE, |sum, (_, width)| sum.and(Cost::deal(len, 1 << width)))
    }

    /// Deals the chunks of the low `bits` bits of `lambda` (helper only; `len` masks).
    pub fn deal<E: Element>(s: &mut Session, lambda: &[E], len: usize, bits: u32) -> Result<OneHots> {
        s.scope("one-hot", |s| {
            let deal = |(low, width): (u32, u32)| {
                let encode = |l: &E| 1u32 << (l.to_u64() >> low & ((1 << width) - 1));
                let words =
                    s.deal_xor(len, 1 << width, |_| tercet_ring::simd::run!(|| lambda.iter().map(encode).collect()))?;
                Ok(Chunk { low, width, words })
            };
            Ok(OneHots { chunks: chunks(bits).map(deal).collect::<Result<_>>()? })
        })
    }

    /// Evaluators: halves of `[c < lambda]` for every chunk, then of `[c = lambda]` for every chunk but the lowest, for elements
    /// `from..from + c.len()` of the dealing.
    pub fn less_and_equal<E: Element>(&self, c: &[E], from: usize) -> Vec<Plane> {
        let less = self.chunks.iter().map(|chunk| chunk.plane(c, from, |word, at| parity(word & (!1 << at))));
        let equal = self.chunks.iter().skip(1).map(|chunk| chunk.plane(c, from, |word, at| word >> at & 1));
        less.chain(equal).collect()
    }

    /// Evaluators: halves of `[c = lambda]` for every chunk.
    pub fn equal<E: Element>(&self, c: &[E], from: usize) -> Vec<Plane> {
        self.chunks.iter().map(|chunk| chunk.plane(c, from, |word, at| word >> at & 1)).collect()
    }

    /// Planes that [`OneHots::less_and_equal`] gives for masks of `bits` bits.
    pub fn plane_count(bits: u32) -> usize {
        2 * chunks(bits).count() - 1
    }

    /// The borrow of `c - lambda` as a polynomial in those planes, numbered from `first`.
    pub fn borrow(bits: u32, first: usize) -> Polynomial {
        let n = chunks(bits).count();
        (0..n).map(|j| std::iter::once(first + j).chain((j + 1..n).map(|l| first + n + l - 1)).collect()).collect()
    }
}

impl Chunk {
    /// One bit per element: `f(half of the one-hot, chunk of c)`.
    fn plane<E: Element>(&self, c: &[E], from: usize, f: impl Fn(u32, u32) -> u32) -> Plane {
        let (low, mask) = (self.low, E::mask(self.width));
        let words = &self.words[from..from + c.len()];
        tercet_ring::simd::run!(|| {
            let mut plane = Plane::with_capacity(bits::words(c.len()));
            let mut flags = [0u32; 64];
            for (c, words) in c.chunks(64).zip(words.chunks(64)) {
                for ((flag, &c), &word) in flags.iter_mut().zip(c).zip(words) {
                    *flag = f(word, ((c >> low) & mask).to_u64() as u32);
                }
                plane.push(flags[..c.len()].iter().rev().fold(0, |word, &flag| word << 1 | u64::from(flag)));
            }
            plane
        })
    }
}

#[inline(always)]
fn parity(word: u32) -> u32 {
    let word = word ^ word >> 16;
    let word = word ^ word >> 8;
    let word = word ^ word >> 4;
    let word = word ^ word >> 2;
    (word ^ word >> 1) & 1
}

/// A comparison after its first exchange was posted.
#[must_use]
pub struct Comparison {
    remasking: Remasking,
    /// Halves of the top bits, a plane for each result (evaluators).
    tops: Vec<Plane>,
    results: usize,
    len: usize,
    low_bits: u32,
}

/// A comparison after its second exchange was posted.
#[must_use]
pub struct Flags(Remasking);

/// The wire cost of [`at_least`]: two rounds.
pub fn cost(len: usize, groups: usize, ring: u32, thresholds: usize) -> Cost {
    let (low_bits, each) = (ring - 1, len / groups.max(1));
    let results = groups * thresholds;
    let planes = OneHots::plane_count(low_bits);
    let dealing = OneHots::cost(len, low_bits).and(Cost::deal(groups * words(each), 64));
    dealing
        .and(remask_cost(results * planes, each))
        .then(boolean::cost(&borrows(low_bits, results), each).and(remask_cost(results, each)))
}

fn borrows(low_bits: u32, results: usize) -> Vec<Polynomial> {
    let planes = OneHots::plane_count(low_bits);
    (0..results).map(|r| OneHots::borrow(low_bits, r * planes)).collect()
}

/// Starts `[x >= T]` for signed public thresholds, on the `groups` equal parts of `x` side by side. The one-hots are shared
/// by all thresholds.
pub fn post<E: Element>(s: &mut Session, x: &Masked<E>, groups: usize, thresholds: &[i64]) -> Result<Comparison> {
    s.scope("compare", |s| {
        let (ring, low_bits) = (x.ring(), x.ring() - 1);
        let len = x.len() / groups.max(1);
        assert_eq!(len * groups, x.len(), "groups of equal length");
        let lambda = if s.is_helper() { x.lambda() } else { Vec::new() };
        let hots = OneHots::deal(s, &lambda, x.len(), low_bits)?;
        let dealt_tops: Vec<u64> = s.deal_xor(groups * words(len), 64, |_| {
            let top = |i: usize| lambda[i].to_u64() >> low_bits & 1;
            (0..groups).flat_map(|g| bits::collect(len, |i| top(g * len + i))).collect()
        })?;
        let results = groups * thresholds.len();
        let (mut halves, mut tops) = (Vec::new(), Vec::new());
        if !s.is_helper() {
            let leads = s.party() == PartyId::P1;
            for group in 0..groups {
                let m = &x.m()[group * len..(group + 1) * len];
                for &threshold in thresholds {
                    let threshold = E::from_i64(threshold);
                    let c: Vec<E> = tercet_ring::simd::run!(|| m.iter().map(|&m| m.sub(threshold).low(ring)).collect());
                    halves.extend(hots.less_and_equal(&c, group * len));
                    let mut top = dealt_tops[group * words(len)..(group + 1) * words(len)].to_vec();
                    if leads {
                        let own = bits::collect(len, |i| 1 ^ c[i].to_u64() >> low_bits & 1);
                        top.iter_mut().zip(own).for_each(|(t, o)| *t ^= o);
                    }
                    tops.push(top);
                }
            }
        }
        let planes = results * OneHots::plane_count(low_bits);
        let remasking = post_remask(s, planes, len, halves)?;
        Ok(Comparison { remasking, tops, results, len, low_bits })
    })
}

impl Comparison {
    /// Ends the first round and starts the second.
    pub fn next(self, s: &mut Session) -> Result<Flags> {
        s.scope("compare", |s| {
            let masked = self.remasking.finish(s)?;
            let inputs: Vec<&MaskedBits> = masked.iter().collect();
            let mut borrows = boolean::evaluate(s, &inputs, &borrows(self.low_bits, self.results))?;
            for (borrow, top) in borrows.iter_mut().zip(&self.tops) {
                borrow.iter_mut().zip(top).for_each(|(b, t)| *b ^= t);
            }
            Ok(Flags(post_remask(s, self.results, self.len, borrows)?))
        })
    }
}

impl Flags {
    /// Ends the second round: the masked bits, group by group, thresholds in order within each.
    pub fn finish(self, s: &mut Session) -> Result<Vec<MaskedBits>> {
        self.0.finish(s)
    }
}

/// `[x >= T]` in one go.
pub fn at_least<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    groups: usize,
    thresholds: &[i64],
) -> Result<Vec<MaskedBits>> {
    post(s, x, groups, thresholds)?.next(s)?.finish(s)
}
