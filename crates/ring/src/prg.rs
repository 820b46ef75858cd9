//! Seeds and the pseudorandom masks that grow from them.
//!
//! The generator is AES-128 in counter mode: indistinguishable from uniform as long as AES is a pseudorandom
//! permutation and far fewer than `2^64` blocks are drawn from one key. Every block is a function of (key, stream,
//! number of the block) alone, so that threads may draw any part of a stream in any order.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::cipher::{BLOCK, Cipher, Use};
use crate::{Element, simd};

/// Bytes drawn at a time by whoever reads them again at once: they and as many others stay in the first cache.
const BATCH: usize = 1 << 13;

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
        self.apply_from(stream, 0, out, Use::Write);
    }

    /// Writes elements `first .. first + out.len()` of a stream.
    ///
    /// # Panics
    /// Where `first` is beyond the `2^64` bytes of a stream that lanes can address; so do all that take part of a stream.
    pub fn fill<E: Element>(&self, stream: u64, first: u64, out: &mut [E]) {
        self.apply(stream, first, out, Use::Write);
    }

    /// Writes the low `k` bits of these elements, the representatives in `[0, 2^k)`.
    pub fn fill_low<E: Element>(&self, stream: u64, first: u64, k: u32, out: &mut [E]) {
        let mask = E::mask(k).to_u64();
        self.apply(stream, first, out, by_lane::<E>(Use::Low32(mask as u32), Use::Low64(mask)));
    }

    /// Adds these elements to those of `out`, without a pass of their own.
    pub fn add_to<E: Element>(&self, stream: u64, first: u64, out: &mut [E]) {
        self.apply(stream, first, out, by_lane::<E>(Use::Add32, Use::Add64));
    }

    /// Takes these elements from those of `out`, likewise.
    pub fn subtract_from<E: Element>(&self, stream: u64, first: u64, out: &mut [E]) {
        self.apply(stream, first, out, by_lane::<E>(Use::Subtract32, Use::Subtract64));
    }

    /// Exclusive or of these elements into `out`, likewise.
    pub fn xor_into<E: Element>(&self, stream: u64, first: u64, out: &mut [E]) {
        self.apply(stream, first, out, Use::Xor);
    }

    /// Writes these elements to `masks`, and to `sums` what `f` makes of what is there and them, a batch at a time while
    /// it is in the first cache.
    ///
    /// # Panics
    /// Where the two are not of one length.
    pub fn fill_and<E: Element>(
        &self,
        stream: u64,
        first: u64,
        masks: &mut [E],
        sums: &mut [E],
        f: impl Fn(E, E) -> E,
    ) {
        assert_eq!(masks.len(), sums.len(), "a mask for an element");
        let batch = BATCH / size_of::<E>();
        for (i, (masks, sums)) in masks.chunks_mut(batch).zip(sums.chunks_mut(batch)).enumerate() {
            self.fill(stream, first + (i * batch) as u64, masks);
            simd::run!(|| sums.iter_mut().zip(&*masks).for_each(|(sum, &mask)| *sum = f(*sum, mask)));
        }
    }

    fn apply<E: Element>(&self, stream: u64, first: u64, out: &mut [E], to: Use) {
        let offset = first.checked_mul(size_of::<E>() as u64).expect("an element inside the stream");
        self.apply_from(stream, offset, bytemuck::cast_slice_mut(out), to);
    }

    /// Puts the bytes of a stream from `offset` on to use; `offset` and `out` are of whole lanes.
    fn apply_from(&self, stream: u64, offset: u64, out: &mut [u8], to: Use) {
        let mut next = offset / BLOCK as u64;
        let skip = (offset % BLOCK as u64) as usize;
        let mut rest = out;
        if skip > 0 {
            let (head, tail) = rest.split_at_mut(rest.len().min(BLOCK - skip));
            self.part_of_block(stream, next, skip, head, to);
            next += 1;
            rest = tail;
        }
        let (blocks, tail) = rest.as_chunks_mut::<BLOCK>();
        self.cipher.counter_mode(stream, next, blocks, to);
        next += blocks.len() as u64;
        if !tail.is_empty() {
            self.part_of_block(stream, next, 0, tail, to);
        }
    }

    /// Puts bytes of one block from `skip` on to use.
    fn part_of_block(&self, stream: u64, i: u64, skip: usize, out: &mut [u8], to: Use) {
        let mut block = [[0; BLOCK]];
        self.cipher.counter_mode(stream, i, &mut block, Use::Write);
        to.apply(&block[0][skip..skip + out.len()], out);
    }
}

fn by_lane<E: Element>(narrow: Use, wide: Use) -> Use {
    if E::BITS == u32::BITS { narrow } else { wide }
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

    /// Every form that combines gives what a fill and a pass would.
    #[test]
    fn combined_forms_agree_with_a_fill_and_a_pass() {
        fn check<E: Element>() {
            let mut there = vec![E::ZERO; 5000];
            prg().fill(1, 0, &mut there);
            for (first, len) in [(0, 0), (0, 1), (1, 2), (3, 64), (5, 1000), (2, 4099)] {
                let mut masks = vec![E::ZERO; len];
                prg().fill(9, first, &mut masks);
                let expected =
                    |f: fn(E, E) -> E| -> Vec<E> { there.iter().zip(&masks).map(|(&a, &b)| f(a, b)).collect() };
                let got = |f: &dyn Fn(&mut [E])| {
                    let mut out = there[..len].to_vec();
                    f(&mut out);
                    out
                };
                assert_eq!(got(&|out| prg().add_to(9, first, out)), expected(E::add));
                assert_eq!(got(&|out| prg().subtract_from(9, first, out)), expected(E::sub));
                assert_eq!(got(&|out| prg().xor_into(9, first, out)), expected(|a, b| a ^ b));
                for k in [0, 1, 15, E::BITS - 1, E::BITS] {
                    let low: Vec<E> = masks.iter().map(|v| v.low(k)).collect();
                    assert_eq!(got(&|out| prg().fill_low(9, first, k, out)), low);
                }
                let mut kept = vec![E::ONE; len];
                let mut sums = there[..len].to_vec();
                prg().fill_and(9, first, &mut kept, &mut sums, E::add);
                assert!(kept == masks && sums == expected(E::add));
            }
        }
        check::<u32>();
        check::<u64>();
    }
}
