//! Private lookup in a secret table by a secret index.
//!
//! A row is `x = m - lambda` with `lambda = l1 + l2`: two tables, each looked up by a pair of keys
//! (distributed point functions, [`tercet_ring::dpf`]) that the client makes for every index.
//!
//! ```text
//! value pair   first: P1   second: P2           into m, which both hold
//! mask pair    first: P0   second: P1 and P2    into lambda: P0 holds l1 + l2, P1 holds l1, P2 holds l2
//! ```
//!
//! A key expands to a bit a row, and its holder sums the rows whose bit is 1
//! ([`tercet_ring::subset`]: no multiplication). The bits of a pair differ at the index alone, so
//! the first's sums less the second's are `±` the row. P1 and P2 may share a key because `l1` and
//! `l2` are looked up at the same index, and both their sums are subtracted from P0's: one sign
//! serves both.
//!
//! The two signs are which key has the 1 at the index, a fair coin each (making it the first would
//! tell both holders one bit about the index). The client, who made the keys, shares them as *bits*
//! `b = beta ^ sigma`, `beta` at P1 and P2, `sigma` at P0. A sign is `(1 - 2 beta) t` with
//! `t = 1 - 2 sigma`: whatever a client sends, it is 1 or -1. Then
//!
//! 1. P0 deals its sum and both `t`. The evaluators multiply what they have of either pair by its
//!    `1 - 2 beta`, and remask these sums (one round);
//! 2. the row is the sum of `t y` over both pairs. The `y` are masked by now and P0 knows `t`:
//!    halves of `t` times masked values, less the sum of `t lambda_y`, which P0 deals;
//! 3. that is remasked (one round).
//!
//! # A client that deviates
//!
//! Let `a`, `b` be the bits of the keys of the value pair, `c`, `e` those of the mask pair, `s` the
//! sign of the one and `s'` that of the other, negated because a mask is subtracted. What is
//! computed is `<u, m> + <w, lambda>` with `u = s (a - b)` and `w = s' (c - e)`. Where `w = -u` it
//! is `<u, x>`, a combination of rows. Anything else would tell of masks, and with them of the
//! table. So the same keys and signs are also applied to a few columns `rho`, common to all three
//! parties, which P0 draws and tells once the keys are there. With `r = 1 - 2 beta`, primed for the
//! mask pair,
//!
//! ```text
//! t <u + w, rho> = r <a - b, rho> + r' t t' <c - e, rho>      the sum of
//!     P1   r <a, rho> + r' (half of t t' <c, rho>  -  <e, rho> * half of t t')
//!     P2  -r <b, rho> + r' (half of t t' <c, rho>  -  <e, rho> * half of t t')
//! ```
//!
//! These are local, given the halves that P0 deals for each column, since both evaluators have `e`.
//! They exchange them beside the first remasking. Where the sum is not zero they set all rows of
//! that request to zero before the second one, and refuse it; its neighbours never notice. So all
//! that follows, what a public gate opens and what clients get among it, is of rows `<u, x>`.
//!
//! *Completeness*: for an honest client `w = -u`, and the sum is zero, always.
//!
//! *Soundness*: the entries of `u + w` are within ±2, whatever bits the keys expand to. One that is
//! not zero, times a uniform `rho`, is any given number with probability at most `2^(1 - k)` in
//! `Z_2^k`; columns of `CHECK_BITS` bits together make it at most `2^-62`. Nor need the copies be
//! equal that P1 and P2 got: with different `beta` of the value pair `u` is another vector, and
//! `u + w` within ±3; with different `beta` of the mask pair twice a fresh half is left in the sum;
//! with different keys `e1`, `e2` a fresh half of `t t'` times `<e1 - e2, rho>` is, in every column
//! its own. Such a sum is zero with a probability below `2^-55`.
//!
//! *Privacy*: the half that an evaluator receives is the sum less its own, so it tells the sum.
//! That is made of what the client sent and of `rho`, never of the table, and is zero for an honest
//! client. P0 takes no part in it.
//!
//! *Error*: none. *Cost*: P0 two passes over the table and P1, P2 two, a few additions a row and
//! column; two dealt ring elements an output, three each way between the evaluators, two rounds. Of
//! these the check takes the seed of `rho`, and for each index `CHECK_BITS` bits each way and
//! twice as many dealt.
//!
//! *Security*: what a party gets from the client is keys of pairs whose other key it has not, each
//! pseudorandom and independent of the index and of each other (Boyle, Gilboa, Ishai 2016), and
//! signs under a mask that it does not know. That P1 and P2 have one key in common tells neither
//! anything that its own copy does not. From P0 an evaluator receives a seed, and halves of fresh
//! sharings (P0's sums, the signs and their product, the product's mask term); from the other
//! evaluator sums under uniform masks, and its half of zero. P0 receives keys and seeds; this is
//! the one step in which what it sends depends on a request. Signs never meet an evaluator in the
//! clear: a holder of a key that knew its sign would know its own bit at the index, and so half of
//! the rows that are not asked for.

use tercet_core::{Cost, Result, Session, Work};
use tercet_net::PartyId;
use tercet_ring::{Element, Prg, Seed, dpf, subset};

use crate::linear;
use crate::masked::{Additive, Masked, zip};
use crate::plane::Plane;
use crate::truncate;

/// The pairs of a row: into `m` and into `lambda`.
pub const PAIRS: usize = 2;

/// The ring in which a sign is shared: a bit.
pub const SIGN_RING: u32 = 1;

/// Bits of the columns that keys and signs are checked on, at least.
const CHECK_BITS: u32 = 64;
/// Rows of them whose bits are one word of an expanded key.
const BLOCK: usize = u64::BITS as usize;
/// Words of the seed that these columns grow from.
const SEED_WORDS: usize = 4;

/// One party's part of the indices: a key of each pair that it holds one of, and the signs.
pub struct Keys<E> {
    /// A key of the value pair for every row; none at P0.
    pub value: Vec<dpf::Key>,
    /// A key of the mask pair for every row.
    pub mask: Vec<dpf::Key>,
    /// `[rows, 2]` bits, in [`SIGN_RING`]: whether the sign of the value pair is negative, and
    /// whether that of the mask pair is positive (a mask is subtracted).
    pub signs: Masked<E>,
    /// How many of the rows are whose: those of each request, in order.
    pub requests: Vec<usize>,
}

/// What was looked up.
pub struct Found<E> {
    /// `[rows, width]`; zeros for a request that is refused.
    pub rows: Masked<E>,
    /// For each request whether its keys and signs contradict each other. The helper does not learn
    /// it and takes none for refused.
    pub refused: Vec<bool>,
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

/// Columns that keys and signs are checked on.
fn check_columns(ring: u32) -> usize {
    CHECK_BITS.div_ceil(ring) as usize
}

/// The wire cost of looking up `count` rows of `width`.
pub fn cost(count: usize, width: usize, ring: u32) -> Cost {
    let (len, checked) = (count * width, count * check_columns(ring));
    let dealt = Cost::tell(SEED_WORDS, 64).and(Cost::deal(len + 2 * checked + PAIRS * count, ring));
    let sums = Cost::exchange(checked, ring).and(truncate::cost(PAIRS * len, 0, ring));
    dealt.and(sums).then(linear::cost(len, ring).and(truncate::cost(len, 0, ring)))
}

/// The rows `[count, width]` that the keys point at, of a table whose two planes `[rows, width]` this party holds.
pub fn lookup<E: Element>(
    s: &mut Session,
    table: [Plane<'_, E>; 2],
    [rows, width]: [usize; 2],
    keys: &Keys<E>,
    ring: u32,
) -> Result<Found<E>> {
    let count = keys.mask.len();
    let (len, columns) = (count * width, check_columns(ring));
    assert_eq!((keys.signs.shape(), keys.signs.ring()), (&[count, PAIRS][..], SIGN_RING), "two bits a row");
    assert_eq!(keys.requests.iter().sum::<usize>(), count, "every row is a request's");
    s.scope("lookup", |s| {
        let rho = common::<E>(s, columns * rows.next_multiple_of(BLOCK))?;
        // The helper holds both masks, an evaluator m and one of them.
        let masks = if s.is_helper() { &table[..] } else { &table[1..] };
        let [mask, mask_check] = sums(s, &keys.mask, masks, &rho, [rows, width, columns]);
        let bits = if s.is_helper() { keys.signs.lambda() } else { keys.signs.m().to_vec() };
        // `t` at the helper, `1 - 2 beta` at an evaluator.
        let signs: Vec<E> = bits.into_iter().map(|bit| E::ONE.sub(bit.low(1) << 1)).collect();

        let dealt = s.deal(len + 2 * count * columns + PAIRS * count, ring, |_| {
            let both = signs.chunks_exact(PAIRS).flat_map(|of| std::iter::repeat_n(of[0].mul(of[1]), columns));
            let both: Vec<E> = both.collect();
            [mask.as_slice(), &zip(&both, &mask_check, E::mul), &both, &signs].concat()
        })?;
        let (mut factors, mut half, mut check) = (signs, Vec::new(), Vec::new());
        if !s.is_helper() {
            assert_eq!(keys.value.len(), count, "a key of either pair a row");
            let [mut value, mut value_check] = sums(s, &keys.value, &table[..1], &rho, [rows, width, columns]);
            let (of_mask, rest) = dealt.split_at(len);
            let (of_check, rest) = rest.split_at(count * columns);
            let (both, of_signs) = rest.split_at(count * columns);
            let mut mask = zip(of_mask, &mask, E::sub);
            let mut mask_check = zip(of_check, &zip(both, &mask_check, E::mul), E::sub);
            // What the second of a pair holds is subtracted.
            let side = if s.party() == PartyId::P1 { E::ONE } else { E::ZERO.sub(E::ONE) };
            for (row, sign) in factors.chunks_exact(PAIRS).enumerate() {
                let turn = |values: &mut [E], width: usize, sign: E| {
                    values[row * width..][..width].iter_mut().for_each(|v| *v = v.mul(sign));
                };
                turn(&mut value, width, sign[0].mul(side));
                turn(&mut value_check, columns, sign[0].mul(side));
                turn(&mut mask, width, sign[1]);
                turn(&mut mask_check, columns, sign[1]);
            }
            check = zip(&value_check, &mask_check, E::add);
            // The two of a row beside each other.
            let pairs = value.chunks(width.max(1)).zip(mask.chunks(width.max(1)));
            half = pairs.flat_map(|(value, mask)| value.iter().chain(mask)).copied().collect();
            factors = of_signs.to_vec();
        }
        let checking = s.scope("check", |s| s.post(&check, ring))?;
        let pairs = truncate::post(s, Additive::new(s.party(), [count, PAIRS, width], half), 0, ring)?;
        let theirs = s.wait(checking, check.len(), ring)?;
        let pairs: Masked<E> = pairs.finish(s)?;
        let zero: Vec<bool> = zip(&check, &theirs, E::add).iter().map(|sum| sum.low(ring) == E::ZERO).collect();

        // `t` times masks, or half of it times masked values.
        let masked = if s.is_helper() { pairs.lambda() } else { pairs.m().to_vec() };
        let mut products = weighed(s, &factors, &masked, [count, width]);
        let dealt = s.deal(len, ring, |_| std::mem::take(&mut products))?;
        let mut half = zip(&products, &dealt, E::sub);
        let (mut first, mut refused) = (0, Vec::new());
        for &rows in &keys.requests {
            let of = first..first + rows;
            first = of.end;
            refused.push(!s.is_helper() && zero[of.start * columns..of.end * columns].contains(&false));
            if refused.last() == Some(&true) {
                half[of.start * width..of.end * width].fill(E::ZERO);
            }
        }
        let rows = truncate::remask(s, Additive::new(s.party(), [count, width], half), ring)?;
        Ok(Found { rows, refused })
    })
}

/// Values that all three parties have in common, and nobody knew before.
fn common<E: Element>(s: &mut Session, len: usize) -> Result<Vec<E>> {
    let drawn = s.draw::<u64>(SEED_WORDS);
    let mut words = if s.is_helper() { zip(&drawn.first, &drawn.second, |a, b| a ^ b) } else { Vec::new() };
    let told = s.tell(SEED_WORDS, u64::BITS, |_| words.clone())?;
    words.extend(told);
    let mut seed = [0; 8 * SEED_WORDS];
    seed.chunks_exact_mut(8).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
    let mut values = vec![E::ZERO; len];
    s.timed(Work::Randomness, |_| Prg::new(&Seed::from_bytes(seed)).fill(0, 0, &mut values));
    Ok(values)
}

/// `[count, width]`: of each row its [`PAIRS`] parts, which lie one after the other, each times its
/// factor.
fn weighed<E: Element>(s: &mut Session, factors: &[E], parts: &[E], [count, width]: [usize; 2]) -> Vec<E> {
    let mut out = vec![E::ZERO; count * width];
    s.timed(Work::Matmul, |_| {
        tercet_ring::simd::run!(|| {
            let rows = out.chunks_exact_mut(width.max(1)).zip(parts.chunks_exact((PAIRS * width).max(1)));
            for ((out, parts), factors) in rows.zip(factors.chunks_exact(PAIRS)) {
                let (value, mask) = parts.split_at(width);
                let both = value.iter().zip(mask);
                out.iter_mut().zip(both).for_each(|(out, (&value, &mask))| {
                    *out = factors[0].mul(value).add(factors[1].mul(mask));
                });
            }
        });
    });
    out
}

/// For each key the sum of the rows whose bit is 1: `[keys, width]` of all `planes` together, and
/// `[keys, columns]` of `rho`, which lies column by column and is as long as whole words of bits.
fn sums<E: Element>(
    s: &mut Session,
    keys: &[dpf::Key],
    planes: &[Plane<'_, E>],
    rho: &[E],
    [rows, width, columns]: [usize; 3],
) -> [Vec<E>; 2] {
    let words = rows.div_ceil(BLOCK);
    let mut subsets = vec![0u64; keys.len() * words];
    s.timed(Work::Randomness, |s| {
        s.pool().chunks(&mut subsets, words, |first, out| keys[first / words].expand(rows, out));
    });
    let (mut out, mut check) = (vec![E::ZERO; keys.len() * width], vec![E::ZERO; keys.len() * columns]);
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
        s.pool().chunks(&mut check, columns, |first, out| {
            let subset = &subsets[first / columns * words..][..words];
            out.iter_mut().zip(rho.chunks_exact(words * BLOCK)).for_each(|(out, column)| *out = sum(subset, column));
        });
    });
    [out, check]
}

/// The sum of the elements whose bit is 1.
fn sum<E: Element>(subset: &[u64], column: &[E]) -> E {
    let mut sums = [E::ZERO; BLOCK];
    tercet_ring::simd::run!(|| {
        for (word, block) in subset.iter().zip(column.as_chunks::<BLOCK>().0) {
            (0u32..).zip(block).zip(&mut sums).for_each(|((i, &value), sum)| {
                *sum = sum.add(value & E::ZERO.sub(E::from_u64(word >> i & 1)));
            });
        }
    });
    sums.into_iter().fold(E::ZERO, E::add)
}

/// The two planes of a masked tensor as a table.
pub fn planes<E: Element>(table: &Masked<E>) -> [Plane<'_, E>; 2] {
    table.planes().each_ref().map(|plane| Plane::Held(plane.data()))
}
