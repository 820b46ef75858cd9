//! Bit packing: `n` elements of `Z_2^k` in exactly `ceil(n * k / 8)` bytes.
//!
//! Element `i` takes bits `[i * k, (i + 1) * k)` of the plane, bit `b` of the plane being bit `b % 8` of byte `b / 8`
//! (little-endian throughout). The bits after the last element are zero; a reader ignores them.
//!
//! A whole lane is copied. Other widths go in blocks through AVX-512 with byte permutation (`blocks`) where the machine has
//! it, and word by word where not and at the end.

#[cfg(target_arch = "x86_64")]
mod blocks;

use crate::{Element, simd};

/// A plane whose length is not the one that its shape demands: the fault of whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} bytes where {expected} are due")]
pub struct LengthError {
    /// Bytes that the shape and the ring demand.
    pub expected: usize,
    /// Bytes that were there.
    pub found: usize,
}

/// Bytes of `n` packed elements of `k` bits.
pub fn packed_len(n: usize, k: u32) -> usize {
    let k = k as usize;
    // In whole groups of eight first: no overflow for any plane that fits memory.
    n / 8 * k + (n % 8 * k).div_ceil(8)
}

/// Appends the low `k` bits of each value to `out`.
///
/// # Panics
/// Where `k` is 0 or wider than the lane.
pub fn pack<E: Element>(values: &[E], k: u32, out: &mut Vec<u8>) {
    assert!((1..=E::BITS).contains(&k), "{k} bits in a lane of {}", E::BITS);
    if k == E::BITS {
        return out.extend_from_slice(bytemuck::cast_slice(values));
    }
    #[cfg(target_arch = "x86_64")]
    let values = &values[blocks::pack(values, k, out)..];
    if k == 1 { pack_bits(values, out) } else { pack_words(values, k, out) }
}

/// Unpacks `out.len()` elements of `k` bits; each comes out below `2^k`.
///
/// # Errors
/// Where `bytes` is not exactly `packed_len(out.len(), k)` long.
///
/// # Panics
/// Where `k` is 0 or wider than the lane.
pub fn unpack<E: Element>(bytes: &[u8], k: u32, out: &mut [E]) -> Result<(), LengthError> {
    assert!((1..=E::BITS).contains(&k), "{k} bits in a lane of {}", E::BITS);
    let expected = packed_len(out.len(), k);
    if bytes.len() != expected {
        return Err(LengthError { expected, found: bytes.len() });
    }
    if k == E::BITS {
        bytemuck::cast_slice_mut(out).copy_from_slice(bytes);
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    let (bytes, out) = {
        let done = blocks::unpack(bytes, k, out);
        (&bytes[packed_len(done, k)..], &mut out[done..])
    };
    if k == 1 {
        unpack_bits(bytes, out)
    } else {
        unpack_words(bytes, k, out)
    }
    Ok(())
}

/// Single bits, 64 to a word.
fn pack_bits<E: Element>(values: &[E], out: &mut Vec<u8>) {
    let (words, rest) = values.as_chunks::<64>();
    let start = out.len();
    out.resize(start + words.len() * 8, 0);
    let packed = out[start..].as_chunks_mut::<8>().0;
    simd::run!(|| {
        for (packed, values) in packed.iter_mut().zip(words) {
            let bits = values.iter().zip(0..).map(|(v, j)| (v.to_u64() & 1) << j);
            *packed = bits.fold(0u64, |word, bit| word | bit).to_le_bytes();
        }
    });
    pack_words(rest, 1, out);
}

/// Single bits, 64 from a word.
fn unpack_bits<E: Element>(bytes: &[u8], out: &mut [E]) {
    let (words, rest) = out.as_chunks_mut::<64>();
    let (packed, rest_packed) = bytes.split_at(words.len() * 8);
    simd::run!(|| {
        for (packed, values) in packed.as_chunks::<8>().0.iter().zip(&mut *words) {
            let word = u64::from_le_bytes(*packed);
            values.iter_mut().zip(0..).for_each(|(v, j)| *v = E::from_u64(word >> j & 1));
        }
    });
    unpack_words(rest_packed, 1, rest);
}

/// Gathers values in a word and writes it when it is full.
fn pack_words<E: Element>(values: &[E], k: u32, out: &mut Vec<u8>) {
    let mut at = out.len();
    out.resize(at + packed_len(values.len(), k), 0);
    let mut word = 0u64;
    let mut bits = 0;
    for value in values {
        let value = value.low(k).to_u64();
        word |= value << bits;
        bits += k;
        if bits >= 64 {
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
            at += 8;
            bits -= 64;
            // What did not fit; nothing where the value ended with the word.
            word = (value >> 1) >> (k - 1 - bits);
        }
    }
    let rest = bits.div_ceil(8) as usize;
    out[at..].copy_from_slice(&word.to_le_bytes()[..rest]);
}

/// Reads each value from the bytes that it touches.
fn unpack_words<E: Element>(bytes: &[u8], k: u32, out: &mut [E]) {
    let mut bit = 0;
    for value in out {
        let from = &bytes[bit / 8..];
        let shift = (bit % 8) as u32;
        *value = E::from_u64(match from.first_chunk::<8>() {
            Some(word) if k + shift <= 64 => u64::from_le_bytes(*word) >> shift,
            _ => {
                let mut window = [0; 16];
                let len = from.len().min(16);
                window[..len].copy_from_slice(&from[..len]);
                (u128::from_le_bytes(window) >> shift) as u64
            }
        })
        .low(k);
        bit += k as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Prg, Seed};

    /// The definition, bit by bit.
    fn naive<E: Element>(values: &[E], k: u32) -> Vec<u8> {
        let mut out = vec![0; packed_len(values.len(), k)];
        for (i, value) in values.iter().enumerate() {
            for b in 0..k as usize {
                let at = i * k as usize + b;
                out[at / 8] |= ((value.to_u64() >> b & 1) as u8) << (at % 8);
            }
        }
        out
    }

    fn check<E: Element>(sizes: &[usize]) {
        for k in 1..=E::BITS {
            for &n in sizes {
                let mut values = vec![E::ZERO; n];
                Prg::new(&Seed::from_bytes([k as u8; 32])).fill(n as u64, 0, &mut values);
                let expected = naive(&values, k);
                let mut packed = vec![0xaa];
                pack(&values, k, &mut packed);
                assert_eq!(packed[0], 0xaa, "appended");
                assert!(packed[1..] == expected, "{n} values of {k} bits in u{}", E::BITS);
                let mut words = vec![];
                pack_words(&values, k, &mut words);
                assert!(words == expected, "{n} values of {k} bits in u{}, by words", E::BITS);
                let low: Vec<E> = values.iter().map(|v| v.low(k)).collect();
                let mut back = vec![E::mask(E::BITS); n];
                assert_eq!(unpack(&packed[1..], k, &mut back), Ok(()));
                assert!(back == low, "{n} values of {k} bits back in u{}", E::BITS);
                back.fill(E::ZERO);
                unpack_words(&packed[1..], k, &mut back);
                assert!(back == low, "{n} values of {k} bits back in u{}, by words", E::BITS);
            }
        }
    }

    #[test]
    fn every_width_goes_there_and_back() {
        let sizes = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 500, 1001];
        check::<u32>(&sizes);
        check::<u64>(&sizes);
    }

    #[test]
    fn the_length_is_exact() {
        assert_eq!(packed_len(0, 17), 0);
        assert_eq!(packed_len(3, 20), 8);
        assert_eq!(packed_len(1 << 60, 7), 7 << 57);
        let mut out = [0u32; 3];
        for found in [0, 7, 9] {
            assert_eq!(unpack(&vec![0; found], 20, &mut out), Err(LengthError { expected: 8, found }));
        }
    }
}
