//! Selection by a masked bit (protocol.md, "Select"): a bit times anything that P0 knows is local, given one dealt value.
//!
//! With `b = beta ^ sigma`, `b = beta + (1 - 2 beta) sigma`. P0 deals `sigma` and `sigma * lambda`; then
//! `b x = beta (m - lambda) + (1 - 2 beta) (m sigma - sigma lambda)` is a sum of what the evaluators hold.
//!
//! *Error*: none. *Cost*: nothing online, `2 k` bits dealt. *Security*: an evaluator receives halves of fresh sharings.

use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::bits::{MaskedBits, bit};
use crate::masked::{Additive, Masked};

/// The wire cost of selecting `len` elements in `Z_2^ring`.
pub fn cost(len: usize, ring: u32) -> Cost {
    Cost::deal(2 * len, ring)
}

/// An additive sharing of `b * x`, element by element, in the ring of `x`.
pub fn select<E: Element>(s: &mut Session, b: &MaskedBits, x: &Masked<E>) -> Result<Additive<E>> {
    let len = x.len();
    assert_eq!(b.len(), len, "a bit an element");
    let dealt = s.scope("select", |s| {
        s.deal(2 * len, x.ring(), |_| {
            let sigma = expand::<E>(&b.sigma(), len);
            let products = crate::masked::zip(&sigma, &x.lambda(), E::mul);
            [sigma, products].concat()
        })
    })?;
    if s.is_helper() {
        return Ok(Additive::new(s.party(), x.shape(), Vec::new()));
    }
    let (sigma, product) = dealt.split_at(len);
    let (m, own) = (x.m(), x.own_mask());
    let beta = expand::<E>(b.beta(), len);
    let leads = s.party() == PartyId::P1;
    let half = tercet_ring::simd::run!(|| {
        (0..len)
            .map(|i| {
                let plain = if leads { m[i].sub(own[i]) } else { E::ZERO.sub(own[i]) };
                let sign = E::ONE.sub(beta[i].add(beta[i]));
                beta[i].mul(plain).add(sign.mul(m[i].mul(sigma[i]).sub(product[i])))
            })
            .collect()
    });
    Ok(Additive::new(s.party(), x.shape(), half))
}

/// The bits of a plane as lanes of 0 or 1.
pub(crate) fn expand<E: Element>(plane: &[u64], len: usize) -> Vec<E> {
    let mut out = Vec::with_capacity(len);
    tercet_ring::simd::run!(|| {
        for (word, from) in plane.iter().zip((0..len).step_by(64)) {
            out.extend((0..(len - from).min(64) as u32).map(|i| E::from_u64(word >> i & 1)));
        }
    });
    debug_assert!(len == 0 || out[len - 1].to_u64() == bit(plane, len - 1));
    out
}
