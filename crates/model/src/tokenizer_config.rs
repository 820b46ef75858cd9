//! `tokenizer_config.json`: what Transformers would change of what `tokenizer.json` says.

use std::path::Path;

use serde_json::Value;

use crate::config::Family;
use crate::error::Problem;
use crate::fields::{Fields, read_object};
use crate::tokenizer::{FILE as TOKENIZER, Tokenizer, Truncate};

const FILE: &str = "tokenizer_config.json";

/// Notes where Transformers would give texts other ids than `tokenizer.json`, which alone is followed: some of its classes
/// put special tokens and the normalizer again as this file says, or as they are by default.
pub(crate) fn compare(
    dir: &Path,
    family: Family,
    tokenizer: &Tokenizer,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<String>,
) {
    let map = read_object(dir, FILE, None, problems).unwrap_or_default();
    let mut fields = Fields { file: FILE, map: &map, problems };
    let class = match (fields.get("tokenizer_class").and_then(Value::as_str), family) {
        (Some(class), _) => class.trim_end_matches("Fast").to_owned(),
        (None, Family::Bert) => "BertTokenizer".into(),
        (None, Family::DistilBert) => "DistilBertTokenizer".into(),
        (None, Family::Llama | Family::Mistral | Family::Mixtral) => "LlamaTokenizer".into(),
        (None, _) => String::new(),
    };
    let mut note = |key: &str, value: &Value, what: &str| {
        let from = if map.contains_key(key) { FILE } else { "the default of its class" };
        notes.push(format!(
            "Transformers tokenizes with {key} = {value} ({from}), but {what} in {TOKENIZER}, which is followed here: texts may \
             get other ids"
        ));
    };
    let llama = class == "LlamaTokenizer";
    let ids = tokenizer.encode("a", usize::MAX, Truncate::No).unwrap_or_default();
    let ends = [("add_bos_token", "bos_token", "<s>", ids.first()), ("add_eos_token", "eos_token", "</s>", ids.last())];
    for (key, token, default, end) in ends {
        if !llama && fields.get(key).is_none() {
            continue;
        }
        let wanted = fields.flag(key, key == "add_bos_token");
        let named = fields.get(token).and_then(|token| token.get("content").unwrap_or(token).as_str());
        let token = named.or(llama.then_some(default)).and_then(|token| tokenizer.token_id(token));
        let found = end.is_some() && end == token.as_ref();
        if token.is_some() && found != wanted {
            note(key, &wanted.into(), if found { "it is added" } else { "it is not added" });
        }
    }
    if ["BertTokenizer", "DistilBertTokenizer"].contains(&class.as_str()) {
        let json: Value = serde_json::from_slice(tokenizer.json()).unwrap_or_default();
        for (key, own, default) in [
            ("do_lower_case", "lowercase", true.into()),
            ("strip_accents", "strip_accents", Value::Null),
            ("tokenize_chinese_chars", "handle_chinese_chars", true.into()),
        ] {
            let wanted = map.get(key).unwrap_or(&default);
            if let Some(found) = json["normalizer"].get(own).filter(|found| *found != wanted) {
                note(key, wanted, &format!("{own} = {found}"));
            }
        }
    }
}
