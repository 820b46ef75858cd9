//! Directories that cannot be loaded: every problem by name, all at once, and never a panic.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tercet_model::{Model, Problem};

#[path = "bad_directories/adapters.rs"]
mod adapters;
#[path = "bad_directories/decoders.rs"]
mod decoders;
#[path = "bad_directories/directory.rs"]
mod directory;

use directory::Directory;

fn missing_files(problems: &[Problem]) -> Vec<&str> {
    let files = problems.iter().map(|p| match p {
        Problem::MissingFile { file, .. } => file.as_str(),
        other => panic!("{other}"),
    });
    files.collect()
}

#[test]
fn missing_files_are_named_together() {
    let dir = Directory::copy_of("bert_encoder");
    dir.remove("tokenizer.json").remove("model.safetensors");
    assert_eq!(missing_files(&dir.problems()), ["model.safetensors", "tokenizer.json"]);
    dir.remove("config.json");
    assert_eq!(missing_files(&dir.problems()), ["config.json", "model.safetensors"]);
    let nowhere = Model::load(Path::new("/nonexistent/model")).unwrap_err();
    assert_eq!(missing_files(&nowhere.problems), ["config.json", "model.safetensors"]);
}

#[test]
fn weights_that_are_not_finite_are_named_with_their_position() {
    let dir = Directory::copy_of("bert_encoder");
    let (first, second) = ("encoder.layer.0.intermediate.dense.weight", "encoder.layer.1.output.LayerNorm.bias");
    dir.set_f32(first, 3 * 32 + 7, f32::NAN).set_f32(first, 3 * 32 + 9, f32::NAN).set_f32(
        second,
        31,
        f32::NEG_INFINITY,
    );
    let problems = dir.problems();
    assert_eq!(problems.len(), 2);
    assert!(matches!(&problems[0], Problem::NotFinite { name, position, value, count: 2 }
        if name == first && position == &[3, 7] && value.is_nan()));
    assert!(matches!(&problems[1], Problem::NotFinite { name, position, value, count: 1 }
        if name == second && position == &[31] && *value == f32::NEG_INFINITY));
}

#[test]
fn half_precision_weights_are_looked_at_too() {
    let dir = Directory::copy_of("distilbert_classifier");
    dir.weights(|header, data| {
        let at = header["classifier.bias"]["data_offsets"][0].as_u64().unwrap() as usize;
        data[at + 2..at + 4].copy_from_slice(&0x7c00_u16.to_le_bytes());
    });
    let problems = dir.problems();
    assert!(matches!(&problems[..], [Problem::NotFinite { name, position, value, .. }]
        if name == "classifier.bias" && position == &[1] && *value == f32::INFINITY));
}

#[test]
fn unknown_architecture_does_not_hide_other_problems() {
    let dir = Directory::copy_of("bert_encoder");
    dir.config("architectures", json!(["T5ForConditionalGeneration"])).set_f32(
        "embeddings.LayerNorm.bias",
        0,
        f32::NAN,
    );
    let problems = dir.problems();
    assert!(matches!(&problems[0], Problem::UnknownArchitecture { name, supported }
        if name == "T5ForConditionalGeneration" && supported.contains("BertModel")));
    assert!(matches!(&problems[1], Problem::NotFinite { .. }));
    assert_eq!(problems.len(), 2);
    dir.config("architectures", Value::Null).config("model_type", Value::Null);
    assert!(matches!(&dir.problems()[0], Problem::UnknownArchitecture { .. }));
}

#[test]
fn unsupported_options_and_a_missing_tensor_at_once() {
    let dir = Directory::copy_of("bert_encoder");
    dir.config("position_embedding_type", json!("relative_key"))
        .config("is_decoder", json!(true))
        .config("hidden_act", json!("silu"))
        .config("pruned_heads", json!({"0": [1]}))
        .config("quantization_config", json!({"bits": 8}))
        .config("num_attention_heads", json!(5))
        .config("layer_norm_eps", json!(-1))
        .weights(|header, _| {
            header["embeddings.LayerNorm.bias"] = json!({"dtype": "F32", "shape": [2, 16],
                "data_offsets": header["embeddings.LayerNorm.bias"]["data_offsets"]});
        })
        .remove("tokenizer.json");
    let problems = dir.problems();
    let options = problems.iter().filter_map(|p| match p {
        Problem::UnsupportedOption { key, .. } => Some(key.as_str()),
        _ => None,
    });
    let expected = ["hidden_act", "position_embedding_type", "is_decoder", "pruned_heads", "quantization_config"];
    assert_eq!(options.collect::<Vec<_>>(), expected);
    for key in ["num_attention_heads", "layer_norm_eps"] {
        assert!(problems.iter().any(|p| matches!(p, Problem::BadEntry { key: k, .. } if k == key)), "{key}");
    }
    assert!(problems.iter().any(|p| matches!(p, Problem::MissingFile { file, .. } if file == "tokenizer.json")));
    assert!(problems.iter().any(|p| matches!(p, Problem::WrongShape { found, .. } if found == &[2, 16])));
    assert_eq!(problems.len(), 9);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(1_u64 << 60)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("vocab_size", json!(-3)),
        ("num_attention_heads", json!("four")),
        ("intermediate_size", Value::Null),
        ("max_position_embeddings", json!(1.5)),
    ] {
        let dir = Directory::copy_of("bert_encoder");
        let problems = dir.config(key, value).problems();
        assert!(matches!(&problems[..], [Problem::BadEntry { key: k, .. }] if k == key), "{problems:?}");
    }
}

#[test]
fn broken_weight_files() {
    let whole = fs::read(Directory::copy_of("bert_encoder").path("model.safetensors")).unwrap();
    let mut altered = whole.clone();
    altered[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n".to_vec();
    for bytes in
        [whole[..whole.len() - 1].to_vec(), whole[..100].to_vec(), whole[..3].to_vec(), vec![], altered, pointer]
    {
        let dir = Directory::copy_of("bert_encoder");
        fs::write(dir.path("model.safetensors"), bytes).unwrap();
        let problems = dir.problems();
        assert!(
            matches!(&problems[..], [Problem::BrokenFile { file, .. }] if file == "model.safetensors"),
            "{problems:?}"
        );
    }
}

#[test]
fn broken_json_files() {
    for file in ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        for text in ["{", "[1]", "", "\u{0}"] {
            let dir = Directory::copy_of("distilbert_encoder");
            fs::write(dir.path(file), text).unwrap();
            // A list is a list of modules; those of this one are no modules.
            let option = file == "modules.json" && text == "[1]";
            let problems = dir.problems();
            let named = problems.iter().any(|p| match p {
                Problem::BrokenFile { file: f, .. } => f == file,
                Problem::UnsupportedOption { file: f, .. } => f == file && option,
                _ => false,
            });
            assert!(named, "{file} {text:?}: {problems:?}");
        }
    }
}

#[test]
fn shapes_other_than_configured_are_named_one_by_one() {
    let dir = Directory::copy_of("bert_encoder");
    let problems = dir.config("intermediate_size", json!(64)).problems();
    assert_eq!(problems.len(), 6);
    assert!(problems.contains(&Problem::WrongShape {
        name: "encoder.layer.1.output.dense.weight".into(),
        expected: vec![32, 64],
        found: vec![32, 48],
    }));
}

#[test]
fn layers_more_or_fewer_than_configured() {
    let dir = Directory::copy_of("bert_encoder");
    let problems = dir.config("num_hidden_layers", json!(3)).problems();
    assert_eq!(problems.len(), 16);
    assert!(problems.contains(&Problem::MissingTensor { name: "encoder.layer.2.attention.self.query.weight".into() }));
    let problems = dir.config("num_hidden_layers", json!(1)).problems();
    assert_eq!(problems.len(), 16);
    assert!(
        problems
            .iter()
            .all(|p| matches!(p, Problem::UnexpectedTensor { name } if name.starts_with("encoder.layer.1.")))
    );
}

#[test]
fn element_types_other_than_floats() {
    let dir = Directory::copy_of("bert_encoder");
    dir.weights(|header, _| header["embeddings.LayerNorm.bias"]["dtype"] = json!("I32"));
    let name = "embeddings.LayerNorm.bias".to_string();
    assert_eq!(dir.problems(), [Problem::WrongType { name, found: "I32".into() }]);
}

#[test]
fn shards_that_are_missing_or_elsewhere() {
    let fixture = "bert_encoder_tanh_bf16_sharded";
    let dir = Directory::copy_of(fixture);
    let problems = dir.remove("model-00002-of-00003.safetensors").problems();
    assert!(matches!(&problems[0], Problem::MissingFile { file, .. } if file == "model-00002-of-00003.safetensors"));
    assert!(problems[1..].iter().all(|p| matches!(p, Problem::MissingTensor { .. })) && problems.len() > 1);
    let dir = Directory::copy_of(fixture);
    let problems =
        dir.set("model.safetensors.index.json", "weight_map", json!({"embeddings.LayerNorm.bias": "../x"})).problems();
    assert!(
        matches!(&problems[..], [Problem::BadEntry { key, .. }] if key == "embeddings.LayerNorm.bias"),
        "{problems:?}"
    );
}

#[test]
fn pooling_that_is_not_one_of_the_two() {
    let file = "1_Pooling/config.json";
    let dir = Directory::copy_of("distilbert_encoder");
    let problems = dir.set(file, "pooling_mode_max_tokens", json!(true)).problems();
    assert!(matches!(&problems[..], [Problem::UnsupportedOption { key, value, .. }]
        if key == "pooling_mode" && value.contains("mean") && value.contains("max")));
    let dir = Directory::copy_of("distilbert_encoder");
    let problems = dir.set(file, "word_embedding_dimension", json!(31)).problems();
    assert!(matches!(&problems[..], [Problem::BadEntry { key, .. }] if key == "word_embedding_dimension"));
    let dir = Directory::copy_of("distilbert_encoder");
    assert_eq!(missing_files(&dir.remove(file).problems()), [file]);
    let dir = Directory::copy_of("distilbert_encoder");
    let dense = json!([{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"},
        {"path": "2_Dense", "type": "a.Dense"}]);
    fs::write(dir.path("modules.json"), dense.to_string()).unwrap();
    let problems = dir.problems();
    assert!(matches!(&problems[..], [Problem::UnsupportedOption { value, .. }] if value == "a.Dense"));
}

#[test]
fn images_whose_sizes_disagree() {
    let dir = Directory::copy_of("vit_classifier");
    let problems = dir.set("preprocessor_config.json", "size", json!({"height": 224, "width": 224})).problems();
    assert!(problems.iter().all(|p| matches!(p, Problem::BadEntry { key, .. } if key == "size")));
    let dir = Directory::copy_of("vit_classifier");
    let problems = dir.config("patch_size", json!(5)).problems();
    assert!(matches!(&problems[..], [Problem::BadEntry { key, .. }] if key == "patch_size"));
    let dir = Directory::copy_of("vit_classifier");
    let problems = dir.set("preprocessor_config.json", "image_std", json!([0.5, 0.0, 0.5])).problems();
    assert!(matches!(&problems[..], [Problem::BadEntry { key, .. }] if key == "image_std"));
}

#[test]
fn old_names_and_a_prefix_load_as_the_same_model() {
    let dir = Directory::copy_of("bert_encoder");
    let digest = Model::load(dir.0.path()).unwrap().digest().unwrap();
    dir.weights(|header, _| {
        let old = |name: &str| match name.strip_prefix("__") {
            Some(_) => name.to_string(),
            None => format!("bert.{name}")
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta"),
        };
        *header = std::mem::take(header).into_iter().map(|(name, entry)| (old(&name), entry)).collect();
        assert!(header.contains_key("bert.encoder.layer.1.output.LayerNorm.gamma"));
    });
    assert_eq!(Model::load(dir.0.path()).unwrap().digest().unwrap(), digest);
    dir.set_f32("bert.encoder.layer.1.output.LayerNorm.gamma", 5, 0.25);
    assert_ne!(Model::load(dir.0.path()).unwrap().digest().unwrap(), digest);
}

#[test]
fn a_tokenizer_that_transformers_would_change_is_noted() {
    let file = "tokenizer_config.json";
    let notes = |dir: &Directory, config: Value| {
        fs::write(dir.path(file), config.to_string()).unwrap();
        Model::load(dir.0.path()).unwrap().notes.into_iter().filter(|note| note.contains("ids")).collect::<Vec<_>>()
    };
    let llama = Directory::copy_of("llama");
    for agreeing in [json!({}), json!({"add_bos_token": true, "bos_token": {"content": "<s>"}, "add_eos_token": false})]
    {
        assert_eq!(notes(&llama, agreeing), [""; 0]);
    }
    let found = notes(&llama, json!({"add_bos_token": false, "tokenizer_class": "LlamaTokenizerFast"}));
    assert!(
        matches!(&found[..], [note] if note.contains("add_bos_token = false (tokenizer_config.json)")),
        "{found:?}"
    );
    let found = notes(&llama, json!({"add_eos_token": true, "eos_token": "</s>", "tokenizer_class": "Other"}));
    assert!(matches!(&found[..], [note] if note.contains("add_eos_token = true")), "{found:?}");
    // A class that does not say so adds nothing by default.
    llama.set("tokenizer.json", "post_processor", Value::Null);
    assert_eq!(notes(&llama, json!({"tokenizer_class": "PreTrainedTokenizerFast"})), [""; 0]);
    let found = notes(&llama, json!({}));
    assert!(matches!(&found[..], [note] if note.contains("add_bos_token = true (the default")), "{found:?}");

    let bert = Directory::copy_of("bert_encoder");
    let normalizer = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true});
    bert.set("tokenizer.json", "normalizer", normalizer);
    assert_eq!(notes(&bert, json!({"do_lower_case": true, "strip_accents": null})), [""; 0]);
    let found = notes(&bert, json!({"do_lower_case": false, "strip_accents": true, "tokenize_chinese_chars": false}));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("do_lower_case = false") && found[0].contains("lowercase = true"), "{found:?}");
    assert_eq!(notes(&bert, json!({"do_lower_case": false, "tokenizer_class": "Other"})), [""; 0]);

    fs::write(bert.path(file), "[").unwrap();
    assert!(matches!(&bert.problems()[..], [Problem::BrokenFile { file: f, .. }] if f == file));
    let problems = llama.set(file, "add_bos_token", json!("yes")).problems();
    assert!(matches!(&problems[..], [Problem::BadEntry { key, .. }] if key == "add_bos_token"), "{problems:?}");
}
