//! The oracle and its statistics against sums written out by hand, and the inputs that it refuses.

use std::collections::BTreeMap;
use std::path::Path;

use tercet_model::graph::{Activation, Graph, Input, Node, Op, Output, Reach, TensorSpec};
use tercet_model::{Model, Oracle, OracleError, OracleInput, Precision, Ranges, TensorError, calibrate};

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
    let mut row_maxima = Vec::new();
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
            row_maxima.push(max);
        }
    }
    let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-5 * b.abs().max(1.0);
    for (i, row) in attended.iter().enumerate() {
        assert!(row.iter().enumerate().all(|(d, y)| close(trace.values[2].data[i * 4 + d], *y)));
    }
    let stats = trace.stats[2].attention.unwrap();
    assert!(close(stats.row_max.max, row_maxima.iter().copied().fold(f64::MIN, f64::max)));
    assert!(close(stats.row_max.min, row_maxima.iter().copied().fold(f64::MAX, f64::min)));
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

/// Every operation of decoders: lookup, RMSNorm, attention with rotary positions, two heads of queries on one of keys and a
/// reach of two rows and the first, two experts of which one has a say, the last row, scores.
fn decoder() -> (Graph, BTreeMap<String, Vec<f32>>) {
    let mut tensors = BTreeMap::new();
    let mut specs = Vec::new();
    for (name, rows, cols) in [
        ("table", 5, 4),
        ("positions", 9, 4),
        ("gain", 1, 4),
        ("weight", 4, 16),
        ("out", 8, 4),
        ("router", 4, 2),
        ("up", 4, 12),
        ("down", 6, 4),
        ("scores", 4, 5),
    ] {
        let values = (0..rows * cols).map(|i| ((i * 7 + rows * 5 + cols) % 13) as f32 / 6.0 - 1.0).collect();
        tensors.insert(name.to_string(), values);
        specs.push(TensorSpec { name: name.into(), rows, cols });
    }
    let linear = |weight: &str| Op::Linear { weight: weight.into(), bias: None };
    let reach = Reach { window: Some(2), global: 1 };
    let attention = Op::CausalAttention { heads: 2, kv_heads: 1, rotary: Some(vec![0.75, -0.25]), reach };
    let nodes = vec![
        node("lookup", Op::Lookup { table: "table".into() }, &[0]),
        node("positions", Op::AddPositions { rows: "positions".into() }, &[1]),
        node("norm", Op::RmsNorm { gain: "gain".into(), eps: 1e-3 }, &[2]),
        node("qkv", linear("weight"), &[3]),
        node("attention", attention, &[4]),
        node("out", linear("out"), &[5]),
        node("add", Op::Add, &[6, 2]),
        node("router", linear("router"), &[7]),
        node("route", Op::Route { top: 1 }, &[8]),
        node("up", linear("up"), &[7]),
        node("gated", Op::Gated(Activation::Silu), &[10]),
        node("weighed", Op::ScaleBlocks, &[11, 9]),
        node("down", linear("down"), &[12]),
        node("last", Op::LastRow, &[13]),
        node("scores", linear("scores"), &[14]),
    ];
    let input = Input::Tokens { vocab: 5, max_tokens: 9 };
    let output = Output::NextToken { vocab: 5 };
    (Graph { family: "llama".into(), input, nodes, output, tensors: specs }, tensors)
}

#[test]
fn decoders_by_hand() {
    let (graph, tensors) = decoder();
    let model = Model::from_tensors(graph, tensors.clone(), None).unwrap();
    let oracle = Oracle::with_precision(&model, Precision::F64).unwrap();
    let ids = [3_u32, 0, 4, 1, 1, 2];
    let trace = oracle.run(&OracleInput::Tokens(ids.to_vec())).unwrap();
    let t = |name: &str, i: usize| f64::from(tensors[name][i]);
    let times = |x: &[f64], name: &str, cols: usize| -> Vec<f64> {
        (0..cols).map(|j| x.iter().enumerate().map(|(k, x)| x * t(name, k * cols + j)).sum()).collect()
    };
    let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-5 * b.abs().max(1.0);
    let same = |node: usize, rows: &[Vec<f64>]| {
        let flat: Vec<f64> = rows.concat();
        let found = &trace.values[node];
        assert_eq!((found.rows, found.data.len()), (rows.len(), flat.len()));
        assert!(found.data.iter().zip(&flat).all(|(a, b)| close(*a, *b)), "node {node}: {found:?}, not {flat:?}");
    };
    let max_abs = |rows: &[Vec<f64>]| rows.concat().iter().fold(0.0_f64, |m, v| m.max(v.abs()));

    let x: Vec<Vec<f64>> = ids
        .iter()
        .enumerate()
        .map(|(p, id)| (0..4).map(|j| t("table", *id as usize * 4 + j) + t("positions", p * 4 + j)).collect())
        .collect();
    same(1, &x);
    let squares: Vec<f64> = x.iter().map(|row| row.iter().map(|v| v * v).sum::<f64>() / 4.0).collect();
    let normed: Vec<Vec<f64>> = x
        .iter()
        .zip(&squares)
        .map(|(row, square)| (0..4).map(|j| row[j] / (square + 1e-3).sqrt() * t("gain", j)).collect())
        .collect();
    same(2, &normed);
    let norm = trace.stats[2].norm.unwrap();
    assert!(close(norm.variance.max, squares.iter().copied().fold(0.0, f64::max)));
    assert!(close(norm.variance.min, squares.iter().copied().fold(f64::MAX, f64::min)));
    assert!(close(norm.max_centred, max_abs(&x)));

    let qkv: Vec<Vec<f64>> = normed.iter().map(|row| times(row, "weight", 16)).collect();
    // Columns (0, 2) turn by 0.75 a position, columns (1, 3) by -0.25.
    let turned = |row: &[f64], p: usize| -> Vec<f64> {
        let (sin0, cos0) = (0.75 * p as f64).sin_cos();
        let (sin1, cos1) = (-0.25 * p as f64).sin_cos();
        vec![
            row[0] * cos0 - row[2] * sin0,
            row[1] * cos1 - row[3] * sin1,
            row[2] * cos0 + row[0] * sin0,
            row[3] * cos1 + row[1] * sin1,
        ]
    };
    let keys: Vec<Vec<f64>> = qkv.iter().enumerate().map(|(p, row)| turned(&row[8..12], p)).collect();
    let mut attended = vec![vec![0.0; 8]; 6];
    let (mut spreads, mut maxima, mut sums, mut largest) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
    for head in 0..2 {
        for p in 0..6 {
            let query = turned(&qkv[p][head * 4..head * 4 + 4], p);
            let seen: Vec<usize> = (0..=p).filter(|key| *key == 0 || p - key < 2).collect();
            assert_eq!(seen.len(), [1, 2, 3, 3, 3, 3][p]);
            let scores: Vec<f64> =
                seen.iter().map(|key| query.iter().zip(&keys[*key]).map(|(a, b)| a * b).sum()).collect();
            let (max, min) = scores.iter().fold((f64::MIN, f64::MAX), |(a, b), s| (a.max(*s), b.min(*s)));
            let e: Vec<f64> = scores.iter().map(|s| (s - max).exp2()).collect();
            let sum: f64 = e.iter().sum();
            for d in 0..4 {
                attended[p][head * 4 + d] =
                    seen.iter().zip(&e).map(|(key, e)| e * qkv[*key][12 + d]).sum::<f64>() / sum;
            }
            largest = largest.max(max.abs()).max(min.abs());
            spreads.push(max - min);
            maxima.push(max);
            sums.push(sum);
        }
    }
    same(4, &attended);
    let stats = trace.stats[4].attention.unwrap();
    assert!(close(stats.max_score, largest) && close(stats.max_key, max_abs(&keys)));
    assert!(close(stats.max_spread, spreads.iter().copied().fold(0.0, f64::max)));
    assert!(close(stats.row_max.max, maxima.iter().copied().fold(f64::MIN, f64::max)));
    assert!(close(stats.row_max.min, maxima.iter().copied().fold(f64::MAX, f64::min)));
    assert!(close(stats.row_sum.max, sums.iter().copied().fold(0.0, f64::max)) && stats.row_sum.min == 1.0);

    let y: Vec<Vec<f64>> = attended
        .iter()
        .zip(&x)
        .map(|(row, x)| times(row, "out", 4).iter().zip(x).map(|(a, b)| a + b).collect())
        .collect();
    same(6, &y);
    let routed: Vec<Vec<f64>> = y.iter().map(|row| times(row, "router", 2)).collect();
    let chosen: Vec<usize> = routed.iter().map(|row| usize::from(row[1] > row[0])).collect();
    assert!(chosen.contains(&0) && chosen.contains(&1));
    same(8, &chosen.iter().map(|c| vec![(1 - c) as f64, *c as f64]).collect::<Vec<_>>());
    let route = trace.stats[8].route.unwrap();
    assert!(close(route.max_score, max_abs(&routed)));
    assert!(close(route.max_spread, routed.iter().map(|row| (row[0] - row[1]).abs()).fold(0.0, f64::max)));

    let up: Vec<Vec<f64>> = y.iter().map(|row| times(row, "up", 12)).collect();
    let silu = |v: f64| v / (1.0 + (-v).exp());
    let gated: Vec<Vec<f64>> = up.iter().map(|row| (0..6).map(|j| silu(row[j]) * row[6 + j]).collect()).collect();
    same(10, &gated);
    let stats = trace.stats[10].gated.unwrap();
    let halves: Vec<(Vec<f64>, Vec<f64>)> = up.iter().map(|row| (row[..6].to_vec(), row[6..].to_vec())).collect();
    let arguments: Vec<f64> = halves.iter().flat_map(|(a, _)| a.clone()).collect();
    assert!(close(stats.argument.max, arguments.iter().copied().fold(f64::MIN, f64::max)));
    assert!(close(stats.argument.min, arguments.iter().copied().fold(f64::MAX, f64::min)));
    assert!(close(stats.activated, arguments.iter().map(|a| silu(*a).abs()).fold(0.0, f64::max)));
    assert!(close(stats.factor, halves.iter().flat_map(|(_, b)| b.clone()).map(f64::abs).fold(0.0, f64::max)));
    let weighed: Vec<Vec<f64>> = gated
        .iter()
        .zip(&chosen)
        .map(|(row, c)| (0..6).map(|j| if j / 3 == *c { row[j] } else { 0.0 }).collect())
        .collect();
    same(11, &weighed);
    let down: Vec<Vec<f64>> = weighed.iter().map(|row| times(row, "down", 4)).collect();
    same(13, &down[5..]);
    let scores: Vec<Vec<f64>> = down.iter().map(|row| times(row, "scores", 5)).collect();
    same(14, &scores[5..]);
    let every = oracle.scores(&ids).unwrap();
    assert_eq!((every.rows, every.width), (6, 5));
    assert!(every.data.iter().zip(scores.concat()).all(|(a, b)| close(*a, b)));
}

/// A calibration sees every position of a sequence, and so no less than a run of each of its beginnings.
#[test]
fn calibration_of_decoders_sees_every_position() {
    let (graph, tensors) = decoder();
    let model = Model::from_tensors(graph, tensors, None).unwrap();
    let oracle = Oracle::new(&model).unwrap();
    let ids = [3_u32, 0, 4, 1, 1, 2, 2, 0, 3];
    let whole = calibrate(&model, &[OracleInput::Tokens(ids.to_vec())]).unwrap();
    let mut beginnings = Ranges::default();
    for end in 1..=ids.len() {
        let stats = oracle.stats(&OracleInput::Tokens(ids[..end].to_vec())).unwrap();
        let names = oracle.graph().nodes.iter().map(|node| node.name.clone());
        beginnings.merge(&Ranges { inputs: 1, nodes: names.zip(stats).collect() });
    }
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    for (name, stats) in &whole.nodes {
        let other = &beginnings.nodes[name];
        assert!(near(stats.max_abs, other.max_abs), "{name}");
        if let (Some(a), Some(b)) = (stats.attention, other.attention) {
            assert!(near(a.row_max.min, b.row_max.min) && near(a.row_max.max, b.row_max.max));
            assert!(near(a.max_spread, b.max_spread) && near(a.row_sum.max, b.row_sum.max));
        }
    }
    assert_eq!(whole.inputs, 1);
}
