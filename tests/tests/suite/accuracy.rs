//! The twin against floating point, and shares against the twin, value by value.

use tercet_engine::Profile;
use tercet_testkit::World;
use tercet_testkit::encoder::{Encoder, Request, Trace};

use super::models::{ALL, DIGITS, encoder, request, share};

/// Largest difference at any element of any input, by node, relative to the largest element of the value where that is
/// beyond 1.
fn distances(a: &Trace, b: &Trace) -> Vec<f64> {
    let of_inputs = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        assert_eq!(a.len(), b.len(), "elements of a value");
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let size = |v: &Vec<Vec<f64>>| v.iter().flatten().map(|x| x.abs()).fold(0.0, f64::max).max(1.0);
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(of_inputs).fold(0.0, f64::max) / size(b)).collect()
}

/// Runs under masks of their own.
const RUNS: usize = 7;
const WORST: f64 = 3.0;

struct Bounds {
    /// Of the twin to the float oracle.
    twin: f64,
    /// Of shares to the twin, in the median of [`RUNS`] runs. Masks are random, and with them the largest of thousands of errors: a
    /// run of its own may come to [`WORST`] times this.
    noise: f64,
}

fn bounds(profile: Profile) -> Bounds {
    match profile {
        Profile::Fast => Bounds { twin: 0.03, noise: 0.06 },
        Profile::Precise => Bounds { twin: 2e-3, noise: 2e-3 },
    }
}

/// Holds every value of both to its bound, and returns the largest relative errors: of the twin, of the shares.
fn check(name: &str, encoder: &Encoder, request: &Request) -> [f64; 2] {
    let profile = encoder.manifest().numerics.profile;
    let exact = encoder.exact(request);
    let twin = encoder.decode(request, &encoder.plain(request).expect("the twin runs"));
    let to_exact = distances(&twin, &exact);
    let private = || encoder.decode(request, &encoder.private(&World::default(), request).values);
    let runs: Vec<Vec<f64>> = (0..RUNS).map(|_| distances(&private(), &twin)).collect();
    let bounds = bounds(profile);
    let mut largest = [0f64; 2];
    for (at, (node, exact)) in encoder.model().graph.nodes.iter().zip(to_exact).enumerate() {
        let mut shares: Vec<f64> = runs.iter().map(|run| run[at]).collect();
        shares.sort_by(f64::total_cmp);
        let (median, worst) = (shares[RUNS / 2], shares[RUNS - 1]);
        assert!(exact < bounds.twin, "{name} {profile}: the twin is off by {exact:.1e} at {}", node.name);
        assert!(median < bounds.noise, "{name} {profile}: shares are off by {median:.1e} at {}", node.name);
        assert!(worst < WORST * bounds.noise, "{name} {profile}: shares are once off by {worst:.1e} at {}", node.name);
        largest = [largest[0].max(exact), largest[1].max(median)];
    }
    largest
}

fn check_all(profile: Profile) {
    for name in ALL {
        let encoder = encoder(name, profile);
        for (batch, rows) in [(2, 9), (1, 1), (1, 40)] {
            let [twin, shares] = check(name, &encoder, &request(encoder.model(), batch, rows));
            println!(
                "{name} {profile}, {batch} of {rows}: twin {twin:.1e} from floating point, shares {shares:.1e} from it"
            );
        }
    }
}

#[test]
fn every_value_follows_the_oracle_in_fast() {
    check_all(Profile::Fast);
}

#[test]
fn every_value_follows_the_oracle_in_precise() {
    check_all(Profile::Precise);
}

#[test]
fn a_public_table_gives_the_same_answer() {
    for profile in [Profile::Fast, Profile::Precise] {
        let public = share(super::models::load("bert_encoder"), profile, true).expect("it fits");
        let secret = encoder("bert_encoder", profile);
        let request = request(public.model(), 2, 9);
        assert!(public.manifest().public_table().is_some() && secret.manifest().public_table().is_none());
        assert_eq!(public.plain(&request).expect("runs"), secret.plain(&request).expect("runs"), "twins are the same");
        check("a public table", &public, &request);
    }
}

#[test]
fn digits_are_read_as_the_oracle_reads_them() {
    const COUNT: usize = 40;
    let best = |scores: &Vec<f64>| (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    for profile in [Profile::Fast, Profile::Precise] {
        let encoder = encoder(DIGITS, profile);
        let request = request(encoder.model(), COUNT, 0);
        let exact = encoder.exact(&request).pop().expect("a graph has nodes");
        let private = encoder.decode(&request, &encoder.private(&World::default(), &request).values);
        let private = private.last().expect("a graph has nodes");
        let labels = tercet_examples::digits::test_split();
        let mut right = 0;
        for ((exact, private), digit) in exact.iter().zip(private).zip(&labels) {
            assert_eq!(best(exact), best(private), "{profile}: shares read another digit than floating point");
            right += usize::from(best(private) == Some(digit.label as usize));
        }
        assert!(right * 100 >= COUNT * 95, "{profile}: {right} of {COUNT} digits are right");
    }
}
