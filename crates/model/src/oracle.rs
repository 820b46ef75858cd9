//! The float oracle: runs a graph in f32 or f64 on candle, one input at a time, and looks at every value.

use candle_core::{DType, Device, Tensor};

use crate::evaluation::{Evaluation, Tensors};
use crate::graph::{Graph, Input, Node, Output, ValueId};
use crate::model::{Model, TensorError};
use crate::stats::NodeStats;

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
    tensors: Tensors,
    dtype: DType,
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
        let graph = model.graph.clone();
        let mut tensors = Tensors::new();
        for spec in &graph.tensors {
            tensors.insert(spec.name.clone(), load(model, &spec.name, dtype)?);
        }
        let last_use = last_uses(&graph);
        Ok(Self { graph, tensors, dtype, last_use })
    }

    /// Runs an input and keeps every value. Of a decoder it computes the scores after the last token.
    ///
    /// # Errors
    /// The input is not one that the model takes.
    pub fn run(&self, input: &OracleInput) -> Result<Trace, OracleError> {
        let mut trace = Trace { values: Vec::new(), stats: Vec::new() };
        self.walk(input, false, |evaluation| {
            trace.stats.push(evaluation.stats()?);
            trace.values.push(matrix(&evaluation.value)?);
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
        self.walk(input, false, |evaluation| {
            all.push(evaluation.stats()?);
            Ok(())
        })?;
        Ok(all)
    }

    /// What the client reads: the embedding, scaled to unit length if the graph says so, the logits, or the scores of the token
    /// after the last one.
    ///
    /// # Errors
    /// The input is not one that the model takes.
    pub fn output(&self, input: &OracleInput) -> Result<Vec<f32>, OracleError> {
        let last = self.walk(input, false, |_| Ok(()))?;
        let mut values: Vec<f64> = last.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        if let Output::Embedding { normalize: true, .. } = self.graph.output {
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
            values.iter_mut().for_each(|v| *v /= norm);
        }
        Ok(values.into_iter().map(|v| v as f32).collect())
    }

    /// Of a decoder the scores after every token, `[ids, vocab]`: row `i` is the output for the first `i + 1` ids.
    ///
    /// # Errors
    /// The model is no decoder, or does not take these ids.
    pub fn scores(&self, ids: &[u32]) -> Result<Matrix, OracleError> {
        if !self.graph.is_decoder() {
            return Err(OracleError::Input("the model gives no scores of tokens".into()));
        }
        matrix(&self.walk(&OracleInput::Tokens(ids.to_vec()), true, |_| Ok(()))?)
    }

    /// The graph that it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Computes each node, and shows what came of it; the last value. `every_row` keeps all rows at the last row.
    fn walk(
        &self,
        input: &OracleInput,
        every_row: bool,
        mut each: impl FnMut(&Evaluation) -> Result<(), OracleError>,
    ) -> Result<Tensor, OracleError> {
        let mut values = vec![Some(input_tensor(&self.graph, input, self.dtype)?)];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let evaluation = Evaluation::new(node, &read(node, &values)?, &self.tensors, every_row)?;
            each(&evaluation)?;
            values.push(Some(evaluation.value));
            free(node, index, &self.last_use, &mut values);
        }
        values.pop().flatten().ok_or_else(|| OracleError::Input("the graph has no node".into()))
    }
}

/// A tensor of a model for candle.
pub(crate) fn load(model: &Model, name: &str, dtype: DType) -> Result<Tensor, OracleError> {
    let spec = model.graph.tensor_spec(name).ok_or_else(|| TensorError::Unknown(name.into()))?;
    Ok(Tensor::from_vec(model.tensor(name)?, (spec.rows, spec.cols), &Device::Cpu)?.to_dtype(dtype)?)
}

/// For each value the last node that reads it, so that it can be freed.
pub(crate) fn last_uses(graph: &Graph) -> Vec<usize> {
    let mut last_use = vec![usize::MAX; graph.nodes.len() + 1];
    for (index, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|input| last_use[*input] = index);
    }
    last_use
}

/// The values that a node reads.
pub(crate) fn read(node: &Node, values: &[Option<Tensor>]) -> Result<Vec<Tensor>, OracleError> {
    let read = node.inputs.iter().map(|i| values.get(*i).cloned().flatten()).collect::<Option<_>>();
    read.ok_or_else(|| OracleError::Input(format!("node {} reads a value that is not there", node.name)))
}

/// Forgets the values that no node after this one reads.
pub(crate) fn free(node: &Node, index: usize, last_use: &[usize], values: &mut [Option<Tensor>]) {
    for input in &node.inputs {
        if last_use[*input] == index {
            values[*input] = None;
        }
    }
}

fn matrix(value: &Tensor) -> Result<Matrix, OracleError> {
    let (rows, width) = value.dims2()?;
    Ok(Matrix { rows, width, data: value.to_dtype(DType::F32)?.flatten_all()?.to_vec1()? })
}

/// Value 0: ids as `[tokens]`, patches as `[count, width]`.
pub(crate) fn input_tensor(graph: &Graph, input: &OracleInput, dtype: DType) -> Result<Tensor, OracleError> {
    let refuse = |what: String| Err(OracleError::Input(what));
    match (&graph.input, input) {
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
            let (count, width) = graph.shape(0, graph.max_rows());
            if values.len() != count * width {
                return refuse(format!("{} values; the model takes {count} patches of {width}", values.len()));
            }
            Ok(Tensor::from_slice(values, (count, width), &Device::Cpu)?.to_dtype(dtype)?)
        }
        (Input::Tokens { .. }, OracleInput::Patches(_)) => refuse("the model takes texts, not images".into()),
        (Input::Patches { .. }, OracleInput::Tokens(_)) => refuse("the model takes images, not texts".into()),
    }
}
