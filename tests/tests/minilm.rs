//! The real all-MiniLM-L6-v2, shared between three parties in one process: accuracy against the float oracle, cost
//! against its plan and its budget, and independence of what runs beside it. `tercet fetch minilm` brings the model.

use std::path::PathBuf;

use tercet_core::Geometry;
use tercet_engine::{Profile, choose, plan};
use tercet_model::{Model, OracleInput, Truncate, calibrate, calibration_inputs};
use tercet_testkit::World;
use tercet_testkit::encoder::{Encoder, Request};

/// Written for these tests; repeated for the longest of them.
const TEXT: &str = "When the ferry finally left the harbour, Maria counted the islands on her old chart and found one more than \
    she remembered. Nobody on board could say when it had appeared, or who kept the lamp burning on its northern shore, but the \
    captain slowed the engine, took off his cap, and asked everyone to be quiet until the light was well behind them. Later, \
    over coffee that tasted of diesel, he told her that the sea gives back what it borrows, sometimes with interest: a boat, a \
    bell, seven acres of grass with two goats. She wrote it all down in pencil, as ink does not survive the damp here, and in \
    the morning the page was blank except for a number, 1987, and the outline of a key.";

fn directory() -> PathBuf {
    let cache = std::env::var_os("TERCET_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/tercet")));
    cache.expect("TERCET_CACHE or HOME says where models are").join("minilm")
}

fn encoder(profile: Profile) -> Encoder {
    let model = Model::load(&directory()).expect("the real MiniLM; run `tercet fetch minilm` first");
    let ranges = calibrate(&model, &calibration_inputs(&model)).unwrap();
    let numerics = choose(&model.graph, &ranges, profile, false).unwrap();
    Encoder::new(model, numerics).unwrap()
}

/// Exactly `tokens` tokens of the text, special tokens included.
fn input(encoder: &Encoder, tokens: usize) -> OracleInput {
    let ids = encoder.model().tokenizer().unwrap().encode(&TEXT.repeat(5), 512, Truncate::Yes).unwrap();
    let (first, last) = (ids[0], ids[ids.len() - 1]);
    OracleInput::Tokens(std::iter::once(first).chain(ids[1..tokens - 1].iter().copied()).chain([last]).collect())
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Cosine of the embedding, and largest and mean error of the last hidden layer.
fn errors(encoder: &Encoder, tokens: usize) -> (f64, f64, f64) {
    let request = Request::new(&encoder.model().graph, &[input(encoder, tokens)]);
    let run = encoder.private(&World::default().unrecorded(), &request);
    let (exact, got) = (encoder.exact(&request), encoder.decode(&request, &run.values));
    let hidden = encoder.model().graph.nodes.iter().position(|n| n.name == "layer5/ffn/norm").unwrap();
    let differences: Vec<f64> = exact[hidden][0].iter().zip(&got[hidden][0]).map(|(a, b)| (a - b).abs()).collect();
    let largest = differences.iter().copied().fold(0.0, f64::max);
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let last = exact.len() - 1;
    (cosine(&exact[last][0], &got[last][0]), largest, mean)
}

fn hold(profile: Profile, lengths: &[usize], each: f64, mean: f64, hidden: f64) {
    let encoder = encoder(profile);
    let mut cosines = Vec::new();
    for &tokens in lengths {
        let (cosine, largest, average) = errors(&encoder, tokens);
        println!(
            "{profile} {tokens} tokens: cosine {cosine:.8}, hidden error {largest:.5} at most, {average:.6} in the mean"
        );
        assert!(cosine >= each, "{tokens} tokens: cosine {cosine}");
        assert!(largest <= hidden, "{tokens} tokens: hidden error {largest}");
        cosines.push(cosine);
    }
    let average = cosines.iter().sum::<f64>() / cosines.len() as f64;
    println!("{profile}: mean cosine {average:.8}");
    assert!(average >= mean, "mean cosine {average}");
}

#[test]
fn fast_is_accurate_at_every_length() {
    hold(Profile::Fast, &[3, 4, 7, 16, 33, 64, 98, 131, 500], 0.9998, 0.9999, 0.08);
}

#[test]
fn precise_is_accurate_at_every_length() {
    hold(Profile::Precise, &[3, 4, 17, 98, 200], 0.999999, 0.999999, 0.004);
}

#[test]
fn the_wire_budget_holds() {
    let encoder = encoder(Profile::Fast);
    let priced = plan(encoder.manifest(), Geometry { batch: 1, rows: 98 }).unwrap().total;
    // The executable reference of these protocols: 254 MB in all, 44 MB each way, 49 rounds a layer and a few at the ends.
    assert!(priced.total_bytes() <= 254_000_000, "{} bytes in all", priced.total_bytes());
    assert!(priced.online_bytes() < 44_500_000, "{} bytes each way", priced.online_bytes());
    assert!(priced.rounds <= 6 * 49 + 10, "{} rounds", priced.rounds);
    let request = Request::new(&encoder.model().graph, &[input(&encoder, 33)]);
    let run = encoder.execute(&World::default().unrecorded(), std::slice::from_ref(&request));
    assert_eq!(run.cost, plan(encoder.manifest(), request.geometry()).unwrap().total);
}

#[test]
fn an_answer_does_not_depend_on_its_neighbours() {
    let encoder = encoder(Profile::Fast);
    let graph = &encoder.model().graph;
    let batch = Request::new(graph, &[input(&encoder, 9), input(&encoder, 24), input(&encoder, 17)]);
    let last = graph.nodes.len() - 1;
    let twin = encoder.decode(&batch, &encoder.plain(&batch).unwrap());
    let shares = encoder.decode(&batch, &encoder.private(&World::default().unrecorded(), &batch).values);
    for at in 0..3 {
        let alone = batch.only(at, graph);
        let alone = encoder.decode(&alone, &encoder.plain(&alone).unwrap());
        assert_eq!(alone[last][0], twin[last][at], "input {at} on the twin");
        let cosine = cosine(&alone[last][0], &shares[last][at]);
        assert!(cosine > 0.9998, "input {at} on shares: cosine {cosine}");
    }
}
