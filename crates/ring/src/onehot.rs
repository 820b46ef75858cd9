//! Comparison against shared one-hot encodings of 4-bit chunks.
//!
//! The encoding of a value of up to 16 bits is one word: chunk `j` takes bits `16 j .. 16 j + 16`, of which the one
//! numbered by the chunk's value is set. From a half of such a word, by exclusive or, follow halves of `[c_j < v_j]`, the
//! parity of the bits above number `c_j`, and of `[c_j = v_j]`, bit number `c_j` itself, for any public `c`: locally, at
//! any number of points. All chunks are worked on at once, in 16-bit lanes of a vector.
//!
//! Nothing secret chooses an address or a branch: values and words are shifted and masked only.
#![allow(unsafe_code)]

use crate::simd::Isa;
use crate::{Element, simd};

/// Width of a chunk.
pub const CHUNK_BITS: u32 = 4;
/// Widest value whose encoding is one word.
pub const MAX_BITS: u32 = 16;
/// Chunks of the widest value.
const CHUNKS: usize = (MAX_BITS / CHUNK_BITS) as usize;
/// Elements to a word of a plane.
const WORD: usize = 64;

/// Chunks of a value of `bits` bits, low chunk first; the last one may be narrower than the others.
///
/// # Panics
/// Unless `1 <= bits <= 16`.
pub fn chunks(bits: u32) -> usize {
    assert!((1..=MAX_BITS).contains(&bits), "a value of {bits} bits");
    bits.div_ceil(CHUNK_BITS) as usize
}

/// Bits of the encoding of a value of `bits` bits: sixteen for each chunk but the last, `2^w` for a last chunk of `w`.
///
/// # Panics
/// As [`chunks`].
pub fn word_bits(bits: u32) -> u32 {
    let whole = chunks(bits) as u32 - 1;
    (whole << CHUNK_BITS) + (1 << (bits - whole * CHUNK_BITS))
}

/// Writes the encodings of bits `low .. low + bits` of each of `lambda`.
///
/// # Panics
/// As [`chunks`], where those bits are not in the lane, and where `out` is not as long as `lambda`.
pub fn encode<E: Element>(lambda: &[E], low: u32, bits: u32, out: &mut [u64]) {
    assert_eq!(lambda.len(), out.len(), "a word for an element");
    let (used, field) = (u64::mask(word_bits(bits)), field::<E>(low, bits));
    simd::run!(|| {
        for (out, &l) in out.iter_mut().zip(lambda) {
            let v = (l.to_u64() >> low) & field;
            // Chunks beyond the value are 0; their bits are masked away.
            *out = (0..CHUNKS).fold(0, |word, j| word | 1 << place(v, j)) & used;
        }
    });
}

/// Writes halves of `[c_j < v_j]` to `less` and of `[c_j = v_j]` to `equal`, for each chunk `j` of `v` and of bits
/// `low .. low + bits` of `c`, where `words` are halves, by exclusive or, of the encodings of `v`. Bits of a word
/// beyond [`word_bits`] are not looked at.
///
/// `less` and `equal` are planes of `ceil(c.len() / 64)` words, one for each chunk, low chunk first: element `i` is bit
/// `i % 64` of word `i / 64` of a plane; bits beyond the last element are 0.
///
/// # Panics
/// As [`chunks`], where those bits are not in the lane, and where a length is wrong.
pub fn compare<E: Element>(words: &[u64], c: &[E], low: u32, bits: u32, less: &mut [u64], equal: &mut [u64]) {
    compare_on(Isa::current(), words, c, low, bits, less, equal);
}

/// [`compare`] on a given instruction set.
fn compare_on<E: Element>(isa: Isa, words: &[u64], c: &[E], low: u32, bits: u32, less: &mut [u64], equal: &mut [u64]) {
    let plane = c.len().div_ceil(WORD);
    assert_eq!(words.len(), c.len(), "a word for an element");
    assert_eq!((less.len(), equal.len()), (chunks(bits) * plane, chunks(bits) * plane), "a plane for a chunk");
    let points = Points { low, field: field::<E>(low, bits), used: u64::mask(word_bits(bits)) };
    #[cfg(target_arch = "x86_64")]
    if isa.usable() == Isa::Avx512 {
        // SAFETY: the machine has AVX-512 F, BW, DQ and VL, and BMI2.
        return unsafe { wide::compare(words, c, points, plane, less, equal) };
    }
    simd::run!(isa, || by_blocks(words, c, plane, less, equal, |words, c| block(words, c, points)));
}

/// Which bits of `c` count, and which of a word.
#[derive(Clone, Copy)]
struct Points {
    low: u32,
    field: u64,
    used: u64,
}

/// Planes of one block: the less of each chunk, then the equal of each chunk.
type Planes = [[u64; CHUNKS]; 2];

/// The mask of a value of `bits` bits.
fn field<E: Element>(low: u32, bits: u32) -> u64 {
    assert!(low + bits <= E::BITS, "bits {low} to {} of a lane of {}", low + bits, E::BITS);
    u64::mask(bits)
}

/// Number, in its word, of the bit that chunk `j` of `v` names.
#[inline(always)]
fn place(v: u64, j: usize) -> u32 {
    ((v >> (CHUNK_BITS as usize * j)) as u32 & 15) + 16 * j as u32
}

/// Runs `block` over words of 64 elements, the last one filled up with zeros, whose bits are 0.
#[inline(always)]
fn by_blocks<E: Element>(
    words: &[u64],
    c: &[E],
    plane: usize,
    less: &mut [u64],
    equal: &mut [u64],
    block: impl Fn(&[u64; WORD], &[E; WORD]) -> Planes,
) {
    let end = less.len();
    let mut write = |at: usize, [l, e]: Planes| {
        for ((at, l), e) in (at..end).step_by(plane).zip(l).zip(e) {
            (less[at], equal[at]) = (l, e);
        }
    };
    let ((whole_words, rest_words), (whole_c, rest_c)) = (words.as_chunks::<WORD>(), c.as_chunks::<WORD>());
    for (at, (words, c)) in whole_words.iter().zip(whole_c).enumerate() {
        write(at, block(words, c));
    }
    if !rest_c.is_empty() {
        let (mut last_words, mut last_c) = ([0; WORD], [E::ZERO; WORD]);
        last_words[..rest_words.len()].copy_from_slice(rest_words);
        last_c[..rest_c.len()].copy_from_slice(rest_c);
        write(whole_c.len(), block(&last_words, &last_c));
    }
}

/// In each 16-bit lane, bit `p` becomes the parity of the bits above `p`.
#[inline(always)]
fn parities_above(word: u64) -> u64 {
    let lanes = |mask: u16| u64::from(mask) * 0x0001_0001_0001_0001;
    let word = word >> 1 & lanes(0x7fff);
    let word = word ^ word >> 1 & lanes(0x7fff);
    let word = word ^ word >> 2 & lanes(0x3fff);
    let word = word ^ word >> 4 & lanes(0x0fff);
    word ^ word >> 8 & lanes(0x00ff)
}

/// The portable form: eight flags to a byte, then 8 by 8 bits transposed at a time.
#[inline(always)]
fn block<E: Element>(words: &[u64; WORD], c: &[E; WORD], points: Points) -> Planes {
    let mut flags = [0u64; WORD];
    for ((flags, &word), &c) in flags.iter_mut().zip(words).zip(c) {
        let word = word & points.used;
        let above = parities_above(word);
        let v = (c.to_u64() >> points.low) & points.field;
        *flags = (0..CHUNKS).fold(0, |flags, j| {
            let at = place(v, j);
            flags | (above >> at & 1) << j | (word >> at & 1) << (CHUNKS + j)
        });
    }
    let mut planes = Planes::default();
    for (i, flags) in flags.as_chunks::<8>().0.iter().enumerate() {
        let square = transposed(flags.iter().rev().fold(0, |square, flags| square << 8 | flags));
        for (j, word) in planes.as_flattened_mut().iter_mut().enumerate() {
            *word |= (square >> (8 * j) & 0xff) << (8 * i);
        }
    }
    planes
}

/// Bit `8 a + b` of a square goes to `8 b + a`.
#[inline(always)]
fn transposed(x: u64) -> u64 {
    let swap = |x: u64, by: u32, mask: u64| {
        let t = (x ^ x >> by) & mask;
        x ^ t ^ t << by
    };
    let x = swap(x, 7, 0x00aa_00aa_00aa_00aa);
    let x = swap(x, 14, 0x0000_cccc_0000_cccc);
    swap(x, 28, 0x0000_0000_f0f0_f0f0)
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;

    use super::{CHUNKS, Planes, Points, WORD, by_blocks};
    use crate::Element;

    /// Elements in a vector.
    const LANES: usize = 8;
    /// The bits of chunk 0 among those of sixteen elements.
    const COLUMN: u64 = 0x1111_1111_1111_1111;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn compare<E: Element>(
        words: &[u64],
        c: &[E],
        points: Points,
        plane: usize,
        less: &mut [u64],
        equal: &mut [u64],
    ) {
        by_blocks(words, c, plane, less, equal, |words, c| block(words, c, points));
    }

    /// A test of 16-bit lanes gives the flags of eight elements, those of one element side by side; of two such tests
    /// each chunk's flags are extracted.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn block<E: Element>(words: &[u64; WORD], c: &[E; WORD], points: Points) -> Planes {
        let mut planes = Planes::default();
        for pair in 0..WORD / (2 * LANES) {
            let at = 2 * LANES * pair;
            let (l0, e0) = flags(words, c, at, points);
            let (l1, e1) = flags(words, c, at + LANES, points);
            let tests = [l0 | l1 << 32, e0 | e1 << 32];
            for (planes, test) in planes.iter_mut().zip(tests) {
                for (j, word) in planes.iter_mut().enumerate() {
                    *word |= _pext_u64(test, COLUMN << j) << at;
                }
            }
        }
        planes
    }

    /// Less and equal of eight elements from `at` on: chunk `j` of element `i` is bit `4 i + j`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn flags<E: Element>(words: &[u64; WORD], c: &[E; WORD], at: usize, points: Points) -> (u64, u64) {
        assert!(at + LANES <= WORD);
        const { assert!(LANES * CHUNKS == 32) };
        // SAFETY: eight words from `at` on, and eight elements, which are 32 or 64 bits wide.
        let (word, c) = unsafe {
            let c = c.as_ptr().add(at);
            let c = match E::BITS {
                32 => _mm512_cvtepu32_epi64(_mm256_loadu_si256(c.cast())),
                _ => _mm512_loadu_si512(c.cast()),
            };
            (_mm512_loadu_si512(words.as_ptr().add(at).cast()), c)
        };
        let word = _mm512_and_si512(word, _mm512_set1_epi64(points.used as i64));
        let v = _mm512_srl_epi64(c, _mm_cvtsi32_si128(points.low as i32));
        let v = _mm512_and_si512(v, _mm512_set1_epi64(points.field as i64));
        // The byte of each chunk to its lane, then the chunk to the lane's lowest bits.
        let bytes = _mm512_set4_epi32(
            0x8009_8009u32 as i32,
            0x8008_8008u32 as i32,
            0x8001_8001u32 as i32,
            0x8000_8000u32 as i32,
        );
        let v = _mm512_shuffle_epi8(v, bytes);
        let v = _mm512_srlv_epi16(v, _mm512_set1_epi64(0x0004_0000_0004_0000));
        let v = _mm512_and_si512(v, _mm512_set1_epi16(15));
        let bit = _mm512_sllv_epi16(_mm512_set1_epi16(1), v);
        let above = _mm512_srli_epi16::<1>(word);
        let above = _mm512_xor_si512(above, _mm512_srli_epi16::<1>(above));
        let above = _mm512_xor_si512(above, _mm512_srli_epi16::<2>(above));
        let above = _mm512_xor_si512(above, _mm512_srli_epi16::<4>(above));
        let above = _mm512_xor_si512(above, _mm512_srli_epi16::<8>(above));
        (u64::from(_mm512_test_epi16_mask(above, bit)), u64::from(_mm512_test_epi16_mask(word, bit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Prg, Seed};

    fn random<E: Element>(stream: u64, len: usize) -> Vec<E> {
        let mut out = vec![E::ZERO; len];
        Prg::new(&Seed::from_bytes([3; 32])).fill(stream, 0, &mut out);
        out
    }

    /// Shares encodings of random values, compares either half with random points on every instruction set, and holds
    /// the sums against the comparisons themselves.
    fn check<E: Element>(len: usize, low: u32, bits: u32) {
        let (lambda, c): (Vec<E>, Vec<E>) = (random(1, len), random(2, len));
        let mut encoded = vec![0; len];
        encode(&lambda, low, bits, &mut encoded);
        let first: Vec<u64> = random(3, len);
        // A half may carry anything beyond the word's own bits.
        let second: Vec<u64> = encoded.iter().zip(&first).map(|(e, f)| e ^ f ^ !u64::mask(word_bits(bits))).collect();
        let (n, plane) = (chunks(bits), len.div_ceil(64));
        let mut given: Option<[Vec<u64>; 2]> = None;
        for isa in Isa::available() {
            let halves = [&first, &second].map(|words| {
                let (mut less, mut equal) = (vec![!0; n * plane], vec![!0; n * plane]);
                compare_on(isa, words, &c, low, bits, &mut less, &mut equal);
                [less, equal].concat()
            });
            assert_eq!(given.get_or_insert_with(|| halves.clone()), &halves, "{isa:?} {len} {low} {bits}");
        }
        let [a, b] = given.expect("one instruction set at least");
        let chunk = |v: E, j: usize| (v.to_u64() >> low & u64::mask(bits)) >> (4 * j) & 15;
        for j in 0..n {
            let bit = |from: usize, i: usize| (a[from + i / 64] ^ b[from + i / 64]) >> (i % 64) & 1 == 1;
            for i in 0..len {
                let (c, v) = (chunk(c[i], j), chunk(lambda[i], j));
                assert_eq!(encoded[i] >> (16 * j) & 0xffff, 1 << v);
                assert_eq!(bit(j * plane, i), c < v, "less {j} of {i}");
                assert_eq!(bit((n + j) * plane, i), c == v, "equal {j} of {i}");
            }
            for half in [&a, &b] {
                for from in [j * plane, (n + j) * plane] {
                    let last = half[from..from + plane].last().copied().unwrap_or(0);
                    assert_eq!(last & !u64::mask(len as u32 - (plane.max(1) as u32 - 1) * 64), 0, "beyond {len}");
                }
            }
        }
        assert!(encoded.iter().all(|word| word & !u64::mask(word_bits(bits)) == 0));
    }

    #[test]
    fn halves_add_up_to_the_comparisons_on_every_instruction_set() {
        for bits in 1..=16 {
            for len in [0, 1, 7, 8, 63, 64, 65, 129, 1000] {
                check::<u32>(len, 0, bits);
                check::<u64>(len, 0, bits);
            }
            check::<u32>(77, 32 - bits, bits);
            check::<u64>(77, 64 - bits, bits);
            check::<u32>(200, 5, bits);
            check::<u64>(200, 29, bits);
        }
    }

    #[test]
    fn words_are_as_wide_as_the_chunks_need() {
        let widths: Vec<(usize, u32)> = (1..=16).map(|bits| (chunks(bits), word_bits(bits))).collect();
        assert_eq!(widths[..5], [(1, 2), (1, 4), (1, 8), (1, 16), (2, 18)]);
        assert_eq!(widths[11..], [(3, 48), (4, 50), (4, 52), (4, 56), (4, 64)]);
    }

    #[test]
    fn a_square_is_transposed() {
        for bit in 0..64 {
            assert_eq!(transposed(1 << bit), 1 << (bit % 8 * 8 + bit / 8));
        }
    }

    #[test]
    #[should_panic(expected = "bits 20 to 33 of a lane of 32")]
    fn bits_beyond_the_lane_are_refused() {
        encode(&[0u32], 20, 13, &mut [0]);
    }
}
