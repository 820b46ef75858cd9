//! The rows of a table at places that nobody sees: how a chosen token goes back in.
//!
//! A place is `i = c - lambda` in `Z_2^b`, `c` known to both evaluators and `lambda` to P0. P0 deals an additive sharing of the
//! one-hot encoding of `lambda` over the whole of `Z_2^b`; read at `c - j` it is a sharing of `[lambda = c - j] = [i = j]`, for every row `j` of the
//! table, without a round. With a public table the evaluators multiply their halves by it, and remask the row (one round). With
//! a masked one the encoding is remasked first (one round), is the left operand of a product with the table as it lies, and the
//! row is remasked (a second round).
//!
//! *Error*: none. *Cost*: `2^b` ring elements dealt a place, one a row of the table each way, and for each column one dealt and one each
//! way; two passes over the table at each party. With a public table nothing but the encoding is dealt, nothing of it travels between the
//! evaluators, and each makes one pass.
//!
//! *Security*: an evaluator receives halves of fresh sharings and the other's halves under uniform masks. `c` is public to both, so it
//! may choose addresses; `lambda` chooses none.

use tercet_core::{Cost, Error, Result, Session};
use tercet_ring::Element;

use crate::masked::{Additive, Masked};
use crate::{linear, truncate};

/// A table as one party holds it.
#[derive(Clone, Copy)]
pub enum Table<'a, E> {
    /// The planes of [`Masked`].
    Secret([&'a [E]; 2]),
    /// The values.
    Public(&'a [E]),
}

/// The wire cost of `count` rows of a table `[entries, width]` in `Z_2^ring` at places of `index_bits` bits.
pub fn cost(count: usize, [entries, width]: [usize; 2], index_bits: u32, ring: u32, public: bool) -> Cost {
    let encoding = Cost::deal(count << index_bits, ring);
    let row = truncate::cost(count * width, 0, ring);
    if public {
        return encoding.then(row);
    }
    encoding.and(truncate::cost(count * entries, 0, ring)).then(linear::cost(count * width, ring).and(row))
}

/// The rows `[count, width]`, in `Z_2^ring`, of `table: [entries, width]` at `places: [count, 1]`; zeros where a place lies beyond the
/// table.
///
/// # Errors
/// A table with more rows than places tell.
pub fn rows_at<E: Element>(
    s: &mut Session,
    places: &Masked<E>,
    table: Table<'_, E>,
    [entries, width]: [usize; 2],
    ring: u32,
) -> Result<Masked<E>> {
    let (count, bits) = (places.len(), places.ring());
    if bits > 32 || entries as u64 > 1 << bits {
        return Err(Error::Misuse(format!("places of {bits} bits in a table of {entries} rows")));
    }
    s.scope("reentry", |s| {
        let domain = 1usize << bits;
        let dealt = s.scope("one-hot", |s| {
            s.deal(count * domain, ring, |_| {
                let mut encoding = vec![E::ZERO; count * domain];
                for (encoding, lambda) in encoding.chunks_exact_mut(domain).zip(places.lambda()) {
                    encode(lambda.to_u64(), encoding);
                }
                encoding
            })
        })?;
        let mut half = Vec::new();
        if !s.is_helper() {
            half.reserve(count * entries);
            for (encoding, c) in dealt.chunks_exact(domain).zip(places.m()) {
                let c = c.low(bits).to_u64() as usize;
                half.extend((0..entries).map(|j| encoding[c.wrapping_sub(j) & (domain - 1)]));
            }
        }
        let encoding = Additive::new(s.party(), [count, entries], half);
        let shape = [count, entries, width];
        let rows = match table {
            Table::Public(values) => linear::public_product(s, &encoding, values, shape)?,
            Table::Secret(planes) => {
                let encoding: Masked<E> = truncate::remask(s, encoding, ring)?;
                linear::table_product(s, &encoding, planes, shape, ring)?
            }
        };
        truncate::remask(s, rows, ring)
    })
}

/// `[i = lambda]` for every `i`, whatever `lambda` by the same steps.
fn encode<E: Element>(lambda: u64, out: &mut [E]) {
    tercet_ring::simd::run!(|| {
        for (i, out) in (0u64..).zip(out) {
            let apart = i ^ lambda;
            *out = E::from_u64(1 ^ ((apart | apart.wrapping_neg()) >> 63));
        }
    });
}
