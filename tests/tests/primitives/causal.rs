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
            for cache in &caches {
                let each = cache::bytes_per_position(me, &self.heads, self.width, frac, spec);
                let most = cache.len().next_multiple_of(cache::PAGE) * each;
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
        for (numbers, bound, near) in [(fast(1024), 0.01, 0.01), (precise(1024), 8e-4, 8e-4)] {
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

/// Sequences of these lengths, each with so many rows before and in the step.
fn step(rows: &[(usize, usize, usize)]) -> (Layout, Vec<usize>) {
    let extents = rows.iter().map(|&(_, past, rows)| Extent { past, rows });
    (Layout { sequences: extents.collect(), every_row: true }, rows.iter().map(|&(at, ..)| at).collect())
}

#[test]
fn a_prefill_and_steps_after_it_give_what_one_prefill_gives() {
    // A turn costs queries and keys a unit and a half of noise more.
    for (heads, bound) in [(heads(4, 4), 0.01), (rotary_heads(4, 2, 8), 0.02)] {
        let case = Case::new(heads, 8, fast(256), &[70]);
        let whole = [prefill(70)];
        // A few rows at a time, over the edges of pages and blocks.
        let steps: Vec<_> = [(0, 29), (29, 1), (30, 1), (31, 1), (32, 1), (33, 35), (68, 1), (69, 1)]
            .map(|(past, rows)| step(&[(0, past, rows)]))
            .into();
        assert_eq!(case.twin(&steps).concat(), case.twin(&whole).concat(), "the twin does not see how it is cut");
        let (got, _) = case.run(&steps, &World::with_threads(2));
        let (at_once, _) = case.run(&whole, &World::default());
        assert!(case.error(&steps, &got) < bound, "{}", case.error(&steps, &got));
        let apart = largest_difference(&got.concat(), &at_once.concat());
        assert!((apart as f64) < 1.5 * bound * 1024.0, "{apart} units apart");
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let case = Case::new(rotary_heads(2, 1, 4), 4, fast(256), &[40, 3, 65, 1]);
    let steps = [
        // Of the longest first, which is not the first.
        step(&[(2, 0, 50), (0, 0, 33), (1, 0, 1)]),
        step(&[(1, 1, 1), (2, 50, 1), (3, 0, 1)]),
        step(&[(0, 33, 7), (1, 2, 1), (2, 51, 14)]),
    ];
    let (got, twin) = (case.run(&steps, &World::default()).0, case.twin(&steps));
    assert!(case.error(&steps, &got) < 0.02, "{}", case.error(&steps, &got));
    for sequence in 0..4 {
        let length = case.sequences[sequence].len() / case.columns();
        let alone = case.twin(&[step(&[(sequence, 0, length)])]).concat();
        let width = case.heads.heads * case.width;
        for ((layout, which), output) in steps.iter().zip(&twin) {
            let mut first = 0;
            for (extent, &at) in layout.sequences.iter().zip(which) {
                if at == sequence {
                    let own = &output[first * width..(first + extent.rows) * width];
                    assert_eq!(own, &alone[extent.past * width..(extent.past + extent.rows) * width]);
                }
                first += extent.rows;
            }
        }
    }
}

#[test]
fn windows_and_global_positions_are_all_that_is_seen() {
    for (window, global) in [(1, 0), (5, 0), (33, 0), (7, 3), (40, 35), (300, 2)] {
        let heads = CausalHeads { window: Some(window), global, ..heads(2, 1) };
        let case = Case::new(heads, 4, fast(256), &[110, 20]);
        let mut steps = vec![step(&[(0, 0, 70), (1, 0, 9)])];
        steps.extend(
            (70..110)
                .map(|past| if past < 81 { step(&[(1, past - 61, 1), (0, past, 1)]) } else { step(&[(0, past, 1)]) }),
        );
        let (got, _) = case.run(&steps, &World::default());
        // What scores, exponentials, inverse and values may be off by together.
        assert!(case.error(&steps, &got) < 0.02, "{window} and {global}: {}", case.error(&steps, &got));
        let twin = case.twin(&steps);
        assert!(largest_difference(&got.concat(), &twin.concat()) < 12, "{window} and {global}");
    }
}

#[test]
fn groups_of_queries_share_keys_and_positions_turn_them() {
    for (heads, width, numbers, bound) in [
        (heads(6, 2), 6, fast(128), 0.01),
        (rotary_heads(6, 2, 10), 10, fast(128), 0.02),
        (rotary_heads(3, 1, 6), 6, precise(128), 1.2e-3),
    ] {
        let case = Case::new(heads, width, numbers, &[37]);
        let steps = [step(&[(0, 0, 35)]), step(&[(0, 35, 1)]), step(&[(0, 36, 1)])];
        let (got, twin) = (case.run(&steps, &World::default()).0, case.twin(&steps));
        let errors = [case.error(&steps, &got), case.error(&steps, &twin)];
        assert!(errors[0] < bound && errors[1] < bound, "{errors:?}");
    }
}

#[test]
fn turns_are_exact_to_a_unit_and_a_half() {
    let (rates, frac) = ([1.0, 0.1, 0.01], 12);
    let values: Vec<i64> = (0..40 * 12).map(|i| (noise(i) * 9000.0) as i64).collect();
    let x = share::<u64>(&values, &[40, 12], 40, 3);
    let run = World::default().run(|s| {
        let positions = (0..40).map(|row| row * 25);
        Ok(rotary::turn::<u32>(&x[s.party().index()], positions, &rates, frac))
    });
    let mut sum = 0.0;
    for (i, got) in reveal(&run.outputs).iter().enumerate() {
        let (row, head, column) = (i / 12, i / 6 % 2, i % 6);
        let angle = (row * 25) as f64 * rates[column % 3];
        let at = |column: usize| values[row * 12 + head * 6 + column] as f64;
        let (a, b) = (at(column % 3), at(column % 3 + 3));
        let exact = if column < 3 { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() };
        let error = *got as f64 - exact;
        assert!(error.abs() < 1.5 + 18_000.0 * 0.5 / 4096.0, "row {row}, column {column}: {error}");
        sum += error;
    }
    assert!((sum / 480.0).abs() < 0.15, "biased by {}", sum / 480.0);
    assert_eq!(run.cost, Cost::NONE);
}

/// Rows of many lengths, short and beyond the number of combinations, with maxima everywhere.
fn bounded(lengths: Vec<usize>, ring: u32, frac: u32, spec: BoundSpec) -> Run<Masked<u32>> {
    let rows = Ragged::new(lengths);
    let unit = f64::from(frac).exp2();
    let mut values = Vec::new();
    for (row, &length) in rows.lengths().iter().enumerate() {
        // As far above and below the lowest bound as the ring goes.
        let half = f64::from(1u32 << (ring - frac - 1));
        let (low, high) = (spec.lowest as f64 - half, spec.lowest as f64 + half - f64::from(spec.step));
        let (top, first) = (spec.lowest as f64 + noise(row) * half, values.len());
        values.extend((0..length).map(|i| {
            let below = if i == row % length { 0.0 } else { (noise(first + i) + 1.0) * half };
            ((top - below).clamp(low, high) * unit) as i64
        }));
    }
    let x = share::<u32>(&values, &[rows.len()], ring, 21);
    let run = World::default().run(|s| bound::above(s, &x[s.party().index()], &rows, frac, &spec));
    assert_eq!(run.cost, bound::cost(&rows, ring, frac, &spec));
    assert_eq!(run.cost.rounds, if spec.steps == 1 { 0 } else { 3 });
    let (step, mut rest) = (i64::from(spec.step) << frac, &values[..]);
    for (above, &length) in reveal(&run.outputs).iter().zip(rows.lengths()) {
        let row = rest.split_off(..length).expect("rows of these lengths");
        let largest = *row.iter().max().expect("a row has an element");
        let of = (above - (spec.lowest << frac)) / step;
        assert_eq!((above - (spec.lowest << frac)) % step, 0, "a whole number of steps");
        assert!((1..=i64::from(spec.steps)).contains(&of), "{of} steps");
        if largest < (spec.lowest + i64::from(spec.steps * spec.step)) << frac {
            assert!(largest < *above, "{largest} of {length} above {above}");
        } else {
            assert_eq!(of, i64::from(spec.steps));
        }
        if largest >= spec.lowest << frac {
            assert!(above - largest <= 2 * step, "{largest} of {length} below {above}");
        } else {
            assert_eq!(of.min(2), of, "nothing is reached but by a borrow");
        }
    }
    run
}

#[test]
fn a_bound_lies_within_two_steps_of_the_maximum() {
    let lengths = || (1..120).chain([200, 1, 47, 48, 49, 333, 1000]).collect::<Vec<_>>();
    for (ring, frac, lowest, step, steps) in [
        (18, 10, -16, 2, 32),
        (18, 10, -64, 2, 63),
        (24, 16, -100, 1, 120),
        (16, 10, 0, 4, 7),
        (18, 10, 5, 8, 1),
        (22, 10, -3, 1, 90),
    ] {
        bounded(lengths(), ring, frac, BoundSpec { lowest, step, steps });
    }
}

#[test]
fn a_bound_of_nonsense_is_refused() {
    let x = share::<u32>(&[5; 4], &[4], 18, 21);
    for (step, steps) in [(3, 4), (0, 4), (2, 0), (2, 64), (1024, 1)] {
        let spec = BoundSpec { lowest: 0, step, steps };
        let run = World::default().run(|s| {
            let refused = bound::above(s, &x[s.party().index()], &Ragged::new(vec![4]), 10, &spec);
            Ok(refused.err().map(|error| error.to_string()))
        });
        assert!(run.outputs.iter().all(|error| error.as_ref().is_some_and(|error| error.contains("18 bits"))));
    }
}

#[test]
fn what_a_bound_and_an_attention_send_is_uniform() {
    let run = bounded(vec![60; 40], 18, 10, BoundSpec { lowest: -16, step: 2, steps: 32 });
    let case = Case::new(rotary_heads(4, 2, 8), 8, fast(256), &[70]);
    let (_, attention) = case.run(&[step(&[(0, 0, 64)]), step(&[(0, 64, 1)])], &World::default());
    // Every row the same: whatever structure there is in the values shows.
    let mut equal = Case::new(heads(2, 2), 8, fast(256), &[64]);
    let row = equal.sequences[0][..equal.columns()].to_vec();
    equal.sequences = vec![row.repeat(64)];
    let (_, equal) = equal.run(&[prefill(64)], &World::default());
    for received in [run.received, attention.received, equal.received] {
        assert!(received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&received[1], "attention at P1");
        assert_uniform(&received[2], "attention at P2");
    }
}

#[test]
fn rounds_do_not_depend_on_the_context_and_bytes_are_linear_in_it() {
    let numbers = fast(1024);
    let of = |past: &[usize]| causal::cost(&Layout::decode(past), &heads(12, 12), 64, 20, 10, &numbers.spec);
    let (short, long, longer) = (of(&[31]), of(&[319]), of(&[607]));
    assert_eq!([short.rounds, long.rounds, of(&[5, 700, 33]).rounds], [13; 3]);
    assert_eq!(longer.total_bytes() - long.total_bytes(), of(&[895]).total_bytes() - longer.total_bytes());
    let rows = 12 * 288;
    let each = |bytes: fn(&Cost) -> u64| (bytes(&longer) - bytes(&long)) as f64 / rows as f64;
    println!("a visible score: {} bytes online, {} dealt", each(Cost::online_bytes), each(Cost::dealt_bytes));
    println!("at context 320: {} bytes online, {} dealt", long.online_bytes(), long.dealt_bytes());
    assert!(each(Cost::online_bytes) < 14.0 && each(Cost::dealt_bytes) < 60.0);

    let case = Case::new(heads(2, 2), 4, fast(1024), &[310]);
    let (_, run) = case.run(&[step(&[(0, 0, 10)]), step(&[(0, 10, 1)])], &World::default());
    let (_, other) = case.run(&[step(&[(0, 0, 300)]), step(&[(0, 300, 1)])], &World::default());
    assert_eq!((run.cost.rounds, other.cost.rounds), (26, 26));
}

#[test]
fn a_step_that_does_not_fit_its_caches_is_refused() {
    let (numbers, heads) = (fast(64), heads(2, 2));
    let refused = |layout: Layout, caches: usize, columns: usize| {
        let qkv = share::<u32>(&vec![1; layout.rows() * columns], &[layout.rows(), columns], 20, 3);
        let run = World::default().run(|s| {
            let mut caches: Vec<Cache> = (0..caches).map(|_| Cache::new(s.party(), 1)).collect();
            let mut caches: Vec<&mut Cache> = caches.iter_mut().collect();
            let qkv = &qkv[s.party().index()];
            let outcome = causal::attention(s, qkv, &layout, &mut caches, 0, &heads, 10, &numbers.spec);
            Ok(outcome.err().map(|error| error.to_string()))
        });
        run.outputs.into_iter().all(|error| error.is_some())
    };
    assert!(!refused(Layout::prefill(3), 1, 24), "six parts of four columns");
    assert!(refused(Layout::prefill(3), 1, 25), "no whole heads");
    assert!(refused(Layout::prefill(3), 2, 24), "two caches of one sequence");
    assert!(refused(Layout::decode(&[3]), 1, 24), "three positions that are not there");
    assert!(refused(Layout { sequences: Vec::new(), every_row: true }, 0, 24), "nothing to do");
}

#[test]
fn memory_is_declared_by_position() {
    let numbers = fast(1024);
    let bytes = |party| cache::bytes_per_position(party, &heads(12, 4), 64, numbers.frac, &numbers.spec);
    // Keys in 28 bits, values in 41.
    assert_eq!(PartyId::ALL.map(bytes), [2 * 4 * 64 * 12, 4 * 64 * 12, 2 * 4 * 64 * 12]);
}
