//! Softmax attention: `2^(q k - max) v / sum`, normalised after the product with the values, so that
//! the inverse of the row sums (three rounds) runs beside that product (two), and a row has `head width` values to scale
//! instead of one a key.
//!
//! Padded keys get a bias that takes their exponential to zero; the bias is shared like any input, so that nobody but the
//! client knows how long its text is within its padding.
//!
//! *Security*: built from other primitives.

use tercet_core::spec::AttentionSpec;
use tercet_core::{Cost, Result, Session};
use tercet_ring::{Element, Tensor};

use crate::exponential::{self, Scales};
use crate::linear::{self, Prepared, elementwise, matrix_product};
use crate::masked::{Additive, Masked};
use crate::maximum;
use crate::norm::repeat_along_rows;
use crate::{extend, inverse, truncate};

/// Shape of one attention: `batch` inputs of `rows` rows, `heads` heads of `width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Inputs.
    pub batch: usize,
    /// Rows of each.
    pub rows: usize,
    /// Heads.
    pub heads: usize,
    /// Columns of a head.
    pub width: usize,
}

/// The scales of the exponentials of scores at scale `frac`.
pub(crate) fn scales(spec: &AttentionSpec, frac: u32) -> Scales {
    Scales {
        frac,
        top_bits: spec.exp_top_bits,
        frac_out: spec.exp_frac,
        ring_out: spec.exp_ring,
        guard: spec.exp_guard,
    }
}

/// The wire cost, for queries, keys and values that come in `ring` at scale `frac`.
pub fn cost(heads: Heads, ring: u32, frac: u32, spec: &AttentionSpec) -> Cost {
    let Heads { batch, rows, heads, width } = heads;
    let groups = batch * heads;
    let (len, scores, sums) = (groups * rows * width, groups * rows * rows, groups * rows);
    let exp_scales = scales(spec, frac);
    let score_ring = spec.score_ring + frac;
    let lifts = extend::cost(2 * len, ring, score_ring).and(extend::cost(len, ring, spec.value_ring));
    let products = linear::cost(scores, score_ring).and(truncate::cost(scores, frac, spec.score_ring));
    let exponentials = exponential::cost(scores, exp_scales).then(extend::cost(scores, spec.exp_ring, spec.value_ring));
    lifts
        .then(products)
        .then(maximum::cost(sums, rows, spec.score_ring, frac))
        .then(exponentials)
        .then(normalized_cost(sums, width, spec))
}

/// Attention over `qkv: [batch * rows, 3 * heads * width]` at scale `frac`, queries scaled by `log2(e) / sqrt(width)`. `key_bias`:
/// `[batch, rows]` in the score ring at scale `frac`. The result is `[batch * rows, heads * width]` in `spec.ring`.
pub fn attention<E: Element>(
    s: &mut Session,
    qkv: &Masked<E>,
    key_bias: &Masked<u32>,
    heads: Heads,
    frac: u32,
    spec: &AttentionSpec,
) -> Result<Masked<E>> {
    s.scope("attention", |s| {
        if spec.value_ring <= 32 {
            attend::<E, u32>(s, qkv, key_bias, heads, frac, spec)
        } else {
            attend::<E, u64>(s, qkv, key_bias, heads, frac, spec)
        }
    })
}

/// With the exponentials and values in lanes `V`.
fn attend<E: Element, V: Element>(
    s: &mut Session,
    qkv: &Masked<E>,
    key_bias: &Masked<u32>,
    shape: Heads,
    frac: u32,
    spec: &AttentionSpec,
) -> Result<Masked<E>> {
    let Heads { batch, rows, heads, width } = shape;
    let (groups, model) = (batch * heads, heads * width);
    let score_ring = spec.score_ring + frac;
    let queries_keys = extend::post::<E, E>(s, &qkv.columns(0, 2 * model), score_ring)?;
    let values = extend::post::<E, V>(s, &qkv.columns(2 * model, 3 * model), spec.value_ring)?;
    let queries_keys = queries_keys.finish(s)?;
    let values = values.finish(s)?.each(spec.value_ring, |plane| by_head(plane, 0, shape));

    let queries = queries_keys.each(score_ring, |plane| by_head(plane, 0, shape));
    let keys = queries_keys.each(score_ring, |plane| by_head(plane, model, shape).transpose());
    let scores = matrix_product(s, &queries, Prepared::new(&keys).operand(), [groups, rows, width, rows], score_ring)?;
    let scores: Masked<u32> = truncate::truncate(s, scores, frac, spec.score_ring)?;
    let scores = add_to_keys(scores, key_bias, shape);

    let largest = maximum::maximum(s, &scores, frac)?.scale_up(frac - maximum::result_frac(frac));
    // The maximum may be a little low: half a unit keeps the exponent positive.
    let exp_scales = scales(spec, frac);
    let exponent = below_largest(&largest.plus(1 << (frac - 1)), scores).into_low(exp_scales.ring_in());
    let weights: Masked<V> = exponential::exp2_neg(s, &exponent, exp_scales)?;
    let weights: Masked<V> = extend::extend(s, &weights, spec.value_ring)?;

    let sums = weights.sum_rows();
    let out: Masked<E> = normalized(s, &sums, width, spec, |s| {
        let operand = Prepared::new(&values);
        matrix_product(s, &weights, operand.operand(), [groups, rows, rows, width], spec.value_ring)
    })?;
    let merged = out.reshape([batch, heads, rows, width]);
    Ok(merged.each(spec.ring, Tensor::swap_middle).reshape([batch * rows, model]))
}

/// Rows of `width` weighted values over the sums of their weights; `weighted` computes the former while the latter are
/// compared. The result has the scale of the values.
pub(crate) fn normalized<V: Element, E: Element>(
    s: &mut Session,
    sums: &Masked<V>,
    width: usize,
    spec: &AttentionSpec,
    weighted: impl FnOnce(&mut Session) -> Result<Additive<V>>,
) -> Result<Masked<E>> {
    let by = spec.value_truncate();
    let flags = inverse::post(s, sums, &spec.inverse)?;
    let sums = extend::post::<V, u64>(s, sums, spec.inverse.ring)?;
    let out = weighted(s)?;
    let out = truncate::post(s, out, by, spec.value_ring - by)?;
    let flags = flags.next(s)?;
    let sums = sums.finish(s)?;
    let out: Masked<V> = out.finish(s)?;
    let out = extend::post::<V, u64>(s, &out, spec.normalize_ring)?;
    let inverse = flags.next(s, &sums, &spec.inverse)?;
    let out = out.finish(s)?;
    let inverse: Masked<u64> = inverse.finish(s)?;
    let inverse: Masked<u64> = extend::extend(s, &inverse, spec.normalize_ring)?;

    let inverse = inverse.each(spec.normalize_ring, |p| repeat_along_rows(p, out.shape(), width));
    let out = elementwise(s, &out, &inverse, spec.normalize_ring)?;
    truncate::truncate(s, out, spec.normalize_ring - spec.ring, spec.ring)
}

/// The wire cost of [`normalized`] for `sums` rows of `width`.
pub(crate) fn normalized_cost(sums: usize, width: usize, spec: &AttentionSpec) -> Cost {
    let (len, by) = (sums * width, spec.value_truncate());
    let weighted = linear::cost(len, spec.value_ring)
        .and(truncate::cost(len, by, spec.value_ring - by))
        .then(extend::cost(len, spec.value_ring - by, spec.normalize_ring));
    let inverse = extend::cost(sums, spec.value_ring, spec.inverse.ring)
        .hidden()
        .and(inverse::cost(sums, &spec.inverse))
        .then(extend::cost(sums, spec.inverse.ring_out, spec.normalize_ring));
    let last = truncate::cost(len, spec.normalize_ring - spec.ring, spec.ring);
    weighted.and(inverse).then(linear::cost(len, spec.normalize_ring).and(last))
}

/// Columns `from..` of `[batch * rows, ..]`, head by head: `[batch * heads, rows, width]`.
fn by_head<E: Element>(plane: &Tensor<E>, from: usize, shape: Heads) -> Tensor<E> {
    let Heads { batch, rows, heads, width } = shape;
    let mut data = Vec::with_capacity(batch * heads * rows * width);
    for input in plane.data().chunks_exact((rows * plane.width()).max(1)) {
        for head in (0..heads).map(|head| from + head * width) {
            input.chunks_exact(plane.width()).for_each(|row| data.extend_from_slice(&row[head..head + width]));
        }
    }
    Tensor::new([batch * heads, rows, width], data)
}

/// Adds a bias a key, `[batch, rows]`, to the scores `[batch * heads, rows, rows]` of every head and query.
fn add_to_keys(mut scores: Masked<u32>, key_bias: &Masked<u32>, Heads { rows, heads, .. }: Heads) -> Masked<u32> {
    for (plane, bias) in scores.planes_mut().iter_mut().zip(key_bias.planes()) {
        let inputs = plane.data_mut().chunks_exact_mut((heads * rows * rows).max(1));
        for (input, bias) in inputs.zip(bias.data().chunks_exact(rows.max(1))) {
            tercet_ring::simd::run!(|| {
                for line in input.chunks_exact_mut(rows) {
                    line.iter_mut().zip(bias).for_each(|(v, &b)| *v = v.wrapping_add(b));
                }
            });
        }
    }
    scores
}

/// The largest of each row less every element of it.
fn below_largest(largest: &Masked<u32>, mut scores: Masked<u32>) -> Masked<u32> {
    for (plane, largest) in scores.planes_mut().iter_mut().zip(largest.planes()) {
        plane.zip_rows(largest.data(), |score, largest| largest.wrapping_sub(score));
    }
    scores
}
