//! Softmax attention: `2^(q k - max) v / sum`, normalised after the product with the values.

use tercet_core::functions::{exp2, round};
use tercet_core::spec::{AttentionSpec, EXP_LOG2_RANGE, EXP_TOP_BITS};

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
        weights.extend(row.iter().map(|&score| exponential(wrap(largest - score, spec.score_ring), frac, spec)));
    }
    let weights = Value::new(rows, rows, spec.exp_ring, weights).widen(spec.value_ring);

    let out_ring = spec.value_ring - spec.exp_frac;
    let out = weights.product(values.data(), values.cols(), spec.value_ring).truncate(spec.exp_frac, out_ring);
    let mut normalized = Vec::with_capacity(out.data().len());
    for row in 0..rows {
        let sum = weights.row(row).iter().fold(0i64, |s, &w| s.wrapping_add(w));
        let inverse = inverse(wrap(sum, spec.value_ring), &spec.inverse);
        normalized.extend(out.row(row).iter().map(|&v| v.wrapping_mul(inverse)));
    }
    let normalized = Value::new(rows, out.cols(), spec.normalize_ring, normalized);
    normalized.truncate(spec.normalize_ring - spec.ring, spec.ring)
}

/// `2^-(below + 1/2)`, rounded once; zero from an exponent of 16 on. The half unit is what keeps the exponent of the shares
/// non-negative, whose maximum may be low; the division by the sum takes it out again.
fn exponential(below: i64, frac: u32, spec: &AttentionSpec) -> i64 {
    let ring = frac + EXP_LOG2_RANGE + EXP_TOP_BITS;
    let t = (below + (1 << (frac - 1))) & ((1 << ring) - 1);
    if t >> (frac + EXP_LOG2_RANGE) != 0 {
        return 0;
    }
    round(exp2(-(t as f64) / f64::from(1u32 << frac)) * f64::from(spec.exp_frac).exp2())
}
