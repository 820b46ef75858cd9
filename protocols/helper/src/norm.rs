//! LayerNorm and RMSNorm: six rounds.
//!
//! The input is extended once. RMSNorm takes no mean off: there `d = x`, and there is no bias. For LayerNorm, with `d = width x - sum x` (exact, local), `g = d gain` is truncated to a narrow row of products,
//! while `v = sum d^2` (one row dot product of a coarser `d`) goes through its inverse root; the result is `g / sqrt v + bias`,
//! one product of the narrow `g` with a wide root and one truncation. The ratio between `d` and `sqrt v` drops out, so the
//! input may be at any scale; the gain carries what is left of powers of the width (see [`NormSpec`]).
//!
//! | round | elements | rows |
//! | --- | --- | --- |
//! | 1 | `x` extended | |
//! | 2 | `d gain` truncated | `v` remasked |
//! | 3, 4 | | comparisons of `v` with the edges; beside them `v` extended for its lines |
//! | 5 | | lines truncated; where they do not reach the ring of the last product, extended in one round more |
//! | 6 | `g root + bias` truncated | |
//!
//! *Cost*, an element, with the input in `k` bits, extended to `R`; `g` in `n` bits, truncated by `f`; the last product in `w` bits:
//! online `(R - k) + (n + f) + w` each way; dealt `2 (R - k) + (n + f) + w + 3 (w - n)`.
//!
//! *Error*: that of the inverse root, relative; a unit of `g` times the root; about a unit of the result. `v` is off by the noise of
//! its shift, half of a squared unit an element beside a mean square of at least `2^8`.
//!
//! *Security*: built from other primitives. What an evaluator receives are dealt halves of fresh sharings (extension, comparison,
//! products) and the other evaluator's halves under masks that are drawn for each exchange and that it does not know
//! (extension, truncation, remasking): all of it uniform.

use tercet_core::spec::NormSpec;
use tercet_core::{Cost, Result, Session};
use tercet_ring::{Element, Tensor};

use crate::linear::{self, elementwise, row_dot};
use crate::masked::Masked;
use crate::{extend, inverse, mixed, truncate};

/// The wire cost of normalising `rows` rows of `width` that come in `ring`.
pub fn cost(rows: usize, width: usize, ring: u32, spec: &NormSpec) -> Cost {
    let len = rows * width;
    let inverse = &spec.inverse;
    let (square_ring, last) = (spec.square_ring(), spec.ring + spec.truncate);
    let square = linear::cost(rows, square_ring).and(truncate::cost(rows, 0, square_ring));
    let scaled = linear::cost(len, spec.scaled_ring + spec.scaled_truncate).and(truncate::cost(
        len,
        spec.scaled_truncate,
        spec.scaled_ring,
    ));
    extend::cost(len, ring, spec.extended)
        .then(square.and(scaled))
        .then(inverse::cost(rows, inverse).and(extend::cost(rows, square_ring - spec.v_shift, inverse.ring)))
        .then(extend::cost(rows, inverse.ring_out, last))
        .then(mixed::cost(len, spec.scaled_ring, last).and(truncate::cost(len, spec.truncate, spec.ring)))
}

/// Normalises the rows of `x`, whatever its ring. `gain` and `bias` are rows as [`NormSpec`] wants them, in rings of at least
/// `scaled_ring + scaled_truncate` and `ring + truncate`.
pub fn layer_norm<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    gain: &Masked<u64>,
    bias: &Masked<u64>,
    spec: &NormSpec,
) -> Result<Masked<E>> {
    normalized(s, x, gain, Some(bias), spec)
}

/// As [`layer_norm`], without a bias: for RMSNorm.
pub fn rms_norm<E: Element>(s: &mut Session, x: &Masked<E>, gain: &Masked<u64>, spec: &NormSpec) -> Result<Masked<E>> {
    normalized(s, x, gain, None, spec)
}

fn normalized<E: Element>(
    s: &mut Session,
    x: &Masked<E>,
    gain: &Masked<u64>,
    bias: Option<&Masked<u64>>,
    spec: &NormSpec,
) -> Result<Masked<E>> {
    s.scope("norm", |s| {
        let rows = x.planes()[0].rows();
        let x: Masked<u64> = extend::extend(s, x, spec.extended)?;
        let d = if spec.centred { x.each(x.ring(), centre) } else { x };

        let coarse: Masked<u64> = d.shift_nearest(spec.square_shift);
        let square = row_dot(s, &coarse, &coarse, spec.square_ring())?;
        let square = truncate::post(s, square, 0, spec.square_ring())?;
        let product_ring = spec.scaled_ring + spec.scaled_truncate;
        let gain = gain.low::<u64>(product_ring).each(product_ring, |plane| repeat_rows(plane, d.shape(), rows));
        let d: Masked<u64> = d.shift_nearest::<u64>(spec.shift).low(product_ring);
        let scaled = elementwise(s, &d, &gain, product_ring)?;
        let scaled = truncate::post(s, scaled, spec.scaled_truncate, spec.scaled_ring)?;

        let v: Masked<u64> = square.finish::<u64>(s)?.plus(spec.epsilon).shift(spec.v_shift);
        let root = inverse::post(s, &v, &spec.inverse)?;
        let lines = extend::post::<u64, u64>(s, &v, spec.inverse.ring)?;
        let scaled: Masked<u64> = scaled.finish(s)?;
        let root = root.next(s)?;
        let v = lines.finish(s)?;
        let root = root.next(s, &v, &spec.inverse)?.finish::<u64>(s)?;
        let ring = spec.ring + spec.truncate;
        let root: Masked<u64> = extend::extend(s, &root, ring)?;

        let z = mixed::scale_rows(s, &scaled, &root)?;
        let z = if let Some(bias) = bias { z.add_columns(&bias.low(ring)) } else { z };
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
