//! Graphs from outside: every rule is held, and nothing makes the check panic.

use std::path::Path;

use serde_json::Value;
use tercet_model::graph::{Activation, Graph, Input, Node, Op, Output, TensorSpec};
use tercet_model::{GraphError, Model};

fn load(fixture: &str) -> Graph {
    Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture)).unwrap().graph
}

fn spoilt(fixture: &str, spoil: impl FnOnce(&mut Graph)) -> GraphError {
    let mut graph = load(fixture);
    spoil(&mut graph);
    graph.validate().expect_err("the graph is spoilt")
}

fn at(graph: &mut Graph, name: &str) -> usize {
    graph.nodes.iter().position(|node| node.name == name).unwrap()
}

#[test]
fn survives_serialisation() {
    for fixture in ["bert_encoder", "roberta_classifier", "vit_classifier"] {
        let graph = load(fixture);
        let text = serde_json::to_string(&graph).unwrap();
        let back: Graph = serde_json::from_str(&text).unwrap();
        assert_eq!(back, graph);
        assert_eq!(back.digest(), graph.digest());
    }
}

#[test]
fn digests_tell_graphs_apart() {
    let graph = load("bert_encoder");
    let mut other = graph.clone();
    other.output = Output::Embedding { width: 32, normalize: false };
    assert_ne!(graph.digest(), other.digest());
    assert_ne!(graph.digest(), load("distilbert_encoder").digest());
}

#[test]
fn shapes_of_all_kinds_of_values() {
    let graph = load("vit_classifier");
    assert_eq!(graph.max_rows(), 9);
    assert_eq!(graph.shape(0, 9), (9, 48));
    let mut named = graph.clone();
    for (name, shape) in [
        ("embeddings/patches", (9, 32)),
        ("embeddings/cls", (10, 32)),
        ("layer0/attention/qkv", (10, 96)),
        ("layer0/attention", (10, 32)),
        ("layer1/ffn/activation", (10, 48)),
        ("pool/first", (1, 32)),
        ("head/classifier", (1, 3)),
    ] {
        assert_eq!(graph.shape(at(&mut named, name) + 1, 9), shape, "{name}");
    }
    assert_eq!(graph.shape(graph.nodes.len() + 1, 9), (0, 0));
    assert_eq!(load("bert_encoder").shape(0, 5), (5, 64));
}

#[test]
fn indices() {
    let error = spoilt("bert_encoder", |g| g.nodes[3].inputs[0] = 4);
    assert!(matches!(error, GraphError::Node { index: 3, .. }));
    let error = spoilt("bert_encoder", |g| g.nodes[3].inputs[0] = usize::MAX);
    assert!(matches!(error, GraphError::Node { index: 3, .. }));
    let error = spoilt("bert_encoder", |g| g.nodes[3].inputs.clear());
    assert!(matches!(error, GraphError::Node { index: 3, .. }));
    let error = spoilt("bert_encoder", |g| g.nodes[1].inputs[0] = 0);
    assert!(error.to_string().contains("only node 0 reads the input"), "{error}");
    let error = spoilt("bert_encoder", |g| {
        let add = at(g, "layer0/ffn/add");
        let x = g.nodes[add].inputs[1];
        g.nodes[add].inputs[0] = x;
    });
    assert!(error.to_string().contains("no node reads its result"), "{error}");
}

#[test]
fn names_and_tensors() {
    let error = spoilt("bert_encoder", |g| g.nodes[2].name = "a b\n".into());
    assert!(matches!(error, GraphError::Node { index: 2, .. }) && !error.to_string().contains('\n'));
    let error = spoilt("bert_encoder", |g| g.nodes[2].name = g.nodes[1].name.clone());
    assert!(error.to_string().contains("same name"));
    let error = spoilt("bert_encoder", |g| g.tensors.push(TensorSpec { name: "idle".into(), rows: 1, cols: 1 }));
    assert!(error.to_string().contains("no node names it"));
    let error = spoilt("bert_encoder", |g| g.tensors.push(g.tensors[0].clone()));
    assert!(error.to_string().contains("taken twice"));
    let error = spoilt("bert_encoder", |g| {
        g.tensors.remove(4);
    });
    assert!(error.to_string().contains("not in the list"));
    let error = spoilt("bert_encoder", |g| {
        let (a, b) = (at(g, "layer0/attention/norm"), at(g, "layer0/ffn/norm"));
        g.nodes[b].op = g.nodes[a].op.clone();
    });
    assert!(error.to_string().contains("already in use"));
}

#[test]
fn sizes() {
    for (rows, cols) in [(0, 32), (usize::MAX, 2), (1 << 40, 1), (1, 1 << 30)] {
        let error = spoilt("bert_encoder", |g| (g.tensors[0].rows, g.tensors[0].cols) = (rows, cols));
        assert!(matches!(error, GraphError::Tensor { index: 0, .. }));
    }
    let error = spoilt("bert_encoder", |g| g.tensors[5].cols += 1);
    assert!(matches!(error, GraphError::Node { .. }));
    let error = spoilt("bert_encoder", |g| g.input = Input::Tokens { vocab: 64, max_tokens: 41 });
    assert!(error.to_string().contains("not [>= 41, 32]"), "{error}");
    let error = spoilt("bert_encoder", |g| g.input = Input::Tokens { vocab: 63, max_tokens: 40 });
    assert!(matches!(error, GraphError::Node { index: 0, .. }));
    let error = spoilt("bert_encoder", |g| g.input = Input::Tokens { vocab: usize::MAX, max_tokens: 0 });
    assert!(matches!(error, GraphError::Input { .. }));
    let error = spoilt("bert_encoder", |g| {
        let node = at(g, "layer0/attention");
        g.nodes[node].op = Op::Attention { heads: 5 };
    });
    assert!(error.to_string().contains("5 heads"));
    let error = spoilt("bert_encoder", |g| {
        let (node, mean) = (at(g, "layer0/ffn/activation"), Op::MeanRows);
        g.nodes[node].op = mean;
    });
    assert!(matches!(error, GraphError::Node { .. }));
}

#[test]
fn outputs() {
    let error = spoilt("bert_encoder", |g| {
        g.nodes.pop();
    });
    assert!(matches!(error, GraphError::Output { .. }));
    let error = spoilt("bert_encoder", |g| g.output = Output::Logits { labels: vec!["one".into()] });
    assert!(matches!(error, GraphError::Output { .. }));
    let error = spoilt("bert_encoder", |g| g.nodes.clear());
    assert!(matches!(error, GraphError::Graph { .. }));
    let error = spoilt("bert_encoder", |g| {
        let node = Node { name: "again".into(), op: Op::Activation(Activation::Relu), inputs: vec![0] };
        g.nodes.push(node);
    });
    assert!(matches!(error, GraphError::Node { .. }));
}

#[test]
fn images() {
    for spoil in [
        |g: &mut Graph| set(g, |_, _, patch, _, _| *patch = 0),
        |g: &mut Graph| set(g, |_, side, _, _, _| *side = 13),
        |g: &mut Graph| set(g, |channels, _, _, _, _| *channels = usize::MAX),
        |g: &mut Graph| set(g, |_, _, _, mean, _| mean.clear()),
        |g: &mut Graph| set(g, |_, _, _, mean, _| mean[0] = f32::NAN),
        |g: &mut Graph| set(g, |_, _, _, _, std| std[2] = 0.0),
    ] {
        assert!(matches!(spoilt("vit_classifier", spoil), GraphError::Input { .. }));
    }
}

type Change = fn(&mut usize, &mut usize, &mut usize, &mut Vec<f32>, &mut Vec<f32>);

fn set(graph: &mut Graph, change: Change) {
    let Input::Patches { channels, image_size, patch_size, mean, std } = &mut graph.input else { panic!("an image") };
    change(channels, image_size, patch_size, mean, std);
}

/// Replaces single leaves of the serialised graph by hostile ones; what still parses must be checked without a panic.
#[test]
fn no_leaf_makes_the_check_panic() {
    for fixture in ["bert_encoder", "vit_classifier"] {
        let whole = serde_json::to_value(load(fixture)).unwrap();
        let mut refused = 0;
        for number in [0, 1, 2, 7, 1 << 20, 1 << 33, i64::MAX as u64, u64::MAX] {
            for leaf in 0.. {
                let mut value = whole.clone();
                if !replace(&mut value, &mut leaf.clone(), number) {
                    break;
                }
                let Ok(graph) = serde_json::from_value::<Graph>(value) else { continue };
                refused += usize::from(graph.validate().is_err());
                for value in [0, 1, graph.nodes.len(), usize::MAX] {
                    graph.shape(value, usize::MAX);
                }
                graph.max_rows();
            }
        }
        assert!(refused > 500, "{refused}");
    }
}

/// Replaces the number or text at position `leaf`; false if there are fewer.
fn replace(value: &mut Value, leaf: &mut usize, number: u64) -> bool {
    match value {
        Value::Array(list) => list.iter_mut().any(|v| replace(v, leaf, number)),
        Value::Object(map) => map.values_mut().any(|v| replace(v, leaf, number)),
        Value::Number(_) | Value::String(_) if *leaf > 0 => {
            *leaf -= 1;
            false
        }
        Value::Number(n) => {
            *n = number.into();
            true
        }
        Value::String(text) => {
            *text = if number == 0 { String::new() } else { text.repeat(number.min(1000) as usize) };
            true
        }
        _ => false,
    }
}
