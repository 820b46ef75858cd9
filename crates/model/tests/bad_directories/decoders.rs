//! Directories of decoders.

use std::fs;

use serde_json::{Value, json};
use tercet_model::graph::Op;
use tercet_model::{Model, OracleError, OracleInput, Problem, TensorError, calibrate};

use crate::directory::Directory;

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
    for (key, neutral, other) in [
        ("num_beams", json!(1), json!(4)),
        ("no_repeat_ngram_size", json!(0), json!(1)),
        ("typical_p", json!(1.0), json!(0.0)),
        ("min_new_tokens", json!(0), json!(1)),
        ("max_length", json!(20), json!(21)),
        ("guidance_scale", json!(1), json!(0)),
        ("forced_bos_token_id", Value::Null, json!(1)),
        ("forced_eos_token_id", Value::Null, json!(0)),
        ("stop_strings", json!([]), json!("END")),
        ("sequence_bias", json!({}), json!([[[1], 2.0]])),
    ] {
        for (value, noted) in [(neutral, false), (other, true)] {
            let dir = Directory::copy_of("llama");
            let notes = Model::load(dir.set(file, key, value.clone()).0.path()).unwrap().notes;
            let found = notes.iter().any(|note| note.contains(&format!("{key} = {value};")));
            assert_eq!(found, noted, "{key} = {value}: {notes:?}");
        }
    }
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
