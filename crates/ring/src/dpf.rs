//! Distributed point functions: a one-hot vector of bits, shared between two parties in a few hundred bytes.
//!
//! The tree construction of Boyle, Gilboa and Ishai, *Function Secret Sharing: Improvements and Extensions* (CCS 2016),
//! with a payload of one bit and early termination: a leaf of the tree is one cipher block, which is 128 positions. Both
//! keys expand to bit vectors that differ at the index and nowhere else. A single key is pseudorandom and hides the
//! index; both keys together reveal it.
//!
//! The length-doubling generator is `s -> AES_L(s) ^ s, AES_R(s) ^ s` and the leaf's `s -> AES_V(s) ^ s`
//! (Matyas-Meyer-Oseas) under three fixed public keys, secure with AES as an ideal cipher. A node of the tree is a block
//! whose lowest bit is the control bit; the generator sees the other 127.
//!
//! Sums over the positions of either key's bits differ by the value at the index, up to a *sign*: which of the two keys has
//! the 1 there. It is as secret as the index (a party that knew it would know its own bit at the index), a fair coin
//! whatever the index, and [`generate`] tells it to whoever made the keys. Vectors over a ring ([`mod@unit`]) have none.

pub mod unit;

use std::sync::OnceLock;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::cipher::{BLOCK, Cipher};
use crate::{Prg, Seed};

/// Bytes of a level's correction: a block and the control bit of the right child.
const LEVEL: usize = BLOCK + 1;
/// Levels that a leaf replaces: it has as many positions as a block has bits.
const LEAF_BITS: u32 = 7;
/// Words of a leaf.
const LEAF_WORDS: usize = BLOCK / 8;
/// Nodes expanded at a time, so that they stay in the first cache.
const BATCH: usize = 128;
/// The widest domain.
const MAX_DOMAIN_BITS: u32 = 40;

/// Bytes that are no key: the fault of whoever sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the length of a key for this domain.
    #[error("a lookup key of {found} bytes where {expected} are due")]
    Length {
        /// Bytes of a key.
        expected: usize,
        /// Bytes that were there.
        found: usize,
    },
    /// The other key of a pair than the one that is due.
    #[error("the other lookup key of a pair than the one that is due")]
    Side,
    /// A control bit that is neither 0 nor 1.
    #[error("a lookup key with a control bit that is neither 0 nor 1")]
    Control,
}

/// Which of the two keys of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one whose control bit is 0 at the root.
    First,
    /// The other.
    Second,
}

/// One party's key: its share of the bit vector that is 1 at a secret index and 0 elsewhere.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    domain_bits: u32,
    /// Its control bit says which key it is.
    root: u128,
    levels: Vec<Correction>,
    /// Correction of the leaf.
    last: u128,
}

/// What a node with control bit 1 adds to its children.
#[derive(Clone, Copy, Zeroize)]
struct Correction {
    /// The seed's correction, with that of the left control bit in its lowest bit.
    left: u128,
    /// That of the right control bit.
    right: u8,
}

/// A key is its party's secret: a debug print shows the domain alone.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "dpf::Key(2^{})", self.domain_bits)
    }
}

/// Both keys of a one-hot vector, and what only their maker knows.
pub struct Pair {
    /// The key of one party.
    pub first: Key,
    /// The key of the other.
    pub second: Key,
    /// The first key's bit at the index less the second's: 1 or -1, each as likely as the other.
    pub sign: i64,
}

/// Bytes of a key for a domain of `2^domain_bits`.
pub fn key_len(domain_bits: u32) -> usize {
    BLOCK + depth(domain_bits) as usize * LEVEL + BLOCK
}

/// Makes the two keys of the one-hot vector of `index` over `2^domain_bits` positions.
///
/// `seed` is the client's randomness and must serve for this one call. The index is secret: time and memory accesses do
/// not depend on it.
///
/// # Panics
/// Where the index lies outside the domain, or the domain is wider than 40 bits.
pub fn generate(seed: &Seed, domain_bits: u32, index: usize) -> Pair {
    let mut words = [0u64; 4];
    Prg::new(seed).fill(0, 0, &mut words);
    // The control bits of the two roots differ: on the path to the index they always will.
    let roots = [joined([words[0], words[1]]) & !1, joined([words[2], words[3]]) | 1];
    words.zeroize();
    let (levels, nodes) = descend(roots, domain_bits, depth(domain_bits), index);
    let values = nodes.map(|s| Ciphers::get().value(s));
    let last = values[0] ^ values[1] ^ one_hot(index);
    let leaf = values[0] ^ (control(nodes[0]) & last);
    let sign = 2 * bit_at(leaf, index) - 1;
    let key = |root| Key { domain_bits, root, levels: levels.clone(), last };
    Pair { first: key(roots[0]), second: key(roots[1]), sign }
}

/// The corrections of the upper `levels` of the tree, and both parties' nodes below them on the path to the index.
fn descend(roots: [u128; 2], domain_bits: u32, levels: u32, index: usize) -> (Vec<Correction>, [u128; 2]) {
    assert!(domain_bits <= MAX_DOMAIN_BITS, "a domain of {domain_bits} bits");
    assert!(index >> domain_bits == 0, "the index lies outside the domain");
    let ciphers = Ciphers::get();
    let mut nodes = roots;
    let corrections = (0..levels)
        .map(|level| {
            let bit = (index >> (domain_bits - 1 - level)) as u128 & 1;
            let [x, y] = nodes.map(|s| ciphers.children(s));
            let (left, right) = (x.0 ^ y.0, x.1 ^ y.1);
            // The seed that leaves the path becomes equal at both parties, its control bits too; on the path the
            // control bits differ.
            let away = select(bit, left, right) & !1;
            let correction = Correction { left: away | ((left & 1) ^ bit ^ 1), right: ((right & 1) ^ bit) as u8 };
            nodes = [(nodes[0], x), (nodes[1], y)].map(|(s, (l, r))| {
                let on = control(s);
                select(bit, r ^ (on & correction.right_block()), l ^ (on & correction.left))
            });
            correction
        })
        .collect();
    (corrections, nodes)
}

impl Key {
    /// Which key of its pair this is.
    pub fn side(&self) -> Side {
        if self.root & 1 == 0 { Side::First } else { Side::Second }
    }

    /// Writes this party's share of the one-hot vector's first `rows` positions: position `i` is bit `i % 64` of word
    /// `i / 64`, and bits beyond the last position are 0. About three cipher blocks for 128 positions.
    ///
    /// # Panics
    /// Where `rows` exceeds the domain or `out` has not `rows / 64` words, rounded up.
    pub fn expand(&self, rows: usize, out: &mut [u64]) {
        assert!(rows.saturating_sub(1) >> self.domain_bits == 0, "{rows} rows in a domain of 2^{}", self.domain_bits);
        assert_eq!(out.len(), rows.div_ceil(64), "words for {rows} rows");
        let leaves = out.len().div_ceil(LEAF_WORDS);
        let ciphers = Ciphers::get();
        let mut nodes = vec![self.root];
        for (level, correction) in self.levels.iter().enumerate() {
            // Only the nodes above the first `rows` positions.
            let wanted = leaves.div_ceil(1 << (self.levels.len() - 1 - level));
            nodes = ciphers.expand(&nodes, correction, wanted);
        }
        nodes.truncate(leaves);
        let mut values = [0; BATCH];
        for (batch, out) in nodes.chunks(BATCH).zip(out.chunks_mut(BATCH * LEAF_WORDS)) {
            let values = &mut values[..batch.len()];
            ciphers.value.feed_forward(batch, values);
            for ((value, &node), out) in values.iter().zip(batch).zip(out.chunks_mut(LEAF_WORDS)) {
                out.copy_from_slice(&halves(value ^ (control(node) & self.last))[..out.len()]);
            }
        }
        if let Some(last) = out.last_mut().filter(|_| !rows.is_multiple_of(64)) {
            *last &= (1 << (rows % 64)) - 1;
        }
    }

    /// The key as it travels: root, corrections of the levels, correction of the leaf.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.root.to_le_bytes().to_vec();
        for level in &self.levels {
            out.extend_from_slice(&level.left.to_le_bytes());
            out.push(level.right);
        }
        out.extend_from_slice(&self.last.to_le_bytes());
        out
    }

    /// The key from its bytes, for a domain and a side that are agreed beforehand.
    ///
    /// # Errors
    /// Where the bytes are no key of that kind.
    pub fn from_bytes(bytes: &[u8], domain_bits: u32, side: Side) -> Result<Key, KeyError> {
        let wrong = KeyError::Length { expected: key_len(domain_bits), found: bytes.len() };
        if bytes.len() != key_len(domain_bits) {
            return Err(wrong);
        }
        let (root, rest) = bytes.split_first_chunk::<BLOCK>().ok_or(wrong)?;
        let (levels, last) = rest.split_last_chunk::<BLOCK>().ok_or(wrong)?;
        let levels: Vec<Correction> = levels
            .as_chunks::<LEVEL>()
            .0
            .iter()
            .map(|level| {
                let [left @ .., right] = *level;
                Correction { left: u128::from_le_bytes(left), right }
            })
            .collect();
        if levels.iter().any(|level| level.right > 1) {
            return Err(KeyError::Control);
        }
        let key = Key { domain_bits, root: u128::from_le_bytes(*root), levels, last: u128::from_le_bytes(*last) };
        if key.side() == side { Ok(key) } else { Err(KeyError::Side) }
    }
}

impl Correction {
    /// The right child's correction as a block.
    fn right_block(&self) -> u128 {
        (self.left & !1) | u128::from(self.right)
    }
}

/// Levels of the tree above its leaves.
fn depth(domain_bits: u32) -> u32 {
    domain_bits.saturating_sub(LEAF_BITS)
}

/// All ones where the node's control bit is 1.
fn control(node: u128) -> u128 {
    (node & 1).wrapping_neg()
}

/// `yes` where `bit` is 1, `no` where it is 0, without a branch.
fn select(bit: u128, yes: u128, no: u128) -> u128 {
    no ^ (bit.wrapping_neg() & (yes ^ no))
}

/// The words of a block, the low one first.
fn halves(block: u128) -> [u64; LEAF_WORDS] {
    [block as u64, (block >> 64) as u64]
}

fn joined([low, high]: [u64; LEAF_WORDS]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// The leaf with a 1 at the place of a secret index: no shift by more than a word, which a compiler might branch for.
fn one_hot(index: usize) -> u128 {
    let (one, high) = (1u64 << (index & 63), (index as u64 >> 6 & 1).wrapping_neg());
    joined([one & !high, one & high])
}

/// The bit of a leaf at the place of a secret index.
fn bit_at(leaf: u128, index: usize) -> i64 {
    let [low, high] = halves(leaf & one_hot(index));
    ((low | high) >> (index & 63) & 1) as i64
}

/// The fixed keys, expanded.
struct Ciphers {
    left: Cipher,
    right: Cipher,
    value: Cipher,
}

impl Ciphers {
    fn get() -> &'static Ciphers {
        static CIPHERS: OnceLock<Ciphers> = OnceLock::new();
        CIPHERS.get_or_init(|| {
            let [left, right, value] = [b"tercet dpf left ", b"tercet dpf right", b"tercet dpf value"].map(Cipher::new);
            Ciphers { left, right, value }
        })
    }

    /// Both children of a node, uncorrected, with their control bits.
    fn children(&self, node: u128) -> (u128, u128) {
        (hash_one(&self.left, node), hash_one(&self.right, node))
    }

    /// The leaf's pseudorandom value.
    fn value(&self, node: u128) -> u128 {
        hash_one(&self.value, node)
    }

    /// The first `wanted` nodes of the level below `nodes`.
    fn expand(&self, nodes: &[u128], correction: &Correction, wanted: usize) -> Vec<u128> {
        let mut out = vec![0; wanted.next_multiple_of(2)];
        let (mut left, mut right) = ([0; BATCH], [0; BATCH]);
        let right_block = correction.right_block();
        for (batch, out) in nodes.chunks(BATCH).zip(out.chunks_mut(2 * BATCH)) {
            let (left, right) = (&mut left[..batch.len()], &mut right[..batch.len()]);
            self.left.feed_forward(batch, left);
            self.right.feed_forward(batch, right);
            for (((out, &node), l), r) in out.as_chunks_mut().0.iter_mut().zip(batch).zip(left).zip(right) {
                let on = control(node);
                *out = [*l ^ (on & correction.left), *r ^ (on & right_block)];
            }
        }
        out.truncate(wanted);
        out
    }
}

fn hash_one(cipher: &Cipher, node: u128) -> u128 {
    let mut out = [0];
    cipher.feed_forward(&[node], &mut out);
    out[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(number: usize) -> Seed {
        let mut bytes = [3; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Seed::from_bytes(bytes)
    }

    fn expanded(key: &Key, rows: usize) -> Vec<u64> {
        let mut out = vec![u64::MAX; rows.div_ceil(64)];
        key.expand(rows, &mut out);
        out
    }

    fn bit(words: &[u64], at: usize) -> i64 {
        (words[at / 64] >> (at % 64) & 1) as i64
    }

    #[test]
    fn both_keys_differ_at_the_index_alone_and_the_sign_says_how() {
        for (domain_bits, rows) in
            [(0, 1), (1, 2), (1, 1), (3, 5), (6, 63), (6, 64), (7, 65), (7, 128), (8, 129), (9, 400), (10, 1024)]
        {
            for index in 0..rows {
                let Pair { first, second, sign } = generate(&seed(index), domain_bits, index);
                let [a, b] = [(first, Side::First), (second, Side::Second)].map(|(key, side)| {
                    let bytes = key.to_bytes();
                    assert_eq!(bytes.len(), key_len(domain_bits));
                    expanded(&Key::from_bytes(&bytes, domain_bits, side).expect("its own bytes"), rows)
                });
                for at in 0..rows {
                    let expected = if at == index { sign } else { 0 };
                    assert_eq!(bit(&a, at) - bit(&b, at), expected, "{index} of {rows} at {at}");
                }
                assert_eq!(sign.abs(), 1);
                let beyond = if rows % 64 == 0 { 0 } else { u64::MAX << (rows % 64) };
                assert_eq!((a[rows / 64 - usize::from(rows % 64 == 0)] & beyond), 0, "bits beyond {rows}");
            }
        }
    }

    #[test]
    fn a_large_domain_and_no_rows() {
        let Pair { first, second, .. } = generate(&seed(7), 15, 30_000);
        let (a, b) = (expanded(&first, 30_522), expanded(&second, 30_522));
        let difference: Vec<u64> = a.iter().zip(&b).map(|(a, b)| a ^ b).collect();
        assert_eq!(difference.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
        assert_eq!(bit(&difference, 30_000), 1);
        first.expand(0, &mut []);
        // Fewer rows are the beginning of more.
        assert_eq!(expanded(&second, 12_800), b[..200]);
    }

    /// What one party holds is balanced bit by bit, whichever key it is: the key's own bytes, its expansion at the index
    /// and beside it, and the sign.
    #[test]
    fn one_key_looks_uniform() {
        const KEYS: usize = 4000;
        const INDEX: usize = 389;
        let (domain_bits, rows) = (9, 512);
        for side in [Side::First, Side::Second] {
            let len = key_len(domain_bits);
            let (mut ones, mut expansions) = (vec![0u32; 8 * len], vec![0u32; rows]);
            let mut signs = 0;
            for number in 0..KEYS {
                let pair = generate(&seed(number), domain_bits, INDEX);
                let key = if side == Side::First { pair.first } else { pair.second };
                let bytes = key.to_bytes();
                ones.iter_mut().enumerate().for_each(|(at, n)| *n += u32::from(bytes[at / 8] >> (at % 8) & 1));
                let words = expanded(&key, rows);
                expansions.iter_mut().enumerate().for_each(|(at, n)| *n += bit(&words, at) as u32);
                signs += pair.sign;
            }
            // Bits that are public by construction: the root's control bit, and the unused ones of the right control bits.
            let public = |at: usize| {
                let level = (at / 8).checked_sub(BLOCK).filter(|at| *at < depth(domain_bits) as usize * LEVEL);
                at == 0 || (level.is_some_and(|at| at % LEVEL == BLOCK) && !at.is_multiple_of(8))
            };
            let secret = ones.iter().enumerate().filter(|(at, _)| !public(*at));
            assert_eq!(secret.clone().count(), 8 * 2 * BLOCK - 1 + 2 * (8 * BLOCK + 1));
            let bound = 5.5 * (KEYS as f64).sqrt() / 2.0;
            for (at, &n) in secret.chain(expansions.iter().enumerate()) {
                assert!((f64::from(n) - KEYS as f64 / 2.0).abs() < bound, "{side:?} bit {at}: {n} of {KEYS}");
            }
            assert!((signs as f64).abs() < 2.0 * bound, "signs sum to {signs}");
        }
    }

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        let bytes = generate(&seed(1), 9, 17).first.to_bytes();
        let read = |bytes: &[u8]| Key::from_bytes(bytes, 9, Side::First).map(|_| ());
        for found in [0, 1, bytes.len() - 1] {
            let expected = bytes.len();
            assert_eq!(read(&bytes[..found]), Err(KeyError::Length { expected, found }));
        }
        assert!(read(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Key::from_bytes(&bytes, 10, Side::First).is_err());
        assert_eq!(Key::from_bytes(&bytes, 9, Side::Second).map(|_| ()), Err(KeyError::Side));
        let mut spoiled = bytes;
        spoiled[BLOCK + LEVEL - 1] = 7;
        assert_eq!(read(&spoiled), Err(KeyError::Control));
    }
}
