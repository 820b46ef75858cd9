//! Maximum over rows by a comparison tree (protocol.md, "Maximum").
//!
//! The *values* are coarsened to 2^-5 before they are compared, not their differences: the comparisons of a level must be one
//! total order, or a group of near ties has no winner. The result may be low by 2^-4 a level, which softmax does not see:
//! it is shift-invariant.
//!
//! *Cost*: three rounds a level by pairs, four rounds a level by fours (half the levels, twice the comparisons).
//! *Security*: built from comparison, selection and remasking alone.

use tercet_core::spec::MAXIMUM_FRAC;
use tercet_core::{Cost, Result, Session};
use tercet_ring::Element;

use crate::bits::{MaskedBits, post_remask, remask_cost};
use crate::boolean::{self, Polynomial};
use crate::compare;
use crate::masked::Masked;
use crate::select::{self, select};
use crate::truncate;

/// The wire cost of the maxima of `rows` rows of `width`.
pub fn cost(rows: usize, width: usize, ring: u32, frac: u32, radix: usize) -> Cost {
    let mut total = Cost::NONE;
    let mut width = width;
    while width > 1 {
        let group = radix.min(width);
        let each = rows * (width / group);
        let pairs = pairs(group);
        total = total.then(compare::cost(pairs.len() * each, pairs.len(), ring - coarsen(frac), 1));
        if group > 2 {
            total = total.then(boolean::cost(&winners(group), each).and(remask_cost(group - 1, each)));
        }
        let selections = select::cost(each, ring).side_by_side(group - 1);
        total = total.then(selections.and(truncate::cost(each, 0, ring)));
        width = width / group + width % group;
    }
    total
}

/// The maximum over the last dimension; `frac` is the scale of `x`. Shape `[.., w]` to `[..]`.
pub fn maximum<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, radix: usize) -> Result<Masked<E>> {
    s.scope("max", |s| {
        let mut x = x.clone();
        while x.planes()[0].width() > 1 {
            x = level(s, &x, frac, radix)?;
        }
        let shape = x.shape()[..x.shape().len() - 1].to_vec();
        Ok(x.reshape(shape))
    })
}

fn level<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, radix: usize) -> Result<Masked<E>> {
    let width = x.planes()[0].width();
    let group = radix.min(width);
    let each = width / group;
    let parts: Vec<Masked<E>> = (0..group).map(|i| x.columns(i * each, (i + 1) * each)).collect();
    let coarse: Vec<Masked<E>> = parts.iter().map(|part| part.shift(coarsen(frac))).collect();
    let pairs = pairs(group);
    let differences: Vec<Masked<E>> = pairs.iter().map(|&(i, j)| coarse[i].clone().sub(&coarse[j])).collect();
    let won = compare::at_least(s, &Masked::flatten(&differences), pairs.len(), &[0])?;
    let lost: Vec<MaskedBits> = won.iter().cloned().map(MaskedBits::not).collect();
    let picks = if group == 2 {
        lost
    } else {
        let inputs: Vec<&MaskedBits> = won.iter().chain(&lost).collect();
        let halves = boolean::evaluate(s, &inputs, &winners(group))?;
        post_remask(s, group - 1, parts[0].len(), halves)?.finish(s)?
    };
    let mut best = None;
    for (part, pick) in parts[1..].iter().zip(&picks) {
        let chosen = select(s, pick, &part.clone().sub(&parts[0]))?;
        best = Some(match best {
            None => chosen,
            Some(sum) => chosen.add(&sum),
        });
    }
    let best = best.expect("a group has at least two parts");
    let best = truncate::remask::<E, E>(s, best, x.ring())?.add(&parts[0]);
    if width.is_multiple_of(group) {
        return Ok(best);
    }
    Ok(Masked::join_columns(&[best, x.columns(each * group, width)]))
}

fn coarsen(frac: u32) -> u32 {
    frac.saturating_sub(MAXIMUM_FRAC)
}

fn pairs(group: usize) -> Vec<(usize, usize)> {
    (0..group).flat_map(|i| (i + 1..group).map(move |j| (i, j))).collect()
}

/// "Part `i` beats all others" for every part but the first, in terms of `[i >= j]` for every pair and their complements.
fn winners(group: usize) -> Vec<Polynomial> {
    let pairs = pairs(group);
    let beats = |i: usize| {
        let against = pairs.iter().enumerate().filter(move |(_, pair)| pair.0 == i || pair.1 == i);
        let count = pairs.len();
        against.map(move |(p, pair)| if pair.0 == i { p } else { p + count }).collect::<Vec<_>>()
    };
    (1..group).map(|i| vec![beats(i)]).collect()
}
