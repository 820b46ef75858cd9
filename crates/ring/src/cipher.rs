//! AES-128 on many blocks at once.
//!
//! The `aes` crate does the work everywhere; where the machine has VAES on 512-bit vectors, a kernel of our own keeps 32
//! blocks in registers and makes counters, or feeds the input forward, without another pass over memory. Both give the
//! same bytes, in constant time.
#![allow(unsafe_code)]

use aes::Aes128;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 16;
/// Blocks that the portable form makes at a time, so that they stay in the first cache.
const BATCH: usize = 256;

/// An expanded key.
#[derive(Clone)]
pub(crate) struct Cipher {
    portable: Aes128,
    #[cfg(target_arch = "x86_64")]
    wide: Option<vaes::Keys>,
}

impl Cipher {
    pub(crate) fn new(key: &[u8; BLOCK]) -> Cipher {
        Cipher {
            portable: Aes128::new(&Array(*key)),
            #[cfg(target_arch = "x86_64")]
            wide: vaes::Keys::new(key),
        }
    }

    /// Writes `AES(stream || i)` for `i` from `first` on, both numbers as 64-bit big-endian: AES-CTR.
    pub(crate) fn counter_mode(&self, stream: u64, first: u64, out: &mut [[u8; BLOCK]]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(keys) = &self.wide {
            return keys.counter_mode(stream, first, out);
        }
        let mut next = first;
        for batch in out.chunks_mut(BATCH) {
            for block in &mut *batch {
                *block = counter(stream, next);
                next = next.wrapping_add(1);
            }
            self.portable.encrypt_blocks(Array::cast_slice_from_core_mut(batch));
        }
    }

    /// Writes `AES(s) ^ s` for each `s` of `input` without its lowest bit: Matyas-Meyer-Oseas under a fixed key.
    ///
    /// # Panics
    /// Where `out` is not as long as `input`.
    pub(crate) fn feed_forward(&self, input: &[u128], out: &mut [u128]) {
        assert_eq!(input.len(), out.len(), "a block out for a block in");
        #[cfg(target_arch = "x86_64")]
        if let Some(keys) = &self.wide {
            return keys.feed_forward(input, out);
        }
        for (input, out) in input.chunks(BATCH).zip(out.chunks_mut(BATCH)) {
            let mut blocks = [[0; BLOCK]; BATCH];
            let blocks = &mut blocks[..input.len()];
            blocks.iter_mut().zip(input).for_each(|(block, s)| *block = (s & !1).to_le_bytes());
            self.portable.encrypt_blocks(Array::cast_slice_from_core_mut(blocks));
            for ((out, block), s) in out.iter_mut().zip(blocks).zip(input) {
                *out = u128::from_le_bytes(*block) ^ (s & !1);
            }
        }
    }
}

fn counter(stream: u64, i: u64) -> [u8; BLOCK] {
    ((u128::from(stream) << 64) | u128::from(i)).to_be_bytes()
}

#[cfg(target_arch = "x86_64")]
mod vaes {
    use std::arch::x86_64::*;
    use std::sync::OnceLock;

    use zeroize::{Zeroize, ZeroizeOnDrop};

    use super::BLOCK;
    use crate::simd::Isa;

    /// Blocks in a vector.
    const LANES: usize = 4;
    /// Vectors in flight: the latency of a round times its throughput on Zen 5.
    const FLIGHT: usize = 8;
    /// Round keys of AES-128.
    const KEYS: usize = 11;

    /// Round keys, on a machine that has the instructions.
    #[derive(Clone, Zeroize, ZeroizeOnDrop)]
    pub(super) struct Keys([[u8; BLOCK]; KEYS]);

    fn available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            Isa::current() == Isa::Avx512 && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("aes")
        })
    }

    impl Keys {
        /// Expands a key, where the machine has the instructions.
        pub(super) fn new(key: &[u8; BLOCK]) -> Option<Keys> {
            // SAFETY: the machine has the instructions.
            available().then(|| unsafe { expand(key) })
        }

        pub(super) fn counter_mode(&self, stream: u64, first: u64, out: &mut [[u8; BLOCK]]) {
            // SAFETY: `Keys` are made only on a machine that has the instructions.
            unsafe { counter_mode(self, stream, first, out) }
        }

        pub(super) fn feed_forward(&self, input: &[u128], out: &mut [u128]) {
            // SAFETY: as above.
            unsafe { feed_forward(self, input, out) }
        }
    }

    #[target_feature(enable = "aes,sse2")]
    fn expand(key: &[u8; BLOCK]) -> Keys {
        let mut keys = [[0; BLOCK]; KEYS];
        keys[0] = *key;
        // SAFETY: sixteen bytes on either side.
        let mut last = unsafe { _mm_loadu_si128(key.as_ptr().cast()) };
        macro_rules! round {
            ($($round:literal $constant:literal),*) => {$(
                let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(last));
                last = _mm_xor_si128(last, _mm_slli_si128::<4>(last));
                last = _mm_xor_si128(last, _mm_slli_si128::<8>(last));
                last = _mm_xor_si128(last, word);
                // SAFETY: sixteen bytes on either side.
                unsafe { _mm_storeu_si128(keys[$round].as_mut_ptr().cast(), last) };
            )*};
        }
        round!(1 0x01, 2 0x02, 3 0x04, 4 0x08, 5 0x10, 6 0x20, 7 0x40, 8 0x80, 9 0x1b, 10 0x36);
        Keys(keys)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes")]
    fn broadcast(keys: &Keys) -> [__m512i; KEYS] {
        let mut out = [_mm512_setzero_si512(); KEYS];
        for (out, key) in out.iter_mut().zip(&keys.0) {
            // SAFETY: a key has sixteen bytes.
            *out = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(key.as_ptr().cast()) });
        }
        out
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes")]
    fn encrypt<const N: usize>(keys: &[__m512i; KEYS], mut x: [__m512i; N]) -> [__m512i; N] {
        for x in &mut x {
            *x = _mm512_xor_si512(*x, keys[0]);
        }
        for key in &keys[1..KEYS - 1] {
            for x in &mut x {
                *x = _mm512_aesenc_epi128(*x, *key);
            }
        }
        for x in &mut x {
            *x = _mm512_aesenclast_epi128(*x, keys[KEYS - 1]);
        }
        x
    }

    /// Blocks that fill vectors first; the rest comes out of a last vector of its own.
    #[target_feature(enable = "avx512f,avx512bw,vaes")]
    fn counter_mode(keys: &Keys, stream: u64, first: u64, out: &mut [[u8; BLOCK]]) {
        let keys = broadcast(keys);
        let reverse = _mm512_broadcast_i32x4(_mm_set_epi8(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
        let step = _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0);
        let s = stream as i64;
        let at = |i: u64| first.wrapping_add(i) as i64;
        let mut next = _mm512_set_epi64(at(3), s, at(2), s, at(1), s, at(0), s);
        let mut flights = out.chunks_exact_mut(FLIGHT * LANES);
        for flight in &mut flights {
            let mut x = [next; FLIGHT];
            for x in &mut x {
                *x = _mm512_shuffle_epi8(next, reverse);
                next = _mm512_add_epi64(next, step);
            }
            for (i, x) in encrypt(&keys, x).into_iter().enumerate() {
                // SAFETY: the flight has `FLIGHT` times four blocks.
                unsafe { _mm512_storeu_si512(flight.as_mut_ptr().add(i * LANES).cast(), x) };
            }
        }
        for rest in flights.into_remainder().chunks_mut(LANES) {
            let [x] = encrypt(&keys, [_mm512_shuffle_epi8(next, reverse)]);
            next = _mm512_add_epi64(next, step);
            let mut blocks = [[0; BLOCK]; LANES];
            // SAFETY: four blocks.
            unsafe { _mm512_storeu_si512(blocks.as_mut_ptr().cast(), x) };
            rest.copy_from_slice(&blocks[..rest.len()]);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,vaes")]
    fn feed_forward(keys: &Keys, input: &[u128], out: &mut [u128]) {
        let keys = broadcast(keys);
        let seed = _mm512_set_epi64(-1, -2, -1, -2, -1, -2, -1, -2);
        let mut inputs = input.chunks_exact(FLIGHT * LANES);
        let mut outs = out.chunks_exact_mut(FLIGHT * LANES);
        for (input, out) in (&mut inputs).zip(&mut outs) {
            let mut x = [seed; FLIGHT];
            for (i, x) in x.iter_mut().enumerate() {
                // SAFETY: the flight has `FLIGHT` times four blocks.
                let s = unsafe { _mm512_loadu_si512(input.as_ptr().add(i * LANES).cast()) };
                *x = _mm512_and_si512(s, seed);
            }
            for (i, (x, s)) in encrypt(&keys, x).into_iter().zip(x).enumerate() {
                let sum = _mm512_xor_si512(x, s);
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(i * LANES).cast(), sum) };
            }
        }
        for (input, out) in inputs.remainder().chunks(LANES).zip(outs.into_remainder().chunks_mut(LANES)) {
            let mut blocks = [0u128; LANES];
            blocks[..input.len()].copy_from_slice(input);
            // SAFETY: four blocks.
            let s = _mm512_and_si512(unsafe { _mm512_loadu_si512(blocks.as_ptr().cast()) }, seed);
            let [x] = encrypt(&keys, [s]);
            // SAFETY: four blocks.
            unsafe { _mm512_storeu_si512(blocks.as_mut_ptr().cast(), _mm512_xor_si512(x, s)) };
            out.copy_from_slice(&blocks[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portable() -> Cipher {
        let mut cipher = Cipher::new(b"a key of a block");
        #[cfg(target_arch = "x86_64")]
        (cipher.wide = None);
        cipher
    }

    #[test]
    fn both_forms_agree_on_every_length() {
        let fast = Cipher::new(b"a key of a block");
        for len in (0..70).chain([255, 256, 257, 700]) {
            for first in [0, 77, u64::MAX - 20] {
                let mut a = vec![[0; BLOCK]; len];
                let mut b = a.clone();
                fast.counter_mode(0x0102_0304_0506_0708, first, &mut a);
                portable().counter_mode(0x0102_0304_0506_0708, first, &mut b);
                assert!(a == b, "{len} counters from {first}");
            }
            let input: Vec<u128> = (0..len as u128).map(|i| i * 0x0123_4567_89ab_cdef_0011_2233_4455_6677).collect();
            let mut a = vec![0; len];
            let mut b = vec![0; len];
            fast.feed_forward(&input, &mut a);
            portable().feed_forward(&input, &mut b);
            assert!(a == b, "{len} inputs");
        }
    }

    /// FIPS 197, appendix B.
    #[test]
    fn agrees_with_the_standard() {
        let key = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3cu128.to_be_bytes();
        let mut out = [[0; BLOCK]];
        Cipher::new(&key).counter_mode(0x3243_f6a8_885a_308d, 0x3131_98a2_e037_0734, &mut out);
        assert_eq!(u128::from_be_bytes(out[0]), 0x3925_841d_02dc_09fb_dc11_8597_196a_0b32);
    }
}
