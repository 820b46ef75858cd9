//! Adapters on three daemons: served beside their base, chosen by name, refused where the base is another one.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tercet_client::GenerateOptions;
use tercet_engine::{Base, ModelNumerics, Profile, adapt, choose, split_on};
use tercet_model::{Adapter, Model, Oracle, Ranges, calibrate, calibration_inputs};
use tercet_net::{LinkKind, PartyId};
use tercet_node::Config;

use crate::cluster::{Cluster, PATIENCE};
use crate::{P0, P1};

const BASE: &str = "tiny-base";
const ADAPTED: &str = "tiny-adapted";
const PROMPT: &str = "the fox";

/// A GPT-2 whose weights are public, and a secret adapter of it.
struct Tiny {
    /// Without the adapter, and with it.
    oracles: [Oracle; 2],
    ids: Vec<u32>,
    /// Of each party a folder with both shares.
    folders: [PathBuf; 3],
    /// Another sharing of the same base.
    again: [PathBuf; 3],
}

fn ranges(model: &Model) -> Ranges {
    calibrate(model, &calibration_inputs(model)).unwrap()
}

fn tiny() -> &'static Tiny {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    TINY.get_or_init(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures");
        let model = Model::load(&fixtures.join("gpt2")).unwrap();
        let adapted = model.with_adapter(&Adapter::load(&fixtures.join("adapters/gpt2")).unwrap()).unwrap();
        let of_base = ranges(&model);
        let mut numerics = choose(&model.graph, &of_base, Profile::Precise, false).unwrap();
        numerics.publish(|name| name.ends_with("/weight"));
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("adapters");
        let share = |model: &Model, name: &str, numerics: ModelNumerics, base: Option<Base>, to: &str| {
            let folders = ["p0", "p1", "p2"].map(|party| place.join(to).join(party));
            folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
            split_on(model, name, numerics, base, folders.each_ref().map(PathBuf::as_path), |_| ()).unwrap()
        };
        let shares = share(&model, BASE, numerics.clone(), None, "served");
        let again = share(&model, BASE, numerics, None, "again");
        let base = tercet_engine::ModelShare::open(&shares[0]).unwrap();
        let (own, lent) = adapt(base.manifest(), &of_base, &adapted, &ranges(&adapted)).unwrap();
        share(&adapted, ADAPTED, own, Some(lent), "served");
        let ids = model.tokenizer().unwrap().encode(PROMPT, 320, Default::default()).unwrap();
        let folders = shares.map(|share| share.parent().unwrap().to_owned());
        Tiny { oracles: [&model, &adapted].map(|model| Oracle::new(model).unwrap()), ids, folders, again }
    })
}

fn both(config: &mut Config) {
    config.shares = vec![tiny().folders[config.party.index()].clone()];
}

/// How far the choice of every token after a prompt is from the likeliest one.
fn regret(oracle: &Oracle, chosen: &[u32]) -> f32 {
    let ids: Vec<u32> = tiny().ids.iter().chain(chosen).copied().collect();
    let scores = oracle.scores(&ids).unwrap();
    let rows = scores.data.chunks(scores.width).skip(tiny().ids.len() - 1);
    let lost = rows.zip(chosen).map(|(row, id)| row.iter().copied().fold(f32::MIN, f32::max) - row[*id as usize]);
    lost.fold(0.0, f32::max)
}

#[test]
fn a_request_chooses_an_adapter_or_its_base_by_name() {
    let cluster = Cluster::start(LinkKind::Quic, both);
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        let mut found = Vec::new();
        for (name, oracle) in [BASE, ADAPTED, BASE].into_iter().zip([0, 1, 0]) {
            let options = GenerateOptions {
                max_new_tokens: 8,
                ignore_eos: true,
                deadline: PATIENCE,
                retries: 0,
                ..Default::default()
            };
            let mut generation = client.generate(name, PROMPT, &options).await.unwrap();
            let mut ids = Vec::new();
            while let Some(token) = generation.next().await {
                ids.push(token.unwrap().id);
            }
            let lost = regret(&tiny().oracles[oracle], &ids);
            assert!(ids.len() == 8 && lost < 0.04, "{name}: {ids:?} gives {lost} away");
            found.push(ids);
        }
        assert!(found[0] == found[2] && found[0] != found[1], "{found:?}");
        assert!(regret(&tiny().oracles[0], &found[1]) > 0.04, "the adapter changes what is likely");
    });
}

#[test]
fn an_adapter_without_its_base_keeps_a_node_from_starting() {
    let mut cluster = Cluster::prepare(LinkKind::Quic, both);
    let file = |party: PartyId, name: &str| {
        let at = party.index();
        tiny().folders[at].join(format!("{name}.p{at}.tercet"))
    };
    let mut refused = |shares: Vec<PathBuf>, what: &[&str]| {
        let mut config = cluster.config(P1);
        config.shares = shares;
        let error = cluster.start_with(config).expect_err("started").to_string();
        for what in what {
            assert!(error.contains(what), "{error} does not say {what}");
        }
    };
    let adapter = file(P1, ADAPTED);
    let path = adapter.display().to_string();
    refused(vec![adapter.clone()], &[&path, "\"tiny-adapted\"", "\"tiny-base\", which is not here"]);
    let again = tiny().again[1].clone();
    refused(
        vec![adapter.clone(), again],
        &[&path, "tiny-adapted stands on model \"tiny-base\"", "another sharing of it"],
    );
    refused(vec![adapter.clone(), file(P0, BASE)], &["share of P0"]);
    // In any order, and in one folder.
    let mut config = cluster.config(P1);
    config.shares = vec![adapter, file(P1, BASE)];
    cluster.start_with(config).unwrap();
}
