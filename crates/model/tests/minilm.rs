//! The real all-MiniLM-L6-v2, from `TERCET_MINILM` or from where `tercet fetch minilm` puts it.

use std::path::PathBuf;

use serde::Deserialize;
use tercet_model::{Model, Oracle, OracleInput, Truncate, calibrate, text_inputs};

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    first_row: Vec<f32>,
    last_row: Vec<f32>,
    output: Vec<f32>,
}

fn directory() -> PathBuf {
    let cache = || match std::env::var_os("TERCET_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/tercet"),
    };
    let dir = std::env::var_os("TERCET_MINILM").map_or_else(|| cache().join("minilm"), PathBuf::from);
    assert!(dir.join("config.json").exists(), "{} has no model: run `tercet fetch minilm`", dir.display());
    dir
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn equals_transformers() {
    let model = Model::load(&directory()).unwrap();
    assert_eq!(model.notes.len(), 1, "only the shorter limit of sentence-transformers: {:?}", model.notes);
    assert!(model.notes[0].contains("256 tokens"));
    assert_eq!(model.graph.max_rows(), 512);
    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/minilm_expected.json")).unwrap();
    let oracle = Oracle::new(&model).unwrap();
    let last = model.graph.nodes.iter().position(|node| node.name == "layer5/ffn/norm").unwrap();
    for case in &cases {
        let ids = model.tokenizer().unwrap().encode(&case.text, 512, Truncate::No).unwrap();
        assert_eq!(ids, case.ids);
        let input = OracleInput::Tokens(ids);
        let hidden = &oracle.run(&input).unwrap().values[last];
        let rows = hidden.data.chunks_exact(hidden.width).collect::<Vec<_>>();
        assert!(distance(rows[0], &case.first_row) < 1e-4);
        assert!(distance(rows[rows.len() - 1], &case.last_row) < 1e-4);
        assert!(distance(&oracle.output(&input).unwrap(), &case.output) < 1e-5);
    }
}

#[test]
fn ranges_are_as_trained() {
    let model = Model::load(&directory()).unwrap();
    let ranges =
        calibrate(&model, &text_inputs(&model, &["A short one.", "Another, somewhat longer sentence."])).unwrap();
    assert_eq!(ranges.nodes.len(), model.graph.nodes.len());
    let attention = ranges.node("layer0/attention").unwrap().attention.unwrap();
    assert!(attention.row_sum.min >= 1.0 && attention.row_sum.max <= 9.0);
    assert!(attention.max_output <= attention.max_value * 1.0001);
    let norm = ranges.node("layer3/ffn/norm").unwrap().norm.unwrap();
    assert!(norm.variance.min > 0.0 && norm.variance.min <= norm.variance.max);
    let text = serde_json::to_string(&ranges).unwrap();
    assert_eq!(serde_json::from_str::<tercet_model::Ranges>(&text).unwrap(), ranges);
}
