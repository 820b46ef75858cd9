//! Planes of a weight: held in memory, or masks that are drawn from their seed wherever they are needed.
//!
//! The masks of a model's weights are the streams of two seeds, `l1` of one that P0 and P1 have and `l2` of one that P0 and P2 have. A party
//! that has the seed has the plane, at about the speed at which memory would give it ([`tercet_ring::matmul::matmul_generated`]),
//! so P0 needs no memory for weights, and each evaluator one plane instead of two.

use std::borrow::Cow;

use tercet_ring::{Element, Prg};

/// One plane of a tensor, row-major.
#[derive(Clone, Copy)]
pub enum Plane<'a, E> {
    /// In memory.
    Held(&'a [E]),
    /// Drawn where it is needed.
    Drawn(Masks<'a>),
}

/// The masks of a tensor: a stream of a seed.
#[derive(Clone, Copy)]
pub struct Masks<'a> {
    prg: &'a Prg,
    stream: u64,
}

impl<'a> Masks<'a> {
    /// Stream `stream` of a generator, its lanes from the first on.
    pub fn new(prg: &'a Prg, stream: u64) -> Masks<'a> {
        Masks { prg, stream }
    }

    /// Elements from `first` on.
    pub fn fill<E: Element>(&self, first: usize, out: &mut [E]) {
        self.prg.fill(self.stream, first as u64, out);
    }
}

impl<'a, E: Element> Plane<'a, E> {
    /// Elements `first..first + len`.
    pub fn part(&self, first: usize, len: usize) -> Cow<'a, [E]> {
        match self {
            Plane::Held(plane) => Cow::Borrowed(&plane[first..first + len]),
            Plane::Drawn(masks) => {
                let mut out = vec![E::ZERO; len];
                masks.fill(first, &mut out);
                Cow::Owned(out)
            }
        }
    }
}
