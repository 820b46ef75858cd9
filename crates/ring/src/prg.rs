//! Seeds and the pseudorandom masks that grow from them.
//!
//! The generator is AES-128 in counter mode: indistinguishable from uniform as long as AES is a pseudorandom
//! permutation and far fewer than `2^64` blocks are drawn from one key. Every block is a function of (key, stream,
//! number of the block) alone, so that threads may draw any part of a stream in any order.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::Element;
use crate::cipher::{BLOCK, Cipher};

/// 256 bits of secret randomness; wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Seed([u8; 32]);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed")
    }
}

impl Seed {
    /// A fresh seed from the operating system.
    ///
    /// # Panics
    /// Where the operating system has no randomness to give: nothing secret can be done then.
    pub fn random() -> Seed {
        use rand::TryRng;
        let mut bytes = [0; 32];
        rand::rngs::SysRng.try_fill_bytes(&mut bytes).expect("the operating system gives randomness");
        Seed(bytes)
    }

    /// The seed with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Seed {
        Seed(bytes)
    }

    /// The bytes, for whoever sends the seed to its other holder.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// An independent seed for a purpose: `HMAC-SHA256(self, len(label) || label || context)`, the length as eight
    /// little-endian bytes. Nothing about `self`, or about the seed of another label or context, follows from it.
    pub fn derive(&self, label: &str, context: &[u8]) -> Seed {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&(label.len() as u64).to_le_bytes());
        mac.update(label.as_bytes());
        mac.update(context);
        Seed(mac.finalize().into_bytes().into())
    }
}

/// Pseudorandom streams from one seed.
///
/// The key is the first half of `seed.derive("tercet prg aes-128-ctr", "")`. Block `i` of stream `s` is
/// `AES(s || i)`, both as 64-bit big-endian numbers: standard AES-128-CTR with initial value `s || 0`. Element `j` of
/// a stream is its bytes `[j * w, (j + 1) * w)`, little-endian, where `w` is the size of the lane.
#[derive(Clone)]
pub struct Prg {
    cipher: Cipher,
}

impl std::fmt::Debug for Prg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prg")
    }
}

impl Prg {
    /// The streams of this seed.
    pub fn new(seed: &Seed) -> Prg {
        let derived = seed.derive("tercet prg aes-128-ctr", &[]);
        let mut key: [u8; BLOCK] = [0; BLOCK];
        key.copy_from_slice(&derived.0[..BLOCK]);
        let cipher = Cipher::new(&key);
        key.zeroize();
        Prg { cipher }
    }

    /// Writes the first `out.len()` bytes of a stream.
    pub fn fill_bytes(&self, stream: u64, out: &mut [u8]) {
        self.fill_from(stream, 0, out);
    }

    /// Writes elements `first .. first + out.len()` of a stream.
    ///
    /// # Panics
    /// Where `first` is beyond the `2^64` bytes of a stream that lanes can address.
    pub fn fill<E: Element>(&self, stream: u64, first: u64, out: &mut [E]) {
        let offset = first.checked_mul(size_of::<E>() as u64).expect("an element inside the stream");
        self.fill_from(stream, offset, bytemuck::cast_slice_mut(out));
    }

    /// Writes the bytes of a stream from `offset` on.
    fn fill_from(&self, stream: u64, offset: u64, out: &mut [u8]) {
        let mut next = offset / BLOCK as u64;
        let skip = (offset % BLOCK as u64) as usize;
        let mut rest = out;
        if skip > 0 {
            let (head, tail) = rest.split_at_mut(rest.len().min(BLOCK - skip));
            self.part_of_block(stream, next, skip, head);
            next += 1;
            rest = tail;
        }
        let (blocks, tail) = rest.as_chunks_mut::<BLOCK>();
        self.cipher.counter_mode(stream, next, blocks);
        next += blocks.len() as u64;
        if !tail.is_empty() {
            self.part_of_block(stream, next, 0, tail);
        }
    }

    /// Writes bytes of one block from `skip` on.
    fn part_of_block(&self, stream: u64, i: u64, skip: usize, out: &mut [u8]) {
        let mut block = [[0; BLOCK]];
        self.cipher.counter_mode(stream, i, &mut block);
        out.copy_from_slice(&block[0][skip..skip + out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: u64 = 0x0123_4567_89ab_cdef;

    fn prg() -> Prg {
        Prg::new(&Seed::from_bytes(std::array::from_fn(|i| i as u8)))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Against OpenSSL's aes-128-ctr with initial value `stream || 0`, and its HMAC for the key.
    #[test]
    fn agrees_with_another_implementation() {
        let mut bytes = vec![0; 300 * BLOCK];
        prg().fill_bytes(STREAM, &mut bytes);
        assert_eq!(hex(&bytes[..32]), "2aca0fe52f6f42e11739414e2a7042475a9e6aaf4c3dfcb0ef0f93181665dad5");
        assert_eq!(hex(&bytes[299 * BLOCK..]), "cf2e2cf409488e0e97c39356b18f13f9");
        use sha2::Digest;
        let digest = hex(&Sha256::digest(&bytes));
        assert_eq!(digest, "b1314d077ad0548cc2f851b1181344befd0d10a00b0f044778dacdeae51e63ad");
        let mut lanes = [0u64; 2];
        prg().fill(STREAM, 1 << 41, &mut lanes);
        assert_eq!(hex(bytemuck::cast_slice(&lanes)), "085e55c2c79d67ccbec4a824ef9353b0");
    }

    #[test]
    fn derivation_agrees_with_another_implementation() {
        let seed = Seed::from_bytes(std::array::from_fn(|i| i as u8));
        let derived = seed.derive("label", b"context");
        assert_eq!(hex(derived.as_bytes()), "c33004e4c5c20657661a5b219e8982bd5bb13c4b2256ba07b28d7db835869dd5");
        assert_ne!(seed.derive("labelc", b"ontext").as_bytes(), derived.as_bytes());
        assert_ne!(Seed::random().as_bytes(), Seed::random().as_bytes());
        assert_eq!(format!("{seed:?} {:?}", prg()), "Seed Prg");
    }

    /// Any part of a stream, drawn alone, is that part of the whole.
    #[test]
    fn any_part_can_be_drawn_alone() {
        fn check<E: Element>() {
            let mut whole = vec![E::ZERO; 5000];
            prg().fill(9, 0, &mut whole);
            for first in [0, 1, 2, 3, 4, 5, 63, 64, 65, 1023, 4999, 5000] {
                for len in [0, 1, 2, 3, 5, 63, 64, 65, 3000] {
                    let end = whole.len().min(first + len);
                    let mut part = vec![E::ZERO; end - first];
                    prg().fill(9, first as u64, &mut part);
                    assert!(part == whole[first..end], "{first}..{end}");
                }
            }
            let mut other = vec![E::ZERO; 5000];
            prg().fill(10, 0, &mut other);
            assert!(other.iter().zip(&whole).filter(|(a, b)| a == b).count() < 3, "streams differ");
        }
        check::<u32>();
        check::<u64>();
    }
}
