//! Selection by a masked bit: a bit times anything that P0 knows is local, given one dealt value.
//!
//! With `b = beta ^ sigma`, `b = beta + (1 - 2 beta) sigma`. P0 deals `sigma` and `sigma * lambda`; then
//! `b x = beta (m - lambda) + (1 - 2 beta) (m sigma - sigma lambda)` is a sum of what the evaluators hold.
//!
//! *Error*: none. *Cost*: nothing online, `2 k` bits dealt. *Security*: an evaluator receives halves of fresh sharings.

use std::ops::Range;

use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::bits::{MaskedBits, bit};
use crate::masked::{Additive, Masked};

/// A product of a bit and a value: what is selected.
pub struct Term<'a, E> {
    bits: &'a MaskedBits,
    planes: [&'a [E]; 2],
}

impl<'a, E: Element> Term<'a, E> {
    /// `bits * x`, element by element.
    pub fn of(bits: &'a MaskedBits, x: &'a Masked<E>) -> Term<'a, E> {
        Term::part(bits, x, 0..x.len())
    }

    /// `bits` times elements `range` of `x`.
    pub fn part(bits: &'a MaskedBits, x: &'a Masked<E>, range: Range<usize>) -> Term<'a, E> {
        let planes = x.planes().each_ref().map(|plane| &plane.data()[range.clone()]);
        assert_eq!(bits.len(), planes[0].len(), "a bit an element");
        Term { bits, planes }
    }
}

/// The wire cost of the sum of `terms` selections of `len` elements in `Z_2^ring`.
pub fn cost(terms: usize, len: usize, ring: u32) -> Cost {
    Cost::deal(2 * terms * len, ring)
}

/// An additive sharing of `b * x`, element by element, in the ring of `x`.
pub fn select<E: Element>(s: &mut Session, b: &MaskedBits, x: &Masked<E>) -> Result<Additive<E>> {
    Ok(select_sum(s, &[Term::of(b, x)], x.ring())?.reshape(x.shape()))
}

/// An additive sharing, flat, of the sum of products of bits and values, all as long as each other and in `Z_2^ring`.
pub fn select_sum<E: Element>(s: &mut Session, terms: &[Term<'_, E>], ring: u32) -> Result<Additive<E>> {
    let len = terms.first().map_or(0, |t| t.bits.len());
    assert!(terms.iter().all(|t| t.bits.len() == len), "terms of one length");
    let dealt = s.scope("select", |s| {
        s.deal(2 * terms.len() * len, ring, |_| {
            let mut values = vec![E::ZERO; 2 * terms.len() * len];
            for (values, term) in values.chunks_exact_mut((2 * len).max(1)).zip(terms) {
                let (masks, products) = values.split_at_mut(len);
                expand_into(&term.bits.sigma(), masks);
                let [l1, l2] = term.planes;
                tercet_ring::simd::run!(|| {
                    let masks = masks.iter().zip(products);
                    masks.zip(l1.iter().zip(l2)).for_each(|((&sigma, product), (&a, &b))| {
                        *product = sigma.mul(a.add(b));
                    });
                });
            }
            values
        })
    })?;
    if s.is_helper() {
        return Ok(Additive::new(s.party(), [len], Vec::new()));
    }
    let leads = s.party() == PartyId::P1;
    let mut half = vec![E::ZERO; len];
    let mut beta = vec![E::ZERO; len];
    for (dealt, term) in dealt.chunks_exact((2 * len).max(1)).zip(terms) {
        let (sigma, product) = dealt.split_at(len);
        let [m, own] = term.planes;
        expand_into(term.bits.beta(), &mut beta);
        let first = if leads { E::mask(E::BITS) } else { E::ZERO };
        tercet_ring::simd::run!(|| {
            let held = m.iter().zip(own).zip(sigma.iter().zip(product));
            half.iter_mut().zip(&beta).zip(held).for_each(|((half, &beta), ((&m, &own), (&sigma, &product)))| {
                let plain = (m & first).sub(own);
                let sign = E::ONE.sub(beta.add(beta));
                *half = half.add(beta.mul(plain)).add(sign.mul(m.mul(sigma).sub(product)));
            });
        });
    }
    Ok(Additive::new(s.party(), [len], half))
}

/// The wire cost of [`integers`] of `len` bits.
pub fn integers_cost(len: usize, ring: u32) -> Cost {
    Cost::deal(len, ring)
}

/// An additive sharing of masked bits as 0 and 1 in `Z_2^ring`: `beta + (1 - 2 beta) sigma`, with `sigma` dealt.
pub fn integers<E: Element>(s: &mut Session, bits: &MaskedBits, ring: u32) -> Result<Additive<E>> {
    let len = bits.len();
    let mut half = s.scope("select", |s| s.deal(len, ring, |_| expand(&bits.sigma(), len)))?;
    if !s.is_helper() {
        let own = if s.party() == PartyId::P1 { E::ONE } else { E::ZERO };
        let beta: Vec<E> = expand(bits.beta(), len);
        tercet_ring::simd::run!(|| {
            half.iter_mut().zip(&beta).for_each(|(half, &beta)| {
                *half = beta.mul(own).add(E::ONE.sub(beta.add(beta)).mul(*half));
            });
        });
    }
    Ok(Additive::new(s.party(), [len], half))
}

/// The bits of a plane as lanes of 0 or 1.
pub(crate) fn expand<E: Element>(plane: &[u64], len: usize) -> Vec<E> {
    let mut out = vec![E::ZERO; len];
    expand_into(plane, &mut out);
    out
}

/// As [`expand`], into lanes that are there.
pub(crate) fn expand_into<E: Element>(plane: &[u64], out: &mut [E]) {
    tercet_ring::simd::run!(|| {
        let (blocks, rest) = out.as_chunks_mut::<64>();
        for (word, block) in plane.iter().zip(blocks) {
            (0u32..).zip(block).for_each(|(i, out)| *out = E::from_u64(word >> i & 1));
        }
        let last = plane.last().copied().unwrap_or(0);
        (0u32..).zip(rest).for_each(|(i, out)| *out = E::from_u64(last >> i & 1));
    });
    debug_assert!(out.is_empty() || out[out.len() - 1].to_u64() == bit(plane, out.len() - 1));
}
