//! The place of the largest element of a row, as a masked number that nobody sees.
//!
//! Scores are coarsened once to `compare_frac` fractional bits, and a comparison tree ([`crate::maximum`]) carries two tensors: the
//! coarse scores, which are compared and selected exactly, and the places, which are selected by the same bits. Comparisons are one
//! total order on a level, so that of equals one wins, in both tensors alike. With noise ([`crate::noise`]) the place is a
//! sample of the softmax.
//!
//! Long rows meet in groups of four, which deal the fewest bits; shorter ones in groups of up to eight, which deal more than twice
//! as many bits an element and need two thirds of the rounds.
//!
//! *Error*: coarsening puts a score less than one unit of `2^-compare_frac` low and less than two high, so that the largest is missed
//! for one less than three units below at most; where scores have no more fractional bits than are compared, it is exact. Equal
//! scores are won by one of them whatever the noise, which shifts odds by up to half a unit. *Cost*: four rounds a level, six levels
//! for fifty thousand. *Security*: built from comparison, selection and remasking alone: an
//! evaluator receives halves of fresh sharings and the other's halves under uniform masks. The place is opened to nobody here.

use tercet_core::spec::ChoiceSpec;
use tercet_core::{Cost, Error, Result, Session};
use tercet_ring::{Element, Tensor};

use crate::masked::Masked;
use crate::maximum::{tree, tree_cost};
use crate::noise::{self, Noise};

/// Values of a row from which on groups are of four.
const LONG: usize = 1 << 14;

/// Values a group on a level that finds `width` of them in a row.
fn group(width: usize) -> usize {
    if width < LONG { width.min(8) } else { 4 }
}

/// The wire cost of the places of `rows` rows of `width`, with noise for any of them or none.
pub fn cost(rows: usize, width: usize, spec: &ChoiceSpec, noisy: bool) -> Cost {
    let noise = if noisy { noise::cost(rows * width, spec.compare_ring) } else { Cost::NONE };
    noise.then(tree_cost(rows, width, &[spec.compare_ring, spec.index_bits], group))
}

/// Bits that scores drop before they are compared: rows of `width` in `ring`, at scale `frac`. An
/// error where the numbers do not fit them.
pub(crate) fn check(width: usize, ring: u32, frac: u32, spec: &ChoiceSpec) -> Result<u32> {
    let ChoiceSpec { compare_frac, compare_ring, index_bits } = *spec;
    let by = frac.saturating_sub(compare_frac);
    if width == 0 || index_bits == 0 || index_bits > 32 || (width - 1) as u64 >> index_bits != 0 {
        return Err(Error::Misuse(format!("a place among {width} in {index_bits} bits")));
    }
    if !(2..=32).contains(&compare_ring) || compare_ring + by > ring {
        let found = format!("scores of {ring} bits compared in {compare_ring} at a scale {by} bits below");
        return Err(Error::Misuse(found));
    }
    Ok(by)
}

/// The place of the largest of each row of `x: [rows, n]` at scale `frac`, as `[rows, 1]` in `Z_2^index_bits`. `noise` has an entry a
/// row, or none at all. What two elements of a row differ by, noise included, fits the ring of the comparisons.
///
/// # Errors
/// An empty row, or one with more places than `index_bits` tell; scores in a smaller ring than the comparisons' at their scale; and
/// those of [`noise::add`].
pub fn choose<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    frac: u32,
    spec: &ChoiceSpec,
    noise: &[Option<Noise>],
) -> Result<Masked<E>> {
    let (rows, width) = (x.planes()[0].rows(), x.planes()[0].width());
    let ChoiceSpec { compare_ring, index_bits, .. } = *spec;
    let by = check(width, x.ring(), frac, spec)?;
    s.scope("choose", |s| {
        let scores: Masked<u32> = x.shift_low(compare_ring + by, by);
        let scores = noise::add(s, scores.reshape([rows, width]), frac - by, noise)?;
        let places = Tensor::new([rows, width], (0..width as u32).collect::<Vec<_>>().repeat(rows));
        let [_, place] = tree(s, [scores, Masked::public(s.party(), index_bits, places)], group)?;
        Ok(place.low(index_bits))
    })
}
