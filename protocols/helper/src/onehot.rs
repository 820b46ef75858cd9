//! One-hot encodings of a mask, shared by exclusive or: what comparisons and table steps are made of.
//!
//! The low bits of `lambda` are cut into chunks, and P0 deals the one-hot encoding of each. For a public `c` a half of
//! `[c_j < lambda_j]` is the parity of the dealt half above `c_j`, and one of `[c_j = lambda_j]` is a bit of it: local, at any
//! number of points. What is paid for is dealt bits (`2^w` for a chunk of `w`) against re-masked bits and mask products
//! (fewer for fewer chunks). Elements, compared with one or two thresholds, are cheapest in chunks of four bits; rows,
//! compared with a hundred, in chunks of eight.
//!
//! *Security*: an evaluator receives halves of fresh sharings; `c` is public to both, so it may choose addresses.

use tercet_core::{Cost, Result, Session};
use tercet_ring::{Element, onehot};

use crate::bits::{Plane, words};
use crate::boolean::{self, Polynomial};

/// How a mask is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Chunks of four bits, up to four of them in one dealt word.
    Four,
    /// Chunks of eight bits, each a dealing of its own.
    Eight,
}

impl Cut {
    /// What costs the fewest bits in all for masks of `bits` bits and so many thresholds.
    fn cheapest(bits: u32, thresholds: usize) -> Cut {
        let bits_in_all = |cut: Cut| {
            let n = cut.chunks(bits);
            let dealt: usize = cut.widths(bits).map(|w| 1usize << w).sum();
            dealt + thresholds * (boolean::products(&[borrow(n, 0)]) + 2 * (2 * n - 1))
        };
        if bits_in_all(Cut::Four) <= bits_in_all(Cut::Eight) { Cut::Four } else { Cut::Eight }
    }

    fn width(self) -> u32 {
        match self {
            Cut::Four => onehot::CHUNK_BITS,
            Cut::Eight => 8,
        }
    }

    fn chunks(self, bits: u32) -> usize {
        bits.div_ceil(self.width()) as usize
    }

    /// Widths of the chunks, low chunk first.
    fn widths(self, bits: u32) -> impl Iterator<Item = u32> {
        let width = self.width();
        (0..bits).step_by(width as usize).map(move |low| width.min(bits - low))
    }

    /// `(lowest bit, bits)` of what is dealt together.
    fn dealings(self, bits: u32) -> impl Iterator<Item = (u32, u32)> {
        let together = match self {
            Cut::Four => onehot::MAX_BITS,
            Cut::Eight => self.width(),
        };
        (0..bits).step_by(together as usize).map(move |low| (low, together.min(bits - low)))
    }

    /// `(words an element, bits of each)` of one dealing.
    fn words_and_bits(self, bits: u32) -> (usize, u32) {
        match self {
            Cut::Four => (1, onehot::word_bits(bits)),
            Cut::Eight => whole(bits),
        }
    }
}

/// The borrow of `c - lambda` in planes `first..`: `n` of `[c_j < lambda_j]`, then `n - 1` of `[c_j = lambda_j]`, `j >= 1`.
fn borrow(n: usize, first: usize) -> Polynomial {
    (0..n).map(|j| std::iter::once(first + j).chain((j + 1..n).map(|l| first + n + l - 1)).collect()).collect()
}

/// Public description of an encoding: how many bits, and how they are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    bits: u32,
    cut: Cut,
}

impl Encoding {
    /// Of masks of `bits` bits that are compared at `thresholds` points.
    pub fn new(bits: u32, thresholds: usize) -> Encoding {
        Encoding { bits, cut: Cut::cheapest(bits, thresholds) }
    }

    /// Planes that [`OneHots::less_and_equal`] gives.
    pub fn plane_count(self) -> usize {
        2 * self.cut.chunks(self.bits) - 1
    }

    /// The borrow of `c - lambda` as a polynomial in those planes, numbered from `first`.
    pub fn borrow(self, first: usize) -> Polynomial {
        borrow(self.cut.chunks(self.bits), first)
    }

    /// The wire cost of dealing `len` masks.
    pub fn cost(self, len: usize) -> Cost {
        self.cut.dealings(self.bits).fold(Cost::NONE, |sum, (_, bits)| {
            let (count, each) = self.cut.words_and_bits(bits);
            sum.and(Cost::deal(count * len, each))
        })
    }

    /// Deals the low bits of `lambda` (helper only; `len` masks).
    pub fn deal<E: Element>(self, s: &mut Session, lambda: &[E], len: usize) -> Result<OneHots> {
        s.scope("one-hot", |s| {
            let dealings = self.cut.dealings(self.bits).map(|(low, bits)| {
                let (count, each) = self.cut.words_and_bits(bits);
                let words = s.deal_xor(count * len, each, |_| {
                    let mut words = vec![0u64; count * len];
                    match self.cut {
                        Cut::Four => onehot::encode(lambda, low, bits, &mut words),
                        Cut::Eight => encode_wide(lambda, low, bits, count, &mut words),
                    }
                    words
                })?;
                let above = match self.cut {
                    Cut::Eight if !s.is_helper() => parities_above(&words, len),
                    _ => Vec::new(),
                };
                Ok(Dealing { low, bits, words, above })
            });
            Ok(OneHots { encoding: self, len, dealings: dealings.collect::<Result<_>>()? })
        })
    }
}

/// Words of a whole encoding of `bits` bits, and bits of each.
fn whole(bits: u32) -> (usize, u32) {
    if bits <= 6 { (1, 1 << bits) } else { (1 << (bits - 6), 64) }
}

/// The wire cost of [`deal_whole`].
pub fn whole_cost(len: usize, bits: u32) -> Cost {
    let (count, each) = whole(bits);
    Cost::deal(count * len, each)
}

/// Deals the one-hot encodings of `len` values of `bits` bits (the helper's) uncut, `2^bits` bits each. Gives this evaluator's
/// halves, word `w` of element `i` at `w * len + i`; nothing at the helper.
pub fn deal_whole<E: Element>(s: &mut Session, values: &[E], len: usize, bits: u32) -> Result<Vec<u64>> {
    s.scope("one-hot", |s| {
        let (count, each) = whole(bits);
        s.deal_xor(count * len, each, |_| {
            let mut words = vec![0u64; count * len];
            encode_wide(values, 0, bits, count, &mut words);
            words
        })
    })
}

/// The evaluators' halves of dealt encodings; empty at the helper.
pub struct OneHots {
    encoding: Encoding,
    len: usize,
    dealings: Vec<Dealing>,
}

struct Dealing {
    low: u32,
    bits: u32,
    words: Vec<u64>,
    /// Of wide chunks, whose thresholds are many: bit `p` is the parity of the bits above `p`.
    above: Vec<u64>,
}

impl OneHots {
    /// Evaluators: halves of `[c < lambda]` for every chunk, then of `[c = lambda]` for every chunk but the lowest, for elements
    /// `from..from + c.len()` of the dealing.
    pub fn less_and_equal<E: Element>(&self, c: &[E], from: usize) -> Vec<Plane> {
        let (mut less, mut equal) = (Vec::new(), Vec::new());
        for Dealing { low, bits, words: dealt, above } in &self.dealings {
            match self.encoding.cut {
                Cut::Four => {
                    let size = onehot::chunks(*bits) * words(c.len());
                    let (mut l, mut e) = (vec![0; size], vec![0; size]);
                    onehot::compare(&dealt[from..from + c.len()], c, *low, *bits, &mut l, &mut e);
                    let planes = words(c.len()).max(1);
                    less.extend(l.chunks(planes).map(<[u64]>::to_vec));
                    equal.extend(e.chunks(planes).map(<[u64]>::to_vec));
                }
                Cut::Eight => {
                    let [l, e] = look_up([above, dealt], self.len, from, c, *low, *bits);
                    less.push(l);
                    equal.push(e);
                }
            }
        }
        less.extend(equal.into_iter().skip(1));
        less
    }
}

/// Word `w` of element `i` lies at `w * len + i`.
fn encode_wide<E: Element>(lambda: &[E], low: u32, bits: u32, count: usize, out: &mut [u64]) {
    let len = lambda.len();
    for (w, out) in out.chunks_mut(len.max(1)).enumerate().take(count) {
        tercet_ring::simd::run!(|| {
            for (out, l) in out.iter_mut().zip(lambda) {
                let v = l.to_u64() >> low & ((1 << bits) - 1);
                // An equality of secrets as arithmetic: 1 where the set bit lies in this word.
                let elsewhere = (v >> 6) ^ w as u64;
                let here = 1 ^ ((elsewhere | elsewhere.wrapping_neg()) >> 63);
                *out = here << (v & 63);
            }
        });
    }
}

/// The bit of each table that `c` names: a word of 64 a row of elements, tables being `len` elements wide.
fn look_up<E: Element>(
    [less, equal]: [&[u64]; 2],
    len: usize,
    from: usize,
    c: &[E],
    low: u32,
    bits: u32,
) -> [Plane; 2] {
    let mask = E::mask(bits);
    let (mut l, mut e) = (Plane::with_capacity(words(c.len())), Plane::with_capacity(words(c.len())));
    for (block, c) in c.chunks(64).enumerate() {
        let (mut l_word, mut e_word) = (0, 0);
        for (i, &c) in c.iter().enumerate() {
            let place = ((c >> low) & mask).to_u64();
            let at = (place / 64) as usize * len + from + block * 64 + i;
            l_word |= (less[at] >> (place % 64) & 1) << i;
            e_word |= (equal[at] >> (place % 64) & 1) << i;
        }
        l.push(l_word);
        e.push(e_word);
    }
    [l, e]
}

/// For every bit of each element's half, the parity of the bits above it.
fn parities_above(words: &[u64], len: usize) -> Vec<u64> {
    let mut out = words.to_vec();
    let mut carried = vec![0u64; len];
    for out in out.chunks_exact_mut(len.max(1)).rev() {
        for (out, carried) in out.iter_mut().zip(&mut carried) {
            let word = *out >> 1;
            let folded = [1, 2, 4, 8, 16, 32].into_iter().fold(word, |word, by| word ^ word >> by);
            let all = u64::from(out.count_ones() & 1);
            *out = folded ^ carried.wrapping_neg();
            *carried ^= all;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits;

    #[test]
    fn elements_take_narrow_chunks_and_rows_wide_ones() {
        assert_eq!(Cut::cheapest(12, 2), Cut::Four);
        assert_eq!(Cut::cheapest(15, 1), Cut::Four);
        assert_eq!(Cut::cheapest(28, 130), Cut::Eight);
        assert_eq!(Cut::Four.widths(15).collect::<Vec<_>>(), [4, 4, 4, 3]);
        assert_eq!(Cut::Four.dealings(20).collect::<Vec<_>>(), [(0, 16), (16, 4)]);
        assert_eq!(Cut::Eight.dealings(20).collect::<Vec<_>>(), [(0, 8), (8, 8), (16, 4)]);
    }

    /// Both forms against integers: one half zero, the other the encoding itself.
    #[test]
    fn halves_say_less_and_equal() {
        for (cut, bits) in [(Cut::Four, 11), (Cut::Four, 21), (Cut::Eight, 21), (Cut::Eight, 8), (Cut::Eight, 6)] {
            let len = 130;
            let lambda: Vec<u64> = (0..len as u64).map(|i| (i * 0x9e37_79b9) & ((1 << bits) - 1)).collect();
            let c: Vec<u64> =
                (0..len).map(|i| if i % 3 == 0 { lambda[i] } else { lambda[(i * 7) % len] ^ 5 }).collect();
            let encoding = Encoding { bits, cut };
            let dealings = cut.dealings(bits).map(|(low, bits)| {
                let (count, _) = cut.words_and_bits(bits);
                let mut words = vec![0; count * len];
                match cut {
                    Cut::Four => onehot::encode(&lambda, low, bits, &mut words),
                    Cut::Eight => encode_wide(&lambda, low, bits, count, &mut words),
                }
                let above = if cut == Cut::Eight { parities_above(&words, len) } else { Vec::new() };
                Dealing { low, bits, words, above }
            });
            let hots = OneHots { encoding, len, dealings: dealings.collect() };
            let planes = hots.less_and_equal(&c, 0);
            assert_eq!(planes.len(), encoding.plane_count());
            let n = cut.chunks(bits);
            for i in 0..len {
                let bit = |p: usize| bits::bit(&planes[p], i) == 1;
                for j in 0..n {
                    let chunk = |v: u64| v >> (cut.width() * j as u32) & ((1 << cut.width()) - 1) & ((1 << bits) - 1);
                    assert_eq!(bit(j), chunk(c[i]) < chunk(lambda[i]), "{cut:?} chunk {j} of {i}");
                    if j > 0 {
                        assert_eq!(bit(n + j - 1), chunk(c[i]) == chunk(lambda[i]), "{cut:?} chunk {j} of {i}");
                    }
                }
                let borrow = encoding.borrow(0).iter().filter(|m| m.iter().all(|&p| bit(p))).count();
                assert_eq!(borrow == 1, c[i] < lambda[i] && borrow < 2);
            }
        }
    }
}
