//! How each tensor of a graph is made from the tensors of a checkpoint: transposed, fused, scaled, folded. Any rows of it are
//! made without the others, in memory for these rows and some pieces of what is stored.

use std::ops::Range;
use std::sync::Arc;

use crate::weights::{PIECE, Weights};

/// `log2(e)`: softmax is taken to base 2.
pub(crate) const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// Side of the tiles in which blocks are transposed: few enough rows to stay in the nearest cache.
const TILE: usize = 8;

/// The making of one tensor. Stored names are without the family's prefix.
#[derive(Clone, Debug)]
pub(crate) enum Recipe {
    /// Blocks of stored tensors, zeros between them; then row 0 of one more stored tensor is added to every row.
    Blocks { blocks: Vec<Block>, plus: Option<String> },
    /// Given as it is.
    Given(Arc<[f32]>),
}

/// A rectangle of a tensor, and the rectangle of a stored tensor that it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    stored: String,
    /// Columns of the stored tensor, read as a matrix.
    width: usize,
    transposed: bool,
    /// Row and column where it begins in the stored matrix.
    from: (usize, usize),
    /// Row and column where it begins in the tensor.
    to: (usize, usize),
    /// Rows and columns that it has in the tensor.
    size: (usize, usize),
    scale: f64,
}

/// A part of a linear layer as it is stored, and where it lies in the weight `[in, out]` of a graph.
pub(crate) struct Part<'a> {
    /// The stored layer.
    pub(crate) module: &'a str,
    /// Its width in and out.
    pub(crate) widths: [usize; 2],
    /// Rows of the weight, and the input of the stored layer that the first of them is.
    pub(crate) rows: Range<usize>,
    pub(crate) first_in: usize,
    /// Columns of the weight, and the output of the stored layer that the first of them is.
    pub(crate) cols: Range<usize>,
    pub(crate) first_out: usize,
    /// What the stored weight is multiplied by.
    pub(crate) scale: f64,
}

/// What queries are multiplied by, so that attention needs no scale and takes powers of two.
pub(crate) fn query_scale(head_width: usize) -> f64 {
    LOG2_E / (head_width as f64).sqrt()
}

impl Block {
    /// The stored tensor, read as `[rows, cols]`.
    pub(crate) fn as_is(stored: String, rows: usize, cols: usize) -> Self {
        let (from, to) = ((0, 0), (0, 0));
        Self { stored, width: cols, transposed: false, from, to, size: (rows, cols), scale: 1.0 }
    }

    /// The stored tensor, read as `[cols, rows]` (`[out, in]` of a linear layer or of a patch convolution) and transposed.
    pub(crate) fn transposed(stored: String, rows: usize, cols: usize) -> Self {
        let (from, to) = ((0, 0), (0, 0));
        Self { stored, width: rows, transposed: true, from, to, size: (rows, cols), scale: 1.0 }
    }

    /// The same at another place of the tensor.
    pub(crate) fn at(self, row: usize, col: usize) -> Self {
        Self { to: (row, col), ..self }
    }

    /// The same multiplied by a number.
    pub(crate) fn scaled(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// `count` of the columns of a block as it is stored, from `first` on.
    pub(crate) fn columns(self, first: usize, count: usize) -> Self {
        Self { from: (self.from.0, first), size: (self.size.0, count), ..self }
    }

    /// A block as it is stored, without its first rows.
    pub(crate) fn below(self, rows: usize) -> Self {
        Self { from: (rows, self.from.1), size: (self.size.0 - rows, self.size.1), ..self }
    }
}

impl From<Block> for Recipe {
    fn from(block: Block) -> Self {
        vec![block].into()
    }
}

impl From<Vec<Block>> for Recipe {
    fn from(blocks: Vec<Block>) -> Self {
        Self::Blocks { blocks, plus: None }
    }
}

impl Recipe {
    /// The stored linear layers that make a weight.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let blocks = if let Self::Blocks { blocks, .. } = self { blocks.as_slice() } else { &[] };
        blocks.iter().filter_map(Block::part)
    }

    /// Rows `rows` of the tensor with `cols` columns, row-major.
    ///
    /// # Errors
    /// The checkpoint does not hold what the recipe names, or can no longer be read: the text says which and why.
    pub(crate) fn make(&self, weights: &Weights, rows: Range<usize>, cols: usize) -> Result<Vec<f32>, String> {
        let (blocks, plus) = match self {
            Self::Given(values) => {
                let part = values.get(rows.start * cols..rows.end * cols);
                return part.map(<[f32]>::to_vec).ok_or_else(|| format!("{} elements", values.len()));
            }
            Self::Blocks { blocks, plus } => (blocks, plus),
        };
        let mut out = vec![0.0; rows.len() * cols];
        for block in blocks {
            block.fill(weights, &rows, cols, &mut out)?;
        }
        if let Some(name) = plus {
            let first = read(weights, name, cols, 0..1, 0..cols, true)?;
            for row in out.chunks_exact_mut(cols) {
                row.iter_mut().zip(&first).for_each(|(v, t)| *v += t);
            }
        }
        Ok(out)
    }
}

impl Block {
    /// The linear layer that it is a part of: stored `[out, in]` where it is transposed, else `[in, out]`.
    fn part(&self) -> Option<Part<'_>> {
        let module = self.stored.strip_suffix(".weight")?;
        let (widths, [first_in, first_out]) = match self.transposed {
            true => ([self.width, self.size.1], [self.from.1, self.from.0]),
            false => ([self.size.0, self.width], [self.from.0, self.from.1]),
        };
        let (rows, cols) = (self.to.0..self.to.0 + self.size.0, self.to.1..self.to.1 + self.size.1);
        Some(Part { module, widths, rows, first_in, cols, first_out, scale: self.scale })
    }

    /// Writes what falls into rows `rows` of the tensor to `out`, which holds these rows.
    fn fill(&self, weights: &Weights, rows: &Range<usize>, cols: usize, out: &mut [f32]) -> Result<(), String> {
        let start = rows.start.max(self.to.0);
        let end = rows.end.min(self.to.0 + self.size.0);
        if start >= end {
            return Ok(());
        }
        let inside = start - self.to.0..end - self.to.0;
        let out = &mut out[(start - rows.start) * cols..(end - rows.start) * cols];
        if self.transposed { self.transpose(weights, inside, cols, out) } else { self.copy(weights, inside, cols, out) }
    }

    /// Rows of the block as they are stored.
    fn copy(&self, weights: &Weights, inside: Range<usize>, cols: usize, out: &mut [f32]) -> Result<(), String> {
        let chunk = (PIECE / self.width.max(1)).max(1);
        let stored_cols = self.from.1..self.from.1 + self.size.1;
        for (i, out) in out.chunks_mut(chunk * cols).enumerate() {
            let first = self.from.0 + inside.start + i * chunk;
            let stored = first..first + out.len() / cols;
            let values = read(weights, &self.stored, self.width, stored, stored_cols.clone(), true)?;
            for (to, from) in out.chunks_exact_mut(cols).zip(values.chunks_exact(self.size.1)) {
                let to = &mut to[self.to.1..self.to.1 + self.size.1];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = scaled(*from, self.scale));
            }
        }
        Ok(())
    }

    /// Rows of the block, which are columns of what is stored. The piece at the beginning reads the stored tensor from end
    /// to end, so that the system has it at hand for the later ones, which skip through it; so do large pieces.
    fn transpose(&self, weights: &Weights, inside: Range<usize>, cols: usize, out: &mut [f32]) -> Result<(), String> {
        let count = inside.len();
        let stored_cols = self.from.1 + inside.start..self.from.1 + inside.end;
        let whole = inside.start == 0 || 4 * count >= self.width;
        let chunk = (PIECE / if whole { self.width } else { count }).max(1);
        for first in (0..self.size.1).step_by(chunk) {
            let stored = self.from.0 + first..self.from.0 + (first + chunk).min(self.size.1);
            let at = self.to.1 + first;
            let values = read(weights, &self.stored, self.width, stored, stored_cols.clone(), whole)?;
            for tile in (0..count).step_by(TILE) {
                let tile = tile..(tile + TILE).min(count);
                for (o, row) in values.chunks_exact(count).enumerate() {
                    for (i, value) in tile.clone().zip(&row[tile.clone()]) {
                        out[i * cols + at + o] = scaled(*value, self.scale);
                    }
                }
            }
        }
        Ok(())
    }
}

fn read(
    weights: &Weights,
    name: &str,
    width: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    whole: bool,
) -> Result<Vec<f32>, String> {
    let entry = weights.entry(name).ok_or_else(|| format!("{name} is not stored"))?;
    weights.read_block(entry, width, rows, cols, whole).map_err(|e| format!("{}: {e}", entry.stored_name))
}

fn scaled(value: f32, scale: f64) -> f32 {
    if scale == 1.0 { value } else { (f64::from(value) * scale) as f32 }
}
