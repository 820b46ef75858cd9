//! Graphs from outside: every rule is held, and nothing makes the check panic.

use std::path::Path;

use serde_json::Value;
use tercet_model::graph::{Activation, Expert, Graph, Input, Node, Op, Output, Reach, TensorSpec};
use tercet_model::{Gate, GraphError, Model};

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

fn op<'a>(graph: &'a mut Graph, name: &str) -> &'a mut Op {
    let at = at(graph, name);
    &mut graph.nodes[at].op
}

/// The message for a graph in which one operation is another.
fn instead(fixture: &str, name: &str, other: Op) -> String {
    spoilt(fixture, |g| *op(g, name) = other).to_string()
}

#[test]
fn causal_attention() {
    let with = |change: fn(&mut usize, &mut usize, &mut Option<Vec<f64>>, &mut Reach)| {
        let error = spoilt("llama", |g| {
            let Op::CausalAttention { heads, kv_heads, rotary, reach } = op(g, "layer1/attention") else { panic!() };
            change(heads, kv_heads, rotary, reach);
        });
        assert!(matches!(&error, GraphError::Node { name, .. } if name == "layer1/attention"), "{error}");
        error.to_string()
    };
    assert!(with(|heads, _, _, _| *heads = 0).contains("0 heads"));
    assert!(with(|heads, _, _, _| *heads = 3).contains("cannot share"));
    assert!(with(|_, kv_heads, _, _| *kv_heads = 0).contains("cannot share"));
    assert!(with(|heads, kv_heads, _, _| (*heads, *kv_heads) = (3, 3)).contains("width 64"));
    assert!(with(|heads, kv_heads, _, _| (*heads, *kv_heads) = (usize::MAX, usize::MAX)).contains("width 64"));
    assert!(with(|heads, kv_heads, _, _| (*heads, *kv_heads) = (2, 1)).contains("4 rotary frequencies"));
    assert!(with(|_, _, rotary, _| rotary.as_mut().unwrap().truncate(3)).contains("3 rotary frequencies"));
    assert!(with(|_, _, rotary, _| rotary.as_mut().unwrap()[2] = f64::INFINITY).contains("not finite"));
    assert!(with(|_, _, _, reach| reach.window = Some(0)).contains("window"));
    assert!(with(|_, _, _, reach| reach.window = Some(usize::MAX)).contains("window"));
    assert!(with(|_, _, _, reach| reach.global = usize::MAX).contains("global"));
}

#[test]
fn experts() {
    assert!(instead("mixtral", "layer0/ffn/route", Op::Route { top: 0 }).contains("0 of 4"));
    assert!(instead("mixtral", "layer0/ffn/route", Op::Route { top: 5 }).contains("5 of 4"));
    let error = spoilt("mixtral", |g| {
        let (route, norm) = (at(g, "layer0/ffn/route"), at(g, "layer0/ffn/norm") + 1);
        g.nodes[route].inputs[0] = norm;
    });
    assert!(error.to_string().contains("no node reads its result"), "{error}");
    let error = spoilt("mixtral", |g| {
        let weighed = at(g, "layer0/ffn/weighed");
        let up = at(g, "layer0/ffn/up") + 1;
        g.nodes[weighed].inputs[1] = up;
    });
    assert!(error.to_string().contains("one block for each of 192"), "{error}");
    let error = spoilt("mixtral", |g| {
        let weighed = at(g, "layer0/ffn/weighed");
        g.nodes[weighed].inputs.pop();
    });
    assert!(error.to_string().contains("reads 1 values instead of 2"), "{error}");
}

#[test]
fn experts_behind_a_public_gate() {
    type Change = fn(&mut usize, &mut Vec<Expert>);
    let with = |change: Change| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mixtral");
        let mut graph = Model::load_with(&dir, Gate::Public).unwrap().graph;
        let Op::Experts { top, experts, .. } = op(&mut graph, "layer0/ffn/experts") else { panic!() };
        change(top, experts);
        graph.validate().expect_err("the graph is spoilt").to_string()
    };
    let cases: [(Change, &str); 6] = [
        (|top, _| *top = 0, "0 of 4"),
        (|top, _| *top = 5, "5 of 4"),
        (|_, experts| drop(experts.pop()), "2 of 3 experts by 4 scores"),
        (|_, experts| experts.clear(), "2 of 0 experts"),
        (|_, experts| experts[1] = experts[0].clone(), "already in use"),
        (
            |_, experts| {
                let Expert { up, down } = &mut experts[0];
                std::mem::swap(up, down)
            },
            "is [",
        ),
    ];
    for (change, what) in cases {
        let error = with(change);
        assert!(error.contains("layer0/ffn/experts") && error.contains(what), "{error}");
    }
}

#[test]
fn widths_of_gates_and_norms() {
    let odd = spoilt("llama", |g| {
        let spec = g.tensors.iter().position(|spec| spec.name == "layer0/ffn/up/weight").unwrap();
        g.tensors[spec].cols = 95;
    });
    assert!(odd.to_string().contains("width 95 has no two halves"), "{odd}");
    let eps = |eps: f64| {
        spoilt("llama", |g| {
            let Op::RmsNorm { eps: own, .. } = op(g, "head/norm") else { panic!("an RMSNorm") };
            *own = eps;
        })
    };
    assert!([0.0, -1.0, 1.0, f64::NAN].into_iter().all(|value| eps(value).to_string().contains("eps")));
    let gain = spoilt("llama", |g| {
        let spec = g.tensors.iter().position(|spec| spec.name == "head/norm/gain").unwrap();
        g.tensors[spec].cols = 31;
    });
    assert!(gain.to_string().contains("not [1, 32]"), "{gain}");
    let bias = spoilt("gpt2", |g| {
        let spec = g.tensors.iter().position(|spec| spec.name == "layer1/ffn/up/bias").unwrap();
        g.tensors[spec].cols -= 1;
    });
    assert!(bias.to_string().contains("not [1, 128]"), "{bias}");
    let positions = spoilt("gpt2", |g| g.input = Input::Tokens { vocab: 288, max_tokens: 321 });
    assert!(positions.to_string().contains("not [>= 321, 32]"), "{positions}");
}

#[test]
fn encoders_and_decoders_do_not_mix() {
    let foreign = "no place in a graph whose output is a next token";
    assert!(instead("gpt2", "layer0/attention", Op::Attention { heads: 4 }).contains(foreign));
    assert!(instead("gpt2", "head/last", Op::FirstRow).contains(foreign));
    assert!(instead("gpt2", "head/last", Op::MeanRows).contains(foreign));
    let rows = "embeddings/positions/rows".to_string();
    assert!(instead("gpt2", "embeddings/positions", Op::AddRows { rows: rows.clone() }).contains(foreign));
    assert!(instead("gpt2", "embeddings/positions", Op::PrependRow { row: rows.clone() }).contains(foreign));
    let only = "a place only in a graph whose output is a next token";
    let causal = Op::CausalAttention { heads: 4, kv_heads: 4, rotary: None, reach: Reach::default() };
    assert!(instead("bert_encoder", "layer0/attention", causal).contains(only));
    assert!(instead("bert_encoder", "embeddings/positions", Op::AddPositions { rows }).contains(only));
    assert!(instead("bert_encoder", "pool/mean", Op::LastRow).contains(only));
    let error = spoilt("vit_classifier", |g| g.output = Output::NextToken { vocab: 3 });
    assert!(error.to_string().contains(foreign), "{error}");
}

#[test]
fn next_tokens() {
    let error = spoilt("llama", |g| g.output = Output::NextToken { vocab: 299 });
    assert!(error.to_string().contains("which the input does not take"), "{error}");
    let error = spoilt("llama", |g| {
        let (last, scores) = (at(g, "head/last"), at(g, "head/scores"));
        g.nodes[scores].inputs[0] = last + 1;
        g.nodes.remove(last + 1);
        g.nodes.last_mut().unwrap().inputs[0] = last;
        g.nodes.remove(last);
        g.tensors.retain(|spec| spec.name != "head/norm/gain");
    });
    assert!(matches!(&error, GraphError::Output { what } if what.contains("rows of the input")), "{error}");
    let error = spoilt("llama", |g| {
        let (scores, relu) = (g.nodes.len(), Op::Activation(Activation::Relu));
        g.nodes.push(Node { name: "head/again".into(), op: relu, inputs: vec![scores] });
    });
    assert!(matches!(&error, GraphError::Output { what } if what.contains("linear layer")), "{error}");
    let error = spoilt("llama", |g| {
        let spec = g.tensors.iter().position(|spec| spec.name == "head/scores/weight").unwrap();
        g.tensors[spec].cols = 64;
    });
    assert!(matches!(&error, GraphError::Output { what } if what.contains("width 64")), "{error}");
}

#[test]
fn shapes_inside_decoders() {
    let mut graph = load("mixtral");
    for (name, width) in [
        ("layer0/attention/qkv", 64),
        ("layer0/attention", 32),
        ("layer1/ffn/router", 4),
        ("layer1/ffn/route", 4),
        ("layer1/ffn/up", 192),
        ("layer1/ffn/gated", 96),
        ("layer1/ffn/weighed", 96),
        ("layer1/ffn/down", 32),
    ] {
        let value = at(&mut graph, name) + 1;
        assert_eq!(graph.shape(value, 7), (7, width), "{name}");
    }
    let value = at(&mut graph, "head/norm") + 1;
    assert_eq!((graph.shape(value, 7), graph.shape(value + 1, 7)), ((1, 32), (1, 300)));
}

type Change = fn(&mut usize, &mut usize, &mut usize, &mut Vec<f32>, &mut Vec<f32>);

fn set(graph: &mut Graph, change: Change) {
    let Input::Patches { channels, image_size, patch_size, mean, std } = &mut graph.input else { panic!("an image") };
    change(channels, image_size, patch_size, mean, std);
}

/// Replaces single leaves of the serialised graph by hostile ones; what still parses must be checked without a panic.
#[test]
fn no_leaf_makes_the_check_panic() {
    for fixture in ["bert_encoder", "vit_classifier", "gpt2", "mixtral"] {
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
                graph.attentions();
                let reach = Reach { window: Some(leaf), global: leaf };
                graph.clone().with_context(leaf).with_reach(reach);
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
