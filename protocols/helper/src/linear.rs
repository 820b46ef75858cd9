//! Products: matrix products with weights and between activations, elementwise products, and
//! row dot products. All local but for one dealt value an output.
//!
//! With `u = mx - lx1` and `v = my - ly1` (both known to P1), `x y = u v - mx ly2 - lx2 my + gamma` where
//! `gamma = lx1 ly2 + lx2 (ly1 + ly2) = (lx1 + lx2) ly2 + lx2 ly1` is known to P0, which deals it. P1 computes one product, P2 and
//! P0 two each. Masks of a weight need not be in memory: products draw them from their seed where they meet them ([`Plane`]).
//!
//! *Error*: none. *Cost*: no rounds, one dealt ring element an output. *Security*: an evaluator receives a half of a
//! fresh sharing.

use tercet_core::spec::LinearSpec;
use tercet_core::{Cost, Error, Result, Session, Work};
use tercet_net::PartyId;
use tercet_ring::{Element, Pool, Tensor, matmul};

use crate::masked::{Additive, Masked, zip};
use crate::plane::Plane;

/// The right-hand operand of a product as one party uses it: P0 `ly2, ly1`; P1 `my - ly1` (and nothing); P2 `ly2, my`.
#[derive(Clone, Copy)]
pub struct Operand<'a, E> {
    /// Row-major planes; the second is empty at P1.
    pub planes: [Plane<'a, E>; 2],
}

impl<'a, E: Element> Operand<'a, E> {
    /// Of a public matrix, which has no masks.
    pub fn public(party: PartyId, y: Plane<'a, E>) -> Operand<'a, E> {
        let none = Plane::Held(&[]);
        let planes = match party {
            PartyId::P0 => [none, none],
            PartyId::P1 => [y, none],
            PartyId::P2 => [none, y],
        };
        Operand { planes }
    }
}

/// The planes of [`Operand`] computed from a masked tensor.
pub struct Prepared<E> {
    planes: [Vec<E>; 2],
}

impl<E: Element> Prepared<E> {
    /// From a sharing.
    pub fn new(y: &Masked<E>) -> Prepared<E> {
        let (a, b) = (y.planes()[0].data(), y.planes()[1].data());
        let planes = match y.party() {
            PartyId::P0 | PartyId::P2 => [b.to_vec(), a.to_vec()],
            PartyId::P1 => [zip(a, b, E::sub), Vec::new()],
        };
        Prepared { planes }
    }

    /// The planes themselves; the second is empty at P1.
    pub(crate) fn planes(&self) -> &[Vec<E>; 2] {
        &self.planes
    }

    /// As they are, for whoever keeps them.
    pub fn into_planes(self) -> [Vec<E>; 2] {
        self.planes
    }

    /// As an operand.
    pub fn operand(&self) -> Operand<'_, E> {
        Operand { planes: self.planes.each_ref().map(|plane| Plane::Held(plane)) }
    }
}

/// The planes of a left operand as a party multiplies them with those of [`Operand`]: P0 `lx1 + lx2, lx2`; P1 `mx - lx1` (and nothing);
/// P2 `mx, lx2`.
pub(crate) fn left<E: Element>(party: PartyId, [first, second]: [Vec<E>; 2]) -> [Vec<E>; 2] {
    match party {
        PartyId::P0 => [zip(&first, &second, E::add), second],
        PartyId::P1 => [zip(&first, &second, E::sub), Vec::new()],
        PartyId::P2 => [first, second],
    }
}

/// The ring of the product of a linear layer by `weight`. An error where its input comes in a
/// smaller one.
pub(crate) fn check(weight: &str, ring: u32, spec: &LinearSpec) -> Result<u32> {
    let product = spec.ring + spec.truncate;
    if ring < product {
        return Err(Error::Misuse(format!("{weight} reads a ring of {product} bits, not of {ring}")));
    }
    Ok(product)
}

/// The wire cost of a product with `outputs` outputs in `Z_2^ring`.
pub fn cost(outputs: usize, ring: u32) -> Cost {
    Cost::deal(outputs, ring)
}

/// `x y` in `Z_2^ring`: `batch` products of `[rows, inner]` by `[inner, cols]`. The result has shape `[batch, rows, cols]`. Planes that
/// are drawn serve a batch of one.
pub fn matrix_product<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    y: Operand<'_, E>,
    [batch, rows, inner, cols]: [usize; 4],
    ring: u32,
) -> Result<Additive<E>> {
    assert_eq!(x.len(), batch * rows * inner, "left operand");
    assert!(ring <= x.ring(), "a product in a wider ring than its operand's");
    let [first, second] = x.planes().each_ref().map(Tensor::data);
    s.scope("product", |s| {
        let mut out = vec![E::ZERO; batch * rows * cols];
        s.timed(Work::Matmul, |s| {
            let (pool, dims) = (s.pool(), [batch, rows, inner, cols]);
            match s.party() {
                PartyId::P0 => multiply(pool, [&zip(first, second, E::add), second], y, dims, &mut out),
                PartyId::P1 => multiply(pool, [&zip(first, second, E::sub), &[]], y, dims, &mut out),
                PartyId::P2 => multiply(pool, [first, second], y, dims, &mut out),
            }
        });
        combine(s, Tensor::new([batch, rows, cols], out), ring)
    })
}

/// `x y` in `Z_2^ring` for `y: [inner, cols]` whose planes are those of [`Masked`], of which nothing is prepared: P1, too,
/// computes two products. The result has shape `[rows, cols]`.
pub fn table_product<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    [a, b]: [Plane<'_, E>; 2],
    [rows, inner, cols]: [usize; 3],
    ring: u32,
) -> Result<Additive<E>> {
    let shape = [1, rows, inner, cols];
    if s.party() != PartyId::P1 {
        return Ok(matrix_product(s, x, Operand { planes: [b, a] }, shape, ring)?.reshape([rows, cols]));
    }
    assert_eq!(x.len(), rows * inner, "left operand");
    assert!(ring <= x.ring(), "a product in a wider ring than its operand's");
    let [first, second] = x.planes().each_ref().map(Tensor::data);
    s.scope("product", |s| {
        let mut out = vec![E::ZERO; rows * cols];
        let (plain, negated) = (zip(first, second, E::sub), zip(second, first, E::sub));
        s.timed(Work::Matmul, |s| {
            multiply(s.pool(), [&plain, &negated], Operand { planes: [a, b] }, shape, &mut out);
        });
        combine(s, Tensor::new([rows, cols], out), ring)
    })
}

/// `x y` for a public `y: [inner, cols]`: each evaluator multiplies its half, the helper does nothing, and nothing is dealt.
pub fn public_product<E: Element>(
    s: &mut Session,
    x: &Additive<E>,
    y: Plane<'_, E>,
    [rows, inner, cols]: [usize; 3],
) -> Result<Additive<E>> {
    assert_eq!(x.len(), rows * inner, "left operand");
    s.scope("product", |s| {
        let mut out = Vec::new();
        if !s.is_helper() {
            out.resize(rows * cols, E::ZERO);
            let y = Operand { planes: [y, Plane::Held(&[])] };
            s.timed(Work::Matmul, |s| multiply(s.pool(), [x.half(), &[]], y, [1, rows, inner, cols], &mut out));
        }
        Ok(Additive::new(s.party(), [rows, cols], out))
    })
}

/// `x y` in `Z_2^ring` where each group of consecutive rows of `x: [.., inner]` has a `y: [inner, cols]` of its own: how many rows, and
/// which. Costs what one product with as many outputs does, however they are grouped; nothing where no matrix is secret.
pub fn grouped_product<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    groups: &[(usize, Operand<'_, E>)],
    [inner, cols]: [usize; 2],
    secret: bool,
    ring: u32,
) -> Result<Additive<E>> {
    let rows: usize = groups.iter().map(|(rows, _)| rows).sum();
    assert_eq!(x.len(), rows * inner, "left operand");
    assert!(ring <= x.ring(), "a product in a wider ring than its operand's");
    s.scope("product", |s| {
        let x = left(s.party(), x.planes().each_ref().map(|plane| plane.data().to_vec()));
        let mut out = vec![E::ZERO; rows * cols];
        s.timed(Work::Matmul, |s| {
            let mut first = 0;
            for &(rows, y) in groups.iter().filter(|(rows, _)| *rows > 0) {
                // P1 has no second plane.
                let part = |plane: &'_ Vec<E>| first * inner..((first + rows) * inner).min(plane.len());
                let x = x.each_ref().map(|plane| plane.get(part(plane)).unwrap_or_default());
                multiply(s.pool(), x, y, [1, rows, inner, cols], &mut out[first * cols..(first + rows) * cols]);
                first += rows;
            }
        });
        if secret {
            return combine(s, Tensor::new([rows, cols], out), ring);
        }
        let half = match s.party() {
            PartyId::P0 => Vec::new(),
            PartyId::P1 => out,
            PartyId::P2 => out.into_iter().map(|v| E::ZERO.sub(v)).collect(),
        };
        Ok(Additive::new(s.party(), [rows, cols], half))
    })
}

/// Adds what a party computes of a product by itself to `out`, from the planes of [`left`]: P0 `gamma`, P1 `u v`, P2
/// `mx ly2 + lx2 my`.
pub(crate) fn multiply<E: Element>(
    pool: &Pool,
    x: [&[E]; 2],
    y: Operand<'_, E>,
    [batch, rows, inner, cols]: [usize; 4],
    out: &mut [E],
) {
    for (x, y) in x.into_iter().zip(y.planes) {
        match y {
            Plane::Held([]) => {}
            Plane::Held(y) => matmul::batched_matmul(pool, batch, x, y, out, rows, inner, cols, true),
            Plane::Drawn(masks) => {
                assert_eq!(batch, 1, "masks that are drawn are one matrix");
                let make = |row: usize, column: usize, out: &mut [E]| masks.fill(row * cols + column, out);
                matmul::matmul_generated(pool, x, make, out, [rows, inner, cols], true);
            }
        }
    }
}

/// `x y` element by element in `Z_2^ring`; equal shapes.
pub fn elementwise<E: Element>(s: &mut Session, x: &Masked<E>, y: &Masked<E>, ring: u32) -> Result<Additive<E>> {
    s.scope("product", |s| {
        let local = elementwise_local(x, y);
        combine(s, local, ring)
    })
}

/// The sum over the last dimension of `x y`, in `Z_2^ring`; equal shapes.
pub fn row_dot<E: Element>(s: &mut Session, x: &Masked<E>, y: &Masked<E>, ring: u32) -> Result<Additive<E>> {
    s.scope("product", |s| {
        let local = elementwise_local(x, y).sum_rows();
        combine(s, local, ring)
    })
}

/// P0: `gamma`. P1: `u v`. P2: `mx ly2 + lx2 my`.
fn elementwise_local<E: Element>(x: &Masked<E>, y: &Masked<E>) -> Tensor<E> {
    assert_eq!(x.shape(), y.shape(), "shapes differ");
    let (x1, x2) = (x.planes()[0].data(), x.planes()[1].data());
    let (y1, y2) = (y.planes()[0].data(), y.planes()[1].data());
    let mut data = vec![E::ZERO; x1.len()];
    let party = x.party();
    tercet_ring::simd::run!(|| {
        let all = data.iter_mut().zip(x1.iter().zip(x2)).zip(y1.iter().zip(y2));
        match party {
            PartyId::P0 => all.for_each(|((z, (&a, &b)), (&c, &d))| *z = a.mul(d).add(b.mul(c.add(d)))),
            PartyId::P1 => all.for_each(|((z, (&a, &b)), (&c, &d))| *z = a.sub(b).mul(c.sub(d))),
            PartyId::P2 => all.for_each(|((z, (&a, &b)), (&c, &d))| *z = a.mul(d).add(b.mul(c))),
        }
    });
    Tensor::new(x.shape(), data)
}

/// Deals `gamma` and adds it up with what [`multiply`] gave.
pub(crate) fn combine<E: Element>(s: &mut Session, local: Tensor<E>, ring: u32) -> Result<Additive<E>> {
    let shape = local.shape().to_vec();
    let len = local.len();
    let mut local = local.into_data();
    let gamma = s.deal(len, ring, |_| std::mem::take(&mut local))?;
    let half = match s.party() {
        PartyId::P0 => Vec::new(),
        PartyId::P1 => zip(&local, &gamma, E::add),
        PartyId::P2 => zip(&gamma, &local, E::sub),
    };
    Ok(Additive::new(s.party(), shape, half))
}
