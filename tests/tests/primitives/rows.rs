//! What works on rows: inverse powers, LayerNorm.

use tercet_core::spec::{InverseSpec, NormSpec};
use tercet_helper::{Masked, extend, inverse, mixed, norm, truncate};
use tercet_ring::Element;
use tercet_testkit::sharing::{reveal, share};
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

/// RMSNorm of the same rows: no mean taken off, no bias.
#[test]
fn rms_norm_matches_floating_point() {
    let rows = Rows::new(30);
    for (ring, frac_out) in [(20, 22), (32, 22)] {
        // The element's own scale: two powers of the width fewer than a centred row has in d and in v.
        let mut spec = NormSpec {
            centred: false,
            extended: 36,
            shift: 0,
            scaled_truncate: 8,
            scaled_ring: 22,
            square_shift: 2,
            v_shift: 4,
            inverse: InverseSpec::new(0.5, 10, 26, 6, 64, 26, frac_out),
            ..norm_spec(30)
        };
        spec.truncate = (spec.product_frac(WIDTH) - 10) as u32;
        let gain: Vec<i64> = rows
            .gains
            .iter()
            .map(|gain| (gain * NormSpec::gain_factor(WIDTH) * f64::from(1u32 << GAIN_FRAC)).round() as i64)
            .collect();
        let x = share::<u32>(&rows.x, &[30, WIDTH], ring, 15);
        let gain = share::<u64>(&gain, &[1, WIDTH], 64, 16);
        let run = World::default().run(|s| norm::rms_norm(s, &x[s.party().index()], &gain[s.party().index()], &spec));
        let (mut largest, mut sum) = (0.0f64, 0.0);
        for (got, x) in reveal(&run.outputs).chunks(WIDTH).zip(rows.x.chunks(WIDTH)) {
            let root = (x.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / WIDTH as f64).sqrt();
            for ((got, x), gain) in got.iter().zip(x).zip(&rows.gains) {
                let error = *got as f64 / 1024.0 - *x as f64 / root * gain;
                largest = largest.max(error.abs());
                sum += error;
            }
        }
        println!("RMSNorm from {ring} bits, {} bits of truncation: {largest:.4} at most", spec.truncate);
        assert!(largest < 0.012, "from {ring} bits: {largest}");
        assert!((sum / rows.x.len() as f64).abs() < 2e-4, "biased by {}", sum / rows.x.len() as f64);
        assert_eq!(run.cost, norm::cost(30, WIDTH, ring, &spec));
        assert_uniform(&run.received[1], "RMSNorm at P1");
        assert_uniform(&run.received[2], "RMSNorm at P2");
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
