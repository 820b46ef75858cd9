//! The two machine lanes that carry ring elements.
//!
//! An element of `Z_2^k` lives in the low `k` bits of a lane (`u32` for `k <= 32`, `u64` for `k <= 64`). Bits above `k`
//! are *unspecified*: sums and products never look at them, and whoever shifts right, compares or packs takes
//! [`Element::low`] first.

use std::fmt::Debug;
use std::ops::{BitAnd, BitOr, BitXor, Not, Shl, Shr};

/// A lane of ring arithmetic: wrapping, constant-time, plain old data.
pub trait Element:
    bytemuck::Pod
    + Default
    + Debug
    + PartialEq
    + Eq
    + Ord
    + Send
    + Sync
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Not<Output = Self>
    + Shl<u32, Output = Self>
    + Shr<u32, Output = Self>
    + crate::matmul::Kernel
{
    /// Width of the lane in bits.
    const BITS: u32;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Sum modulo the lane.
    fn add(self, other: Self) -> Self;
    /// Difference modulo the lane.
    fn sub(self, other: Self) -> Self;
    /// Product modulo the lane.
    fn mul(self, other: Self) -> Self;
    /// Truncates a 64-bit value to the lane.
    fn from_u64(value: u64) -> Self;
    /// Two's complement of a signed value, modulo the lane.
    fn from_i64(value: i64) -> Self {
        Self::from_u64(value as u64)
    }
    /// The lane as an unsigned 64-bit value.
    fn to_u64(self) -> u64;
    /// All ones in the low `k` bits, `0 <= k <= BITS`.
    fn mask(k: u32) -> Self;
    /// The representative in `[0, 2^k)`.
    fn low(self, k: u32) -> Self {
        self & Self::mask(k)
    }
    /// The representative in `[-2^(k-1), 2^(k-1))`.
    fn signed(self, k: u32) -> i64 {
        debug_assert!(k >= 1 && k <= Self::BITS);
        let up = 64 - k;
        ((self.to_u64() << up) as i64) >> up
    }
}

macro_rules! lane {
    ($t:ty) => {
        impl Element for $t {
            const BITS: u32 = <$t>::BITS;
            const ZERO: Self = 0;
            const ONE: Self = 1;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn mask(k: u32) -> Self {
                debug_assert!(k <= <$t>::BITS);
                if k >= <$t>::BITS { <$t>::MAX } else { (1 << k) - 1 }
            }
        }
    };
}
lane!(u32);
lane!(u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn check<E: Element>() {
        for k in 1..=E::BITS {
            let top = 1u64 << (k - 1);
            assert_eq!(E::mask(k).to_u64(), u64::MAX >> (64 - k));
            assert_eq!(E::from_u64(u64::MAX).low(k), E::mask(k));
            assert_eq!(E::from_i64(-1).signed(k), -1);
            assert_eq!(E::from_u64(top).signed(k), (top as i64).wrapping_neg());
            assert_eq!(E::from_u64(top - 1).signed(k), (top - 1) as i64);
        }
        assert_eq!(E::mask(0), E::ZERO);
        let (all, two) = (E::mask(E::BITS), E::ONE.add(E::ONE));
        assert_eq!(all.add(E::ONE), E::ZERO);
        assert_eq!(E::ZERO.sub(E::ONE), all);
        assert_eq!(all.mul(two), all.sub(E::ONE));
        assert_eq!(E::from_i64(-5).to_u64(), 5u64.wrapping_neg() & E::mask(E::BITS).to_u64());
    }

    #[test]
    fn arithmetic_wraps_at_the_lane_and_reads_at_the_ring() {
        check::<u32>();
        check::<u64>();
    }
}
