//! Public weights, and secret adapters on public and on secret ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tercet_core::Cost;
use tercet_engine::{
    AdaptError, Base, ModelNumerics, ModelShare, NodeSpec, Profile, StepPlan, adapt, choose, plan, plan_step, split,
    split_on,
};
use tercet_model::graph::Op;
use tercet_model::{Adapter, Model, Ranges, calibrate, calibration_inputs};
use tercet_net::PartyId;
use tercet_testkit::World;
use tercet_testkit::decoder::{Decoder, Plan};
use tercet_testkit::encoder::Encoder;

use super::models::{PUBLIC_GATE, load, request};

/// Largest error of a score: as for decoders without an adapter.
const SCORE_ERROR: f64 = 0.02;
const IDS: [u32; 13] = [7, 120, 33, 33, 250, 1, 99, 208, 16, 5, 77, 141, 60];

fn adapter(name: &str) -> Adapter {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/adapters");
    Adapter::load(&fixtures.join(name)).expect("the fixture loads")
}

/// Those of a fixture, with its adapter or without it, found once.
fn ranges(model: &Model) -> Ranges {
    static FOUND: Mutex<BTreeMap<[u8; 32], Ranges>> = Mutex::new(BTreeMap::new());
    let digest = model.digest().expect("it can be read");
    if let Some(found) = FOUND.lock().unwrap().get(&digest) {
        return found.clone();
    }
    let ranges = calibrate(model, &calibration_inputs(model)).expect("inputs of this model");
    FOUND.lock().unwrap().insert(digest, ranges.clone());
    ranges
}

fn numbers(model: &Model, profile: Profile, public: impl Fn(&str) -> bool) -> ModelNumerics {
    let mut numerics = choose(&model.graph, &ranges(model), profile, false).expect("it fits");
    numerics.publish(public);
    numerics
}

/// A fixture, shared with what is `public` of it, and the same with its adapter.
fn decoders(name: &str, profile: Profile, public: impl Fn(&str) -> bool) -> [Decoder; 2] {
    let numerics = numbers(&load(name), profile, public);
    let base = Decoder::new(load(name), numerics).expect("it is shared");
    let model = load(name).with_adapter(&adapter(name)).expect("an adapter of this model");
    let numbers = adapt(base.manifest(), &ranges(base.model()), &model, &ranges(&model)).expect("it fits");
    let adapted = base.adapted(model, numbers).expect("it is shared");
    [base, adapted]
}

fn weights(name: &str) -> bool {
    name.ends_with("/weight")
}

/// A prompt and two tokens more, with the scores at every position.
fn steps() -> Plan {
    Plan::scores(&IDS, &[11, 1, 1])
}

fn plans(decoder: &Decoder) -> Vec<StepPlan> {
    steps().shapes().iter().map(|shape| plan_step(decoder.manifest(), shape).expect("a step of this model")).collect()
}

fn planned(decoder: &Decoder) -> Cost {
    plans(decoder).iter().fold(Cost::NONE, |sum, plan| sum.then(plan.total))
}

/// Runs the steps; the largest difference to the oracle, and the measured cost, which is the planned one.
fn measured(name: &str, decoder: &Decoder) -> (f64, Cost) {
    let run = decoder.private(&World::default(), &steps());
    let plan = planned(decoder);
    assert_eq!(run.cost, plan, "{name}: measured and planned");
    let exact = decoder.exact(&IDS);
    let scores: Vec<f64> = run.outputs.iter().flatten().flatten().copied().collect();
    assert_eq!(scores.len(), exact.data.len(), "{name}");
    let away = scores.iter().zip(&exact.data).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
    (away, run.cost)
}

#[test]
fn adapted_decoders_give_the_scores_of_the_oracle_on_any_base() {
    for name in ["gpt2", "llama", "mixtral"] {
        for public in [false, true] {
            let [base, adapted] = decoders(name, Profile::Precise, |tensor| public && weights(tensor));
            let label = format!("{name}, {}", if public { "public weights" } else { "secret weights" });
            let (away, _) = measured(&label, &adapted);
            assert!(away <= SCORE_ERROR, "{label}: {away}");
            // The adapter changes what is computed, far beyond errors.
            let [with, without] = [&adapted, &base].map(|decoder| decoder.exact(&IDS).data);
            let change = with.iter().zip(&without).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(f64::from(change) > 5.0 * SCORE_ERROR, "{label}: {change}");
            // The adapter is a secret one, whatever its base is.
            let numerics = &adapted.manifest().numerics;
            let own = numerics.tensors.iter().filter(|(name, _)| adapted.manifest().holds(name));
            assert!(own.clone().all(|(name, format)| name.contains("/lora/") && !format.public), "{label}");
            assert_eq!(own.count(), adapted.manifest().graph.tensors.len() - base.manifest().graph.tensors.len());
            for party in PartyId::ALL {
                let (file, own) = (adapted.share(party).len_bytes(), plans(&adapted)[0].weight_bytes[party.index()]);
                let whole = plans(&base)[0].weight_bytes[party.index()];
                // The helper draws its masks of what is secret, and holds nothing of it.
                let less = own < whole || (party == PartyId::P0 && !public && own == 0);
                assert!((own..own + 300_000).contains(&file) && less, "{label}: {file}, {own}, {whole}");
            }
        }
    }
}

/// The adapter of the mixture without what it changes of experts.
fn without_experts() -> Adapter {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/adapters/mixtral");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = std::fs::read_to_string(from.join("adapter_config.json")).expect("the fixture's");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["target_modules"] = serde_json::json!(["gate", "k_proj"]);
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).expect("it is written");
    let bytes = std::fs::read(from.join("adapter_model.safetensors")).expect("the fixture's");
    let all = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let kept = all.tensors().into_iter().filter(|(name, _)| !name.contains(".experts."));
    let path = dir.path().join("adapter_model.safetensors");
    safetensors::serialize_to_file(kept, None, &path).expect("it is written");
    Adapter::load(dir.path()).expect("an adapter")
}

/// The rest of such a model takes an adapter, its router above all: then rows go to other experts.
#[test]
fn the_router_of_a_public_gate_is_adapted() {
    let base = Decoder::new(load(PUBLIC_GATE), numbers(&load(PUBLIC_GATE), Profile::Precise, |_| false)).unwrap();
    let model = load(PUBLIC_GATE).with_adapter(&without_experts()).expect("it changes no expert");
    let numbers = adapt(base.manifest(), &ranges(base.model()), &model, &ranges(&model)).expect("it fits");
    let adapted = base.adapted(model, numbers).expect("it is shared");
    assert!(adapted.manifest().graph.opens_gate());
    let (away, _) = measured(PUBLIC_GATE, &adapted);
    assert!(away <= SCORE_ERROR, "{away}");
    let [with, without] = [&adapted, &base].map(|decoder| decoder.exact(&IDS).data);
    assert!(with.iter().zip(&without).any(|(a, b)| f64::from((a - b).abs()) > 5.0 * SCORE_ERROR));
}

#[test]
fn experts_behind_a_public_gate_are_not_adapted() {
    let error = load(PUBLIC_GATE).with_adapter(&adapter("mixtral")).expect_err("it changes experts").to_string();
    assert!(error.contains("experts.0.w1") && error.contains("behind a public gate"), "{error}");
}

#[test]
fn an_adapter_on_fast_numbers_costs_what_was_planned() {
    for name in ["gpt2", "llama"] {
        let [base, adapted] = decoders(name, Profile::Fast, |_| false);
        let [(without, less), (with, more)] = [&base, &adapted].map(|decoder| measured(name, decoder));
        // It adds no error of another size than its base has.
        assert!(with < 2.0 * without + 0.05, "{name}: {with}, and {without} without the adapter");
        assert!(more.rounds > less.rounds && more.total_bytes() > less.total_bytes());
    }
}

#[test]
fn public_weights_save_their_products_and_nothing_else() {
    for profile in [Profile::Fast, Profile::Precise] {
        for name in ["gpt2", "llama"] {
            let [secret, public] = [false, true].map(|public| {
                let model = load(name);
                let numerics = numbers(&model, profile, |tensor| public && weights(tensor));
                Decoder::new(model, numerics).expect("it is shared")
            });
            let [dear, cheap] = [&secret, &public].map(|decoder| measured(name, decoder).1);
            // What is dealt for a product: every element of it, in its ring.
            let nodes = secret.manifest().graph.nodes.iter().zip(&secret.manifest().numerics.nodes);
            let mut dealt = Cost::NONE;
            for shape in steps().shapes() {
                for (node, spec) in nodes.clone() {
                    let (Op::Linear { weight, .. }, NodeSpec::Linear(spec)) = (&node.op, spec) else { continue };
                    let cols = secret.manifest().graph.tensor_spec(weight).expect("its weight").cols;
                    let product = Cost::deal(shape.layout.rows() * cols, spec.ring + spec.truncate);
                    dealt = dealt.then(product);
                }
            }
            assert!(dealt.total_bytes() > 0);
            assert_eq!(cheap.then(dealt).bytes, dear.bytes, "{name} {profile}");
            assert_eq!(cheap.rounds, dear.rounds, "{name} {profile}");
            // With everything public the client looks up by itself, and what is computed is the same.
            let model = load(name);
            let numerics = numbers(&model, profile, |_| true);
            let open = Decoder::new(model, numerics).expect("it is shared");
            let (away, cost) = measured(name, &open);
            assert!(profile == Profile::Fast || away <= SCORE_ERROR, "{name}: {away}");
            assert!(cost.total_bytes() < cheap.total_bytes(), "{name} {profile}");
        }
    }
}

#[test]
fn an_adapted_encoder_stands_on_its_base() {
    for profile in [Profile::Fast, Profile::Precise] {
        let base = Encoder::new(load("bert_encoder"), numbers(&load("bert_encoder"), profile, weights)).unwrap();
        let model = load("bert_encoder").with_adapter(&adapter("bert_encoder")).unwrap();
        let numbers = adapt(base.manifest(), &ranges(base.model()), &model, &ranges(&model)).expect("it fits");
        let adapted = base.adapted(model, numbers).expect("it is shared");
        let request = request(adapted.model(), 2, 17);
        let run = adapted.execute(&World::default(), std::slice::from_ref(&request));
        assert_eq!(run.cost, plan(adapted.manifest(), request.geometry()).unwrap().total, "{profile}");
        let values = adapted.private(&World::default(), &request).values;
        let [found, exact] =
            [adapted.decode(&request, &values), adapted.exact(&request)].map(|trace| trace.last().cloned());
        let pairs = found.iter().flatten().flatten().zip(exact.iter().flatten().flatten());
        let away = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(away < if profile == Profile::Fast { 0.05 } else { 0.002 }, "{profile}: {away}");
    }
}

#[test]
fn numbers_of_an_adapter_refuse_what_is_another_base_or_too_large() {
    let base = Decoder::new(load("llama"), numbers(&load("llama"), Profile::Precise, |_| false)).unwrap();
    let of_base = ranges(base.model());
    for other in ["gpt2", "qwen2"] {
        let refused = adapt(base.manifest(), &of_base, &load(other), &ranges(&load(other)));
        assert!(matches!(refused, Err(AdaptError::AnotherBase { .. })), "{other}: {refused:?}");
    }
    // Without an adapter it stands on itself and brings nothing.
    let (numerics, lent) = adapt(base.manifest(), &of_base, &load("llama"), &of_base).unwrap();
    assert_eq!(numerics, base.manifest().numerics);
    assert_eq!(lent.tensors.len(), base.manifest().graph.tensors.len());
    // Values beyond the margin are told by name.
    let model = load("llama").with_adapter(&adapter("llama")).unwrap();
    let mut large = ranges(&model);
    let stats = large.nodes.get_mut("layer1/ffn/norm").unwrap();
    stats.norm.as_mut().unwrap().variance.max *= 40.0;
    large.nodes.get_mut("layer0/attention").unwrap().attention.as_mut().unwrap().row_max.max += 1e3;
    large.nodes.get_mut("layer0/ffn/up/lora/sum").unwrap().max_abs = f32::NAN;
    match adapt(base.manifest(), &of_base, &model, &large) {
        Err(error @ AdaptError::NoHeadroom(_)) => {
            let text = error.to_string();
            for named in
                ["layer1/ffn/norm: the variance", "layer0/attention: the largest score", "layer0/ffn/up/lora/sum"]
            {
                assert!(text.contains(named), "{text}");
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Shares a model into a folder, and opens P1's part.
fn split_into(dir: &Path, name: &str, model: &Model, numerics: ModelNumerics, base: Option<Base>) -> PathBuf {
    let paths = split_on(model, name, numerics, base, [dir; 3], |_| ()).expect("it is shared");
    paths[1].clone()
}

#[test]
fn adapter_files_are_refused_beside_any_base_but_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let model = load("gpt2");
    let numerics = numbers(&model, Profile::Precise, |_| false);
    let open = |path: &Path| Arc::new(ModelShare::open(path).expect("a whole file"));
    let base = open(&split_into(dir.path(), "base", &model, numerics.clone(), None));
    let again = open(&split_into(dir.path(), "again", &model, numerics.clone(), None));
    let adapted = load("gpt2").with_adapter(&adapter("gpt2")).unwrap();
    let (own, lent) = adapt(base.manifest(), &ranges(&model), &adapted, &ranges(&adapted)).unwrap();
    let path = split_into(dir.path(), "adapter", &adapted, own.clone(), Some(lent.clone()));
    let share = || ModelShare::open(&path).expect("a whole file");
    // Without its base its own tensors are there and no other.
    assert!(share().on_base(base.clone()).is_ok());
    let refused = |share: ModelShare, base: &Arc<ModelShare>, what: &str| {
        let error = share.on_base(base.clone()).expect_err("another base");
        assert!(error.contains(what), "{error}");
    };
    // The same model, shared once more; another model; one that is no adapter; the part of another party.
    refused(share(), &again, "another sharing of it");
    let llama = load("llama");
    let other = split_into(dir.path(), "llama", &llama, numbers(&llama, Profile::Precise, |_| false), None);
    refused(share(), &open(&other), "\"llama\" is another model");
    refused(ModelShare::open(&other).unwrap(), &base, "is no adapter");
    let of_p2 = dir.path().join("adapter.p2.tercet");
    refused(ModelShare::open(&of_p2).unwrap(), &base, "its base of P1");
    // It says to stand on this base, and wants a tensor in another form: as one of another width or rank would.
    let mut spoilt = own;
    spoilt.tensors.get_mut("layer0/ffn/up/weight").unwrap().frac -= 1;
    let path = split_into(dir.path(), "spoilt", &adapted, spoilt, Some(lent));
    refused(ModelShare::open(&path).unwrap(), &base, "wants layer0/ffn/up/weight");
    // Nothing is split where the base's own are held back.
    let error = split(&adapted, "whole", numerics, [dir.path(); 3], |_| ()).expect_err("numbers of another graph");
    assert!(error.to_string().contains("another graph"), "{error}");
}
