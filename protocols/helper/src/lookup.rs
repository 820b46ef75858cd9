//! Private lookup in a secret table by a secret index.
//!
//! A row is `x = m - lambda` with `lambda = l1 + l2`: two tables, each looked up by a pair of keys (distributed point functions,
//! [`tercet_ring::dpf`]) that the client makes for every index.
//!
//! ```text
//! value pair   first: P1   second: P2           into m, which both hold
//! mask pair    first: P0   second: P1 and P2    into lambda: P0 holds l1 + l2, P1 holds l1, P2 holds l2
//! ```
//!
//! A key expands to a bit a row, and its holder sums the rows whose bit is 1 ([`tercet_ring::subset`]: no multiplication). The
//! bits of a pair differ at the index alone, so the first's sums less the second's are `±` the row. P1 and P2 may share a
//! key because `l1` and `l2` are looked up at the same index, and both their sums are subtracted from P0's: one sign serves both.
//!
//! The two signs are which key has the 1 at the index, a fair coin each (making it the first would tell both holders one bit
//! about the index). The client, who made the keys, shares them like any other input. Then, with P0's sum dealt,
//!
//! 1. the sums of both pairs, additive between the evaluators, are remasked (one round);
//! 2. the row is their product with the masked signs `[s, -s']`: two multiplications an output and one dealt value;
//! 3. that is remasked (one round).
//!
//! *Error*: none. *Cost*: P0 two passes over the table and P1, P2 two, a few additions a row and column; two dealt ring
//! elements an output, three each way between the evaluators, two rounds.
//!
//! *Security*: what a party gets from the client is keys of pairs whose other key it has not, each pseudorandom and
//! independent of the index and of each other (Boyle, Gilboa, Ishai 2016), and signs under a mask that it does not know. That
//! P1 and P2 have one key in common tells neither anything that its own copy does not. From P0 an evaluator receives halves of
//! fresh sharings (P0's sum and the product's mask term), from the other evaluator sums under uniform masks. P0 receives
//! keys and seeds; this is the one step in which what it sends depends on a request. Signs never meet an evaluator in the
//! clear: a holder of a key that knew its sign would know its own bit at the index, and so half of the rows that are not asked for.

use tercet_core::{Cost, Result, Session, Work};
use tercet_net::PartyId;
use tercet_ring::{Element, dpf, subset};

use crate::linear::{self, Prepared, matrix_product};
use crate::masked::{Additive, Masked, zip};
use crate::plane::Plane;
use crate::truncate;

/// The pairs of a row: into `m` and into `lambda`.
pub const PAIRS: usize = 2;

/// One party's part of the indices: a key of each pair that it holds one of, and the signs.
pub struct Keys<E> {
    /// A key of the value pair for every row; none at P0.
    pub value: Vec<dpf::Key>,
    /// A key of the mask pair for every row.
    pub mask: Vec<dpf::Key>,
    /// `[rows, 2]` in the ring of the table: the sign of the value pair, and that of the mask pair negated.
    pub signs: Masked<E>,
}

impl<E> Keys<E> {
    /// Which key of the value pair a party holds.
    pub fn value_side(party: PartyId) -> Option<dpf::Side> {
        match party {
            PartyId::P0 => None,
            PartyId::P1 => Some(dpf::Side::First),
            PartyId::P2 => Some(dpf::Side::Second),
        }
    }

    /// Which key of the mask pair a party holds.
    pub fn mask_side(party: PartyId) -> dpf::Side {
        if party == PartyId::P0 { dpf::Side::First } else { dpf::Side::Second }
    }
}

/// The wire cost of looking up `count` rows of `width`.
pub fn cost(count: usize, width: usize, ring: u32) -> Cost {
    let len = count * width;
    let sums = Cost::deal(len, ring).and(truncate::cost(PAIRS * len, 0, ring));
    sums.then(linear::cost(len, ring).and(truncate::cost(len, 0, ring)))
}

/// The rows `[count, width]` that the keys point at, of a table whose two planes `[rows, width]` this party holds.
pub fn lookup<E: Element>(
    s: &mut Session,
    table: [Plane<'_, E>; 2],
    [rows, width]: [usize; 2],
    keys: &Keys<E>,
    ring: u32,
) -> Result<Masked<E>> {
    let count = keys.mask.len();
    let len = count * width;
    assert_eq!(keys.signs.shape(), [count, PAIRS], "two signs a row");
    s.scope("lookup", |s| {
        let [first, second] = table;
        let mut own = if s.is_helper() {
            sums(s, &keys.mask, &[first, second], [rows, width])
        } else {
            // The first plane is m at both, the second l1 or l2.
            assert_eq!(keys.value.len(), count, "a key of either pair a row");
            let mask = sums(s, &keys.mask, &[second], [rows, width]);
            let value = sums(s, &keys.value, &[first], [rows, width]);
            // What the second of a pair holds is subtracted.
            let negate = |sums: Vec<E>| sums.into_iter().map(|v| E::ZERO.sub(v)).collect::<Vec<E>>();
            let value = if s.party() == PartyId::P1 { value } else { negate(value) };
            [value, negate(mask)].concat()
        };
        let dealt = s.deal(len, ring, |_| std::mem::take(&mut own))?;
        let half = if s.is_helper() {
            Vec::new()
        } else {
            let (value, mask) = own.split_at(len);
            let mask = zip(mask, &dealt, E::add);
            // Row by row, so that the two of a row are the right operand of its product.
            let rows = value.chunks(width.max(1)).zip(mask.chunks(width.max(1)));
            rows.flat_map(|(value, mask)| value.iter().chain(mask)).copied().collect()
        };
        let pairs: Masked<E> = truncate::remask(s, Additive::new(s.party(), [count, PAIRS, width], half), ring)?;
        let signs = keys.signs.clone().reshape([count, 1, PAIRS]);
        let row = matrix_product(s, &signs, Prepared::new(&pairs).operand(), [count, 1, PAIRS, width], ring)?;
        truncate::remask(s, row.reshape([count, width]), ring)
    })
}

/// `[keys, width]`: for each key the sum of the rows whose bit is 1, over all `planes` together.
fn sums<E: Element>(s: &mut Session, keys: &[dpf::Key], planes: &[Plane<'_, E>], [rows, width]: [usize; 2]) -> Vec<E> {
    let words = rows.div_ceil(64);
    let mut subsets = vec![0u64; keys.len() * words];
    s.timed(Work::Randomness, |s| {
        s.pool().chunks(&mut subsets, words, |first, out| keys[first / words].expand(rows, out));
    });
    let mut out = vec![E::ZERO; keys.len() * width];
    s.timed(Work::Matmul, |s| {
        for (number, plane) in planes.iter().enumerate() {
            let shape = [keys.len(), rows, width];
            match plane {
                Plane::Held(plane) => subset::sums(s.pool(), &subsets, plane, &mut out, shape, number > 0),
                Plane::Drawn(masks) => {
                    let make = |row: usize, out: &mut [E]| masks.fill(row * width, out);
                    subset::sums_generated(s.pool(), &subsets, make, &mut out, shape, number > 0);
                }
            }
        }
    });
    out
}

/// The two planes of a masked tensor as a table.
pub fn planes<E: Element>(table: &Masked<E>) -> [Plane<'_, E>; 2] {
    table.planes().each_ref().map(|plane| Plane::Held(plane.data()))
}
