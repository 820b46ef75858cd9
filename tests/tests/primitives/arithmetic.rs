//! Products, truncation, extension, comparison, selection.

use tercet_core::Cost;
use tercet_helper::linear::{self, Prepared};
use tercet_helper::{compare, extend, select, truncate};
use tercet_testkit::World;
use tercet_testkit::sharing::{reveal, reveal_additive, reveal_bits, share};
use tercet_testkit::uniformity::assert_uniform;

/// Sizes on both sides of a word.
const SIZES: [usize; 6] = [1, 2, 63, 64, 65, 700];

fn ramp(len: usize, low: i64, high: i64) -> Vec<i64> {
    (0..len as i64).map(|i| low + (high - low) * i / (len as i64 - 1).max(1)).collect()
}

#[test]
fn truncation_is_within_a_unit_and_a_half_and_unbiased() {
    for (len, by, ring) in
        SIZES.map(|n| (n, 12, 20)).into_iter().chain([(30_000, 12, 20), (30_000, 0, 20), (500, 7, 25)])
    {
        let values = ramp(len, -(1 << (ring + by - 1)), (1 << (ring + by - 1)) - 1);
        let x = share::<u32>(&values, &[len], ring + by, 1);
        let run = World::default().run(|s| {
            let z = x[s.party().index()].to_additive();
            truncate::truncate::<u32, u32>(s, z, by, ring)
        });
        let got = reveal(&run.outputs);
        let scale = f64::from(1u32 << by);
        let modulus = 2f64.powi(ring as i32);
        let error = |(g, v): (&i64, &i64)| {
            let e = *g as f64 - *v as f64 / scale;
            e - (e / modulus).round() * modulus
        };
        let errors: Vec<f64> = got.iter().zip(&values).map(error).collect();
        let worst = errors.iter().fold(0.0f64, |a, e| a.max(e.abs()));
        let mean = errors.iter().sum::<f64>() / len as f64;
        assert!(worst <= if by == 0 { 0.0 } else { 1.5 }, "len {len}: {worst}");
        assert!(len < 10_000 || mean.abs() < 0.02, "bias {mean}");
        assert_eq!(run.cost, truncate::cost(len, by, ring));
        if len >= 10_000 {
            assert_uniform(&run.received[1], "truncate at P1");
            assert_uniform(&run.received[2], "truncate at P2");
        }
    }
}

#[test]
fn extension_is_exact_over_its_whole_range() {
    for (len, from, to) in
        SIZES.map(|n| (n, 20, 32)).into_iter().chain([(20_000, 20, 33), (300, 25, 64), (9, 48, 64), (9, 32, 32)])
    {
        let values = ramp(len, -(1 << (from - 2)) + 1, (1 << (from - 2)) - 1);
        let x = share::<u64>(&values, &[len], from, 2);
        let run = World::default().run(|s| extend::extend::<u64, u64>(s, &x[s.party().index()], to));
        assert_eq!(reveal(&run.outputs), values, "{len} values from {from} to {to} bits");
        assert_eq!(run.cost, extend::cost(len, from, to));
        if len >= 20_000 {
            assert_uniform(&run.received[1], "extend at P1");
            assert_uniform(&run.received[2], "extend at P2");
        }
    }
    let narrow = ramp(100, -1000, 1000);
    let x = share::<u32>(&narrow, &[100], 20, 3);
    let run = World::default().run(|s| extend::extend::<u32, u64>(s, &x[s.party().index()], 52));
    assert_eq!(reveal(&run.outputs), narrow);
}

#[test]
fn products_are_exact() {
    let (batch, rows, inner, cols) = (3, 5, 17, 9);
    let x = ramp(batch * rows * inner, -70_000, 90_000);
    let y = ramp(batch * inner * cols, 40_000, -50_000);
    let (xs, ys) = (share::<u64>(&x, &[batch, rows, inner], 60, 4), share::<u64>(&y, &[batch, inner, cols], 60, 5));
    let run = World::default().run(|s| {
        let me = s.party().index();
        let y = Prepared::new(&ys[me]);
        linear::matrix_product(s, &xs[me], y.operand(), [batch, rows, inner, cols], 60)
    });
    let mut expected = Vec::new();
    for b in 0..batch {
        for r in 0..rows {
            for c in 0..cols {
                let at = |i: usize| x[(b * rows + r) * inner + i] * y[(b * inner + i) * cols + c];
                expected.push((0..inner).map(at).sum::<i64>());
            }
        }
    }
    assert_eq!(reveal_additive(&run.outputs, 60), expected);
    assert_eq!(run.cost, linear::cost(batch * rows * cols, 60));

    let (a, b) = (ramp(20_000, -3000, 3000), ramp(20_000, 900, -1000));
    let (xs, ys) = (share::<u32>(&a, &[500, 40], 32, 6), share::<u32>(&b, &[500, 40], 32, 7));
    let run = World::default().run(|s| linear::elementwise(s, &xs[s.party().index()], &ys[s.party().index()], 28));
    let expected: Vec<i64> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
    assert_eq!(reveal_additive(&run.outputs, 28), expected);
    assert_uniform(&run.received[1], "product at P1");
    assert_uniform(&run.received[2], "product at P2");
    let run = World::default().run(|s| linear::row_dot(s, &xs[s.party().index()], &ys[s.party().index()], 32));
    let sums: Vec<i64> = expected.chunks(40).map(|row| row.iter().sum()).collect();
    assert_eq!(reveal_additive(&run.outputs, 32), sums);
    assert_eq!(run.cost, linear::cost(500, 32));
}

#[test]
fn comparison_is_exact_at_and_around_every_threshold() {
    let thresholds = [-4096, 0, 1, 4095, 200_000];
    for len in SIZES.into_iter().chain([6_000]) {
        let mut values = ramp(len, -(1 << 18), (1 << 18) - 1);
        for (i, t) in thresholds.iter().enumerate() {
            for (j, around) in [-1, 0, 1].into_iter().enumerate() {
                if let Some(v) = values.get_mut(3 * i + j) {
                    *v = t + around;
                }
            }
        }
        let x = share::<u32>(&values, &[len], 20, 8);
        let run = World::default().run(|s| compare::at_least(s, &x[s.party().index()], 1, &thresholds));
        for (t, threshold) in thresholds.iter().enumerate() {
            let bits = reveal_bits(&[0, 1, 2].map(|p| run.outputs[p][t].clone()));
            let expected: Vec<bool> = values.iter().map(|v| v >= threshold).collect();
            assert_eq!(bits, expected, "{len} values against {threshold}");
        }
        assert_eq!(run.cost, compare::cost(len, 1, 20, thresholds.len()));
        if len >= 6_000 {
            assert_uniform(&run.received[1], "compare at P1");
            assert_uniform(&run.received[2], "compare at P2");
        }
    }
}

#[test]
fn selection_is_exact_and_groups_keep_apart() {
    for len in SIZES.into_iter().chain([5_000]) {
        let values = ramp(2 * len, -100_000, 90_001);
        let x = share::<u64>(&values, &[2 * len], 33, 9);
        let half = |m: &tercet_helper::Masked<u64>, from: usize| {
            m.each(33, |p| tercet_ring::Tensor::new([len], p.data()[from..from + len].to_vec()))
        };
        let run = World::default().run(|s| {
            let x = &x[s.party().index()];
            let flags = compare::at_least(s, x, 2, &[0])?;
            select::select(s, &flags[1], &half(x, len))
        });
        let expected: Vec<i64> = values[len..].iter().map(|&v| if v >= 0 { v } else { 0 }).collect();
        assert_eq!(reveal_additive(&run.outputs, 33), expected);
        assert_eq!(run.cost, compare::cost(2 * len, 2, 33, 1).and(select::cost(1, len, 33)));
    }
}

#[test]
fn nothing_costs_nothing() {
    let x = share::<u32>(&[], &[0], 20, 10);
    let run = World::default().run(|s| extend::extend::<u32, u32>(s, &x[s.party().index()], 20));
    assert_eq!(run.cost, Cost::NONE);
}
