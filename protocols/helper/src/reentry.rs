//! The rows of a table at places that nobody sees: how a chosen token goes back in.
//!
//! A place is `i = c - lambda` in `Z_2^b`, `c` known to both evaluators and `lambda` to P0. P0 makes the two keys of the unit vector of
//! `lambda` over the whole of `Z_2^b` ([`tercet_ring::dpf::unit`]): their roots are drawn, and the corrections, the same for both
//! evaluators, are sent. What a key expands to, read at `c - j`, is a half of `[lambda = c - j] = [i = j]` for every row `j` of the table,
//! without a round. With a public table the evaluators multiply their halves by it, and remask the row (one round). With a
//! masked one the vector is remasked first (one round), is the left operand of a product with the table as it lies, and the
//! row is remasked (a second round).
//!
//! *Error*: none. *Cost*: a few hundred bytes from P0 a place; one ring element a row of the table each way, and for each column one
//! dealt and one each way; two passes over the table at each party. With a public table nothing is dealt, nothing of the vector travels
//! between the evaluators, and each makes one pass.
//!
//! *Security*: an evaluator holds one key of a pair, pseudorandom and independent of `lambda` (Boyle, Gilboa, Ishai 2016): its root is
//! drawn, the corrections look uniform to whoever has not the other root. Beyond that it receives halves of fresh sharings and the
//! other's halves under uniform masks. `c` is public to both, so it may choose addresses; `lambda` chooses none.

use tercet_core::{Cost, Drawn, Error, Result, Session, Work};
use tercet_net::PartyId;
use tercet_ring::Element;
use tercet_ring::dpf::Side;
use tercet_ring::dpf::unit::{self, Corrections};
use zeroize::Zeroizing;

use crate::masked::{Additive, Masked};
use crate::plane::Plane;
use crate::{linear, truncate};

/// A table as one party holds it.
#[derive(Clone, Copy)]
pub enum Table<'a, E> {
    /// The planes of [`Masked`].
    Secret([Plane<'a, E>; 2]),
    /// The values.
    Public(Plane<'a, E>),
}

/// The wire cost of `count` rows of a table `[entries, width]` in `Z_2^ring`, in lanes `E`, at places of `index_bits` bits.
pub fn cost<E: Element>(count: usize, [entries, width]: [usize; 2], index_bits: u32, ring: u32, public: bool) -> Cost {
    let (words, levels) = (unit::block_words::<E>(index_bits), unit::levels::<E>(index_bits));
    let keys = Cost::tell(count * words, 64).and(Cost::tell(count, levels.max(1)));
    let row = truncate::cost(count * width, 0, ring);
    if public {
        return keys.then(row);
    }
    keys.and(truncate::cost(count * entries, 0, ring)).then(linear::cost(count * width, ring).and(row))
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
        let here = here(s, places, entries)?;
        let shape = [count, entries, width];
        let rows = match table {
            Table::Public(values) => linear::public_product(s, &here, values, shape)?,
            Table::Secret(planes) => {
                let here: Masked<E> = truncate::remask(s, here, ring)?;
                linear::table_product(s, &here, planes, shape, ring)?
            }
        };
        truncate::remask(s, rows, ring)
    })
}

/// `[count, entries]`: for every place 1 in its column and 0 elsewhere.
fn here<E: Element>(s: &mut Session, places: &Masked<E>, entries: usize) -> Result<Additive<E>> {
    s.scope("one-hot", |s| {
        let (count, bits) = (places.len(), places.ring());
        let (words, levels, domain) = (unit::block_words::<E>(bits), unit::levels::<E>(bits), 1usize << bits);
        // Wiped after use, as the keys that they are the roots of.
        let Drawn { first, second } = s.draw::<u64>(count * unit::ROOT);
        let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
        let root = |of: &[u64], place: usize| std::array::from_fn(|i| of[place * unit::ROOT + i]);
        let mut corrections = Vec::new();
        if s.is_helper() {
            let roots = |place| [root(&first, place), root(&second, place)];
            let lambda = places.lambda();
            let correct =
                |(place, lambda): (usize, &E)| unit::correct::<E>(roots(place), bits, lambda.to_u64() as usize);
            corrections = s.timed(Work::Randomness, |_| lambda.iter().enumerate().map(correct).collect());
        }
        let blocks = s.tell(count * words, 64, |_| corrections.iter().flat_map(|c| &c.blocks).copied().collect())?;
        let right = s.tell(count, levels.max(1), |_| corrections.iter().map(|c| c.right).collect())?;
        let (roots, side) = match s.party() {
            PartyId::P0 => return Ok(Additive::new(s.party(), [count, entries], Vec::new())),
            PartyId::P1 => (first, Side::First),
            PartyId::P2 => (second, Side::Second),
        };
        let mut vector = vec![E::ZERO; domain];
        let mut half = Vec::with_capacity(count * entries);
        for (place, (c, (blocks, &right))) in places.m().iter().zip(blocks.chunks_exact(words).zip(&right)).enumerate()
        {
            let corrections = Corrections { blocks, right };
            s.timed(Work::Randomness, |_| unit::expand(root(&roots, place), side, corrections, bits, &mut vector));
            let c = c.low(bits).to_u64() as usize;
            half.extend((0..entries).map(|j| vector[c.wrapping_sub(j) & (domain - 1)]));
        }
        Ok(Additive::new(s.party(), [count, entries], half))
    })
}
