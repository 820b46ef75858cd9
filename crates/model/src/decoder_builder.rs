//! The graph of a decoder: GPT-2, and LLaMA with its kin.

use crate::builder::Builder;
use crate::config::Family;
use crate::decoder_config::DecoderConfig;
use crate::gate::Gate;
use crate::graph::{Activation, Expert, Input, Op, Output, Reach, ValueId};
use crate::recipe::{Block, LOG2_E, Recipe, query_scale};

/// Where the stored tensors of the body are.
const BODY: [&str; 7] = ["h.", "wte.", "wpe.", "ln_f.", "layers.", "embed_tokens.", "norm."];
/// Endings of stored tensors of the body that no inference needs: masks, and frequencies that the configuration gives.
const IDLE: [&str; 3] = [".attn.bias", ".attn.masked_bias", ".self_attn.rotary_emb.inv_freq"];

/// A decoder under construction.
struct Decoder<'a, 'b> {
    config: &'a DecoderConfig,
    gate: Gate,
    builder: &'a mut Builder<'b>,
}

impl Builder<'_> {
    /// The nodes of a decoder.
    pub(crate) fn decoder(&mut self, config: &DecoderConfig, gate: Gate) -> (Input, Output) {
        let mut decoder = Decoder { config, gate, builder: self };
        let mut x = decoder.embeddings();
        for (layer, window) in config.windows.iter().enumerate() {
            x = decoder.layer(layer, *window, x);
        }
        decoder.head(x);
        self.report_unexpected(&BODY, |name| IDLE.iter().any(|ending| name.ends_with(ending)));
        (Input::Tokens { vocab: config.vocab, max_tokens: config.context }, Output::NextToken { vocab: config.vocab })
    }
}

impl Decoder<'_, '_> {
    fn is_gpt2(&self) -> bool {
        self.config.family == Family::Gpt2
    }

    /// The name of the table of embeddings, `[vocab, hidden]`.
    fn table(&mut self) -> Block {
        let (vocab, h) = (self.config.vocab, self.config.hidden);
        let name = if self.is_gpt2() { "wte.weight" } else { "embed_tokens.weight" };
        Block::as_is(self.builder.stored(name, &[vocab, h]), vocab, h)
    }

    fn embeddings(&mut self) -> ValueId {
        let (vocab, h, positions) = (self.config.vocab, self.config.hidden, self.config.positions);
        let table = self.table();
        let table = self.builder.tensor("embeddings/lookup", "table", vocab, h, table.into());
        let x = self.builder.node("embeddings/lookup", Op::Lookup { table }, vec![0]);
        if !self.is_gpt2() {
            return x;
        }
        let rows = Block::as_is(self.builder.stored("wpe.weight", &[positions, h]), positions, h);
        let rows = self.builder.tensor("embeddings/positions", "rows", positions, h, rows.into());
        self.builder.node("embeddings/positions", Op::AddPositions { rows }, vec![x])
    }

    /// `x = x + attention(norm(x)); x = x + ffn(norm(x))`.
    fn layer(&mut self, layer: usize, window: Option<usize>, x: ValueId) -> ValueId {
        let at = format!("layer{layer}");
        let (stored, norms) = match self.is_gpt2() {
            true => (format!("h.{layer}"), ["ln_1", "ln_2"]),
            false => (format!("layers.{layer}"), ["input_layernorm", "post_attention_layernorm"]),
        };
        let y = self.norm(&format!("{at}/attention/norm"), &format!("{stored}.{}", norms[0]), x);
        let y = self.attention(&at, &stored, window, y);
        let x = self.builder.node(&format!("{at}/attention/add"), Op::Add, vec![y, x]);
        let y = self.norm(&format!("{at}/ffn/norm"), &format!("{stored}.{}", norms[1]), x);
        let y = match (self.config.family, self.config.experts) {
            (Family::Gpt2, _) => self.gpt2_feed_forward(&at, &stored, y),
            (_, Some((experts, top))) => match self.gate {
                Gate::Secret => self.mixture(&at, &stored, experts, top, y),
                Gate::Public => self.routed_mixture(&at, &stored, experts, top, y),
            },
            (_, None) => self.gated_feed_forward(&at, &stored, y),
        };
        self.builder.node(&format!("{at}/ffn/add"), Op::Add, vec![y, x])
    }

    fn attention(&mut self, at: &str, stored: &str, window: Option<usize>, x: ValueId) -> ValueId {
        let config = self.config;
        let (h, heads, kv_heads) = (config.hidden, config.heads, config.kv_heads);
        let (queries, keys) = (heads * config.head_width, kv_heads * config.head_width);
        let all = queries + 2 * keys;
        let name = format!("{at}/attention/qkv");
        let scale = query_scale(config.head_width);
        let y = if self.is_gpt2() {
            // Stored side by side and `[in, out]` as here: only the queries' columns are scaled.
            let mut scaled = |what: &str, shape: &[usize], rows: usize| {
                let name = self.builder.stored(&format!("{stored}.attn.c_attn.{what}"), shape);
                let whole = Block::as_is(name, rows, all);
                vec![whole.clone().columns(0, h).scaled(scale), whole.columns(h, all - h).at(0, h)]
            };
            let (weight, bias) = (scaled("weight", &[h, all], h), scaled("bias", &[all], 1));
            self.builder.linear_of(&name, weight.into(), Some(bias.into()), h, all, x)
        } else {
            let parts = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]
                .map(|(name, width)| (format!("{stored}.self_attn.{name}"), width));
            self.beside(&name, &parts, scale, config.biases.queries_keys_values, x)
        };
        let rotary = config.rotary.clone();
        let op = Op::CausalAttention { heads, kv_heads, rotary, reach: Reach { window, global: 0 } };
        let y = self.builder.node(&format!("{at}/attention"), op, vec![y]);
        let name = format!("{at}/attention/out");
        match self.is_gpt2() {
            true => self.conv1d(&name, &format!("{stored}.attn.c_proj"), queries, h, y),
            false => {
                let parts = [(format!("{stored}.self_attn.o_proj"), h)];
                self.beside_from(&name, &parts, 1.0, config.biases.attention_out, queries, y)
            }
        }
    }

    fn gpt2_feed_forward(&mut self, at: &str, stored: &str, x: ValueId) -> ValueId {
        let (h, inner) = (self.config.hidden, self.config.intermediate);
        let y = self.conv1d(&format!("{at}/ffn/up"), &format!("{stored}.mlp.c_fc"), h, inner, x);
        let activation = Op::Activation(self.config.activation);
        let y = self.builder.node(&format!("{at}/ffn/activation"), activation, vec![y]);
        self.conv1d(&format!("{at}/ffn/down"), &format!("{stored}.mlp.c_proj"), inner, h, y)
    }

    fn gated_feed_forward(&mut self, at: &str, stored: &str, x: ValueId) -> ValueId {
        let (h, inner, bias) = (self.config.hidden, self.config.intermediate, self.config.biases.feed_forward);
        let parts = ["gate_proj", "up_proj"].map(|name| (format!("{stored}.mlp.{name}"), inner));
        let y = self.beside(&format!("{at}/ffn/up"), &parts, 1.0, bias, x);
        let y = self.builder.node(&format!("{at}/ffn/gated"), Op::Gated(Activation::Silu), vec![y]);
        let parts = [(format!("{stored}.mlp.down_proj"), h)];
        self.beside_from(&format!("{at}/ffn/down"), &parts, 1.0, bias, inner, y)
    }

    /// Every expert side by side, all gates before all ups; each block weighed by the router before the sum over them, which
    /// the stacked down layers take.
    fn mixture(&mut self, at: &str, stored: &str, experts: usize, top: usize, x: ValueId) -> ValueId {
        let (h, inner) = (self.config.hidden, self.config.intermediate);
        let stored = format!("{stored}.block_sparse_moe");
        let scores = self.router(at, &stored, experts, x);
        let route = self.builder.node(&format!("{at}/ffn/route"), Op::Route { top }, vec![scores]);
        let of_experts = |part: &str| -> Vec<String> {
            (0..experts).map(|expert| format!("{stored}.experts.{expert}.{part}")).collect()
        };
        let parts: Vec<(String, usize)> =
            of_experts("w1").into_iter().chain(of_experts("w3")).map(|name| (name, inner)).collect();
        let y = self.beside(&format!("{at}/ffn/up"), &parts, 1.0, false, x);
        let y = self.builder.node(&format!("{at}/ffn/gated"), Op::Gated(Activation::Silu), vec![y]);
        let y = self.builder.node(&format!("{at}/ffn/weighed"), Op::ScaleBlocks, vec![y, route]);
        let mut blocks = Vec::new();
        for (expert, name) in of_experts("w2").iter().enumerate() {
            let name = self.builder.stored(&format!("{name}.weight"), &[h, inner]);
            blocks.push(Block::transposed(name, inner, h).at(expert * inner, 0));
        }
        self.builder.linear_of(&format!("{at}/ffn/down"), blocks.into(), None, experts * inner, h, y)
    }

    /// Each row through its own experts alone, which everybody learns.
    fn routed_mixture(&mut self, at: &str, stored: &str, count: usize, top: usize, x: ValueId) -> ValueId {
        let (h, inner) = (self.config.hidden, self.config.intermediate);
        let stored = format!("{stored}.block_sparse_moe");
        let scores = self.router(at, &stored, count, x);
        let name = format!("{at}/ffn/experts");
        let mut experts = Vec::new();
        for expert in 0..count {
            let at = format!("{stored}.experts.{expert}");
            let [gate, up] = ["w1", "w3"].map(|part| self.builder.stored(&format!("{at}.{part}.weight"), &[inner, h]));
            let up = vec![Block::transposed(gate, h, inner), Block::transposed(up, h, inner).at(0, inner)];
            let down = self.builder.stored(&format!("{at}.w2.weight"), &[h, inner]);
            let down = Block::transposed(down, inner, h);
            experts.push(Expert {
                up: self.builder.tensor(&name, &format!("{expert}/up"), h, 2 * inner, up.into()),
                down: self.builder.tensor(&name, &format!("{expert}/down"), inner, h, down.into()),
            });
        }
        self.builder.node(&name, Op::Experts { top, activation: Activation::Silu, experts }, vec![x, scores])
    }

    /// The scores of experts, to base 2 as those of attention are.
    fn router(&mut self, at: &str, stored: &str, experts: usize, x: ValueId) -> ValueId {
        let gate = [(format!("{stored}.gate"), experts)];
        self.beside(&format!("{at}/ffn/router"), &gate, LOG2_E, false, x)
    }

    fn head(&mut self, x: ValueId) {
        let vocab = self.config.vocab;
        // The norm is taken row by row, so that of the last row alone is enough.
        let x = self.builder.node("head/last", Op::LastRow, vec![x]);
        let x = self.norm("head/norm", if self.is_gpt2() { "ln_f" } else { "norm" }, x);
        let table = match (self.config.tied, self.is_gpt2()) {
            (true, true) => "wte",
            (true, false) => "embed_tokens",
            (false, _) => "lm_head",
        };
        self.beside("head/scores", &[(table.into(), vocab)], 1.0, false, x);
    }

    fn norm(&mut self, name: &str, stored: &str, x: ValueId) -> ValueId {
        let (h, eps) = (self.config.hidden, self.config.eps);
        if self.is_gpt2() {
            return self.builder.norm(name, stored, h, eps, x);
        }
        let gain = Block::as_is(self.builder.stored(&format!("{stored}.weight"), &[h]), 1, h);
        let gain = self.builder.tensor(name, "gain", 1, h, gain.into());
        self.builder.node(name, Op::RmsNorm { gain, eps }, vec![x])
    }

    /// A linear layer that is stored `[in, out]`, with its bias.
    fn conv1d(&mut self, name: &str, stored: &str, width_in: usize, width_out: usize, x: ValueId) -> ValueId {
        let weight = self.builder.stored(&format!("{stored}.weight"), &[width_in, width_out]);
        let weight = Block::as_is(weight, width_in, width_out);
        let bias = Block::as_is(self.builder.stored(&format!("{stored}.bias"), &[width_out]), 1, width_out);
        self.builder.linear_of(name, weight.into(), Some(bias.into()), width_in, width_out, x)
    }

    /// Linear layers of the hidden width, stored `[out, in]` by name and width, side by side as one; the first one scaled.
    fn beside(&mut self, name: &str, parts: &[(String, usize)], scale: f64, bias: bool, x: ValueId) -> ValueId {
        self.beside_from(name, parts, scale, bias, self.config.hidden, x)
    }

    /// The same of another width.
    fn beside_from(
        &mut self,
        name: &str,
        parts: &[(String, usize)],
        scale: f64,
        bias: bool,
        width_in: usize,
        x: ValueId,
    ) -> ValueId {
        let (mut weights, mut biases, mut at) = (Vec::new(), Vec::new(), 0);
        for (stored, width) in parts {
            let scale = if at == 0 { scale } else { 1.0 };
            let weight = self.builder.stored(&format!("{stored}.weight"), &[*width, width_in]);
            weights.push(Block::transposed(weight, width_in, *width).at(0, at).scaled(scale));
            if bias {
                let bias = self.builder.stored(&format!("{stored}.bias"), &[*width]);
                biases.push(Block::as_is(bias, 1, *width).at(0, at).scaled(scale));
            }
            at += width;
        }
        let bias = bias.then(|| Recipe::from(biases));
        self.builder.linear_of(name, weights.into(), bias, width_in, at, x)
    }
}
