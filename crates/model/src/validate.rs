//! What makes a [`Graph`] well formed.
//!
//! A graph may come from a stranger, so [`Graph::validate`] trusts nothing in it: every index, name and size is checked,
//! every product is bounded, and no input makes it panic or allocate beyond the graph's own size.

use std::collections::BTreeMap;

use crate::graph::{Graph, Input, Node, Op, Output, Reach, TensorSpec};

/// Most nodes in a graph.
pub const MAX_NODES: usize = 1 << 14;
/// Most elements of one tensor.
pub const MAX_TENSOR_ELEMENTS: usize = 1 << 32;
/// Most elements of all tensors together.
pub const MAX_MODEL_ELEMENTS: usize = 1 << 36;
/// Largest width of a value.
pub const MAX_WIDTH: usize = 1 << 20;
/// Most rows of one input: tokens or patches, with the rows put before them.
pub const MAX_ROWS: usize = 1 << 16;
/// Longest name of a node, tensor, family or label, in bytes.
pub const MAX_NAME: usize = 200;

/// Why a graph is refused. Whoever made the graph is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// The input is not one that can be given.
    #[error("input: {what}")]
    Input {
        /// What is wrong with it.
        what: String,
    },
    /// A node breaks a rule of its operation.
    #[error("node {index} ({name}): {what}")]
    Node {
        /// Index of the node.
        index: usize,
        /// Its name, shortened if it is long.
        name: String,
        /// The rule.
        what: String,
    },
    /// An entry of the tensor list breaks a rule.
    #[error("tensor {index} ({name}): {what}")]
    Tensor {
        /// Index of the tensor.
        index: usize,
        /// Its name, shortened if it is long.
        name: String,
        /// The rule.
        what: String,
    },
    /// The last value is not what the output says.
    #[error("output: {what}")]
    Output {
        /// What is wrong with it.
        what: String,
    },
    /// The graph as a whole is too large or empty.
    #[error("graph: {what}")]
    Graph {
        /// What is wrong with it.
        what: String,
    },
}

/// How many rows a value has for each input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// As many as the input has tokens or patches, and this many more.
    PerInput(usize),
    /// One: the value comes after [`Op::FirstRow`], [`Op::LastRow`] or [`Op::MeanRows`].
    One,
}

impl Graph {
    /// Checks every rule: names, indices, shapes, use of every tensor and of every value, and the output.
    ///
    /// # Errors
    /// The first rule that is broken. Never panics, whatever the graph holds.
    pub fn validate(&self) -> Result<(), GraphError> {
        Check::new(self)?.run()
    }
}

/// A pass over a graph.
struct Check<'a> {
    graph: &'a Graph,
    tensors: BTreeMap<&'a str, (&'a TensorSpec, bool)>,
    values: Vec<(Rows, usize)>,
    read: Vec<bool>,
}

impl<'a> Check<'a> {
    fn new(graph: &'a Graph) -> Result<Self, GraphError> {
        let fail = |what: String| Err(GraphError::Graph { what });
        if graph.nodes.is_empty() || graph.nodes.len() > MAX_NODES {
            return fail(format!("{} nodes; from 1 to {MAX_NODES} are allowed", graph.nodes.len()));
        }
        if graph.tensors.len() > 4 * MAX_NODES {
            return fail(format!("{} tensors; at most {} are allowed", graph.tensors.len(), 4 * MAX_NODES));
        }
        if !is_name(&graph.family) {
            return fail("family is not a name".into());
        }
        let mut tensors = BTreeMap::new();
        let mut total = 0_usize;
        for (index, spec) in graph.tensors.iter().enumerate() {
            let fail = |what: String| Err(GraphError::Tensor { index, name: shorten(&spec.name), what });
            if !is_name(&spec.name) {
                return fail("not a name".into());
            }
            match spec.rows.checked_mul(spec.cols) {
                Some(n @ 1..=MAX_TENSOR_ELEMENTS) if spec.cols <= MAX_WIDTH => total += n,
                _ => return fail(format!("shape [{}, {}] is empty or too large", spec.rows, spec.cols)),
            }
            if total > MAX_MODEL_ELEMENTS {
                return fail("the tensors together are too large".into());
            }
            if tensors.insert(spec.name.as_str(), (spec, false)).is_some() {
                return fail("the name is taken twice".into());
            }
        }
        let values = Vec::with_capacity(graph.nodes.len() + 1);
        Ok(Self { graph, tensors, values, read: vec![false; graph.nodes.len() + 1] })
    }

    fn run(mut self) -> Result<(), GraphError> {
        self.input()?;
        let mut names = BTreeMap::new();
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let shape = if !is_name(&node.name) {
                Err("the name is not made of letters, digits and _-./".to_string())
            } else if let Some(first) = names.insert(node.name.as_str(), index) {
                Err(format!("node {first} has the same name"))
            } else {
                self.node(index, node)
            };
            let shape = shape.map_err(|what| GraphError::Node { index, name: shorten(&node.name), what })?;
            self.values.push(shape);
        }
        let last = self.graph.nodes.len();
        if let Some(value) = (0..last).find(|v| !self.read[*v]) {
            let what = match value {
                0 => return Err(GraphError::Input { what: "no node reads it".into() }),
                _ => "no node reads its result".to_string(),
            };
            let name = shorten(&self.graph.nodes[value - 1].name);
            return Err(GraphError::Node { index: value - 1, name, what });
        }
        for (index, spec) in self.graph.tensors.iter().enumerate() {
            if !self.tensors[spec.name.as_str()].1 {
                let name = shorten(&spec.name);
                return Err(GraphError::Tensor { index, name, what: "no node names it".into() });
            }
        }
        self.output(self.values[last])
    }

    fn input(&mut self) -> Result<(), GraphError> {
        let fail = |what: String| Err(GraphError::Input { what });
        let first = &self.graph.nodes[0];
        match &self.graph.input {
            Input::Tokens { vocab, max_tokens } => {
                if *vocab == 0 || *vocab > 1 << 24 || *max_tokens == 0 || *max_tokens > MAX_ROWS {
                    return fail(format!("a vocabulary of {vocab} and {max_tokens} tokens"));
                }
                if !matches!(first.op, Op::Lookup { .. }) {
                    return fail("tokens need a lookup as node 0".into());
                }
            }
            Input::Patches { channels, image_size, patch_size, mean, std } => {
                let side = if *patch_size == 0 || image_size % patch_size != 0 { 0 } else { image_size / patch_size };
                if *channels == 0 || *channels > 64 || side == 0 || *image_size > 1 << 14 || side * side > MAX_ROWS {
                    return fail(format!("{channels} channels, side {image_size}, patches of side {patch_size}"));
                }
                if mean.len() != *channels || std.len() != *channels {
                    return fail(format!("{} means and {} deviations, {channels} channels", mean.len(), std.len()));
                }
                if mean.iter().any(|v| !v.is_finite()) || std.iter().any(|v| !v.is_finite() || *v <= 0.0) {
                    return fail("a mean or deviation per channel is not a usable number".into());
                }
                if !matches!(first.op, Op::Linear { .. }) {
                    return fail("patches need a linear layer as node 0".into());
                }
            }
        }
        self.values.push((Rows::PerInput(0), self.graph.input_width()));
        Ok(())
    }

    /// The shape of a node's result, after all rules of its operation.
    fn node(&mut self, index: usize, node: &'a Node) -> Result<(Rows, usize), String> {
        let arity = node.op.arity();
        if node.inputs.len() != arity {
            return Err(format!("reads {} values instead of {arity}", node.inputs.len()));
        }
        for input in &node.inputs {
            if *input > index {
                return Err(format!("reads value {input}, which does not exist before it"));
            }
            if *input == 0 && index > 0 {
                return Err("only node 0 reads the input".into());
            }
            self.read[*input] = true;
        }
        self.side(&node.op)?;
        let (rows, width) = self.values[node.inputs[0]];
        let per_input = |what: &str| match rows {
            Rows::PerInput(extra) => Ok(extra),
            Rows::One => Err(format!("{what} needs the rows of an input, and they are already one")),
        };
        match &node.op {
            Op::Lookup { table } => {
                if index != 0 {
                    return Err("a lookup stands only at node 0".into());
                }
                let spec = self.tensor(table)?;
                Ok((rows, shaped(spec, width, spec.cols)?))
            }
            Op::AddRows { rows: name } => {
                let most = self.graph.max_rows() + per_input("adding rows")?;
                let spec = self.tensor(name)?;
                if spec.rows < most || spec.cols != width {
                    return Err(format!("{} is [{}, {}], not [>= {most}, {width}]", name, spec.rows, spec.cols));
                }
                Ok((rows, width))
            }
            Op::PrependRow { row } => {
                let extra = per_input("putting a row before")?;
                if self.graph.max_rows() + extra >= MAX_ROWS {
                    return Err(format!("more than {MAX_ROWS} rows"));
                }
                Ok((Rows::PerInput(extra + 1), shaped(self.tensor(row)?, 1, width)?))
            }
            Op::Linear { weight, bias } => {
                let spec = self.tensor(weight)?;
                let cols = shaped(spec, width, spec.cols)?;
                if let Some(bias) = bias {
                    shaped(self.tensor(bias)?, 1, cols)?;
                }
                Ok((rows, cols))
            }
            Op::LayerNorm { gain, bias, eps } => {
                normalizes(*eps, width)?;
                for name in [gain, bias] {
                    shaped(self.tensor(name)?, 1, width)?;
                }
                Ok((rows, width))
            }
            Op::RmsNorm { gain, eps } => {
                normalizes(*eps, width)?;
                Ok((rows, shaped(self.tensor(gain)?, 1, width)?))
            }
            Op::Attention { heads } => {
                per_input("attention")?;
                if *heads == 0 || width % 3 != 0 || (width / 3) % heads != 0 {
                    return Err(format!("width {width} is not queries, keys and values of {heads} heads"));
                }
                Ok((rows, width / 3))
            }
            Op::CausalAttention { heads, kv_heads, rotary, reach } => {
                per_input("attention")?;
                Ok((rows, causal(width, *heads, *kv_heads, rotary.as_deref(), reach)?))
            }
            Op::AddPositions { rows: name } => {
                let most = self.graph.max_rows();
                per_input("adding positions")?;
                let spec = self.tensor(name)?;
                if spec.rows < most || spec.cols != width {
                    return Err(format!("{} is [{}, {}], not [>= {most}, {width}]", name, spec.rows, spec.cols));
                }
                Ok((rows, width))
            }
            Op::Gated(_) => {
                if !width.is_multiple_of(2) {
                    return Err(format!("width {width} has no two halves"));
                }
                Ok((rows, width / 2))
            }
            Op::Route { top } => {
                if *top == 0 || *top > width {
                    return Err(format!("{top} of {width} experts have a say"));
                }
                Ok((rows, width))
            }
            Op::ScaleBlocks => {
                let (other_rows, blocks) = self.values[node.inputs[1]];
                if other_rows != rows || blocks == 0 || !width.is_multiple_of(blocks) {
                    return Err(format!(
                        "width {width} is not one block for each of {blocks} columns of the same rows"
                    ));
                }
                Ok((rows, width))
            }
            Op::Experts { top, experts, .. } => {
                let (other_rows, scores) = self.values[node.inputs[1]];
                if other_rows != rows || scores != experts.len() || *top == 0 || *top > scores {
                    return Err(format!("{top} of {} experts by {scores} scores of the same rows", experts.len()));
                }
                let inner = self.tensors.get(experts[0].down.as_str()).map_or(0, |(spec, _)| spec.rows);
                for expert in experts {
                    shaped(self.tensor(&expert.up)?, width, inner.saturating_mul(2))?;
                    shaped(self.tensor(&expert.down)?, inner, width)?;
                }
                Ok((rows, width))
            }
            Op::LastRow => per_input("taking the last row").map(|_| (Rows::One, width)),
            Op::Add => {
                let other = self.values[node.inputs[1]];
                if other != (rows, width) {
                    return Err(format!("adds shapes {:?} and {other:?}", (rows, width)));
                }
                Ok((rows, width))
            }
            Op::Activation(_) => Ok((rows, width)),
            Op::FirstRow => per_input("taking the first row").map(|_| (Rows::One, width)),
            Op::MeanRows => per_input("the mean over rows").map(|_| (Rows::One, width)),
        }
    }

    /// Holds operations of encoders to encoders and those of decoders to decoders.
    fn side(&self, op: &Op) -> Result<(), String> {
        let of_encoders = matches!(
            op,
            Op::Attention { .. } | Op::AddRows { .. } | Op::PrependRow { .. } | Op::FirstRow | Op::MeanRows
        );
        let of_decoders =
            matches!(op, Op::CausalAttention { .. } | Op::AddPositions { .. } | Op::Experts { .. } | Op::LastRow);
        match self.graph.is_decoder() {
            true if of_encoders => Err("it has no place in a graph whose output is a next token".into()),
            false if of_decoders => Err("it has a place only in a graph whose output is a next token".into()),
            _ => Ok(()),
        }
    }

    /// Marks a tensor as used, once.
    fn tensor(&mut self, name: &str) -> Result<&'a TensorSpec, String> {
        let entry =
            self.tensors.get_mut(name).ok_or_else(|| format!("names tensor {}, not in the list", shorten(name)))?;
        if entry.1 {
            return Err(format!("names tensor {}, which is already in use", shorten(name)));
        }
        entry.1 = true;
        Ok(entry.0)
    }

    fn output(&self, last: (Rows, usize)) -> Result<(), GraphError> {
        let fail = |what: String| Err(GraphError::Output { what });
        if last.0 != Rows::One {
            return fail("the last value has the rows of the input, not one".into());
        }
        let width = match &self.graph.output {
            Output::Embedding { width, .. } => *width,
            Output::Logits { labels } => {
                if labels.iter().any(|label| label.len() > MAX_NAME) {
                    return fail(format!("a label has more than {MAX_NAME} bytes"));
                }
                labels.len()
            }
            Output::NextToken { vocab } => {
                if !matches!(self.graph.input, Input::Tokens { vocab: read, .. } if read == *vocab) {
                    return fail(format!("a token of {vocab}, which the input does not take"));
                }
                if !matches!(self.graph.nodes.last(), Some(Node { op: Op::Linear { .. }, .. })) {
                    return fail("the scores of the next token do not come from a linear layer".into());
                }
                *vocab
            }
        };
        match width == last.1 {
            true => Ok(()),
            false => fail(format!("the last value has width {}, the output {width}", last.1)),
        }
    }
}

/// The width of the result of a causal attention, after its rules.
fn causal(width: usize, heads: usize, kv_heads: usize, rotary: Option<&[f64]>, reach: &Reach) -> Result<usize, String> {
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} heads of queries cannot share {kv_heads} of keys and values"));
    }
    let parts = kv_heads.checked_mul(2).and_then(|keys_values| keys_values.checked_add(heads));
    let Some(head) = parts.filter(|parts| width.is_multiple_of(*parts)).map(|parts| width / parts) else {
        return Err(format!("width {width} is not {heads} heads of queries and {kv_heads} of keys and of values"));
    };
    if let Some(rotary) = rotary {
        if head != 2 * rotary.len() {
            return Err(format!("{} rotary frequencies for heads of width {head}", rotary.len()));
        }
        if rotary.iter().any(|frequency| !frequency.is_finite()) {
            return Err("a rotary frequency is not finite".into());
        }
    }
    if reach.window == Some(0) || reach.window.is_some_and(|window| window > MAX_ROWS) || reach.global > MAX_ROWS {
        return Err(format!("a window of {:?} and {} global positions", reach.window, reach.global));
    }
    Ok(heads * head)
}

/// Whether a norm of this eps and width is one.
fn normalizes(eps: f64, width: usize) -> Result<(), String> {
    if !(eps.is_finite() && eps > 0.0 && eps < 1.0) {
        return Err(format!("eps {eps} is not between 0 and 1"));
    }
    match width {
        0 | 1 => Err("the norm of a single number is constant".into()),
        _ => Ok(()),
    }
}

/// The width of a tensor that must have this shape.
fn shaped(spec: &TensorSpec, rows: usize, cols: usize) -> Result<usize, String> {
    match (spec.rows, spec.cols) == (rows, cols) {
        true => Ok(cols),
        false => Err(format!("{} is [{}, {}], not [{rows}, {cols}]", spec.name, spec.rows, spec.cols)),
    }
}

/// Names reach logs, file headers and error texts, so they are short and plain.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
}

fn shorten(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_default).collect()
}
