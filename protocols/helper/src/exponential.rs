//! `2^-t` for `t >= 0`.
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

use crate::bits::{MaskedBits, Plane, post_remask, remask_cost, words};
use crate::boolean::{self, Polynomial};
use crate::masked::{Additive, Masked};
use crate::onehot::Encoding;
use crate::select::expand_into;
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
        let len = t.len();
        let lambda = if s.is_helper() { t.lambda() } else { Vec::new() };
        let hots = scales.borrow().deal(s, &coarse(&lambda, scales), len)?;
        let tops: Vec<u64> = s.deal_xor(len, 1 << scales.top_bits, |_| {
            let mut tops = vec![0u64; len];
            let low_bits = scales.low_bits();
            simd::run!(|| tops.iter_mut().zip(&lambda).for_each(|(top, &l)| *top = 1 << (l >> low_bits)));
            tops
        })?;
        let mut halves = Vec::new();
        if !s.is_helper() {
            halves = hots.less_and_equal(&coarse(t.m(), scales), 0);
            halves.extend([0, 1].map(|less| equal_tops(t.m(), &tops, less, scales)));
        }
        let planes = scales.borrow().plane_count() + 2;
        let flags = post_remask(s, planes, len, halves)?.finish(s)?;
        let flags: Vec<&MaskedBits> = flags.iter().collect();
        let halves = boolean::evaluate(s, &flags, &cases(scales))?;
        let chosen = post_remask(s, 2, len, halves)?.finish(s)?;
        let half = s.scope("power", |s| power(s, if s.is_helper() { &[] } else { t.m() }, &lambda, &chosen, scales))?;
        let z = Additive::new(s.party(), t.shape(), half);
        truncate::truncate(s, z, scales.truncate(), scales.ring_out)
    })
}

/// The part of `v` that the borrow looks at.
fn coarse(v: &[u32], scales: Scales) -> Vec<u32> {
    let mut out = vec![0; v.len()];
    let (low_bits, by) = (scales.low_bits(), scales.coarsen());
    simd::run!(|| out.iter_mut().zip(v).for_each(|(out, &v)| *out = v.low(low_bits) >> by));
    out
}

/// Halves of "the high part of `m`, less `less`, is that of `lambda`".
fn equal_tops(m: &[u32], tops: &[u64], less: u32, scales: Scales) -> Plane {
    let (low_bits, mask) = (scales.low_bits(), u32::mask(scales.top_bits));
    let mut plane = Plane::with_capacity(words(m.len()));
    let mut flags = [0u64; 64];
    simd::run!(|| {
        for (m, tops) in m.chunks(64).zip(tops.chunks(64)) {
            for ((flag, &m), &top) in flags.iter_mut().zip(m).zip(tops) {
                *flag = top >> ((m >> low_bits).wrapping_sub(less) & mask) & 1;
            }
            plane.push(flags[..m.len()].iter().rev().fold(0, |word, &flag| word << 1 | flag));
        }
    });
    plane
}

/// The evaluators' halves of `sum over cases of case * 2^lambda * 2^-c`, the second case with `2^-16`; empty at the helper.
fn power(s: &mut Session, m: &[u32], lambda: &[u32], cases: &[MaskedBits], scales: Scales) -> Result<Vec<u64>> {
    let len = cases[0].len();
    let (low_bits, unit) = (scales.low_bits(), f64::from(1u32 << scales.frac));
    let dealt: Vec<u64> = s.deal(3 * len, scales.product_ring(), |_| {
        let scale = f64::from(scales.guard.0).exp2();
        let mut values = vec![0u64; 3 * len];
        let (powers, products) = values.split_at_mut(len);
        simd::run!(|| {
            for (out, &l) in powers.iter_mut().zip(lambda) {
                *out = round(exp2(f64::from(l.low(low_bits)) / unit) * scale) as u64;
            }
        });
        for (bits, products) in cases.iter().zip(products.chunks_exact_mut(len.max(1))) {
            expand_into(&bits.sigma(), products);
            simd::run!(|| products.iter_mut().zip(&*powers).for_each(|(p, &power)| *p = p.mul(power)));
        }
        values
    })?;
    if s.is_helper() {
        return Ok(Vec::new());
    }
    let (powers, products) = dealt.split_at(len);
    let (first, second) = products.split_at(len);
    let scale = f64::from(scales.guard.1).exp2();
    let mut half = vec![0u64; len];
    const BLOCK: usize = 64;
    let (mut no_borrow, mut borrow) = ([0u64; BLOCK], [0u64; BLOCK]);
    let blocks = half.chunks_mut(BLOCK).zip(m.chunks(BLOCK)).zip(powers.chunks(BLOCK));
    let blocks = blocks.zip(first.chunks(BLOCK).zip(second.chunks(BLOCK)));
    let words = cases[0].beta().iter().zip(cases[1].beta());
    for ((((half, m), powers), (first, second)), (&b0, &b1)) in blocks.zip(words) {
        expand_into(&[b0], &mut no_borrow);
        expand_into(&[b1], &mut borrow);
        simd::run!(|| {
            for i in 0..half.len() {
                let factor = exp2(-(f64::from(m[i].low(low_bits)) / unit)) * scale;
                let (whole, wrapped) = (round(factor) as u64, round(factor * WRAP) as u64);
                let gated = |beta: u64, product: u64| beta.mul(powers[i]).add(1u64.sub(beta.add(beta)).mul(product));
                half[i] = whole.mul(gated(no_borrow[i], first[i])).add(wrapped.mul(gated(borrow[i], second[i])));
            }
        });
    }
    Ok(half)
}

/// What a borrow takes off a power: `2^-16`.
const WRAP: f64 = 1.0 / (1u64 << (1 << EXP_LOG2_RANGE)) as f64;
