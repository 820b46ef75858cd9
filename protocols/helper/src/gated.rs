//! The gated product `f(a) b` of two halves side by side: SwiGLU and its like.
//!
//! The activation leaves `f(a)` in the ring of the product at once; `b` is extended to it in a round of the activation's.
//!
//! *Error*: that of the activation times `b`, and 1.5 units. *Cost*: one round more than the activation. *Security*: built from
//! other primitives.

use tercet_core::spec::GatedSpec;
use tercet_core::{Cost, Error, Result, Session};
use tercet_ring::Element;

use crate::masked::Masked;
use crate::{activation, extend, linear, truncate};

/// The wire cost for `len` products of halves that come in `ring` at scale `frac`.
pub fn cost(len: usize, ring: u32, frac: u32, spec: &GatedSpec) -> Cost {
    let product = spec.ring + spec.truncate;
    activation::cost(len, ring, frac, &spec.activation)
        .and(extend::cost(len, ring, product).hidden())
        .then(linear::cost(len, product).and(truncate::cost(len, spec.truncate, spec.ring)))
}

/// `f(a) b` of `x = [.., 2 * width]` at scale `frac`, `a` and `b` side by side: `[.., width]` in `spec.ring`.
///
/// # Errors
/// An odd number of columns, or an activation that leaves a smaller ring than the product's.
pub fn gated<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, spec: &GatedSpec) -> Result<Masked<E>> {
    let (columns, ring) = (x.planes()[0].width(), spec.ring + spec.truncate);
    if !columns.is_multiple_of(2) || activation::result_ring(&spec.activation) < ring {
        let left = activation::result_ring(&spec.activation);
        return Err(Error::Misuse(format!("a gate of {columns} columns in {left} bits for a product in {ring}")));
    }
    s.scope("gated", |s| {
        let (a, b) = (x.columns(0, columns / 2), x.columns(columns / 2, columns));
        let b = extend::post::<E, E>(s, &b, ring)?;
        let gate = activation::activation(s, &a, frac, &spec.activation)?.into_low(ring);
        let b = b.finish(s)?;
        let z = linear::elementwise(s, &gate, &b, ring)?;
        truncate::truncate(s, z, spec.truncate, spec.ring)
    })
}
