//! The oracle and its statistics against sums written out by hand, and the inputs that it refuses.

use std::collections::BTreeMap;
use std::path::Path;

use tercet_model::graph::{Activation, Graph, Input, Node, Op, Output, TensorSpec};
use tercet_model::{Model, Oracle, OracleError, OracleInput, Precision, TensorError};

fn node(name: &str, op: Op, inputs: &[usize]) -> Node {
    Node { name: name.into(), op, inputs: inputs.into() }
}

/// Lookup, attention with two heads of width 2, norm, tanh, mean: every tensor known.
fn small() -> (Graph, BTreeMap<String, Vec<f32>>) {
    let mut tensors = BTreeMap::new();
    let mut specs = Vec::new();
    for (name, rows, cols) in [("table", 5, 4), ("weight", 4, 12), ("bias", 1, 12), ("gain", 1, 4), ("shift", 1, 4)] {
        let values = (0..rows * cols).map(|i| ((i * 7 + rows * 5) % 13) as f32 / 6.0 - 1.0).collect();
        tensors.insert(name.to_string(), values);
        specs.push(TensorSpec { name: name.into(), rows, cols });
    }
    let nodes = vec![
        node("lookup", Op::Lookup { table: "table".into() }, &[0]),
        node("qkv", Op::Linear { weight: "weight".into(), bias: Some("bias".into()) }, &[1]),
        node("attention", Op::Attention { heads: 2 }, &[2]),
        node("norm", Op::LayerNorm { gain: "gain".into(), bias: "shift".into(), eps: 1e-5 }, &[3]),
        node("tanh", Op::Activation(Activation::Tanh), &[4]),
        node("add", Op::Add, &[5, 1]),
        node("mean", Op::MeanRows, &[6]),
    ];
    let input = Input::Tokens { vocab: 5, max_tokens: 6 };
    let output = Output::Embedding { width: 4, normalize: true };
    (Graph { family: "bert".into(), input, nodes, output, tensors: specs }, tensors)
}

#[test]
fn values_and_ranges_by_hand() {
    let (graph, tensors) = small();
    let model = Model::from_tensors(graph, tensors.clone(), None).unwrap();
    let oracle = Oracle::with_precision(&model, Precision::F64).unwrap();
    let ids = [3_u32, 0, 4];
    let trace = oracle.run(&OracleInput::Tokens(ids.to_vec())).unwrap();

    let t = |name: &str, i: usize| f64::from(tensors[name][i]);
    let x: Vec<Vec<f64>> = ids.iter().map(|id| (0..4).map(|j| t("table", *id as usize * 4 + j)).collect()).collect();
    let qkv: Vec<Vec<f64>> = x
        .iter()
        .map(|x| (0..12).map(|j| t("bias", j) + (0..4).map(|k| x[k] * t("weight", k * 12 + j)).sum::<f64>()).collect())
        .collect();
    let mut attended = vec![vec![0.0; 4]; 3];
    let (mut max_score, mut max_spread, mut sums, mut max_unnormalised) = (0.0_f64, 0.0_f64, Vec::new(), 0.0_f64);
    for head in 0..2 {
        for i in 0..3 {
            let score = |j: usize| (0..2).map(|d| qkv[i][head * 2 + d] * qkv[j][4 + head * 2 + d]).sum::<f64>();
            let scores: Vec<f64> = (0..3).map(score).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let min = scores.iter().copied().fold(f64::MAX, f64::min);
            let e: Vec<f64> = scores.iter().map(|s| (s - max).exp2()).collect();
            let sum: f64 = e.iter().sum();
            for d in 0..2 {
                let y: f64 = (0..3).map(|j| e[j] * qkv[j][8 + head * 2 + d]).sum();
                attended[i][head * 2 + d] = y / sum;
                max_unnormalised = max_unnormalised.max(y.abs());
            }
            max_score = max_score.max(max.abs()).max(min.abs());
            max_spread = max_spread.max(max - min);
            sums.push(sum);
        }
    }
    let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-5 * b.abs().max(1.0);
    for (i, row) in attended.iter().enumerate() {
        assert!(row.iter().enumerate().all(|(d, y)| close(trace.values[2].data[i * 4 + d], *y)));
    }
    let stats = trace.stats[2].attention.unwrap();
    assert!(close(stats.max_score, max_score) && close(stats.max_spread, max_spread));
    assert!(close(stats.row_sum.max, sums.iter().copied().fold(0.0, f64::max)));
    assert!(close(stats.row_sum.min, sums.iter().copied().fold(f64::MAX, f64::min)));
    assert!(close(stats.max_unnormalised, max_unnormalised));
    for (part, max) in [stats.max_query, stats.max_key, stats.max_value].into_iter().enumerate() {
        let all = qkv.iter().flat_map(|row| &row[part * 4..part * 4 + 4]);
        assert!(close(max, all.fold(0.0, |m, v| m.max(v.abs()))));
    }

    let mut result = vec![0.0; 4];
    let (mut variances, mut tanh_in) = (Vec::new(), Vec::new());
    let (mut max_centred, mut max_scaled) = (0.0_f64, 0.0_f64);
    for (y, x) in attended.iter().zip(&x) {
        let mean = y.iter().sum::<f64>() / 4.0;
        let variance = y.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 4.0;
        variances.push(variance);
        for j in 0..4 {
            max_centred = max_centred.max((y[j] - mean).abs());
            max_scaled = max_scaled.max(((y[j] - mean) * t("gain", j)).abs());
            let z = (y[j] - mean) / (variance + 1e-5).sqrt() * t("gain", j) + t("shift", j);
            tanh_in.push(z);
            result[j] += (z.tanh() + x[j]) / 3.0;
        }
    }
    assert!(trace.output().iter().zip(&result).all(|(a, b)| close(*a, *b)));
    let norm = trace.stats[3].norm.unwrap();
    assert!(close(norm.max_centred, max_centred) && close(norm.max_scaled, max_scaled));
    assert!(close(norm.variance.min, variances.iter().copied().fold(f64::MAX, f64::min)));
    let activation = trace.stats[4].activation.unwrap();
    assert!(close(activation.max, tanh_in.iter().copied().fold(f64::MIN, f64::max)));
    assert!(close(activation.min, tanh_in.iter().copied().fold(f64::MAX, f64::min)));

    let unit = oracle.output(&OracleInput::Tokens(ids.to_vec())).unwrap();
    let length = result.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(unit.iter().zip(&result).all(|(a, b)| close(*a, b / length)));
    assert_eq!(trace.value(0), None);
    assert_eq!(trace.value(7).map(|m| m.data.as_slice()), Some(trace.output()));
}

#[test]
fn inputs_that_the_model_does_not_take() {
    let (graph, tensors) = small();
    let oracle = Oracle::new(&Model::from_tensors(graph, tensors, None).unwrap()).unwrap();
    for input in [
        OracleInput::Tokens(vec![]),
        OracleInput::Tokens(vec![0; 7]),
        OracleInput::Tokens(vec![0, 5]),
        OracleInput::Tokens(vec![u32::MAX]),
        OracleInput::Patches(vec![0.0; 4]),
    ] {
        assert!(matches!(oracle.run(&input), Err(OracleError::Input(_))), "{input:?}");
    }
    let vit = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit_classifier");
    let oracle = Oracle::new(&Model::load(&vit).unwrap()).unwrap();
    for input in [OracleInput::Tokens(vec![1]), OracleInput::Patches(vec![0.0; 9 * 48 - 1])] {
        assert!(matches!(oracle.run(&input), Err(OracleError::Input(_))), "{input:?}");
    }
}

#[test]
fn tensors_that_do_not_fit_the_graph() {
    let (graph, tensors) = small();
    let without =
        |name: &str| tensors.iter().filter(|(n, _)| *n != name).map(|(n, v)| (n.clone(), v.clone())).collect();
    let error = Model::from_tensors(graph.clone(), without("bias"), None).unwrap_err();
    assert_eq!(error, TensorError::Unknown("bias".into()));
    let mut short: BTreeMap<String, Vec<f32>> = without("none");
    short.insert("bias".into(), vec![0.0; 11]);
    assert!(matches!(Model::from_tensors(graph.clone(), short, None), Err(TensorError::Unusable { .. })));
    let mut infinite: BTreeMap<String, Vec<f32>> = without("none");
    infinite.insert("gain".into(), vec![0.0, f32::INFINITY, 0.0, 0.0]);
    let error = Model::from_tensors(graph.clone(), infinite, None).unwrap_err();
    assert!(error.to_string().contains("[0, 1]"), "{error}");
    let model = Model::from_tensors(graph, tensors, None).unwrap();
    assert_eq!(model.tensor("nothing"), Err(TensorError::Unknown("nothing".into())));
    assert_eq!(model.tensor("weight").unwrap().len(), 48);
}
