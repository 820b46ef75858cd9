//! Blocks of columns times a column each: how experts are weighed.
//!
//! *Error*: that of the truncation, 1.5 units. *Cost*: one dealt value and `ring + truncate` bits each way an element, one round.
//! *Security*: a product and a truncation.

use tercet_core::spec::ScaleSpec;
use tercet_core::{Cost, Error, Result, Session};
use tercet_ring::Element;

use crate::linear::{self, elementwise};
use crate::masked::Masked;
use crate::norm::repeat_along_rows;
use crate::truncate;

/// The wire cost for `len` elements.
pub fn cost(len: usize, spec: &ScaleSpec) -> Cost {
    linear::cost(len, spec.ring + spec.truncate).and(truncate::cost(len, spec.truncate, spec.ring))
}

/// Block `e` of the columns of `x: [rows, blocks * width]` times column `e` of `weights: [rows, blocks]`.
///
/// # Errors
/// Columns that are not as many blocks of one width; another number of rows; a ring that does not hold the product.
pub fn scale_blocks<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    weights: &Masked<E>,
    spec: &ScaleSpec,
) -> Result<Masked<E>> {
    let ([rows, cols], [other, blocks]) = [x, weights].map(|t| [t.planes()[0].rows(), t.planes()[0].width()]).into();
    let ring = spec.ring + spec.truncate;
    if rows != other || blocks == 0 || !cols.is_multiple_of(blocks) {
        return Err(Error::Misuse(format!("[{rows}, {cols}] in blocks by [{other}, {blocks}]")));
    }
    if x.ring().min(weights.ring()) < ring {
        let found = format!("a product in {ring} bits of rings of {} and {}", x.ring(), weights.ring());
        return Err(Error::Misuse(found));
    }
    s.scope("scale", |s| {
        let weights = weights.each(weights.ring(), |plane| repeat_along_rows(plane, x.shape(), cols / blocks));
        let z = elementwise(s, x, &weights, ring)?;
        truncate::truncate(s, z, spec.truncate, spec.ring)
    })
}
