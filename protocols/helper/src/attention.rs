//! Softmax attention (protocol.md, "Attention"): `2^(q k - max) v / sum`, normalised after the product with the values, so that
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
use crate::masked::Masked;
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

fn scales(spec: &AttentionSpec, frac: u32) -> Scales {
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
    let out_ring = spec.value_ring - spec.exp_frac;
    let lifts = extend::cost(2 * len, ring, score_ring).and(extend::cost(len, ring, spec.value_ring));
    let products = linear::cost(scores, score_ring).and(truncate::cost(scores, frac, spec.score_ring));
    let exponentials = exponential::cost(scores, exp_scales).then(extend::cost(scores, spec.exp_ring, spec.value_ring));
    let weighted = linear::cost(len, spec.value_ring)
        .and(truncate::cost(len, spec.exp_frac, out_ring))
        .then(extend::cost(len, out_ring, spec.normalize_ring));
    let inverse = extend::cost(sums, spec.value_ring, spec.inverse.ring)
        .hidden()
        .and(inverse::cost(sums, &spec.inverse))
        .then(extend::cost(sums, spec.inverse.ring_out, spec.normalize_ring));
    lifts
        .then(products)
        .then(maximum::cost(sums, rows, spec.score_ring, frac))
        .then(exponentials)
        .then(weighted.and(inverse))
        .then(linear::cost(len, spec.normalize_ring).and(truncate::cost(
            len,
            spec.normalize_ring - spec.ring,
            spec.ring,
        )))
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
    let split = |x: &Masked<E>| {
        let x = x.clone().reshape([batch, rows, heads, width]);
        x.each(x.ring(), Tensor::swap_middle).reshape([groups, rows, width])
    };
    let part = |i: usize| split(&qkv.columns(i * model, (i + 1) * model));
    let score_ring = spec.score_ring + frac;
    let queries_keys = extend::post::<E, E>(s, &Masked::flatten(&[part(0), part(1)]), score_ring)?;
    let values = extend::post::<E, V>(s, &part(2), spec.value_ring)?;
    let queries_keys = queries_keys.finish(s)?.reshape([2 * groups, rows * width]);
    let values = values.finish(s)?;

    let half = |from: usize| {
        queries_keys.each(score_ring, |p| {
            let len = groups * rows * width;
            Tensor::new([groups, rows, width], p.data()[from * len..(from + 1) * len].to_vec())
        })
    };
    let keys = half(1).each(score_ring, Tensor::transpose);
    let scores = matrix_product(s, &half(0), Prepared::new(&keys).operand(), [groups, rows, width, rows], score_ring)?;
    let scores: Masked<u32> = truncate::truncate(s, scores, frac, spec.score_ring)?;
    let scores = scores.add(&key_bias.each(spec.score_ring, |plane| spread(plane, shape)));

    let largest = maximum::maximum(s, &scores, frac)?.scale_up(frac - maximum::result_frac(frac));
    // The maximum may be a little low: half a unit keeps the exponent positive.
    let exponent = largest.each(spec.score_ring, |p| repeat_along_rows(p, scores.shape(), rows)).sub(&scores);
    let exp_scales = scales(spec, frac);
    let exponent: Masked<u32> = exponent.plus(1 << (frac - 1)).low(exp_scales.ring_in());
    let weights: Masked<V> = exponential::exp2_neg(s, &exponent, exp_scales)?;
    let weights: Masked<V> = extend::extend(s, &weights, spec.value_ring)?;

    let out_ring = spec.value_ring - spec.exp_frac;
    let sums = weights.sum_rows();
    let flags = inverse::post(s, &sums, &spec.inverse)?;
    let sums = extend::post::<V, u64>(s, &sums, spec.inverse.ring)?;
    let operand = Prepared::new(&values);
    let out = matrix_product(s, &weights, operand.operand(), [groups, rows, rows, width], spec.value_ring)?;
    let out = truncate::post(s, out, spec.exp_frac, out_ring)?;
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
    let out: Masked<E> = truncate::truncate(s, out, spec.normalize_ring - spec.ring, spec.ring)?;
    let merged = out.reshape([batch, heads, rows, width]);
    Ok(merged.each(spec.ring, Tensor::swap_middle).reshape([batch * rows, model]))
}

/// A bias a key, `[batch, rows]`, repeated for every head and query: `[batch * heads, rows, rows]`.
fn spread(plane: &Tensor<u32>, Heads { batch, rows, heads, .. }: Heads) -> Tensor<u32> {
    let data = plane.data().chunks(rows.max(1)).flat_map(|row| row.repeat(heads * rows)).collect();
    Tensor::new([batch * heads, rows, rows], data)
}
