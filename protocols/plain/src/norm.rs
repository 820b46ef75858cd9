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
