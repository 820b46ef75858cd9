//! An answer depends neither on its neighbours, nor on its padding, nor on the number of threads.

use tercet_engine::Profile;
use tercet_plain::Value;
use tercet_testkit::World;
use tercet_testkit::encoder::{Encoder, Request};

use super::models::{ALL, encoder, request};

/// The last value of the twin: one row an input.
fn twin(encoder: &Encoder, request: &Request) -> Value {
    encoder.plain(request).expect("the twin runs").pop().expect("a graph has nodes")
}

fn row(value: &Value, at: usize) -> &[i64] {
    &value.data()[at * value.cols()..(at + 1) * value.cols()]
}

#[test]
fn the_twin_gives_exactly_the_same_alone_beside_others_and_padded() {
    for profile in [Profile::Fast, Profile::Precise] {
        for name in ALL {
            let encoder = encoder(name, profile);
            let together = request(encoder.model(), 4, 11);
            let beside = twin(&encoder, &together);
            for at in 0..4 {
                let alone = together.only(at, &encoder.model().graph);
                let own = twin(&encoder, &alone);
                assert_eq!(own.data(), row(&beside, at), "{name} {profile}: input {at} beside others");
                if alone.geometry().rows < 12 && encoder.model().tokenizer().is_some() {
                    let padded = twin(&encoder, &alone.padded(encoder.model().graph.max_rows()));
                    assert_eq!(own.data(), padded.data(), "{name} {profile}: input {at} padded");
                }
            }
        }
    }
}

#[test]
fn requests_of_several_clients_run_in_one_session() {
    for (profile, noise) in [(Profile::Fast, 0.05), (Profile::Precise, 2e-3)] {
        for name in ["bert_encoder", "roberta_classifier", "vit_classifier"] {
            let encoder = encoder(name, profile);
            let whole = request(encoder.model(), 3, 8);
            let requests = [0, 1, 2].map(|at| whole.only(at, &encoder.model().graph));
            let requests = requests.map(|r| r.padded(whole.geometry().rows));
            let run = encoder.execute(&World::default(), &requests);
            let unit = f64::from(encoder.manifest().numerics.formats.frac).exp2();
            for (at, request) in requests.iter().enumerate() {
                let (got, expected) = (encoder.open(&run, at), twin(&encoder, request));
                assert_eq!(got.len(), expected.cols(), "{name}: columns of the output");
                // A sum over rows carries the noise of each.
                let size = expected.data().iter().map(|v| v.abs() as f64 / unit).fold(1.0, f64::max);
                for (a, b) in got.iter().zip(expected.data()) {
                    let error = (a - b).abs() as f64 / unit / size;
                    assert!(error < noise, "{name} {profile}: client {at} is off by {error:.1e}");
                }
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    for profile in [Profile::Fast, Profile::Precise] {
        let encoder = encoder("bert_encoder", profile);
        let request = request(encoder.model(), 3, 30);
        let inputs = encoder.input_shares(&request);
        let run = |threads| {
            let world = World::with_threads(threads).seeded([[3; 32], [5; 32]]);
            encoder.private_on(&world, &request, &inputs)
        };
        let (one, two) = (run(1), run(2));
        assert!(one.values == two.values && one.received == two.received, "{profile}: threads show");
    }
}

#[test]
fn no_two_runs_draw_the_same_masks() {
    let encoder = encoder("bert_encoder", Profile::Fast);
    let request = request(encoder.model(), 1, 5);
    let inputs = encoder.input_shares(&request);
    let [one, two] = [0, 1].map(|_| encoder.private_on(&World::default(), &request, &inputs).received);
    for (one, two) in one.iter().zip(&two).skip(1) {
        assert_eq!(one.len(), two.len());
        let same = one.iter().zip(two).filter(|(a, b)| a == b).count();
        // Uniform bytes agree once in 256.
        assert!(same * 200 < one.len(), "{same} of {} bytes are the same", one.len());
    }
}
