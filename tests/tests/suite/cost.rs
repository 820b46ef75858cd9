//! What was measured against what was planned: equal on every link, to the byte and the frame.

use tercet_core::{Cost, Geometry};
use tercet_engine::{Plan, Profile, plan};
use tercet_model::graph::Input;
use tercet_net::PartyId;
use tercet_testkit::World;
use tercet_testkit::encoder::{Encoder, Request};

use super::models::{DIGITS, encoder, load, request, share};

fn planned(encoder: &Encoder, request: &Request) -> Plan {
    let plan = plan(encoder.manifest(), request.geometry()).expect("a geometry of this model");
    let sum = plan.parts.iter().fold(Cost::NONE, |sum, (_, cost)| sum.then(*cost));
    assert_eq!(sum, plan.total, "the parts add up");
    plan
}

fn check(name: &str, encoder: &Encoder) {
    let profile = encoder.manifest().numerics.profile;
    let texts = matches!(encoder.model().graph.input, Input::Tokens { .. });
    let geometries: &[(usize, usize)] =
        if texts { &[(1, 1), (2, 1), (1, 2), (3, 5), (1, 7), (2, 17), (1, 40)] } else { &[(1, 0), (2, 0), (3, 0)] };
    for &(batch, rows) in geometries {
        let request = request(encoder.model(), batch, rows);
        let run = encoder.execute(&World::default(), std::slice::from_ref(&request));
        let plan = planned(encoder, &request);
        assert_eq!(run.cost, plan.total, "{name} {profile}, {batch} of {rows}");
        let inputs = encoder.input_shares(&request);
        for party in PartyId::ALL {
            let input = &inputs[party.index()];
            let sent: usize = input.masked.iter().chain(&input.keys).map(Vec::len).sum();
            let seeds = 32 * [&input.first_seed, &input.second_seed].into_iter().flatten().count();
            assert_eq!((sent + seeds) as u64, plan.client_bytes[0][party.index()], "{name}: the client to {party}");
            // A share file holds its planes, their padding to 64 bytes, and a header.
            let (file, weights) = (encoder.share(party).len_bytes(), plan.weight_bytes[party.index()]);
            assert!((weights..weights + 300_000).contains(&file), "{name}: {file} bytes of share for {weights}");
            let output = run.outputs[party.index()][0].as_ref().expect("an answer");
            let back: usize = output.planes.iter().map(Vec::len).sum();
            assert_eq!(back as u64, plan.client_bytes[1][party.index()], "{name}: {party} to the client");
        }
    }
}

#[test]
fn every_link_carries_what_was_planned() {
    for profile in [Profile::Fast, Profile::Precise] {
        for name in [DIGITS, "bert_encoder", "bert_classifier_f16", "distilbert_encoder", "vit_classifier_tanh_bf16"] {
            check(name, &encoder(name, profile));
        }
        check("a public table", &share(load("bert_encoder"), profile, true).expect("it fits"));
    }
}

#[test]
fn inputs_of_one_session_share_its_rounds() {
    let encoder = encoder("bert_encoder", Profile::Fast);
    let rounds = |batch| planned(&encoder, &request(encoder.model(), batch, 12)).total.rounds;
    assert_eq!(rounds(1), rounds(16));
}

#[test]
fn shapes_that_the_model_does_not_take_have_no_price() {
    let encoder = encoder("bert_encoder", Profile::Fast);
    for (batch, rows) in [(0, 5), (1, 0), (1, 41)] {
        assert!(plan(encoder.manifest(), Geometry { batch, rows }).is_err(), "{batch} of {rows}");
    }
}
