//! Private lookup in a secret table by a secret index (protocol.md, "Private lookup").
//!
//! Each component of the table is held by two parties (`m`: P1, P2; `l1`: P0, P1; `l2`: P0, P2), so each is a two-server PIR: the client
//! makes one distributed point function per component, each holder takes the inner product of its expanded key with its
//! plane, and the six results are an additive sharing of the row over three parties. P0 deals its two.
//!
//! *Error*: none. *Cost*: one pass over the table, one dealt ring element an output, one round. *Security*: a key alone
//! is pseudorandom (Boyle, Gilboa, Ishai 2016); an evaluator further receives halves of fresh sharings and the other's half
//! under a uniform mask. This is the one step in which P0's message depends on a request; it still receives only keys.

use tercet_core::{Cost, Result, Session, Work};
use tercet_net::PartyId;
use tercet_ring::{Element, Tensor, dpf, matmul};

use crate::masked::{Additive, Masked};
use crate::truncate;

/// The keys of one party: for each of its two planes (in the order of [`Masked::planes`]) one key a looked-up row.
pub struct Keys {
    /// Plane by plane.
    pub planes: [Vec<dpf::Key>; 2],
}

/// The wire cost of looking up `count` rows of `width`.
pub fn cost(count: usize, width: usize, ring: u32) -> Cost {
    Cost::deal(count * width, ring).and(truncate::cost(count * width, 0, ring))
}

/// The rows `[count, width]` that the keys point at, of a table whose two planes `[rows, width]` this party holds.
pub fn lookup<E: Element>(
    s: &mut Session,
    table: [&[E]; 2],
    [rows, width]: [usize; 2],
    keys: &Keys,
    ring: u32,
) -> Result<Masked<E>> {
    // Bounds the expanded keys to a few megabytes.
    const KEYS_AT_ONCE: usize = 32;
    s.scope("lookup", |s| {
        let count = keys.planes[0].len();
        let component = |s: &mut Session, plane: usize| {
            let mut out = vec![E::ZERO; count * width];
            for (keys, out) in keys.planes[plane].chunks(KEYS_AT_ONCE).zip(out.chunks_mut(KEYS_AT_ONCE * width)) {
                let points: Vec<E> =
                    s.timed(Work::Randomness, |_| keys.iter().flat_map(|key| key.eval_all::<E>(rows)).collect());
                s.timed(Work::Matmul, |s| {
                    matmul::matmul(s.pool(), &points, table[plane], out, keys.len(), rows, width, false);
                });
            }
            out
        };
        let (first, second) = (component(s, 0), component(s, 1));
        // x = m - l1 - l2; the first plane is m at P1 and P2, both planes are masks at P0.
        let mut own: Vec<E> = match s.party() {
            PartyId::P0 => first.iter().zip(&second).map(|(&a, &b)| E::ZERO.sub(a).sub(b)).collect(),
            _ => crate::masked::zip(&first, &second, E::sub),
        };
        let dealt = s.deal(count * width, ring, |_| std::mem::take(&mut own))?;
        let half = if s.is_helper() { Vec::new() } else { crate::masked::zip(&own, &dealt, E::add) };
        let z = Additive::new(s.party(), [count, width], half);
        truncate::remask(s, z, ring)
    })
}

/// The two planes of a masked tensor as a table.
pub fn planes<E: Element>(table: &Masked<E>) -> [&[E]; 2] {
    table.planes().each_ref().map(Tensor::data)
}
