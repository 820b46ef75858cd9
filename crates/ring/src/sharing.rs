//! How an owner of plaintext splits it, and puts an opened result together: `x = m - l1 - l2 mod 2^k`.
//!
//! The two masks come from seeds, so that only `m` travels in full. A seed belongs to one request (or one model) and each
//! stream of it to one tensor.

use crate::{Element, Prg, Seed};

/// The mask half that a seed gives for a tensor of `len` elements: lanes are full, whatever the ring.
pub fn mask<E: Element>(seed: &Seed, stream: u64, len: usize) -> Vec<E> {
    mask_part(seed, stream, 0, len)
}

/// Elements `first..first + len` of such a mask.
pub fn mask_part<E: Element>(seed: &Seed, stream: u64, first: usize, len: usize) -> Vec<E> {
    let mut out = vec![E::ZERO; len];
    Prg::new(seed).fill(stream, first as u64, &mut out);
    out
}

/// `m = x + l1 + l2`, with the masks of both seeds.
pub fn split<E: Element>(values: &[E], first: &Seed, second: &Seed, stream: u64) -> Vec<E> {
    let (l1, l2) = (mask::<E>(first, stream, values.len()), mask::<E>(second, stream, values.len()));
    crate::simd::run!(|| values.iter().zip(l1).zip(l2).map(|((&x, a), b)| x.add(a).add(b)).collect())
}

/// `x = m - l1 - l2`, reduced to the ring.
pub fn join<E: Element>(m: &[E], l1: &[E], l2: &[E], ring: u32) -> Vec<E> {
    m.iter().zip(l1).zip(l2).map(|((&m, &a), &b)| m.sub(a).sub(b).low(ring)).collect()
}
