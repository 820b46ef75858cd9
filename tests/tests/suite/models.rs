//! The models that the tests run: tiny ones as transformers wrote them, and the digits ViT of the examples.

use std::collections::BTreeMap;
use std::path::Path;

use tercet_engine::{NoHeadroom, Profile, choose};
use tercet_model::graph::Input;
use tercet_model::{Gate, Model, OracleInput, calibrate, calibration_inputs};
use tercet_testkit::encoder::{Encoder, Request};

/// The digits ViT, and directories under the model crate's fixtures.
pub(crate) const ALL: [&str; 9] = [
    DIGITS,
    "bert_encoder",
    "bert_encoder_tanh_bf16_sharded",
    "bert_classifier_f16",
    "roberta_classifier",
    "distilbert_encoder",
    "distilbert_classifier",
    "vit_classifier",
    "vit_classifier_tanh_bf16",
];
/// The digits ViT.
pub(crate) const DIGITS: &str = "digits";

/// A mixture of experts with a public gate.
pub(crate) const PUBLIC_GATE: &str = "mixtral with a public gate";

/// A model by its name.
pub(crate) fn load(name: &str) -> Model {
    if name == DIGITS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        tercet_examples::digits::write_model(dir.path()).expect("the model is written");
        return Model::load(dir.path()).expect("the model loads");
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures");
    match name {
        PUBLIC_GATE => Model::load_with(&fixtures.join("mixtral"), Gate::Public).expect("the fixture loads"),
        _ => Model::load(&fixtures.join(name)).expect("the fixture loads"),
    }
}

/// A model with some of its tensors multiplied.
pub(crate) fn scaled(model: Model, which: impl Fn(&str) -> bool, factor: f32) -> Model {
    let tensors = model.graph.tensors.iter().map(|spec| {
        let factor = if which(&spec.name) { factor } else { 1.0 };
        let values = model.tensor(&spec.name).expect("a tensor of this model");
        (spec.name.clone(), values.into_iter().map(|v| v * factor).collect())
    });
    let tensors: BTreeMap<String, Vec<f32>> = tensors.collect();
    Model::from_tensors(model.graph.clone(), tensors, None).expect("the graph is unchanged")
}

/// Shares a model.
pub(crate) fn encoder(name: &str, profile: Profile) -> Encoder {
    share(load(name), profile, false).unwrap_or_else(|problems| panic!("{name}: {problems:?}"))
}

/// Calibrates and shares a model, or says what has no headroom.
pub(crate) fn share(model: Model, profile: Profile, public_table: bool) -> Result<Encoder, Vec<NoHeadroom>> {
    let ranges = calibrate(&model, &calibration_inputs(&model)).expect("inputs of this model");
    let numerics = choose(&model.graph, &ranges, profile, public_table)?;
    Ok(Encoder::new(model, numerics).expect("a model that fits is shared"))
}

/// `batch` inputs: of these many tokens, a little less each; or images.
pub(crate) fn request(model: &Model, batch: usize, rows: usize) -> Request {
    let input = |i: usize| match &model.graph.input {
        Input::Tokens { vocab, .. } => {
            let len = rows.min(model.graph.max_rows()).saturating_sub(2 * i).max(1);
            OracleInput::Tokens((0..len).map(|j| ((7 * i + 13 * j + 5 * j * j + 3) % vocab) as u32).collect())
        }
        Input::Patches { channels, image_size, .. } => {
            let pixels: Vec<f32> = if *image_size == tercet_examples::digits::SIDE {
                tercet_examples::digits::test_split()[i].pixels.to_vec()
            } else {
                let count = channels * image_size * image_size;
                (0..count).map(|p| ((p * (i + 3) * 31 + p * p) % 256) as f32 / 255.0).collect()
            };
            OracleInput::Patches(model.graph.input.patches(&pixels).expect("an image of this model"))
        }
    };
    Request::new(&model.graph, &(0..batch).map(input).collect::<Vec<_>>())
}
