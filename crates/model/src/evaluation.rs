//! One node of a graph computed in floating point, with what it computed on the way.

use std::collections::BTreeMap;

use candle_core::{D, DType, Tensor};

use crate::attention::{Attention, Heads};
use crate::graph::{Activation, Expert, Node, Op};
use crate::model::TensorError;
use crate::oracle::OracleError;
use crate::stats::{ExpertsStats, GatedStats, NodeStats, NormStats, RouteStats, Span};

/// Tensors of a graph by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// What came of a node.
pub(crate) struct Evaluation {
    /// Its result.
    pub(crate) value: Tensor,
    inside: Inside,
}

/// What an operation computed on the way to its result.
enum Inside {
    Nothing,
    Activation { argument: Tensor },
    Norm { centred: Tensor, scaled: Tensor, variance: Tensor },
    Attention(Attention),
    Gated { argument: Tensor, activated: Tensor, factor: Tensor },
    Route { scores: Tensor },
    Experts { scores: Tensor, gated: GatedStats, experts: ExpertsStats },
}

impl Evaluation {
    /// Computes a node from the values that it reads and the tensors that it names. `every_row` keeps all rows where the
    /// last one alone would do.
    pub(crate) fn new(node: &Node, read: &[Tensor], tensors: &Tensors, every_row: bool) -> Result<Self, OracleError> {
        let tensor = |name: &str| tensors.get(name).ok_or_else(|| TensorError::Unknown(name.into()));
        let x = &read[0];
        let value = match &node.op {
            Op::Lookup { table } => tensor(table)?.index_select(x, 0)?,
            Op::AddRows { rows } | Op::AddPositions { rows } => (x + tensor(rows)?.narrow(0, 0, x.dim(0)?)?)?,
            Op::PrependRow { row } => Tensor::cat(&[tensor(row)?, x], 0)?,
            Op::Linear { weight, bias } => {
                let y = x.matmul(tensor(weight)?)?;
                match bias {
                    Some(bias) => y.broadcast_add(tensor(bias)?)?,
                    None => y,
                }
            }
            Op::LayerNorm { gain, bias, eps } => {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                let (y, inside) = normalised(centred, tensor(gain)?, *eps)?;
                return Ok(Self { value: y.broadcast_add(tensor(bias)?)?, inside });
            }
            Op::RmsNorm { gain, eps } => {
                let (value, inside) = normalised(x.clone(), tensor(gain)?, *eps)?;
                return Ok(Self { value, inside });
            }
            Op::Attention { heads } => return Self::of(Attention::full(x, *heads)?),
            Op::CausalAttention { heads, kv_heads, rotary, reach } => {
                let heads = Heads { queries: *heads, keys: *kv_heads };
                return Self::of(Attention::causal(x, heads, rotary.as_deref(), reach)?);
            }
            Op::Add => (x + &read[1])?,
            Op::Activation(activation) => {
                return Ok(Self { value: apply(*activation, x)?, inside: Inside::Activation { argument: x.clone() } });
            }
            Op::Gated(activation) => return Self::gated(*activation, x),
            Op::Route { top } => {
                return Ok(Self { value: route(x, *top)?, inside: Inside::Route { scores: x.clone() } });
            }
            Op::ScaleBlocks => {
                let (rows, width) = x.dims2()?;
                let blocks = read[1].dim(1)?;
                let x = x.reshape((rows, blocks, width / blocks))?;
                x.broadcast_mul(&read[1].unsqueeze(2)?)?.reshape((rows, width))?
            }
            Op::Experts { top, activation, experts } => {
                return Self::experts(read, *top, *activation, experts, tensors);
            }
            Op::LastRow if every_row => x.clone(),
            Op::LastRow => x.narrow(0, x.dim(0)? - 1, 1)?,
            Op::FirstRow => x.narrow(0, 0, 1)?,
            Op::MeanRows => x.mean_keepdim(0)?,
        };
        Ok(Self { value, inside: Inside::Nothing })
    }

    /// Each row through its experts.
    fn experts(
        read: &[Tensor],
        top: usize,
        activation: Activation,
        experts: &[Expert],
        tensors: &Tensors,
    ) -> Result<Self, OracleError> {
        let tensor = |name: &str| tensors.get(name).ok_or_else(|| TensorError::Unknown(name.into()));
        let (x, scores) = (&read[0], read[1].clone());
        let (weights, chosen) = (route(&scores, top)?, chosen(&scores, top)?);
        let mut value = x.zeros_like()?;
        let mut stats = NodeStats::default();
        for (number, expert) in experts.iter().enumerate() {
            let rows: Vec<u32> =
                (0..).zip(&chosen).filter(|(_, row)| row.contains(&number)).map(|(at, _)| at).collect();
            if rows.is_empty() {
                continue;
            }
            let rows = Tensor::from_slice(&rows, rows.len(), x.device())?;
            let up = x.index_select(&rows, 0)?.matmul(tensor(&expert.up)?)?;
            let inside = Self::gated(activation, &up)?;
            let down = inside.value.matmul(tensor(&expert.down)?)?;
            let weights = weights.narrow(1, number, 1)?.contiguous()?.index_select(&rows, 0)?;
            value = value.index_add(&rows, &down.broadcast_mul(&weights)?, 0)?;
            let gated = inside.stats()?;
            let ranges = ExpertsStats { up: max_abs(&up)?, gated: gated.max_abs, down: max_abs(&down)? };
            stats.merge(&NodeStats { max_abs: 0.0, experts: Some(ranges), ..gated });
        }
        let (gated, experts) = (stats.gated.unwrap_or(GatedStats::NONE), stats.experts.unwrap_or_default());
        Ok(Self { value, inside: Inside::Experts { scores, gated, experts } })
    }

    /// `f(a) * b`.
    fn gated(activation: Activation, x: &Tensor) -> Result<Self, OracleError> {
        let width = x.dim(1)? / 2;
        let argument = x.narrow(1, 0, width)?.contiguous()?;
        let factor = x.narrow(1, width, width)?.contiguous()?;
        let activated = apply(activation, &argument)?;
        let value = (&activated * &factor)?;
        Ok(Self { value, inside: Inside::Gated { argument, activated, factor } })
    }

    fn of(attention: Attention) -> Result<Self, OracleError> {
        Ok(Self { value: attention.output()?, inside: Inside::Attention(attention) })
    }

    /// The ranges of the node.
    pub(crate) fn stats(&self) -> candle_core::Result<NodeStats> {
        let mut stats = NodeStats { max_abs: max_abs(&self.value)?, ..NodeStats::default() };
        match &self.inside {
            Inside::Nothing => {}
            Inside::Activation { argument } => stats.activation = Some(span(argument)?),
            Inside::Norm { centred, scaled, variance } => {
                let (max_centred, max_scaled) = (max_abs(centred)?, max_abs(scaled)?);
                stats.norm = Some(NormStats { variance: span(variance)?, max_centred, max_scaled });
            }
            Inside::Attention(attention) => stats.attention = Some(attention.stats(stats.max_abs)?),
            Inside::Gated { argument, activated, factor } => {
                let (activated, factor) = (max_abs(activated)?, max_abs(factor)?);
                stats.gated = Some(GatedStats { argument: span(argument)?, activated, factor });
            }
            Inside::Route { scores } => stats.route = Some(route_stats(scores)?),
            Inside::Experts { scores, gated, experts } => {
                stats.route = Some(route_stats(scores)?);
                (stats.gated, stats.experts) = (Some(*gated), Some(*experts));
            }
        }
        Ok(stats)
    }
}

/// `x / sqrt(mean(x^2) + eps) * gain`.
fn normalised(centred: Tensor, gain: &Tensor, eps: f64) -> candle_core::Result<(Tensor, Inside)> {
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(&variance + eps)?.sqrt()?)?.broadcast_mul(gain)?;
    let scaled = centred.broadcast_mul(gain)?;
    Ok((y, Inside::Norm { centred, scaled, variance }))
}

fn apply(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
        Activation::Silu => x.silu(),
    }
}

fn route_stats(scores: &Tensor) -> candle_core::Result<RouteStats> {
    let spread = (scores.max(D::Minus1)? - scores.min(D::Minus1)?)?;
    Ok(RouteStats { max_score: max_abs(scores)?, max_spread: span(&spread)?.max })
}

/// The places of the `top` largest of each row, the largest first; of equal scores the first ones.
fn chosen(scores: &Tensor, top: usize) -> candle_core::Result<Vec<Vec<usize>>> {
    let rows: Vec<Vec<f64>> = scores.to_dtype(DType::F64)?.to_vec2()?;
    let of_row = |row: Vec<f64>| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(top);
        order
    };
    Ok(rows.into_iter().map(of_row).collect())
}

/// The softmax over the `top` largest of each row.
fn route(scores: &Tensor, top: usize) -> candle_core::Result<Tensor> {
    let rows: Vec<Vec<f64>> = scores.to_dtype(DType::F64)?.to_vec2()?;
    let mut weights = Vec::new();
    for (row, chosen) in rows.iter().zip(&chosen(scores, top)?) {
        let largest = chosen.first().map_or(0.0, |first| row[*first]);
        let sum: f64 = chosen.iter().map(|i| (row[*i] - largest).exp2()).sum();
        let weight = |i: usize| if chosen.contains(&i) { (row[i] - largest).exp2() / sum } else { 0.0 };
        weights.extend((0..row.len()).map(weight));
    }
    Tensor::from_vec(weights, scores.dims2()?, scores.device())?.to_dtype(scores.dtype())
}

/// The largest absolute element.
pub(crate) fn max_abs(x: &Tensor) -> candle_core::Result<f32> {
    let span = span(x)?;
    Ok(span.max.max(-span.min))
}

/// The smallest and the largest element.
pub(crate) fn span(x: &Tensor) -> candle_core::Result<Span> {
    Ok(Span::of(x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?))
}
