//! Loading and the oracle against what the transformers library computes (`fixtures/generate.py` made the files).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tercet_model::{Model, Oracle, OracleInput, Precision, Truncate};

const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Case {
    text: Option<String>,
    ids: Option<Vec<u32>>,
    pixels: Option<Vec<f32>>,
    hidden: Vec<f32>,
    output: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Runs every case of a fixture in both precisions. `hidden` is the node that the last layer ends with.
fn check(name: &str, hidden: &str) {
    let dir = fixture(name);
    let model = Model::load(&dir).expect("the fixture loads");
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    assert!(!cases.is_empty());
    let hidden = model.graph.nodes.iter().position(|node| node.name == hidden).expect("the node exists");
    for precision in [Precision::F32, Precision::F64] {
        let oracle = Oracle::with_precision(&model, precision).unwrap();
        for case in &cases {
            let input = match (&case.ids, &case.pixels) {
                (Some(ids), _) => OracleInput::Tokens(ids.clone()),
                (_, Some(pixels)) => OracleInput::Patches(model.graph.input.patches(pixels).unwrap()),
                _ => panic!("a case without input"),
            };
            if let (Some(text), Some(ids)) = (&case.text, &case.ids) {
                assert_eq!(&model.tokenizer().unwrap().encode(text, 40, Truncate::No).unwrap(), ids);
            }
            let trace = oracle.run(&input).unwrap();
            let rows = case.ids.as_ref().map_or(model.graph.max_rows(), Vec::len);
            for (i, value) in trace.values.iter().enumerate() {
                assert_eq!((value.rows, value.width), model.graph.shape(i + 1, rows), "{}", model.graph.nodes[i].name);
            }
            assert!(distance(&trace.values[hidden].data, &case.hidden) < TOLERANCE, "{name}: last layer");
            let output = oracle.output(&input).unwrap();
            assert!(distance(&output, &case.output) < TOLERANCE, "{name}: {output:?} for {:?}", case.output);
        }
    }
}

#[test]
fn bert_encoder() {
    check("bert_encoder", "layer1/ffn/norm");
    let model = Model::load(&fixture("bert_encoder")).unwrap();
    assert!(model.notes.iter().any(|note| note.contains("mean over all tokens")));
}

#[test]
fn bert_encoder_in_bf16_shards_with_tanh_gelu_and_cls_pooling() {
    check("bert_encoder_tanh_bf16_sharded", "layer1/ffn/norm");
}

#[test]
fn bert_classifier_in_f16() {
    check("bert_classifier_f16", "layer1/ffn/norm");
}

#[test]
fn roberta_classifier() {
    check("roberta_classifier", "layer1/ffn/norm");
}

#[test]
fn distilbert_encoder_with_relu() {
    check("distilbert_encoder", "layer1/ffn/norm");
}

#[test]
fn distilbert_classifier() {
    check("distilbert_classifier", "layer1/ffn/norm");
}

#[test]
fn vit_classifier() {
    check("vit_classifier", "layer1/ffn/add");
}

#[test]
fn vit_classifier_in_bf16_with_tanh_gelu_and_without_qkv_bias() {
    check("vit_classifier_tanh_bf16", "layer1/ffn/add");
}

#[test]
fn other_names_of_the_same_architecture() {
    for (from, name) in [
        ("bert_encoder", "BertForMaskedLM"),
        ("distilbert_encoder", "DistilBertForMaskedLM"),
        ("roberta_classifier", "XLMRobertaForSequenceClassification"),
        ("roberta_classifier", "CamembertForSequenceClassification"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
            if fixture_file(from, file).exists() {
                std::fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
                std::fs::copy(fixture_file(from, file), dir.path().join(file)).unwrap();
            }
        }
        let text = std::fs::read_to_string(fixture_file(from, "config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["architectures"] = serde_json::json!([name]);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let digest = Model::load(dir.path()).unwrap().digest().unwrap();
        assert_eq!(digest, Model::load(&fixture(from)).unwrap().digest().unwrap(), "{name}");
    }
}

#[test]
fn debug_output_holds_no_weights() {
    let model = Model::load(&fixture("vit_classifier")).unwrap();
    let shown = format!("{model:?}");
    for value in model.tensor("head/classifier/weight").unwrap() {
        assert!(!shown.contains(&value.to_string()));
    }
}

fn fixture_file(name: &str, file: &str) -> PathBuf {
    fixture(name).join(file)
}
