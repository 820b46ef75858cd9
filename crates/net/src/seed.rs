//! The seed that two parties share, made inside their channel, fresh for each connection.
//!
//! Each side sends a nonce and an ephemeral Curve25519 key. The seed is
//! `HKDF-SHA256(salt = label, secret = TLS exporter ‖ Diffie–Hellman, info = both nonces, both ids)`,
//! so both sides contribute, it is bound to this very TLS session (hybrid, with both identities proved), and neither a
//! recording nor the identity keys give it away later. The third party learns nothing of it.

use std::fmt;

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use curve25519_dalek::montgomery::MontgomeryPoint;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::link::{ByteReader, Link, SendHalf};
use crate::{NetError, PartyId};

/// Under which the TLS session exports its part.
pub(crate) const EXPORT_LABEL: &[u8] = b"EXPORTER tercet pair seed v1";

const SALT: &[u8] = b"tercet pair seed v1";

/// A secret of exactly two parties, for one connection between them. Erased when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PairSeed([u8; 32]);

impl PairSeed {
    /// The seed's bytes, to derive keys from; nothing may be used twice, so mix in the session.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PairSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairSeed(..)")
    }
}

/// What one side contributes: in clear inside the channel, but for `scalar`, which stays.
struct Contribution {
    nonce: [u8; 32],
    scalar: Zeroizing<[u8; 32]>,
}

impl Contribution {
    fn fresh() -> Result<Self, NetError> {
        let mut drawn = Self { nonce: [0; 32], scalar: Zeroizing::new([0; 32]) };
        let random = SystemRandom::new();
        let filled = random.fill(&mut drawn.nonce).and_then(|()| random.fill(&mut *drawn.scalar));
        filled.map(|()| drawn).map_err(|_| NetError::local("the operating system gives no randomness"))
    }

    fn message(&self) -> [u8; 64] {
        let mut message = [0; 64];
        message[..32].copy_from_slice(&self.nonce);
        message[32..].copy_from_slice(MontgomeryPoint::mul_base_clamped(*self.scalar).as_bytes());
        message
    }

    /// The seed, from what the peer sent. `mine` and `theirs` are the parties of the two contributions.
    fn seed(
        &self,
        mine: PartyId,
        theirs: PartyId,
        message: &[u8; 64],
        exported: &[u8; 32],
    ) -> Result<PairSeed, &'static str> {
        let (their_nonce, their_point) = (&message[..32], &message[32..]);
        let point: [u8; 32] = their_point.try_into().map_err(|_| "a key of wrong length")?;
        let shared = Zeroizing::new(MontgomeryPoint(point).mul_clamped(*self.scalar));
        if *shared == MontgomeryPoint([0; 32]) {
            return Err("a key of small order");
        }
        let mut secret = Zeroizing::new([0; 64]);
        secret[..32].copy_from_slice(exported);
        secret[32..].copy_from_slice(shared.as_bytes());
        let ids = [mine.min(theirs).index() as u8, mine.max(theirs).index() as u8];
        let (low, high) = if mine < theirs { (&self.nonce[..], their_nonce) } else { (their_nonce, &self.nonce[..]) };
        let key = Salt::new(HKDF_SHA256, SALT).extract(&*secret);
        let mut seed = PairSeed([0; 32]);
        let expanded = key.expand(&[low, high, &ids], HKDF_SHA256).and_then(|okm| okm.fill(&mut seed.0));
        expanded.map(|()| seed).map_err(|_| "a key derivation that failed")
    }
}

/// Agrees on the seed over the control stream of a connection between `mine` and `theirs`.
pub(crate) async fn agree(
    link: &Link,
    send: &mut SendHalf,
    recv: &mut ByteReader,
    mine: PartyId,
    theirs: PartyId,
) -> Result<PairSeed, NetError> {
    let contribution = Contribution::fresh()?;
    send.write(Bytes::copy_from_slice(&contribution.message())).await?;
    let message = recv.need(64).await?;
    let message = <&[u8; 64]>::try_from(&message[..]).map_err(|_| NetError::local("64 bytes are not 64 bytes"))?;
    let exported = link.exported()?;
    contribution.seed(mine, theirs, message, &exported).map_err(|what| NetError::protocol(recv.peer(), what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_derive_one_seed_from_both_contributions() {
        let (a, b) = (Contribution::fresh().unwrap(), Contribution::fresh().unwrap());
        let exported = [9; 32];
        let at_a = a.seed(PartyId::P0, PartyId::P2, &b.message(), &exported).unwrap();
        let at_b = b.seed(PartyId::P2, PartyId::P0, &a.message(), &exported).unwrap();
        assert_eq!(at_a.expose(), at_b.expose());
        assert_eq!(format!("{at_a:?}"), "PairSeed(..)");

        let other_session = a.seed(PartyId::P0, PartyId::P2, &b.message(), &[8; 32]).unwrap();
        let other_pair = a.seed(PartyId::P0, PartyId::P1, &b.message(), &exported).unwrap();
        let mut renewed = b.message();
        renewed[0] ^= 1;
        let other_nonce = a.seed(PartyId::P0, PartyId::P2, &renewed, &exported).unwrap();
        for other in [other_session, other_pair, other_nonce] {
            assert_ne!(other.expose(), at_a.expose());
        }
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        let mine = Contribution::fresh().unwrap();
        for point in [[0u8; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            let mut message = [7; 64];
            message[32..].copy_from_slice(&point);
            assert!(mine.seed(PartyId::P1, PartyId::P2, &message, &[0; 32]).is_err());
        }
    }
}
