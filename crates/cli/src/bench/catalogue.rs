//! The models that are measured: one with its own weights, and published shapes with weights drawn at random.
//!
//! Time, rounds and bytes of a private run depend on the shape and on how large values get, so random weights are as good
//! as trained ones for them; the error against the float model is that of random weights and says little about others.

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// A model by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The name by which it is asked for.
    pub(crate) name: &'static str,
    /// Where its shape was published.
    pub(crate) source: &'static str,
    /// What it is made of.
    pub(crate) origin: Origin,
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Origin {
    /// `tercet fetch` brings them.
    Fetched,
    /// Drawn at random in this shape.
    Random(Shape),
}

/// A published shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) family: Family,
}

/// What is around the layers, and their order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Family {
    /// An encoder of texts, mean pooled.
    Bert { vocab: usize, positions: usize },
    /// A classifier of square images in three colours.
    Vit { image: usize, patch: usize, labels: usize },
    /// A decoder with learned positions and a tied head.
    Gpt2 { vocab: usize, positions: usize },
    /// A decoder with rotary positions and gated feed-forward layers; a mixture of them where there is more than one expert,
    /// of which two have a say.
    Llama { vocab: usize, positions: usize, kv_heads: usize, experts: usize },
}

const fn bert(layers: usize, hidden: usize, heads: usize) -> Origin {
    let family = Family::Bert { vocab: 30_522, positions: 512 };
    Origin::Random(Shape { layers, hidden, heads, intermediate: 4 * hidden, family })
}

const fn vit(layers: usize, hidden: usize, heads: usize) -> Origin {
    let family = Family::Vit { image: 224, patch: 16, labels: 1000 };
    Origin::Random(Shape { layers, hidden, heads, intermediate: 4 * hidden, family })
}

const fn gpt2(layers: usize, hidden: usize, heads: usize) -> Origin {
    let family = Family::Gpt2 { vocab: 50_257, positions: 1024 };
    Origin::Random(Shape { layers, hidden, heads, intermediate: 4 * hidden, family })
}

const fn llama(
    layers: usize,
    hidden: usize,
    [heads, kv_heads]: [usize; 2],
    intermediate: usize,
    experts: usize,
) -> Origin {
    let family = Family::Llama { vocab: 32_000, positions: 2048, kv_heads, experts };
    Origin::Random(Shape { layers, hidden, heads, intermediate, family })
}

/// All of them, encoders before decoders, the smallest shape first.
pub(crate) const CATALOGUE: [Entry; 11] = [
    Entry { name: "bert-tiny", source: "Turc et al. 2019, google/bert_uncased_L-2_H-128_A-2", origin: bert(2, 128, 2) },
    Entry {
        name: "minilm",
        source: "Wang et al. 2020, sentence-transformers/all-MiniLM-L6-v2, its own weights",
        origin: Origin::Fetched,
    },
    Entry { name: "bert-base", source: "Devlin et al. 2019, google-bert/bert-base-uncased", origin: bert(12, 768, 12) },
    Entry {
        name: "bert-large",
        source: "Devlin et al. 2019, google-bert/bert-large-uncased",
        origin: bert(24, 1024, 16),
    },
    Entry { name: "vit-b16", source: "Dosovitskiy et al. 2021, google/vit-base-patch16-224", origin: vit(12, 768, 12) },
    Entry { name: "gpt2-tiny", source: "two layers of a quarter of the width of GPT-2 small", origin: gpt2(2, 192, 3) },
    Entry { name: "gpt2", source: "Radford et al. 2019, openai-community/gpt2", origin: gpt2(12, 768, 12) },
    Entry {
        name: "moe-small",
        source: "Mixtral's form at the size of GPT-2 small's layers: four layers of eight experts",
        origin: llama(4, 768, [12, 4], 1024, 8),
    },
    Entry {
        name: "dense-small",
        source: "moe-small with one feed-forward layer as wide as the two experts that have a say",
        origin: llama(4, 768, [12, 4], 2048, 1),
    },
    Entry {
        name: "tinyllama-1.1b",
        source: "Zhang et al. 2024, TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        origin: llama(22, 2048, [32, 4], 5632, 1),
    },
    Entry {
        name: "llama-7b",
        source: "Touvron et al. 2023, huggyllama/llama-7b: for plans; its shares take 54 GB",
        origin: llama(32, 4096, [32, 32], 11_008, 1),
    },
];

/// What the rates of a machine are measured on: layers as those of whole models, few of them, and tables and widths that
/// vary independently of each other. No model that anybody asks for.
pub(crate) const PROBES: [Entry; 3] = [
    Entry { name: "probe-narrow", source: "", origin: probe(2, 384, 12, 1536, 30_522) },
    Entry { name: "probe-wide", source: "", origin: probe(2, 768, 12, 3072, 2048) },
    Entry { name: "probe-square", source: "", origin: probe(3, 512, 8, 512, 4096) },
];

const fn probe(layers: usize, hidden: usize, heads: usize, intermediate: usize, vocab: usize) -> Origin {
    let family = Family::Bert { vocab, positions: 256 };
    Origin::Random(Shape { layers, hidden, heads, intermediate, family })
}

/// The entry of this name.
///
/// # Errors
/// There is none; the names that exist are listed.
pub(crate) fn find(name: &str) -> Result<Entry> {
    match CATALOGUE.iter().chain(&PROBES).find(|entry| entry.name == name) {
        Some(entry) => Ok(*entry),
        None => {
            let known: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
            bail!("no model {name:?} to measure; there are {}", known.join(", "))
        }
    }
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    /// Its name in the checkpoint.
    pub(crate) name: String,
    pub(crate) dims: Vec<usize>,
    pub(crate) drawn: Drawn,
}

/// How the elements of a tensor are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Drawn {
    /// From a normal distribution of this deviation.
    Normal(f32),
    /// One, all of them: the gain of a LayerNorm or an RMSNorm.
    Ones,
}

/// Of matrices and biases, as these models were initialised before training.
const DEVIATION: f32 = 0.02;
/// Of the rows that make the input: trained ones spread about as wide, and rows of nearly no variance before the first
/// LayerNorm are no model's.
const EMBEDDING_DEVIATION: f32 = 0.05;

impl Shape {
    /// `config.json`.
    pub(crate) fn config(&self) -> Value {
        let Shape { layers, hidden, heads, intermediate, family } = *self;
        let mut config = json!({
            "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
            "intermediate_size": intermediate, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        });
        let more = match family {
            Family::Bert { vocab, positions } => json!({
                "model_type": "bert", "architectures": ["BertModel"], "vocab_size": vocab,
                "max_position_embeddings": positions, "type_vocab_size": TOKEN_TYPES,
            }),
            Family::Vit { image, patch, labels } => json!({
                "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": image,
                "patch_size": patch, "num_channels": CHANNELS, "qkv_bias": true,
                "id2label": (0..labels).map(|at| (at.to_string(), format!("label {at}").into())).collect::<serde_json::Map<_, _>>(),
            }),
            Family::Gpt2 { vocab, positions } => json!({
                "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab, "n_positions": positions,
                "n_embd": hidden, "n_layer": layers, "n_head": heads, "n_inner": intermediate,
                "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "eos_token_id": vocab - 1,
            }),
            Family::Llama { vocab, positions, kv_heads, experts } => json!({
                "model_type": if experts > 1 { "mixtral" } else { "llama" },
                "architectures": [if experts > 1 { "MixtralForCausalLM" } else { "LlamaForCausalLM" }],
                "vocab_size": vocab, "max_position_embeddings": positions, "num_key_value_heads": kv_heads,
                "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": false,
                "num_local_experts": experts, "num_experts_per_tok": 2, "eos_token_id": 2,
            }),
        };
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        config
    }

    /// Every tensor, in the order in which it is stored.
    pub(crate) fn tensors(&self) -> Vec<Stored> {
        let Shape { layers, hidden, heads, intermediate, family } = *self;
        let mut list = List(Vec::new());
        match family {
            Family::Bert { vocab, positions } => {
                let tables = [("word", vocab), ("position", positions), ("token_type", TOKEN_TYPES)];
                for (table, rows) in tables {
                    list.table(&format!("embeddings.{table}_embeddings.weight"), &[rows, hidden]);
                }
                list.norm("embeddings.LayerNorm", hidden);
                for layer in 0..layers {
                    let at = format!("encoder.layer.{layer}");
                    for part in ["query", "key", "value"] {
                        list.linear(&format!("{at}.attention.self.{part}"), &[hidden, hidden]);
                    }
                    list.linear(&format!("{at}.attention.output.dense"), &[hidden, hidden]);
                    list.norm(&format!("{at}.attention.output.LayerNorm"), hidden);
                    list.linear(&format!("{at}.intermediate.dense"), &[intermediate, hidden]);
                    list.linear(&format!("{at}.output.dense"), &[hidden, intermediate]);
                    list.norm(&format!("{at}.output.LayerNorm"), hidden);
                }
            }
            Family::Vit { image, patch, labels } => {
                let rows = (image / patch) * (image / patch) + 1;
                list.table("vit.embeddings.cls_token", &[1, 1, hidden]);
                list.table("vit.embeddings.position_embeddings", &[1, rows, hidden]);
                list.linear("vit.embeddings.patch_embeddings.projection", &[hidden, CHANNELS, patch, patch]);
                for layer in 0..layers {
                    let at = format!("vit.encoder.layer.{layer}");
                    list.norm(&format!("{at}.layernorm_before"), hidden);
                    for part in ["query", "key", "value"] {
                        list.linear(&format!("{at}.attention.attention.{part}"), &[hidden, hidden]);
                    }
                    list.linear(&format!("{at}.attention.output.dense"), &[hidden, hidden]);
                    list.norm(&format!("{at}.layernorm_after"), hidden);
                    list.linear(&format!("{at}.intermediate.dense"), &[intermediate, hidden]);
                    list.linear(&format!("{at}.output.dense"), &[hidden, intermediate]);
                }
                list.norm("vit.layernorm", hidden);
                list.linear("classifier", &[labels, hidden]);
            }
            Family::Gpt2 { vocab, positions } => {
                list.table("transformer.wte.weight", &[vocab, hidden]);
                list.table("transformer.wpe.weight", &[positions, hidden]);
                for layer in 0..layers {
                    let at = format!("transformer.h.{layer}");
                    list.norm(&format!("{at}.ln_1"), hidden);
                    list.transposed(&format!("{at}.attn.c_attn"), &[hidden, 3 * hidden]);
                    list.transposed(&format!("{at}.attn.c_proj"), &[hidden, hidden]);
                    list.norm(&format!("{at}.ln_2"), hidden);
                    list.transposed(&format!("{at}.mlp.c_fc"), &[hidden, intermediate]);
                    list.transposed(&format!("{at}.mlp.c_proj"), &[intermediate, hidden]);
                }
                list.norm("transformer.ln_f", hidden);
            }
            Family::Llama { vocab, kv_heads, experts, .. } => {
                let kv = hidden / heads * kv_heads;
                list.table("model.embed_tokens.weight", &[vocab, hidden]);
                for layer in 0..layers {
                    let at = format!("model.layers.{layer}");
                    list.gain(&format!("{at}.input_layernorm"), hidden);
                    for (part, width) in [("q", hidden), ("k", kv), ("v", kv)] {
                        list.matrix(&format!("{at}.self_attn.{part}_proj"), &[width, hidden]);
                    }
                    list.matrix(&format!("{at}.self_attn.o_proj"), &[hidden, hidden]);
                    list.gain(&format!("{at}.post_attention_layernorm"), hidden);
                    let parts = |at: String, names: [&str; 3], list: &mut List| {
                        let shapes = [[intermediate, hidden], [intermediate, hidden], [hidden, intermediate]];
                        names.iter().zip(shapes).for_each(|(name, shape)| list.matrix(&format!("{at}.{name}"), &shape));
                    };
                    if experts == 1 {
                        parts(format!("{at}.mlp"), ["gate_proj", "up_proj", "down_proj"], &mut list);
                        continue;
                    }
                    list.matrix(&format!("{at}.block_sparse_moe.gate"), &[experts, hidden]);
                    for expert in 0..experts {
                        parts(format!("{at}.block_sparse_moe.experts.{expert}"), ["w1", "w3", "w2"], &mut list);
                    }
                }
                list.gain("model.norm", hidden);
                list.matrix("lm_head", &[vocab, hidden]);
            }
        }
        list.0
    }

    /// Ids that its tokenizer knows; zero for images.
    pub(crate) fn vocab(&self) -> usize {
        match self.family {
            Family::Bert { vocab, .. } | Family::Gpt2 { vocab, .. } | Family::Llama { vocab, .. } => vocab,
            Family::Vit { .. } => 0,
        }
    }
}

const TOKEN_TYPES: usize = 2;
const CHANNELS: usize = 3;

/// The tensors of a checkpoint, as they are listed.
struct List(Vec<Stored>);

impl List {
    fn push(&mut self, name: String, dims: &[usize], drawn: Drawn) {
        self.0.push(Stored { name, dims: dims.to_vec(), drawn });
    }

    fn table(&mut self, name: &str, dims: &[usize]) {
        self.push(name.into(), dims, Drawn::Normal(EMBEDDING_DEVIATION));
    }

    /// A weight, outputs first, and its bias.
    fn linear(&mut self, name: &str, dims: &[usize]) {
        self.matrix(name, dims);
        self.push(format!("{name}.bias"), &dims[..1], Drawn::Normal(DEVIATION));
    }

    /// A weight without a bias, outputs first.
    fn matrix(&mut self, name: &str, dims: &[usize]) {
        self.push(format!("{name}.weight"), dims, Drawn::Normal(DEVIATION));
    }

    /// A weight, inputs first, and its bias.
    fn transposed(&mut self, name: &str, dims: &[usize]) {
        self.matrix(name, dims);
        self.push(format!("{name}.bias"), &dims[1..], Drawn::Normal(DEVIATION));
    }

    /// The gain of an RMSNorm.
    fn gain(&mut self, name: &str, width: usize) {
        self.push(format!("{name}.weight"), &[width], Drawn::Ones);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.gain(name, width);
        self.push(format!("{name}.bias"), &[width], Drawn::Normal(DEVIATION));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_published_number_of_parameters() {
        let parameters = |name: &str| match find(name).unwrap().origin {
            Origin::Random(shape) => shape.tensors().iter().map(|t| t.dims.iter().product::<usize>()).sum::<usize>(),
            Origin::Fetched => 0,
        };
        // Those of the published checkpoints, less the pooler (h * h + h), which no embedding needs.
        assert_eq!(parameters("bert-base"), 109_482_240 - (768 * 768 + 768));
        assert_eq!(parameters("bert-large"), 335_141_888 - (1024 * 1024 + 1024));
        assert_eq!(parameters("bert-tiny"), 4_385_920 - (128 * 128 + 128));
        assert_eq!(parameters("vit-b16"), 86_567_656);
        assert_eq!(parameters("gpt2"), 124_439_808);
        assert_eq!(parameters("tinyllama-1.1b"), 1_100_048_384);
        assert_eq!(parameters("llama-7b"), 6_738_415_616);
    }

    #[test]
    fn unknown_names_are_met_with_the_known_ones() {
        let error = find("bert").unwrap_err().to_string();
        assert!(CATALOGUE.iter().all(|entry| error.contains(entry.name)), "{error}");
    }
}
