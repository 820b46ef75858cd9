//! Loading and the oracle against what the transformers library computes (`fixtures/generate.py` made the files).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tercet_model::{Adapter, Model, Oracle, OracleInput, Precision, Truncate};

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

/// The adapter of a fixture, and the fixture with it.
fn adapted(base: &str) -> (Model, Adapter, Model, Vec<AdapterCase>) {
    let dir = fixture("adapters").join(base);
    let (model, adapter) = (Model::load(&fixture(base)).unwrap(), Adapter::load(&dir).expect("the adapter loads"));
    let adapted = model.with_adapter(&adapter).expect("the adapter is of this base");
    (model, adapter, adapted, serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap())
}

#[derive(Deserialize)]
struct AdapterCase {
    ids: Vec<u32>,
    #[serde(default)]
    columns: Vec<usize>,
    #[serde(default)]
    scores: Vec<f32>,
    #[serde(default)]
    output: Vec<f32>,
}

#[test]
fn adapted_models_compute_what_peft_does() {
    for base in ["gpt2", "llama", "mixtral", "bert_encoder"] {
        let (model, _, adapted, cases) = adapted(base);
        let [oracle, of_base] = [&adapted, &model].map(|m| Oracle::with_precision(m, Precision::F64).unwrap());
        for case in &cases {
            let input = OracleInput::Tokens(case.ids.clone());
            assert!(distance(&oracle.output(&input).unwrap(), &of_base.output(&input).unwrap()) > 0.01, "{base}");
            if !case.output.is_empty() {
                assert!(distance(&oracle.output(&input).unwrap(), &case.output) < TOLERANCE, "{base}");
                continue;
            }
            let scores = oracle.scores(&case.ids).unwrap();
            let some = scores.data.chunks(scores.width).flat_map(|row| case.columns.iter().map(|c| row[*c]));
            let away = distance(&some.collect::<Vec<f32>>(), &case.scores);
            assert!(away < TOLERANCE, "{base}, {} tokens: {away}", case.ids.len());
        }
    }
}

/// `W + D U` in the place of every adapted weight gives what the three nodes do.
#[test]
fn an_adapted_model_is_that_of_the_merged_weights() {
    for base in ["gpt2", "llama", "mixtral", "bert_encoder"] {
        let (model, adapter, adapted, cases) = adapted(base);
        let tensor = |model: &Model, name: &str| model.tensor(name).unwrap();
        let mut tensors = BTreeMap::new();
        let mut changed = 0;
        for spec in &model.graph.tensors {
            let mut values = tensor(&model, &spec.name);
            assert_eq!(values, tensor(&adapted, &spec.name), "{base}: the base's own are as they were");
            let node = spec.name.strip_suffix("/weight").unwrap_or_default();
            if let Some(down) = adapted.graph.tensor_spec(&format!("{node}/lora/down/weight")) {
                let up = format!("{node}/lora/up/weight");
                assert_eq!((down.rows, adapted.graph.tensor_spec(&up).unwrap().cols), (spec.rows, spec.cols));
                let (rank, cols, up) = (down.cols, spec.cols, tensor(&adapted, &up));
                for (row, down) in values.chunks_mut(cols).zip(tensor(&adapted, &down.name).chunks(rank)) {
                    for (j, value) in row.iter_mut().enumerate() {
                        *value += (0..rank).map(|c| down[c] * up[c * cols + j]).sum::<f32>();
                    }
                }
                changed += 1;
            }
            tensors.insert(spec.name.clone(), values);
        }
        assert_eq!(adapted.graph.nodes.len(), model.graph.nodes.len() + 3 * changed, "{base}");
        assert_eq!(adapted.graph.tensors.len(), model.graph.tensors.len() + 2 * changed, "{base}");
        assert!(changed >= 4 && adapter.layers().count() >= changed, "{base}: {changed}");
        let merged = Model::from_tensors(model.graph.clone(), tensors, None).unwrap();
        let [merged, adapted] = [&merged, &adapted].map(|m| Oracle::with_precision(m, Precision::F64).unwrap());
        for case in &cases {
            let [a, b] = [&merged, &adapted].map(|o| o.output(&OracleInput::Tokens(case.ids.clone())).unwrap());
            assert!(distance(&a, &b) < TOLERANCE, "{base}");
        }
    }
}

#[test]
fn ranks_and_scales_are_those_that_patterns_give() {
    let (_, adapter, adapted, _) = adapted("llama");
    let ranks: Vec<_> = adapter.layers().filter(|(name, _)| name.contains("layers.1.self_attn")).collect();
    let layer = "model.layers.1.self_attn";
    let expected = [("o_proj", 4), ("q_proj", 4), ("v_proj", 2)].map(|(name, rank)| (format!("{layer}.{name}"), rank));
    assert!(
        ranks.iter().map(|(name, rank)| (*name, *rank)).eq(expected.iter().map(|(n, r)| (n.as_str(), *r))),
        "{ranks:?}"
    );
    // Queries and values side by side, nothing for the keys.
    let up = adapted.graph.tensor_spec("layer0/attention/qkv/lora/up/weight").unwrap();
    assert_eq!((up.rows, up.cols), (6, 64));
    let values = adapted.tensor(&up.name).unwrap();
    for (c, row) in values.chunks(64).enumerate() {
        let (own, others) = if c < 4 { (0..32, 32..64) } else { (48..64, 0..48) };
        assert!(row[own].iter().all(|v| *v != 0.0) && row[others].iter().all(|v| *v == 0.0), "row {c}");
    }
}
