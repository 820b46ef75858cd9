//! `2^-t` for `t >= 0` (protocol.md, "2^-t").
//!
//! The low `f + 4` bits of `t` hold `t mod 16`. There `2^-t = 2^-c 2^lambda` up to a wrap factor of `2^-16`: P0 knows
//! `2^lambda` and deals it, together with its products with the masks of two case bits, "no borrow" and "borrow", each
//! of which is also zero where the high part of `t` is not. Zero from `t = 16` on.
//!
//! The borrow of `c - lambda` is taken between both coarsened to `2^-3`. It can be missed only where the two agree to that, that is for
//! `t mod 16` in `[15.875, 16)`. There "no borrow" finds the high parts one apart and gives zero, where at most `2^-15.875` is
//! due: nothing at the scale of the result.
//!
//! *Error*, with guard bits `(g, h)`: up to `2^-(g+1)` of the result (rounding of the dealt power), plus `2^(15-h)` (that of the
//! public one, times a power below `2^16`), plus `2^-15.8`, plus 1.5 units. *Cost*: three rounds. *Security*: an evaluator receives
//! halves of fresh sharings and the other's halves under uniform masks.

use tercet_core::functions::{exp2, round};
use tercet_core::spec::EXP_LOG2_RANGE;
use tercet_core::{Cost, Result, Session};
use tercet_ring::{Element, simd};

use crate::bits::{MaskedBits, post_remask, remask_cost};
use crate::boolean::{self, Polynomial};
use crate::masked::{Additive, Masked};
use crate::onehot::Encoding;
use crate::select::expand;
use crate::truncate;

/// Fractional bits to which the borrow is decided.
const BORROW_FRAC: u32 = 3;

/// Scales of an exponential.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// Fractional bits of `t`, at least three.
    pub frac: u32,
    /// Bits of `t` above its range: `t < 2^(EXP_LOG2_RANGE + top_bits)`; at most six.
    pub top_bits: u32,
    /// Fractional bits of the result.
    pub frac_out: u32,
    /// Ring of the result, which holds 1 at its scale.
    pub ring_out: u32,
    /// Guard bits of the helper's and of the evaluators' factor.
    pub guard: (u32, u32),
}

impl Scales {
    fn low_bits(&self) -> u32 {
        self.frac + EXP_LOG2_RANGE
    }

    /// The ring that `t` must be in.
    pub fn ring_in(&self) -> u32 {
        self.low_bits() + self.top_bits
    }

    /// Bits that the borrow does not look at.
    fn coarsen(&self) -> u32 {
        self.frac - BORROW_FRAC
    }

    fn borrow(&self) -> Encoding {
        Encoding::new(BORROW_FRAC + EXP_LOG2_RANGE, 1)
    }

    fn truncate(&self) -> u32 {
        self.guard.0 + self.guard.1 - self.frac_out
    }

    /// The ring of the product, at most 64. It holds the result before truncation; the factors may wrap in it.
    pub fn product_ring(&self) -> u32 {
        self.ring_out + self.truncate()
    }
}

/// The wire cost for `len` elements.
pub fn cost(len: usize, scales: Scales) -> Cost {
    let planes = scales.borrow().plane_count();
    let dealings = scales.borrow().cost(len).and(Cost::deal(len, 1 << scales.top_bits));
    dealings
        .and(remask_cost(planes + 2, len))
        .then(boolean::cost(&cases(scales), len).and(remask_cost(2, len)))
        .then(Cost::deal(3 * len, scales.product_ring()).and(truncate::cost(len, scales.truncate(), scales.ring_out)))
}

/// "No borrow and equal high parts", "borrow and high parts that differ by it".
fn cases(scales: Scales) -> [Polynomial; 2] {
    let planes = scales.borrow().plane_count();
    let borrow = scales.borrow().borrow(0);
    let gated = |gate: usize| borrow.iter().map(move |m| m.iter().copied().chain([gate]).collect::<Vec<_>>());
    [std::iter::once(vec![planes]).chain(gated(planes)).collect(), gated(planes + 1).collect()]
}

/// `2^-t` in `Z_2^ring_out`.
pub fn exp2_neg<F: Element>(s: &mut Session, t: &Masked<u32>, scales: Scales) -> Result<Masked<F>> {
    assert_eq!(t.ring(), scales.ring_in(), "ring of the exponent");
    assert!(scales.product_ring() <= 64, "the exponential needs {} bits", scales.product_ring());
    s.scope("exp", |s| {
        let (len, low_bits) = (t.len(), scales.low_bits());
        let lambda = if s.is_helper() { t.lambda() } else { Vec::new() };
        let low = |v: u32| v.low(low_bits);
        let coarse = |v: &[u32]| simd::run!(|| v.iter().map(|&v| low(v) >> scales.coarsen()).collect::<Vec<u32>>());
        let top_mask = u32::mask(scales.top_bits);
        let hots = scales.borrow().deal(s, &coarse(&lambda), len)?;
        let tops: Vec<u64> =
            s.deal_xor(len, 1 << scales.top_bits, |_| lambda.iter().map(|&l| 1u64 << (l >> low_bits)).collect())?;
        let mut halves = Vec::new();
        if !s.is_helper() {
            halves = hots.less_and_equal(&coarse(t.m()), 0);
            let high = |i: usize, less: u32| (t.m()[i] >> low_bits).wrapping_sub(less) & top_mask;
            let equal = |less: u32| simd::run!(|| crate::bits::collect(len, |i| tops[i] >> high(i, less) & 1));
            halves.extend([equal(0), equal(1)]);
        }
        let planes = scales.borrow().plane_count() + 2;
        let flags = post_remask(s, planes, len, halves)?.finish(s)?;
        let flags: Vec<&MaskedBits> = flags.iter().collect();
        let halves = boolean::evaluate(s, &flags, &cases(scales))?;
        let chosen = post_remask(s, 2, len, halves)?.finish(s)?;

        let unit = f64::from(1u32 << scales.frac);
        let ring = scales.product_ring();
        let dealt: Vec<u64> = s.deal(3 * len, ring, |_| {
            let scale = f64::from(scales.guard.0).exp2();
            let powers: Vec<u64> = simd::run!(|| {
                lambda.iter().map(|&l| round(exp2(f64::from(low(l)) / unit) * scale) as u64).collect()
            });
            let products = chosen.iter().flat_map(|bits| {
                let sigma = expand::<u64>(&bits.sigma(), len);
                crate::masked::zip(&sigma, &powers, u64::mul)
            });
            powers.iter().copied().chain(products).collect()
        })?;
        let mut half = Vec::new();
        if !s.is_helper() {
            let (power, products) = dealt.split_at(len);
            half = vec![0; len];
            for ((bits, product), offset) in chosen.iter().zip(products.chunks(len.max(1))).zip([0.0, 16.0]) {
                let beta = expand::<u64>(bits.beta(), len);
                let scale = f64::from(scales.guard.1).exp2();
                simd::run!(|| {
                    for i in 0..len {
                        let c = f64::from(low(t.m()[i])) / unit;
                        let public = round(exp2(-c - offset) * scale) as u64;
                        let sign = 1u64.sub(beta[i].add(beta[i]));
                        let gated = beta[i].mul(power[i]).add(sign.mul(product[i]));
                        half[i] = half[i].add(public.mul(gated));
                    }
                });
            }
        }
        let z = Additive::new(s.party(), t.shape(), half);
        truncate::truncate(s, z, scales.truncate(), scales.ring_out)
    })
}
