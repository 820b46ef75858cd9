//! Packing in blocks of eight items, on AVX-512 with byte permutation (Ice Lake, Zen 4 and later).
//!
//! An item is what stands in a 64-bit lane: one value, or two narrow `u32` values side by side. Eight items of `s` bits,
//! `8 <= s <= 57`, are `s` whole bytes. Item `i` begins at bit `i * s % 8` of byte `i * s / 8`: to pack, it is shifted by
//! that bit, and its bytes are put in place; a byte has a part of at most two items, of which one is even and one odd.
//! To unpack, each lane takes the eight bytes from its first on, is shifted back and masked.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::sync::OnceLock;

use crate::Element;
use crate::simd::Isa;

/// Fewest values for which the tables pay.
const WORTH: usize = 64;
/// Items in a vector.
const ITEMS: usize = 8;
/// Bytes of a vector: what a block's load and store touch, of which `s` count.
const VECTOR: usize = 64;

/// How values stand in items.
#[derive(Clone, Copy)]
enum Layout {
    /// One `u64` an item.
    Wide,
    /// One `u32` an item.
    Single,
    /// Two `u32` an item.
    Pair,
}

/// Widths and tables of one packing.
struct Plan {
    layout: Layout,
    /// Bits of a value.
    k: u32,
    /// Bits of an item, bytes of a block.
    s: usize,
    /// Values of a block.
    values: usize,
}

impl Plan {
    /// The plan for these values, where there is one for their width and this machine.
    fn new<E: Element>(n: usize, k: u32) -> Option<Plan> {
        let (layout, s, values) = match (E::BITS, k) {
            (32, 4..=28) => (Layout::Pair, 2 * k as usize, 2 * ITEMS),
            (32, 29..=31) => (Layout::Single, k as usize, ITEMS),
            (64, 8..=57) => (Layout::Wide, k as usize, ITEMS),
            _ => return None,
        };
        (n >= WORTH && available()).then_some(Plan { layout, k, s, values })
    }

    /// First byte of item `i` in its block, and its first bit there.
    fn place(&self, i: usize) -> (usize, usize) {
        (i * self.s / 8, i * self.s % 8)
    }
}

fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| Isa::current() == Isa::Avx512 && is_x86_feature_detected!("avx512vbmi"))
}

/// Appends as many values as make whole blocks and says how many.
pub(super) fn pack<E: Element>(values: &[E], k: u32, out: &mut Vec<u8>) -> usize {
    let Some(plan) = Plan::new::<E>(values.len(), k) else { return 0 };
    let count = values.len() / plan.values;
    out.reserve(count * plan.s + VECTOR);
    // SAFETY: the machine has the instructions; `values` holds `count` blocks; `out` has room for the blocks and for what
    // the last store writes beyond; the blocks are written before they count.
    unsafe {
        pack_blocks(&plan, count, values.as_ptr().cast(), out.as_mut_ptr().add(out.len()));
        out.set_len(out.len() + count * plan.s);
    }
    count * plan.values
}

/// Unpacks as many values as make whole blocks with room to read and says how many. `bytes` holds all of `out`.
pub(super) fn unpack<E: Element>(bytes: &[u8], k: u32, out: &mut [E]) -> usize {
    let Some(plan) = Plan::new::<E>(out.len(), k) else { return 0 };
    let readable = if bytes.len() < VECTOR { 0 } else { (bytes.len() - VECTOR) / plan.s + 1 };
    let count = readable.min(out.len() / plan.values);
    // SAFETY: the machine has the instructions; 64 bytes from the start of each of `count` blocks lie within `bytes`, and
    // `out` holds as many blocks of values.
    unsafe { unpack_blocks(&plan, count, bytes.as_ptr(), out.as_mut_ptr().cast()) };
    count * plan.values
}

/// # Safety
/// `from` points to `count` blocks of values, `to` to `count * s + 64` writable bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn pack_blocks(plan: &Plan, count: usize, from: *const u8, to: *mut u8) {
    let mut shifts = [0u64; ITEMS];
    // For even and for odd items: which byte of the items comes to a byte of the block, and whether one does.
    let mut bytes = [[0u8; VECTOR]; 2];
    let mut present = [0u64; 2];
    for i in 0..ITEMS {
        let (first, bit) = plan.place(i);
        shifts[i] = bit as u64;
        for b in 0..(bit + plan.s).div_ceil(8) {
            bytes[i % 2][first + b] = (8 * i + b) as u8;
            present[i % 2] |= 1 << (first + b);
        }
    }
    let mask = _mm512_set1_epi64(u64::mask(plan.k) as i64);
    let side = _mm_cvtsi32_si128(plan.k as i32);
    // SAFETY: the tables are 64 bytes each; the addresses are the caller's.
    unsafe {
        let shifts = _mm512_loadu_si512(shifts.as_ptr().cast());
        let [even, odd] = [0, 1].map(|i| _mm512_loadu_si512(bytes[i].as_ptr().cast()));
        for block in 0..count {
            let values = from.add(block * value_bytes(plan));
            let items = match plan.layout {
                Layout::Wide => _mm512_and_si512(_mm512_loadu_si512(values.cast()), mask),
                Layout::Single => _mm512_and_si512(_mm512_cvtepu32_epi64(_mm256_loadu_si256(values.cast())), mask),
                Layout::Pair => {
                    let pair = _mm512_loadu_si512(values.cast());
                    let second = _mm512_and_si512(_mm512_srli_epi64::<32>(pair), mask);
                    _mm512_or_si512(_mm512_and_si512(pair, mask), _mm512_sll_epi64(second, side))
                }
            };
            let items = _mm512_sllv_epi64(items, shifts);
            let packed = _mm512_or_si512(
                _mm512_maskz_permutexvar_epi8(present[0], even, items),
                _mm512_maskz_permutexvar_epi8(present[1], odd, items),
            );
            _mm512_storeu_si512(to.add(block * plan.s).cast(), packed);
        }
    }
}

/// # Safety
/// `from` points to `count - 1` blocks of `s` bytes and 64 bytes more, `to` to `count` blocks of values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn unpack_blocks(plan: &Plan, count: usize, from: *const u8, to: *mut u8) {
    let mut shifts = [0u64; ITEMS];
    let mut bytes = [0u8; VECTOR];
    for i in 0..ITEMS {
        let (first, bit) = plan.place(i);
        shifts[i] = bit as u64;
        for b in 0..8 {
            // Bytes past the block hold nothing of the item: any will do.
            bytes[8 * i + b] = (first + b).min(VECTOR - 1) as u8;
        }
    }
    let mask = _mm512_set1_epi64(u64::mask(plan.k) as i64);
    let side = _mm_cvtsi32_si128(plan.k as i32);
    // SAFETY: the tables are 64 bytes each; the addresses are the caller's.
    unsafe {
        let shifts = _mm512_loadu_si512(shifts.as_ptr().cast());
        let bytes = _mm512_loadu_si512(bytes.as_ptr().cast());
        for block in 0..count {
            let packed = _mm512_loadu_si512(from.add(block * plan.s).cast());
            let items = _mm512_srlv_epi64(_mm512_permutexvar_epi8(bytes, packed), shifts);
            let values = to.add(block * value_bytes(plan));
            let first = _mm512_and_si512(items, mask);
            match plan.layout {
                Layout::Wide => _mm512_storeu_si512(values.cast(), first),
                Layout::Single => _mm256_storeu_si256(values.cast(), _mm512_cvtepi64_epi32(first)),
                Layout::Pair => {
                    let second = _mm512_and_si512(_mm512_srl_epi64(items, side), mask);
                    _mm512_storeu_si512(values.cast(), _mm512_or_si512(first, _mm512_slli_epi64::<32>(second)));
                }
            }
        }
    }
}

/// Bytes of the values of a block.
fn value_bytes(plan: &Plan) -> usize {
    match plan.layout {
        Layout::Wide | Layout::Pair => VECTOR,
        Layout::Single => VECTOR / 2,
    }
}
