//! The public description of a model: what is computed, on which named tensors, in which shapes.

use serde::{Deserialize, Serialize};

/// Index of a value: 0 is the input, `i + 1` the result of `nodes[i]`.
pub type ValueId = usize;

/// A straight-line program over activation matrices `[batch * rows, width]`, row-major, one group of `rows` rows per
/// input of a batch. Everything in it is public; the tensors that it names are not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// `bert`, `roberta`, `distilbert`, `vit`, `gpt2`, `llama`: for people; nothing depends on it.
    pub family: String,
    /// What the client provides.
    pub input: Input,
    /// The program.
    pub nodes: Vec<Node>,
    /// What is opened to the client, and how to read it.
    pub output: Output,
    /// Every tensor that a node names.
    pub tensors: Vec<TensorSpec>,
}

/// What the client provides for one input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// Token ids; node 0 is always [`Op::Lookup`]. `1 <= tokens <= max_tokens`.
    Tokens {
        /// Number of ids.
        vocab: usize,
        /// Longest input, special tokens included.
        max_tokens: usize,
    },
    /// An image cut into `count` patches of `width` real values each (channels, then rows, then columns, as in
    /// the weight of a patch convolution); node 0 is a [`Op::Linear`].
    Patches {
        /// Channels of the image.
        channels: usize,
        /// Side of the image in pixels.
        image_size: usize,
        /// Side of a patch in pixels.
        patch_size: usize,
        /// Mean per channel that the client subtracts from pixels in [0, 1].
        mean: Vec<f32>,
        /// Standard deviation per channel that the client divides by.
        std: Vec<f32>,
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Where it stands in the model: `layer3/attention`, `layer0/ffn/up`.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<ValueId>,
}

/// The operations of encoders and decoders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// One-hot ids `[batch * rows, vocab]` times the table `[vocab, width]`: a private lookup.
    Lookup {
        /// The table.
        table: String,
    },
    /// Adds row `i` of the tensor `[>= rows, width]` to row `i` of every input: position embeddings.
    AddRows {
        /// The rows.
        rows: String,
    },
    /// Puts a row before the rows of every input: `rows` becomes `rows + 1`.
    PrependRow {
        /// The row `[1, width]`.
        row: String,
    },
    /// `x W + b` with `W: [in, out]`, `b: [1, out]`.
    Linear {
        /// `W`, stored `[in, out]` row-major.
        weight: String,
        /// `b`, where there is one.
        bias: Option<String>,
    },
    /// LayerNorm over the last dimension: `(x - mean) / sqrt(var + eps) * gain + bias`.
    LayerNorm {
        /// `[1, width]`.
        gain: String,
        /// `[1, width]`.
        bias: String,
        /// Added to the variance.
        eps: f64,
    },
    /// RMSNorm over the last dimension: `x / sqrt(mean(x^2) + eps) * gain`.
    RmsNorm {
        /// `[1, width]`.
        gain: String,
        /// Added to the mean square.
        eps: f64,
    },
    /// Softmax attention over the rows of each input. The input value is `[.., 3 * width]`: queries, keys, values side by
    /// side, heads contiguous within each. Queries come scaled by `log2(e) / sqrt(head width)` (the builder folds it
    /// into their weights), so the softmax is taken to base 2 and no scale is applied here.
    Attention {
        /// Number of heads.
        heads: usize,
    },
    /// Softmax attention of every row over the rows before it in its sequence and itself, as far as `reach` lets it see; rows of
    /// earlier steps come out of a cache. The input value is `[.., (heads + 2 * kv_heads) * width]`: queries, keys, values
    /// side by side, heads contiguous within each. Query head `h` reads the keys and values of head `h / (heads / kv_heads)`.
    /// Queries come scaled as for [`Op::Attention`].
    CausalAttention {
        /// Heads of the queries.
        heads: usize,
        /// Heads of the keys and values; divides `heads`.
        kv_heads: usize,
        /// Rotary positions: for each pair of columns `(i, i + width / 2)` of a head by how many radians a position turns
        /// queries and keys. None where positions are not rotary.
        rotary: Option<Vec<f64>>,
        /// Which keys a query sees.
        reach: Reach,
    },
    /// Adds row `p` of the tensor `[>= context, width]` to the row of position `p` of every sequence.
    AddPositions {
        /// The rows.
        rows: String,
    },
    /// Sum of two values.
    Add,
    /// An elementwise function.
    Activation(Activation),
    /// `f(a) * b` of a value `[.., 2 * width]` whose first half is `a` and whose second is `b`: SwiGLU with SiLU for `f`.
    Gated(Activation),
    /// From the scores `[.., experts]` of a router the weight of each expert: the softmax over the `top` largest of a row, zero
    /// for the others. Scores come scaled by `log2(e)` (the builder folds it into the router), so it is taken to base 2.
    Route {
        /// How many experts have a say.
        top: usize,
    },
    /// Multiplies each of the equal blocks of columns of the first value, as many as the second has columns, by that column:
    /// `[.., blocks * width]` and `[.., blocks]`.
    ScaleBlocks,
    /// A mixture of experts behind a public gate, of the rows of the first value and the scores of their router, the second: for each row
    /// the sum of what the `top` experts with its largest scores make of it, weighed by the softmax over those scores to base 2. An
    /// expert multiplies by its matrix in, takes `f(a) * b` as [`Op::Gated`] does, and multiplies by its matrix out.
    ///
    /// **Which experts a row goes to is opened to every node.** With [`Op::Route`] and [`Op::ScaleBlocks`] it is to none, and every
    /// expert runs.
    Experts {
        /// How many experts a row goes to.
        top: usize,
        /// `f`.
        activation: Activation,
        /// The experts.
        experts: Vec<Expert>,
    },
    /// The first row of each input: `[batch, width]`.
    FirstRow,
    /// The last row of each sequence of a step: `[sequences, width]`; every row where a request asks for the scores of all
    /// positions.
    LastRow,
    /// The mean over the (unpadded) rows of each input: `[batch, width]`.
    MeanRows,
}

/// The matrices of an expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expert {
    /// `[in, 2 * inner]`: what is gated by, and what is gated.
    pub up: String,
    /// `[inner, out]`.
    pub down: String,
}

/// Which of the keys up to its own position a query sees: the last `window` of them, and those of the first `global` positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Keys up to and including its own; none for all.
    pub window: Option<usize>,
    /// Positions at the beginning that every query sees.
    pub global: usize,
}

/// Elementwise functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x * Phi(x)`, with the error function.
    Gelu,
    /// The tanh form of GELU.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `x / (1 + e^-x)`.
    Silu,
}

/// What is opened to the client: always the last value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// A vector per input.
    Embedding {
        /// Its width.
        width: usize,
        /// Whether the client scales it to unit length.
        normalize: bool,
    },
    /// A score per label.
    Logits {
        /// The labels, in order.
        labels: Vec<String>,
    },
    /// A score per token that may come next.
    NextToken {
        /// Number of ids.
        vocab: usize,
    },
}

/// A named secret tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Its name: the node's name and the role (`layer0/ffn/up/weight`).
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}
