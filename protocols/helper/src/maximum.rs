//! Maximum over rows by a comparison tree.
//!
//! The *values* are coarsened to 2^-5 once and the tree runs on those, exactly: comparisons are one total order, so a group of near
//! ties has a winner, and what is selected and re-masked is as narrow as what is compared. The result is that maximum, at most
//! 2^-5 below the exact one and at most 2^-4 above it, which softmax does not see: it is shift-invariant.
//!
//! Levels of four take four rounds each; the last level compares up to `LAST` values at once, which costs little where so few
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
    tree_cost(rows, width, &[ring - coarsen(frac)], group)
}

/// The maximum over the last dimension; `frac` is the scale of `x`. Shape `[.., w]` to `[..]`, at scale [`result_frac`] in a ring
/// smaller by as many bits as the scale.
pub fn maximum<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32) -> Result<Masked<E>> {
    s.scope("max", |s| {
        let [best] = tree(s, [x.shift(coarsen(frac))], group)?;
        let shape = best.shape()[..best.shape().len() - 1].to_vec();
        Ok(best.reshape(shape))
    })
}

/// The wire cost of [`tree`] over `rows` rows of `width` that carry tensors in these rings.
pub(crate) fn tree_cost(rows: usize, mut width: usize, rings: &[u32], group: fn(usize) -> usize) -> Cost {
    let mut total = Cost::NONE;
    while width > 1 {
        let group = group(width);
        let each = rows * (width / group);
        let pairs = pairs(group);
        total = total.then(compare::cost(pairs.len() * each, pairs.len(), rings[0], 1));
        if group > 2 {
            total = total.then(boolean::cost(&winners(group), each).and(remask_cost(group - 1, each)));
        }
        let carry = |&ring: &u32| select::cost(group - 1, each, ring).and(truncate::cost(each, 0, ring));
        total = total.then(rings.iter().map(carry).fold(Cost::NONE, Cost::and));
        width = width / group + width % group;
    }
    total
}

/// Of each row of the tensors that are carried, `[.., w]` each, the element at the place where the first has its largest: `[.., 1]`.
/// Of equal ones it is one and the same in all tensors. The differences of a row's elements fit the first ring; `group` says how many
/// values of a row of so many are compared with each other at a level, at least two of two or more.
pub(crate) fn tree<E: Element, const N: usize>(
    s: &mut Session,
    mut carried: [Masked<E>; N],
    group: fn(usize) -> usize,
) -> Result<[Masked<E>; N]> {
    while carried[0].planes()[0].width() > 1 {
        carried = level(s, carried, group)?;
    }
    Ok(carried)
}

/// One level: `p_0 + sum_i [i wins] (p_i - p_0)` over the groups' parts, of which part `i` is columns `[i * each, (i + 1) * each)`.
fn level<E: Element, const N: usize>(
    s: &mut Session,
    carried: [Masked<E>; N],
    group: fn(usize) -> usize,
) -> Result<[Masked<E>; N]> {
    let x = &carried[0];
    let (rows, width) = (x.planes()[0].rows(), x.planes()[0].width());
    let group = group(width);
    let (each, len) = (width / group, rows * (width / group));
    let pairs = pairs(group);
    let compared = x.each(x.ring(), |plane| differences(plane, each, &pairs));
    let won = compare::at_least(s, &compared, pairs.len(), &[0])?;
    let lost: Vec<MaskedBits> = won.iter().cloned().map(MaskedBits::not).collect();
    let picks = if group == 2 {
        lost
    } else {
        let inputs: Vec<&MaskedBits> = won.iter().chain(&lost).collect();
        let halves = boolean::evaluate(s, &inputs, &winners(group))?;
        post_remask(s, group - 1, len, halves)?.finish(s)?
    };
    // The first pairs are (0, 1), (0, 2), ..: their differences are what to subtract where part 1, 2, .. wins.
    let against_first = &pairs[..group - 1];
    let mut behind = Vec::with_capacity(N);
    for (number, x) in carried.iter().enumerate() {
        let others = (number > 0).then(|| x.each(x.ring(), |plane| differences(plane, each, against_first)));
        let differences = others.as_ref().unwrap_or(&compared);
        let terms: Vec<Term<'_, E>> =
            picks.iter().enumerate().map(|(i, pick)| Term::part(pick, differences, i * len..(i + 1) * len)).collect();
        let z = select_sum(s, &terms, x.ring())?;
        behind.push(truncate::post(s, z, 0, x.ring())?);
    }
    let behind = behind.into_iter().map(|behind| behind.finish(s)).collect::<Result<Vec<Masked<E>>>>()?;
    let mut behind = behind.into_iter();
    Ok(carried.map(|x| {
        let first = x.columns(0, each);
        let behind = behind.next().expect("one for each that is carried").reshape(first.shape());
        let best = first.sub(&behind);
        if width.is_multiple_of(group) {
            return best;
        }
        Masked::join_columns(&[best, x.columns(each * group, width)])
    }))
}

/// `p_i - p_j` for every pair, pair after pair.
pub(crate) fn differences<E: Element>(plane: &Tensor<E>, each: usize, pairs: &[(usize, usize)]) -> Tensor<E> {
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

/// Every pair of a group, those with its first part first.
pub(crate) fn pairs(group: usize) -> Vec<(usize, usize)> {
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
