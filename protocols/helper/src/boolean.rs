//! Boolean functions of masked bits: an exclusive or of ANDs, without interaction.
//!
//! Each monomial `AND (beta_i ^ sigma_i)` is expanded over subsets of its factors; P0 deals the AND of the masks of every subset
//! of two or more, once for all outputs. *Cost*: nothing online, one bit dealt per subset. *Security*: an evaluator
//! receives halves of fresh sharings.

use std::collections::BTreeSet;

use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;

use crate::bits::{MaskedBits, Plane, words};

/// One output: the exclusive or of these ANDs of inputs, by index.
pub type Polynomial = Vec<Vec<usize>>;

/// The wire cost of evaluating `polynomials` on planes of `len` bits.
pub fn cost(polynomials: &[Polynomial], len: usize) -> Cost {
    match products(polynomials) {
        0 => Cost::NONE,
        count => Cost::deal(count * words(len), 64),
    }
}

/// Mask products that P0 deals for `polynomials`: bits an element.
pub fn products(polynomials: &[Polynomial]) -> usize {
    subsets(polynomials).len()
}

/// The evaluators' halves, by exclusive or, of each polynomial; empty planes at the helper.
pub fn evaluate(s: &mut Session, bits: &[&MaskedBits], polynomials: &[Polynomial]) -> Result<Vec<Plane>> {
    let len = bits.first().map_or(0, |b| b.len());
    let (count, needed) = (words(len), subsets(polynomials));
    let mut dealt = Vec::new();
    if !needed.is_empty() {
        dealt = s.scope("and", |s| {
            s.deal_xor::<u64>(needed.len() * count, 64, |_| {
                let sigma: Vec<Plane> = bits.iter().map(|b| b.sigma()).collect();
                needed.iter().flat_map(|set| and(count, set.iter().map(|&i| &sigma[i][..]))).collect()
            })
        })?;
    }
    if s.is_helper() {
        return Ok(vec![Plane::new(); polynomials.len()]);
    }
    let index: Vec<&Vec<usize>> = needed.iter().collect();
    let half_of = |set: &Vec<usize>| -> &[u64] {
        match set[..] {
            [only] => bits[only].own_mask(),
            _ => {
                let at = index.binary_search(&set).expect("every subset of a monomial was dealt");
                &dealt[at * count..(at + 1) * count]
            }
        }
    };
    let leads = s.party() == PartyId::P1;
    let evaluate_one = |polynomial: &Polynomial| {
        let mut out = vec![0u64; count];
        for monomial in polynomial.iter().map(|m| sorted(m)) {
            for chosen in 0..1usize << monomial.len() {
                let (set, rest): (Vec<usize>, Vec<usize>) = split(&monomial, chosen);
                let public = and(count, rest.iter().map(|&i| bits[i].beta()));
                if set.is_empty() {
                    if leads {
                        out.iter_mut().zip(&public).for_each(|(o, p)| *o ^= p);
                    }
                } else {
                    out.iter_mut().zip(&public).zip(half_of(&set)).for_each(|((o, p), h)| *o ^= p & h);
                }
            }
        }
        out
    };
    Ok(polynomials.iter().map(evaluate_one).collect())
}

/// Every subset of two or more factors of a monomial, in order.
fn subsets(polynomials: &[Polynomial]) -> BTreeSet<Vec<usize>> {
    let monomials = polynomials.iter().flatten().map(|m| sorted(m));
    monomials
        .flat_map(|m| (0..1usize << m.len()).map(move |chosen| split(&m, chosen).0))
        .filter(|s| s.len() > 1)
        .collect()
}

fn sorted(monomial: &[usize]) -> Vec<usize> {
    let mut monomial = monomial.to_vec();
    monomial.sort_unstable();
    monomial
}

fn split(monomial: &[usize], chosen: usize) -> (Vec<usize>, Vec<usize>) {
    let (a, b): (Vec<_>, Vec<_>) = monomial.iter().enumerate().partition(|(i, _)| chosen >> i & 1 == 1);
    (a.into_iter().map(|(_, &v)| v).collect(), b.into_iter().map(|(_, &v)| v).collect())
}

fn and<'a>(count: usize, planes: impl Iterator<Item = &'a [u64]>) -> Plane {
    let mut out = vec![u64::MAX; count];
    for plane in planes {
        out.iter_mut().zip(plane).for_each(|(o, p)| *o &= p);
    }
    out
}
