//! Causal attention over a cache: each row of a step meets the positions that it sees.

use tercet_core::functions::rotation;
use tercet_core::spec::{BoundSpec, CausalHeads, CausalSpec};
use tercet_core::{Error, Layout, Result};

use crate::attention::{exponential, normalized};
use crate::value::{Value, truncate, wrap};

/// The keys and values of one sequence, from one step to the next: by layer.
#[derive(Clone, Debug, Default)]
pub struct PlainCache {
    layers: Vec<Layer>,
}

/// Rows of all heads, turned by their positions.
#[derive(Clone, Debug, Default)]
struct Layer {
    len: usize,
    keys: Vec<i64>,
    values: Vec<i64>,
}

impl PlainCache {
    /// An empty cache for a model with so many attentions.
    pub fn new(layers: usize) -> PlainCache {
        PlainCache { layers: vec![Layer::default(); layers] }
    }

    /// Positions that every layer holds.
    pub fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.len).min().unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Attention of a step over `qkv: [layout.rows(), (heads + 2 kv_heads) * width]`, at scale `frac`.
pub(crate) fn attention(
    qkv: &Value,
    layout: &Layout,
    caches: &mut [&mut PlainCache],
    layer: usize,
    heads: &CausalHeads,
    frac: u32,
    spec: &CausalSpec,
) -> Result<Value> {
    let parts = heads.heads + 2 * heads.kv_heads;
    let width = qkv.cols() / parts;
    let fits = width > 0 && qkv.cols().is_multiple_of(parts) && heads.heads.is_multiple_of(heads.kv_heads);
    if !fits || qkv.rows() != layout.rows() || caches.len() != layout.sequences.len() {
        return Err(Error::Misuse(format!("{} rows of {} for {} heads", qkv.rows(), qkv.cols(), heads.heads)));
    }
    let mut out = Vec::with_capacity(qkv.rows() * heads.heads * width);
    let mut first = 0;
    for (cache, extent) in caches.iter_mut().zip(&layout.sequences) {
        let layer = cache.layers.get_mut(layer).filter(|layer| layer.len == extent.past);
        let layer = layer.ok_or_else(|| Error::Misuse(format!("no cache of {} positions", extent.past)))?;
        for row in first..first + extent.rows {
            let turned = |from: usize, count: usize| {
                let part = qkv.block(row, 1, from * width, count * width);
                turned(part.data(), width, layer.len, heads, frac, spec)
            };
            let (queries, keys) = (turned(0, heads.heads), turned(heads.heads, heads.kv_heads));
            let values = qkv.block(row, 1, (heads.heads + heads.kv_heads) * width, heads.kv_heads * width);
            layer.keys.extend(keys);
            layer.values.extend(values.widen(spec.attention.value_ring).data());
            layer.len += 1;
            for head in 0..heads.heads {
                let query = &queries[head * width..(head + 1) * width];
                let seen = layer.seen(head / (heads.heads / heads.kv_heads), width, heads);
                out.extend(attend(query, &seen, frac, spec));
            }
        }
        first += extent.rows;
    }
    Ok(Value::new(qkv.rows(), heads.heads * width, spec.attention.ring, out))
}

impl Layer {
    /// Keys and values of a head that the query of the last position sees: `[seen, width]` each.
    fn seen(&self, kv_head: usize, width: usize, heads: &CausalHeads) -> [Vec<i64>; 2] {
        let model = heads.kv_heads * width;
        let rows = || heads.visible(self.len - 1).into_iter().flatten();
        let of =
            |plane: &[i64]| rows().flat_map(|row| &plane[row * model + kv_head * width..][..width]).copied().collect();
        [of(&self.keys), of(&self.values)]
    }
}

/// Heads of queries or keys in the ring of their product, turned by `position` where positions are rotary.
fn turned(x: &[i64], width: usize, position: usize, heads: &CausalHeads, frac: u32, spec: &CausalSpec) -> Vec<i64> {
    let ring = spec.attention.score_ring + frac;
    let Some(rates) = &heads.rotary else { return x.iter().map(|&v| wrap(v, ring)).collect() };
    let table = rotation(rates, position, spec.rotary_frac);
    let round = |v: i64| truncate(wrap(v, ring + spec.rotary_frac), spec.rotary_frac, ring);
    let mut out = Vec::with_capacity(x.len());
    for head in x.chunks(width) {
        let pairs = || head.iter().zip(&head[width / 2..]).zip(&table);
        out.extend(pairs().map(|((&a, &b), &(c, s))| round(a.wrapping_mul(c).wrapping_sub(b.wrapping_mul(s)))));
        out.extend(pairs().map(|((&a, &b), &(c, s))| round(b.wrapping_mul(c).wrapping_add(a.wrapping_mul(s)))));
    }
    out
}

/// One head of one row.
fn attend(query: &[i64], [keys, values]: &[Vec<i64>; 2], frac: u32, spec: &CausalSpec) -> Vec<i64> {
    let (width, attention) = (query.len(), &spec.attention);
    let dot = |key: &[i64]| query.iter().zip(key).fold(0i64, |sum, (&q, &k)| sum.wrapping_add(q.wrapping_mul(k)));
    let scores: Vec<i64> = keys
        .chunks(width)
        .map(|key| truncate(wrap(dot(key), attention.score_ring + frac), frac, attention.score_ring))
        .collect();
    let above = above(&scores, frac, &spec.bound);
    let weights: Vec<i64> =
        scores.iter().map(|score| exponential(wrap(above - score, attention.score_ring), frac, attention)).collect();
    let seen = weights.len();
    let weights = Value::new(1, seen, attention.exp_ring, weights);
    let values = Value::new(seen, width, attention.value_ring, values.clone());
    normalized(&weights, &values, attention).data().to_vec()
}

/// The bound of the largest of a row, plus a step.
fn above(row: &[i64], frac: u32, spec: &BoundSpec) -> i64 {
    let lowest = spec.lowest << frac;
    let largest = row.iter().copied().max().unwrap_or(lowest);
    let reached = (largest - lowest) >> spec.coarsen(frac);
    lowest + ((reached.clamp(0, i64::from(spec.steps) - 1) + 1) << spec.coarsen(frac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_last_that_is_reached() {
        let spec = BoundSpec { lowest: -4, step: 2, steps: 5 };
        let of = |largest: f64| above(&[-900 << 10, (largest * 1024.0) as i64], 10, &spec) as f64 / 1024.0;
        assert_eq!([of(-30.0), of(-4.0), of(-2.1), of(-2.0)], [-2.0, -2.0, -2.0, 0.0]);
        assert_eq!([of(3.9), of(4.0), of(5.9), of(9.0)], [4.0, 6.0, 6.0, 6.0]);
    }
}
