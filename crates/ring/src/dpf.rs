//! Distributed point functions: a one-hot vector, additively shared between two parties, in a few hundred bytes.
//!
//! The tree construction of Boyle, Gilboa and Ishai, *Function Secret Sharing: Improvements and Extensions* (CCS 2016),
//! with payload 1 and early termination: a leaf of the tree is one cipher block, cut into as many lanes as it holds. A
//! single key is pseudorandom and hides the index; both keys together reveal it.
//!
//! The length-doubling generator is `s -> AES_L(s) ^ s, AES_R(s) ^ s` and the leaf's `s -> AES_V(s) ^ s`
//! (Matyas-Meyer-Oseas) under three fixed public keys, secure with AES as an ideal cipher. A node of the tree is a block
//! whose lowest bit is the control bit; the generator sees the other 127.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::cipher::{BLOCK, Cipher};
use crate::{Element, Prg, Seed, pack, simd};

/// Bytes of a level's correction: a block and the control bit of the right child.
const LEVEL: usize = BLOCK + 1;
/// Nodes expanded at a time, so that they stay in the first cache.
const BATCH: usize = 128;
/// The widest domain.
const MAX_DOMAIN_BITS: u32 = 40;

/// Bytes that are no key: the fault of whoever sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the length of a key for this domain and ring.
    #[error("a lookup key of {found} bytes where {expected} are due")]
    Length {
        /// Bytes of a key.
        expected: usize,
        /// Bytes that were there.
        found: usize,
    },
    /// A flag byte that is neither 0 nor 1.
    #[error("a lookup key with a flag that is neither 0 nor 1")]
    Flag,
}

/// One party's key: its share of the vector that is 1 at a secret index and 0 elsewhere.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    domain_bits: u32,
    ring_bits: u32,
    lane_bits: u32,
    party: u8,
    root: u128,
    levels: Vec<Correction>,
    /// Correction of the leaf, one lane each.
    last: Vec<u64>,
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

/// Bytes of a key for a domain of `2^domain_bits` and outputs in `Z_2^ring_bits` on lanes of type `E`.
pub fn key_len<E: Element>(domain_bits: u32, ring_bits: u32) -> usize {
    let depth = depth::<E>(domain_bits) as usize;
    1 + BLOCK + depth * LEVEL + pack::packed_len(lanes::<E>(), ring_bits)
}

/// Makes the two keys of the one-hot vector of `index` over `2^domain_bits` positions, in `Z_2^ring_bits`.
///
/// `seed` is the client's randomness and must serve for this one call. The index is secret: time and memory accesses do
/// not depend on it.
///
/// # Panics
/// Where the index lies outside the domain, the domain is wider than 40 bits, or the ring is wider than the lane.
pub fn generate<E: Element>(seed: &Seed, domain_bits: u32, index: usize, ring_bits: u32) -> (Key, Key) {
    assert!(domain_bits <= MAX_DOMAIN_BITS, "a domain of {domain_bits} bits");
    assert!((1..=E::BITS).contains(&ring_bits), "a ring of {ring_bits} bits in a lane of {}", E::BITS);
    assert!(index >> domain_bits == 0, "the index lies outside the domain");
    let mut roots = [0u64; 4];
    Prg::new(seed).fill(0, 0, &mut roots);
    let [r0, r1] = [0, 2].map(|i| u128::from(roots[i]) << 64 | u128::from(roots[i + 1]));
    roots.zeroize();
    // The control bits of the two roots differ: on the path to the index they always will.
    let mut nodes = [r0 & !1, r1 | 1];
    let ciphers = Ciphers::new();
    let depth = depth::<E>(domain_bits);
    let leaf_bits = domain_bits - depth;
    let levels: Vec<Correction> = (0..depth)
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
    let at = index & ((1 << leaf_bits) - 1);
    let [x, y] = nodes.map(|s| lanes_of::<E>(ciphers.value(s)));
    let negate = E::from_u64((nodes[1] & 1) as u64).mul(E::mask(E::BITS));
    let last: Vec<u64> = (0..lanes::<E>())
        .map(|j| {
            // An equality of secrets as arithmetic: 1 where `j` is the place of the index in its leaf.
            let difference = (j ^ at) as u64;
            let hit = E::from_u64(1 ^ ((difference | difference.wrapping_neg()) >> 63));
            let value = hit.sub(x[j]).add(y[j]);
            (value ^ negate).sub(negate).low(ring_bits).to_u64()
        })
        .collect();
    let key = |party: u8, root| Key {
        domain_bits,
        ring_bits,
        lane_bits: E::BITS,
        party,
        root,
        levels: levels.clone(),
        last: last.clone(),
    };
    (key(0, r0 & !1), key(1, r1 | 1))
}

impl Key {
    /// This party's additive share, modulo `2^ring_bits`, of the one-hot vector's first `rows` positions.
    ///
    /// # Panics
    /// Where `rows` exceeds the domain or the key was made for another lane.
    pub fn eval_all<E: Element>(&self, rows: usize) -> Vec<E> {
        assert_eq!(E::BITS, self.lane_bits, "a key for another lane");
        assert!(rows.saturating_sub(1) >> self.domain_bits == 0, "{rows} rows in a domain of 2^{}", self.domain_bits);
        let leaves = rows.div_ceil(lanes::<E>());
        let ciphers = Ciphers::new();
        let mut nodes = vec![self.root];
        for (level, correction) in self.levels.iter().enumerate() {
            // Only the nodes above the first `rows` positions.
            let wanted = leaves.div_ceil(1 << (self.levels.len() - 1 - level));
            nodes = ciphers.expand(&nodes, correction, wanted);
        }
        nodes.truncate(leaves);
        let last: Vec<E> = self.last.iter().map(|&v| E::from_u64(v)).collect();
        let negate = E::from_u64(u64::from(self.party)).mul(E::mask(E::BITS));
        let mut out = vec![E::ZERO; leaves * lanes::<E>()];
        let mut values = [0; BATCH];
        for (batch, out) in nodes.chunks(BATCH).zip(out.chunks_mut(BATCH * lanes::<E>())) {
            let values = &mut values[..batch.len()];
            ciphers.value.feed_forward(batch, values);
            simd::run!(|| {
                let values = bytemuck::cast_slice::<u128, E>(values).chunks_exact(lanes::<E>());
                for ((out, values), &node) in out.chunks_exact_mut(lanes::<E>()).zip(values).zip(batch) {
                    let on = E::from_u64((node & 1) as u64).mul(E::mask(E::BITS));
                    for ((out, &v), &c) in out.iter_mut().zip(values).zip(&last) {
                        *out = (v.add(c & on) ^ negate).sub(negate);
                    }
                }
            });
        }
        out.truncate(rows);
        out
    }

    /// The key as it travels: party, root, corrections of the levels, correction of the leaf.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![self.party];
        out.extend_from_slice(&self.root.to_le_bytes());
        for level in &self.levels {
            out.extend_from_slice(&level.left.to_le_bytes());
            out.push(level.right);
        }
        pack::pack(&self.last, self.ring_bits, &mut out);
        out
    }

    /// The key from its bytes, for a domain, ring and lane that are agreed beforehand.
    ///
    /// # Errors
    /// Where the bytes are no key of that kind.
    pub fn from_bytes<E: Element>(bytes: &[u8], domain_bits: u32, ring_bits: u32) -> Result<Key, KeyError> {
        let expected = key_len::<E>(domain_bits, ring_bits);
        let wrong = KeyError::Length { expected, found: bytes.len() };
        if bytes.len() != expected {
            return Err(wrong);
        }
        let (party, rest) = bytes.split_first().ok_or(wrong)?;
        let (root, rest) = rest.split_first_chunk::<BLOCK>().ok_or(wrong)?;
        let (levels, rest) = rest.split_at(depth::<E>(domain_bits) as usize * LEVEL);
        let levels: Vec<Correction> = levels
            .as_chunks::<LEVEL>()
            .0
            .iter()
            .map(|level| {
                let [left @ .., right] = *level;
                Correction { left: u128::from_le_bytes(left), right }
            })
            .collect();
        let root = u128::from_le_bytes(*root);
        if *party > 1 || root & 1 != u128::from(*party) || levels.iter().any(|l| l.right > 1) {
            return Err(KeyError::Flag);
        }
        let mut last = vec![0u64; lanes::<E>()];
        pack::unpack(rest, ring_bits, &mut last).map_err(|_| wrong)?;
        Ok(Key { domain_bits, ring_bits, lane_bits: E::BITS, party: *party, root, levels, last })
    }
}

impl Correction {
    /// The right child's correction as a block.
    fn right_block(&self) -> u128 {
        (self.left & !1) | u128::from(self.right)
    }
}

/// Lanes in a leaf.
fn lanes<E: Element>() -> usize {
    BLOCK / size_of::<E>()
}

/// Levels of the tree above its leaves.
fn depth<E: Element>(domain_bits: u32) -> u32 {
    domain_bits.saturating_sub(lanes::<E>().ilog2())
}

/// All ones where the node's control bit is 1.
fn control(node: u128) -> u128 {
    (node & 1).wrapping_neg()
}

/// `yes` where `bit` is 1, `no` where it is 0, without a branch.
fn select(bit: u128, yes: u128, no: u128) -> u128 {
    no ^ (bit.wrapping_neg() & (yes ^ no))
}

fn lanes_of<E: Element>(block: u128) -> Vec<E> {
    bytemuck::cast_slice::<u8, E>(&block.to_le_bytes()).to_vec()
}

/// The fixed keys, expanded.
struct Ciphers {
    left: Cipher,
    right: Cipher,
    value: Cipher,
}

impl Ciphers {
    fn new() -> Ciphers {
        let [left, right, value] = [b"tercet dpf left ", b"tercet dpf right", b"tercet dpf value"].map(Cipher::new);
        Ciphers { left, right, value }
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

    fn check<E: Element>(domain_bits: u32, rows: usize, ring_bits: u32) {
        for index in 0..rows {
            let seed = Seed::from_bytes([index as u8; 32]);
            let (a, b) = generate::<E>(&seed, domain_bits, index, ring_bits);
            let [a, b] = [a, b].map(|key| {
                let bytes = key.to_bytes();
                assert_eq!(bytes.len(), key_len::<E>(domain_bits, ring_bits));
                Key::from_bytes::<E>(&bytes, domain_bits, ring_bits).expect("its own bytes").eval_all::<E>(rows)
            });
            assert_eq!(a.len(), rows);
            for (j, (x, y)) in a.iter().zip(&b).enumerate() {
                assert_eq!(x.add(*y).low(ring_bits), E::from_u64((j == index) as u64), "{index} of {rows} at {j}");
            }
        }
    }

    #[test]
    fn both_shares_add_to_the_one_hot_vector_of_every_index() {
        for (domain_bits, rows) in [(0, 1), (1, 2), (1, 1), (2, 3), (3, 5), (6, 63), (6, 64), (7, 65)] {
            check::<u32>(domain_bits, rows, 32);
            check::<u32>(domain_bits, rows, 20);
            check::<u64>(domain_bits, rows, 64);
            check::<u64>(domain_bits, rows, 44);
        }
    }

    #[test]
    fn a_large_domain_and_no_rows() {
        let (a, b) = generate::<u64>(&Seed::from_bytes([7; 32]), 15, 30_000, 64);
        let sum: Vec<u64> =
            a.eval_all::<u64>(30_522).iter().zip(b.eval_all(30_522)).map(|(x, y)| x.wrapping_add(y)).collect();
        assert_eq!(sum.iter().filter(|&&v| v != 0).count(), 1);
        assert_eq!(sum[30_000], 1);
        assert!(a.eval_all::<u64>(0).is_empty());
    }

    /// What one party holds is balanced, and does not lean towards the index.
    #[test]
    fn one_key_looks_uniform() {
        let mut ones = [0u32; 64];
        let keys = 2000;
        for i in 0..keys {
            let mut bytes = [3; 32];
            bytes[..4].copy_from_slice(&(i as u32).to_le_bytes());
            let (a, b) = generate::<u64>(&Seed::from_bytes(bytes), 3, 5, 64);
            let key = if i % 2 == 0 { a } else { b };
            let share = key.eval_all::<u64>(8)[5];
            ones.iter_mut().enumerate().for_each(|(bit, n)| *n += (share >> bit & 1) as u32);
            // Bits that are public or copied by construction are not in these: corrections and the leaf's lanes.
            for level in &key.levels {
                ones[0] += (level.left & 1) as u32;
                ones[1] += u32::from(level.right);
            }
            ones[2] += (key.last[0] & 1) as u32;
            ones[3] += (key.last[1] & 1) as u32;
        }
        for (bit, n) in ones.iter().enumerate() {
            // How often the bit was looked at: once a key, and the corrections of two levels or one lane besides.
            let trials = keys * [3, 3, 2, 2].get(bit).unwrap_or(&1);
            let sigma = f64::from(trials).sqrt() / 2.0;
            assert!((f64::from(*n) - f64::from(trials) / 2.0).abs() < 5.0 * sigma, "bit {bit}: {n} of {trials}");
        }
    }

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        let (key, _) = generate::<u32>(&Seed::from_bytes([1; 32]), 9, 17, 32);
        let bytes = key.to_bytes();
        for cut in [0, 1, bytes.len() - 1] {
            let found = Key::from_bytes::<u32>(&bytes[..cut], 9, 32).expect_err("cut");
            assert_eq!(found, KeyError::Length { expected: bytes.len(), found: cut });
        }
        assert!(Key::from_bytes::<u32>(&[&bytes[..], &[0]].concat(), 9, 32).is_err());
        assert!(Key::from_bytes::<u32>(&bytes, 10, 32).is_err());
        assert!(Key::from_bytes::<u64>(&bytes, 9, 64).is_err());
        let mut flagged = bytes.clone();
        flagged[0] = 2;
        assert_eq!(Key::from_bytes::<u32>(&flagged, 9, 32).expect_err("party"), KeyError::Flag);
        let mut flagged = bytes;
        flagged[1 + BLOCK + LEVEL - 1] = 7;
        assert_eq!(Key::from_bytes::<u32>(&flagged, 9, 32).expect_err("control bit"), KeyError::Flag);
    }
}
