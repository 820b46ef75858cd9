//! Causal attention over a cache: against floating point and the twin, step by step, beside others, at its declared cost.

use tercet_core::spec::{AttentionSpec, BoundSpec, CausalHeads, CausalSpec, InverseSpec, Numerics};
use tercet_core::{Cost, Extent, Layout, Suite};
use tercet_helper::cache::{self, Cache};
use tercet_helper::ragged::Ragged;
use tercet_helper::{Masked, bound, causal, rotary};
use tercet_net::PartyId;
use tercet_plain::{PlainCache, PlainRows, PlainSuite, PlainWeight, PlainWeights, Value};
use tercet_ring::Element;
use tercet_testkit::sharing::{reveal, share};
use tercet_testkit::uniformity::assert_uniform;
use tercet_testkit::{Run, World};

/// Pseudorandom and fixed: uniform in `[-1, 1)`.
fn noise(i: usize) -> f64 {
    let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// The numbers of a profile for contexts up to `longest` and values up to 8.
struct Numbers {
    frac: u32,
    /// Ring of queries, keys and values.
    ring: u32,
    wide: u32,
    spec: CausalSpec,
}

fn fast(longest: usize) -> Numbers {
    let octaves = (longest as f64).log2().ceil() as u32;
    // Steps of two units: four bits of the exponentials at most are lost.
    let (frac, exp_frac, scale) = (10, 16, 24);
    let attention = AttentionSpec {
        score_ring: 18,
        exp_frac,
        exp_top_bits: 3,
        exp_guard: (11, 28),
        exp_ring: exp_frac + frac + 2 + octaves + 3,
        value_ring: exp_frac + frac + 2 + octaves + 3,
        inverse: InverseSpec::new(1.0, exp_frac - 5, exp_frac + octaves + 1, 10, 64, scale + 4, exp_frac - 4 + scale),
        normalize_ring: 32 + scale,
        ring: 32,
    };
    let bound = BoundSpec { lowest: -16, step: 2, steps: 32 };
    Numbers { frac, ring: 20, wide: 32, spec: CausalSpec { attention, rotary_frac: 12, bound } }
}

fn precise(longest: usize) -> Numbers {
    let octaves = (longest as f64).log2().ceil() as u32;
    // Steps of one unit: two bits.
    let (frac, exp_frac, scale) = (16, 18, 28);
    let attention = AttentionSpec {
        score_ring: 24,
        exp_frac,
        exp_top_bits: 3,
        exp_guard: (16, 33),
        exp_ring: exp_frac + 3,
        value_ring: exp_frac + frac + 2 + octaves + 3,
        inverse: InverseSpec::new(1.0, exp_frac - 3, exp_frac + octaves + 1, 24, 64, scale + 4, exp_frac - 2 + scale),
        normalize_ring: 36 + scale,
        ring: 36,
    };
    let bound = BoundSpec { lowest: -16, step: 1, steps: 64 };
    Numbers { frac, ring: 48, wide: 64, spec: CausalSpec { attention, rotary_frac: 20, bound } }
}

fn heads(heads: usize, kv_heads: usize) -> CausalHeads {
    CausalHeads { heads, kv_heads, rotary: None, window: None, global: 0 }
}

fn rotary_heads(heads: usize, kv_heads: usize, width: usize) -> CausalHeads {
    let rates = (0..width / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / width as f64)).collect();
    CausalHeads { rotary: Some(rates), ..self::heads(heads, kv_heads) }
}

/// Sequences of queries, keys and values, and what they are computed with.
struct Case {
    heads: CausalHeads,
    width: usize,
    numbers: Numbers,
    /// Row-major at scale `frac`: queries that give scores of some tens, values up to 4.
    sequences: Vec<Vec<i64>>,
}

impl Case {
    fn new(heads: CausalHeads, width: usize, numbers: Numbers, lengths: &[usize]) -> Case {
        let (columns, queries) = ((heads.heads + 2 * heads.kv_heads) * width, heads.heads * width);
        let unit = f64::from(numbers.frac).exp2();
        // Of a sequence of its own noise, in which every seventh key is one that all queries like.
        let element = |sequence: usize, i: usize| {
            let (row, column) = (i / columns, i % columns);
            let value = noise(sequence * 1_000_003 + i) * if column < queries { 4.0 } else { 2.0 };
            let liked = if row.is_multiple_of(7) && column >= queries { 0.7 } else { 0.0 };
            ((value + liked + if column < queries { 0.5 } else { 0.0 }) * unit).round() as i64
        };
        let sequences =
            lengths.iter().enumerate().map(|(s, length)| (0..length * columns).map(|i| element(s, i)).collect());
        Case { sequences: sequences.collect(), heads, width, numbers }
    }

    fn columns(&self) -> usize {
        (self.heads.heads + 2 * self.heads.kv_heads) * self.width
    }

    /// The rows of a layout whose sequence `i` is `self.sequences[which[i]]`.
    fn rows(&self, layout: &Layout, which: &[usize]) -> Vec<i64> {
        let rows = layout.sequences.iter().zip(which).flat_map(|(extent, &at)| {
            let columns = self.columns();
            &self.sequences[at][extent.past * columns..(extent.past + extent.rows) * columns]
        });
        rows.copied().collect()
    }

    /// The steps on shares: what came out of each, and the cost of all.
    fn run(&self, steps: &[(Layout, Vec<usize>)], world: &World) -> (Vec<Vec<i64>>, Run<()>) {
        match self.numbers.wide {
            32 => self.run_in::<u32>(steps, world),
            _ => self.run_in::<u64>(steps, world),
        }
    }

    fn run_in<E: Element>(&self, steps: &[(Layout, Vec<usize>)], world: &World) -> (Vec<Vec<i64>>, Run<()>) {
        let Numbers { frac, ring, ref spec, .. } = self.numbers;
        let inputs: Vec<[Masked<E>; 3]> = steps
            .iter()
            .enumerate()
            .map(|(i, (layout, which))| {
                share(&self.rows(layout, which), &[layout.rows(), self.columns()], ring, 30 + i as u64)
            })
            .collect();
        let run = world.run(|s| {
            let me = s.party();
            let mut caches: Vec<Cache> = self.sequences.iter().map(|_| Cache::new(me, 1)).collect();
            let mut outputs = Vec::new();
            for ((layout, which), input) in steps.iter().zip(&inputs) {
                let mut held: Vec<Option<&mut Cache>> = caches.iter_mut().map(Some).collect();
                let mut held: Vec<&mut Cache> = which.iter().map(|&i| held[i].take().expect("each once")).collect();
                let qkv = &input[me.index()];
                outputs.push(causal::attention(s, qkv, layout, &mut held, 0, &self.heads, frac, spec)?);
            }
            for (cache, sequence) in caches.iter().zip(&self.sequences) {
                let each = cache::bytes_per_position(me, &self.heads, self.width, frac, spec);
                let most = (sequence.len() / self.columns()).next_multiple_of(cache::PAGE) * each;
                assert!(if self.heads.window.is_none() { cache.bytes() == most } else { cache.bytes() <= most });
            }
            Ok(outputs)
        });
        let declared = steps.iter().map(|(layout, _)| causal::cost(layout, &self.heads, self.width, ring, frac, spec));
        assert_eq!(run.cost, declared.fold(Cost::NONE, Cost::then));
        let [mut a, mut b, mut c] = run.outputs.map(Vec::into_iter);
        let mut next = || Some([a.next()?, b.next()?, c.next()?]);
        let revealed = std::iter::from_fn(|| next().map(|views| reveal(&views))).collect();
        (revealed, Run { outputs: [(); 3], cost: run.cost, received: run.received })
    }

    /// The same on the twin.
    fn twin(&self, steps: &[(Layout, Vec<usize>)]) -> Vec<Vec<i64>> {
        let Numbers { frac, ring, wide, ref spec } = self.numbers;
        let mut caches = vec![PlainCache::new(1); self.sequences.len()];
        let step = |(layout, which): &(Layout, Vec<usize>)| {
            let mut held: Vec<Option<&mut PlainCache>> = caches.iter_mut().map(Some).collect();
            let held: Vec<&mut PlainCache> = which.iter().map(|&i| held[i].take().expect("each once")).collect();
            let qkv = Value::new(layout.rows(), self.columns(), ring, self.rows(layout, which));
            let rows = PlainRows::Matrix(vec![0; layout.rows()]);
            let mut suite = PlainSuite::step(&Nothing, rows, layout, held, Numerics { wide, frac }).unwrap();
            suite.causal_attention(&qkv, 0, &self.heads, spec).unwrap().data().to_vec()
        };
        steps.iter().map(step).collect()
    }

    /// Row `row` of a sequence in floating point, all heads.
    fn exact(&self, sequence: usize, row: usize) -> Vec<f64> {
        let (width, unit) = (self.width, f64::from(self.numbers.frac).exp2());
        let CausalHeads { heads, kv_heads, ref rotary, .. } = self.heads;
        let part = |row: usize, head: usize| -> Vec<f64> {
            let at = row * self.columns() + head * width;
            let x: Vec<f64> = self.sequences[sequence][at..at + width].iter().map(|&v| v as f64 / unit).collect();
            let Some(rates) = rotary.as_ref().filter(|_| head < heads + kv_heads) else { return x };
            let turned = |i: usize| {
                let (pair, angle) = (i % (width / 2), row as f64 * rates[i % (width / 2)]);
                let (a, b) = (x[pair], x[pair + width / 2]);
                if i < width / 2 { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() }
            };
            (0..width).map(turned).collect()
        };
        let head = |head: usize| {
            let (query, kv) = (part(row, head), head / (heads / kv_heads));
            let seen: Vec<usize> = self.heads.visible(row).into_iter().flatten().collect();
            let dot = |key: Vec<f64>| query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = seen.iter().map(|&key| dot(part(key, heads + kv))).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp2()).collect();
            let values: Vec<Vec<f64>> = seen.iter().map(|&key| part(key, heads + kv_heads + kv)).collect();
            let column = |c: usize| weights.iter().zip(&values).map(|(w, value)| w * value[c]).sum::<f64>();
            let sum: f64 = weights.iter().sum();
            (0..width).map(|c| column(c) / sum).collect::<Vec<f64>>()
        };
        (0..heads).flat_map(head).collect()
    }

    /// Largest error of steps against floating point.
    fn error(&self, steps: &[(Layout, Vec<usize>)], outputs: &[Vec<i64>]) -> f64 {
        let (unit, width) = (f64::from(self.numbers.frac).exp2(), self.heads.heads * self.width);
        let mut worst = 0.0f64;
        for ((layout, which), output) in steps.iter().zip(outputs) {
            let rows = layout.sequences.iter().zip(which);
            let rows =
                rows.flat_map(|(extent, &at)| (extent.past..extent.past + extent.rows).map(move |row| (at, row)));
            for ((sequence, row), output) in rows.zip(output.chunks(width)) {
                let exact = self.exact(sequence, row);
                let errors = output.iter().zip(exact).map(|(&got, exact)| (got as f64 / unit - exact).abs());
                worst = errors.fold(worst, f64::max);
            }
        }
        worst
    }
}

/// A suite's weights where it needs none.
struct Nothing;

impl PlainWeights for Nothing {
    fn weight(&self, name: &str) -> tercet_core::Result<&PlainWeight> {
        Err(tercet_core::Error::Misuse(name.into()))
    }
}

fn prefill(rows: usize) -> (Layout, Vec<usize>) {
    (Layout::prefill(rows), vec![0])
}

fn largest_difference(a: &[i64], b: &[i64]) -> i64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).max().unwrap_or(0)
}

#[test]
fn attention_matches_floating_point_and_the_twin() {
    for length in [1, 31, 32, 33, 65] {
        for (numbers, bound, near) in [(fast(1024), 0.02, 0.03), (precise(1024), 4e-4, 8e-4)] {
            let unit = f64::from(numbers.frac).exp2();
            let case = Case::new(heads(2, 2), 8, numbers, &[length]);
            let steps = [prefill(length)];
            let (got, _) = case.run(&steps, &World::default());
            let twin = case.twin(&steps);
            let errors = [case.error(&steps, &got), case.error(&steps, &twin)];
            println!("{length} rows at {unit}: {errors:?}");
            assert!(errors[0] < bound, "{length} rows: {errors:?}");
            assert!(errors[1] < bound, "{length} rows: {errors:?}");
            let apart = largest_difference(&got[0], &twin[0]) as f64 / unit;
            assert!(apart < near, "{length} rows: {apart}");
        }
    }
}
