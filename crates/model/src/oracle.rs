//! The float oracle: runs a graph in f32 or f64 on candle, one input at a time, and looks at every value.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor};

use crate::graph::{Activation, Graph, Input, Node, Op, Output, ValueId};
use crate::model::{Model, TensorError};
use crate::stats::{AttentionStats, NodeStats, NormStats, Span};

/// One input.
#[derive(Clone, Debug, PartialEq)]
pub enum OracleInput {
    /// Token ids, special tokens included.
    Tokens(Vec<u32>),
    /// Normalised patches, `[count, width]` row-major, as [`Input::patches`] makes them.
    Patches(Vec<f32>),
}

/// The arithmetic of an oracle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Single, as models are usually run.
    #[default]
    F32,
    /// Double: its own error is negligible.
    F64,
}

/// Why an oracle has no answer.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// The input is not one that the model takes: the caller is at fault.
    #[error("input: {0}")]
    Input(String),
    /// A tensor cannot be had.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// candle failed on a well-formed graph.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
}

/// A value of the graph, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub width: usize,
    /// `rows * width` elements.
    pub data: Vec<f32>,
}

/// Every value of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The result of each node, in the order of the nodes: value `i + 1` is `values[i]`.
    pub values: Vec<Matrix>,
    /// The ranges of each node, in the same order.
    pub stats: Vec<NodeStats>,
}

/// A model ready to run in plaintext.
pub struct Oracle {
    graph: Graph,
    tensors: BTreeMap<String, Tensor>,
    dtype: DType,
    /// The last node that reads a value, so that it can be freed.
    last_use: Vec<usize>,
}

impl Trace {
    /// A value by its id. None for value 0, the input, and for ids that do not exist.
    pub fn value(&self, id: ValueId) -> Option<&Matrix> {
        self.values.get(id.checked_sub(1)?)
    }

    /// The last value: what is opened to the client.
    pub fn output(&self) -> &[f32] {
        self.values.last().map_or(&[], |m| &m.data)
    }
}

impl Oracle {
    /// Converts all tensors of a model to f32 (its size in memory, once more).
    ///
    /// # Errors
    /// A tensor cannot be had.
    pub fn new(model: &Model) -> Result<Self, OracleError> {
        Self::with_precision(model, Precision::F32)
    }

    /// The same in a given precision.
    ///
    /// # Errors
    /// A tensor cannot be had.
    pub fn with_precision(model: &Model, precision: Precision) -> Result<Self, OracleError> {
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::F64 => DType::F64,
        };
        let mut tensors = BTreeMap::new();
        for spec in &model.graph.tensors {
            let values = model.tensor(&spec.name)?;
            let tensor = Tensor::from_vec(values, (spec.rows, spec.cols), &Device::Cpu)?.to_dtype(dtype)?;
            tensors.insert(spec.name.clone(), tensor);
        }
        let graph = model.graph.clone();
        let mut last_use = vec![0; graph.nodes.len() + 1];
        for (index, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|input| last_use[*input] = index);
        }
        Ok(Self { graph, tensors, dtype, last_use })
    }

    /// Runs an input and keeps every value.
    ///
    /// # Errors
    /// The input is not one that the model takes.
    pub fn run(&self, input: &OracleInput) -> Result<Trace, OracleError> {
        let mut trace = Trace { values: Vec::new(), stats: Vec::new() };
        self.visit(input, |_, value, stats| {
            let (rows, width) = value.dims2()?;
            let data = value.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            trace.values.push(Matrix { rows, width, data });
            trace.stats.push(stats);
            Ok(())
        })?;
        Ok(trace)
    }

    /// Runs an input and keeps the ranges only.
    ///
    /// # Errors
    /// The input is not one that the model takes.
    pub fn stats(&self, input: &OracleInput) -> Result<Vec<NodeStats>, OracleError> {
        let mut all = Vec::new();
        self.visit(input, |_, _, stats| {
            all.push(stats);
            Ok(())
        })?;
        Ok(all)
    }

    /// What the client reads: the embedding, scaled to unit length if the graph says so, or the logits.
    ///
    /// # Errors
    /// The input is not one that the model takes.
    pub fn output(&self, input: &OracleInput) -> Result<Vec<f32>, OracleError> {
        let mut last = None;
        self.walk(input, |_, value, _, _| {
            last = Some(value.clone());
            Ok(())
        })?;
        let Some(last) = last else { return Ok(Vec::new()) };
        let mut values: Vec<f64> = last.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        if let Output::Embedding { normalize: true, .. } = self.graph.output {
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
            values.iter_mut().for_each(|v| *v /= norm);
        }
        Ok(values.into_iter().map(|v| v as f32).collect())
    }

    /// The graph that it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn visit(
        &self,
        input: &OracleInput,
        mut each: impl FnMut(&Node, &Tensor, NodeStats) -> Result<(), OracleError>,
    ) -> Result<(), OracleError> {
        self.walk(input, |node, value, read, inside| {
            let stats = node_stats(node, value, read, inside)?;
            each(node, value, stats)
        })
    }

    /// Computes each node, and shows it with its result and the values that it read.
    fn walk(
        &self,
        input: &OracleInput,
        mut each: impl FnMut(&Node, &Tensor, &[Tensor], &Inside) -> Result<(), OracleError>,
    ) -> Result<(), OracleError> {
        let mut values: Vec<Option<Tensor>> = vec![Some(self.input(input)?)];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let missing = || OracleError::Input(format!("node {} reads a value that is not there", node.name));
            let read: Vec<Tensor> = node
                .inputs
                .iter()
                .map(|i| values.get(*i).cloned().flatten())
                .collect::<Option<_>>()
                .ok_or_else(missing)?;
            let (value, inside) = self.compute(node, &read)?;
            each(node, &value, &read, &inside)?;
            values.push(Some(value));
            for input in &node.inputs {
                if self.last_use[*input] == index {
                    values[*input] = None;
                }
            }
        }
        Ok(())
    }

    /// Value 0: ids as `[tokens]`, patches as `[count, width]`.
    fn input(&self, input: &OracleInput) -> Result<Tensor, OracleError> {
        let refuse = |what: String| Err(OracleError::Input(what));
        match (&self.graph.input, input) {
            (Input::Tokens { vocab, max_tokens }, OracleInput::Tokens(ids)) => {
                if ids.is_empty() || ids.len() > *max_tokens {
                    return refuse(format!("{} tokens; the model takes from 1 to {max_tokens}", ids.len()));
                }
                if let Some(id) = ids.iter().find(|id| **id as usize >= *vocab) {
                    return refuse(format!("token id {id}; the model has {vocab}"));
                }
                Ok(Tensor::from_slice(ids, ids.len(), &Device::Cpu)?)
            }
            (Input::Patches { .. }, OracleInput::Patches(values)) => {
                let (count, width) = self.graph.shape(0, self.graph.max_rows());
                if values.len() != count * width {
                    return refuse(format!("{} values; the model takes {count} patches of {width}", values.len()));
                }
                Ok(Tensor::from_slice(values, (count, width), &Device::Cpu)?.to_dtype(self.dtype)?)
            }
            (Input::Tokens { .. }, OracleInput::Patches(_)) => refuse("the model takes texts, not images".into()),
            (Input::Patches { .. }, OracleInput::Tokens(_)) => refuse("the model takes images, not texts".into()),
        }
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, OracleError> {
        self.tensors.get(name).ok_or_else(|| TensorError::Unknown(name.into()).into())
    }

    fn compute(&self, node: &Node, read: &[Tensor]) -> Result<(Tensor, Inside), OracleError> {
        let x = &read[0];
        let value = match &node.op {
            Op::Lookup { table } => self.tensor(table)?.index_select(x, 0)?,
            Op::AddRows { rows } => (x + self.tensor(rows)?.narrow(0, 0, x.dim(0)?)?)?,
            Op::PrependRow { row } => Tensor::cat(&[self.tensor(row)?, x], 0)?,
            Op::Linear { weight, bias } => x.matmul(self.tensor(weight)?)?.broadcast_add(self.tensor(bias)?)?,
            Op::LayerNorm { gain, bias, eps } => {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let y = centred.broadcast_div(&(&variance + *eps)?.sqrt()?)?;
                let y = y.broadcast_mul(self.tensor(gain)?)?.broadcast_add(self.tensor(bias)?)?;
                let scaled = centred.broadcast_mul(self.tensor(gain)?)?;
                return Ok((y, Inside::Norm { centred, scaled, variance }));
            }
            Op::Attention { heads } => {
                let attention = Attention::new(x, *heads)?;
                return Ok((attention.output()?, Inside::Attention(attention)));
            }
            Op::Add => (x + &read[1])?,
            Op::Activation(Activation::Gelu) => x.gelu_erf()?,
            Op::Activation(Activation::GeluTanh) => x.gelu()?,
            Op::Activation(Activation::Relu) => x.relu()?,
            Op::Activation(Activation::Tanh) => x.tanh()?,
            Op::FirstRow => x.narrow(0, 0, 1)?,
            Op::MeanRows => x.mean_keepdim(0)?,
        };
        Ok((value, Inside::Nothing))
    }
}

/// What an operation computed on the way to its result.
enum Inside {
    Nothing,
    Norm { centred: Tensor, scaled: Tensor, variance: Tensor },
    Attention(Attention),
}

fn node_stats(node: &Node, value: &Tensor, read: &[Tensor], inside: &Inside) -> candle_core::Result<NodeStats> {
    let mut stats = NodeStats { max_abs: max_abs(value)?, ..NodeStats::default() };
    match inside {
        Inside::Norm { centred, scaled, variance } => {
            let (max_centred, max_scaled) = (max_abs(centred)?, max_abs(scaled)?);
            stats.norm = Some(NormStats { variance: span(variance)?, max_centred, max_scaled });
        }
        Inside::Attention(attention) => stats.attention = Some(attention.stats(stats.max_abs)?),
        Inside::Nothing if matches!(node.op, Op::Activation(_)) => stats.activation = Some(span(&read[0])?),
        Inside::Nothing => {}
    }
    Ok(stats)
}

/// The intermediate values of a softmax attention, all `[heads, rows, ..]`.
struct Attention {
    parts: [Tensor; 3],
    scores: Tensor,
    /// Of `2^(score - maximum of the row)`.
    row_sums: Tensor,
    /// `2^(score - maximum of the row) V`.
    unnormalised: Tensor,
}

impl Attention {
    fn new(x: &Tensor, heads: usize) -> candle_core::Result<Self> {
        let (rows, width) = x.dims2()?;
        let h = width / 3;
        let part = |i: usize| x.narrow(1, i * h, h)?.reshape((rows, heads, h / heads))?.transpose(0, 1)?.contiguous();
        let parts = [part(0)?, part(1)?, part(2)?];
        let scores = parts[0].matmul(&parts[1].transpose(1, 2)?.contiguous()?)?;
        let below = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?;
        let exponentials = (below * std::f64::consts::LN_2)?.exp()?;
        let row_sums = exponentials.sum_keepdim(D::Minus1)?;
        let unnormalised = exponentials.matmul(&parts[2])?;
        Ok(Self { parts, scores, row_sums, unnormalised })
    }

    fn output(&self) -> candle_core::Result<Tensor> {
        let y = self.unnormalised.broadcast_div(&self.row_sums)?;
        let (heads, rows, width) = y.dims3()?;
        y.transpose(0, 1)?.contiguous()?.reshape((rows, heads * width))
    }

    fn stats(&self, max_output: f32) -> candle_core::Result<AttentionStats> {
        let spread = (self.scores.max(D::Minus1)? - self.scores.min(D::Minus1)?)?;
        Ok(AttentionStats {
            max_query: max_abs(&self.parts[0])?,
            max_key: max_abs(&self.parts[1])?,
            max_value: max_abs(&self.parts[2])?,
            max_score: max_abs(&self.scores)?,
            max_spread: span(&spread)?.max,
            row_sum: span(&self.row_sums)?,
            max_unnormalised: max_abs(&self.unnormalised)?,
            max_output,
        })
    }
}

fn max_abs(x: &Tensor) -> candle_core::Result<f32> {
    let span = span(x)?;
    Ok(span.max.max(-span.min))
}

fn span(x: &Tensor) -> candle_core::Result<Span> {
    Ok(Span::of(x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?))
}
