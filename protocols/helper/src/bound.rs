//! A bound of the maximum of each row ([`BoundSpec`]) in three rounds, whatever the length of the row.
//!
//! Softmax is shift-invariant: any bound within a few units of the maximum serves as its shift. Let `c` be the elements less the
//! lowest bound, in units of a step; the bound is `lowest + s step` with `s = sum over i >= 1 of [some c reaches i]`.
//!
//! 1. *Local.* With a coarse `m`, and `lambda` coarsened by P0 who knows all of it, `c = m - lambda` is the element's whole number
//!    of steps, or one more where the cut-off parts borrowed: never less. P0 deals, shared by exclusive or, the one-hot
//!    encoding of `-lambda`; turned by `m` it is that of `c`. Parities of its upper ends are `[c reaches i]`.
//! 2. *Local.* Some bit of a row is 1 unless all of [`COMBINATIONS`] random sums of them, modulo two, are 0: sums with public
//!    coefficients, and coefficients before parities, because both are linear. A row of no more elements than that is taken as it is.
//! 3. The combinations are remasked (round 1). P0 deals their masks as additive shares in a ring that holds their number, so
//!    that how many of a flag's are 1 is a local sum; which is remasked (round 2).
//! 4. P0 deals, in the ring of the result, the one-hot encodings of the masks of these counts: at the masked count lies a sharing
//!    of `[count = 0]`. What the flags lack in zeros is `s`, a local sum; which is remasked (round 3).
//!
//! *Coefficients* must not depend on the elements. Both evaluators draw them from a generator keyed by masked elements, which are
//! uniform whatever the elements are, and different every time; both know them, and nothing about them is secret.
//!
//! *Error*: none in a row of at most [`COMBINATIONS`] elements. In a longer one a flag that should be set is missed with probability
//! `2^-48`, which makes the bound a step too low and may ruin that row alone: its largest exponent turns negative. *Cost*, an element: `2^b` dealt bits for a ring of `b` bits after coarsening, nothing
//! online. A row and flag: [`COMBINATIONS`] (or the row's length) and 6 bits online, `6 * 48 + 2^6 b` dealt. *Security*: an evaluator
//! receives halves of fresh sharings, and the other's halves under uniform masks that it does not know.

use tercet_core::spec::BoundSpec;
use tercet_core::{Cost, Error, Result, Session};
use tercet_net::PartyId;
use tercet_ring::{Element, Prg, Seed, simd};

use crate::bits::{MaskedBits, Plane, post_remask, remask_cost, words};
use crate::masked::{Additive, Masked};
use crate::onehot;
use crate::ragged::Ragged;
use crate::select::expand;
use crate::truncate;

/// Random combinations of a row's bits at most.
pub const COMBINATIONS: usize = 48;
/// Masked elements that key the coefficients, sixteen bits of each.
const KEYING: usize = 16;
/// Widest ring after coarsening: an encoding of half a kilobyte an element.
const MOST_COARSE_BITS: u32 = 12;

/// Combinations of a row of `length` elements.
fn combinations(length: usize) -> usize {
    length.min(COMBINATIONS)
}

/// Bits that hold how many combinations of the longest row are 1.
fn count_ring(rows: &Ragged) -> u32 {
    let most = rows.lengths().iter().map(|&length| combinations(length)).max().unwrap_or(0);
    usize::BITS - most.leading_zeros()
}

/// Combinations of all rows, for each of `flags`.
fn combined(rows: &Ragged, flags: usize) -> usize {
    rows.lengths().iter().map(|&length| combinations(length) * flags).sum()
}

/// The wire cost for elements in `Z_2^ring` at scale `frac`: three rounds, or nothing where there is one bound.
pub fn cost(rows: &Ragged, ring: u32, frac: u32, spec: &BoundSpec) -> Cost {
    let (bits, flags) = (spec.coarse_bits(ring, frac), spec.steps as usize - 1);
    if flags == 0 {
        return Cost::NONE;
    }
    let (count_ring, counts) = (count_ring(rows), rows.rows() * flags);
    let combined = combined(rows, flags);
    onehot::whole_cost(rows.len(), bits)
        .and(remask_cost(1, combined))
        .then(Cost::deal(combined, count_ring).and(truncate::cost(counts, 0, count_ring)))
        .then(Cost::deal(counts << count_ring, bits).and(truncate::cost(rows.rows(), 0, bits)))
}

/// Bits of a score of `Z_2^ring` at scale `frac` in units of a step. An error where the numbers do
/// not fit such scores.
pub(crate) fn check(ring: u32, frac: u32, spec: &BoundSpec) -> Result<u32> {
    let BoundSpec { lowest, step, steps } = *spec;
    let fits = step.is_power_of_two() && spec.coarsen(frac) < ring && lowest.unsigned_abs() < 1 << 31;
    let bits = if fits { spec.coarse_bits(ring, frac) } else { 0 };
    if !(2..=MOST_COARSE_BITS).contains(&bits) || steps == 0 || steps >= 1 << (bits - 1) {
        return Err(Error::Misuse(format!("{steps} bounds {step} apart from {lowest} on for scores of {ring} bits")));
    }
    Ok(bits)
}

/// The bound of each row of `x`, plus a step: more than any of its elements. `[rows]`, in the ring of `x` and at its scale.
///
/// # Errors
/// Numbers that cannot be computed with: the step no power of two, or too many bounds for the ring.
pub fn above(s: &mut Session, x: &Masked<u32>, rows: &Ragged, frac: u32, spec: &BoundSpec) -> Result<Masked<u32>> {
    assert_eq!(x.len(), rows.len(), "rows of these lengths");
    let bits = check(x.ring(), frac, spec)?;
    s.scope("bound", |s| {
        let (flags, by) = (spec.steps as usize - 1, spec.coarsen(frac));
        let lowest = spec.lowest << frac;
        let reached = if flags == 0 {
            Masked::public(s.party(), bits, tercet_ring::Tensor::zeros([rows.rows()]))
        } else {
            let planes = reaching(s, x, rows, bits, [lowest, i64::from(by)], flags)?;
            let combined = combined(rows, flags);
            let masked = post_remask(s, 1, combined, planes)?.finish(s)?;
            let counts = counts(s, &masked[0], rows, flags)?;
            flags_of(s, &counts, rows.rows(), flags, bits)?
        };
        Ok(reached.scale_up(by).plus(lowest + (1 << by)))
    })
}

/// This evaluator's half of the combinations: row by row, for each of its combinations one bit a flag.
fn reaching(
    s: &mut Session,
    x: &Masked<u32>,
    rows: &Ragged,
    bits: u32,
    [lowest, by]: [i64; 2],
    flags: usize,
) -> Result<Vec<Plane>> {
    let (ring, by) = (x.ring(), by as u32);
    let negated: Vec<u32> = if s.is_helper() {
        x.lambda().iter().map(|&l| (l.low(ring) >> by).wrapping_neg().low(bits)).collect()
    } else {
        Vec::new()
    };
    let dealt = onehot::deal_whole(s, &negated, x.len(), bits)?;
    if s.is_helper() {
        return Ok(Vec::new());
    }
    let lowest = u32::from_i64(lowest);
    let m: Vec<u32> = x.m().iter().map(|m| m.wrapping_sub(lowest).low(ring) >> by).collect();
    let any_long = rows.lengths().iter().any(|&length| length > COMBINATIONS);
    let coefficients = if any_long { coefficients(x) } else { Vec::new() };
    let mut out = Writer::default();
    let mut first = 0;
    for &length in rows.lengths() {
        let count = combinations(length);
        let mut sums = Combined::new(count, bits);
        for (at, element) in (first..first + length).enumerate() {
            let coefficients = if length <= COMBINATIONS { 1 << at } else { coefficients[element] };
            sums.add(coefficients, |word| turned(&dealt, x.len(), element, m[element], bits, word));
        }
        sums.write(flags, &mut out);
        first += length;
    }
    Ok(vec![out.finish()])
}

/// A word of random bits an element, of which there are more than key the generator.
fn coefficients(x: &Masked<u32>) -> Vec<u64> {
    let mut key = [0u8; 2 * KEYING];
    for (key, m) in key.as_chunks_mut::<2>().0.iter_mut().zip(x.m()) {
        *key = (m.low(x.ring().min(16)) as u16).to_le_bytes();
    }
    let mut out = vec![0u64; x.len()];
    Prg::new(&Seed::from_bytes(key).derive("bound", &[])).fill(0, 0, &mut out);
    out
}

/// Word `word` of the encoding of element `at`, turned up by `m`. Word `w` of element `i` of `dealt` lies at `w * len + i`.
#[inline(always)]
fn turned(dealt: &[u64], len: usize, at: usize, m: u32, bits: u32, word: usize) -> u64 {
    if bits < 6 {
        let (size, w) = (1 << bits, dealt[at]);
        return (w << m | w >> (size - m)) & u64::mask(size);
    }
    let (count, by) = (1usize << (bits - 6), m % 64);
    let from = word + count - (m / 64) as usize;
    let part = |w: usize| dealt[w % count * len + at];
    part(from) << by | part(from + count - 1) >> 1 >> (63 - by)
}

/// Combinations of encodings: the lower half of each, which is that of the values from zero on.
struct Combined {
    bits: u32,
    count: usize,
    /// Word `w` of combination `k` lies at `w * count + k`.
    sums: Vec<u64>,
}

impl Combined {
    fn new(count: usize, bits: u32) -> Combined {
        let half = 1usize << (bits - 1).saturating_sub(6);
        Combined { bits, count, sums: vec![0; half * count] }
    }

    /// Adds an encoding to every combination whose bit of `coefficients` is 1.
    #[inline(always)]
    fn add(&mut self, coefficients: u64, word: impl Fn(usize) -> u64) {
        for (w, sums) in self.sums.chunks_exact_mut(self.count).enumerate() {
            let word = word(w);
            for (k, sum) in (0u32..).zip(sums) {
                *sum ^= word & (coefficients >> k & 1).wrapping_neg();
            }
        }
    }

    /// For each combination the parities from `1..=flags` on upwards.
    fn write(mut self, flags: usize, out: &mut Writer) {
        let used = u64::mask((1u32 << (self.bits - 1)).min(64));
        for k in 0..self.count {
            let mut above = 0u64;
            for sum in self.sums.iter_mut().skip(k).step_by(self.count).rev() {
                let parities = [1, 2, 4, 8, 16, 32].into_iter().fold(*sum & used, |word, by| word ^ word >> by);
                *sum = parities ^ above.wrapping_neg();
                above = *sum & 1;
            }
            // A window of the words that begins at bit 1.
            let word = |w: usize| self.sums.get(w * self.count + k).copied().unwrap_or(0);
            for (w, from) in (0..flags).step_by(64).enumerate() {
                out.push(word(w) >> 1 | word(w + 1) << 63, (flags - from).min(64));
            }
        }
    }
}

/// Bits one after the other.
#[derive(Default)]
struct Writer {
    words: Plane,
    used: usize,
}

impl Writer {
    /// Appends the low `count` bits of `bits`, `1 <= count <= 64`.
    fn push(&mut self, bits: u64, count: usize) {
        let (bits, at) = (bits & u64::mask(count as u32), self.used % 64);
        match self.words.last_mut() {
            Some(last) if at > 0 => *last |= bits << at,
            _ => self.words.push(bits),
        }
        if at > 0 && at + count > 64 {
            self.words.push(bits >> (64 - at));
        }
        self.used += count;
    }

    fn finish(self) -> Plane {
        debug_assert_eq!(self.words.len(), words(self.used));
        self.words
    }
}

/// How many combinations of each row and flag are 1: `[rows * flags]`, remasked.
fn counts(s: &mut Session, combined: &MaskedBits, rows: &Ragged, flags: usize) -> Result<Masked<u32>> {
    let (len, ring, total) = (combined.len(), count_ring(rows), rows.rows() * flags);
    let dealt: Vec<u32> = s.deal(len, ring, |_| expand(&combined.sigma(), len))?;
    let mut half = Vec::new();
    if !s.is_helper() {
        let leads = u32::from(s.party() == PartyId::P1);
        let mut terms: Vec<u32> = expand(combined.beta(), len);
        simd::run!(|| {
            for (term, &sigma) in terms.iter_mut().zip(&dealt) {
                // beta ^ sigma = beta + (1 - 2 beta) sigma
                let sign = 1u32.wrapping_sub(*term + *term);
                *term = term.wrapping_mul(leads).wrapping_add(sign.wrapping_mul(sigma));
            }
        });
        half = vec![0u32; total];
        let mut rest = &terms[..];
        for (half, &length) in half.chunks_exact_mut(flags).zip(rows.lengths()) {
            let row = rest.split_off(..combinations(length) * flags).unwrap_or_default();
            for combination in row.chunks_exact(flags) {
                half.iter_mut().zip(combination).for_each(|(sum, &term)| *sum = sum.wrapping_add(term));
            }
        }
    }
    truncate::remask(s, Additive::new(s.party(), [total], half), ring)
}

/// How many flags of each row have a count that is not zero: `[rows]` in `Z_2^bits`, remasked.
fn flags_of(s: &mut Session, counts: &Masked<u32>, rows: usize, flags: usize, bits: u32) -> Result<Masked<u32>> {
    let ring = counts.ring();
    let dealt: Vec<u32> = s.deal(counts.len() << ring, bits, |_| {
        let mut encodings = vec![0u32; counts.len() << ring];
        for (encoding, lambda) in encodings.chunks_exact_mut(1 << ring).zip(counts.lambda()) {
            for (place, out) in (0u32..).zip(encoding) {
                // An equality of secrets as arithmetic.
                let differs = place ^ lambda;
                *out = 1 ^ (differs | differs.wrapping_neg()) >> 31;
            }
        }
        encodings
    })?;
    let mut half = Vec::new();
    if !s.is_helper() {
        let all = if s.party() == PartyId::P1 { flags as u32 } else { 0 };
        let zeros = dealt.chunks_exact(1 << ring).zip(counts.m()).map(|(encoding, m)| encoding[m.low(ring) as usize]);
        let zeros: Vec<u32> = zeros.collect();
        half = zeros.chunks_exact(flags).map(|row| row.iter().fold(all, |sum, &zero| sum.wrapping_sub(zero))).collect();
    }
    truncate::remask(s, Additive::new(s.party(), [rows], half), bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An encoding whose halves are itself and zero, turned to every place.
    #[test]
    fn encodings_turn() {
        for bits in [2u32, 5, 6, 7, 9] {
            let size = 1u32 << bits;
            let (len, count) = (3, 1usize << bits.saturating_sub(6));
            for (lambda, m) in [(0, 0), (1, 0), (size - 1, 1), (size / 2, size - 1), (3, size / 2 + 1), (0, size - 1)] {
                let negated = lambda.wrapping_neg().low(bits);
                let mut dealt = vec![0u64; count * len];
                dealt[(negated / 64) as usize * len + 1] = 1 << (negated % 64);
                let c = m.wrapping_sub(lambda).low(bits);
                for word in 0..count {
                    let expected = if (c / 64) as usize == word { 1 << (c % 64) } else { 0 };
                    assert_eq!(turned(&dealt, len, 1, m, bits, word), expected, "{m} - {lambda} of {bits} bits");
                    assert_eq!(turned(&dealt, len, 0, m, bits, word), 0);
                }
            }
        }
    }

    #[test]
    fn bits_are_written_one_after_the_other() {
        let mut writer = Writer::default();
        let mut expected = Vec::new();
        for (bits, count) in [(0b101, 3), (!0, 64), (0, 60), (1, 1), (0x1234, 64), (!0, 63), (0b10, 2), (5, 64)] {
            writer.push(bits, count);
            expected.extend((0..count).map(|i| bits >> i & 1));
        }
        let words = writer.finish();
        let got: Vec<u64> = (0..expected.len()).map(|i| words[i / 64] >> (i % 64) & 1).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn parities_say_what_is_reached() {
        for (bits, flags) in [(3u32, 3usize), (6, 31), (7, 40), (7, 63), (9, 200), (9, 255)] {
            for c in [0, 1, 2, flags as u32 / 2, flags as u32, (1 << (bits - 1)) - 1, 1 << (bits - 1), (1 << bits) - 1]
            {
                let mut sums = Combined::new(2, bits);
                sums.add(0b10, |w| if (c / 64) as usize == w { 1 << (c % 64) } else { 0 });
                let mut out = Writer::default();
                sums.write(flags, &mut out);
                let words = out.finish();
                let bit = |i: usize| words[i / 64] >> (i % 64) & 1 == 1;
                let negative = c >> (bits - 1) == 1;
                for i in 1..=flags {
                    assert!(!bit(i - 1), "not in the first combination");
                    assert_eq!(bit(flags + i - 1), !negative && c as usize >= i, "{c} of {bits} bits at {i}");
                }
            }
        }
    }
}
