//! `modules.json` of sentence-transformers: how the rows of the last layer become one vector.

use std::path::Path;

use serde_json::Value;

use crate::error::Problem;
use crate::fields::read_object;

const MODULES: &str = "modules.json";
const LIMITS: &str = "sentence_bert_config.json";
const PROMPTS: &str = "config_sentence_transformers.json";
const FLAG: &str = "pooling_mode_";

/// Which vector stands for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// The mean over all tokens.
    Mean,
    /// The first token.
    First,
}

/// Pooling and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pooling {
    pub(crate) pool: Pool,
    /// Whether the vector is scaled to unit length.
    pub(crate) normalize: bool,
}

impl Pooling {
    /// What a directory asks for; without `modules.json` the mean, scaled to unit length, and a note that says so.
    pub(crate) fn read(
        dir: &Path,
        hidden: Option<usize>,
        problems: &mut Vec<Problem>,
        notes: &mut Vec<String>,
    ) -> Self {
        let mut pooling = Self { pool: Pool::Mean, normalize: true };
        let text = match std::fs::read(dir.join(MODULES)) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                notes.push(format!("no {MODULES}: embeddings are the mean over all tokens, scaled to unit length"));
                return pooling;
            }
            Err(e) => {
                problems.push(Problem::BrokenFile { file: MODULES.into(), cause: e.to_string() });
                return pooling;
            }
        };
        let modules: Vec<Value> = match serde_json::from_slice(&text) {
            Ok(modules) => modules,
            Err(e) => {
                problems.push(Problem::BrokenFile { file: MODULES.into(), cause: e.to_string() });
                return pooling;
            }
        };
        note_text_options(dir, problems, notes);
        pooling.normalize = false;
        let (mut pooled, before) = (false, problems.len());
        for module in &modules {
            let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
            let path = module.get("path").and_then(Value::as_str).unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if path.is_empty() => {}
                "Pooling" if !pooled && is_below(path) => {
                    pooled = true;
                    pooling.pool = read_pool(dir, path, hidden, problems).unwrap_or(Pool::Mean);
                }
                "Normalize" if pooled => pooling.normalize = true,
                _ => problems.push(Problem::UnsupportedOption {
                    file: MODULES.into(),
                    key: format!("module {path:?}"),
                    value: kind.into(),
                    supported: "Transformer in the directory itself, then one Pooling, then Normalize or nothing"
                        .into(),
                }),
            }
        }
        if !pooled && problems.len() == before {
            let what = "no Pooling, so there is no vector for a text".to_string();
            problems.push(Problem::BadEntry { file: MODULES.into(), key: "type".into(), what });
        }
        pooling
    }
}

/// What sentence-transformers does to a text before the model, and this crate does not.
fn note_text_options(dir: &Path, problems: &mut Vec<Problem>, notes: &mut Vec<String>) {
    if let Some(map) = read_object(dir, LIMITS, None, problems) {
        if let Some(limit) = map.get("max_seq_length").and_then(Value::as_u64) {
            notes.push(format!(
                "{LIMITS} cuts texts at {limit} tokens; here they may be as long as there are positions"
            ));
        }
        if map.get("do_lower_case") == Some(&Value::Bool(true)) {
            notes.push(format!("{LIMITS} asks for lower case; here only the tokenizer decides"));
        }
    }
    if let Some(map) = read_object(dir, PROMPTS, None, problems)
        && let Some(name) = map.get("default_prompt_name").and_then(Value::as_str)
    {
        notes.push(format!("{PROMPTS} puts prompt {name:?} before each text; here the caller has to"));
    }
}

fn read_pool(dir: &Path, path: &str, hidden: Option<usize>, problems: &mut Vec<Problem>) -> Option<Pool> {
    let file = format!("{path}/config.json");
    let map = read_object(dir, &file, Some("modules.json names it; it says how rows are pooled"), problems)?;
    let width = map.get("word_embedding_dimension").or_else(|| map.get("embedding_dimension")).and_then(Value::as_u64);
    if let (Some(width), Some(hidden)) = (width, hidden)
        && width != hidden as u64
    {
        let what = format!("{width}, but the model has width {hidden}");
        problems.push(Problem::BadEntry { file: file.clone(), key: "word_embedding_dimension".into(), what });
    }
    // Either one flag per mode, or (newer) the name of the mode.
    let mut modes: Vec<String> = match map.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.clone()],
        Some(Value::Array(modes)) => modes.iter().map(|m| m.as_str().unwrap_or_default().to_string()).collect(),
        _ => Vec::new(),
    };
    modes.extend(map.iter().filter(|(_, on)| **on == Value::Bool(true)).filter_map(|(key, _)| {
        Some(key.strip_prefix(FLAG)?.trim_end_matches("_tokens").trim_end_matches("_token").into())
    }));
    match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mean"] => Some(Pool::Mean),
        ["cls"] => Some(Pool::First),
        _ => {
            problems.push(Problem::UnsupportedOption {
                file,
                key: "pooling_mode".into(),
                value: if modes.is_empty() { "none".into() } else { modes.join(" and ") },
                supported: "exactly one of mean and cls".into(),
            });
            None
        }
    }
}

fn is_below(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|c| matches!(c, std::path::Component::Normal(_)))
}
