//! Maximum over rows by a comparison tree (protocol.md, "Maximum").
//!
//! The *values* are coarsened to 2^-5 once and the tree runs on those, exactly: comparisons are one total order, so a group of near
//! ties has a winner, and what is selected and re-masked is as narrow as what is compared. The result is that maximum, at most
//! 2^-5 below the exact one and at most 2^-4 above it, which softmax does not see: it is shift-invariant.
//!
//! Levels of four take four rounds each; the last level compares up to [`LAST`] values at once, which costs little where so few
//! are left and saves rounds.
//!
//! *Cost*: three rounds for a pair, four for a larger group. *Security*: built from comparison, selection and remasking alone.

use tercet_core::spec::MAXIMUM_FRAC;
use tercet_core::{Cost, Result, Session};
use tercet_ring::{Element, Tensor};

use crate::bits::{MaskedBits, post_remask, remask_cost};
use crate::boolean::{self, Polynomial};
use crate::compare;
use crate::masked::Masked;
use crate::select::{self, Term, select_sum};
use crate::truncate;

/// Values a group of an inner level.
const GROUP: usize = 4;
/// Values that the last level takes at once: beyond eight the products of its comparison bits would cost more than a level.
const LAST: usize = 8;

/// Values a group on a level that finds `width` of them in a row.
fn group(width: usize) -> usize {
    if width <= LAST { width } else { GROUP }
}

/// The scale of the result, for values at scale `frac`.
pub fn result_frac(frac: u32) -> u32 {
    frac - coarsen(frac)
}

/// The wire cost of the maxima of `rows` rows of `width`.
pub fn cost(rows: usize, width: usize, ring: u32, frac: u32) -> Cost {
    let mut total = Cost::NONE;
    let (mut width, ring) = (width, ring - coarsen(frac));
    while width > 1 {
        let group = group(width);
        let each = rows * (width / group);
        let pairs = pairs(group);
        total = total.then(compare::cost(pairs.len() * each, pairs.len(), ring, 1));
        if group > 2 {
            total = total.then(boolean::cost(&winners(group), each).and(remask_cost(group - 1, each)));
        }
        total = total.then(select::cost(group - 1, each, ring).and(truncate::cost(each, 0, ring)));
        width = width / group + width % group;
    }
    total
}

/// The maximum over the last dimension; `frac` is the scale of `x`. Shape `[.., w]` to `[..]`, at scale [`result_frac`] in a ring
/// smaller by as many bits as the scale.
pub fn maximum<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32) -> Result<Masked<E>> {
    s.scope("max", |s| {
        let mut x: Masked<E> = x.shift(coarsen(frac));
        while x.planes()[0].width() > 1 {
            x = level(s, &x)?;
        }
        let shape = x.shape()[..x.shape().len() - 1].to_vec();
        Ok(x.reshape(shape))
    })
}

/// One level: `p_0 + sum_i [i wins] (p_i - p_0)` over the groups' parts, of which part `i` is columns `[i * each, (i + 1) * each)`.
fn level<E: Element>(s: &mut Session, x: &Masked<E>) -> Result<Masked<E>> {
    let (rows, width) = (x.planes()[0].rows(), x.planes()[0].width());
    let group = group(width);
    let (each, len) = (width / group, rows * (width / group));
    let pairs = pairs(group);
    let differences = x.each(x.ring(), |plane| differences(plane, each, &pairs));
    let won = compare::at_least(s, &differences, pairs.len(), &[0])?;
    let lost: Vec<MaskedBits> = won.iter().cloned().map(MaskedBits::not).collect();
    let picks = if group == 2 {
        lost
    } else {
        let inputs: Vec<&MaskedBits> = won.iter().chain(&lost).collect();
        let halves = boolean::evaluate(s, &inputs, &winners(group))?;
        post_remask(s, group - 1, len, halves)?.finish(s)?
    };
    // The first pairs are (0, 1), (0, 2), ..: their differences are what to subtract where part 1, 2, .. wins.
    let terms: Vec<Term<'_, E>> =
        picks.iter().enumerate().map(|(i, pick)| Term::part(pick, &differences, i * len..(i + 1) * len)).collect();
    let behind = select_sum(s, &terms, x.ring())?;
    let behind: Masked<E> = truncate::remask(s, behind, x.ring())?;
    let first = x.columns(0, each);
    let behind = behind.reshape(first.shape());
    let best = first.sub(&behind);
    if width.is_multiple_of(group) {
        return Ok(best);
    }
    Ok(Masked::join_columns(&[best, x.columns(each * group, width)]))
}

/// `p_i - p_j` for every pair, pair after pair.
fn differences<E: Element>(plane: &Tensor<E>, each: usize, pairs: &[(usize, usize)]) -> Tensor<E> {
    let (rows, width) = (plane.rows(), plane.width());
    let mut out = vec![E::ZERO; pairs.len() * rows * each];
    for (&(i, j), out) in pairs.iter().zip(out.chunks_exact_mut((rows * each).max(1))) {
        tercet_ring::simd::run!(|| {
            for (line, out) in plane.data().chunks_exact(width.max(1)).zip(out.chunks_exact_mut(each)) {
                let parts = line[i * each..(i + 1) * each].iter().zip(&line[j * each..(j + 1) * each]);
                out.iter_mut().zip(parts).for_each(|(out, (&a, &b))| *out = a.sub(b));
            }
        });
    }
    Tensor::new([out.len()], out)
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
