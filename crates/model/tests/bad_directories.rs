//! Directories that cannot be loaded: every problem by name, all at once, and never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tercet_model::graph::Op;
use tercet_model::{Model, OracleError, OracleInput, Problem, TensorError, calibrate};

/// A copy of a fixture that a test spoils.
struct Directory(TempDir);

impl Directory {
    fn copy_of(fixture: &str) -> Self {
        let to = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture), to.path());
        Self(to)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn remove(&self, file: &str) -> &Self {
        fs::remove_file(self.path(file)).unwrap();
        self
    }

    fn set(&self, file: &str, key: &str, value: Value) -> &Self {
        let mut object: Value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        object[key] = value;
        fs::write(self.path(file), object.to_string()).unwrap();
        self
    }

    fn config(&self, key: &str, value: Value) -> &Self {
        self.set("config.json", key, value)
    }

    /// Rewrites the weights: the header as JSON, and the bytes after it.
    fn weights(&self, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) -> &Self {
        let bytes = fs::read(self.path("model.safetensors")).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let mut data = bytes[8 + header_len..].to_vec();
        change(&mut header, &mut data);
        let header = serde_json::to_vec(&header).unwrap();
        let parts = [&(header.len() as u64).to_le_bytes()[..], &header, &data];
        fs::write(self.path("model.safetensors"), parts.concat()).unwrap();
        self
    }

    fn set_f32(&self, tensor: &str, index: usize, value: f32) -> &Self {
        self.weights(|header, data| {
            let at = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 4 * index;
            data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        })
    }

    fn problems(&self) -> Vec<Problem> {
        let error = Model::load(self.0.path()).expect_err("the directory is spoilt");
        let shown = error.to_string();
        assert!(error.problems.iter().take(40).all(|p| shown.contains(&p.to_string())));
        error.problems
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

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
fn options_that_no_decoder_has_are_said_at_once() {
    let dir = Directory::copy_of("llama");
    dir.config("hidden_act", json!("gelu"))
        .config("pretraining_tp", json!(2))
        .config("partial_rotary_factor", json!(0.5))
        .config("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}))
        .config("quantization_config", json!({"bits": 4}))
        .config("num_key_value_heads", json!(3))
        .set("generation_config.json", "top_p", json!(1.5))
        .remove("tokenizer.json");
    let problems = dir.problems();
    let options = problems.iter().filter_map(|p| match p {
        Problem::UnsupportedOption { key, .. } => Some(key.as_str()),
        _ => None,
    });
    let expected = ["hidden_act", "pretraining_tp", "partial_rotary_factor", "rope_scaling", "quantization_config"];
    assert_eq!(options.collect::<Vec<_>>(), expected);
    for key in ["num_key_value_heads", "top_p"] {
        assert!(problems.iter().any(|p| matches!(p, Problem::BadEntry { key: k, .. } if k == key)), "{key}");
    }
    assert!(problems.iter().any(|p| matches!(p, Problem::MissingFile { file, .. } if file == "tokenizer.json")));

    let dir = Directory::copy_of("gpt2");
    dir.config("scale_attn_weights", json!(false))
        .config("scale_attn_by_inverse_layer_idx", json!(true))
        .config("add_cross_attention", json!(true))
        .config("activation_function", json!("mish"));
    let keys = dir.problems().into_iter().map(|p| match p {
        Problem::UnsupportedOption { key, .. } => key,
        other => panic!("{other}"),
    });
    let expected =
        ["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "activation_function", "add_cross_attention"];
    assert_eq!(keys.collect::<Vec<_>>(), expected);
    // An upcast of what is anyway computed precisely changes nothing.
    let dir = Directory::copy_of("gpt2");
    let digest = Model::load(dir.0.path()).unwrap().digest().unwrap();
    dir.config("reorder_and_upcast_attn", json!(true));
    assert_eq!(Model::load(dir.0.path()).unwrap().digest().unwrap(), digest);
}

#[test]
fn sizes_of_decoders_that_make_no_sense() {
    for (fixture, key, value, named) in [
        ("gpt2", "n_head", json!(5), "n_head"),
        ("gpt2", "n_positions", json!(0), "n_positions"),
        ("gpt2", "n_inner", json!(-1), "n_inner"),
        ("gpt2", "vocab_size", json!(1_u64 << 40), "vocab_size"),
        ("llama", "num_attention_heads", json!(0), "num_attention_heads"),
        ("llama", "num_key_value_heads", json!("two"), "num_key_value_heads"),
        ("llama", "head_dim", json!(0), "head_dim"),
        ("llama", "rope_theta", json!("big"), "rope_theta"),
        ("llama", "rope_scaling", json!("linear"), "rope_scaling"),
        ("llama", "rms_norm_eps", json!(0), "rms_norm_eps"),
        ("llama", "tie_word_embeddings", json!("yes"), "tie_word_embeddings"),
        ("mistral_bf16_sharded", "sliding_window", json!(0), "sliding_window"),
        ("qwen2", "layer_types", json!(["full_attention"]), "layer_types"),
        ("qwen2", "layer_types", json!(["full_attention", "chunked_attention"]), "layer_types"),
        ("mixtral", "num_experts_per_tok", json!(5), "num_experts_per_tok"),
        ("mixtral", "num_local_experts", json!(0), "num_local_experts"),
    ] {
        let dir = Directory::copy_of(fixture);
        let problems = dir.config(key, value.clone()).problems();
        let is_it = |p: &&Problem| matches!(p, Problem::BadEntry { key, .. } if key == named);
        assert_eq!(problems.iter().filter(is_it).count(), 1, "{fixture} {key} {value}: {problems:?}");
    }
    let dir = Directory::copy_of("llama");
    let problems = dir.config("head_dim", json!(7)).problems();
    assert!(problems.iter().any(|p| matches!(p, Problem::BadEntry { key, .. } if key == "head_dim")), "{problems:?}");
}

#[test]
fn tensors_of_decoders() {
    let missing = |name: &str| Problem::MissingTensor { name: name.into() };
    let dir = Directory::copy_of("llama");
    dir.weights(|header, _| {
        let entry = header.remove("model.layers.1.mlp.up_proj.weight").unwrap();
        header.insert("model.layers.1.mlp.other.weight".into(), entry);
        let entry = header.remove("lm_head.weight").unwrap();
        header.insert("head.weight".into(), entry);
    });
    let unexpected = Problem::UnexpectedTensor { name: "model.layers.1.mlp.other.weight".into() };
    assert_eq!(dir.problems(), [missing("layers.1.mlp.up_proj.weight"), missing("lm_head.weight"), unexpected]);

    // Tied to the table, the head needs no tensor of its own, and one that is there is not used.
    let dir = Directory::copy_of("llama");
    let own = Model::load(dir.0.path()).unwrap();
    dir.config("tie_word_embeddings", json!(true));
    let tied = Model::load(dir.0.path()).unwrap();
    assert_ne!(own.tensor("head/scores/weight"), tied.tensor("head/scores/weight"));
    let (table, head) = (tied.tensor("embeddings/lookup/table").unwrap(), tied.tensor("head/scores/weight").unwrap());
    assert!((0..300).all(|token| (0..32).all(|i| table[token * 32 + i] == head[i * 300 + token])));

    let dir = Directory::copy_of("llama");
    let problems = dir.config("attention_bias", json!(true)).problems();
    assert_eq!(problems.len(), 8);
    assert!(problems.contains(&missing("layers.1.self_attn.o_proj.bias")));

    let dir = Directory::copy_of("mixtral");
    let problems = dir.config("num_local_experts", json!(5)).problems();
    // The router of each layer has another shape, and the fifth expert three tensors.
    assert_eq!(problems.len(), 8);
    assert!(problems.contains(&missing("layers.1.block_sparse_moe.experts.4.w2.weight")));
    assert!(problems.iter().any(|p| matches!(p, Problem::WrongShape { expected, .. } if expected == &[5, 32])));

    let dir = Directory::copy_of("gpt2");
    let problems = dir.config("n_layer", json!(1)).problems();
    assert_eq!(problems.len(), 12);
    assert!(problems.iter().all(|p| matches!(p, Problem::UnexpectedTensor { name } if name.contains("h.1."))));

    // Masks that older files hold, and names without the prefix.
    let dir = Directory::copy_of("gpt2");
    let digest = Model::load(dir.0.path()).unwrap().digest().unwrap();
    dir.weights(|header, data| {
        let short = |name: String| name.strip_prefix("transformer.").map(str::to_string).unwrap_or(name);
        *header = std::mem::take(header).into_iter().map(|(name, entry)| (short(name), entry)).collect();
        let at = data.len();
        data.extend([0; 4]);
        header.insert(
            "h.0.attn.bias".into(),
            json!({"dtype": "U8", "shape": [1, 1, 2, 2], "data_offsets": [at, at + 4]}),
        );
        assert!(header.contains_key("h.1.attn.c_attn.weight"));
    });
    assert_eq!(Model::load(dir.0.path()).unwrap().digest().unwrap(), digest);
}

#[test]
fn generation_that_cannot_be() {
    let file = "generation_config.json";
    for (key, value) in [
        ("temperature", json!(-0.5)),
        ("temperature", json!("warm")),
        ("top_p", json!(0)),
        ("top_k", json!(-1)),
        ("top_k", json!(2.5)),
        ("repetition_penalty", json!(0.0)),
        ("do_sample", json!(1)),
        ("max_new_tokens", json!(0)),
        ("eos_token_id", json!([2, 300])),
        ("eos_token_id", json!("</s>")),
        ("bos_token_id", json!(-1)),
    ] {
        let dir = Directory::copy_of("llama");
        let problems = dir.set(file, key, value).problems();
        assert!(
            matches!(&problems[..], [Problem::BadEntry { file: f, key: k, .. }] if f == file && k == key),
            "{problems:?}"
        );
    }
    let dir = Directory::copy_of("llama");
    fs::write(dir.path(file), "{").unwrap();
    assert!(matches!(&dir.problems()[..], [Problem::BrokenFile { file: f, .. }] if f == file));
    // Without the file the ids of the configuration count, and what no client applies is said.
    let generation = Model::load(dir.remove(file).0.path()).unwrap().generation.unwrap();
    assert_eq!((generation.eos, generation.bos, generation.sample), (vec![2], Some(1), false));
    let dir = Directory::copy_of("llama");
    let model = Model::load(dir.set(file, "num_beams", json!(4)).0.path()).unwrap();
    assert!(model.notes.iter().any(|note| note.contains("num_beams = 4")), "{:?}", model.notes);
}

#[test]
fn windows_and_contexts_as_configured() {
    let windows = |fixture: &str, changes: &[(&str, Value)]| -> Vec<Option<usize>> {
        let dir = Directory::copy_of(fixture);
        changes.iter().for_each(|(key, value)| {
            dir.config(key, value.clone());
        });
        let graph = Model::load(dir.0.path()).unwrap().graph;
        let windows = graph.nodes.iter().filter_map(|node| match &node.op {
            Op::CausalAttention { reach, .. } => Some(reach.window),
            _ => None,
        });
        windows.collect()
    };
    assert_eq!(windows("mistral_bf16_sharded", &[("sliding_window", Value::Null)]), [None, None]);
    assert_eq!(windows("mistral_bf16_sharded", &[("sliding_window", json!(320))]), [None, None]);
    assert_eq!(windows("llama", &[("sliding_window", json!(9))]), [None, None]);
    assert_eq!(windows("mixtral", &[("sliding_window", json!(9))]), [Some(9), Some(9)]);
    assert_eq!(windows("qwen2", &[("use_sliding_window", json!(false))]), [None, None]);
    let types = json!(["sliding_attention", "full_attention"]);
    assert_eq!(windows("qwen2", &[("layer_types", types)]), [Some(16), None]);
    let counted = [("layer_types", Value::Null), ("max_window_layers", json!(0))];
    assert_eq!(windows("qwen2", &counted), [Some(16), Some(16)]);

    let dir = Directory::copy_of("llama");
    let model = Model::load(dir.config("max_position_embeddings", json!(131_072)).0.path()).unwrap();
    assert_eq!(model.graph.max_rows(), 1 << 16);
    assert!(model.notes.iter().any(|note| note.contains("131072")));
}

#[test]
fn files_that_change_after_loading() {
    let dir = Directory::copy_of("llama");
    let model = Model::load(dir.0.path()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(dir.path("model.safetensors")).unwrap();
    file.set_len(1000).unwrap();
    assert!(matches!(model.tensor("layer1/ffn/up/weight"), Err(TensorError::Unreadable { .. })));
    assert!(matches!(model.tensor_rows("layer1/ffn/up/weight", 3..4), Err(TensorError::Unreadable { .. })));
    assert!(model.digest().is_err());
    assert!(matches!(calibrate(&model, &[OracleInput::Tokens(vec![1])]), Err(OracleError::Tensor(_))));
}
