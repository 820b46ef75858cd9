//! What the engine is written against: tensor operations, whatever they are computed on.

use crate::Result;
use crate::spec::{ActivationSpec, AttentionSpec, LinearSpec, LookupSpec, NormSpec};

/// How many inputs run side by side, and how many rows (tokens, patches) each has, padding included. Public.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Geometry {
    /// Inputs.
    pub batch: usize,
    /// Rows of each.
    pub rows: usize,
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
    fn linear(&mut self, x: &Self::Tensor, weight: &str, bias: &str, spec: &LinearSpec) -> Result<Self::Tensor>;

    /// Adds row `i` of `rows` to row `i` of every input of a wide tensor with `count` rows an input.
    fn add_rows(&mut self, x: &Self::Tensor, rows: &str, count: usize) -> Result<Self::Tensor>;

    /// Puts `row` before the `count` rows of every input of a wide tensor.
    fn prepend_row(&mut self, x: &Self::Tensor, row: &str, count: usize) -> Result<Self::Tensor>;

    /// LayerNorm of a tensor in any ring, at any scale.
    fn layer_norm(&mut self, x: &Self::Tensor, gain: &str, bias: &str, spec: &NormSpec) -> Result<Self::Tensor>;

    /// Softmax attention of `[.., 3 * width]` with `rows` rows an input, masked by the request's key bias.
    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        rows: usize,
        heads: usize,
        spec: &AttentionSpec,
    ) -> Result<Self::Tensor>;

    /// An elementwise function of a narrow tensor.
    fn activation(&mut self, x: &Self::Tensor, spec: &ActivationSpec) -> Result<Self::Tensor>;

    /// Sum, in `Z_2^ring`, of two tensors at one scale in rings of at least `ring` bits.
    fn add(&mut self, x: &Self::Tensor, y: &Self::Tensor, ring: u32) -> Result<Self::Tensor>;

    /// The first of the `rows` rows of every input.
    fn first_row(&mut self, x: &Self::Tensor, rows: usize) -> Result<Self::Tensor>;

    /// The sum of the unpadded rows of every input (the client, who knows how many, divides), wide.
    fn sum_rows(&mut self, x: &Self::Tensor, rows: usize) -> Result<Self::Tensor>;
}
