//! What does not fit is refused by name, before anything is shared.

use tercet_engine::{Profile, SplitError, choose};
use tercet_model::{Model, calibrate, calibration_inputs};
use tercet_ring::fixed::EncodeError;
use tercet_testkit::encoder::Encoder;

use super::models::{load, scaled, share};

/// The model with one tensor multiplied.
fn one_scaled(name: &str, tensor: &str, factor: f32) -> Model {
    scaled(load(name), |of| of == tensor, factor)
}

#[test]
fn a_layer_without_headroom_is_named() {
    let problems = share(one_scaled("bert_encoder", "layer1/ffn/up/weight", 1e4), Profile::Fast, false).err();
    let problems = problems.expect("it does not fit");
    assert!(problems.iter().any(|p| p.name == "layer1/ffn/up"), "{problems:?}");
    assert!(problems.iter().all(|p| p.name.starts_with("layer1/ffn")), "only what the layer reaches: {problems:?}");
    let line = problems[0].to_string();
    assert!(line.contains("layer1/ffn/up") && line.contains("fast"), "{line}");
}

#[test]
fn every_problem_is_told_at_once() {
    let problems = share(one_scaled("bert_encoder", "layer0/attention/qkv/weight", 300.0), Profile::Fast, false).err();
    let problems = problems.expect("scores grow with the square");
    assert!(problems.iter().any(|p| p.what == "the spread of scores"), "{problems:?}");
}

#[test]
fn a_weight_that_does_not_fit_its_ring_is_named() {
    let model = load("bert_encoder");
    let ranges = calibrate(&model, &calibration_inputs(&model)).expect("inputs of this model");
    let numerics = choose(&model.graph, &ranges, Profile::Fast, false).expect("it fits");
    let changed = one_scaled("bert_encoder", "layer1/ffn/up/weight", 1e8);
    match Encoder::new(changed, numerics).err() {
        Some(SplitError::Encode(EncodeError::Overflow { name, .. })) => assert_eq!(name, "layer1/ffn/up/weight"),
        other => panic!("{other:?}"),
    }
}
