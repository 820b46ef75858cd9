//! Adapters that cannot be loaded, or not onto this base.

use std::fs;

use serde_json::{Value, json};
use tercet_model::{Adapter, LoadError, Model, Problem};

use crate::directory::Directory;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

fn problems(result: Result<impl Sized, LoadError>) -> Vec<Problem> {
    let error = result.err().expect("it is spoilt");
    let shown = error.to_string();
    assert!(error.problems.iter().all(|p| shown.contains(&p.to_string())), "{shown}");
    error.problems
}

fn load(dir: &Directory) -> Vec<Problem> {
    problems(Adapter::load(dir.0.path()))
}

fn misfits(problems: &[Problem]) -> Vec<&str> {
    let names = problems.iter().map(|p| match p {
        Problem::Misfit { name, .. } => name.as_str(),
        other => panic!("{other}"),
    });
    names.collect()
}

/// Renames tensors, or leaves them out.
fn rename(dir: &Directory, change: impl Fn(&str) -> Option<String>) {
    dir.weights_of(WEIGHTS, |header, _| {
        let old = std::mem::take(header);
        // Data that no tensor names makes a file a broken one, so that what is left out stays under another name.
        let renamed = old.into_iter().map(|(name, info)| (change(&name).unwrap_or(name), info));
        header.extend(renamed);
    });
}

#[test]
fn options_that_compute_something_else_are_named_together() {
    let dir = Directory::copy_of("adapters/gpt2");
    for (key, value) in [
        ("bias", json!("all")),
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("peft_type", json!("IA3")),
        ("init_lora_weights", json!("pissa")),
        ("rank_pattern", json!({"^h\\.\\d+": 4})),
        ("trainable_token_indices", json!([3])),
        ("lora_alpha", json!(-1)),
        ("r", json!(0)),
    ] {
        dir.set(CONFIG, key, value);
    }
    let found = load(&dir);
    let mut keys: Vec<&str> = found
        .iter()
        .filter_map(|p| match p {
            Problem::UnsupportedOption { key, .. } | Problem::BadEntry { key, .. } => Some(key.as_str()),
            _ => None,
        })
        .collect();
    keys.sort_unstable();
    let expected = ["bias", "init_lora_weights", "lora_alpha", "modules_to_save", "peft_type", "r", "rank_pattern"];
    assert_eq!(keys, [&expected[..], &["trainable_token_indices", "use_dora"]].concat());
}

#[test]
fn missing_and_broken_files() {
    let dir = Directory::copy_of("adapters/gpt2");
    dir.remove(WEIGHTS).remove(CONFIG);
    assert_eq!(super::missing_files(&load(&dir)), [CONFIG, WEIGHTS]);
    fs::write(dir.path(WEIGHTS), b"version https://git-lfs.github.com/spec/v1").unwrap();
    fs::write(dir.path(CONFIG), b"[]").unwrap();
    assert!(matches!(&load(&dir)[..], [Problem::BrokenFile { .. }, Problem::BrokenFile { .. }]));
}

#[test]
fn another_rank_than_the_configuration_says() {
    let dir = Directory::copy_of("adapters/gpt2");
    dir.set(CONFIG, "r", json!(8));
    let found = load(&dir);
    assert_eq!(found.len(), 8, "{found:?}");
    assert!(found.iter().all(|p| p.to_string().contains("its rank is 4, and adapter_config.json says 8")), "{found:?}");
    // Patterns that contradict each other.
    dir.set(CONFIG, "r", json!(4)).set(CONFIG, "alpha_pattern", json!({"attn.c_attn": 2, "c_attn": 3}));
    assert_eq!(misfits(&load(&dir)), ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]);
}

#[test]
fn halves_without_each_other_strangers_and_weights_that_are_not_finite() {
    let dir = Directory::copy_of("adapters/llama");
    let layer = "base_model.model.model.layers";
    rename(&dir, |name| match name.strip_prefix(layer) {
        Some(".0.self_attn.q_proj.lora_A.weight") => Some(format!("{layer}.9.self_attn.q_proj.lora_A.weight")),
        Some(".0.mlp.up_proj.lora_B.weight") => Some("base_model.model.lora_embedding_A".into()),
        _ => None,
    });
    let nan = format!("{layer}.1.mlp.down_proj.lora_A.weight");
    dir.set_f32_of(WEIGHTS, &nan, 5, f32::NAN);
    let found = load(&dir);
    let (finite, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|p| matches!(p, Problem::NotFinite { .. }));
    assert!(matches!(&finite[..], [Problem::NotFinite { name, position, .. }] if *name == nan && position == &[0, 5]));
    let expected =
        ["base_model.model.lora_embedding_A", "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"];
    assert_eq!(misfits(&others), [&expected[..], &["model.layers.9.self_attn.q_proj"]].concat());
}

#[test]
fn an_adapter_of_another_base() {
    let adapter = |name: &str| Adapter::load(Directory::copy_of(name).0.path()).unwrap();
    let onto = |base: &str, of: &str| {
        let dir = Directory::copy_of(base);
        let model = Model::load(dir.0.path()).unwrap();
        let adapter = adapter(&format!("adapters/{of}"));
        problems(model.with_adapter(&adapter))
    };
    // Of another family: no layer is known, and all that it targets by these names is left out.
    assert_eq!(onto("gpt2", "llama").len(), 10);
    // Of the same with other widths, and with fewer layers.
    let found = onto("llama_biases_tied", "llama");
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 10, "{text:?}");
    let [wide, absent] = ["layers.0.self_attn.q_proj: it takes 32 values to 32, and in the base 16 to 16", "layers.1"];
    assert!(text.iter().any(|t| t.starts_with(wide)) && text.iter().filter(|t| t.starts_with(absent)).count() == 5);
    // Of one with fewer layers: those that it targets and leaves out are named.
    let dir = Directory::copy_of("adapters/gpt2");
    rename(&dir, |name| name.contains("h.1.attn.c_attn").then(|| name.replace("h.1.attn.c_attn", "h.7.attn.c_attn")));
    let base = Directory::copy_of("gpt2");
    let model = Model::load(base.0.path()).unwrap();
    let found = problems(model.with_adapter(&Adapter::load(dir.0.path()).unwrap()));
    assert_eq!(misfits(&found), ["h.7.attn.c_attn", "h.1.attn.c_attn"]);
    // Where its maker left them out on purpose, that is no problem.
    dir.set(CONFIG, "layers_to_transform", json!([0]));
    let found = problems(model.with_adapter(&Adapter::load(dir.0.path()).unwrap()));
    assert_eq!(misfits(&found), ["h.7.attn.c_attn"]);
}

#[test]
fn the_scores_of_tokens_are_not_adapted() {
    let dir = Directory::copy_of("adapters/llama");
    // As wide as the head takes them, the name is what is looked at.
    rename(&dir, |name| {
        let there = "model.layers.0.self_attn.q_proj";
        name.contains(there).then(|| name.replace(there, "lm_head"))
    });
    dir.set(CONFIG, "target_modules", Value::String("all-linear".into())).set(CONFIG, "alpha_pattern", json!({}));
    let base = Directory::copy_of("llama");
    let model = Model::load(base.0.path()).unwrap();
    let found = problems(model.with_adapter(&Adapter::load(dir.0.path()).unwrap()));
    assert!(
        matches!(&found[..], [Problem::Misfit { name, what }] if name == "lm_head" && what.contains("scores")),
        "{found:?}"
    );
}

#[test]
fn layers_that_take_no_part_are_said_to_be_so() {
    let base = Directory::copy_of("bert_encoder");
    // One in the checkpoint, and one that checkpoints may leave out.
    base.weights(|header, data| {
        let at = data.len();
        data.extend([0; 4]);
        header.insert("head.weight".into(), json!({"dtype": "F32", "shape": [1, 1], "data_offsets": [at, at + 4]}));
    });
    let model = Model::load(base.0.path()).unwrap();
    for layer in ["head", "pooler.dense", "cls.predictions.transform.dense"] {
        let dir = Directory::copy_of("adapters/bert_encoder");
        let from = "encoder.layer.1.attention.output.dense";
        rename(&dir, |name| name.contains(from).then(|| name.replace(from, layer)));
        dir.set(CONFIG, "target_modules", Value::String("all-linear".into()));
        let found = problems(model.with_adapter(&Adapter::load(dir.0.path()).unwrap()));
        assert!(
            matches!(&found[..], [Problem::Misfit { name, what }] if name == layer && what.contains("takes no part")),
            "{found:?}"
        );
    }
}
