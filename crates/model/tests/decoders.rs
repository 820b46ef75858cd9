//! Decoders against what the transformers library computes (`fixtures/generate.py` made the files): scores at every position,
//! texts to ids and back, options of generation, windows and contexts.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tercet_model::graph::{Graph, Input, Op, Output, Reach};
use tercet_model::{Gate, Generation, Model, Oracle, OracleError, OracleInput, Precision, TextStream, Truncate};

const FAMILIES: [&str; 6] = ["gpt2", "llama", "llama_biases_tied", "mistral_bf16_sharded", "qwen2", "mixtral"];
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Case {
    text: Option<String>,
    decoded: Option<String>,
    ids: Vec<u32>,
    columns: Vec<usize>,
    scores: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(name: &str) -> (Model, Vec<Case>) {
    let dir = fixture(name);
    let model = Model::load(&dir).expect("the fixture loads");
    (model, serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap())
}

fn reaches(graph: &Graph) -> Vec<Reach> {
    let reaches = graph.nodes.iter().filter_map(|node| match &node.op {
        Op::CausalAttention { reach, .. } => Some(*reach),
        _ => None,
    });
    reaches.collect()
}

fn check(name: &str) {
    check_with(name, Gate::Secret);
}

/// Scores at every position, in both precisions, and the last of them as the output.
fn check_with(name: &str, gate: Gate) {
    let cases = load(name).1;
    let model = Model::load_with(&fixture(name), gate).expect("the fixture loads");
    assert_eq!(cases.iter().map(|case| case.ids.len()).max(), Some(300));
    for precision in [Precision::F32, Precision::F64] {
        let oracle = Oracle::with_precision(&model, precision).unwrap();
        for case in &cases {
            let scores = oracle.scores(&case.ids).unwrap();
            let Output::NextToken { vocab } = model.graph.output else { panic!("a decoder") };
            assert_eq!((scores.rows, scores.width), (case.ids.len(), vocab));
            assert_eq!(case.scores.len(), case.ids.len() * case.columns.len());
            for (row, expected) in case.scores.chunks(case.columns.len()).enumerate() {
                for (column, expected) in case.columns.iter().zip(expected) {
                    let found = scores.data[row * vocab + column];
                    assert!((found - expected).abs() < TOLERANCE, "{name} [{row}, {column}]: {found}, not {expected}");
                }
            }
            let input = OracleInput::Tokens(case.ids.clone());
            let last = &scores.data[(case.ids.len() - 1) * vocab..];
            let output = oracle.output(&input).unwrap();
            assert!(output.iter().zip(last).all(|(a, b)| (a - b).abs() < 1e-4));
            let trace = oracle.run(&input).unwrap();
            assert_eq!(trace.output(), output);
            for (i, value) in trace.values.iter().enumerate() {
                let node = &model.graph.nodes[i];
                assert_eq!((value.rows, value.width), model.graph.shape(i + 1, case.ids.len()), "{}", node.name);
            }
        }
    }
}

#[test]
fn gpt2() {
    check("gpt2");
}

#[test]
fn llama_with_shared_keys_and_its_third_scaling() {
    check("llama");
}

#[test]
fn llama_with_biases_tied_and_linear_scaling() {
    check("llama_biases_tied");
}

#[test]
fn mistral_with_a_window_in_bf16_shards() {
    check("mistral_bf16_sharded");
    assert_eq!(reaches(&load("mistral_bf16_sharded").0.graph), [Reach { window: Some(24), global: 0 }; 2]);
}

#[test]
fn qwen2_with_a_window_in_its_upper_layer() {
    check("qwen2");
    let windows = [None, Some(16)].map(|window| Reach { window, global: 0 });
    assert_eq!(reaches(&load("qwen2").0.graph), windows);
}

#[test]
fn mixtral() {
    check("mixtral");
}

#[test]
fn mixtral_with_a_public_gate() {
    check_with("mixtral", Gate::Public);
    let [secret, public] =
        [Gate::Secret, Gate::Public].map(|gate| Model::load_with(&fixture("mixtral"), gate).unwrap().graph);
    assert!(public.opens_gate() && !secret.opens_gate());
    let size = |graph: &Graph| graph.tensors.iter().map(|tensor| tensor.rows * tensor.cols).sum::<usize>();
    assert_eq!(size(&public), size(&secret));
    assert_eq!(Model::graph_of(&fixture("mixtral"), Gate::Public).unwrap(), public);
    // Of a model without experts there is nothing to open.
    assert_eq!(Model::load_with(&fixture("llama"), Gate::Public).unwrap().graph, load("llama").0.graph);
}

#[test]
fn texts_become_the_same_ids_and_come_back() {
    for name in FAMILIES {
        let (model, cases) = load(name);
        let tokenizer = model.tokenizer().unwrap();
        for case in &cases {
            let (Some(text), Some(decoded)) = (&case.text, &case.decoded) else { continue };
            assert_eq!(&tokenizer.encode(text, 320, Truncate::No).unwrap(), &case.ids, "{name}: {text}");
            assert_eq!(&tokenizer.decode(&case.ids).unwrap(), decoded, "{name}");
            assert_eq!(decoded.replace(' ', ""), text.replace(' ', ""), "{name}");
            // As they come, from the beginning and after a part of them.
            let mut pieces = Vec::new();
            let mut stream = TextStream::new();
            for id in &case.ids {
                pieces.push(stream.push(tokenizer, *id).unwrap());
            }
            pieces.push(stream.finish(tokenizer).unwrap());
            assert_eq!(&pieces.concat(), decoded, "{name}");
            assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{name}: {pieces:?}");
            assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 1, "{name}: {pieces:?}");
            for prompt in 1..case.ids.len() {
                let before = tokenizer.decode(&case.ids[..prompt]).unwrap();
                let Some(rest) = decoded.strip_prefix(&before) else { continue };
                let mut stream = TextStream::after(tokenizer, &case.ids[..prompt]).unwrap();
                let mut text = String::new();
                for id in &case.ids[prompt..] {
                    text += &stream.push(tokenizer, *id).unwrap();
                }
                text += &stream.finish(tokenizer).unwrap();
                assert_eq!(text, rest, "{name} after {prompt}");
            }
        }
        let begins = i32::from(!matches!(name, "gpt2" | "qwen2"));
        assert_eq!(tokenizer.specials() as i32, begins, "{name}");
        let (first, end) = if begins == 1 { ("<s>", Some(1)) } else { ("<|endoftext|>", Some(0)) };
        assert_eq!(tokenizer.token_id(first), end, "{name}");
        assert_eq!(tokenizer.token_id("<no such token>"), None);
    }
}

#[test]
fn characters_that_never_become_complete_are_given_out_in_the_end() {
    for (name, byte) in [("gpt2", "ð"), ("llama", "<0xF0>")] {
        let (model, _) = load(name);
        let tokenizer = model.tokenizer().unwrap();
        let id = tokenizer.token_id(byte).unwrap();
        let mut stream = TextStream::new();
        assert_eq!(stream.push(tokenizer, id).unwrap(), "");
        assert_eq!(stream.clone().finish(tokenizer).unwrap(), "\u{FFFD}");
        let text: String = (0..40).map(|_| stream.push(tokenizer, id).unwrap()).collect();
        assert!(text.chars().all(|c| c == '\u{FFFD}') && text.chars().count() > 30, "{text}");
        // Ids that do not exist have no text, and nothing panics.
        assert_eq!(stream.push(tokenizer, u32::MAX).unwrap(), "");
    }
}

#[test]
fn generation_as_the_directory_has_it() {
    let of = |name| load(name).0.generation.unwrap();
    let plain = Generation { eos: vec![0], bos: Some(0), max_new_tokens: Some(20), ..Generation::default() };
    assert_eq!(of("gpt2"), plain);
    let (eos, bos) = (vec![2, 0], Some(1));
    let drawn = Generation { eos, bos, sample: true, temperature: 0.6, top_p: 0.9, top_k: Some(50), ..plain };
    let drawn = Generation { max_new_tokens: None, ..drawn };
    assert_eq!(of("llama"), drawn);
    for name in FAMILIES {
        let generation = of(name);
        assert_eq!(generation.check(300), Ok(()));
        let text = serde_json::to_string(&generation).unwrap();
        assert_eq!(serde_json::from_str::<Generation>(&text).unwrap(), generation);
    }
    assert!(Model::load(&fixture("bert_encoder")).unwrap().generation.is_none());
    for spoilt in [
        Generation { eos: vec![300], ..drawn.clone() },
        Generation { bos: Some(300), ..drawn.clone() },
        Generation { temperature: f64::NAN, ..drawn.clone() },
        Generation { temperature: -1.0, ..drawn.clone() },
        Generation { top_p: 0.0, ..drawn.clone() },
        Generation { top_k: Some(0), ..drawn.clone() },
        Generation { repetition_penalty: f64::INFINITY, ..drawn.clone() },
    ] {
        assert!(spoilt.check(300).is_err(), "{spoilt:?}");
    }
}

#[test]
fn a_reach_is_given_from_outside() {
    let (model, cases) = load("qwen2");
    let (tokens, long) = (320, cases.last().unwrap());
    let asked = Reach { window: Some(32), global: 4 };
    let graph = model.graph.clone().with_reach(asked);
    assert_eq!(graph.validate(), Ok(()));
    assert_eq!(reaches(&graph), [asked, Reach { window: Some(16), global: 4 }]);
    // Of all rows it is none.
    let graph = model.graph.clone().with_reach(Reach { window: Some(tokens), global: 4 });
    assert_eq!(reaches(&graph)[0], Reach::default());
    let bert = Model::load(&fixture("bert_encoder")).unwrap().graph;
    assert_eq!(bert.clone().with_reach(asked).with_context(3), bert);

    // What lies within reach alone changes the scores: positions 0 and 1, and the last 8.
    let (mut model, _) = load("llama");
    model.graph = model.graph.clone().with_reach(Reach { window: Some(8), global: 2 });
    let oracle = Oracle::new(&model).unwrap();
    let layers = 2;
    let scores = |ids: &[u32]| oracle.output(&OracleInput::Tokens(ids.to_vec())).unwrap();
    let mut ids = long.ids[..60].to_vec();
    let whole = scores(&ids);
    // In two layers a row reaches back 7 rows twice, and to the first two, which see only each other.
    for (at, seen) in
        [(0, true), (1, true), (2, false), (59 - layers * 7 - 1, false), (59 - layers * 7, true), (59, true)]
    {
        let kept = std::mem::replace(&mut ids[at], (long.ids[at] + 1) % 297);
        assert_eq!(scores(&ids) != whole, seen, "{at}");
        ids[at] = kept;
    }
}

#[test]
fn a_context_becomes_shorter_and_never_longer() {
    for name in FAMILIES {
        let mut model = load(name).0;
        model.graph = model.graph.clone().with_context(20);
        assert_eq!(model.graph.validate(), Ok(()));
        assert!(matches!(model.graph.input, Input::Tokens { max_tokens: 20, .. }));
        assert_eq!(model.graph.clone().with_context(21), model.graph);
        let oracle = Oracle::new(&model).unwrap();
        assert!(oracle.scores(&[5; 20]).is_ok());
        assert!(matches!(oracle.scores(&[5; 21]), Err(OracleError::Input(_))));
        assert!(matches!(oracle.scores(&[]), Err(OracleError::Input(_))));
    }
    assert_eq!(reaches(&load("mistral_bf16_sharded").0.graph.with_context(24)), [Reach::default(); 2]);
}

#[test]
fn graphs_know_that_they_are_decoders() {
    for name in FAMILIES {
        let graph = load(name).0.graph;
        let layers = if name == "llama_biases_tied" { 1 } else { 2 };
        assert!(graph.is_decoder());
        assert_eq!(graph.attentions(), layers, "{name}");
        let text = serde_json::to_string(&graph).unwrap();
        let back: Graph = serde_json::from_str(&text).unwrap();
        assert_eq!((back.digest(), &back), (graph.digest(), &graph), "{name}");
    }
    let bert = Model::load(&fixture("bert_encoder")).unwrap();
    assert_eq!((bert.graph.is_decoder(), bert.graph.attentions()), (false, 0));
    assert!(matches!(Oracle::new(&bert).unwrap().scores(&[1]), Err(OracleError::Input(_))));
}

#[test]
fn pieces_of_tensors_are_those_of_the_whole() {
    for name in FAMILIES.iter().chain(&["bert_encoder", "bert_encoder_tanh_bf16_sharded", "vit_classifier_tanh_bf16"]) {
        let model = Model::load(&fixture(name)).unwrap();
        for spec in &model.graph.tensors {
            let whole = model.tensor(&spec.name).unwrap();
            assert_eq!(whole.len(), spec.rows * spec.cols);
            for step in [1, 3, 7, spec.rows] {
                let mut all = Vec::new();
                for from in (0..spec.rows).step_by(step) {
                    all.extend(model.tensor_rows(&spec.name, from..(from + step).min(spec.rows)).unwrap());
                }
                assert!(all == whole, "{name}: {} by {step}", spec.name);
            }
            assert!(model.tensor_rows(&spec.name, 0..spec.rows + 1).is_err());
            assert!(model.tensor_rows(&spec.name, spec.rows..spec.rows).unwrap().is_empty());
        }
    }
}
