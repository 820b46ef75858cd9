//! Weights that are public to the nodes, beside secret ones: the same results, and nothing dealt. And what the suite makes of the
//! primitives of a choice costs what it is priced at.

use std::any::Any;
use std::collections::BTreeMap;

use tercet_core::spec::{
    AttentionSpec, ChoiceSpec, InverseSpec, LinearSpec, LookupSpec, Numerics, RouteSpec, ScaleSpec,
};
use tercet_core::{Cost, Error, Geometry, Result, Suite};
use tercet_helper::linear::Prepared;
use tercet_helper::noise::Noise;
use tercet_helper::plane::Plane;
use tercet_helper::price::{Price, Shape, Shapes};
use tercet_helper::suite::{HelperSuite, Input, InputRows, Stored, Weights};
use tercet_helper::{Masked, linear};
use tercet_net::PartyId;
use tercet_ring::{Element, Tensor};
use tercet_testkit::sharing::{reveal, share};
use tercet_testkit::{Run, World};

const NUMERICS: Numerics = Numerics { wide: 32, frac: 10 };
const SPEC: LinearSpec = LinearSpec { weight_frac: 12, truncate: 12, ring: 20 };

/// One party's part of a tensor.
struct Held {
    rows: usize,
    cols: usize,
    public: bool,
    planes: [Vec<u32>; 2],
}

/// One party's part of some tensors.
#[derive(Default)]
struct Part(BTreeMap<&'static str, Held>);

impl Weights for Part {
    fn stored<E: Element>(&self, name: &str) -> Result<Stored<'_, E>> {
        let Held { rows, cols, public, planes } =
            self.0.get(name).ok_or_else(|| Error::Misuse(format!("no {name}")))?;
        let lanes = |plane| (plane as &dyn Any).downcast_ref::<Vec<E>>().map(Vec::as_slice);
        let planes = [&planes[0], &planes[1]].map(lanes);
        let [Some(a), Some(b)] = planes else { return Err(Error::Misuse(format!("{name} in other lanes"))) };
        Ok(Stored { rows: *rows, cols: *cols, ring: 32, public: *public, planes: [Plane::Held(a), Plane::Held(b)] })
    }
}

/// A tensor, public or secret; matrices are prepared for products, all else is not.
struct Owned {
    name: &'static str,
    shape: [usize; 2],
    values: Vec<i64>,
    matrix: bool,
    public: bool,
}

struct Owner {
    tensors: Vec<Owned>,
}

impl Owner {
    fn parts(&self) -> [Part; 3] {
        let mut parts = [(); 3].map(|()| Part::default());
        for (number, owned) in self.tensors.iter().enumerate() {
            let Owned { name, shape: [rows, cols], values, matrix, public } = owned;
            let clear: Vec<u32> = values.iter().map(|&v| u32::from_i64(v)).collect();
            for (part, shared) in parts.iter_mut().zip(share::<u32>(values, &[*rows, *cols], 32, 40 + number as u64)) {
                let planes = match (public, matrix) {
                    (true, _) => [clear.clone(), Vec::new()],
                    (false, true) => Prepared::new(&shared).into_planes(),
                    (false, false) => shared.planes().each_ref().map(|plane| plane.data().to_vec()),
                };
                part.0.insert(name, Held { rows: *rows, cols: *cols, public: *public, planes });
            }
        }
        parts
    }
}

impl Shapes for Owner {
    fn shape_of(&self, name: &str) -> Result<(usize, usize)> {
        let tensor = self.tensors.iter().find(|t| t.name == name);
        tensor.map(|t| (t.shape[0], t.shape[1])).ok_or_else(|| Error::Misuse(format!("no {name}")))
    }

    fn is_public(&self, name: &str) -> Result<bool> {
        Ok(self.tensors.iter().any(|t| t.name == name && t.public))
    }
}

fn value(i: usize) -> i64 {
    (i as i64 * 7919) % 4001 - 2000
}

fn owner([inner, cols]: [usize; 2], matrix: bool, bias: bool) -> Owner {
    let owned = |name, shape: [usize; 2], value: fn(usize) -> i64, matrix, public| {
        let values = (0..shape[0] * shape[1]).map(value).collect();
        Owned { name, shape, values, matrix, public }
    };
    let tensors = vec![
        owned("weight", [inner, cols], value, true, matrix),
        owned("bias", [1, cols], |i| value(i + 3) << 8, false, bias),
        owned("table", [inner, cols], |i| value(i + 9), false, matrix),
    ];
    Owner { tensors }
}

fn input(rows: InputRows<u32>, party: PartyId, count: usize) -> Input<u32> {
    let zeros = || Masked::public(party, 32, Tensor::zeros([1, count]));
    Input { rows, key_bias: zeros(), row_weight: zeros() }
}

fn run(
    owner: &Owner,
    rows: usize,
    work: impl for<'a> Fn(&mut HelperSuite<'a, u32, Part>, &Masked<u32>) -> Result<Masked<u32>> + Sync,
) -> Run<Masked<u32>> {
    let inner = owner.tensors[0].shape[0];
    let x = share::<u32>(&(0..rows * inner).map(|i| value(i) / 4).collect::<Vec<_>>(), &[rows, inner], 32, 50);
    let places = share::<u32>(&(0..rows as i64).map(|i| i % inner as i64).collect::<Vec<_>>(), &[rows, 1], 6, 51);
    let parts = owner.parts();
    World::default().run(|s| {
        let me = s.party();
        let rows = input(InputRows::Places(places[me.index()].clone()), me, rows);
        let geometry = Geometry { batch: 1, rows: places[0].len() };
        let noise =
            (0..geometry.rows).map(|row| (row == 1).then_some(Noise { temperature: 0.5, seed: None })).collect();
        let mut suite = HelperSuite::new(s, &parts[me.index()], rows, geometry, NUMERICS).with_noise(noise);
        work(&mut suite, &x[me.index()])
    })
}

fn price(owner: &Owner, rows: usize, work: impl Fn(&mut Price<'_, Owner>) -> Result<()>) -> Cost {
    let mut price = Price::new(owner, Geometry { batch: 1, rows }, NUMERICS, None).by_places(6).with_noise();
    work(&mut price).unwrap();
    price.total()
}

#[test]
fn a_public_weight_gives_the_same_and_costs_nothing_dealt() {
    for (rows, inner, cols) in [(1, 1, 1), (5, 33, 70), (40, 64, 17)] {
        let (x, exact) = (
            (0..rows * inner).map(|i| value(i) / 4).collect::<Vec<_>>(),
            |x: &[i64], weight: &[i64], r: usize, c: usize| -> i64 {
                (0..inner).map(|i| x[r * inner + i] * weight[i * cols + c]).sum()
            },
        );
        for bias in [None, Some("bias")] {
            let mut costs = Vec::new();
            for (public, public_bias) in [(false, false), (true, false), (false, true), (true, true)] {
                let owner = owner([inner, cols], public, public_bias);
                let run = run(&owner, rows, |suite, x| suite.linear(x, "weight", bias, &SPEC));
                let got = reveal(&run.outputs);
                for (i, got) in got.iter().enumerate() {
                    let added = if bias.is_some() { owner.tensors[1].values[i % cols] } else { 0 };
                    let sum = exact(&x, &owner.tensors[0].values, i / cols, i % cols) + added;
                    assert!((*got as f64 - sum as f64 / 4096.0).abs() <= 1.5, "{got} for {sum}");
                }
                let spent = price(&owner, rows, |price| {
                    let x = Shape { rows, cols: inner, ring: 32 };
                    price.linear(&x, "weight", bias, &SPEC).map(|_| ())
                });
                assert_eq!(run.cost, spent, "{rows} rows, public: {public}");
                assert_eq!(run.cost.dealt_bytes() == 0, public);
                costs.push(run.cost);
            }
            assert_eq!(costs[0], costs[1].and(linear::cost(rows * cols, 32)), "what a secret weight costs more");
            assert_eq!((costs[0], costs[1]), (costs[2], costs[3]), "a bias costs nothing either way");
        }
    }
}

#[test]
fn places_find_rows_of_public_and_secret_tables() {
    for public in [false, true] {
        let owner = owner([60, 11], public, false);
        let run = run(&owner, 7, |suite, _| suite.lookup("table", &LookupSpec { frac: 10 }));
        assert_eq!(reveal(&run.outputs), owner.tensors[2].values[..7 * 11]);
        let spent = price(&owner, 7, |price| price.lookup("table", &LookupSpec { frac: 10 }).map(|_| ()));
        assert_eq!(run.cost, spent);
    }
}

#[test]
fn public_rows_are_added_like_secret_ones() {
    for public in [false, true] {
        let owner = owner([8, 8], public, false);
        let run = run(&owner, 3, |suite, x| suite.add_rows(x, "table", 3));
        let expected: Vec<i64> = (0..24).map(|i| value(i) / 4 + owner.tensors[2].values[i]).collect();
        assert_eq!(reveal(&run.outputs), expected);
        assert_eq!(run.cost, Cost::NONE);
    }
}

/// What every suite does with a row of scores: weighs them as experts, scales them by that, and chooses one.
fn weigh_and_choose<S: Suite>(suite: &mut S, x: &S::Tensor) -> Result<S::Tensor> {
    let softmax = AttentionSpec {
        score_ring: 20,
        exp_frac: 12,
        exp_top_bits: 5,
        exp_guard: (11, 25),
        exp_ring: 32,
        value_ring: 32,
        inverse: InverseSpec::new(1.0, 11, 15, 10, 64, 24, 32),
        normalize_ring: 0,
        ring: 30,
    };
    let weights = suite.route(x, &RouteSpec { top: 3, softmax })?;
    let scaled = suite.scale_blocks(x, &weights, &ScaleSpec { truncate: 10, ring: 20 })?;
    suite.choose(&scaled, &ChoiceSpec { compare_frac: 10, compare_ring: 20, index_bits: 4 })
}

#[test]
fn a_choice_costs_what_it_is_priced_at() {
    let (rows, width) = (5, 12);
    let owner = owner([width, 4], false, false);
    let run = run(&owner, rows, |suite, x| weigh_and_choose(suite, x));
    let spent = price(&owner, rows, |price| {
        let place = weigh_and_choose(price, &Shape { rows, cols: width, ring: 32 })?;
        assert_eq!(place, Shape { rows, cols: 1, ring: 4 });
        Ok(())
    });
    assert_eq!(run.cost, spent);
    // Only the second row has noise.
    for (row, place) in reveal(&run.outputs).iter().enumerate().filter(|(row, _)| *row != 1) {
        let x: Vec<f64> = (0..width).map(|col| (value(row * width + col) / 4) as f64 / 1024.0).collect();
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
        let sum: f64 = order[..3].iter().map(|&col| x[col].exp2()).sum();
        let scaled = |col: usize| if order[..3].contains(&col) { x[col].exp2() / sum * x[col] } else { 0.0 };
        let (found, best) = (scaled((place & 15) as usize), (0..width).map(scaled).fold(f64::MIN, f64::max));
        assert!(found > best - 5e-3, "row {row}: {found} for {best}");
    }
}
