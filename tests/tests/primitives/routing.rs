//! The weights of experts, and blocks weighed by them.

use tercet_core::spec::{AttentionSpec, InverseSpec, RouteSpec, ScaleSpec};
use tercet_core::{Error, Suite};
use tercet_helper::{Masked, route, scale};
use tercet_plain::Value;
use tercet_testkit::sharing::{reveal, share};
use tercet_testkit::uniformity::assert_uniform;
use tercet_testkit::{Run, World};

use super::twin::twin;

/// Weights of the `top` at scale 10, and more precisely at scale 16.
fn specs(top: usize) -> [(u32, RouteSpec, f64); 2] {
    let sum = top.next_power_of_two().ilog2() + 1;
    let fast = AttentionSpec {
        score_ring: 20,
        exp_frac: 12,
        exp_top_bits: 5,
        exp_guard: (11, 25),
        exp_ring: 32,
        value_ring: 32,
        inverse: InverseSpec::new(1.0, 11, 12 + sum, 10, 64, 24, 32),
        normalize_ring: 0,
        ring: 22,
    };
    let precise = AttentionSpec {
        score_ring: 26,
        exp_frac: 16,
        exp_top_bits: 5,
        exp_guard: (16, 30),
        exp_ring: 20,
        value_ring: 20,
        inverse: InverseSpec::new(1.0, 15, 16 + sum, 24, 64, 48, 36),
        normalize_ring: 0,
        ring: 40,
    };
    [(10, fast, 4e-3), (16, precise, 1e-3)].map(|(frac, softmax, bound)| (frac, RouteSpec { top, softmax }, bound))
}

fn run(values: &[i64], rows: usize, experts: usize, frac: u32, spec: &RouteSpec) -> Run<Masked<u64>> {
    let x = share::<u64>(values, &[rows, experts], 48, 31);
    let run = World::default().run(|s| route::route(s, &x[s.party().index()], frac, spec));
    assert_eq!(run.cost, route::cost(rows, experts, frac, spec), "{experts} experts");
    run
}

#[test]
fn the_top_share_the_softmax_and_the_rest_get_nothing() {
    for (experts, top) in [(1, 1), (2, 1), (2, 2), (3, 2), (5, 9), (8, 2), (8, 1), (13, 4), (64, 8)] {
        for (frac, spec, bound) in specs(top) {
            let rows = 9;
            let unit = f64::from(1u32 << frac);
            // Rows of equals, of near ties, and of scores as far apart as the exponent's ring allows.
            let score = |i: usize| match (i / experts) % 3 {
                0 => 3.0,
                1 => 1.0 + (i * 7 % 5) as f64 / unit,
                _ => ((i * 7919) % 997) as f64 / 997.0 * if i / experts > 4 { 8.0 } else { 400.0 } - 4.0,
            };
            let values: Vec<i64> = (0..rows * experts).map(|i| (score(i) * unit).round() as i64).collect();
            let run = run(&values, rows, experts, frac, &spec);
            println!("{top} of {experts}: {} rounds, {} bytes dealt", run.cost.rounds, run.cost.dealt_bytes());
            let got = reveal(&run.outputs);
            let twin = twin(frac, None, |suite| suite.route(&Value::new(rows, experts, 48, values.clone()), &spec));
            for ((got, twin), row) in got.chunks(experts).zip(twin.chunks(experts)).zip(values.chunks(experts)) {
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by_key(|&i| -row[i]);
                let chosen = &order[..top.min(experts)];
                let power = |i: usize| ((row[i] - row[order[0]]) as f64 / unit).exp2();
                let sum: f64 = chosen.iter().map(|&i| power(i)).sum();
                for i in 0..experts {
                    let exact = if chosen.contains(&i) { power(i) / sum } else { 0.0 };
                    let error = (got[i] as f64 / unit - exact).abs();
                    assert!(error < bound, "{i} of {experts}: {} for {exact}", got[i] as f64 / unit);
                    assert!((twin[i] as f64 / unit - exact).abs() < bound, "the twin: {i} of {experts}");
                    assert!(chosen.contains(&i) || (got[i] == 0 && twin[i] == 0), "exactly nothing for {i}");
                }
            }
        }
    }
}

#[test]
fn a_route_shows_nothing() {
    // One expert always, all alike, and all kinds.
    for values in [[[9000, 0, 0, 0, 0, 0, 0, 0]; 80], [[5; 8]; 80]].map(|rows| rows.concat()) {
        let (frac, spec, _) = &specs(2)[0];
        let run = run(&values, 80, 8, *frac, spec);
        assert!(run.received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&run.received[1], "route at P1");
        assert_uniform(&run.received[2], "route at P2");
    }
}

/// The gate opened: the weights of the chosen alone, in their order, and which they are at all three nodes.
#[test]
fn an_open_route_gives_the_weights_of_the_top_and_says_which_they_are() {
    for (experts, top) in [(1, 1), (2, 1), (3, 2), (5, 9), (8, 2), (13, 4), (64, 8)] {
        for (frac, spec, bound) in specs(top) {
            let (rows, top) = (11, top.min(experts));
            let unit = f64::from(1u32 << frac);
            let values: Vec<i64> = (0..rows * experts)
                .map(|i| if i / experts == 3 { 77 } else { ((i as i64 * 7919) % 997 - 400) * (unit as i64) / 40 })
                .collect();
            let x = share::<u64>(&values, &[rows, experts], 48, 37);
            let run = World::default().run(|s| {
                let (weights, routing) = route::open(s, &x[s.party().index()], frac, &spec)?;
                Ok((weights, (routing.places(), routing.rows().to_vec(), routing.counts().to_vec())))
            });
            assert_eq!(run.cost, route::open_cost(rows, experts, frac, &spec), "{top} of {experts}");
            let (weights, routings): (Vec<_>, Vec<_>) = run.outputs.into_iter().unzip();
            assert!(routings.iter().all(|routing| *routing == routings[0]), "the nodes agree");
            let got = reveal(&weights.try_into().expect("three parties"));
            let places = &routings[0].0;
            for (row, (got, places)) in got.chunks(top).zip(places.chunks(top)).enumerate() {
                let scores = &values[row * experts..(row + 1) * experts];
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by_key(|&i| -scores[i]);
                let mut chosen = order[..top].to_vec();
                chosen.sort_unstable();
                assert_eq!(places, chosen.iter().map(|expert| row * experts + expert).collect::<Vec<_>>());
                let power = |i: usize| ((scores[i] - scores[order[0]]) as f64 / unit).exp2();
                let sum: f64 = chosen.iter().map(|&i| power(i)).sum();
                for (&got, &expert) in got.iter().zip(&chosen) {
                    let error = (got as f64 / unit - power(expert) / sum).abs();
                    assert!(error < bound, "{expert} of {experts}: off by {error}");
                }
            }
            assert_eq!(run.received[0].len(), (rows * experts).div_ceil(8), "the helper is told the bits");
        }
    }
}

/// Scores that are a third of the ring apart win against each other in a circle: that row is lost, its neighbours are not.
#[test]
fn an_open_route_goes_on_beside_a_row_that_left_its_ring() {
    let (frac, spec, _) = &specs(1)[0];
    let third = (1i64 << spec.softmax.score_ring) / 3;
    let values = [[5, 9, 2].map(|v| v << frac), [0, third, 2 * third], [1, 0, 8].map(|v| v << frac)].concat();
    let x = share::<u64>(&values, &[3, 3], 48, 39);
    let run = World::default().run(|s| {
        let (weights, routing) = route::open(s, &x[s.party().index()], *frac, spec)?;
        Ok((weights, routing.places()))
    });
    let (weights, places): (Vec<_>, Vec<_>) = run.outputs.into_iter().unzip();
    assert!(places.iter().all(|places| (places[0], places[2]) == (1, 8) && (3..6).contains(&places[1])), "{places:?}");
    let got = reveal(&weights.try_into().expect("three parties"));
    let one = 1i64 << frac;
    assert!([got[0], got[2]].iter().all(|weight| (weight - one).abs() <= one / 100), "{got:?} of {one}");
}

/// The halves that the evaluators exchange are uniform, whatever they open; what else they receive, too.
#[test]
fn an_open_route_shows_the_choice_alone() {
    for values in [[[9000, 0, 0, 0, 0, 0, 0, 0]; 400], [[5; 8]; 400]].map(|rows| rows.concat()) {
        let (frac, spec, _) = &specs(2)[0];
        let x = share::<u64>(&values, &[400, 8], 48, 38);
        let run = World::default().run(|s| route::open(s, &x[s.party().index()], *frac, spec).map(|_| ()));
        assert!(run.received[0].iter().all(|&byte| byte == 0b11), "the first two of each row, and nothing else");
        assert_uniform(&run.received[1], "an open route at P1");
        assert_uniform(&run.received[2], "an open route at P2");
    }
}

#[test]
fn a_route_that_does_not_fit_is_refused() {
    let (frac, spec, _) = specs(2)[0].clone();
    let x = share::<u64>(&[0; 130], &[2, 65], 48, 32);
    World::default().run(|s| {
        let x = &x[s.party().index()];
        let none = RouteSpec { top: 0, ..spec.clone() };
        let mut cramped = spec.clone();
        cramped.softmax.exp_top_bits = 0;
        let few = x.columns(0, 4);
        for (x, spec) in [(x, &spec), (&few, &none), (&few.clone().into_low(19), &spec), (&few, &cramped)] {
            assert!(matches!(route::route(s, x, frac, spec), Err(Error::Misuse(_))));
        }
        Ok(())
    });
}

#[test]
fn blocks_are_scaled_by_their_columns() {
    let spec = ScaleSpec { truncate: 10, ring: 22 };
    for (rows, blocks, width) in [(1, 1, 1), (3, 2, 5), (7, 8, 33), (2, 3, 1)] {
        let value = |i: usize| (i as i64 * 7919) % 4001 - 2000;
        let x: Vec<i64> = (0..rows * blocks * width).map(value).collect();
        let weights: Vec<i64> = (0..rows * blocks).map(|i| value(i + 5) / 2).collect();
        let (xs, ws) =
            (share::<u32>(&x, &[rows, blocks * width], 32, 33), share::<u32>(&weights, &[rows, blocks], 32, 34));
        let run =
            World::default().run(|s| scale::scale_blocks(s, &xs[s.party().index()], &ws[s.party().index()], &spec));
        let twin = twin(10, None, |suite| {
            let [x, weights] =
                [(blocks * width, &x), (blocks, &weights)].map(|(n, v)| Value::new(rows, n, 32, v.clone()));
            suite.scale_blocks(&x, &weights, &spec)
        });
        for (i, (got, twin)) in reveal(&run.outputs).iter().zip(&twin).enumerate() {
            let exact = (x[i] * weights[i / width]) as f64 / 1024.0;
            assert!((*got as f64 - exact).abs() <= 1.5 && (*twin as f64 - exact).abs() <= 0.5, "{got} for {exact}");
        }
        assert_eq!(run.cost, scale::cost(x.len(), &spec));
        if x.len() > 1000 {
            assert_eq!(run.cost.rounds, 1);
        }
    }
    let x = share::<u32>(&[0; 12], &[2, 6], 32, 35);
    World::default().run(|s| {
        let x = &x[s.party().index()];
        let wrong = [x.columns(0, 4), x.clone().reshape([3, 4]), x.columns(0, 3).into_low(31)];
        for weights in wrong {
            assert!(matches!(scale::scale_blocks(s, x, &weights, &spec), Err(Error::Misuse(_))));
        }
        Ok(())
    });
}
