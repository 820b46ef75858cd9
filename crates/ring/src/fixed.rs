//! Fixed-point codec: a real `v` is the integer `round(v * 2^f)` modulo `2^k`.
//!
//! Scaling by a power of two is exact in `f64`, so that encoding rounds once and decoding (for `k <= 53`) not at all.
//! What does not fit is refused by the name of its tensor and its position. The value itself may be secret, and no
//! error carries it.

use crate::{Element, simd};

/// What cannot be encoded. All three are the fault of whoever made the tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Not a number.
    #[error("{name}[{position}] is NaN")]
    NotANumber {
        /// Name of the tensor.
        name: String,
        /// Position in its row-major plane.
        position: usize,
    },
    /// Plus or minus infinity.
    #[error("{name}[{position}] is infinite")]
    Infinite {
        /// Name of the tensor.
        name: String,
        /// Position in its row-major plane.
        position: usize,
    },
    /// A finite value outside the signed range of the ring.
    #[error(
        "{name}[{position}] overflows: with {frac_bits} fraction bits it does not fit a signed {ring_bits}-bit ring"
    )]
    Overflow {
        /// Name of the tensor.
        name: String,
        /// Position in its row-major plane.
        position: usize,
        /// Fraction bits of the encoding.
        frac_bits: u32,
        /// Bits of the ring.
        ring_bits: u32,
    },
}

/// Encodes reals as fixed point with `frac_bits` fraction bits in `Z_2^ring_bits`, to nearest (ties to even); the
/// result is reduced to its low `ring_bits`.
///
/// `name` is that of the tensor, for errors alone. `values` are `f32` or `f64`.
///
/// # Errors
/// On the first NaN, infinity, or value whose rounded image lies outside `(-2^(k-1), 2^(k-1))`.
///
/// # Panics
/// Where `ring_bits` is 0 or wider than the lane.
pub fn encode<E: Element>(
    name: &str,
    values: &[impl Into<f64> + Copy],
    frac_bits: u32,
    ring_bits: u32,
) -> Result<Vec<E>, EncodeError> {
    assert!((1..=E::BITS).contains(&ring_bits), "a ring of {ring_bits} bits in a lane of {}", E::BITS);
    let scale = power_of_two(frac_bits as i32);
    let limit = power_of_two(ring_bits as i32 - 1);
    let mut out = vec![E::ZERO; values.len()];
    // No early exit, so that whole vectors are tested and converted; NaN and infinity do not compare below the limit.
    let fit = simd::run!(|| {
        let mut fit = true;
        for (out, &value) in out.iter_mut().zip(values) {
            let scaled = (value.into() * scale).round_ties_even();
            fit &= scaled.abs() < limit;
            *out = E::from_i64(scaled as i64).low(ring_bits);
        }
        fit
    });
    if fit {
        return Ok(out);
    }
    let fits = |value: f64| (value * scale).round_ties_even().abs() < limit;
    match values.iter().map(|&value| value.into()).enumerate().find(|&(_, value)| !fits(value)) {
        Some((position, value)) => Err(refusal(name, position, value, frac_bits, ring_bits)),
        None => Ok(out),
    }
}

/// The error of a value that does not fit.
fn refusal(name: &str, position: usize, value: f64, frac_bits: u32, ring_bits: u32) -> EncodeError {
    let name = name.to_owned();
    if value.is_nan() {
        EncodeError::NotANumber { name, position }
    } else if value.is_infinite() {
        EncodeError::Infinite { name, position }
    } else {
        EncodeError::Overflow { name, position, frac_bits, ring_bits }
    }
}

/// Decodes fixed point with `frac_bits` fraction bits in `Z_2^ring_bits`; bits of the lane above the ring are ignored.
///
/// # Panics
/// Where `ring_bits` is 0 or wider than the lane.
pub fn decode<E: Element>(values: &[E], frac_bits: u32, ring_bits: u32) -> Vec<f64> {
    assert!((1..=E::BITS).contains(&ring_bits), "a ring of {ring_bits} bits in a lane of {}", E::BITS);
    let unit = power_of_two(-(frac_bits as i32));
    simd::run!(|| values.iter().map(|v| v.signed(ring_bits) as f64 * unit).collect())
}

fn power_of_two(exponent: i32) -> f64 {
    2f64.powi(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_and_back() {
        let values = [0.0f32, 1.0, -1.0, 0.49, 0.51, -0.51, 2.1416, -7.9];
        for f in [0, 8, 12] {
            let back = decode(&encode::<u32>("w", &values, f, 20).expect("fits"), f, 20);
            for (v, b) in values.iter().zip(back) {
                assert!((f64::from(*v) - b).abs() <= 0.5 / f64::from(1u32 << f), "{v} {b}");
            }
        }
        assert_eq!(encode::<u32>("w", &[-1.0f64], 4, 12), Ok(vec![0xff0]));
        assert_eq!(encode::<u64>("w", &[-1.0f64], 0, 64), Ok(vec![u64::MAX]));
        assert_eq!(decode(&[0xabc0_0001u32], 0, 8), [1.0], "bits above the ring are ignored");
        assert_eq!(encode::<u32>("w", &[] as &[f32], 4, 12), Ok(vec![]));
    }

    #[test]
    fn refuses_by_name_position_and_kind() {
        let name = || "layer.weight".to_owned();
        let refuse = |v: f64, f, k| encode::<u64>("layer.weight", &[0.0, v], f, k).expect_err("refused");
        assert_eq!(refuse(f64::NAN, 8, 32), EncodeError::NotANumber { name: name(), position: 1 });
        assert_eq!(refuse(f64::NEG_INFINITY, 8, 32), EncodeError::Infinite { name: name(), position: 1 });
        let overflow = |f, k| EncodeError::Overflow { name: name(), position: 1, frac_bits: f, ring_bits: k };
        assert_eq!(refuse(128.0, 8, 16), overflow(8, 16));
        assert_eq!(refuse(-128.0, 8, 16), overflow(8, 16));
        assert_eq!(refuse(127.999, 8, 16), overflow(8, 16), "rounds up to the limit");
        assert_eq!(refuse(9.3e18, 0, 64), overflow(0, 64));
        assert_eq!(refuse(f64::MAX, 63, 64), overflow(63, 64));
        assert!(encode::<u64>("w", &[127.99, -127.99], 8, 16).is_ok());
        assert!(refuse(128.0, 8, 16).to_string().contains("layer.weight[1]"));
    }
}
