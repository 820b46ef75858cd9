//! What a node holds and receives looks uniform, and nothing is opened to one.

use std::fs;
use std::path::{Path, PathBuf};

use tercet_engine::Profile;
use tercet_helper::plane::Plane;
use tercet_helper::suite::Weights;
use tercet_net::PartyId;
use tercet_ring::pack;
use tercet_testkit::World;
use tercet_testkit::uniformity::assert_uniform;

use super::models::{DIGITS, encoder, request};

#[test]
fn everything_that_an_evaluator_receives_is_uniform() {
    for (name, profile, batch, rows) in [
        (DIGITS, Profile::Fast, 2, 0),
        (DIGITS, Profile::Precise, 1, 0),
        ("bert_encoder", Profile::Fast, 2, 32),
        ("distilbert_encoder", Profile::Fast, 2, 32),
    ] {
        let encoder = encoder(name, profile);
        let run = encoder.private(&World::default(), &request(encoder.model(), batch, rows));
        assert!(run.received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&run.received[1], &format!("{name} {profile}: received by P1"));
        assert_uniform(&run.received[2], &format!("{name} {profile}: received by P2"));
    }
}

#[test]
fn input_and_model_shares_are_uniform() {
    for profile in [Profile::Fast, Profile::Precise] {
        let encoder = encoder(DIGITS, profile);
        let inputs = encoder.input_shares(&request(encoder.model(), 80, 0));
        for party in [PartyId::P1, PartyId::P2] {
            let share = &inputs[party.index()];
            let rows = share.masked.last().expect("an evaluator gets masked rows");
            assert_uniform(rows, &format!("{profile}: masked rows at {party}"));
            let all = share.masked.concat();
            assert_uniform(&all, &format!("{profile}: masked values at {party}"));
        }
        assert!(inputs[0].masked.is_empty() && inputs[0].keys.iter().all(Vec::is_empty), "the helper gets two seeds");
        for party in PartyId::ALL {
            let share = encoder.share(party);
            let mut planes = [Vec::new(), Vec::new()];
            for tensor in &encoder.model().graph.tensors {
                let len = tensor.rows * tensor.cols;
                match encoder.manifest().numerics.tensors[&tensor.name].lane_bits {
                    32 => append(share.stored::<u32>(&tensor.name).expect("in the share").planes, len, &mut planes),
                    _ => append(share.stored::<u64>(&tensor.name).expect("in the share").planes, len, &mut planes),
                }
            }
            for (at, plane) in planes.iter().enumerate().filter(|(_, plane)| plane.len() > 16_384) {
                assert_uniform(plane, &format!("{profile}: plane {at} of the model at {party}"));
            }
        }
    }
}

fn append<E: tercet_ring::Element>(planes: [Plane<'_, E>; 2], len: usize, out: &mut [Vec<u8>; 2]) {
    // A matrix has one plane at P1.
    let there = planes.into_iter().filter(|plane| !matches!(plane, Plane::Held([])));
    out.iter_mut().zip(there).for_each(|(out, plane)| pack::pack(&plane.part(0, len), E::BITS, out));
}

/// Every source file of a crate, and its text.
fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir).join("src");
    let entries = fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let files = entries.map(|entry| entry.expect("a readable folder").path()).filter(|p| p.extension().is_some());
    let mut files: Vec<(PathBuf, String)> =
        files.map(|path| (path.clone(), fs::read_to_string(path).expect("a readable source"))).collect();
    files.sort();
    files
}

/// Lines of a crate's sources, comments aside, that contain `token`, as `file: line`.
fn uses(dir: &str, token: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(dir) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.starts_with("use "));
        found.extend(code.filter(|line| line.contains(token)).map(|line| format!("{name}: {line}")));
    }
    found
}

/// Opening needs both evaluators' `m` and both masks in one place. The suite makes an [`tercet_net::OutputShare`], which is what
/// leaves towards a client, in one function alone; the engine calls it at two places, after the walk of a request and after that of a step; and no function of a
/// session hands out anything but exchanges, dealings, which the uniformity tests watch, and what is reported to the helper.
#[test]
fn nothing_is_opened_to_a_node() {
    let made = uses("protocols/helper", "OutputShare {");
    assert_eq!(made.len(), 2, "{made:#?}");
    assert!(made.iter().all(|line| line.starts_with("open.rs")), "{made:#?}");
    assert_eq!(uses("protocols/helper", "pub fn to_client").len(), 1);
    let mut opened = uses("crates/engine", "to_client(");
    opened.sort();
    let list = [
        "request.rs: answered.then(|| open::to_client(&output, from..to))",
        "sequence.rs: answered.then(|| (Sequence { place, ..sequence }, open::to_client(&output, range)))",
    ];
    assert_eq!(opened, list, "the list of openings");
    for dir in ["protocols/helper", "protocols/core", "crates/engine", "parties/node"] {
        let elsewhere = uses(dir, "sharing::join(");
        assert!(elsewhere.is_empty(), "a node puts shares together: {elsewhere:#?}");
    }
    // The one thing that nodes learn, where the owner of a mixture wants it so: which experts a row goes to.
    let to_nodes = [uses("protocols/helper", "bits::open("), uses("protocols/helper", ".report(")].concat();
    let list = [
        "route.rs: let opened = bits::open(s, rows * experts, chosen)?;",
        "bits.rs: let told = s.report(len.div_ceil(8), |_| to_bytes(&opened, len))?;",
    ];
    assert_eq!(to_nodes, list, "the list of openings to nodes");
    let transport = uses("protocols/core", "transport.send(");
    assert_eq!(transport.len(), 1, "one place sends: {transport:#?}");
}
