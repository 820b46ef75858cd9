//! Steps of a small decoder through the suites: shares beside the twin, at the price that shapes alone foretell.

use std::any::Any;
use std::collections::BTreeMap;

use tercet_core::fit::Series;
use tercet_core::spec::{
    ActivationSpec, AttentionSpec, BoundSpec, CausalHeads, CausalSpec, GateSpec, GatedSpec, InverseSpec, LinearSpec,
    NormSpec, Numerics,
};
use tercet_core::{Cost, Error, Extent, Geometry, Layout, Result, Suite};
use tercet_helper::Masked;
use tercet_helper::cache::Cache;
use tercet_helper::linear::Prepared;
use tercet_helper::plane::Plane;
use tercet_helper::price::{Price, Shapes};
use tercet_helper::suite::{HelperSuite, Input, InputRows, Stored, Weights};
use tercet_plain::{PlainCache, PlainRows, PlainSuite, PlainWeight, PlainWeights};
use tercet_ring::{Element, Tensor};
use tercet_testkit::World;
use tercet_testkit::sharing::{reveal, share};

const WIDTH: usize = 16;
const FRAC: u32 = 10;
const NUMERICS: Numerics = Numerics { wide: 32, frac: FRAC };

/// One layer: positions, a norm, attention, a gated product, both on residuals.
fn layer<S: Suite>(suite: &mut S) -> Result<S::Tensor> {
    let linear = LinearSpec { weight_frac: 12, truncate: 12, ring: 20 };
    let x = suite.input()?;
    let x = suite.add_positions(&x, "positions")?;
    let normal = suite.rms_norm(&x, "gain", &norm())?;
    let qkv = suite.linear(&normal, "qkv", None, &linear)?;
    let heads = CausalHeads { heads: 4, kv_heads: 2, rotary: Some(vec![1.0, 0.01]), window: None, global: 0 };
    let attended = suite.causal_attention(&qkv, 0, &heads, &attention())?;
    let out = suite.linear(&attended, "out", Some("bias"), &linear)?;
    let x = suite.add(&x, &out, 20)?;
    let wide = suite.widen(&x)?;
    let pairs = suite.linear(&wide, "up", None, &linear)?;
    let gated = suite.gated(&pairs, &gated())?;
    let gated = suite.widen(&gated)?;
    let down = suite.linear(&gated, "down", None, &linear)?;
    let x = suite.add(&x, &down, 20)?;
    suite.last_row(&x)
}

fn norm() -> NormSpec {
    let mut spec = NormSpec {
        centred: false,
        extended: 36,
        shift: 0,
        gain_frac: 12,
        scaled_truncate: 8,
        scaled_ring: 22,
        square_shift: 2,
        epsilon: 1,
        v_shift: 2,
        inverse: InverseSpec::new(0.5, 8, 24, 8, 64, 26, 20),
        truncate: 0,
        ring: 32,
    };
    spec.truncate = (spec.product_frac(WIDTH) - i64::from(FRAC)) as u32;
    spec
}

fn attention() -> CausalSpec {
    let attention = AttentionSpec {
        score_ring: 18,
        exp_frac: 16,
        exp_top_bits: 3,
        exp_guard: (11, 28),
        exp_ring: 38,
        value_ring: 38,
        inverse: InverseSpec::new(1.0, 11, 24, 10, 64, 28, 36),
        normalize_ring: 56,
        ring: 32,
    };
    CausalSpec { attention, rotary_frac: 12, bound: BoundSpec { lowest: -16, step: 2, steps: 32 } }
}

fn gated() -> GatedSpec {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gate = GateSpec {
        series: Series::fit_even(|x| silu(x) - x / 2.0, 9.25, 5, 2, 6),
        edge: 9,
        compare_ring: 20,
        dealt_frac: 12,
        public_frac: 12,
        body_ring: 17,
        ring: 30,
    };
    GatedSpec { activation: ActivationSpec::Gate(gate), truncate: 10, ring: 20 }
}

/// Noise in `(-size, size)`.
fn noise(len: usize, size: f64, frac: u32, seed: u64) -> Vec<i64> {
    let value = |i: u64| {
        let mixed = (i + 1 + (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len as u64).map(|i| (value(i) * size * f64::from(frac).exp2()).round() as i64).collect()
}

/// The weights in the clear.
struct Clear(BTreeMap<&'static str, PlainWeight>);

impl Clear {
    fn new() -> Clear {
        let weight = |rows: usize, cols: usize, size: f64, frac: u32, seed: u64| {
            let values = noise(rows * cols, size, frac, seed);
            PlainWeight { rows, cols, values }
        };
        let mut gain = weight(1, WIDTH, 0.3, 12, 2);
        gain.values.iter_mut().for_each(|v| *v = ((*v + 4096) as f64 * NormSpec::gain_factor(WIDTH)).round() as i64);
        Clear(BTreeMap::from([
            ("positions", weight(40, WIDTH, 0.5, FRAC, 1)),
            ("gain", gain),
            ("qkv", weight(WIDTH, 32, 0.8, 12, 3)),
            ("out", weight(WIDTH, WIDTH, 0.4, 12, 4)),
            ("bias", weight(1, WIDTH, 0.4, 22, 5)),
            ("up", weight(WIDTH, 48, 0.25, 12, 6)),
            ("down", weight(24, WIDTH, 0.3, 12, 7)),
        ]))
    }
}

impl PlainWeights for Clear {
    fn weight(&self, name: &str) -> Result<&PlainWeight> {
        self.0.get(name).ok_or_else(|| Error::Misuse(name.into()))
    }
}

impl Shapes for Clear {
    fn shape_of(&self, name: &str) -> Result<(usize, usize)> {
        self.weight(name).map(|weight| (weight.rows, weight.cols))
    }

    fn is_public(&self, _: &str) -> Result<bool> {
        Ok(false)
    }
}

/// One party's part of them.
#[derive(Default)]
struct Held {
    narrow: BTreeMap<&'static str, ([usize; 2], [Vec<u32>; 2])>,
    wide: BTreeMap<&'static str, ([usize; 2], [Vec<u64>; 2])>,
}

impl Weights for Held {
    fn stored<E: Element>(&self, name: &str) -> Result<Stored<'_, E>> {
        let maps: [&dyn Any; 2] = [&self.narrow, &self.wide];
        let map = maps.iter().find_map(|map| map.downcast_ref::<BTreeMap<&'static str, ([usize; 2], [Vec<E>; 2])>>());
        let kept = map.and_then(|map| map.get(name)).ok_or_else(|| Error::Misuse(name.into()))?;
        let ([rows, cols], planes) = kept;
        Ok(Stored {
            rows: *rows,
            cols: *cols,
            ring: E::BITS,
            public: false,
            planes: planes.each_ref().map(|plane| Plane::Held(plane)),
        })
    }
}

fn held(clear: &Clear) -> [Held; 3] {
    let mut held: [Held; 3] = Default::default();
    for (seed, (&name, PlainWeight { rows, cols, values })) in clear.0.iter().enumerate() {
        let shape = [*rows, *cols];
        if name == "gain" {
            for (held, view) in held.iter_mut().zip(share::<u64>(values, &shape, 64, seed as u64)) {
                held.wide.insert(name, (shape, view.planes().clone().map(Tensor::into_data)));
            }
            continue;
        }
        for (held, view) in held.iter_mut().zip(share::<u32>(values, &shape, 32, seed as u64)) {
            let planes = match name {
                "positions" | "bias" => view.planes().clone().map(Tensor::into_data),
                _ => Prepared::new(&view).into_planes(),
            };
            held.narrow.insert(name, (shape, planes));
        }
    }
    held
}

fn rows_of(layout: &Layout, seed: u64) -> Vec<i64> {
    noise(layout.rows() * WIDTH, 2.0, FRAC, seed)
}

#[test]
fn a_layer_on_shares_follows_its_twin_at_its_price() {
    let extents = |list: &[(usize, usize)]| list.iter().map(|&(past, rows)| Extent { past, rows }).collect();
    let layout = |list: &[(usize, usize)], every_row| Layout { sequences: extents(list), every_row };
    let layouts =
        [layout(&[(0, 33), (0, 2)], true), layout(&[(33, 1), (2, 1)], false), layout(&[(34, 3), (3, 1)], false)];
    let (clear, mut caches) = (Clear::new(), [PlainCache::new(1), PlainCache::new(1)]);
    let held = held(&clear);
    let twin: Vec<Vec<i64>> = layouts
        .iter()
        .zip(100..)
        .map(|(layout, seed)| {
            let rows = PlainRows::Matrix(rows_of(layout, seed));
            let mut suite = PlainSuite::step(&clear, rows, layout, caches.iter_mut().collect(), NUMERICS).unwrap();
            layer(&mut suite).unwrap().data().to_vec()
        })
        .collect();
    let inputs: Vec<[Masked<u32>; 3]> = layouts
        .iter()
        .zip(100..)
        .map(|(layout, seed)| share(&rows_of(layout, seed), &[layout.rows(), WIDTH], 32, seed))
        .collect();
    let run = World::default().run(|s| {
        let me = s.party();
        let mut caches = [Cache::new(me, 1), Cache::new(me, 1)];
        let mut outputs = Vec::new();
        for (layout, input) in layouts.iter().zip(&inputs) {
            let rows = InputRows::Matrix(input[me.index()].clone());
            let caches = caches.iter_mut().collect();
            let mut suite = HelperSuite::step(s, &held[me.index()], rows, layout, caches, NUMERICS)?;
            outputs.push(layer(&mut suite)?);
        }
        Ok(outputs)
    });
    let prices: Vec<Cost> = layouts
        .iter()
        .map(|layout| {
            let mut price = Price::step(&clear, layout, NUMERICS, Some(WIDTH));
            layer(&mut price).unwrap();
            price.total()
        })
        .collect();
    assert_eq!(run.cost, prices.iter().copied().fold(Cost::NONE, Cost::then));
    assert!(prices.iter().all(|price| price.rounds == prices[0].rounds), "rounds whatever the step");
    for (step, twin) in twin.iter().enumerate() {
        assert_eq!(twin.len(), layouts[step].outputs() * WIDTH);
        let got = reveal(&[0, 1, 2].map(|party: usize| run.outputs[party][step].clone()));
        let errors: Vec<f64> = got.iter().zip(twin).map(|(got, twin)| (got - twin).abs() as f64).collect();
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let rms = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
        println!("step {step}: {worst} units at most, {rms:.1} rms");
        // Beside the spread of all elements, the tail of the farthest of them.
        assert!(worst < 90.0 && rms < 15.0, "step {step}: {worst} units at most, {rms} rms");
    }
}

#[test]
fn steps_and_padded_inputs_are_not_taken_for_each_other() {
    let (clear, layout) = (Clear::new(), Layout::decode(&[5]));
    let held = held(&clear);
    let x = share::<u32>(&[0; WIDTH], &[1, WIDTH], 32, 1);
    let run = World::default().run(|s| {
        let me = s.party();
        let input = || InputRows::Matrix(x[me.index()].clone());
        let weights = &held[me.index()];
        let mut cache = Cache::new(me, 1);
        let early = HelperSuite::step(s, weights, input(), &layout, vec![&mut cache], NUMERICS).err().is_some();
        let start = Layout::prefill(1);
        let mut suite = HelperSuite::step(s, weights, input(), &start, vec![&mut cache], NUMERICS)?;
        let x = suite.input()?;
        let in_step = [suite.sum_rows(&x, 1).is_err(), suite.add_positions(&x, "qkv").is_err()];
        let column = |ring| Masked::<u32>::public(me, ring, Tensor::zeros([1, 1]));
        let padded = Input { rows: input(), key_bias: column(20), row_weight: column(32) };
        let mut suite = HelperSuite::new(s, weights, padded, Geometry { batch: 1, rows: 1 }, NUMERICS);
        let padded = [suite.last_row(&x).is_err(), suite.add_positions(&x, "positions").is_err()];
        Ok((early, in_step, padded))
    });
    assert!(run.outputs.iter().all(|found| *found == (true, [true; 2], [true; 2])));
}
