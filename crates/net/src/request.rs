//! What a client and a node say to each other about one request: opaque bytes with public shapes.

use serde::{Deserialize, Serialize};

/// One party's part of a client's input.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputShare {
    /// Inputs side by side.
    pub batch: u32,
    /// Rows of each, padding included.
    pub rows: u32,
    /// Seed of the mask half of P0 and P1; absent at P2.
    pub first_seed: Option<[u8; 32]>,
    /// Seed of the mask half of P0 and P2; absent at P1.
    pub second_seed: Option<[u8; 32]>,
    /// Masked values, packed, of the streams of [`Stream`] in order; empty at P0.
    pub masked: Vec<Vec<u8>>,
    /// Lookup keys for each of the party's two planes of the table, end to end; empty where rows are shared instead.
    pub keys: [Vec<u8>; 2],
}

/// The tensors of an input, by the stream of the seeds that masks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// `[batch, rows]` in the score ring: zero, or the padding score where a row is padding.
    KeyBias,
    /// `[batch, rows]` in the wide ring: one, or zero where a row is padding.
    RowWeight,
    /// `[batch * rows, width]` in the wide ring: the rows themselves, where they are not looked up.
    Rows,
}

/// One party's part of an output: its two planes, packed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputShare {
    /// At P0 `l1, l2`; at P1 `m, l1`; at P2 `m, l2`.
    pub planes: [Vec<u8>; 2],
}

impl std::fmt::Debug for InputShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InputShare[{} x {}]", self.batch, self.rows)
    }
}

impl std::fmt::Debug for OutputShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutputShare[{} bytes]", self.planes[0].len())
    }
}
