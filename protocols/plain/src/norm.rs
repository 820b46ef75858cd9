//! LayerNorm and the inverse root in it.

use tercet_core::spec::{InverseSpec, NormSpec};

use crate::value::{self, Value, wrap};

/// LayerNorm of the rows of a wide matrix.
pub(crate) fn layer_norm(x: &Value, gain: &[i64], bias: &[i64], spec: &NormSpec) -> Value {
    let width = x.cols() as i64;
    let unit_ring = spec.unit_ring + spec.unit_truncate;
    let ring = spec.ring + spec.truncate;
    let mut units = Vec::with_capacity(x.data().len());
    for row in x.data().chunks(x.cols().max(1)) {
        let sum = row.iter().fold(0i64, |s, &v| s.wrapping_add(v));
        let centred = |&v: &i64| wrap(v.wrapping_mul(width).wrapping_sub(sum), x.ring());
        let d: Vec<i64> = row.iter().map(|v| value::truncate(centred(v), spec.shift, x.ring() - spec.shift)).collect();
        let v = d.iter().fold(0i64, |s, &d| s.wrapping_add(d.wrapping_mul(d))).wrapping_add(spec.epsilon);
        let root = inverse(wrap(value::truncate(v, spec.v_shift, 64 - spec.v_shift), spec.inverse.ring), &spec.inverse);
        units.extend(
            d.iter()
                .map(|&d| value::truncate(wrap(d.wrapping_mul(root), unit_ring), spec.unit_truncate, spec.unit_ring)),
        );
    }
    let unit = Value::new(x.rows(), x.cols(), ring, units);
    unit.with_row(gain, i64::wrapping_mul).with_row(bias, i64::wrapping_add).truncate(spec.truncate, spec.ring)
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
        let (width, gain_frac, unit_frac) = (64, 10, 16);
        let x: Vec<i64> = (0..2 * width).map(|i| ((i * 7919) % 2003) as i64 * 3 + 5000).collect();
        let spec = NormSpec {
            shift: 4,
            epsilon: 1,
            v_shift: 8,
            inverse: InverseSpec::new(0.5, 12, 34, 20, 56, 26, 28),
            unit_truncate: 32 - unit_frac,
            unit_ring: 48,
            unit_frac,
            gain_frac,
            truncate: 16,
            ring: 32,
        };
        let (gain, bias) = (vec![8 << gain_frac; width], vec![1 << (unit_frac + gain_frac); width]);
        let got = layer_norm(&Value::new(2, width, 32, x.clone()), &gain, &bias, &spec);
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
