//! How each tensor of a graph is made from the tensors of a checkpoint: transposed, fused, scaled, folded.

use crate::weights::{Entry, Weights};

/// `log2(e)`: softmax is taken to base 2.
const LOG2_E: f64 = std::f64::consts::LOG2_E;

/// The making of one tensor. Stored names are without the family's prefix; linear weights are stored `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum Recipe {
    /// As stored, read as `[rows, cols]`.
    AsIs(String),
    /// A linear weight or patch convolution, transposed to `[in, out]`.
    Transposed(String),
    /// Three linear weights side by side as `[in, 3 * out]`, the first scaled.
    QueryKeyValue([String; 3], f64),
    /// Their biases; zeros if the model has none.
    QueryKeyValueBias(Option<[String; 3]>, f64),
    /// The position table without its first rows, plus row 0 of the token type table.
    Positions { table: String, skip: usize, token_types: Option<String> },
    /// Given as it is.
    Given(Vec<f32>),
}

/// What queries are multiplied by, so that attention needs no scale and takes powers of two.
pub(crate) fn query_scale(head_width: usize) -> f64 {
    LOG2_E / (head_width as f64).sqrt()
}

impl Recipe {
    /// The tensor `[rows, cols]`, row-major. None if the checkpoint does not hold what the recipe names.
    pub(crate) fn make(&self, weights: &Weights, rows: usize, cols: usize) -> Option<Vec<f32>> {
        let made = match self {
            Self::AsIs(name) => weights.values(weights.entry(name)?).collect(),
            Self::Transposed(name) => {
                let mut out = vec![0.0; rows * cols];
                transpose_into(&mut out, cols, 0, 1.0, weights, weights.entry(name)?);
                out
            }
            Self::QueryKeyValue(names, scale) => {
                let mut out = vec![0.0; rows * cols];
                for (i, (name, scale)) in names.iter().zip([*scale, 1.0, 1.0]).enumerate() {
                    transpose_into(&mut out, cols, i * (cols / 3), scale, weights, weights.entry(name)?);
                }
                out
            }
            Self::QueryKeyValueBias(None, _) => vec![0.0; cols],
            Self::QueryKeyValueBias(Some(names), scale) => {
                let mut out = Vec::with_capacity(cols);
                for (name, scale) in names.iter().zip([*scale, 1.0, 1.0]) {
                    out.extend(weights.values(weights.entry(name)?).map(|v| scaled(v, scale)));
                }
                out
            }
            Self::Positions { table, skip, token_types } => {
                let mut out: Vec<f32> = weights.values(weights.entry(table)?).skip(skip * cols).collect();
                if let Some(name) = token_types {
                    let first: Vec<f32> = weights.values(weights.entry(name)?).take(cols).collect();
                    for row in out.chunks_exact_mut(cols) {
                        row.iter_mut().zip(&first).for_each(|(v, t)| *v += t);
                    }
                }
                out
            }
            Self::Given(values) => values.clone(),
        };
        (made.len() == rows * cols).then_some(made)
    }
}

/// Writes the stored `[out, in]` as columns `first..first + out` of rows of `stride`.
fn transpose_into(to: &mut [f32], stride: usize, first: usize, scale: f64, weights: &Weights, entry: &Entry) {
    let out = entry.shape.first().copied().unwrap_or(1).max(1);
    let per_out = entry.shape.iter().product::<usize>() / out;
    for (i, value) in weights.values(entry).enumerate() {
        let (o, row) = (i / per_out, i % per_out);
        if let Some(place) = to.get_mut(row * stride + first + o) {
            *place = scaled(value, scale);
        }
    }
}

fn scaled(value: f32, scale: f64) -> f32 {
    if scale == 1.0 { value } else { (f64::from(value) * scale) as f32 }
}
