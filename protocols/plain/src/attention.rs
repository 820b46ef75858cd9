//! Softmax attention: `2^(q k - max) v / sum`, normalised after the product with the values.

use tercet_core::functions::{exp2, round};
use tercet_core::spec::{AttentionSpec, EXP_LOG2_RANGE};

use crate::norm::inverse;
use crate::value::{Value, wrap};

/// Attention within inputs of `rows` rows of `qkv: [batch * rows, 3 * width]`, at scale `frac`. `key_bias`: `[batch, rows]`.
pub(crate) fn attention(
    qkv: &Value,
    key_bias: &[i64],
    rows: usize,
    heads: usize,
    frac: u32,
    spec: &AttentionSpec,
) -> Value {
    let model = qkv.cols() / 3;
    let width = model / heads;
    let mut out = vec![0; qkv.rows() * model];
    for (input, key_bias) in key_bias.chunks(rows).enumerate() {
        for head in 0..heads {
            let part = |i: usize| qkv.block(input * rows, rows, i * model + head * width, width);
            let result = attend([part(0), part(1), part(2)], key_bias, frac, spec);
            for row in 0..rows {
                let at = (input * rows + row) * model + head * width;
                out[at..at + width].copy_from_slice(result.row(row));
            }
        }
    }
    Value::new(qkv.rows(), model, spec.ring, out)
}

/// One head of one input.
fn attend([queries, keys, values]: [Value; 3], key_bias: &[i64], frac: u32, spec: &AttentionSpec) -> Value {
    let rows = queries.rows();
    let scores = queries.product(keys.transpose().data(), rows, spec.score_ring + frac);
    let scores = scores.truncate(frac, spec.score_ring).with_row(key_bias, i64::wrapping_add);
    let mut weights = Vec::with_capacity(rows * rows);
    for row in scores.data().chunks(rows) {
        let largest = row.iter().copied().max().unwrap_or(0);
        // The half unit is what keeps the exponent of the shares non-negative, whose maximum may be low; the division by the sum
        // takes it out again.
        let below = |&score: &i64| wrap(largest - score, spec.score_ring) + (1 << (frac - 1));
        weights.extend(row.iter().map(|score| exponential(below(score), frac, spec)));
    }
    normalized(&Value::new(rows, rows, spec.exp_ring, weights), &values, spec)
}

/// Rows of weights times values, over the sums of the rows.
pub(crate) fn normalized(weights: &Value, values: &Value, spec: &AttentionSpec) -> Value {
    let (rows, by) = (weights.rows(), spec.value_truncate());
    let weights = weights.widen(spec.value_ring);
    let out = weights.product(values.data(), values.cols(), spec.value_ring).truncate(by, spec.value_ring - by);
    let mut normalized = Vec::with_capacity(out.data().len());
    for row in 0..rows {
        let sum = weights.row(row).iter().fold(0i64, |s, &w| s.wrapping_add(w));
        let inverse = inverse(wrap(sum, spec.value_ring), &spec.inverse);
        normalized.extend(out.row(row).iter().map(|&v| v.wrapping_mul(inverse)));
    }
    let normalized = Value::new(rows, out.cols(), spec.normalize_ring, normalized);
    normalized.truncate(spec.normalize_ring - spec.ring, spec.ring)
}

/// `2^-t`, rounded once; zero from an exponent of 16 on.
pub(crate) fn exponential(t: i64, frac: u32, spec: &AttentionSpec) -> i64 {
    let ring = frac + EXP_LOG2_RANGE + spec.exp_top_bits;
    let t = t & ((1 << ring) - 1);
    if t >> (frac + EXP_LOG2_RANGE) != 0 {
        return 0;
    }
    round(exp2(-(t as f64) / f64::from(1u32 << frac)) * f64::from(spec.exp_frac).exp2())
}

#[cfg(test)]
mod tests {
    use tercet_core::spec::InverseSpec;

    use super::*;

    fn spec() -> AttentionSpec {
        AttentionSpec {
            score_ring: 20,
            exp_frac: 12,
            exp_top_bits: 5,
            exp_guard: (11, 25),
            exp_ring: 32,
            value_ring: 32,
            inverse: InverseSpec::new(1.0, 11, 17, 24, 64, 52, 32),
            normalize_ring: 52,
            ring: 32,
        }
    }

    #[test]
    fn exponentials_are_rounded_once_and_end_at_sixteen() {
        let at = |t: f64| exponential((t * 1024.0) as i64, 10, &spec());
        assert_eq!(at(1.0), 2048);
        assert_eq!((at(12.9), at(13.0)), (1, 0), "more than half a unit, and half of one, which goes to even");
        assert_eq!((at(15.99), at(16.0), at(400.0), at(500.0)), (0, 0, 0, 0));
    }

    #[test]
    fn softmax_in_base_two_matches_floating_point() {
        let (rows, width) = (5, 3);
        let qkv: Vec<i64> = (0..rows * 3 * width).map(|i| (i as i64 * 7919) % 3001 - 1500).collect();
        let real = |i: usize| qkv[i] as f64 / 1024.0;
        // The last key is padding.
        let bias = [0, 0, 0, 0, -(40 << 10)];
        let x = Value::new(rows, 3 * width, 32, qkv.clone());
        let got = attention(&x, &bias, rows, 1, 10, &spec());
        for row in 0..rows {
            let score = |key: usize| -> f64 {
                (0..width).map(|c| real(row * 3 * width + c) * real(key * 3 * width + width + c)).sum()
            };
            let weights: Vec<f64> = (0..rows - 1).map(|key| score(key).exp2()).collect();
            for c in 0..width {
                let value = |key: usize| real(key * 3 * width + 2 * width + c);
                let exact = weights.iter().enumerate().map(|(key, w)| w * value(key)).sum::<f64>()
                    / weights.iter().sum::<f64>();
                let error = (got.row(row)[c] as f64 / 1024.0 - exact).abs();
                assert!(error < 2e-3, "row {row}: {error}");
            }
        }
    }
}
