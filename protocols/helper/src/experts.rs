//! Experts behind a public gate: each row goes through its own alone, and all three nodes know which those are.
//!
//! | step | |
//! | --- | --- |
//! | route | the weights of a row's experts, and which they are, opened ([`route::open`]) |
//! | up | the rows of each expert times its matrix, truncated |
//! | gated | `f(a) b` |
//! | down | the same, times the other matrix |
//! | combine | the sum over a row's experts of weight times result, dealt and truncated once |
//!
//! Rows are copied, put in the order of their experts and put back by what was opened: local, at all three alike. That a row is in two products
//! under one mask is as in any layer: a product's dealing is a fresh sharing of its own.
//!
//! *Error*: that of its steps. *Cost*: that of `top` experts, however rows are spread over them; in what travels the spread does not show.
//! *Security*: what [`route::open`] opens, and nothing beyond: the rest is built from other primitives, whose shapes it decides.

use tercet_core::spec::ExpertsSpec;
use tercet_core::{Cost, Error, Result, Session};
use tercet_ring::{Element, Tensor};

use crate::linear::{self, Operand, grouped_product, row_dot};
use crate::masked::Masked;
use crate::{extend, gated, route, truncate};

/// One of the matrices of every expert.
pub struct Matrices<'a, E> {
    /// Rows and columns of each.
    pub shape: [usize; 2],
    /// Whether one at least is secret.
    pub secret: bool,
    /// Their planes.
    pub operands: Vec<Operand<'a, E>>,
}

/// The shape of a mixture.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    /// Rows that come.
    pub rows: usize,
    /// Columns of a row.
    pub hidden: usize,
    /// Columns within an expert.
    pub inner: usize,
    /// How many experts there are.
    pub experts: usize,
    /// Whether matrices in and out are secret, of one expert at least.
    pub secret: [bool; 2],
}

/// The wire cost of a mixture.
pub fn cost(mixture: Mixture, frac: u32, spec: &ExpertsSpec) -> Cost {
    let Mixture { rows, hidden, inner, experts, secret } = mixture;
    let ExpertsSpec { route, up, gated, down, combine } = spec;
    let slots = rows * route.top.min(experts);
    let product = |secret: bool, len: usize, ring: u32| if secret { linear::cost(len, ring) } else { Cost::NONE };
    let (into, out) = (slots * 2 * inner, slots * hidden);
    let (down_ring, ring) = (down.ring + down.truncate, combine.ring + combine.truncate);
    route::open_cost(rows, experts, frac, route)
        .then(product(secret[0], into, up.ring + up.truncate).and(truncate::cost(into, up.truncate, up.ring)))
        .then(gated::cost(slots * inner, up.ring, frac, gated))
        .then(extend::cost(slots * inner, gated.ring, down_ring))
        .then(product(secret[1], out, down_ring).and(truncate::cost(out, down.truncate, down.ring)))
        .then(extend::cost(out, down.ring, ring).and(extend::cost(slots, route.softmax.ring, ring)))
        .then(linear::cost(rows * hidden, ring).and(truncate::cost(rows * hidden, combine.truncate, combine.ring)))
}

/// The rows of `x: [rows, hidden]` through those experts whose `scores: [rows, experts]` are the largest, weighed by them:
/// `[rows, hidden]` in `spec.combine.ring`. The matrices in are `[hidden, 2 * inner]`, those out `[inner, hidden]`.
///
/// # Errors
/// Those of [`route::open`]; matrices that do not fit the rows or are not as many as the scores; rings that do not hold a product.
pub fn experts<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    scores: &Masked<E>,
    [into, out]: [Matrices<'_, E>; 2],
    frac: u32,
    spec: &ExpertsSpec,
) -> Result<Masked<E>> {
    let ([rows, hidden], experts) = ([x.planes()[0].rows(), x.planes()[0].width()], scores.planes()[0].width());
    let [inner, back] = out.shape;
    let counts = [into.operands.len(), out.operands.len()];
    if into.shape != [hidden, 2 * inner]
        || back != hidden
        || counts != [experts; 2]
        || scores.planes()[0].rows() != rows
    {
        let found = format!("[{rows}, {hidden}] through {counts:?} experts of {:?} and {:?}", into.shape, out.shape);
        return Err(Error::Misuse(found));
    }
    let ExpertsSpec { route: weights, up, gated: gate, down, combine } = spec;
    let ring = combine.ring + combine.truncate;
    if x.ring() < up.ring + up.truncate || ring > u64::BITS {
        return Err(Error::Misuse(format!("experts that read {} bits and sum in {ring}", x.ring())));
    }
    s.scope("experts", |s| {
        let (weights, routing) = route::open(s, scores, frac, weights)?;
        let through = |s: &mut Session, x: &Masked<E>, matrices: &Matrices<'_, E>, ring: u32| {
            let groups: Vec<_> = routing.counts().iter().copied().zip(matrices.operands.iter().copied()).collect();
            grouped_product(s, x, &groups, matrices.shape, matrices.secret, ring)
        };
        let y = through(s, &x.rows_at(routing.rows()), &into, up.ring + up.truncate)?;
        let y: Masked<E> = truncate::truncate(s, y, up.truncate, up.ring)?;
        let y = gated::gated(s, &y, frac, gate)?;
        let y: Masked<E> = extend::extend(s, &y, down.ring + down.truncate)?;
        let y = through(s, &y, &out, down.ring + down.truncate)?;
        let y: Masked<E> = truncate::truncate(s, y, down.truncate, down.ring)?;

        let (y, weights) = (extend::post::<E, u64>(s, &y, ring)?, extend::post::<E, u64>(s, &weights, ring)?);
        let (y, weights) = (y.finish(s)?, weights.finish(s)?);
        let top = routing.slots().len() / rows.max(1);
        // Of every element of the result what its experts give, and their weights, side by side.
        let given = y.each(ring, |plane| side_by_side(plane, routing.slots(), top));
        let weights = weights.each(ring, |plane| repeated(plane, hidden, top));
        let z = row_dot(s, &given, &weights, ring)?.reshape([rows, hidden]);
        truncate::truncate(s, z, combine.truncate, combine.ring)
    })
}

/// `[rows * hidden, top]` from a row of `hidden` for every slot.
fn side_by_side(plane: &Tensor<u64>, slots: &[usize], top: usize) -> Tensor<u64> {
    let (hidden, all) = (plane.width(), plane.data());
    let of_row = |slots: &'_ [usize]| -> Vec<u64> {
        (0..hidden).flat_map(|column| slots.iter().map(move |slot| all[slot * hidden + column])).collect()
    };
    let data: Vec<u64> = slots.chunks(top.max(1)).flat_map(of_row).collect();
    Tensor::new([data.len() / top.max(1), top], data)
}

/// Every row of `top` weights `hidden` times over.
fn repeated(plane: &Tensor<u64>, hidden: usize, top: usize) -> Tensor<u64> {
    let data: Vec<u64> = plane.data().chunks(top.max(1)).flat_map(|row| row.repeat(hidden)).collect();
    Tensor::new([data.len() / top.max(1), top], data)
}
