//! `generation_config.json`: how the makers of a decoder generate with it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::CONFIG;
use crate::error::Problem;
use crate::fields::{Fields, read_object};
use crate::rotary::rounded;

const GENERATION: &str = "generation_config.json";
/// Options that change which token is chosen, or when to stop, and that no client applies, each with the number that asks for
/// nothing, if there is one.
const IGNORED: [(&str, Option<f64>); 22] = [
    ("num_beams", Some(1.0)),
    ("penalty_alpha", Some(0.0)),
    ("min_p", Some(0.0)),
    ("typical_p", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("guidance_scale", Some(1.0)),
    ("min_length", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    // What the library writes where nobody chose one.
    ("max_length", Some(20.0)),
    ("bad_words_ids", None),
    ("force_words_ids", None),
    ("constraints", None),
    ("sequence_bias", None),
    ("suppress_tokens", None),
    ("begin_suppress_tokens", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("exponential_decay_length_penalty", None),
    ("stop_strings", None),
];

/// How a decoder is meant to be sampled. Everything is public, and a client may choose otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Ids that end a text, each below the vocabulary; may be empty.
    pub eos: Vec<u32>,
    /// The id that begins a text, where there is one. Tokenizers that want it put it there themselves.
    pub bos: Option<u32>,
    /// Whether tokens are drawn; the likeliest is taken otherwise.
    pub sample: bool,
    /// What scores are divided by before the softmax; 0 for the likeliest token. Finite, not negative.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are drawn from; none for all of them. At least 1.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability are drawn from: above 0, at most 1.
    pub top_p: f64,
    /// What positive scores of tokens that already stand in the text are divided by, and negative ones multiplied; above 0.
    pub repetition_penalty: f64,
    /// Most tokens that are generated, where the makers say it.
    pub max_new_tokens: Option<usize>,
    /// Whether a client's seed alone decides the draws that nodes make inside the computation. Its
    /// owner allows it: a client that asks the same under many seeds and temperatures then learns
    /// the scores bit by bit. Else P0 mixes in a seed of its own.
    pub reproducible: bool,
}

/// The likeliest token, without an end.
impl Default for Generation {
    fn default() -> Self {
        Self {
            eos: Vec::new(),
            bos: None,
            sample: false,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_new_tokens: None,
            reproducible: false,
        }
    }
}

impl Generation {
    /// Reads `generation_config.json`, where it is there, and the ids that only `config.json` gives. A `vocab` of 0 is one
    /// that is not known.
    pub(crate) fn read(
        dir: &Path,
        config: &Map<String, Value>,
        vocab: usize,
        problems: &mut Vec<Problem>,
        notes: &mut Vec<String>,
    ) -> Self {
        let vocab = if vocab == 0 { 1 << 24 } else { vocab };
        let own = read_object(dir, GENERATION, None, problems).unwrap_or_default();
        let mut generation = Self::default();
        // Each of the ids stands in the one file or in the other.
        for (file, map) in [(CONFIG, config), (GENERATION, &own)] {
            let mut fields = Fields { file, map, problems };
            if let Some(eos) = fields.ids("eos_token_id", vocab) {
                generation.eos = eos;
            }
            if let Some(bos) = fields.ids("bos_token_id", vocab) {
                generation.bos = bos.first().copied();
            }
        }
        let mut fields = Fields { file: GENERATION, map: &own, problems };
        generation.sample = fields.flag("do_sample", false);
        generation.temperature = fields.number("temperature", 1.0, "a number from 0 on", |n| n >= 0.0);
        generation.top_p = fields.number("top_p", 1.0, "a number above 0 and at most 1", |n| n > 0.0 && n <= 1.0);
        generation.repetition_penalty = fields.number("repetition_penalty", 1.0, "a number above 0", |n| n > 0.0);
        // The library draws from 50 tokens where the file does not say from how many.
        let top_k = fields.count("top_k", 0, 1 << 24, Some(if generation.sample { 50 } else { 0 }));
        generation.top_k = (top_k != 0).then_some(top_k);
        if fields.get("max_new_tokens").is_some() {
            generation.max_new_tokens = Some(fields.count("max_new_tokens", 1, 1 << 24, None));
        }
        let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(Map::is_empty);
        for (key, neutral) in IGNORED {
            if let Some(value) = fields.get(key)
                && !empty(value)
                && (neutral.is_none() || value.as_f64() != neutral)
            {
                notes.push(format!("{GENERATION} asks for {key} = {value}; no client applies it"));
            }
        }
        generation
    }

    /// Whether a directory of a model with so many tokens could hold these values: for what comes from outside.
    ///
    /// # Errors
    /// The first value that is not usable, and why.
    pub fn check(&self, vocab: usize) -> Result<(), String> {
        if let Some(id) = self.eos.iter().chain(&self.bos).find(|id| **id as usize >= vocab) {
            return Err(format!("token {id}, but there are {vocab}"));
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(format!("temperature {}", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(format!("top_p {}", self.top_p));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return Err(format!("repetition_penalty {}", self.repetition_penalty));
        }
        if self.top_k == Some(0) || self.max_new_tokens == Some(0) {
            return Err("top_k or max_new_tokens is 0".into());
        }
        Ok(())
    }
}

impl Fields<'_> {
    /// One id or a list of them, each below `vocab`; none if there are none or they are not usable.
    fn ids(&mut self, key: &str, vocab: usize) -> Option<Vec<u32>> {
        let value = self.get(key)?.clone();
        let list = match &value {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        let id = |v: &Value| u32::try_from(v.as_u64()?).ok().filter(|id| (*id as usize) < vocab);
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        if ids.is_none() {
            self.bad(key, format!("{value} is not a token below {vocab}, or a list of such"));
        }
        ids
    }

    fn number(&mut self, key: &str, default: f64, rule: &str, holds: fn(f64) -> bool) -> f64 {
        match self.get(key).map(|v| (v.as_f64(), v.to_string())) {
            None => default,
            Some((Some(n), _)) if n.is_finite() && holds(n) => rounded(n),
            Some((_, text)) => {
                self.bad(key, format!("{text}; {rule} is needed"));
                default
            }
        }
    }
}
