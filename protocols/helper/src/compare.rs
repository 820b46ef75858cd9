//! Comparison with public thresholds.
//!
//! For public `c = m - T`, `x >= T` exactly where the top bit of `c - lambda` is 0, that is
//! `1 ^ msb c ^ msb lambda ^ borrow`. From dealt one-hot encodings of `lambda` ([`crate::onehot`]) the evaluators have halves of
//! `[c_j < lambda_j]` and `[c_j = lambda_j]` for each chunk `j`, at any number of points. These bits are re-masked (round 1); the
//! borrow is an exclusive or of ANDs; the result is re-masked (round 2).
//!
//! *Error*: none. *Security*: an evaluator receives halves of fresh sharings and the other's halves under uniform masks.

use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::bits::{self, MaskedBits, Plane, Remasking, post_remask, remask_cost, words};
use crate::boolean;
use crate::masked::Masked;
use crate::onehot::Encoding;

/// A comparison after its first exchange was posted.
#[must_use]
pub struct Comparison {
    remasking: Remasking,
    /// Halves of the top bits, a plane for each result (evaluators).
    tops: Vec<Plane>,
    results: usize,
    len: usize,
    encoding: Encoding,
}

/// A comparison after its second exchange was posted.
#[must_use]
pub struct Flags(Remasking);

/// The wire cost of [`at_least`]: two rounds.
pub fn cost(len: usize, groups: usize, ring: u32, thresholds: usize) -> Cost {
    let (encoding, each) = (Encoding::new(ring - 1, thresholds), len / groups.max(1));
    let results = groups * thresholds;
    let dealing = encoding.cost(len).and(Cost::deal(groups * words(each), 64));
    dealing
        .and(remask_cost(results * encoding.plane_count(), each))
        .then(boolean::cost(&[encoding.borrow(0)], results * WORD * words(each)).and(remask_cost(results, each)))
}

/// Bits of a word of a plane.
const WORD: usize = u64::BITS as usize;

/// Starts `[x >= T]` for signed public thresholds, on the `groups` equal parts of `x` side by side. The one-hots are shared
/// by all thresholds.
pub fn post<E: Element>(s: &mut Session, x: &Masked<E>, groups: usize, thresholds: &[i64]) -> Result<Comparison> {
    s.scope("compare", |s| {
        let (ring, low_bits) = (x.ring(), x.ring() - 1);
        let len = x.len() / groups.max(1);
        assert_eq!(len * groups, x.len(), "groups of equal length");
        let lambda = if s.is_helper() { x.lambda() } else { Vec::new() };
        let encoding = Encoding::new(low_bits, thresholds.len());
        let hots = encoding.deal(s, &lambda, x.len())?;
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
        let planes = results * encoding.plane_count();
        let remasking = post_remask(s, planes, len, halves)?;
        Ok(Comparison { remasking, tops, results, len, encoding })
    })
}

impl Comparison {
    /// Ends the first round and starts the second.
    pub fn next(self, s: &mut Session) -> Result<Flags> {
        s.scope("compare", |s| {
            let masked = self.remasking.finish(s)?;
            // All results have the same borrow: plane by plane, those of all are one long plane.
            let count = self.encoding.plane_count();
            let long: Vec<MaskedBits> =
                (0..count).map(|at| MaskedBits::chain(masked.iter().skip(at).step_by(count))).collect();
            let inputs: Vec<&MaskedBits> = long.iter().collect();
            let borrows = boolean::evaluate(s, &inputs, &[self.encoding.borrow(0)])?;
            let words = words(self.len).max(1);
            let mut borrows: Vec<Plane> =
                borrows.iter().flat_map(|long| long.chunks(words)).map(<[u64]>::to_vec).collect();
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
