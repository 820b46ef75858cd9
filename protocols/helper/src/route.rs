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
//! [`open`] is the same for experts behind a public gate: rounds 1 to 3; the halves of "among the top" exchanged beside round 4, which
//! opens it to the evaluators, and reported to P0 in one more; then the exponents of the top alone, which need no selection by it.
//!
//! Scores come scaled by `log2(e)`, which is folded into the weights of the gate as it is into those of queries.
//!
//! *Error*: that of the exponentials and of the inverse. Which experts are at the top is exact. *Cost*: of comparisons, one a pair.
//! *Security*: halves of fresh sharings, and the other's halves under uniform masks; the rest is built from other primitives. With a public
//! gate an evaluator receives the other's half of "among the top", which is the opened bit and its own half, and P0 receives the bit.
//! P0 must not see a half: it dealt what the halves were made of, and would learn of the masked number of wins from one.

use tercet_core::spec::{AttentionSpec, EXP_LOG2_RANGE, RouteSpec};
use tercet_core::{Cost, Error, Result, Session};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::bits::{self, MaskedBits, Plane, post_remask, remask_cost};
use crate::exponential::{self, Scales};
use crate::masked::{Additive, Masked};
use crate::maximum::{differences, pairs};
use crate::routing::Routing;
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
    let (len, exp) = (rows * experts, scales(&spec.softmax, frac));
    let ring = spec.softmax.ring;
    wins_cost(rows, experts, &spec.softmax)
        .then(remask_cost(2, len))
        .then(select::cost(1, len, exp.ring_in()).and(select::integers_cost(len, exp.top_bits)))
        .then(truncate::cost(len, 0, exp.ring_in()))
        .then(softmax_cost([rows, experts], &spec.softmax, frac))
        .then(select::cost(1, len, ring).and(truncate::cost(len, 0, ring)))
}

/// The wire cost of the same behind a public gate.
pub fn open_cost(rows: usize, experts: usize, frac: u32, spec: &RouteSpec) -> Cost {
    let (len, exp) = (rows * experts, scales(&spec.softmax, frac));
    let top = spec.top.min(experts);
    let opened = len.div_ceil(8);
    wins_cost(rows, experts, &spec.softmax)
        .then(remask_cost(1, len).and(Cost::exchange_bytes(opened)))
        .then(Cost::report(opened))
        .then(select::cost(1, rows * top, exp.ring_in()))
        .then(truncate::cost(rows * top, 0, exp.ring_in()))
        .then(softmax_cost([rows, top], &spec.softmax, frac))
}

/// Of the numbers of wins, and of what is dealt to compare them.
fn wins_cost(rows: usize, experts: usize, spec: &AttentionSpec) -> Cost {
    let (len, pairs) = (rows * experts, pairs(experts).len());
    let wins = match pairs {
        0 => Cost::NONE,
        _ => {
            let compared = compare::cost(pairs * rows, 1, spec.score_ring, 1);
            compared.then(select::integers_cost(pairs * rows, win_bits(experts)))
        }
    };
    wins.then(truncate::cost(len, 0, win_bits(experts))).and(Cost::deal(len, 1 << win_bits(experts)))
}

/// From exponents to weights.
fn softmax_cost([rows, width]: [usize; 2], spec: &AttentionSpec, frac: u32) -> Cost {
    let (len, exp, by) = (rows * width, scales(spec, frac), excess(spec, frac));
    let inverse = inverse::cost(rows, &spec.inverse);
    exponential::cost(len, exp)
        .then(extend::cost(rows, exp.ring_out, spec.inverse.ring).hidden().and(inverse))
        .then(extend::cost(rows, spec.inverse.ring_out, spec.ring + by))
        .then(mixed::cost(len, spec.exp_frac + 3, spec.ring + by).and(truncate::cost(len, by, spec.ring)))
}

/// The weights of the scores `x: [rows, experts]` at scale `frac`, in `spec.softmax.ring` at scale `frac`.
///
/// # Errors
/// No expert or more than [`MOST`], none at the top, or scores in a smaller ring than the spec's; numbers that do not fit each other.
pub fn route<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, spec: &RouteSpec) -> Result<Masked<E>> {
    let (rows, experts) = (x.planes()[0].rows(), x.planes()[0].width());
    check(experts, x.ring(), frac, spec)?;
    let RouteSpec { top, softmax: spec } = spec;
    let exp = scales(spec, frac);
    s.scope("route", |s| {
        let scores: Masked<u32> = x.low::<u32>(spec.score_ring).reshape([rows, experts]);
        let wins = wins(s, &scores)?;
        let halves = ranked(s, &wins, [experts.saturating_sub(*top), experts - 1], experts - 1)?;
        let ranked = post_remask(s, 2, wins.len(), halves)?.finish(s)?;
        let [chosen, largest] = ranked.try_into().unwrap_or_else(|_| unreachable!("two planes were remasked"));

        let exponent = exponents(s, scores.into_low(exp.ring_in()), Some(&chosen), &largest, exp)?;
        let weights: Masked<E> = softmax(s, &exponent, frac, spec)?;
        let z = select::select(s, &chosen, &weights)?;
        truncate::remask(s, z, spec.ring)
    })
}

/// The weights of the experts of each row alone, `[rows, top]` in the order of the experts, and which they are, **opened to all three
/// nodes**; the rest as for [`route`].
///
/// # Errors
/// Those of [`route`].
pub fn open<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, spec: &RouteSpec) -> Result<(Masked<E>, Routing)> {
    let (rows, experts) = (x.planes()[0].rows(), x.planes()[0].width());
    check(experts, x.ring(), frac, spec)?;
    let top = spec.top.min(experts);
    let spec = &spec.softmax;
    let exp = scales(spec, frac);
    s.scope("route", |s| {
        let scores: Masked<u32> = x.low::<u32>(spec.score_ring).reshape([rows, experts]);
        let wins = wins(s, &scores)?;
        let mut halves = ranked(s, &wins, [experts - top, experts - 1], experts - 1)?.into_iter();
        let chosen = halves.next().unwrap_or_default();
        let largest = post_remask(s, 1, rows * experts, halves.collect())?;
        let opened = bits::open(s, rows * experts, chosen)?;
        let largest = largest.finish(s)?.pop().unwrap_or_else(|| unreachable!("a plane was remasked"));
        let routing = Routing::of(&opened, [rows, experts], top);

        let places = routing.places();
        let scores = scores.into_low(exp.ring_in()).reshape([rows * experts, 1]).rows_at(&places).reshape([rows, top]);
        let exponent = exponents(s, scores, None, &largest.at(&places), exp)?;
        Ok((softmax(s, &exponent, frac, spec)?, routing))
    })
}

/// Whether scores of so many experts in `ring` at scale `frac` fit the numbers, and these each
/// other.
pub(crate) fn check(experts: usize, ring: u32, frac: u32, spec: &RouteSpec) -> Result<()> {
    let RouteSpec { top, softmax: spec } = spec;
    let exp = scales(spec, frac);
    if !(1..=MOST).contains(&experts) || *top == 0 {
        return Err(Error::Misuse(format!("the {top} largest of {experts} experts")));
    }
    let last = spec.ring + excess(spec, frac);
    if ring < spec.score_ring || spec.score_ring > 32 || spec.score_ring < exp.ring_in() || exp.top_bits == 0 {
        return Err(Error::Misuse(format!("scores of {ring} bits in a ring of {}", spec.score_ring)));
    }
    if spec.inverse.frac_out < frac || last > 64 || last <= spec.exp_frac + 3 || exp.product_ring() > 64 {
        return Err(Error::Misuse(format!(
            "weights in {} bits from an inverse at {}",
            spec.ring, spec.inverse.frac_out
        )));
    }
    Ok(())
}

/// Powers of two below one for exponents `[rows, ..]`, over the sum of their row.
fn softmax<E: Element>(s: &mut Session, exponent: &Masked<u32>, frac: u32, spec: &AttentionSpec) -> Result<Masked<E>> {
    let (exp, by) = (scales(spec, frac), excess(spec, frac));
    let weights: Masked<u64> = exponential::exp2_neg(s, exponent, exp)?;
    let sums = weights.sum_rows();
    let flags = inverse::post(s, &sums, &spec.inverse)?;
    let sums = extend::post::<u64, u64>(s, &sums, spec.inverse.ring)?;
    let flags = flags.next(s)?;
    let sums = sums.finish(s)?;
    let inverse: Masked<u64> = flags.next(s, &sums, &spec.inverse)?.finish(s)?;
    let inverse: Masked<u64> = extend::extend(s, &inverse, spec.ring + by)?;
    let z = mixed::scale_rows(s, &weights.into_low(spec.exp_frac + 3), &inverse)?;
    truncate::truncate(s, z, by, spec.ring)
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

/// The evaluators' halves of `[wins >= least]` for two such numbers, where no number of wins is above `most`. None at the helper.
fn ranked(s: &mut Session, wins: &Masked<u32>, least: [usize; 2], most: usize) -> Result<Vec<Plane>> {
    let (len, bits) = (wins.len(), wins.ring());
    let size = 1u32 << bits;
    let dealt: Vec<u64> = s.deal_xor(len, size, |_| wins.lambda().iter().map(|&lambda| 1u64 << lambda).collect())?;
    if s.is_helper() {
        return Ok(Vec::new());
    }
    // `wins = k` where `lambda = c - k`: the parity over these places of the encoding.
    let within = |from: usize| -> Plane {
        let at_least = |i: usize| {
            let c = wins.m()[i];
            let places = (from..=most).fold(0u64, |set, k| set | 1 << (c.wrapping_sub(k as u32) & (size - 1)));
            u64::from((dealt[i] & places).count_ones() & 1)
        };
        bits::collect(len, at_least)
    };
    Ok(least.into_iter().map(within).collect())
}

/// The largest of a row less each score of it, and 16 more where it is not among the chosen: all, where none are named.
fn exponents(
    s: &mut Session,
    scores: Masked<u32>,
    chosen: Option<&MaskedBits>,
    largest: &MaskedBits,
    exp: Scales,
) -> Result<Masked<u32>> {
    let (ring, width) = (exp.ring_in(), scores.planes()[0].width());
    let picked = select_sum(s, &[Term::of(largest, &scores)], ring)?;
    let kept = chosen.map(|chosen| select::integers::<u32>(s, chosen, exp.top_bits)).transpose()?;
    let mut half = scores.to_additive().into_half();
    let beyond = ring - exp.top_bits;
    let one = u32::from(s.party() == PartyId::P1);
    for (row, picked) in half.chunks_exact_mut(width).zip(picked.half().chunks_exact(width)) {
        let largest = picked.iter().fold(0u32, |sum, &v| sum.wrapping_add(v));
        row.iter_mut().for_each(|v| *v = largest.wrapping_sub(*v));
    }
    if let Some(kept) = &kept {
        half.iter_mut().zip(kept.half()).for_each(|(v, &kept)| *v = v.wrapping_add(one.wrapping_sub(kept) << beyond));
    }
    debug_assert_eq!(beyond, exp.frac + EXP_LOG2_RANGE, "16 at the scale of scores");
    truncate::remask(s, Additive::new(s.party(), scores.shape(), half), ring)
}
