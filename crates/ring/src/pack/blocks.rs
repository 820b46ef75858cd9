//! Packing in blocks, on AVX-512 that permutes bytes (Ice Lake, Zen 4 and later).
//!
//! *Packing.* An item is what stands in a 64-bit lane: a `u64`, or two `u32` moved together. Eight items of `s` bits are
//! `s` whole bytes. Item `i` begins at bit `i * s % 8` of byte `i * s / 8`: it is turned by that bit, and its bytes are put
//! in place; a byte has a part of at most two items, one even and one odd, between which a mask chooses bit by bit.
//! So what is above an item's `s` bits never matters. Values of less than a byte are first gathered to bytes and moved
//! together within each 64-bit lane in three steps, after which that holds whole bytes.
//!
//! *Unpacking.* Each lane takes as many bytes as it has from the first that holds its value on, and, where the value may
//! begin too late in them, as many again; it is shifted down and masked.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::Element;
use crate::simd::Isa;

/// Fewest values for which the tables pay.
const WORTH: usize = 64;
/// Items in a vector.
const ITEMS: usize = 8;
/// Bytes of a vector: what a block's load and store touch, of which some count.
const VECTOR: usize = 64;
/// Widths up to this are packed by way of bytes.
const NARROW: u32 = 7;
/// `a ? b : c`, bit by bit.
const CHOOSE: i32 = 0xca;

/// Values of a vector.
const fn lanes<E>() -> usize {
    VECTOR / size_of::<E>()
}

/// Appends as many values as make whole blocks and says how many.
pub(super) fn pack<E: Element>(values: &[E], k: u32, out: &mut Vec<u8>) -> usize {
    if values.len() < WORTH || !Isa::permutes_bytes() {
        return 0;
    }
    let block = if k <= NARROW { VECTOR } else { lanes::<E>() };
    let count = values.len() / block;
    let bytes = count * block * k as usize / 8;
    out.reserve(bytes + VECTOR);
    // SAFETY: the machine has the instructions; `values` holds `count` blocks; `out` has room for the blocks and for what
    // the last store writes beyond; the blocks are written before they count.
    unsafe {
        let (from, to) = (values.as_ptr(), out.as_mut_ptr().add(out.len()));
        if k <= NARROW {
            pack_narrow(k as usize, count, from, to)
        } else {
            pack_items(k as usize, count, from, to)
        }
        out.set_len(out.len() + bytes);
    }
    count * block
}

/// Unpacks as many values as make whole blocks with room to read and says how many. `bytes` holds all of `out`.
pub(super) fn unpack<E: Element>(bytes: &[u8], k: u32, out: &mut [E]) -> usize {
    if out.len() < WORTH || bytes.len() < VECTOR || !Isa::permutes_bytes() {
        return 0;
    }
    let step = lanes::<E>() * k as usize / 8;
    let readable = (bytes.len() - VECTOR) / step + 1;
    let count = readable.min(out.len() / lanes::<E>());
    // SAFETY: the machine has the instructions; 64 bytes from the start of each of `count` blocks lie within `bytes`, and
    // `out` holds as many blocks of values.
    unsafe {
        let (from, to) = (bytes.as_ptr(), out.as_mut_ptr());
        if k + 7 <= E::BITS {
            unpack_blocks::<E, false>(k as usize, count, from, to);
        } else {
            unpack_blocks::<E, true>(k as usize, count, from, to);
        }
    }
    count * lanes::<E>()
}

/// Blocks of a vector each, of values of 8 bits or more.
///
/// # Safety
/// `from` points to `count` vectors of values, `to` to their packed bytes and 64 writable bytes more.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
unsafe fn pack_items<E: Element>(k: usize, count: usize, from: *const E, to: *mut u8) {
    let s = k * lanes::<E>() / ITEMS;
    let mut turns = [0u64; ITEMS];
    // For even and for odd items, the byte of the turned items that comes to a byte of the block; the bits of even ones.
    let mut bytes = [[0u8; VECTOR]; 2];
    let mut even = [0u8; VECTOR];
    for i in 0..ITEMS {
        turns[i] = (i * s % 8) as u64;
        for at in i * s..(i + 1) * s {
            bytes[i % 2][at / 8] = (8 * i + (at / 8 - i * s / 8) % 8) as u8;
            even[at / 8] |= (1 - (i % 2) as u8) << (at % 8);
        }
    }
    let (low, apart) = (_mm512_set1_epi64(u64::mask(k as u32) as i64), _mm_cvtsi64_si128(32i64.wrapping_sub(k as i64)));
    // SAFETY: the tables are 64 bytes each; the addresses are the caller's.
    unsafe {
        let (turns, chosen) = (vector(&turns), vector(&even));
        let [even, odd] = bytes.each_ref().map(|table| vector(table));
        for block in 0..count {
            let values = _mm512_loadu_si512(from.add(block * lanes::<E>()).cast());
            let items = if E::BITS == 32 {
                _mm512_ternarylogic_epi64::<CHOOSE>(low, values, _mm512_srl_epi64(values, apart))
            } else {
                values
            };
            let items = _mm512_rolv_epi64(items, turns);
            let (even, odd) = (_mm512_permutexvar_epi8(even, items), _mm512_permutexvar_epi8(odd, items));
            let packed = _mm512_ternarylogic_epi64::<CHOOSE>(chosen, even, odd);
            _mm512_storeu_si512(to.add(block * s).cast(), packed);
        }
    }
}

/// Blocks of 64 values of less than 8 bits.
///
/// # Safety
/// `from` points to `count` times 64 values, `to` to their packed bytes and 64 writable bytes more.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
unsafe fn pack_narrow<E: Element>(k: usize, count: usize, from: *const E, to: *mut u8) {
    let low_bytes: [u8; VECTOR] = std::array::from_fn(|i| (i * size_of::<E>()) as u8);
    let whole_bytes: [u8; VECTOR] = std::array::from_fn(|i| (i / k * 8 + i % k) as u8);
    // Distances of neighbours as they move together, and the bits of the lower one in each 64-bit lane.
    let steps = [1, 2, 4].map(|values| {
        let lower = (0..64).filter(|bit| bit % (16 * values) < k * values).fold(0u64, |bits, bit| bits | (1 << bit));
        (_mm_cvtsi64_si128((values * (8 - k)) as i64), _mm512_set1_epi64(lower as i64))
    });
    // SAFETY: the tables are 64 bytes each; the addresses are the caller's.
    unsafe {
        let (low_bytes, whole_bytes) = (vector(&low_bytes), vector(&whole_bytes));
        for block in 0..count {
            let values = from.add(block * VECTOR);
            // The low bytes of the values of two vectors.
            let two = |i: usize| {
                let (first, second) = (values.add(2 * i * lanes::<E>()), values.add((2 * i + 1) * lanes::<E>()));
                let (first, second) = (_mm512_loadu_si512(first.cast()), _mm512_loadu_si512(second.cast()));
                _mm512_permutex2var_epi8(first, low_bytes, second)
            };
            let mut items = if E::BITS == 32 {
                _mm512_inserti64x4::<1>(two(0), _mm512_castsi512_si256(two(1)))
            } else {
                let half = |i: usize| {
                    let (first, second) = (_mm512_castsi512_si128(two(i)), _mm512_castsi512_si128(two(i + 1)));
                    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second)
                };
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(0)), half(2))
            };
            for (apart, lower) in steps {
                items = _mm512_ternarylogic_epi64::<CHOOSE>(lower, items, _mm512_srl_epi64(items, apart));
            }
            _mm512_storeu_si512(to.add(block * 8 * k).cast(), _mm512_permutexvar_epi8(whole_bytes, items));
        }
    }
}

/// Blocks of a vector each; `FAR` where a value's bits may end beyond the lane that begins with its first byte.
///
/// # Safety
/// `from` points to the packed bytes of `count - 1` vectors and 64 bytes more, `to` to `count` vectors of values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
unsafe fn unpack_blocks<E: Element, const FAR: bool>(k: usize, count: usize, from: *const u8, to: *mut E) {
    let lane = size_of::<E>();
    let mut shifts = [E::ZERO; VECTOR];
    let mut bytes = [[0u8; VECTOR]; 2];
    for i in 0..lanes::<E>() {
        shifts[i] = E::from_u64((i * k % 8) as u64);
        for b in 0..lane {
            // Bytes past the block hold nothing of the value: any will do.
            bytes[0][i * lane + b] = (i * k / 8 + b).min(VECTOR - 1) as u8;
            bytes[1][i * lane + b] = (i * k / 8 + lane + b).min(VECTOR - 1) as u8;
        }
    }
    let mask = [E::mask(k as u32); VECTOR];
    // SAFETY: the tables are 64 bytes at least; the addresses are the caller's.
    unsafe {
        let (shifts, mask) = (vector(&shifts), vector(&mask));
        let [near, far] = bytes.each_ref().map(|table| vector(table));
        for block in 0..count {
            let packed = _mm512_loadu_si512(from.add(block * k * lanes::<E>() / 8).cast());
            let low = _mm512_permutexvar_epi8(near, packed);
            let high = _mm512_permutexvar_epi8(far, packed);
            let values = match (E::BITS, FAR) {
                (32, false) => _mm512_srlv_epi32(low, shifts),
                (32, true) => _mm512_shrdv_epi32(low, high, shifts),
                (_, false) => _mm512_srlv_epi64(low, shifts),
                (_, true) => _mm512_shrdv_epi64(low, high, shifts),
            };
            _mm512_storeu_si512(to.add(block * lanes::<E>()).cast(), _mm512_and_si512(values, mask));
        }
    }
}

/// The first 64 bytes of a table.
#[inline]
#[target_feature(enable = "avx512f")]
fn vector<T, const N: usize>(table: &[T; N]) -> __m512i {
    const { assert!(size_of::<[T; N]>() >= VECTOR) };
    // SAFETY: so many bytes there are.
    unsafe { _mm512_loadu_si512(table.as_ptr().cast()) }
}
