//! The graph of an encoder: BERT and its kin, and vision transformers.

use crate::builder::Builder;
use crate::config::Family;
use crate::encoder_config::{EncoderConfig, Head, InputConfig};
use crate::graph::{Activation, Input, Op, Output, ValueId};
use crate::pooling::{Pool, Pooling};
use crate::recipe::{Block, Recipe, query_scale};

/// An encoder under construction.
struct Encoder<'a, 'b> {
    config: &'a EncoderConfig,
    builder: &'a mut Builder<'b>,
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

/// Where the stored tensors of the body are.
const BODY: [&str; 3] = ["encoder.layer.", "transformer.layer.", "embeddings."];
/// Stored tensors of the body that no inference needs.
const IDLE: [&str; 3] = ["embeddings.position_ids", "embeddings.token_type_ids", "embeddings.mask_token"];

impl Builder<'_> {
    /// The nodes of an encoder.
    pub(crate) fn encoder(&mut self, config: &EncoderConfig, pooling: Pooling) -> (Input, Output) {
        let mut encoder = Encoder { config, builder: self };
        let (input, mut x) = encoder.embeddings();
        for layer in 0..config.layers {
            x = match config.family {
                Family::Vit => encoder.pre_norm_layer(layer, x),
                _ => encoder.post_norm_layer(layer, x),
            };
        }
        let output = encoder.head(pooling, x);
        self.report_unexpected(&BODY, |name| IDLE.contains(&name));
        (input, output)
    }
}

impl Encoder<'_, '_> {
    fn embeddings(&mut self) -> (Input, ValueId) {
        let h = self.config.hidden;
        match self.config.input.clone() {
            InputConfig::Text { vocab, positions, skip, token_types } => {
                let max_tokens = positions - skip;
                let name = "embeddings/lookup";
                let words = self.builder.stored("embeddings.word_embeddings.weight", &[vocab, h]);
                let words = Block::as_is(words, vocab, h);
                let table = self.builder.tensor(name, "table", vocab, h, words.into());
                let x = self.builder.node(name, Op::Lookup { table }, vec![0]);
                let table = self.builder.stored("embeddings.position_embeddings.weight", &[positions, h]);
                let token_types = token_types
                    .map(|types| self.builder.stored("embeddings.token_type_embeddings.weight", &[types, h]));
                let table = Block::as_is(table, positions, h).below(skip);
                let x = self.add_rows(max_tokens, Recipe::Blocks { blocks: vec![table], plus: token_types }, x);
                let x = self.norm("embeddings/norm", "embeddings.LayerNorm", x);
                (Input::Tokens { vocab, max_tokens }, x)
            }
            InputConfig::Image { channels, image_size, patch_size, mean, std, .. } => {
                let side = image_size / patch_size;
                let (rows, name) = (channels * patch_size * patch_size, "embeddings/patches");
                let stored = "embeddings.patch_embeddings.projection";
                let weight = self.builder.stored(&format!("{stored}.weight"), &[h, channels, patch_size, patch_size]);
                let weight = Block::transposed(weight, rows, h);
                let bias = Block::as_is(self.builder.stored(&format!("{stored}.bias"), &[h]), 1, h);
                let x = self.builder.linear_of(name, weight.into(), Some(bias.into()), rows, h, 0);
                let row = Block::as_is(self.builder.stored("embeddings.cls_token", &[1, 1, h]), 1, h);
                let row = self.builder.tensor("embeddings/cls", "row", 1, h, row.into());
                let x = self.builder.node("embeddings/cls", Op::PrependRow { row }, vec![x]);
                let rows = side * side + 1;
                let table = self.builder.stored("embeddings.position_embeddings", &[1, rows, h]);
                let x = self.add_rows(rows, Block::as_is(table, rows, h).into(), x);
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
        let y = self.builder.node(&format!("{at}/attention/add"), Op::Add, vec![y, x]);
        let x = self.norm(&format!("{at}/attention/norm"), &format!("{stored}.{}", names.attention_norm), y);
        let y = self.feed_forward(&at, &stored, names, x);
        let y = self.builder.node(&format!("{at}/ffn/add"), Op::Add, vec![y, x]);
        self.norm(&format!("{at}/ffn/norm"), &format!("{stored}.{}", names.ffn_norm), y)
    }

    /// `x = x + attention(norm(x)); x = x + ffn(norm(x))`.
    fn pre_norm_layer(&mut self, layer: usize, x: ValueId) -> ValueId {
        let names = &VIT_LAYER;
        let qkv_bias = !matches!(self.config.input, InputConfig::Image { qkv_bias: false, .. });
        let (at, stored) = (format!("layer{layer}"), format!("{}.{layer}", names.layers));
        let y = self.norm(&format!("{at}/attention/norm"), &format!("{stored}.{}", names.attention_norm), x);
        let y = self.attention(&at, &stored, names, qkv_bias, y);
        let x = self.builder.node(&format!("{at}/attention/add"), Op::Add, vec![y, x]);
        let y = self.norm(&format!("{at}/ffn/norm"), &format!("{stored}.{}", names.ffn_norm), x);
        let y = self.feed_forward(&at, &stored, names, y);
        self.builder.node(&format!("{at}/ffn/add"), Op::Add, vec![y, x])
    }

    fn attention(&mut self, at: &str, stored: &str, names: &LayerNames, qkv_bias: bool, x: ValueId) -> ValueId {
        let (h, heads) = (self.config.hidden, self.config.heads);
        let scale = query_scale(h / heads);
        let parts = names.queries_keys_values.map(|part| format!("{stored}.{part}"));
        let beside = |(i, block): (usize, Block)| match i {
            0 => block.scaled(scale),
            _ => block.at(0, i * h),
        };
        let weights = parts.each_ref().map(|part| self.builder.stored(&format!("{part}.weight"), &[h, h]));
        let weights = weights.into_iter().map(|stored| Block::transposed(stored, h, h)).enumerate();
        let weights: Vec<Block> = weights.map(beside).collect();
        let mut biases = Vec::new();
        if qkv_bias {
            let stored = parts.each_ref().map(|part| self.builder.stored(&format!("{part}.bias"), &[h]));
            biases.extend(stored.into_iter().map(|stored| Block::as_is(stored, 1, h)).enumerate().map(beside));
        }
        let name = format!("{at}/attention/qkv");
        let y = self.builder.linear_of(&name, weights.into(), Some(biases.into()), h, 3 * h, x);
        let y = self.builder.node(&format!("{at}/attention"), Op::Attention { heads }, vec![y]);
        self.builder.linear(&format!("{at}/attention/out"), &format!("{stored}.{}", names.attention_out), h, h, y)
    }

    fn feed_forward(&mut self, at: &str, stored: &str, names: &LayerNames, x: ValueId) -> ValueId {
        let (h, inner) = (self.config.hidden, self.config.intermediate);
        let y = self.builder.linear(&format!("{at}/ffn/up"), &format!("{stored}.{}", names.up), h, inner, x);
        let y = self.builder.node(&format!("{at}/ffn/activation"), Op::Activation(self.config.activation), vec![y]);
        self.builder.linear(&format!("{at}/ffn/down"), &format!("{stored}.{}", names.down), inner, h, y)
    }

    fn head(&mut self, pooling: Pooling, x: ValueId) -> Output {
        let h = self.config.hidden;
        let Head::Classifier(labels) = self.config.head.clone() else {
            match pooling.pool {
                Pool::Mean => self.builder.node("pool/mean", Op::MeanRows, vec![x]),
                Pool::First => self.builder.node("pool/first", Op::FirstRow, vec![x]),
            };
            return Output::Embedding { width: h, normalize: pooling.normalize };
        };
        let x = self.builder.node("pool/first", Op::FirstRow, vec![x]);
        let (dense, activation, last) = match self.config.family {
            Family::Bert => ("pooler.dense", Activation::Tanh, "classifier"),
            Family::Roberta => ("classifier.dense", Activation::Tanh, "classifier.out_proj"),
            Family::DistilBert => ("pre_classifier", Activation::Relu, "classifier"),
            // Vision transformers.
            _ => {
                // The norm is taken row by row, so that of the first row alone is enough.
                let x = self.norm("head/norm", "layernorm", x);
                self.builder.linear("head/classifier", "classifier", h, labels.len(), x);
                return Output::Logits { labels };
            }
        };
        let x = self.builder.linear("head/dense", dense, h, h, x);
        let x = self.builder.node("head/activation", Op::Activation(activation), vec![x]);
        self.builder.linear("head/classifier", last, h, labels.len(), x);
        Output::Logits { labels }
    }

    fn norm(&mut self, name: &str, stored: &str, x: ValueId) -> ValueId {
        self.builder.norm(name, stored, self.config.hidden, self.config.eps, x)
    }

    fn add_rows(&mut self, count: usize, recipe: Recipe, x: ValueId) -> ValueId {
        let rows = self.builder.tensor("embeddings/positions", "rows", count, self.config.hidden, recipe);
        self.builder.node("embeddings/positions", Op::AddRows { rows }, vec![x])
    }
}
