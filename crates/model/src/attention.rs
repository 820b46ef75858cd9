//! Softmax attention in floating point: over all rows, or causal with rotary positions, shared keys and a limited reach.

use candle_core::{D, Device, Tensor};

use crate::evaluation::{max_abs, span};
use crate::graph::Reach;
use crate::stats::AttentionStats;

/// How many heads there are of queries, and of keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    /// Divides those of queries.
    pub(crate) keys: usize,
}

/// The intermediate values of an attention, all `[heads, rows, ..]`.
pub(crate) struct Attention {
    /// Queries, keys and values, after rotary positions.
    parts: [Tensor; 3],
    /// What a query does not see is minus infinity.
    scores: Tensor,
    /// The smallest score of each row that the query sees, `[heads, rows]`.
    row_min: Tensor,
    /// Of `2^(score - maximum of the row)`.
    row_sums: Tensor,
    /// `2^(score - maximum of the row) V`.
    unnormalised: Tensor,
}

impl Attention {
    /// Every row sees all rows.
    pub(crate) fn full(x: &Tensor, heads: usize) -> candle_core::Result<Self> {
        let parts = split(x, Heads { queries: heads, keys: heads })?;
        let scores = parts[0].matmul(&parts[1].transpose(1, 2)?.contiguous()?)?;
        let row_min = scores.min(D::Minus1)?;
        Self::of_scores(parts, scores, row_min)
    }

    /// Every row sees those that `reach` lets it see.
    pub(crate) fn causal(x: &Tensor, heads: Heads, rotary: Option<&[f64]>, reach: &Reach) -> candle_core::Result<Self> {
        let mut parts = split(x, heads)?;
        if let Some(frequencies) = rotary {
            parts[0] = turned(&parts[0], frequencies)?;
            parts[1] = turned(&parts[1], frequencies)?;
        }
        let rows = x.dim(0)?;
        let scores = grouped(&parts[0], heads)?.matmul(&parts[1].transpose(1, 2)?.contiguous()?)?;
        let scores = scores.reshape((heads.queries, rows, rows))?;
        let hidden = |value: f32| -> candle_core::Result<Tensor> {
            let of = |at: usize| if reach.sees(at / rows, at % rows) { 0.0 } else { value };
            Tensor::from_vec((0..rows * rows).map(of).collect(), (rows, rows), &Device::Cpu)?.to_dtype(x.dtype())
        };
        let row_min = scores.broadcast_add(&hidden(f32::INFINITY)?)?.min(D::Minus1)?;
        let scores = scores.broadcast_add(&hidden(f32::NEG_INFINITY)?)?;
        Self::of_scores(parts, scores, row_min)
    }

    fn of_scores(parts: [Tensor; 3], scores: Tensor, row_min: Tensor) -> candle_core::Result<Self> {
        let below = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?;
        let exponentials = (below * std::f64::consts::LN_2)?.exp()?;
        let row_sums = exponentials.sum_keepdim(D::Minus1)?;
        let heads = Heads { queries: scores.dim(0)?, keys: parts[2].dim(0)? };
        let (_, rows, width) = parts[2].dims3()?;
        let unnormalised = grouped(&exponentials, heads)?.matmul(&parts[2])?.reshape((heads.queries, rows, width))?;
        Ok(Self { parts, scores, row_min, row_sums, unnormalised })
    }

    /// The result, `[rows, heads * width]`.
    pub(crate) fn output(&self) -> candle_core::Result<Tensor> {
        let y = self.unnormalised.broadcast_div(&self.row_sums)?;
        let (heads, rows, width) = y.dims3()?;
        y.transpose(0, 1)?.contiguous()?.reshape((rows, heads * width))
    }

    /// The ranges; `max_output` is that of the result.
    pub(crate) fn stats(&self, max_output: f32) -> candle_core::Result<AttentionStats> {
        let row_max = self.scores.max(D::Minus1)?;
        Ok(AttentionStats {
            max_query: max_abs(&self.parts[0])?,
            max_key: max_abs(&self.parts[1])?,
            max_value: max_abs(&self.parts[2])?,
            max_score: span(&row_max)?.max.max(-span(&self.row_min)?.min),
            max_spread: span(&(&row_max - &self.row_min)?)?.max,
            row_max: span(&row_max)?,
            row_sum: span(&self.row_sums)?,
            max_unnormalised: max_abs(&self.unnormalised)?,
            max_output,
        })
    }
}

/// Queries, keys and values, each `[heads, rows, width]`.
fn split(x: &Tensor, heads: Heads) -> candle_core::Result<[Tensor; 3]> {
    let (rows, all) = x.dims2()?;
    let width = all / (heads.queries + 2 * heads.keys);
    let part = |first: usize, count: usize| {
        let part = x.narrow(1, first * width, count * width)?.reshape((rows, count, width))?;
        part.transpose(0, 1)?.contiguous()
    };
    let (queries, keys) = (heads.queries, heads.keys);
    Ok([part(0, queries)?, part(queries, keys)?, part(queries + keys, keys)?])
}

/// Rows of all the heads of queries that share a head of keys, one below the other.
fn grouped(x: &Tensor, heads: Heads) -> candle_core::Result<Tensor> {
    let (queries, rows, width) = x.dims3()?;
    x.reshape((heads.keys, queries / heads.keys * rows, width))
}

/// Turns each pair of columns `(i, i + width / 2)` of row `p` by `p` times its frequency.
fn turned(x: &Tensor, frequencies: &[f64]) -> candle_core::Result<Tensor> {
    let (_, rows, width) = x.dims3()?;
    let half = width / 2;
    let of = |f: fn(f64) -> f64| -> candle_core::Result<Tensor> {
        let angles = (0..rows).flat_map(|p| frequencies.iter().map(move |frequency| f(p as f64 * frequency)));
        Tensor::from_vec(angles.collect::<Vec<f64>>(), (rows, half), &Device::Cpu)?.to_dtype(x.dtype())
    };
    let (cos, sin) = (of(f64::cos)?, of(f64::sin)?);
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)
}
