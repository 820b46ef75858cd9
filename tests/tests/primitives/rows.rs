//! What works on rows: inverse powers, LayerNorm, lookup.

use tercet_core::spec::{InverseSpec, NormSpec};
use tercet_helper::lookup::{self, Keys};
use tercet_helper::{extend, inverse, norm};
use tercet_ring::{Seed, dpf};
use tercet_testkit::World;
use tercet_testkit::sharing::{reveal, share};

#[test]
fn inverse_powers_hold_their_relative_error() {
    for (power, low, high, per_octave, ring, ring_out, frac_out, bound) in [
        (0.5, 12, 34, 5, 56, 26, 30, 1.2e-3),
        (1.0, 11, 20, 8, 64, 52, 32, 2.5e-3),
        (0.5, 14, 34, 16, 60, 30, 34, 2e-4),
    ] {
        let spec = InverseSpec::new(power, low, high, per_octave, ring, ring_out, frac_out);
        let count = 1_500;
        let values: Vec<i64> = (0..count)
            .map(|i| (f64::from(low) + f64::from(high - low) * f64::from(i) / f64::from(count)).exp2() as i64)
            .collect();
        let v = share::<u64>(&values, &[values.len()], ring, 14);
        let run = World::default().run(|s| {
            let v = &v[s.party().index()];
            let root = inverse::post(s, v, &spec)?.next(s)?.next(s, v, &spec)?.finish::<u64>(s)?;
            extend::extend::<u64, u64>(s, &root, 62)
        });
        let unit = f64::from(frac_out).exp2();
        for (got, v) in reveal(&run.outputs).iter().zip(&values) {
            let exact = (*v as f64).powf(-power);
            let error = (*got as f64 / unit - exact).abs();
            assert!(error < bound * exact + 2.0 / unit, "{v}: {} for {exact}", *got as f64 / unit);
        }
        assert_eq!(run.cost, inverse::cost(values.len(), &spec).then(extend::cost(values.len(), ring_out, 62)));
    }
}

#[test]
fn layer_norm_matches_floating_point() {
    let (rows, width, frac) = (30, 384, 10);
    let value = |r: usize, c: usize| {
        let spread = 0.2 * f64::from(r as u32 + 1);
        ((r * 31 + c * 17) % 101) as f64 / 50.0 * spread - spread + 0.3
    };
    let x: Vec<i64> = (0..rows * width).map(|i| (value(i / width, i % width) * 1024.0).round() as i64).collect();
    let gains: Vec<f64> = (0..width).map(|c| 0.5 + c as f64 / width as f64).collect();
    let biases: Vec<f64> = (0..width).map(|c| (c % 7) as f64 / 10.0 - 0.3).collect();
    let (unit_frac, gain_frac) = (16, 10);
    let root = (width as f64).sqrt();
    let gain: Vec<i64> = gains.iter().map(|g| (g * root * f64::from(1u32 << gain_frac)).round() as i64).collect();
    let bias: Vec<i64> =
        biases.iter().map(|b| (b * f64::from(1u32 << (unit_frac + gain_frac))).round() as i64).collect();
    // d at scale 12 or so; v up to 2^42, shifted to 2^34; root at scale 32 of v.
    let spec = NormSpec {
        shift: 7,
        epsilon: 1,
        v_shift: 8,
        inverse: InverseSpec::new(0.5, 12, 34, 5, 56, 26, 28),
        unit_truncate: 32 - unit_frac,
        unit_ring: 48,
        unit_frac,
        gain_frac,
        truncate: 16,
        ring: 32,
    };
    let x_views = share::<u32>(&x, &[rows, width], 32, 15);
    let (gain, bias) = (share::<u64>(&gain, &[1, width], 64, 16), share::<u64>(&bias, &[1, width], 64, 17));
    let run = World::default().run(|s| {
        let me = s.party().index();
        norm::layer_norm(s, &x_views[me], &gain[me], &bias[me], &spec)
    });
    let got = reveal(&run.outputs);
    for r in 0..rows {
        let row: Vec<f64> = x[r * width..(r + 1) * width].iter().map(|&v| v as f64 / f64::from(1u32 << frac)).collect();
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
        for c in 0..width {
            let exact = (row[c] - mean) / variance.sqrt() * gains[c] + biases[c];
            let error = (got[r * width + c] as f64 / 1024.0 - exact).abs();
            assert!(error < 0.012, "row {r}: {error}");
        }
    }
    assert_eq!(run.cost, norm::cost(rows, width, 32, &spec));
    assert_eq!(run.cost.rounds, 8);
}

#[test]
fn lookup_finds_the_rows() {
    let (rows, width) = (300, 24);
    let values: Vec<i64> = (0..rows * width).map(|i| (i as i64 * 7919) % 4001 - 2000).collect();
    let table = share::<u32>(&values, &[rows, width], 32, 18);
    let wanted = [0usize, 299, 17, 17, 255, 256];
    let pair = |i: usize| dpf::generate::<u32>(&Seed::random(), 9, i, 32);
    // Component by component: m between P1 and P2, l1 between P0 and P1, l2 between P0 and P2.
    let mut keys: [[Vec<dpf::Key>; 2]; 3] = Default::default();
    for &i in &wanted {
        for (first, second) in [((1, 0), (2, 0)), ((0, 0), (1, 1)), ((0, 1), (2, 1))] {
            let (a, b) = pair(i);
            keys[first.0][first.1].push(a);
            keys[second.0][second.1].push(b);
        }
    }
    let keys = keys.map(|planes| Keys { planes });
    let run = World::default().run(|s| {
        let me = s.party().index();
        lookup::lookup(s, lookup::planes(&table[me]), [rows, width], &keys[me], 32)
    });
    let expected: Vec<i64> = wanted.iter().flat_map(|&i| values[i * width..(i + 1) * width].to_vec()).collect();
    assert_eq!(reveal(&run.outputs), expected);
    assert_eq!(run.cost, lookup::cost(wanted.len(), width, 32));
}
