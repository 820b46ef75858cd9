//! LayerNorm (protocol.md, "LayerNorm, RMSNorm"): eight rounds.
//!
//! With `d = width x - sum x` (exact, local), divided locally by `2^shift`: `v = sum d^2` is one row dot product, its inverse root
//! is piecewise linear, and `d / sqrt v` is a row of unit length; the gain carries `sqrt(width)`. The ratio between `d` and the
//! centred row drops out, so the input may be at any scale.
//!
//! *Error*: that of the inverse root, relative, and about a unit of the result. *Security*: built from other primitives.

use tercet_core::spec::NormSpec;
use tercet_core::{Cost, Result, Session};
use tercet_ring::{Element, Tensor};

use crate::linear::{self, elementwise, row_dot};
use crate::masked::Masked;
use crate::{extend, inverse, truncate};

/// The wire cost of normalising `rows` rows of `width` that come in `ring`.
pub fn cost(rows: usize, width: usize, ring: u32, spec: &NormSpec) -> Cost {
    let len = rows * width;
    let inverse = &spec.inverse;
    let unit_ring = spec.unit_ring + spec.unit_truncate;
    extend::cost(len, ring - spec.shift, 64)
        .then(linear::cost(rows, 64).and(truncate::cost(rows, 0, 64)))
        .then(inverse::cost(rows, inverse))
        .then(extend::cost(rows, inverse.ring_out, unit_ring))
        .then(linear::cost(len, unit_ring).and(truncate::cost(len, spec.unit_truncate, spec.unit_ring)))
        .then(linear::cost(len, spec.ring + spec.truncate).and(truncate::cost(len, spec.truncate, spec.ring)))
}

/// Normalises the rows of `x`. `gain` and `bias` are rows in rings of at least `ring + truncate`, the gain at scale `gain_frac`
/// and with the factor `sqrt(width)`, the bias at scale `unit_frac + gain_frac`.
pub fn layer_norm<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    gain: &Masked<u64>,
    bias: &Masked<u64>,
    spec: &NormSpec,
) -> Result<Masked<E>> {
    s.scope("norm", |s| {
        let width = x.planes()[0].width();
        let rows = x.planes()[0].rows();
        let d: Masked<E> = x.each(x.ring(), |plane| centre(plane)).shift(spec.shift);
        let d: Masked<u64> = extend::extend(s, &d, 64)?;
        let v = row_dot(s, &d, &d, 64)?;
        let v: Masked<u64> = truncate::remask::<u64, u64>(s, v, 64)?.plus(spec.epsilon).shift(spec.v_shift);

        let v: Masked<u64> = v.low(spec.inverse.ring);
        let root = inverse::post(s, &v, &spec.inverse)?.next(s)?.next(s, &v, &spec.inverse)?;
        let unit_ring = spec.unit_ring + spec.unit_truncate;
        let root = root.finish::<u64>(s)?;
        let root: Masked<u64> = extend::extend(s, &root, unit_ring)?;

        let root = root.each(unit_ring, |plane| repeat_along_rows(plane, x.shape(), width));
        let unit = elementwise(s, &d.low(unit_ring), &root, unit_ring)?;
        let unit: Masked<u64> = truncate::truncate(s, unit, spec.unit_truncate, spec.unit_ring)?;

        let ring = spec.ring + spec.truncate;
        let gain = gain.low::<u64>(ring).each(ring, |plane| repeat_rows(plane, x.shape(), rows));
        let z = elementwise(s, &unit.low(ring), &gain, ring)?.add_columns(&bias.low(ring));
        truncate::truncate(s, z, spec.truncate, spec.ring)
    })
}

/// `width x - sum x`, row by row.
fn centre<E: Element>(plane: &Tensor<E>) -> Tensor<E> {
    let width = E::from_u64(plane.width() as u64);
    let sums = plane.sum_rows();
    let mut out = plane.map(|v| v.mul(width));
    out.zip_rows(sums.data(), E::sub);
    out
}

/// One value a row, repeated over the row.
pub(crate) fn repeat_along_rows<E: Element>(column: &Tensor<E>, shape: &[usize], width: usize) -> Tensor<E> {
    let mut data = vec![E::ZERO; column.len() * width];
    data.chunks_exact_mut(width.max(1)).zip(column.data()).for_each(|(line, &v)| line.fill(v));
    Tensor::new(shape, data)
}

/// One row, repeated.
fn repeat_rows<E: Element>(row: &Tensor<E>, shape: &[usize], rows: usize) -> Tensor<E> {
    Tensor::new(shape, row.data().repeat(rows))
}
