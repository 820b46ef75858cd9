//! Clients whose lookups contradict themselves, each among others in one session: it alone has no
//! answer.

use tercet_engine::{Choice, Profile, choose};
use tercet_model::graph::Op;
use tercet_model::{Model, RowInput, calibrate, calibration_inputs};
use tercet_testkit::World;
use tercet_testkit::decoder::{Decoder, Plan, Read};
use tercet_testkit::encoder::Request;
use tercet_testkit::lookup::{DEVIATIONS, Deviation, Lookup};

use super::models::{PUBLIC_GATE, encoder, load, request};

/// Rows of the table that a model looks its tokens up in.
fn entries(model: &Model) -> usize {
    let Op::Lookup { table } = &model.graph.nodes[0].op else { panic!("a model of tokens") };
    model.graph.tensors.iter().find(|spec| spec.name == *table).expect("a table").rows
}

/// Which deviation a client makes of which token: the others of its tokens are as they should be.
fn deviant(deviation: &Deviation, entries: usize, token: usize, domain_bits: u32, id: usize) -> Lookup {
    if id == token { (deviation.make)(domain_bits, entries, id) } else { Lookup::new(domain_bits, id) }
}

#[test]
fn an_encoder_refuses_a_deviating_client_alone() {
    for (profile, noise) in [(Profile::Fast, 0.05), (Profile::Precise, 2e-3)] {
        let encoder = encoder("bert_encoder", profile);
        let graph = &encoder.model().graph;
        let RowInput::Lookup { entries, .. } = encoder.manifest().interface().expect("an interface").rows else {
            panic!("a secret table")
        };
        let whole = request(encoder.model(), 3, 6);
        let requests = [0, 1, 2].map(|at| whole.only(at, graph).padded(whole.geometry().rows));
        let twin = |request: &Request| encoder.plain(request).expect("the twin runs").pop().expect("a graph has nodes");
        let expected = requests.each_ref().map(twin);
        let unit = f64::from(encoder.manifest().numerics.formats.frac).exp2();
        for deviation in &DEVIATIONS {
            // The padding of the second.
            let make = |domain_bits, id| deviant(deviation, entries, 0, domain_bits, id);
            let mut inputs: Vec<_> = requests.iter().map(|request| encoder.input_shares(request)).collect();
            inputs[1] = encoder.input_shares_with(&requests[1], &make);
            let run = encoder.execute_on(&World::default(), &inputs);
            let answered = run.outputs.each_ref().map(|of| of.iter().map(Option::is_some).collect::<Vec<_>>());
            assert_eq!(answered[0], [true; 3], "{}: the helper does not learn it", deviation.name);
            for evaluator in &answered[1..] {
                assert_eq!(evaluator[..], [true, deviation.legal, true], "{} in {profile}", deviation.name);
            }
            for at in [0, 2] {
                let size = expected[at].data().iter().map(|v| v.abs() as f64 / unit).fold(1.0, f64::max);
                for (got, expected) in encoder.open(&run, at).iter().zip(expected[at].data()) {
                    let error = (got - expected).abs() as f64 / unit / size;
                    assert!(error < noise, "{} in {profile}: neighbour {at} is off by {error:.1e}", deviation.name);
                }
            }
        }
    }
}

#[test]
fn a_step_of_a_decoder_refuses_a_deviating_client_alone() {
    for (name, profile, noise) in
        [("llama", Profile::Fast, 0.2), ("gpt2", Profile::Precise, 0.01), (PUBLIC_GATE, Profile::Precise, 0.05)]
    {
        let model = load(name);
        let ranges = calibrate(&model, &calibration_inputs(&model)).expect("inputs of this model");
        let numerics = choose(&model.graph, &ranges, profile, false).expect("a model with headroom");
        let (entries, decoder) = (entries(&model), Decoder::new(model, numerics).expect("a model that is shared"));
        let prompt = |offset: usize, len: usize| {
            (0..len).map(|i| ((i * i * 7 + (i + offset) * 13 + 5) % entries) as u32).collect::<Vec<u32>>()
        };
        let token = 9;
        // Prompts of three clients; then the deviating one's next row beside another's.
        let texts = [prompt(0, 4), prompt(1, 3), prompt(2, 5)];
        let nexts = [prompt(4, 1), vec![token as u32], prompt(8, 1)];
        for (text, next) in texts.iter().zip(&nexts) {
            let gap = decoder.routing_gap(&[text.as_slice(), next].concat());
            assert!(gap > 0.1, "{name}: experts that are {gap} from tied");
        }
        let steps = [texts, nexts].map(|step| step.into_iter().map(Read::Tokens).enumerate().collect());
        let steps = steps.into();
        let plan = Plan { steps, choice: Choice::Scores, every_row: false, temperature: None };
        let expected = decoder.plain(&plan).expect("the twin runs");
        for deviation in &DEVIATIONS {
            let make = |sequence, domain_bits, id| match sequence {
                1 => deviant(deviation, entries, token, domain_bits, id),
                _ => Lookup::new(domain_bits, id),
            };
            let run = decoder.private_with(&World::default(), &plan, &make);
            assert_eq!(run.outputs[1][1].is_empty(), !deviation.legal, "{} of {name}", deviation.name);
            for (step, sequence) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)] {
                let (got, expected) = (&run.outputs[step][sequence], &expected[step][sequence]);
                let error = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(
                    got.len() == expected.len() && error < noise,
                    "{} of {name}: {sequence} {error}",
                    deviation.name
                );
            }
        }
    }
}
