//! The model directory: what `save_pretrained` of `GPT2LMHeadModel` and its tokenizer would write.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::corpus::{END_OF_TEXT, END_OF_TEXT_ID, VOCABULARY};
use crate::network::{CONTEXT, HEADS, INITIAL_DEVIATION, LAYER_NORM_EPS, LAYERS, WIDTH, Weights};

/// Writes `config.json`, `generation_config.json`, `model.safetensors` (halves), `tokenizer.json` and
/// `tokenizer_config.json`.
pub(crate) fn save(weights: &Weights, tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_positions": CONTEXT,
        "n_ctx": CONTEXT,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": null,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "reorder_and_upcast_attn": false,
        "embd_pdrop": 0.05,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.05,
        "initializer_range": INITIAL_DEVIATION,
        "tie_word_embeddings": true,
        "use_cache": true,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "torch_dtype": "float16",
    });
    let generation = json!({
        "_from_model_config": true,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
    });
    let tokens = json!({
        "tokenizer_class": "GPT2TokenizerFast",
        "model_max_length": CONTEXT,
        "add_prefix_space": false,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
    });
    for (name, json) in [("config", config), ("generation_config", generation), ("tokenizer_config", tokens)] {
        std::fs::write(dir.join(format!("{name}.json")), format!("{json:#}\n"))?;
    }
    tokenizer.save(dir.join("tokenizer.json"), true).map_err(anyhow::Error::from_boxed)?;
    // `transformers` refuses a file that does not say which framework laid it out.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let halves = |(name, var): (&String, &Var)| -> Result<(String, Tensor)> {
        Ok((name.clone(), var.as_tensor().to_dtype(DType::F16)?))
    };
    let tensors = weights.iter().map(halves).collect::<Result<BTreeMap<_, _>>>()?;
    let written = safetensors::serialize_to_file(tensors, Some(format), &dir.join("model.safetensors"));
    written.context("cannot write the weights")
}

/// The weights as stored.
pub(crate) fn weights(dir: &Path) -> Result<Weights> {
    let single = |(name, tensor): (String, Tensor)| Ok((name, Var::from_tensor(&tensor.to_dtype(DType::F32)?)?));
    load(dir.join("model.safetensors"), &Device::Cpu)?.into_iter().map(single).collect()
}
