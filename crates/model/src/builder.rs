//! From a configuration to the graph, with a recipe for each of its tensors and a check of each stored tensor.

use std::collections::BTreeSet;

use crate::config::{Config, Family, Head, InputConfig};
use crate::error::Problem;
use crate::graph::{Activation, Graph, Input, Node, Op, Output, TensorSpec, ValueId};
use crate::pooling::{Pool, Pooling};
use crate::recipe::{Recipe, query_scale};
use crate::weights::Weights;

/// A graph under construction.
pub(crate) struct Builder<'a> {
    config: &'a Config,
    weights: &'a Weights,
    problems: &'a mut Vec<Problem>,
    used: BTreeSet<String>,
    nodes: Vec<Node>,
    tensors: Vec<TensorSpec>,
    recipes: Vec<Recipe>,
}

/// Where a layer's parts are stored.
struct LayerNames {
    layers: &'static str,
    queries_keys_values: [&'static str; 3],
    attention_out: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    ffn_norm: &'static str,
}

const BERT_LAYER: LayerNames = LayerNames {
    layers: "encoder.layer",
    queries_keys_values: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    ffn_norm: "output.LayerNorm",
};

const DISTILBERT_LAYER: LayerNames = LayerNames {
    layers: "transformer.layer",
    queries_keys_values: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    ffn_norm: "output_layer_norm",
};

const VIT_LAYER: LayerNames = LayerNames {
    layers: "encoder.layer",
    queries_keys_values: ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    attention_out: "attention.output.dense",
    attention_norm: "layernorm_before",
    up: "intermediate.dense",
    down: "output.dense",
    ffn_norm: "layernorm_after",
};

/// Stored tensors of an encoder that no inference needs.
const IDLE: [&str; 3] = ["embeddings.position_ids", "embeddings.token_type_ids", "embeddings.mask_token"];

/// Builds the graph; problems of stored tensors are reported, and the result is of use only if there were none.
pub(crate) fn build(
    config: &Config,
    pooling: Pooling,
    weights: &Weights,
    problems: &mut Vec<Problem>,
) -> (Graph, Vec<Recipe>) {
    let (nodes, tensors, recipes, used) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
    let mut builder = Builder { config, weights, problems, used, nodes, tensors, recipes };
    let (input, mut x) = builder.embeddings();
    for layer in 0..config.layers {
        x = match config.family {
            Family::Vit => builder.pre_norm_layer(layer, x),
            _ => builder.post_norm_layer(layer, x),
        };
    }
    let output = builder.head(pooling, x);
    builder.report_unexpected();
    let Builder { nodes, tensors, recipes, .. } = builder;
    (Graph { family: config.family.name().into(), input, nodes, output, tensors }, recipes)
}

impl Builder<'_> {
    fn embeddings(&mut self) -> (Input, ValueId) {
        let h = self.config.hidden;
        match self.config.input.clone() {
            InputConfig::Text { vocab, positions, skip, token_types } => {
                let max_tokens = positions - skip;
                let name = "embeddings/lookup";
                let recipe = Recipe::AsIs(self.stored("embeddings.word_embeddings.weight", &[vocab, h]));
                let table = self.tensor(name, "table", vocab, h, recipe);
                let x = self.node(name, Op::Lookup { table }, vec![0]);
                let table = self.stored("embeddings.position_embeddings.weight", &[positions, h]);
                let token_types =
                    token_types.map(|types| self.stored("embeddings.token_type_embeddings.weight", &[types, h]));
                let x = self.add_rows(max_tokens, Recipe::Positions { table, skip, token_types }, x);
                let x = self.norm("embeddings/norm", "embeddings.LayerNorm", x);
                (Input::Tokens { vocab, max_tokens }, x)
            }
            InputConfig::Image { channels, image_size, patch_size, mean, std, .. } => {
                let side = image_size / patch_size;
                let (rows, name) = (channels * patch_size * patch_size, "embeddings/patches");
                let stored = "embeddings.patch_embeddings.projection";
                let weight = self.stored(&format!("{stored}.weight"), &[h, channels, patch_size, patch_size]);
                let x = self.linear_of(name, Recipe::Transposed(weight), stored, rows, h, 0);
                let recipe = Recipe::AsIs(self.stored("embeddings.cls_token", &[1, 1, h]));
                let row = self.tensor("embeddings/cls", "row", 1, h, recipe);
                let x = self.node("embeddings/cls", Op::PrependRow { row }, vec![x]);
                let rows = side * side + 1;
                let recipe = Recipe::AsIs(self.stored("embeddings.position_embeddings", &[1, rows, h]));
                let x = self.add_rows(rows, recipe, x);
                (Input::Patches { channels, image_size, patch_size, mean, std }, x)
            }
        }
    }

    /// `x = norm(x + attention(x)); x = norm(x + ffn(x))`.
    fn post_norm_layer(&mut self, layer: usize, x: ValueId) -> ValueId {
        let names = match self.config.family {
            Family::DistilBert => &DISTILBERT_LAYER,
            _ => &BERT_LAYER,
        };
        let (at, stored) = (format!("layer{layer}"), format!("{}.{layer}", names.layers));
        let y = self.attention(&at, &stored, names, true, x);
        let y = self.node(&format!("{at}/attention/add"), Op::Add, vec![y, x]);
        let x = self.norm(&format!("{at}/attention/norm"), &format!("{stored}.{}", names.attention_norm), y);
        let y = self.feed_forward(&at, &stored, names, x);
        let y = self.node(&format!("{at}/ffn/add"), Op::Add, vec![y, x]);
        self.norm(&format!("{at}/ffn/norm"), &format!("{stored}.{}", names.ffn_norm), y)
    }

    /// `x = x + attention(norm(x)); x = x + ffn(norm(x))`.
    fn pre_norm_layer(&mut self, layer: usize, x: ValueId) -> ValueId {
        let names = &VIT_LAYER;
        let qkv_bias = !matches!(self.config.input, InputConfig::Image { qkv_bias: false, .. });
        let (at, stored) = (format!("layer{layer}"), format!("{}.{layer}", names.layers));
        let y = self.norm(&format!("{at}/attention/norm"), &format!("{stored}.{}", names.attention_norm), x);
        let y = self.attention(&at, &stored, names, qkv_bias, y);
        let x = self.node(&format!("{at}/attention/add"), Op::Add, vec![y, x]);
        let y = self.norm(&format!("{at}/ffn/norm"), &format!("{stored}.{}", names.ffn_norm), x);
        let y = self.feed_forward(&at, &stored, names, y);
        self.node(&format!("{at}/ffn/add"), Op::Add, vec![y, x])
    }

    fn attention(&mut self, at: &str, stored: &str, names: &LayerNames, qkv_bias: bool, x: ValueId) -> ValueId {
        let (h, heads) = (self.config.hidden, self.config.heads);
        let scale = query_scale(h / heads);
        let parts = names.queries_keys_values.map(|part| format!("{stored}.{part}"));
        let weights = parts.each_ref().map(|part| self.stored(&format!("{part}.weight"), &[h, h]));
        let biases = qkv_bias.then(|| parts.each_ref().map(|part| self.stored(&format!("{part}.bias"), &[h])));
        let name = format!("{at}/attention/qkv");
        let weight = self.tensor(&name, "weight", h, 3 * h, Recipe::QueryKeyValue(weights, scale));
        let bias = self.tensor(&name, "bias", 1, 3 * h, Recipe::QueryKeyValueBias(biases, scale));
        let y = self.node(&name, Op::Linear { weight, bias }, vec![x]);
        let y = self.node(&format!("{at}/attention"), Op::Attention { heads }, vec![y]);
        self.linear(&format!("{at}/attention/out"), &format!("{stored}.{}", names.attention_out), h, h, y)
    }

    fn feed_forward(&mut self, at: &str, stored: &str, names: &LayerNames, x: ValueId) -> ValueId {
        let (h, inner) = (self.config.hidden, self.config.intermediate);
        let y = self.linear(&format!("{at}/ffn/up"), &format!("{stored}.{}", names.up), h, inner, x);
        let y = self.node(&format!("{at}/ffn/activation"), Op::Activation(self.config.activation), vec![y]);
        self.linear(&format!("{at}/ffn/down"), &format!("{stored}.{}", names.down), inner, h, y)
    }

    fn head(&mut self, pooling: Pooling, x: ValueId) -> Output {
        let h = self.config.hidden;
        let Head::Classifier(labels) = self.config.head.clone() else {
            match pooling.pool {
                Pool::Mean => self.node("pool/mean", Op::MeanRows, vec![x]),
                Pool::First => self.node("pool/first", Op::FirstRow, vec![x]),
            };
            return Output::Embedding { width: h, normalize: pooling.normalize };
        };
        let x = self.node("pool/first", Op::FirstRow, vec![x]);
        let (dense, activation, last) = match self.config.family {
            Family::Bert => ("pooler.dense", Activation::Tanh, "classifier"),
            Family::Roberta => ("classifier.dense", Activation::Tanh, "classifier.out_proj"),
            Family::DistilBert => ("pre_classifier", Activation::Relu, "classifier"),
            Family::Vit => {
                // The norm is taken row by row, so that of the first row alone is enough.
                let x = self.norm("head/norm", "layernorm", x);
                self.linear("head/classifier", "classifier", h, labels.len(), x);
                return Output::Logits { labels };
            }
        };
        let x = self.linear("head/dense", dense, h, h, x);
        let x = self.node("head/activation", Op::Activation(activation), vec![x]);
        self.linear("head/classifier", last, h, labels.len(), x);
        Output::Logits { labels }
    }

    fn linear(&mut self, name: &str, stored: &str, width_in: usize, width_out: usize, x: ValueId) -> ValueId {
        let weight = Recipe::Transposed(self.stored(&format!("{stored}.weight"), &[width_out, width_in]));
        self.linear_of(name, weight, stored, width_in, width_out, x)
    }

    fn linear_of(
        &mut self,
        name: &str,
        weight: Recipe,
        stored: &str,
        width_in: usize,
        width_out: usize,
        x: ValueId,
    ) -> ValueId {
        let bias = Recipe::AsIs(self.stored(&format!("{stored}.bias"), &[width_out]));
        let weight = self.tensor(name, "weight", width_in, width_out, weight);
        let bias = self.tensor(name, "bias", 1, width_out, bias);
        self.node(name, Op::Linear { weight, bias }, vec![x])
    }

    fn norm(&mut self, name: &str, stored: &str, x: ValueId) -> ValueId {
        let h = self.config.hidden;
        let gain = Recipe::AsIs(self.stored(&format!("{stored}.weight"), &[h]));
        let bias = Recipe::AsIs(self.stored(&format!("{stored}.bias"), &[h]));
        let gain = self.tensor(name, "gain", 1, h, gain);
        let bias = self.tensor(name, "bias", 1, h, bias);
        self.node(name, Op::LayerNorm { gain, bias, eps: self.config.eps }, vec![x])
    }

    fn add_rows(&mut self, count: usize, recipe: Recipe, x: ValueId) -> ValueId {
        let rows = self.tensor("embeddings/positions", "rows", count, self.config.hidden, recipe);
        self.node("embeddings/positions", Op::AddRows { rows }, vec![x])
    }

    fn node(&mut self, name: &str, op: Op, inputs: Vec<ValueId>) -> ValueId {
        self.nodes.push(Node { name: name.into(), op, inputs });
        self.nodes.len()
    }

    fn tensor(&mut self, node: &str, role: &str, rows: usize, cols: usize, recipe: Recipe) -> String {
        let name = format!("{node}/{role}");
        self.tensors.push(TensorSpec { name: name.clone(), rows, cols });
        self.recipes.push(recipe);
        name
    }

    /// Checks that a stored tensor is there, of this shape, readable and finite.
    fn stored(&mut self, name: &str, shape: &[usize]) -> String {
        self.used.insert(name.to_string());
        match self.weights.entry(name) {
            None => self.problems.push(Problem::MissingTensor { name: name.into() }),
            Some(entry) if entry.shape != shape => self.problems.push(Problem::WrongShape {
                name: entry.stored_name.clone(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            }),
            Some(entry) => {
                let checked = self.weights.check_type(entry).and_then(|()| self.weights.check_finite(entry));
                self.problems.extend(checked.err());
            }
        }
        name.to_string()
    }

    /// A layer or embedding that the configuration does not know would be left out in silence.
    fn report_unexpected(&mut self) {
        for (name, entry) in self.weights.entries() {
            let of_encoder =
                ["encoder.layer.", "transformer.layer.", "embeddings."].iter().any(|p| name.starts_with(p));
            if of_encoder && !self.used.contains(name) && !IDLE.contains(&name) {
                self.problems.push(Problem::UnexpectedTensor { name: entry.stored_name.clone() });
            }
        }
    }
}
