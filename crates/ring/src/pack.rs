//! Bit packing: `n` elements of `Z_2^k` in exactly `ceil(n * k / 8)` bytes.
//!
//! Element `i` takes bits `[i * k, (i + 1) * k)` of the plane, bit `b` of the plane being bit `b % 8` of byte `b / 8`
//! (little-endian throughout). The bits after the last element are zero.

use crate::Element;

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
    let mut held: u128 = 0;
    let mut bits = 0;
    out.reserve(packed_len(values.len(), k));
    for v in values {
        held |= u128::from(v.low(k).to_u64()) << bits;
        bits += k;
        while bits >= 8 {
            out.push(held as u8);
            held >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        out.push(held as u8);
    }
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
    let mut held: u128 = 0;
    let mut bits = 0;
    let mut next = bytes.iter();
    for v in out {
        while bits < k {
            held |= u128::from(next.next().copied().unwrap_or(0)) << bits;
            bits += 8;
        }
        *v = E::from_u64(held as u64).low(k);
        held >>= k;
        bits -= k;
    }
    Ok(())
}
