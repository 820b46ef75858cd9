//! What a client must know of a model to share an input and read an output. All of it is public.

use serde::{Deserialize, Serialize};

use crate::generation::Generation;
use crate::graph::{Input, Output};

/// The public face of a shared model, as nodes hand it to clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// What the client provides.
    pub input: Input,
    /// What it gets.
    pub output: Output,
    /// Longest input in rows (tokens with special tokens, patches).
    pub max_rows: usize,
    /// Lanes and ring of shared rows and of row weights: 32 or 64 bits.
    pub wide: u32,
    /// How the rows of an input come in.
    pub rows: RowInput,
    /// Ring of the key bias.
    pub score_ring: u32,
    /// The key bias of a padded row, as an integer of that ring; zero for a row that counts.
    pub padding_bias: i64,
    /// Ring of the output.
    pub output_ring: u32,
    /// Fractional bits of the output.
    pub output_frac: u32,
    /// Whether the output is a sum over the rows that count, which the client divides by their number.
    pub output_is_sum: bool,
    /// Columns of the output.
    pub output_width: usize,
    /// What is special to a model that gives tokens.
    pub decoder: Option<Decoder>,
}

/// What is special to a model that gives tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decoder {
    /// Positions of a sequence at most.
    pub context: usize,
    /// The number of a token that is chosen inside the computation comes in the ring of so many bits.
    pub index_bits: u32,
    /// How it is meant to be sampled.
    pub generation: Generation,
    /// Whether its nodes learn which experts each token goes to.
    pub public_gate: bool,
}

/// How the rows of an input come in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RowInput {
    /// By distributed point functions into a secret table: the client needs no table.
    Lookup {
        /// Entries of the table.
        entries: usize,
        /// log2 of the domain of a key.
        domain_bits: u32,
    },
    /// As a shared matrix: pixels, or rows of a public table.
    Matrix {
        /// Columns.
        width: usize,
        /// Fractional bits.
        frac: u32,
    },
}
