//! Unit vectors over a ring, additively shared between two parties in a few hundred bytes: a point function whose payload is
//! the ring's 1.
//!
//! The tree is that of the parent module; a leaf block is as many lanes as it holds, and its correction is taken in the ring
//! (the same paper, Figure 1): with `v` a leaf's pseudorandom lanes and `t` its control bit, the first party's share is `v + t w` and
//! the second's `-(v + t w)`. Off the path both have the same `v` and `t`; on it the correction `w` makes up for the difference. There
//! is no sign to hide: the sum is the vector itself.
//!
//! The two roots are randomness that the maker of a vector shares with each of its holders; the corrections are one and the same
//! for both, and pseudorandom to either.

use super::{BATCH, Ciphers, Correction, Side, control, descend, joined};
use crate::Element;

/// Words of a root.
pub const ROOT: usize = 2;

/// log2 of the lanes of a leaf.
fn leaf_bits<E: Element>() -> u32 {
    (u128::BITS / E::BITS).ilog2()
}

/// Levels of the tree of a vector in lanes `E`: bits of [`Corrections::right`].
pub fn levels<E: Element>(domain_bits: u32) -> u32 {
    domain_bits.saturating_sub(leaf_bits::<E>())
}

/// Words of [`Corrections::blocks`] of a vector in lanes `E`: two a level, and two for the leaf.
pub fn block_words<E: Element>(domain_bits: u32) -> usize {
    2 * levels::<E>(domain_bits) as usize + 2
}

/// What both parties are told.
#[derive(Clone, Copy)]
pub struct Corrections<W> {
    /// A level's seed correction, with that of its left control bit, level by level; then the leaf's.
    pub blocks: W,
    /// Those of the right control bits: bit `i` is that of level `i`.
    pub right: u64,
}

/// The corrections that make the vector of `roots`, the first party's and the second's, the unit vector of `index` among
/// `2^domain_bits`. Roots are uniform and serve for this one call. The index is secret: time and memory accesses do not depend on it.
///
/// # Panics
/// Where the index lies outside the domain, or the domain is wider than 40 bits.
pub fn correct<E: Element>(roots: [[u64; ROOT]; 2], domain_bits: u32, index: usize) -> Corrections<Vec<u64>> {
    let levels = levels::<E>(domain_bits);
    let (corrections, nodes) = descend(rooted(roots), domain_bits, levels, index);
    let [v, u] = nodes.map(|node| lanes::<E>(Ciphers::get().value(node)));
    let place = (index & ((1 << leaf_bits::<E>()) - 1)) as u64;
    // Where the second party's control bit is 1 it is the second that takes the correction, and negates it.
    let negate = E::from_u64(control(nodes[1]) as u64);
    let mut blocks: Vec<u64> = corrections.iter().flat_map(|c| [c.left as u64, (c.left >> 64) as u64]).collect();
    let mut leaf = 0u128;
    for i in 0..1 << leaf_bits::<E>() {
        let apart = i as u64 ^ place;
        let one = E::from_u64(1 ^ (apart | apart.wrapping_neg()) >> 63);
        let w = one.sub(v[i]).add(u[i]);
        leaf |= u128::from((w ^ negate).sub(negate).to_u64()) << (i as u32 * E::BITS);
    }
    blocks.extend([leaf as u64, (leaf >> 64) as u64]);
    Corrections { blocks, right: corrections.iter().rev().fold(0, |bits, c| bits << 1 | u64::from(c.right)) }
}

/// Writes one party's share, modulo the lane, of the first `out.len()` elements of the vector. About three cipher blocks for a block of it.
///
/// # Panics
/// Where `out` is longer than the domain, or the blocks are not as many words as [`block_words`] says.
pub fn expand<E: Element>(
    root: [u64; ROOT],
    side: Side,
    corrections: Corrections<&[u64]>,
    domain_bits: u32,
    out: &mut [E],
) {
    let Corrections { blocks, right } = corrections;
    assert!(out.len().saturating_sub(1) >> domain_bits == 0, "{} of 2^{domain_bits} elements", out.len());
    assert_eq!(blocks.len(), block_words::<E>(domain_bits), "corrections of 2^{domain_bits} elements");
    let (levels, leaf) = blocks.split_at(blocks.len() - 2);
    let leaf = lanes::<E>(joined([leaf[0], leaf[1]]));
    let each = 1 << leaf_bits::<E>();
    let leaves = out.len().div_ceil(each);
    let [first, second] = rooted([root; 2]);
    let (mut nodes, negate) = match side {
        Side::First => (vec![first], E::ZERO),
        Side::Second => (vec![second], E::mask(E::BITS)),
    };
    let ciphers = Ciphers::get();
    let count = levels.len() / 2;
    for (level, left) in levels.as_chunks::<2>().0.iter().enumerate() {
        let correction = Correction { left: joined(*left), right: (right >> level & 1) as u8 };
        nodes = ciphers.expand(&nodes, &correction, leaves.div_ceil(1 << (count - 1 - level)));
    }
    nodes.truncate(leaves);
    let mut values = [0; BATCH];
    for (batch, out) in nodes.chunks(BATCH).zip(out.chunks_mut(BATCH * each)) {
        let values = &mut values[..batch.len()];
        ciphers.value.feed_forward(batch, values);
        for ((&value, &node), out) in values.iter().zip(batch).zip(out.chunks_mut(each)) {
            let on = E::from_u64(control(node) as u64);
            for ((out, v), w) in out.iter_mut().zip(lanes::<E>(value)).zip(leaf) {
                *out = (v.add(w & on) ^ negate).sub(negate);
            }
        }
    }
}

/// The roots of both parties with their control bits, which differ.
fn rooted([first, second]: [[u64; ROOT]; 2]) -> [u128; 2] {
    [joined(first) & !1, joined(second) | 1]
}

/// The lanes of a block, the low one first; four of them at most.
fn lanes<E: Element>(block: u128) -> [E; 4] {
    std::array::from_fn(|i| E::from_u64(block.checked_shr(i as u32 * E::BITS).unwrap_or(0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Prg, Seed};

    fn roots(number: u64) -> [[u64; ROOT]; 2] {
        let mut words = [0; 2 * ROOT];
        Prg::new(&Seed::from_bytes([5; 32])).fill(number, 0, &mut words);
        [[words[0], words[1]], [words[2], words[3]]]
    }

    fn shares<E: Element>(number: u64, domain_bits: u32, len: usize, index: usize) -> [Vec<E>; 2] {
        let roots = roots(number);
        let corrections = correct::<E>(roots, domain_bits, index);
        let corrections = Corrections { blocks: &corrections.blocks[..], right: corrections.right };
        [Side::First, Side::Second].map(|side| {
            let mut out = vec![E::ONE; len];
            let root = roots[usize::from(side == Side::Second)];
            expand(root, side, corrections, domain_bits, &mut out);
            out
        })
    }

    fn check<E: Element>() {
        for (domain_bits, len) in [(0, 1), (1, 2), (2, 3), (2, 4), (3, 8), (5, 29), (9, 512), (11, 1500)] {
            for index in (0..1usize << domain_bits).step_by(if domain_bits > 6 { 13 } else { 1 }) {
                let [a, b] = shares::<E>(index as u64, domain_bits, len, index);
                for (at, (a, b)) in a.iter().zip(&b).enumerate() {
                    let expected = if at == index { E::ONE } else { E::ZERO };
                    assert_eq!(a.add(*b), expected, "{index} of 2^{domain_bits} at {at}");
                }
            }
        }
    }

    #[test]
    fn shares_add_up_to_the_unit_vector() {
        check::<u32>();
        check::<u64>();
    }

    #[test]
    fn a_vocabulary_and_nothing_of_one() {
        let [a, b] = shares::<u32>(3, 17, 1 << 17, 98_765);
        let ones: Vec<usize> = (0..1 << 17).filter(|&i| a[i].add(b[i]) != 0).collect();
        assert_eq!((ones, a[98_765].add(b[98_765])), (vec![98_765], 1));
        assert_eq!(shares::<u64>(3, 17, 0, 7), [vec![], vec![]]);
    }

    /// Bit by bit, what one party holds is balanced: the corrections, and its share at the index and beside it.
    #[test]
    fn one_share_looks_uniform() {
        const VECTORS: usize = 4000;
        let (domain_bits, index) = (5, 21);
        for side in [Side::First, Side::Second] {
            let levels = levels::<u32>(domain_bits) as usize;
            let mut ones = vec![0u32; levels + 64 * block_words::<u32>(domain_bits) + 32 * 32];
            for number in 0..VECTORS {
                let roots = roots(number as u64);
                let Corrections { blocks, right } = correct::<u32>(roots, domain_bits, index);
                let corrections = Corrections { blocks: &blocks[..], right };
                let mut share = vec![0u32; 32];
                expand(roots[usize::from(side == Side::Second)], side, corrections, domain_bits, &mut share);
                let bits = (0..levels).map(|i| (right >> i & 1) as u32);
                let bits = bits.chain(blocks.iter().flat_map(|w| (0..64).map(move |i| (w >> i & 1) as u32)));
                let bits = bits.chain(share.iter().flat_map(|w| (0..32).map(move |i| w >> i & 1)));
                assert_eq!(right >> levels, 0);
                ones.iter_mut().zip(bits).for_each(|(n, bit)| *n += bit);
            }
            let bound = 5.5 * (VECTORS as f64).sqrt() / 2.0;
            for (at, &n) in ones.iter().enumerate() {
                assert!((f64::from(n) - VECTORS as f64 / 2.0).abs() < bound, "{side:?} bit {at}: {n} of {VECTORS}");
            }
        }
    }
}
