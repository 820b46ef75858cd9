//! Opening to the client: the one way out of values. To nodes nothing is opened but the bits of a public gate (`bits.rs`).
//!
//! Each party hands the client its two planes; the client holds every component twice and refuses the answer where two
//! copies differ.

use std::ops::Range;

use tercet_net::OutputShare;
use tercet_ring::{Element, pack};

use crate::masked::Masked;

/// This party's part of elements `range` of an output, packed to the ring's width.
pub fn to_client<E: Element>(output: &Masked<E>, range: Range<usize>) -> OutputShare {
    let packed = |plane: &tercet_ring::Tensor<E>| {
        let mut bytes = Vec::new();
        pack::pack(&plane.data()[range.clone()], output.ring(), &mut bytes);
        bytes
    };
    OutputShare { planes: [packed(&output.planes()[0]), packed(&output.planes()[1])] }
}
