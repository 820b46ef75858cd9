//! The configuration of an encoder: its sizes, its head, the kind of its input.

use std::path::Path;

use serde_json::Value;

use crate::config::{CONFIG, Family};
use crate::error::Problem;
use crate::fields::{Fields, read_object};
use crate::graph::Activation;

const PREPROCESSOR: &str = "preprocessor_config.json";

/// What is computed from the last hidden state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Head {
    /// A vector; how it is pooled stands elsewhere.
    Embedding,
    /// A score for each of these labels.
    Classifier(Vec<String>),
}

/// The kind and size of the input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum InputConfig {
    /// Token ids.
    Text {
        vocab: usize,
        /// Rows of the position table.
        positions: usize,
        /// Rows at its beginning that no token uses.
        skip: usize,
        /// Rows of the token type table, if there is one.
        token_types: Option<usize>,
    },
    /// A square image.
    Image { channels: usize, image_size: usize, patch_size: usize, mean: Vec<f32>, std: Vec<f32>, qkv_bias: bool },
}

/// What the configuration files of an encoder say, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EncoderConfig {
    pub(crate) family: Family,
    pub(crate) head: Head,
    pub(crate) input: InputConfig,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) activation: Activation,
    pub(crate) eps: f64,
}

impl EncoderConfig {
    /// Reads the fields of `config.json`, and `preprocessor_config.json` for images. None if a size is not known.
    pub(crate) fn read(
        dir: &Path,
        map: &serde_json::Map<String, Value>,
        family: Family,
        classifies: bool,
        problems: &mut Vec<Problem>,
        notes: &mut Vec<String>,
    ) -> Option<Self> {
        let mut fields = Fields { file: CONFIG, map, problems };
        let (hidden_key, layers_key, heads_key, intermediate_key, act_key) = match family {
            Family::DistilBert => ("dim", "n_layers", "n_heads", "hidden_dim", "activation"),
            _ => ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        };
        let hidden = fields.count(hidden_key, 2, 1 << 16, None);
        let layers = fields.count(layers_key, 1, 512, None);
        let heads = fields.count(heads_key, 1, 1 << 12, None);
        let intermediate = fields.count(intermediate_key, 1, 1 << 18, None);
        let activation = fields.activation(act_key);
        let eps = match family {
            Family::DistilBert => 1e-12,
            _ => fields.positive("layer_norm_eps", 1e-12),
        };
        if heads != 0 && !hidden.is_multiple_of(heads) {
            fields.bad(heads_key, format!("{hidden_key} {hidden} is not divisible by {heads} heads"));
        }
        fields.only(&[("position_embedding_type", "absolute".into()), ("is_decoder", false.into())]);
        fields.unsupported_options();
        let head = if classifies { Head::Classifier(fields.labels()) } else { Head::Embedding };
        let input = match family {
            Family::Vit => fields.image(dir, notes),
            _ => fields.text(family),
        };
        let config = Self { family, head, input, hidden, layers, heads, intermediate, activation, eps };
        config.has_sizes().then_some(config)
    }

    /// Whether all sizes are known, so that tensors can be held to them even if options have problems.
    fn has_sizes(&self) -> bool {
        let input = match &self.input {
            InputConfig::Text { vocab, positions, skip, token_types } => {
                *vocab != 0 && skip < positions && *token_types != Some(0)
            }
            InputConfig::Image { channels, image_size, patch_size, .. } => {
                *channels != 0 && *image_size != 0 && *patch_size != 0 && image_size.is_multiple_of(*patch_size)
            }
        };
        let head = !matches!(&self.head, Head::Classifier(labels) if labels.is_empty());
        input && head && [self.hidden, self.layers, self.heads, self.intermediate].iter().all(|n| *n != 0)
    }
}

impl Fields<'_> {
    /// The labels in the order of their ids.
    fn labels(&mut self) -> Vec<String> {
        let Some(map) = self.get("id2label").cloned() else {
            // The library's default is two labels.
            let count = self.count("num_labels", 1, 1 << 16, Some(2));
            return (0..count).map(|i| format!("LABEL_{i}")).collect();
        };
        let names = map.as_object().and_then(|map| {
            (0..map.len())
                .map(|i| Some(map.get(&i.to_string())?.as_str()?.to_string()))
                .collect::<Option<Vec<String>>>()
        });
        match names {
            Some(names) if !names.is_empty() => names,
            _ => {
                self.bad("id2label", "it does not give a name to each id from 0 on".into());
                Vec::new()
            }
        }
    }

    fn text(&mut self, family: Family) -> InputConfig {
        let vocab = self.count("vocab_size", 1, 1 << 24, None);
        let positions = self.count("max_position_embeddings", 1, 1 << 16, None);
        let token_types = match family {
            Family::DistilBert => None,
            _ => Some(self.count("type_vocab_size", 1, 1 << 10, Some(2))),
        };
        let skip = match family {
            Family::Roberta => self.count("pad_token_id", 0, 1 << 16, Some(1)) + 1,
            _ => 0,
        };
        if positions != 0 && skip >= positions {
            self.bad("max_position_embeddings", format!("{positions} rows, of which the first {skip} are never used"));
        }
        InputConfig::Text { vocab, positions, skip, token_types }
    }

    fn image(&mut self, dir: &Path, notes: &mut Vec<String>) -> InputConfig {
        let channels = self.count("num_channels", 1, 64, Some(3));
        let image_size = self.count("image_size", 1, 1 << 14, None);
        let patch_size = self.count("patch_size", 1, 1 << 14, None);
        if patch_size != 0 && !image_size.is_multiple_of(patch_size) {
            self.bad("patch_size", format!("image_size {image_size} is not a multiple of {patch_size}"));
        }
        let qkv_bias = self.flag("qkv_bias", true);
        let (mean, std) = match read_object(dir, PREPROCESSOR, None, self.problems) {
            Some(map) => {
                Fields { file: PREPROCESSOR, map: &map, problems: self.problems }.normalisation(channels, image_size)
            }
            None => {
                notes.push(format!("no {PREPROCESSOR}: pixels are normalised with mean 0.5 and deviation 0.5"));
                (vec![0.5; channels], vec![0.5; channels])
            }
        };
        InputConfig::Image { channels, image_size, patch_size, mean, std, qkv_bias }
    }

    /// Mean and deviation to apply to pixels in [0, 1].
    fn normalisation(&mut self, channels: usize, image_size: usize) -> (Vec<f32>, Vec<f32>) {
        let sides = match self.get("size").cloned() {
            Some(Value::Object(map)) => ["height", "width", "shortest_edge"].map(|k| map.get(k).cloned()).to_vec(),
            other => vec![other],
        };
        for side in sides.into_iter().flatten() {
            if side.as_u64() != Some(image_size as u64) {
                self.bad("size", format!("{side}, but config.json has image_size {image_size}"));
            }
        }
        // Pixels reach the preprocessor as 0..255, so its numbers are for 255 * factor times ours.
        let unit = match self.flag("do_rescale", true) {
            true => 255.0 * self.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0),
            false => 255.0,
        };
        let (mut mean, mut std) = (vec![0.0; channels], vec![1.0; channels]);
        if self.flag("do_normalize", true) {
            mean = self.per_channel("image_mean", channels);
            std = self.per_channel("image_std", channels);
        }
        if !(unit.is_finite() && unit > 0.0) || std.iter().any(|v| *v <= 0.0) {
            self.bad("image_std", "the deviations and the rescale factor must be positive".into());
        }
        let per_unit = |v: Vec<f64>| v.into_iter().map(|v| (v / unit) as f32).collect();
        (per_unit(mean), per_unit(std))
    }

    fn per_channel(&mut self, key: &str, channels: usize) -> Vec<f64> {
        let Some(value) = self.get(key).cloned() else { return vec![0.5; channels] };
        let numbers = match &value {
            Value::Array(list) => list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>(),
            other => other.as_f64().map(|v| vec![v; channels]),
        };
        match numbers {
            Some(numbers) if numbers.len() == channels => numbers,
            _ => {
                self.bad(key, format!("{value} is not one number for each of {channels} channels"));
                vec![0.5; channels]
            }
        }
    }
}
