//! The machine's vectors as the tiles see them: load, broadcast, multiply and add.

use std::arch::asm;
use std::arch::x86_64::*;

/// A vector of lanes in a multiplication tile. All methods compile to a few instructions of the set that the vector
/// stands for, and only inside a function that enables it.
///
/// # Safety
/// Every method needs the instruction set of the vector.
pub(super) trait Vector: Copy {
    /// The lane.
    type Lane: Copy;
    /// A vector of the right operand, made ready for multiplication.
    type Right: Copy;
    /// A running sum of products.
    type Sum: Copy;
    /// Lanes in a vector.
    const LANES: usize;

    /// Reads `LANES` lanes.
    unsafe fn load(from: *const Self::Lane) -> Self;
    /// Writes `LANES` lanes.
    unsafe fn store(self, to: *mut Self::Lane);
    /// One lane, everywhere.
    unsafe fn splat(lane: Self::Lane) -> Self;
    /// Sum modulo the lane.
    unsafe fn plus(self, other: Self) -> Self;
    /// Prepares a vector of the right operand.
    unsafe fn right(self) -> Self::Right;
    /// The empty sum.
    unsafe fn empty() -> Self::Sum;
    /// `sum + self * right` modulo the lane.
    unsafe fn multiply_add(self, right: Self::Right, sum: Self::Sum) -> Self::Sum;
    /// The sum itself.
    unsafe fn total(sum: Self::Sum) -> Self;
    /// [`Vector::multiply_add`] of several rows by several vectors, in an order that suits the machine.
    #[inline(always)]
    unsafe fn multiply_add_block<const WIDTH: usize>(
        left: [Self; BLOCK_ROWS],
        right: &[Self::Right; WIDTH],
        sums: &mut [[Self::Sum; WIDTH]; BLOCK_ROWS],
    ) {
        for (left, sums) in left.into_iter().zip(sums) {
            for (sum, &right) in sums.iter_mut().zip(right) {
                // SAFETY: passed on.
                *sum = unsafe { left.multiply_add(right, *sum) };
            }
        }
    }
}

/// Rows of a block.
pub(super) const BLOCK_ROWS: usize = 4;

/// Has eight products in registers at once. A machine that runs a 512-bit instruction in two halves (Zen 4) loses a third
/// of its rate where products and sums take turns, and nearly nothing where eight products go before their eight sums; left to
/// itself the compiler mixes them.
#[inline]
#[target_feature(enable = "avx512f")]
fn together([mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h]: [__m512i; 8]) -> [__m512i; 8] {
    // SAFETY: no instruction.
    unsafe {
        asm!(
            "/* {} {} {} {} {} {} {} {} */",
            inout(zmm_reg) a, inout(zmm_reg) b, inout(zmm_reg) c, inout(zmm_reg) d,
            inout(zmm_reg) e, inout(zmm_reg) f, inout(zmm_reg) g, inout(zmm_reg) h,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [a, b, c, d, e, f, g, h]
}

/// The block of a vector of AVX-512, one or two vectors wide.
macro_rules! together {
    ($name:ident, $add:ident, $mul:ident) => {
        #[inline(always)]
        unsafe fn multiply_add_block<const WIDTH: usize>(
            left: [Self; BLOCK_ROWS],
            right: &[Self; WIDTH],
            sums: &mut [[Self; WIDTH]; BLOCK_ROWS],
        ) {
            // SAFETY: as above.
            unsafe {
                // Loops alone: what a closure calls is not compiled for the instruction set.
                let mut products = [right[0].0; 2 * BLOCK_ROWS];
                for r in 0..BLOCK_ROWS {
                    for w in 0..WIDTH {
                        products[r * WIDTH + w] = $mul(left[r].0, right[w].0);
                    }
                }
                let products = together(products);
                for r in 0..BLOCK_ROWS {
                    for w in 0..WIDTH {
                        sums[r][w] = $name($add(sums[r][w].0, products[r * WIDTH + w]));
                    }
                }
            }
        }
    };
}

/// Sixteen `u32` in AVX-512.
#[derive(Clone, Copy)]
pub(super) struct U32x16(__m512i);
/// Eight `u64` in AVX-512.
#[derive(Clone, Copy)]
pub(super) struct U64x8(__m512i);
/// Eight `u32` in AVX2.
#[derive(Clone, Copy)]
pub(super) struct U32x8(__m256i);
/// Four `u64` in AVX2.
#[derive(Clone, Copy)]
pub(super) struct U64x4(__m256i);

/// Vectors whose instruction set multiplies the lane.
macro_rules! whole {
    ($name:ident, $lane:ty, $cast:ty, $load:ident, $store:ident, $splat:ident, $add:ident, $mul:ident, $zero:ident
     $(, $block:ident)?) => {
        impl Vector for $name {
            type Lane = $lane;
            type Right = Self;
            type Sum = Self;
            const LANES: usize = size_of::<Self>() / size_of::<$lane>();

            #[inline(always)]
            unsafe fn load(from: *const $lane) -> Self {
                // SAFETY: the caller vouches for the address and the instruction set; likewise below.
                unsafe { $name($load(from.cast())) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $lane) {
                // SAFETY: as above.
                unsafe { $store(to.cast(), self.0) }
            }
            #[inline(always)]
            unsafe fn splat(lane: $lane) -> Self {
                // SAFETY: as above.
                unsafe { $name($splat(lane as $cast)) }
            }
            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { $name($add(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn right(self) -> Self {
                self
            }
            #[inline(always)]
            unsafe fn empty() -> Self {
                // SAFETY: as above.
                unsafe { $name($zero()) }
            }
            #[inline(always)]
            unsafe fn multiply_add(self, right: Self, sum: Self) -> Self {
                // SAFETY: as above.
                unsafe { $name($add(sum.0, $mul(self.0, right.0))) }
            }
            #[inline(always)]
            unsafe fn total(sum: Self) -> Self {
                sum
            }
            $($block!($name, $add, $mul);)?
        }
    };
}
whole!(
    U32x16,
    u32,
    i32,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_set1_epi32,
    _mm512_add_epi32,
    _mm512_mullo_epi32,
    _mm512_setzero_si512,
    together
);
whole!(
    U64x8,
    u64,
    i64,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_set1_epi64,
    _mm512_add_epi64,
    _mm512_mullo_epi64,
    _mm512_setzero_si512,
    together
);
whole!(
    U32x8,
    u32,
    i32,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_set1_epi32,
    _mm256_add_epi32,
    _mm256_mullo_epi32,
    _mm256_setzero_si256
);

/// AVX2 has no 64-bit product: with halves `a = (a1, a0)`, `b = (b1, b0)`, it is `a0 b0 + 2^32 (a0 b1 + a1 b0)`, of which
/// one 64-bit sum gathers the first term and 32-bit sums the other two, side by side.
impl Vector for U64x4 {
    type Lane = u64;
    /// The vector, and with its halves swapped.
    type Right = [__m256i; 2];
    /// The 64-bit sum and the 32-bit sums.
    type Sum = [__m256i; 2];
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        // SAFETY: the caller vouches for the address and the instruction set; likewise below.
        unsafe { U64x4(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn splat(lane: u64) -> Self {
        // SAFETY: as above.
        unsafe { U64x4(_mm256_set1_epi64x(lane as i64)) }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { U64x4(_mm256_add_epi64(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn right(self) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe { [self.0, _mm256_shuffle_epi32::<0b10_11_00_01>(self.0)] }
    }
    #[inline(always)]
    unsafe fn empty() -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, right: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_add_epi64(sum[0], _mm256_mul_epu32(self.0, right[0])),
                _mm256_add_epi32(sum[1], _mm256_mullo_epi32(self.0, right[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn total(sum: [__m256i; 2]) -> Self {
        // SAFETY: as above.
        unsafe {
            let cross = _mm256_add_epi32(sum[1], _mm256_srli_epi64::<32>(sum[1]));
            U64x4(_mm256_add_epi64(sum[0], _mm256_slli_epi64::<32>(cross)))
        }
    }
}
