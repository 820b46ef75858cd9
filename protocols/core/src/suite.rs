//! What the engine is written against: tensor operations, whatever they are computed on.

use crate::Result;
use crate::spec::{
    ActivationSpec, AttentionSpec, CausalHeads, CausalSpec, ChoiceSpec, ExpertsSpec, GatedSpec, LinearSpec, LookupSpec,
    NormSpec, RouteSpec, ScaleSpec,
};

/// How many inputs run side by side, and how many rows (tokens, patches) each has, padding included. Public.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Geometry {
    /// Inputs.
    pub batch: usize,
    /// Rows of each.
    pub rows: usize,
}

/// One step of a decoder: which sequences run side by side, and which of their rows. Public.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    /// The sequences, in the order of their rows.
    pub sequences: Vec<Extent>,
    /// Whether every row gives an output, or the last of each sequence alone.
    pub every_row: bool,
}

/// The rows of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    /// Rows of earlier steps, which are in its cache.
    pub past: usize,
    /// Rows of this step.
    pub rows: usize,
}

impl Layout {
    /// A single sequence that begins with `rows` rows.
    pub fn prefill(rows: usize) -> Layout {
        Layout { sequences: vec![Extent { past: 0, rows }], every_row: false }
    }

    /// One new row for each sequence, after these many.
    pub fn decode(pasts: &[usize]) -> Layout {
        Layout { sequences: pasts.iter().map(|&past| Extent { past, rows: 1 }).collect(), every_row: false }
    }

    /// Rows of all sequences.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(|extent| extent.rows).sum()
    }

    /// Rows that give an output.
    pub fn outputs(&self) -> usize {
        if self.every_row { self.rows() } else { self.sequences.len() }
    }

    /// The position of every row in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().flat_map(|extent| extent.past..extent.past + extent.rows)
    }
}

/// A protocol suite bound to a model's weights and to one request's input. Tensors are matrices `[batch * rows, width]`;
/// weights are named.
///
/// [`crate::spec`] says what every operation computes and to which rings and scales. Implementations differ in what a tensor is:
/// shares, plain integers, or shapes alone.
pub trait Suite {
    /// A matrix.
    type Tensor: Clone;

    /// Names the operation that follows, for errors and meters.
    fn set_label(&mut self, label: &str);

    /// Rows and columns.
    fn shape(&self, x: &Self::Tensor) -> (usize, usize);

    /// The request's input matrix (patches), wide.
    fn input(&mut self) -> Result<Self::Tensor>;

    /// The rows of `table` that the request asks for, wide, at scale `spec.frac`. Called once.
    fn lookup(&mut self, table: &str, spec: &LookupSpec) -> Result<Self::Tensor>;

    /// A narrow tensor made wide; free where it is wide already.
    fn widen(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// `x W + b` of a tensor in a ring of at least `spec.ring + spec.truncate`; the result is narrow.
    fn linear(&mut self, x: &Self::Tensor, weight: &str, bias: Option<&str>, spec: &LinearSpec)
    -> Result<Self::Tensor>;

    /// Adds row `i` of `rows` to row `i` of every input of a wide tensor with `count` rows an input.
    fn add_rows(&mut self, x: &Self::Tensor, rows: &str, count: usize) -> Result<Self::Tensor>;

    /// Puts `row` before the `count` rows of every input of a wide tensor.
    fn prepend_row(&mut self, x: &Self::Tensor, row: &str, count: usize) -> Result<Self::Tensor>;

    /// LayerNorm of a tensor in any ring, at any scale.
    fn layer_norm(&mut self, x: &Self::Tensor, gain: &str, bias: &str, spec: &NormSpec) -> Result<Self::Tensor>;

    /// RMSNorm of a tensor in any ring, at any scale.
    fn rms_norm(&mut self, x: &Self::Tensor, gain: &str, spec: &NormSpec) -> Result<Self::Tensor>;

    /// Softmax attention of `[.., 3 * width]` with `rows` rows an input, masked by the request's key bias.
    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        rows: usize,
        heads: usize,
        spec: &AttentionSpec,
    ) -> Result<Self::Tensor>;

    /// Causal attention of `[.., (heads + 2 * kv_heads) * width]`, whose keys and values join those of earlier steps in the
    /// caches of the step's sequences; `layer` counts the attentions of the model. Steps alone.
    fn causal_attention(
        &mut self,
        qkv: &Self::Tensor,
        layer: usize,
        heads: &CausalHeads,
        spec: &CausalSpec,
    ) -> Result<Self::Tensor>;

    /// Adds to each row the row of `rows` that its position in its sequence names, in the tensor's own ring. Steps alone.
    fn add_positions(&mut self, x: &Self::Tensor, rows: &str) -> Result<Self::Tensor>;

    /// An elementwise function of a narrow tensor.
    fn activation(&mut self, x: &Self::Tensor, spec: &ActivationSpec) -> Result<Self::Tensor>;

    /// `f(a) b` of `[.., 2 * width]`, `a` and `b` side by side, narrow.
    fn gated(&mut self, x: &Self::Tensor, spec: &GatedSpec) -> Result<Self::Tensor>;

    /// The weights of experts from their scores, narrow.
    fn route(&mut self, x: &Self::Tensor, spec: &RouteSpec) -> Result<Self::Tensor>;

    /// Each block of columns of `x` times the column of `weights` that is its own; both in rings of at least
    /// `spec.ring + spec.truncate`.
    fn scale_blocks(&mut self, x: &Self::Tensor, weights: &Self::Tensor, spec: &ScaleSpec) -> Result<Self::Tensor>;

    /// For each row of `x` the sum of what its experts make of it, each times its weight: those whose scores, of one row of
    /// `scores`, are the largest. **Every node learns which they are**, and no more of the scores. `experts` names the two matrices of
    /// each, in and out.
    fn experts(
        &mut self,
        x: &Self::Tensor,
        scores: &Self::Tensor,
        experts: &[[&str; 2]],
        spec: &ExpertsSpec,
    ) -> Result<Self::Tensor>;

    /// The place of the largest element of each row, as `[rows, 1]` in `Z_2^index_bits`; of near ties any. Where the request
    /// asks for it, noise that nobody but the helper knows is added first, so that places come up by their softmax.
    fn choose(&mut self, x: &Self::Tensor, spec: &ChoiceSpec) -> Result<Self::Tensor>;

    /// Sum, in `Z_2^ring`, of two tensors at one scale in rings of at least `ring` bits.
    fn add(&mut self, x: &Self::Tensor, y: &Self::Tensor, ring: u32) -> Result<Self::Tensor>;

    /// The first of the `rows` rows of every input.
    fn first_row(&mut self, x: &Self::Tensor, rows: usize) -> Result<Self::Tensor>;

    /// The last row of every sequence of a step, or every row where its layout says so.
    fn last_row(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// The sum of the unpadded rows of every input (the client, who knows how many, divides), wide.
    fn sum_rows(&mut self, x: &Self::Tensor, rows: usize) -> Result<Self::Tensor>;
}
