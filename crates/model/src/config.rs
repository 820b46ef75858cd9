//! `config.json`: which architecture it describes, and the reading of what such an architecture has.

use std::path::Path;

use serde_json::{Map, Value};

use crate::decoder_config::DecoderConfig;
use crate::encoder_config::EncoderConfig;
use crate::error::Problem;
use crate::fields::read_object;

pub(crate) const CONFIG: &str = "config.json";

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
    /// GPT-2.
    Gpt2,
    /// LLaMA.
    Llama,
    /// Mistral: LLaMA with a sliding window.
    Mistral,
    /// Qwen2: LLaMA with biases of queries, keys and values, and a window in some layers.
    Qwen2,
    /// Mixtral: Mistral whose feed-forward layers are experts.
    Mixtral,
}

impl Family {
    /// Its name in a graph.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::DistilBert => "distilbert",
            Self::Vit => "vit",
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Mixtral => "mixtral",
        }
    }

    /// What some checkpoints put before the names of the body's tensors.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::Roberta => "roberta.",
            Self::DistilBert => "distilbert.",
            Self::Vit => "vit.",
            Self::Gpt2 => "transformer.",
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Mixtral => "model.",
        }
    }

    /// Whether its input are texts.
    pub(crate) fn reads_texts(self) -> bool {
        self != Self::Vit
    }
}

/// What the configuration files say, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Config {
    /// A vector or some scores for an input.
    Encoder(EncoderConfig),
    /// The scores of the next token.
    Decoder(DecoderConfig),
}

/// What an architecture computes in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Embedding,
    Classifier,
    NextToken,
}

/// Architectures by the name that `config.json` gives them.
const ARCHITECTURES: [(&str, Family, Kind); 21] = [
    ("BertModel", Family::Bert, Kind::Embedding),
    ("BertForMaskedLM", Family::Bert, Kind::Embedding),
    ("BertForPreTraining", Family::Bert, Kind::Embedding),
    ("BertForSequenceClassification", Family::Bert, Kind::Classifier),
    ("RobertaModel", Family::Roberta, Kind::Embedding),
    ("RobertaForMaskedLM", Family::Roberta, Kind::Embedding),
    ("RobertaForSequenceClassification", Family::Roberta, Kind::Classifier),
    ("XLMRobertaModel", Family::Roberta, Kind::Embedding),
    ("XLMRobertaForMaskedLM", Family::Roberta, Kind::Embedding),
    ("XLMRobertaForSequenceClassification", Family::Roberta, Kind::Classifier),
    ("CamembertModel", Family::Roberta, Kind::Embedding),
    ("CamembertForSequenceClassification", Family::Roberta, Kind::Classifier),
    ("DistilBertModel", Family::DistilBert, Kind::Embedding),
    ("DistilBertForMaskedLM", Family::DistilBert, Kind::Embedding),
    ("DistilBertForSequenceClassification", Family::DistilBert, Kind::Classifier),
    ("ViTForImageClassification", Family::Vit, Kind::Classifier),
    ("GPT2LMHeadModel", Family::Gpt2, Kind::NextToken),
    ("LlamaForCausalLM", Family::Llama, Kind::NextToken),
    ("MistralForCausalLM", Family::Mistral, Kind::NextToken),
    ("Qwen2ForCausalLM", Family::Qwen2, Kind::NextToken),
    ("MixtralForCausalLM", Family::Mixtral, Kind::NextToken),
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
        let Some((family, kind)) = architecture(&map, problems) else { return (None, None) };
        let config = match kind {
            Kind::NextToken => DecoderConfig::read(dir, &map, family, problems, notes).map(Self::Decoder),
            _ => {
                let classifies = kind == Kind::Classifier;
                EncoderConfig::read(dir, &map, family, classifies, problems, notes).map(Self::Encoder)
            }
        };
        (Some(family), config)
    }
}

fn architecture(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Option<(Family, Kind)> {
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
    known.map(|(_, family, kind)| (*family, *kind))
}
