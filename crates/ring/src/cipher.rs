//! AES-128 on many blocks at once.
//!
//! The `aes` crate does the work everywhere; where the machine has VAES on 512-bit vectors, a kernel of our own keeps 32
//! blocks in registers and makes counters and combines the result with what is there, or feeds the input forward, without
//! another pass over memory. Both give the same bytes, in constant time.
#![allow(unsafe_code)]

use aes::Aes128;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 16;
/// Blocks that the portable form makes at a time, so that they stay in the first cache.
const BATCH: usize = 256;

/// What becomes of the bytes that counter mode makes, where `out` has something of as many bytes. Lanes are little-endian.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    /// They are written over it.
    Write,
    /// Their low bits are, of each 32-bit lane those in this mask.
    Low32(u32),
    /// Likewise of each 64-bit lane.
    Low64(u64),
    /// Exclusive or.
    Xor,
    /// Added to it, in 32-bit lanes.
    Add32,
    /// Added to it, in 64-bit lanes.
    Add64,
    /// Taken from it, in 32-bit lanes.
    Subtract32,
    /// Taken from it, in 64-bit lanes.
    Subtract64,
}

impl Use {
    /// Combines whole lanes.
    #[inline(always)]
    pub(crate) fn apply(self, made: &[u8], out: &mut [u8]) {
        fn lanes<const N: usize>(made: &[u8], out: &mut [u8], f: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
            let (out, made) = (out.as_chunks_mut::<N>().0, made.as_chunks::<N>().0);
            out.iter_mut().zip(made).for_each(|(out, made)| *out = f(*out, *made));
        }
        let narrow = |f: fn(u32, u32) -> u32| move |a, b| f(u32::from_le_bytes(a), u32::from_le_bytes(b)).to_le_bytes();
        let wide = |f: fn(u64, u64) -> u64| move |a, b| f(u64::from_le_bytes(a), u64::from_le_bytes(b)).to_le_bytes();
        match self {
            Use::Write => out.copy_from_slice(made),
            Use::Low32(mask) => lanes(made, out, |_, b| (u32::from_le_bytes(b) & mask).to_le_bytes()),
            Use::Low64(mask) => lanes(made, out, |_, b| (u64::from_le_bytes(b) & mask).to_le_bytes()),
            Use::Xor => out.iter_mut().zip(made).for_each(|(a, b)| *a ^= b),
            Use::Add32 => lanes(made, out, narrow(u32::wrapping_add)),
            Use::Add64 => lanes(made, out, wide(u64::wrapping_add)),
            Use::Subtract32 => lanes(made, out, narrow(u32::wrapping_sub)),
            Use::Subtract64 => lanes(made, out, wide(u64::wrapping_sub)),
        }
    }
}

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

    /// Makes `AES(stream || i)` for `i` from `first` on, both numbers as 64-bit big-endian (AES-CTR), and puts it to use.
    pub(crate) fn counter_mode(&self, stream: u64, first: u64, out: &mut [[u8; BLOCK]], to: Use) {
        #[cfg(target_arch = "x86_64")]
        if let Some(keys) = &self.wide {
            return keys.counter_mode(stream, first, out, to);
        }
        let (mut next, mut made) = (first, [[0; BLOCK]; BATCH]);
        for batch in out.chunks_mut(BATCH) {
            let made = &mut made[..batch.len()];
            for block in &mut *made {
                *block = counter(stream, next);
                next = next.wrapping_add(1);
            }
            self.portable.encrypt_blocks(Array::cast_slice_from_core_mut(made));
            crate::simd::run!(|| to.apply(made.as_flattened(), batch.as_flattened_mut()));
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

    use super::{BLOCK, Use};
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

        pub(super) fn counter_mode(&self, stream: u64, first: u64, out: &mut [[u8; BLOCK]], to: Use) {
            // SAFETY: `Keys` are made only on a machine that has the instructions.
            unsafe { counter_mode(self, stream, first, out, to) }
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

    #[target_feature(enable = "avx512f,avx512bw,vaes")]
    fn counter_mode(keys: &Keys, stream: u64, first: u64, out: &mut [[u8; BLOCK]], to: Use) {
        match to {
            Use::Write => counters(keys, stream, first, out, |_, made| made),
            Use::Low32(mask) => {
                let mask = _mm512_set1_epi32(mask as i32);
                counters(keys, stream, first, out, |_, made| _mm512_and_si512(made, mask));
            }
            Use::Low64(mask) => {
                let mask = _mm512_set1_epi64(mask as i64);
                counters(keys, stream, first, out, |_, made| _mm512_and_si512(made, mask));
            }
            Use::Xor => counters(keys, stream, first, out, |old, made| _mm512_xor_si512(old, made)),
            Use::Add32 => counters(keys, stream, first, out, |old, made| _mm512_add_epi32(old, made)),
            Use::Add64 => counters(keys, stream, first, out, |old, made| _mm512_add_epi64(old, made)),
            Use::Subtract32 => counters(keys, stream, first, out, |old, made| _mm512_sub_epi32(old, made)),
            Use::Subtract64 => counters(keys, stream, first, out, |old, made| _mm512_sub_epi64(old, made)),
        }
    }

    /// Blocks that fill vectors first; the rest comes out of last vectors of its own. `to` gets what is there and what is
    /// made; where it does not look at the former, it is not read.
    #[target_feature(enable = "avx512f,avx512bw,vaes")]
    fn counters(
        keys: &Keys,
        stream: u64,
        first: u64,
        out: &mut [[u8; BLOCK]],
        to: impl Fn(__m512i, __m512i) -> __m512i,
    ) {
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
                unsafe {
                    let at = flight.as_mut_ptr().add(i * LANES).cast();
                    _mm512_storeu_si512(at, to(_mm512_loadu_si512(at.cast_const()), x));
                }
            }
        }
        for rest in flights.into_remainder().chunks_mut(LANES) {
            let [x] = encrypt(&keys, [_mm512_shuffle_epi8(next, reverse)]);
            next = _mm512_add_epi64(next, step);
            let mut blocks = [[0; BLOCK]; LANES];
            blocks[..rest.len()].copy_from_slice(rest);
            // SAFETY: four blocks.
            unsafe {
                let at = blocks.as_mut_ptr().cast();
                _mm512_storeu_si512(at, to(_mm512_loadu_si512(at.cast_const()), x));
            }
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
                fast.counter_mode(0x0102_0304_0506_0708, first, &mut a, Use::Write);
                portable().counter_mode(0x0102_0304_0506_0708, first, &mut b, Use::Write);
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

    #[test]
    fn every_use_is_what_it_says_in_both_forms() {
        let lanes32 = |f: fn(u32, u32) -> u32| {
            move |a: u64, b: u64| {
                u64::from(f(a as u32, b as u32)) | u64::from(f((a >> 32) as u32, (b >> 32) as u32)) << 32
            }
        };
        type Lane = Box<dyn Fn(u64, u64) -> u64>;
        let uses: [(Use, Lane); 8] = [
            (Use::Write, Box::new(|_, b| b)),
            (Use::Low32(0xfff), Box::new(|_, b| b & 0x0000_0fff_0000_0fff)),
            (Use::Low64(0x3_ffff_ffff_ffff), Box::new(|_, b| b & 0x3_ffff_ffff_ffff)),
            (Use::Xor, Box::new(|a, b| a ^ b)),
            (Use::Add32, Box::new(lanes32(u32::wrapping_add))),
            (Use::Add64, Box::new(u64::wrapping_add)),
            (Use::Subtract32, Box::new(lanes32(u32::wrapping_sub))),
            (Use::Subtract64, Box::new(u64::wrapping_sub)),
        ];
        let fast = Cipher::new(b"a key of a block");
        for len in [1, 3, 4, 5, 31, 32, 33, 75, 300] {
            let there: Vec<[u8; BLOCK]> = (0..len).map(|i| counter(i * 0x9e37_79b9_7f4a_7c15, !i)).collect();
            let mut made = vec![[0; BLOCK]; len as usize];
            portable().counter_mode(5, 6, &mut made, Use::Write);
            for (to, lane) in &uses {
                let half = |block: &[u8; BLOCK], i: usize| u64::from_le_bytes(block.as_chunks().0[i]);
                let pairs = there.iter().zip(&made).map(|(a, b)| [0, 1].map(|i| lane(half(a, i), half(b, i))));
                let expected: Vec<[u64; 2]> = pairs.collect();
                for cipher in [&fast, &portable()] {
                    let mut out = there.clone();
                    cipher.counter_mode(5, 6, &mut out, *to);
                    let out: Vec<[u64; 2]> = out.iter().map(|block| [0, 1].map(|i| half(block, i))).collect();
                    assert!(out == expected, "{to:?} of {len} blocks");
                }
            }
        }
    }

    /// FIPS 197, appendix B.
    #[test]
    fn agrees_with_the_standard() {
        let key = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3cu128.to_be_bytes();
        let mut out = [[0; BLOCK]];
        Cipher::new(&key).counter_mode(0x3243_f6a8_885a_308d, 0x3131_98a2_e037_0734, &mut out, Use::Write);
        assert_eq!(u128::from_be_bytes(out[0]), 0x3925_841d_02dc_09fb_dc11_8597_196a_0b32);
    }
}
