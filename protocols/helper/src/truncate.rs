//! Truncation of an additive sharing into a masked one, and remasking, which is truncation by
//! nothing.
//!
//! With fresh masks `r1` (P0, P1) and `r2` (P0, P2) the evaluators exchange `z_i + r_i` modulo `2^(n+f)` and so both learn
//! `c = z + r1 + r2 - 2^(f-1)`. The result is `m = c >> f`, `l1 = r1 >> f`, `l2 = r2 >> f` in `Z_2^n`. The wrap-around of
//! `c` is a multiple of `2^(n+f)`, which is a multiple of `2^n` after the shift: there is no case of a large error.
//!
//! *Error*: within ±1.5 units of the result, zero mean. *Cost*: one round, `n + f` bits each way, nothing dealt.
//! *Security*: an evaluator receives the other's half plus a uniform mask that it does not know.

use tercet_core::{Cost, Posted, Result, Session};
use tercet_net::PartyId;
use tercet_ring::{Element, Tensor};

use crate::masked::{Additive, Masked};

/// A truncation whose exchange is on the way.
#[must_use]
pub struct Truncation<E> {
    posted: Posted,
    shape: Vec<usize>,
    by: u32,
    ring: u32,
    /// Evaluators: what was sent, and the own mask. Helper: both masks.
    held: [Vec<E>; 2],
}

/// The wire cost of truncating `len` elements by `by` bits into `Z_2^ring`.
pub fn cost(len: usize, by: u32, ring: u32) -> Cost {
    Cost::exchange(len, ring + by)
}

/// Starts a truncation by `by` bits into `Z_2^ring`. Only the low `ring + by` bits of `z` matter.
pub fn post<E: Element>(s: &mut Session, z: Additive<E>, by: u32, ring: u32) -> Result<Truncation<E>> {
    assert!(ring + by <= E::BITS, "truncation needs {} bits", ring + by);
    s.scope("truncate", |s| {
        let (shape, len) = (z.shape().to_vec(), z.len());
        let mut sum = z.into_half();
        let masks = s.draw_onto(len, &mut sum, E::add);
        let held = match s.party() {
            PartyId::P0 => [masks.first, masks.second],
            PartyId::P1 => [sum, masks.first],
            PartyId::P2 => [sum, masks.second],
        };
        let sent: &[E] = if s.is_helper() { &[] } else { &held[0] };
        let posted = s.post(sent, ring + by)?;
        Ok(Truncation { posted, shape, by, ring, held })
    })
}

impl<E: Element> Truncation<E> {
    /// Ends it.
    pub fn finish<F: Element>(self, s: &mut Session) -> Result<Masked<F>> {
        let Truncation { posted, shape, by, ring, held: [first, second] } = self;
        let bits = ring + by;
        let down = |v: E| F::from_u64((v.low(bits) >> by).to_u64());
        let halved = |plane: &[E]| {
            let mut out = vec![F::ZERO; plane.len()];
            tercet_ring::simd::run!(|| out.iter_mut().zip(plane).for_each(|(out, &v)| *out = down(v)));
            out
        };
        let theirs: Vec<E> = s.wait(posted, first.len(), bits)?;
        let planes = if s.is_helper() {
            [halved(&first), halved(&second)]
        } else {
            let centre = if by == 0 { E::ZERO } else { E::ONE << (by - 1) };
            let mut m = vec![F::ZERO; first.len()];
            tercet_ring::simd::run!(|| {
                m.iter_mut().zip(first.iter().zip(&theirs)).for_each(|(m, (&a, &b))| *m = down(a.add(b).sub(centre)));
            });
            [m, halved(&second)]
        };
        Ok(Masked::new(s.party(), ring, planes.map(|plane| Tensor::new(shape.clone(), plane))))
    }
}

/// `z / 2^by` in `Z_2^ring`, in one go.
pub fn truncate<E: Element, F: Element>(s: &mut Session, z: Additive<E>, by: u32, ring: u32) -> Result<Masked<F>> {
    post(s, z, by, ring)?.finish(s)
}

/// An additive sharing as a masked one in `Z_2^ring`: exact.
pub fn remask<E: Element, F: Element>(s: &mut Session, z: Additive<E>, ring: u32) -> Result<Masked<F>> {
    truncate(s, z, 0, ring)
}
