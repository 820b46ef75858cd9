//! `config.json` and `preprocessor_config.json`: which architecture, which sizes, and whether every option is supported.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Problem;
use crate::graph::Activation;

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

/// Which tensor names and layer order the weights follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// BERT, MiniLM.
    Bert,
    /// RoBERTa, XLM-RoBERTa, CamemBERT: BERT with positions that begin after the padding id.
    Roberta,
    /// DistilBERT.
    DistilBert,
    /// Vision transformer.
    Vit,
}

impl Family {
    /// Its name in a graph.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::DistilBert => "distilbert",
            Self::Vit => "vit",
        }
    }

    /// What some checkpoints put before the names of the encoder's tensors.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::Roberta => "roberta.",
            Self::DistilBert => "distilbert.",
            Self::Vit => "vit.",
        }
    }
}

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

/// What the configuration files say, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
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

/// Architectures by the name that `config.json` gives them, and whether they carry a classifier.
const ARCHITECTURES: [(&str, Family, bool); 16] = [
    ("BertModel", Family::Bert, false),
    ("BertForMaskedLM", Family::Bert, false),
    ("BertForPreTraining", Family::Bert, false),
    ("BertForSequenceClassification", Family::Bert, true),
    ("RobertaModel", Family::Roberta, false),
    ("RobertaForMaskedLM", Family::Roberta, false),
    ("RobertaForSequenceClassification", Family::Roberta, true),
    ("XLMRobertaModel", Family::Roberta, false),
    ("XLMRobertaForMaskedLM", Family::Roberta, false),
    ("XLMRobertaForSequenceClassification", Family::Roberta, true),
    ("CamembertModel", Family::Roberta, false),
    ("CamembertForSequenceClassification", Family::Roberta, true),
    ("DistilBertModel", Family::DistilBert, false),
    ("DistilBertForMaskedLM", Family::DistilBert, false),
    ("DistilBertForSequenceClassification", Family::DistilBert, true),
    ("ViTForImageClassification", Family::Vit, true),
];

impl Config {
    /// Reads the configuration of a directory. The family, and the rest if all sizes are known, come back even if there
    /// are problems, so that the weights can be looked at all the same.
    pub(crate) fn read(
        dir: &Path,
        problems: &mut Vec<Problem>,
        notes: &mut Vec<String>,
    ) -> (Option<Family>, Option<Self>) {
        let mend = "it describes the architecture, and comes with every Hugging Face model";
        let Some(map) = read_object(dir, CONFIG, Some(mend), problems) else { return (None, None) };
        let Some((family, classifies)) = architecture(&map, problems) else { return (None, None) };
        let mut fields = Fields { file: CONFIG, map: &map, problems };
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
        fields.unsupported_options();
        let head = if classifies { Head::Classifier(fields.labels()) } else { Head::Embedding };
        let input = match family {
            Family::Vit => fields.image(dir, notes),
            _ => fields.text(family),
        };
        let config = Self { family, head, input, hidden, layers, heads, intermediate, activation, eps };
        (Some(family), config.has_sizes().then_some(config))
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

/// Reads a JSON object. A missing file is a problem only if there is something to say about it.
pub(crate) fn read_object(
    dir: &Path,
    file: &str,
    mend: Option<&str>,
    problems: &mut Vec<Problem>,
) -> Option<Map<String, Value>> {
    let broken = |cause: String| Problem::BrokenFile { file: file.into(), cause };
    match std::fs::read(dir.join(file)) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => return Some(map),
            Ok(_) => problems.push(broken("it is not a JSON object".into())),
            Err(e) => problems.push(broken(e.to_string())),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(mend) = mend {
                problems.push(Problem::MissingFile { file: file.into(), mend: mend.into() });
            }
        }
        Err(e) => problems.push(broken(e.to_string())),
    }
    None
}

fn architecture(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Option<(Family, bool)> {
    let first = map.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    // Encoders saved by hand carry only the type.
    let name = match (first, map.get("model_type").and_then(Value::as_str)) {
        (Some(name), _) => name,
        (None, Some("bert")) => "BertModel",
        (None, Some("roberta" | "xlm-roberta" | "camembert")) => "RobertaModel",
        (None, Some("distilbert")) => "DistilBertModel",
        (None, Some(other)) => other,
        (None, None) => "(config.json names none)",
    };
    let known = ARCHITECTURES.iter().find(|(known, ..)| *known == name);
    if known.is_none() {
        let supported: Vec<&str> = ARCHITECTURES.iter().map(|(name, ..)| *name).collect();
        problems.push(Problem::UnknownArchitecture { name: name.into(), supported: supported.join(", ") });
    }
    known.map(|(_, family, classifies)| (*family, *classifies))
}

/// A configuration file being read: every accessor reports what is wrong and returns something to go on with.
struct Fields<'a> {
    file: &'static str,
    map: &'a Map<String, Value>,
    problems: &'a mut Vec<Problem>,
}

impl Fields<'_> {
    fn bad(&mut self, key: &str, what: String) {
        self.problems.push(Problem::BadEntry { file: self.file.into(), key: key.into(), what });
    }

    fn unsupported(&mut self, key: &str, value: &Value, supported: &str) {
        let (file, key, value) = (self.file.into(), key.into(), value.to_string());
        self.problems.push(Problem::UnsupportedOption { file, key, value, supported: supported.into() });
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A whole number in a range; 0 after a problem.
    fn count(&mut self, key: &str, least: usize, most: usize, default: Option<usize>) -> usize {
        let found = match (self.get(key), default) {
            (None, Some(default)) => return default,
            (None, None) => "it is missing".to_string(),
            (Some(value), _) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if (least..=most).contains(&n) => return n,
                _ => value.to_string(),
            },
        };
        self.bad(key, format!("{found}; a whole number from {least} to {most} is needed"));
        0
    }

    fn positive(&mut self, key: &str, default: f64) -> f64 {
        match self.get(key).map(|v| (v.as_f64(), v.to_string())) {
            None => default,
            Some((Some(n), _)) if n > 0.0 && n < 1.0 => n,
            Some((_, text)) => {
                self.bad(key, format!("{text} is not a number between 0 and 1"));
                default
            }
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.get(key).map(|v| (v.as_bool(), v.to_string())) {
            None => default,
            Some((Some(flag), _)) => flag,
            Some((None, text)) => {
                self.bad(key, format!("{text} is neither true nor false"));
                default
            }
        }
    }

    fn activation(&mut self, key: &str) -> Activation {
        match self.get(key).cloned().unwrap_or_else(|| "gelu".into()) {
            Value::String(name) if name == "gelu" || name == "gelu_python" => Activation::Gelu,
            Value::String(name)
                if ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"]
                    .contains(&name.as_str()) =>
            {
                Activation::GeluTanh
            }
            Value::String(name) if name == "relu" => Activation::Relu,
            other => {
                let supported = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, relu";
                self.unsupported(key, &other, supported);
                Activation::Gelu
            }
        }
    }

    /// Options that change the computation.
    fn unsupported_options(&mut self) {
        if let Some(value) = self.get("position_embedding_type").cloned()
            && value != "absolute"
        {
            self.unsupported("position_embedding_type", &value, "absolute");
        }
        for key in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
            if self.flag(key, false) {
                self.unsupported(key, &Value::Bool(true), "false");
            }
        }
        if let Some(value) = self.get("pruned_heads").cloned()
            && value.as_object().is_none_or(|heads| !heads.is_empty())
        {
            self.unsupported("pruned_heads", &value, "none");
        }
        if let Some(value) = self.get("quantization_config").cloned() {
            self.unsupported("quantization_config", &value, "none: f32, f16 and bf16 weights");
        }
    }

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
