//! The shape of each value of a graph, and what else can be read off it or changed in it as a whole.

use sha2::{Digest, Sha256};

use crate::graph::{Graph, Input, Node, Op, Output, Reach, TensorSpec, ValueId};

impl Graph {
    /// The shape of a value for an input of `rows` tokens or patches: rows for each input, and width.
    /// `(0, 0)` where the value does not exist or a graph that was not validated leaves it open.
    pub fn shape(&self, value: ValueId, rows: usize) -> (usize, usize) {
        let width = self.width(value);
        let mut extra = 0;
        let mut at = value;
        while let Some((node, input)) = self.step_back(at) {
            match node.op {
                Op::FirstRow | Op::LastRow | Op::MeanRows => return (1, width),
                Op::PrependRow { .. } => extra += 1,
                _ => {}
            }
            at = input;
        }
        if at == 0 { (rows.saturating_add(extra), width) } else { (0, 0) }
    }

    /// The width of a value; of value 0 the vocabulary (one-hot) or the width of a patch. 0 where the value does not
    /// exist or a graph that was not validated leaves it open.
    pub fn width(&self, value: ValueId) -> usize {
        let mut at = value;
        // Parts that the operations on the way take of the width of a tensor.
        let mut parts = (1_u128, 1_u128);
        while let Some((node, input)) = self.step_back(at) {
            let (named, part) = match &node.op {
                Op::Lookup { table } => (Some(table), (1, 1)),
                Op::Linear { weight, .. } => (Some(weight), (1, 1)),
                Op::PrependRow { row } => (Some(row), (1, 1)),
                Op::LayerNorm { gain, .. } | Op::RmsNorm { gain, .. } => (Some(gain), (1, 1)),
                Op::AddRows { rows } | Op::AddPositions { rows } => (Some(rows), (1, 1)),
                Op::Attention { .. } => (None, (1, 3)),
                Op::CausalAttention { heads, kv_heads, .. } => {
                    (None, (*heads, heads.saturating_add(kv_heads.saturating_mul(2))))
                }
                Op::Gated(_) => (None, (1, 2)),
                Op::Add | Op::Activation(_) | Op::Route { .. } | Op::ScaleBlocks | Op::Experts { .. } => (None, (1, 1)),
                Op::FirstRow | Op::LastRow | Op::MeanRows => (None, (1, 1)),
            };
            if let Some(name) = named {
                let cols = self.tensor_spec(name).map_or(0, |spec| spec.cols) as u128;
                let width = cols.checked_mul(parts.0).and_then(|width| width.checked_div(parts.1));
                return width.and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
            }
            match (parts.0.checked_mul(part.0 as u128), parts.1.checked_mul(part.1 as u128)) {
                (Some(of), Some(all)) => parts = (of, all),
                _ => return 0,
            }
            at = input;
        }
        if at == 0 { self.input_width() } else { 0 }
    }

    /// The entry of the tensor list with this name.
    pub fn tensor_spec(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|spec| spec.name == name)
    }

    /// Largest number of rows of an input: longest text in tokens, or the number of patches.
    pub fn max_rows(&self) -> usize {
        match &self.input {
            Input::Tokens { max_tokens, .. } => *max_tokens,
            Input::Patches { image_size, patch_size, .. } => {
                let side = image_size.checked_div(*patch_size).unwrap_or(0);
                side.checked_mul(side).unwrap_or(0)
            }
        }
    }

    /// Whether a node adds a change of low rank to a linear layer: the sum of that and of a linear layer that reads another one.
    pub fn is_low_rank_sum(&self, index: usize) -> bool {
        let linear = |value: &ValueId| {
            let node = self.nodes.get(value.checked_sub(1)?)?;
            matches!(node.op, Op::Linear { .. }).then_some(node)
        };
        let Some(Node { op: Op::Add, inputs, .. }) = self.nodes.get(index) else { return false };
        let [whole, up] = inputs.as_slice() else { return false };
        linear(whole).is_some() && linear(up).and_then(|up| linear(up.inputs.first()?)).is_some()
    }

    /// Whether it gives the scores of a next token: then its attention is causal, and its input is a sequence that goes on.
    pub fn is_decoder(&self) -> bool {
        matches!(self.output, Output::NextToken { .. })
    }

    /// Whether a mixture in it has a public gate: every node learns which experts each token goes to.
    pub fn opens_gate(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.op, Op::Experts { .. }))
    }

    /// Number of causal attentions: as many have keys and values to keep from step to step.
    pub fn attentions(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node.op, Op::CausalAttention { .. })).count()
    }

    /// A decoder whose queries see `reach` in every layer; windows of its own that are shorter stay. Other graphs stay as they
    /// are. What comes of it is no longer quite the model, and costs less.
    pub fn with_reach(mut self, reach: Reach) -> Self {
        let context = self.max_rows();
        for node in &mut self.nodes {
            if let Op::CausalAttention { reach: own, .. } = &mut node.op {
                let window = match (own.window, reach.window) {
                    (Some(own), Some(asked)) => Some(own.min(asked)),
                    (own, asked) => own.or(asked),
                };
                *own = Reach { window, global: own.global.max(reach.global) }.within(context);
            }
        }
        self
    }

    /// A decoder that takes sequences of at most `tokens` tokens, if that is less than it takes. Other graphs stay as they are.
    pub fn with_context(mut self, tokens: usize) -> Self {
        if !self.is_decoder() {
            return self;
        }
        if let Input::Tokens { max_tokens, .. } = &mut self.input {
            *max_tokens = tokens.clamp(1, (*max_tokens).max(1));
        }
        let context = self.max_rows();
        for node in &mut self.nodes {
            if let Op::CausalAttention { reach, .. } = &mut node.op {
                *reach = reach.within(context);
            }
        }
        self
    }

    /// SHA-256 of the graph, the same for equal graphs on every machine.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"tercet graph 1\0");
        // Structs serialise in the order of their fields; a graph holds no map.
        let json = serde_json::to_vec(self).unwrap_or_default();
        hash.update((json.len() as u64).to_le_bytes());
        hash.update(&json);
        hash.finalize().into()
    }

    /// The node that makes a value and the first value that it reads; none for the input and for what breaks the rules.
    fn step_back(&self, value: ValueId) -> Option<(&Node, ValueId)> {
        let node = self.nodes.get(value.checked_sub(1)?)?;
        let input = *node.inputs.first()?;
        (input < value).then_some((node, input))
    }

    pub(crate) fn input_width(&self) -> usize {
        match &self.input {
            Input::Tokens { vocab, .. } => *vocab,
            Input::Patches { channels, patch_size, .. } => {
                patch_size.checked_mul(*patch_size).and_then(|a| a.checked_mul(*channels)).unwrap_or(0)
            }
        }
    }
}

impl Reach {
    /// Whether the query at a position sees the key at another.
    pub fn sees(&self, query: usize, key: usize) -> bool {
        key <= query && (key < self.global || self.window.is_none_or(|window| query - key < window))
    }

    /// The same reach for sequences of at most `context` rows, where a window of all of them is none.
    fn within(self, context: usize) -> Self {
        match self.window.filter(|window| *window < context) {
            Some(window) => Self { window: Some(window), global: self.global.min(context) },
            None => Self::default(),
        }
    }
}

impl Op {
    /// The tensors that it names.
    pub fn tensors(&self) -> Vec<&str> {
        match self {
            Self::Lookup { table } => vec![table],
            Self::AddRows { rows } | Self::AddPositions { rows } => vec![rows],
            Self::PrependRow { row } => vec![row],
            Self::Linear { weight, bias } => std::iter::once(weight).chain(bias).map(String::as_str).collect(),
            Self::LayerNorm { gain, bias, .. } => vec![gain, bias],
            Self::RmsNorm { gain, .. } => vec![gain],
            Self::Experts { experts, .. } => experts.iter().flat_map(|e| [e.up.as_str(), e.down.as_str()]).collect(),
            Self::Attention { .. }
            | Self::CausalAttention { .. }
            | Self::Add
            | Self::Activation(_)
            | Self::Gated(_)
            | Self::Route { .. }
            | Self::ScaleBlocks
            | Self::FirstRow
            | Self::LastRow
            | Self::MeanRows => Vec::new(),
        }
    }

    /// How many values it reads.
    pub fn arity(&self) -> usize {
        if matches!(self, Self::Add | Self::ScaleBlocks | Self::Experts { .. }) { 2 } else { 1 }
    }
}
