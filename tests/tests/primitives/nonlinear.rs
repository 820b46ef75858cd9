//! Elementwise functions against exact mathematics.

use tercet_core::fit::Series;
use tercet_core::spec::{ActivationSpec, GateSpec, GatedSpec};
use tercet_helper::exponential::{self, Scales};
use tercet_helper::{activation, gated, maximum};
use tercet_testkit::World;
use tercet_testkit::sharing::{reveal, share};
use tercet_testkit::uniformity::assert_uniform;

fn steps(count: usize, low: f64, high: f64) -> Vec<f64> {
    (0..count).map(|i| low + (high - low) * i as f64 / (count - 1) as f64).collect()
}

fn fixed(values: &[f64], frac: u32) -> Vec<i64> {
    values.iter().map(|v| (v * f64::from(1u32 << frac)).round() as i64).collect()
}

#[test]
fn the_exponential_holds_its_error() {
    let fast = Scales { frac: 10, top_bits: 6, frac_out: 12, ring_out: 32, guard: (11, 25) };
    let precise = Scales { frac: 16, top_bits: 6, frac_out: 16, ring_out: 20, guard: (16, 30) };
    let small = Scales { top_bits: 3, ..fast };
    for (scales, bound) in [(fast, 1.8e-3), (precise, 7.0e-5), (small, 1.8e-3)] {
        let t: Vec<f64> = steps(6_001, 0.0, f64::from(16u32 << scales.top_bits) - 1.0);
        let t: Vec<f64> = t.into_iter().chain(steps(4_000, 0.0, 17.0)).collect();
        let x = share::<u32>(&fixed(&t, scales.frac), &[t.len()], scales.ring_in(), 11);
        let run = World::default().run(|s| exponential::exp2_neg::<u64>(s, &x[s.party().index()], scales));
        let unit = f64::from(1u32 << scales.frac_out);
        let worst = reveal(&run.outputs)
            .iter()
            .zip(&t)
            .map(|(g, t)| (*g as f64 / unit - if *t >= 16.0 { 0.0 } else { (-t).exp2() }).abs())
            .fold(0.0, f64::max);
        assert!(worst < bound, "{worst}");
        assert_eq!(run.cost, exponential::cost(t.len(), scales));
        assert_eq!(run.cost.rounds, 3);
        assert_uniform(&run.received[1], "exponential at P1");
        assert_uniform(&run.received[2], "exponential at P2");
    }
}

fn check_activation(
    spec: &ActivationSpec,
    x: &[f64],
    frac: u32,
    ring: u32,
    rounds: u64,
    exact: impl Fn(f64) -> f64,
    bound: f64,
) {
    let views = share::<u64>(&fixed(x, frac), &[x.len()], ring, 12);
    let run = World::default().run(|s| activation::activation(s, &views[s.party().index()], frac, spec));
    let unit = f64::from(1u32 << frac);
    let errors: Vec<f64> = reveal(&run.outputs).iter().zip(x).map(|(g, x)| *g as f64 / unit - exact(*x)).collect();
    let worst = errors.iter().fold(0.0f64, |a, e| a.max(e.abs()));
    let rms = (errors.iter().map(|e| e * e).sum::<f64>() / x.len() as f64).sqrt();
    assert!(worst < bound, "worst {worst}");
    assert!(rms < bound / 2.5, "rms {rms}");
    assert_eq!(run.cost, activation::cost(x.len(), ring, frac, spec));
    assert_eq!(run.cost.rounds, rounds);
    assert_uniform(&run.received[1], "activation at P1");
    assert_uniform(&run.received[2], "activation at P2");
}

/// GELU in its tanh form: as good a gate as any.
fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn gates_hold_their_error_at_any_range() {
    let even = |x: f64| gelu(x) - x / 2.0;
    let x: Vec<f64> = steps(4_000, -120.0, 120.0).into_iter().chain(steps(4_000, -6.0, 6.0)).collect();
    let fast = GateSpec {
        series: Series::fit_even(even, 4.25, 4, 2, 4),
        edge: 4,
        compare_ring: 20,
        dealt_frac: 11,
        public_frac: 11,
        body_ring: 16,
        ring: 32,
    };
    // The series is off by 5e-4, its eight rounded factors by half of 2^-11 each, the last truncation by 1.5 units.
    check_activation(&ActivationSpec::Gate(fast), &x, 10, 20, 4, gelu, 5e-3);
    let precise = GateSpec {
        series: Series::fit_even(even, 5.25, 4, 1, 10),
        edge: 5,
        compare_ring: 26,
        dealt_frac: 18,
        public_frac: 18,
        body_ring: 23,
        ring: 47,
    };
    check_activation(&ActivationSpec::Gate(precise), &x, 16, 48, 3, gelu, 1e-4);
}

#[test]
fn tanh_and_relu_hold_their_error() {
    let x: Vec<f64> = steps(4_000, -100.0, 100.0).into_iter().chain(steps(4_000, -9.0, 9.0)).collect();
    let tanh = GateSpec {
        series: Series::fit_odd(f64::tanh, 6.25, 4, 1, 14),
        edge: 6,
        compare_ring: 20,
        dealt_frac: 12,
        public_frac: 12,
        body_ring: 15,
        ring: 32,
    };
    check_activation(&ActivationSpec::Odd(tanh), &x, 10, 20, 4, f64::tanh, 4e-3);
    check_activation(&ActivationSpec::Relu { ring: 32 }, &x, 10, 20, 3, |x| x.max(0.0), 6e-4 * 2.5);
}

#[test]
fn the_maximum_survives_near_ties_and_odd_widths() {
    for width in [1, 2, 3, 4, 5, 7, 8, 9, 26, 32, 64, 98] {
        let rows = if width > 60 { 200 } else { 40 };
        let mut values = Vec::new();
        for row in 0..rows {
            for col in 0..width {
                let spread = ((row * 7919 + col * 104_729) % 1000) as i64 - 500;
                values.push(if row % 3 == 0 { 7 + col as i64 % 2 } else { spread * 60 });
            }
        }
        let x = share::<u32>(&values, &[rows, width], 20, 13);
        let run = World::default().run(|s| maximum::maximum(s, &x[s.party().index()], 10));
        let unit = 1 << (10 - maximum::result_frac(10));
        for (got, row) in reveal(&run.outputs).iter().zip(values.chunks(width)) {
            let (got, exact) = (got * unit, *row.iter().max().unwrap());
            assert!((-unit..=2 * unit).contains(&(got - exact)), "{got} for {exact}, width {width}");
        }
        assert_eq!(run.cost, maximum::cost(rows, width, 20, 10), "width {width}");
        if width > 60 {
            assert_uniform(&run.received[1], "maximum at P1");
            assert_uniform(&run.received[2], "maximum at P2");
        }
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// SiLU's tails are long: 1.1e-3 is left at 9, 2.9e-5 at 13.
#[test]
fn gated_products_hold_their_error() {
    let even = |x: f64| silu(x) - x / 2.0;
    let fast = GateSpec {
        series: Series::fit_even(even, 9.25, 5, 2, 6),
        edge: 9,
        compare_ring: 20,
        dealt_frac: 12,
        public_frac: 12,
        body_ring: 17,
        ring: 30,
    };
    let precise = GateSpec {
        series: Series::fit_even(even, 13.25, 5, 1, 16),
        edge: 13,
        compare_ring: 28,
        dealt_frac: 19,
        public_frac: 19,
        body_ring: 23,
        ring: 62,
    };
    for (gate, frac, ring, bound) in [(fast, 10, 20, 5e-3), (precise, 16, 44, 1.2e-4)] {
        let a: Vec<f64> = steps(4_000, -100.0, 100.0).into_iter().chain(steps(4_000, -15.0, 15.0)).collect();
        let silu_alone = ActivationSpec::Gate(gate.clone());
        check_activation(&silu_alone, &a, frac, ring, 4, silu, bound);

        // Side by side with factors of up to two.
        let b: Vec<f64> = (0..a.len()).map(|i| (i * 7919 % 4001) as f64 / 1000.0 - 2.0).collect();
        let pairs: Vec<f64> = a.chunks(4).zip(b.chunks(4)).flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
        let x = share::<u64>(&fixed(&pairs, frac), &[a.len() / 4, 8], ring, 13);
        let truncate = frac;
        let spec = GatedSpec { activation: silu_alone, truncate, ring: gate.ring - truncate };
        let run = World::default().run(|s| gated::gated(s, &x[s.party().index()], frac, &spec));
        let unit = f64::from(1u32 << frac);
        let exact = a.iter().zip(&b).map(|(a, b)| silu(*a) * b);
        let errors = reveal(&run.outputs).into_iter().zip(exact).map(|(got, exact)| (got as f64 / unit - exact).abs());
        // Half a unit of `b` times the gate besides.
        let worst = errors.fold(0.0, f64::max);
        println!("{frac} bits: {worst:.1e} at most");
        assert!(worst < 2.0 * bound + 100.0 * 0.5 / unit, "{worst}");
        assert_eq!(run.cost, gated::cost(a.len(), ring, frac, &spec));
        assert_eq!(run.cost.rounds, 5, "one more than the activation");
        assert_uniform(&run.received[1], "gated product at P1");
        assert_uniform(&run.received[2], "gated product at P2");
    }
}

#[test]
fn a_gate_that_leaves_too_small_a_ring_is_refused() {
    let spec = GatedSpec { activation: ActivationSpec::Relu { ring: 29 }, truncate: 10, ring: 20 };
    let x = share::<u32>(&[0; 6], &[1, 6], 20, 13);
    let run = World::default().run(|s| Ok(gated::gated(s, &x[s.party().index()], 10, &spec).is_err()));
    assert_eq!(run.outputs, [true; 3]);
}
