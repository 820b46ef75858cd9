//! The configuration of a decoder: its sizes, its heads, its positions, the windows of its layers.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::{CONFIG, Family};
use crate::error::Problem;
use crate::fields::Fields;
use crate::generation::Generation;
use crate::graph::Activation;
use crate::rotary::{frequencies, rounded};
use crate::validate::MAX_ROWS;

/// What the configuration of a decoder says, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderConfig {
    pub(crate) family: Family,
    pub(crate) vocab: usize,
    /// Longest sequence.
    pub(crate) context: usize,
    /// Rows of the table of positions, where positions are learned.
    pub(crate) positions: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Columns of a head.
    pub(crate) head_width: usize,
    pub(crate) intermediate: usize,
    pub(crate) activation: Activation,
    pub(crate) eps: f64,
    pub(crate) biases: Biases,
    /// Where positions are rotary.
    pub(crate) rotary: Option<Vec<f64>>,
    /// The window of each layer.
    pub(crate) windows: Vec<Option<usize>>,
    /// Whether the scores come from the table of embeddings.
    pub(crate) tied: bool,
    /// How many experts there are, and how many of them have a say.
    pub(crate) experts: Option<(usize, usize)>,
    /// How the model's makers generate with it.
    pub(crate) generation: Generation,
}

/// Which linear layers of a decoder have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) queries_keys_values: bool,
    pub(crate) attention_out: bool,
    pub(crate) feed_forward: bool,
}

impl DecoderConfig {
    /// Reads the fields of `config.json`, and `generation_config.json`. None if a size is not known.
    pub(crate) fn read(
        dir: &Path,
        map: &Map<String, Value>,
        family: Family,
        problems: &mut Vec<Problem>,
        notes: &mut Vec<String>,
    ) -> Option<Self> {
        let mut fields = Fields { file: CONFIG, map, problems };
        let mut config = match family {
            Family::Gpt2 => fields.gpt2(),
            _ => fields.llama(family),
        };
        fields.unsupported_options();
        if config.context > MAX_ROWS {
            notes.push(format!("of a context of {} tokens {MAX_ROWS} can be used", config.context));
            config.context = MAX_ROWS;
        }
        config.generation = Generation::read(dir, map, config.vocab, problems, notes);
        config.has_sizes().then_some(config)
    }

    fn has_sizes(&self) -> bool {
        let sizes =
            [self.vocab, self.context, self.hidden, self.heads, self.kv_heads, self.head_width, self.intermediate];
        let (experts, top) = self.experts.unwrap_or((1, 1));
        sizes.iter().all(|n| *n != 0) && !self.windows.is_empty() && experts != 0 && top != 0
    }
}

impl Fields<'_> {
    fn gpt2(&mut self) -> DecoderConfig {
        let hidden = self.count("n_embd", 2, 1 << 16, None);
        let layers = self.count("n_layer", 1, 512, None);
        let heads = self.count("n_head", 1, 1 << 12, None);
        let positions = self.count("n_positions", 1, 1 << 24, None);
        // The upcast of `reorder_and_upcast_attn` is one of precision alone.
        self.only(&[("scale_attn_weights", true.into()), ("scale_attn_by_inverse_layer_idx", false.into())]);
        let family = Family::Gpt2;
        DecoderConfig {
            family,
            vocab: self.count("vocab_size", 1, 1 << 24, None),
            context: positions,
            positions,
            hidden,
            heads,
            kv_heads: heads,
            head_width: self.head_width("n_embd", hidden, "n_head", heads),
            intermediate: self.count("n_inner", 1, 1 << 18, Some(4 * hidden)),
            activation: match self.get("activation_function") {
                None => Activation::GeluTanh,
                Some(_) => self.activation("activation_function"),
            },
            eps: rounded(self.positive("layer_norm_epsilon", 1e-5)),
            biases: Biases { queries_keys_values: true, attention_out: true, feed_forward: true },
            rotary: None,
            windows: vec![None; layers],
            tied: self.flag("tie_word_embeddings", true),
            experts: None,
            generation: Generation::default(),
        }
    }

    fn llama(&mut self, family: Family) -> DecoderConfig {
        let hidden = self.count("hidden_size", 2, 1 << 16, None);
        let layers = self.count("num_hidden_layers", 1, 512, None);
        let heads = self.count("num_attention_heads", 1, 1 << 12, None);
        let kv_heads = self.count("num_key_value_heads", 1, 1 << 12, Some(heads));
        if kv_heads != 0 && !heads.is_multiple_of(kv_heads) {
            self.bad("num_key_value_heads", format!("num_attention_heads {heads} is not divisible by {kv_heads}"));
        }
        let head_width = match self.get("head_dim") {
            None => self.head_width("hidden_size", hidden, "num_attention_heads", heads),
            Some(_) => self.count("head_dim", 2, 1 << 16, None),
        };
        if !head_width.is_multiple_of(2) {
            self.bad(
                "head_dim",
                format!("{head_width} columns of a head are not pairs, as rotary positions need them"),
            );
        }
        let activation = self.get("hidden_act").cloned().unwrap_or_else(|| "silu".into());
        if activation != "silu" && activation != "swish" {
            self.unsupported("hidden_act", &activation, "silu");
        }
        self.only(&[("pretraining_tp", 1.into()), ("partial_rotary_factor", 1.into())]);
        let theta = if family == Family::Mixtral { 1e6 } else { 1e4 };
        let context = self.count("max_position_embeddings", 1, 1 << 24, None);
        let biases = match family {
            Family::Llama => {
                let attention = self.flag("attention_bias", false);
                let feed_forward = self.flag("mlp_bias", false);
                Biases { queries_keys_values: attention, attention_out: attention, feed_forward }
            }
            _ => {
                self.only(&[("mlp_bias", false.into())]);
                let queries_keys_values = family == Family::Qwen2;
                if !queries_keys_values {
                    self.only(&[("attention_bias", false.into())]);
                }
                Biases { queries_keys_values, attention_out: false, feed_forward: false }
            }
        };
        DecoderConfig {
            family,
            vocab: self.count("vocab_size", 1, 1 << 24, None),
            context,
            positions: 0,
            hidden,
            heads,
            kv_heads,
            head_width,
            intermediate: self.count("intermediate_size", 1, 1 << 18, None),
            activation: Activation::Silu,
            eps: rounded(self.positive("rms_norm_eps", if family == Family::Mixtral { 1e-5 } else { 1e-6 })),
            biases,
            rotary: Some(frequencies(self, head_width, theta)),
            windows: self.windows(family, layers, context),
            tied: self.flag("tie_word_embeddings", false),
            experts: (family == Family::Mixtral).then(|| self.experts()),
            generation: Generation::default(),
        }
    }

    fn head_width(&mut self, hidden_key: &str, hidden: usize, heads_key: &str, heads: usize) -> usize {
        match hidden.checked_div(heads) {
            Some(width) if width * heads == hidden => width,
            Some(_) => {
                self.bad(heads_key, format!("{hidden_key} {hidden} is not divisible by {heads} heads"));
                0
            }
            None => 0,
        }
    }

    fn experts(&mut self) -> (usize, usize) {
        let experts = self.count("num_local_experts", 1, 1 << 10, Some(8));
        let top = self.count("num_experts_per_tok", 1, 1 << 10, Some(2));
        if top > experts && experts != 0 {
            self.bad("num_experts_per_tok", format!("{top} of {experts} experts"));
        }
        (experts, top)
    }

    /// The window of each layer; none where it is no shorter than the context.
    fn windows(&mut self, family: Family, layers: usize, context: usize) -> Vec<Option<usize>> {
        // Mistral has a window where the field is missing, and none where it is null.
        let default = if self.map.contains_key("sliding_window") { None } else { Some(4096) };
        let window = match (family, self.get("sliding_window").is_some()) {
            (Family::Llama, _) => None,
            (_, true) => Some(self.count("sliding_window", 1, 1 << 24, None)),
            (Family::Mistral | Family::Qwen2, false) => default,
            _ => None,
        };
        let window = window.filter(|window| *window < context && *window != 0);
        if family != Family::Qwen2 {
            return vec![window; layers];
        }
        let on = self.flag("use_sliding_window", false);
        let full = self.count("max_window_layers", 0, 1 << 20, Some(28));
        let by_count = || (0..layers).map(|layer| window.filter(|_| on && layer >= full)).collect();
        let Some(kinds) = self.get("layer_types").cloned() else { return by_count() };
        let kinds: Option<Vec<Option<usize>>> =
            kinds.as_array().filter(|kinds| kinds.len() == layers).and_then(|kinds| {
                let windows = kinds.iter().map(|kind| match kind.as_str() {
                    Some("full_attention") => Some(None),
                    Some("sliding_attention") => Some(window.filter(|_| on)),
                    _ => None,
                });
                windows.collect()
            });
        kinds.unwrap_or_else(|| {
            let supported = "full_attention or sliding_attention for each layer";
            self.bad("layer_types", format!("{supported} is needed"));
            by_count()
        })
    }
}
