//! LayerNorm and RMSNorm, and the inverse root in them.

use tercet_core::spec::{InverseSpec, NormSpec};

use crate::value::{self, Value, wrap};

/// LayerNorm of the rows of a matrix, or RMSNorm, which has no bias.
pub(crate) fn normalized(x: &Value, gain: &[i64], bias: Option<&[i64]>, spec: &NormSpec) -> Value {
    let width = x.cols() as i64;
    let (square_ring, ring) = (spec.square_ring(), spec.ring + spec.truncate);
    let mut products = Vec::with_capacity(x.data().len());
    for row in x.data().chunks(x.cols().max(1)) {
        let sum = row.iter().fold(0i64, |s, &v| s.wrapping_add(v));
        let centred = |&v: &i64| {
            let d = if spec.centred { v.wrapping_mul(width).wrapping_sub(sum) } else { v };
            wrap(d, spec.extended)
        };
        let d: Vec<i64> = row.iter().map(centred).collect();
        let square = |s: i64, &d: &i64| {
            let d = value::truncate(d, spec.square_shift, square_ring);
            s.wrapping_add(d.wrapping_mul(d))
        };
        let v = wrap(d.iter().fold(0, square), square_ring).wrapping_add(spec.epsilon);
        let root = inverse(value::truncate(v, spec.v_shift, square_ring - spec.v_shift), &spec.inverse);
        let scaled = |(&d, &gain): (&i64, &i64)| {
            let d = value::truncate(d, spec.shift, spec.extended - spec.shift);
            value::truncate(d.wrapping_mul(gain), spec.scaled_truncate, spec.scaled_ring)
        };
        products.extend(d.iter().zip(gain).map(scaled).map(|scaled| scaled.wrapping_mul(root)));
    }
    let product = Value::new(x.rows(), x.cols(), ring, products);
    let product = if let Some(bias) = bias { product.with_row(bias, i64::wrapping_add) } else { product };
    product.truncate(spec.truncate, spec.ring)
}

/// `v^-power` by its lines.
pub(crate) fn inverse(v: i64, spec: &InverseSpec) -> i64 {
    value::truncate(wrap(spec.segments.at(v), spec.ring), spec.truncate, spec.ring_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_with_mean_zero_and_length_one() {
        let (width, gain_frac) = (64, 12);
        let x: Vec<i64> = (0..2 * width).map(|i| ((i * 7919) % 2003) as i64 * 3 + 5000).collect();
        // The deviation is near 1730: d at scale 2^3 of x, the scaled row at 2^5, coarse d at 2^-3; v near 2^22.
        let mut spec = NormSpec {
            centred: true,
            extended: 48,
            shift: 3,
            gain_frac,
            scaled_truncate: 10,
            scaled_ring: 24,
            square_shift: 9,
            epsilon: 1,
            v_shift: 6,
            inverse: InverseSpec::new(0.5, 12, 22, 20, 64, 46, 25),
            truncate: 0,
            ring: 27,
        };
        spec.truncate = (spec.product_frac(width) - 10) as u32;
        let gain = vec![(NormSpec::gain_factor(width) * f64::from(1u32 << gain_frac)).round() as i64; width];
        let bias = vec![1 << (10 + spec.truncate); width];
        let got = normalized(&Value::new(2, width, 32, x.clone()), &gain, Some(&bias), &spec);
        for (got, x) in got.data().chunks(width).zip(x.chunks(width)) {
            let mean = x.iter().sum::<i64>() as f64 / width as f64;
            let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / width as f64;
            for (got, x) in got.iter().zip(x) {
                let exact = (*x as f64 - mean) / variance.sqrt() + 1.0;
                assert!((*got as f64 / 1024.0 - exact).abs() < 2e-3);
            }
        }
    }
}
