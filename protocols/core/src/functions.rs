//! Sine, cosine, powers of two and logarithms that give the same bits on every machine.
//!
//! Both evaluators multiply their halves by public factors that each computes alone, so the two must agree to the last
//! bit. The functions of a C library do not promise that; these use the four operations only, which IEEE 754
//! fixes, without branches, tables or fused operations, and are exact to about 1e-13.

use std::f64::consts::PI;

/// Added and taken away again, it rounds to an integer (ties to even) any `|x| < 2^51`.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// The nearest integer, for `|x| < 2^51`.
#[inline(always)]
pub fn round(x: f64) -> i64 {
    ((x + ROUND).to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64)
}

/// `(cos, sin)` of `turns` full turns, `|turns| < 2^40`.
#[inline(always)]
pub fn cos_sin_turns(turns: f64) -> (f64, f64) {
    let whole = (turns + ROUND) - ROUND;
    // Half the angle, within a quarter turn; doubled at the end.
    let half = (turns - whole) * PI;
    let q = half * half;
    let sine = half * series(q, &SINE);
    let cosine = series(q, &COSINE);
    (1.0 - 2.0 * sine * sine, 2.0 * sine * cosine)
}

/// Cosine and sine of `position` times each of `rates`, in radians, as integers at scale `frac`: what rotary positions multiply by.
pub fn rotation(rates: &[f64], position: usize, frac: u32) -> Vec<(i64, i64)> {
    let unit = f64::from(1u32 << frac);
    let turn = |rate: &f64| cos_sin_turns(position as f64 * (rate / std::f64::consts::TAU));
    rates.iter().map(turn).map(|(c, s)| (round(c * unit), round(s * unit))).collect()
}

/// `2^x` for `|x| < 1000`.
#[inline(always)]
pub fn exp2(x: f64) -> f64 {
    let shifted = x + ROUND;
    let whole = shifted - ROUND;
    let fraction = (x - whole) * std::f64::consts::LN_2;
    let exponent = (shifted.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
    let power = f64::from_bits(((exponent + 1023) as u64) << 52);
    power * series(fraction, &EXPONENTIAL)
}

/// The natural logarithm of a normal `x > 0`; near 1 its error is relative to the result.
#[inline(always)]
pub fn ln(x: f64) -> f64 {
    /// What the mantissa starts from: the root of one half.
    const FROM: u64 = 0x3fe6_a09e_667f_3bcd;
    let exponent = x.to_bits().wrapping_sub(FROM) as i64 >> 52;
    let mantissa = f64::from_bits(x.to_bits().wrapping_sub((exponent as u64) << 52));
    let exponent = f64::from_bits(ROUND.to_bits().wrapping_add(exponent as u64)) - ROUND;
    // ln m = 2 artanh z
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    exponent * std::f64::consts::LN_2 + 2.0 * z * series(z * z, &ARTANH)
}

#[inline(always)]
fn series<const N: usize>(x: f64, coefficients: &[f64; N]) -> f64 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum * x + coefficients[i];
    }
    sum
}

const fn inverse_factorials<const N: usize>(first: u32, step: u32, alternate: bool) -> [f64; N] {
    let mut out = [0.0; N];
    let mut i = 0;
    while i < N {
        let (mut product, mut k) = (1.0, 1);
        while k <= first + step * i as u32 {
            product *= k as f64;
            k += 1;
        }
        out[i] = if alternate && i % 2 == 1 { -1.0 / product } else { 1.0 / product };
        i += 1;
    }
    out
}

const SINE: [f64; 10] = inverse_factorials(1, 2, true);
const COSINE: [f64; 10] = inverse_factorials(0, 2, true);
const EXPONENTIAL: [f64; 13] = inverse_factorials(0, 1, false);
const ARTANH: [f64; 11] = {
    let mut out = [0.0; 11];
    let mut i = 0;
    while i < 11 {
        out[i] = 1.0 / (2 * i + 1) as f64;
        i += 1;
    }
    out
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_agree_with_the_library() {
        for i in -400..400 {
            let x = (f64::from(i) / 3.7).exp2();
            assert!((ln(x) - x.ln()).abs() < 1e-13 * x.ln().abs().max(1.0), "{x}");
            let near = 1.0 - (f64::from(-(i & 63)) - 1.0).exp2().min(0.25);
            assert!((ln(near) / near.ln() - 1.0).abs() < 1e-13 || near == 1.0, "{near}");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn rotations_are_rounded_once() {
        let rates = [1.0, 1e-2, 1e-4];
        for position in [0, 1, 77, 4095, 100_000] {
            for (&(c, s), rate) in rotation(&rates, position, 14).iter().zip(rates) {
                let angle = position as f64 * rate;
                let near = |got: i64, exact: f64| (got as f64 - exact * 16384.0).abs() < 0.5 + 1e-5;
                assert!(near(c, angle.cos()) && near(s, angle.sin()), "{angle}");
            }
        }
    }

    #[test]
    fn agree_with_the_library() {
        for i in -4000..4000 {
            let x = f64::from(i) / 1000.0;
            let (c, s) = cos_sin_turns(x);
            assert!((c - (2.0 * PI * x).cos()).abs() < 1e-11 && (s - (2.0 * PI * x).sin()).abs() < 1e-11, "{x}");
            let y = x * 10.0;
            assert!((exp2(y) / y.exp2() - 1.0).abs() < 1e-12, "{y}");
            assert_eq!(round(y), y.round_ties_even() as i64, "{y}");
        }
    }
}
