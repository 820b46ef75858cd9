//! The weights of experts: the softmax over the `top` largest of a row of scores, zero for all others, and nobody knows which.
//!
//! Every pair of a row is compared once, `[s_i >= s_j]` for `i < j`: of equal scores the first wins, which is a total order. The
//! number of pairs that an expert wins is its rank from below, a sum of bits in `Z_2^w` for rows of up to `2^w`. P0 deals the one-hot
//! encoding of its mask, on which both "among the top" and "the largest" are local.
//!
//! | round | |
//! | --- | --- |
//! | 1, 2 | comparisons |
//! | 3 | numbers of wins remasked |
//! | 4 | "among the top" and "the largest" remasked |
//! | 5 | exponents remasked: the largest, which is a sum of selections, less each score, and 16 more for all but the top |
//! | 6 to 8 | exponentials: nothing from 16 on |
//! | 9 to 11 | their sum's inverse; beside it the sum extended |
//! | (12) | the inverse extended, where it leaves in a smaller ring than the last product's |
//! | 12 | the product truncated |
//! | 13 | selected by "among the top" and remasked: a truncation would leave a unit of noise where zero is due |
//!
//! Scores come scaled by `log2(e)`, which is folded into the weights of the gate as it is into those of queries.
//!
//! *Error*: that of the exponentials and of the inverse. Which experts are at the top is exact. *Cost*: of comparisons, one a pair.
//! *Security*: halves of fresh sharings, and the other's halves under uniform masks; the rest is built from other primitives.

use tercet_core::spec::{AttentionSpec, EXP_LOG2_RANGE, RouteSpec};
use tercet_core::{Cost, Error, Result, Session};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::bits::{self, MaskedBits, Plane, post_remask, remask_cost};
use crate::exponential::{self, Scales};
use crate::masked::{Additive, Masked};
use crate::maximum::{differences, pairs};
use crate::select::{self, Term, select_sum};
use crate::{compare, extend, inverse, mixed, truncate};

/// Most experts: one word holds the encoding of a number of wins.
pub const MOST: usize = 64;

/// Bits of a number of wins among so many.
fn win_bits(experts: usize) -> u32 {
    experts.next_power_of_two().ilog2().max(1)
}

/// The exponentials leave in a ring that holds one of them and the sum of the top.
fn scales(spec: &AttentionSpec, frac: u32) -> Scales {
    Scales {
        frac,
        top_bits: spec.exp_top_bits,
        frac_out: spec.exp_frac,
        ring_out: (spec.exp_frac + 3).max(spec.inverse.high + 2),
        guard: spec.exp_guard,
    }
}

/// Bits that the last product is truncated by, from the scale of the inverse.
fn excess(spec: &AttentionSpec, frac: u32) -> u32 {
    spec.inverse.frac_out.saturating_sub(frac)
}

/// The wire cost of the weights of `rows` rows of `experts`, for scores at scale `frac`.
pub fn cost(rows: usize, experts: usize, frac: u32, spec: &RouteSpec) -> Cost {
    let spec = &spec.softmax;
    let (len, pairs) = (rows * experts, pairs(experts).len());
    let (exp, by) = (scales(spec, frac), excess(spec, frac));
    let wins = match pairs {
        0 => Cost::NONE,
        _ => {
            let compared = compare::cost(pairs * rows, 1, spec.score_ring, 1);
            compared.then(select::integers_cost(pairs * rows, win_bits(experts)))
        }
    };
    let inverse = inverse::cost(rows, &spec.inverse);
    wins.then(truncate::cost(len, 0, win_bits(experts)))
        .then(Cost::deal(len, 1 << win_bits(experts)).and(remask_cost(2, len)))
        .then(select::cost(1, len, exp.ring_in()).and(select::integers_cost(len, exp.top_bits)))
        .then(truncate::cost(len, 0, exp.ring_in()))
        .then(exponential::cost(len, exp))
        .then(extend::cost(rows, exp.ring_out, spec.inverse.ring).hidden().and(inverse))
        .then(extend::cost(rows, spec.inverse.ring_out, spec.ring + by))
        .then(mixed::cost(len, spec.exp_frac + 3, spec.ring + by).and(truncate::cost(len, by, spec.ring)))
        .then(select::cost(1, len, spec.ring).and(truncate::cost(len, 0, spec.ring)))
}

/// The weights of the scores `x: [rows, experts]` at scale `frac`, in `spec.softmax.ring` at scale `frac`.
///
/// # Errors
/// No expert or more than [`MOST`], none at the top, or scores in a smaller ring than the spec's; numbers that do not fit each other.
pub fn route<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, spec: &RouteSpec) -> Result<Masked<E>> {
    let (rows, experts) = (x.planes()[0].rows(), x.planes()[0].width());
    let RouteSpec { top, softmax: spec } = spec;
    let (exp, by) = (scales(spec, frac), excess(spec, frac));
    if !(1..=MOST).contains(&experts) || *top == 0 {
        return Err(Error::Misuse(format!("the {top} largest of {experts} experts")));
    }
    let last = spec.ring + by;
    if x.ring() < spec.score_ring || spec.score_ring > 32 || spec.score_ring < exp.ring_in() {
        return Err(Error::Misuse(format!("scores of {} bits in a ring of {}", x.ring(), spec.score_ring)));
    }
    if spec.inverse.frac_out < frac || last > 64 || last <= spec.exp_frac + 3 || exp.product_ring() > 64 {
        return Err(Error::Misuse(format!(
            "weights in {} bits from an inverse at {}",
            spec.ring, spec.inverse.frac_out
        )));
    }
    s.scope("route", |s| {
        let scores: Masked<u32> = x.low::<u32>(spec.score_ring).reshape([rows, experts]);
        let wins = wins(s, &scores)?;
        let [chosen, largest] = ranked(s, &wins, experts.saturating_sub(*top), experts - 1)?;

        let exponent = exponents(s, scores.into_low(exp.ring_in()), &chosen, &largest, exp)?;
        let weights: Masked<u64> = exponential::exp2_neg(s, &exponent, exp)?;
        let sums = weights.sum_rows();
        let flags = inverse::post(s, &sums, &spec.inverse)?;
        let sums = extend::post::<u64, u64>(s, &sums, spec.inverse.ring)?;
        let flags = flags.next(s)?;
        let sums = sums.finish(s)?;
        let inverse: Masked<u64> = flags.next(s, &sums, &spec.inverse)?.finish(s)?;
        let inverse: Masked<u64> = extend::extend(s, &inverse, last)?;

        let z = mixed::scale_rows(s, &weights.into_low(spec.exp_frac + 3), &inverse)?;
        let weights: Masked<E> = truncate::truncate(s, z, by, spec.ring)?;
        let z = select::select(s, &chosen, &weights)?;
        truncate::remask(s, z, spec.ring)
    })
}

/// How many of its row each score wins against, `[rows, experts]`.
fn wins(s: &mut Session, scores: &Masked<u32>) -> Result<Masked<u32>> {
    let (rows, experts) = (scores.planes()[0].rows(), scores.planes()[0].width());
    let (pairs, ring) = (pairs(experts), win_bits(experts));
    let mut half = vec![0u32; if s.is_helper() { 0 } else { rows * experts }];
    if !pairs.is_empty() {
        let differences = scores.each(scores.ring(), |plane| differences(plane, 1, &pairs));
        let won = compare::at_least(s, &differences, 1, &[0])?;
        let won = select::integers::<u32>(s, &won[0], ring)?;
        // One win a pair: where it is not the first's it is the second's.
        let one = u32::from(s.party() == PartyId::P1);
        for (&(i, j), won) in pairs.iter().zip(won.half().chunks_exact(rows.max(1))) {
            for (row, &won) in half.chunks_exact_mut(experts).zip(won) {
                row[i] = row[i].wrapping_add(won);
                row[j] = row[j].wrapping_add(one).wrapping_sub(won);
            }
        }
    }
    truncate::remask(s, Additive::new(s.party(), [rows, experts], half), ring)
}

/// `[wins >= least]` and `[wins >= most]`, where no number is above `most`.
fn ranked(s: &mut Session, wins: &Masked<u32>, least: usize, most: usize) -> Result<[MaskedBits; 2]> {
    let (len, bits) = (wins.len(), wins.ring());
    let size = 1u32 << bits;
    let dealt: Vec<u64> = s.deal_xor(len, size, |_| wins.lambda().iter().map(|&lambda| 1u64 << lambda).collect())?;
    let mut halves = Vec::new();
    if !s.is_helper() {
        // `wins = k` where `lambda = c - k`: the parity over these places of the encoding.
        let within = |from: usize| -> Plane {
            let at_least = |i: usize| {
                let c = wins.m()[i];
                let places = (from..=most).fold(0u64, |set, k| set | 1 << (c.wrapping_sub(k as u32) & (size - 1)));
                u64::from((dealt[i] & places).count_ones() & 1)
            };
            bits::collect(len, at_least)
        };
        halves = vec![within(least), within(most)];
    }
    let ranked = post_remask(s, 2, len, halves)?.finish(s)?;
    Ok(ranked.try_into().unwrap_or_else(|_| unreachable!("two planes were remasked")))
}

/// The largest of a row less each score of it, and 16 more where it is not among the chosen.
fn exponents(
    s: &mut Session,
    scores: Masked<u32>,
    chosen: &MaskedBits,
    largest: &MaskedBits,
    exp: Scales,
) -> Result<Masked<u32>> {
    let (ring, width) = (exp.ring_in(), scores.planes()[0].width());
    let picked = select_sum(s, &[Term::of(largest, &scores)], ring)?;
    let kept = select::integers::<u32>(s, chosen, exp.top_bits)?;
    let mut half = scores.to_additive().into_half();
    let beyond = ring - exp.top_bits;
    let one = u32::from(s.party() == PartyId::P1);
    let rows = half.chunks_exact_mut(width).zip(picked.half().chunks_exact(width)).zip(kept.half().chunks_exact(width));
    for ((row, picked), kept) in rows {
        let largest = picked.iter().fold(0u32, |sum, &v| sum.wrapping_add(v));
        for (v, &kept) in row.iter_mut().zip(kept) {
            *v = largest.wrapping_sub(*v).wrapping_add(one.wrapping_sub(kept) << beyond);
        }
    }
    debug_assert_eq!(beyond, exp.frac + EXP_LOG2_RANGE, "16 at the scale of scores");
    truncate::remask(s, Additive::new(s.party(), scores.shape(), half), ring)
}
