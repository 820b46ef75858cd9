//! Products (protocol.md, "Product"): matrix products with weights and between activations, elementwise products, and
//! row dot products. All local but for one dealt value an output.
//!
//! With `u = mx - lx1` and `v = my - ly1` (both known to P1), `x y = u v - mx ly2 - lx2 my + gamma` where
//! `gamma = lx1 ly2 + lx2 (ly1 + ly2)` is known to P0, which deals it. P1 computes one product, P2 and P0 two each.
//!
//! *Error*: none. *Cost*: no rounds, one dealt ring element an output. *Security*: an evaluator receives a half of a
//! fresh sharing.

use tercet_core::{Cost, Result, Session, Work};
use tercet_net::PartyId;
use tercet_ring::{Element, Pool, Tensor, matmul};

use crate::masked::{Additive, Masked, zip};

/// The right-hand operand of a product as one party uses it: P0 `ly2, ly1 + ly2`; P1 `my - ly1` (and nothing); P2 `ly2, my`.
#[derive(Clone, Copy)]
pub struct Operand<'a, E> {
    /// Row-major planes; the second is empty at P1.
    pub planes: [&'a [E]; 2],
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
            PartyId::P0 => [b.to_vec(), zip(a, b, E::add)],
            PartyId::P1 => [zip(a, b, E::sub), Vec::new()],
            PartyId::P2 => [b.to_vec(), a.to_vec()],
        };
        Prepared { planes }
    }

    /// The planes themselves; the second is empty at P1.
    pub(crate) fn planes(&self) -> &[Vec<E>; 2] {
        &self.planes
    }

    /// As an operand.
    pub fn operand(&self) -> Operand<'_, E> {
        Operand { planes: [&self.planes[0], &self.planes[1]] }
    }
}

/// The wire cost of a product with `outputs` outputs in `Z_2^ring`.
pub fn cost(outputs: usize, ring: u32) -> Cost {
    Cost::deal(outputs, ring)
}

/// `x y` in `Z_2^ring`: `batch` products of `[rows, inner]` by `[inner, cols]`. The result has shape `[batch, rows, cols]`.
pub fn matrix_product<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    y: Operand<'_, E>,
    [batch, rows, inner, cols]: [usize; 4],
    ring: u32,
) -> Result<Additive<E>> {
    assert_eq!(x.len(), batch * rows * inner, "left operand");
    assert!(ring <= x.ring(), "a product in a wider ring than its operand's");
    let mut out = vec![E::ZERO; batch * rows * cols];
    let [first, second] = x.planes().each_ref().map(Tensor::data);
    s.scope("product", |s| {
        s.timed(Work::Matmul, |s| {
            let (pool, dims) = (s.pool(), [batch, rows, inner, cols]);
            match s.party() {
                PartyId::P1 => multiply(pool, [&zip(first, second, E::sub), &[]], y, dims, &mut out),
                _ => multiply(pool, [first, second], y, dims, &mut out),
            }
        });
        combine(s, Tensor::new([batch, rows, cols], out), ring)
    })
}

/// Adds what a party computes of a product by itself to `out`, from the planes of the left operand as it uses them: P0 `gamma`
/// from `lx1, lx2`, P1 `u v` from `mx - lx1` (and nothing), P2 `mx ly2 + lx2 my` from `mx, lx2`.
pub(crate) fn multiply<E: Element>(
    pool: &Pool,
    x: [&[E]; 2],
    y: Operand<'_, E>,
    [batch, rows, inner, cols]: [usize; 4],
    out: &mut [E],
) {
    for (x, y) in x.into_iter().zip(y.planes).filter(|(_, y)| !y.is_empty()) {
        matmul::batched_matmul(pool, batch, x, y, out, rows, inner, cols, true);
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
