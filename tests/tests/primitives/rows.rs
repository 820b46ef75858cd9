//! What works on rows: inverse powers, LayerNorm, lookup.

use tercet_core::spec::{InverseSpec, NormSpec};
use tercet_helper::{Masked, extend, inverse, lookup, mixed, norm, truncate};
use tercet_ring::Element;
use tercet_testkit::sharing::{reveal, share, share_indices};
use tercet_testkit::uniformity::assert_uniform;
use tercet_testkit::{Run, World};

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

const WIDTH: usize = 384;
const GAIN_FRAC: u32 = 12;

/// For deviations from 1/8 to 7 of inputs at scale 10; the result at scale 10 in 32 bits. The root leaves in `ring_out` bits.
fn norm_spec(ring_out: u32) -> NormSpec {
    let mut spec = NormSpec {
        centred: true,
        extended: 46,
        shift: 6,
        gain_frac: GAIN_FRAC,
        scaled_truncate: 10,
        scaled_ring: 22,
        square_shift: 12,
        epsilon: 1,
        v_shift: 6,
        inverse: InverseSpec::new(0.5, 9, 24, 6, 64, ring_out, 22),
        truncate: 0,
        ring: 32,
    };
    spec.truncate = (spec.product_frac(WIDTH) - 10) as u32;
    spec
}

struct Rows {
    /// At scale 10.
    x: Vec<i64>,
    gains: Vec<f64>,
    biases: Vec<f64>,
}

impl Rows {
    fn new(rows: usize) -> Rows {
        let value = |r: usize, c: usize| {
            let spread = 0.2 * f64::from(r as u32 % 30 + 1);
            ((r * 31 + c * 17) % 101) as f64 / 50.0 * spread - spread + 0.3
        };
        Rows {
            x: (0..rows * WIDTH).map(|i| (value(i / WIDTH, i % WIDTH) * 1024.0).round() as i64).collect(),
            gains: (0..WIDTH).map(|c| 0.5 + c as f64 / WIDTH as f64).collect(),
            biases: (0..WIDTH).map(|c| (c % 7) as f64 / 10.0 - 0.3).collect(),
        }
    }

    fn run(&self, ring: u32, spec: &NormSpec) -> Run<Masked<u32>> {
        let encode = |values: &[f64], unit: f64| values.iter().map(|v| (v * unit).round() as i64).collect::<Vec<_>>();
        let gain = encode(&self.gains, NormSpec::gain_factor(WIDTH) * f64::from(1u32 << GAIN_FRAC));
        let bias = encode(&self.biases, f64::from(10 + spec.truncate).exp2());
        let x = share::<u32>(&self.x, &[self.x.len() / WIDTH, WIDTH], ring, 15);
        let (gain, bias) = (share::<u64>(&gain, &[1, WIDTH], 64, 16), share::<u64>(&bias, &[1, WIDTH], 64, 17));
        World::default().run(|s| {
            let me = s.party().index();
            norm::layer_norm(s, &x[me], &gain[me], &bias[me], spec)
        })
    }

    /// Largest and mean error of a result at scale 10.
    fn errors(&self, got: &[i64]) -> (f64, f64) {
        let rows = self.x.chunks(WIDTH).zip(got.chunks(WIDTH));
        let errors = rows.flat_map(|(x, got)| {
            let x: Vec<f64> = x.iter().map(|&v| v as f64 / 1024.0).collect();
            let mean = x.iter().sum::<f64>() / WIDTH as f64;
            let deviation = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / WIDTH as f64).sqrt();
            let exact = move |c: usize| (x[c] - mean) / deviation * self.gains[c] + self.biases[c];
            got.iter().enumerate().map(move |(c, &got)| got as f64 / 1024.0 - exact(c)).collect::<Vec<_>>()
        });
        let errors: Vec<f64> = errors.collect();
        let largest = errors.iter().fold(0.0, |m: f64, e| m.max(e.abs()));
        (largest, errors.iter().sum::<f64>() / errors.len() as f64)
    }
}

#[test]
fn layer_norm_matches_floating_point() {
    let rows = Rows::new(30);
    // Of a narrow and of a wide input; with a root that reaches the last product, and with one that is extended.
    for (ring, ring_out, rounds) in [(20, 46, 6), (32, 46, 6), (20, 30, 7), (23, 30, 7)] {
        let mut spec = norm_spec(ring_out);
        if ring_out == 46 {
            // Ten octaves of variance, so that slopes keep five bits beside the ring of the last product.
            spec.inverse = InverseSpec::new(0.5, 9, 20, 6, 64, spec.ring + spec.truncate, 22);
        }
        let run = rows.run(ring, &spec);
        let (largest, mean) = rows.errors(&reveal(&run.outputs));
        println!("from {ring} bits, {} bits of truncation: {largest:.4} at most, {mean:.6} in the mean", spec.truncate);
        assert!(largest < 0.012, "from {ring} bits: {largest}");
        assert!(mean.abs() < 2e-4, "from {ring} bits: biased by {mean}");
        assert_eq!(run.cost, norm::cost(30, WIDTH, ring, &spec));
        assert_eq!(run.cost.rounds, rounds);
    }
}

#[test]
fn layer_norm_shows_nothing() {
    // Of equal rows and of rows that differ.
    for rows in [Rows::new(24), Rows { x: vec![77; 24 * WIDTH], ..Rows::new(1) }] {
        let run = rows.run(20, &norm_spec(30));
        assert!(run.received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&run.received[1], "LayerNorm at P1");
        assert_uniform(&run.received[2], "LayerNorm at P2");
    }
}

#[test]
fn narrow_rows_times_wide_factors_are_exact() {
    for (narrow, wide, rows, width) in
        [(20, 47, 3, 700), (2, 64, 1, 2), (3, 5, 7, 1), (30, 31, 5, 129), (45, 64, 2, 300)]
    {
        // The least and the largest value that the narrow ring may hold, and all between.
        let most = 1i64 << (narrow - 2);
        let value = |i: usize| match i % 4 {
            0 => -most,
            1 => most - 1,
            _ => (i as i64).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64).rem_euclid(2 * most) - most,
        };
        let x: Vec<i64> = (0..rows * width).map(value).collect();
        let y: Vec<i64> =
            (0..rows).map(|r| ((r as u64 + 3).wrapping_mul(0xd1b5_4a32_d192_ed03)).signed(wide)).collect();
        let (xs, ys) = (share::<u64>(&x, &[rows, width], narrow, 19), share::<u64>(&y, &[rows, 1], wide, 20));
        let run = World::default().run(|s| {
            let me = s.party().index();
            let z = mixed::scale_rows(s, &xs[me], &ys[me])?;
            truncate::remask::<u64, u64>(s, z, wide)
        });
        let product = |(i, x): (usize, &i64)| (x.wrapping_mul(y[i / width]) as u64).signed(wide);
        let expected: Vec<i64> = x.iter().enumerate().map(product).collect();
        assert_eq!(reveal(&run.outputs), expected, "{narrow} by {wide} bits");
        let len = rows * width;
        assert_eq!(run.cost, mixed::cost(len, narrow, wide).then(truncate::cost(len, 0, wide)));
        if len > 2000 {
            assert_uniform(&run.received[1], "mixed product at P1");
            assert_uniform(&run.received[2], "mixed product at P2");
        }
    }
}

fn find<E: Element>(rows: usize, width: usize, wanted: &[usize], ring: u32) -> Run<Masked<E>> {
    let values: Vec<i64> = (0..rows * width).map(|i| (i as i64 * 7919) % 4001 - 2000).collect();
    let table = share::<E>(&values, &[rows, width], ring, 18);
    let domain_bits = rows.next_power_of_two().trailing_zeros();
    let keys = share_indices::<E>(domain_bits, wanted, ring, 19);
    let run = World::with_threads(2).run(|s| {
        let me = s.party().index();
        lookup::lookup(s, lookup::planes(&table[me]), [rows, width], &keys[me], ring)
    });
    let expected: Vec<i64> = wanted.iter().flat_map(|&i| values[i * width..(i + 1) * width].to_vec()).collect();
    assert_eq!(reveal(&run.outputs), expected, "{wanted:?} of {rows}");
    assert_eq!(run.cost, lookup::cost(wanted.len(), width, ring));
    run
}

#[test]
fn lookup_finds_the_rows() {
    // Signs are drawn anew every time: eight of each pair meet all four cases as good as always.
    for rows in [1, 2, 63, 300] {
        let last = rows - 1;
        find::<u32>(rows, 24, &[0, last, last / 2, last / 2, last, last.min(255), last.min(256), 0], 32);
        find::<u64>(rows, 5, &[0, last, last / 3, 0, last, last.min(64), last.min(127), last.min(128)], 64);
    }
    assert_eq!(find::<u64>(77, 9, &[76], 48).cost.rounds, 2);
}

/// The same row many times over: whatever the keys, what an evaluator receives does not show it.
#[test]
fn what_a_lookup_sends_is_uniform() {
    let run = find::<u32>(70, 48, &[69; 256], 32);
    assert!(run.received[0].is_empty(), "the helper receives nothing");
    assert_uniform(&run.received[1], "lookup at P1");
    assert_uniform(&run.received[2], "lookup at P2");
}
