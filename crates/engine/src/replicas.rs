//! The parts of a client's input that two parties hold alike, and the digests that show it.
//!
//! ```text
//! P0, P1   the first seed      l1
//! P0, P2   the second seed     l2
//! P1, P2   masked values, and the lookup keys into masks
//! ```
//!
//! An input whose copies differ is no sharing of anything: the first product with a secret weight `W` then gives
//! `a W + b l2 + c l1` with factors of the client's choice, and whoever knows one plane of `W` reads the weights out of
//! the answer. So two parties compare a keyed tag of each pair's digest before a session begins, and no copy that
//! differs reaches one.
//!
//! *Security*: a digest stays at the party that made it. A digest of masked values in the hands of P0, which knows both
//! masks, would let P0 test guesses of the input; so what leaves a party is a tag under the seed of the pair that the
//! digest is of, which to the third party is uniform.

use sha2::{Digest, Sha256};
use tercet_net::{InputShare, PartyId};

/// What makes the digest of one pair unlike that of another.
const LABELS: [&[u8]; 3] = [b"tercet first seed", b"tercet second seed", b"tercet masked values and keys into masks"];

/// SHA-256 of what a party holds in common with each other party. Equal at both of a pair if and
/// only if their copies are.
#[derive(Clone, PartialEq, Eq)]
pub struct Replicas([[u8; 32]; 2]);

impl std::fmt::Debug for Replicas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replicas")
    }
}

impl Replicas {
    /// The digests of a client's input at `party`: one pass over its bytes.
    pub fn of(party: PartyId, share: &InputShare) -> Replicas {
        Replicas(party.others().map(|other| {
            let pair = party.index() + other.index() - 1;
            let mut digest = Sha256::new_with_prefix(LABELS[pair]);
            digest.update(share.batch.to_le_bytes());
            digest.update(share.rows.to_le_bytes());
            // Every length goes in before its bytes, so that no two inputs read alike.
            let mut take = |bytes: &[u8]| {
                digest.update((bytes.len() as u64).to_le_bytes());
                digest.update(bytes);
            };
            match pair {
                0 => share.first_seed.iter().for_each(|seed| take(seed)),
                1 => share.second_seed.iter().for_each(|seed| take(seed)),
                _ => {
                    share.masked.iter().for_each(|masked| take(masked));
                    take(&share.keys[1]);
                }
            }
            digest.finalize().into()
        }))
    }

    /// The digests of a step to which a client brings nothing.
    pub fn nothing() -> Replicas {
        Replicas([[0; 32]; 2])
    }

    /// The digest of what `party` and `other` hold alike, at `party`.
    pub fn with(&self, party: PartyId, other: PartyId) -> Option<&[u8; 32]> {
        party.others().into_iter().zip(&self.0).find_map(|(of, digest)| (of == other).then_some(digest))
    }
}

#[cfg(test)]
mod tests {
    use PartyId::{P0, P1, P2};

    use super::*;

    /// The three parts of one input, which belong together.
    fn parts() -> [InputShare; 3] {
        let part = |first: bool, second: bool, masked: bool, keys: [u8; 2]| InputShare {
            batch: 2,
            rows: 3,
            first_seed: first.then_some([1; 32]),
            second_seed: second.then_some([2; 32]),
            masked: if masked { vec![vec![3; 5], vec![], vec![4; 9]] } else { vec![] },
            keys: keys.map(|byte| vec![byte; 7]),
        };
        [part(true, true, false, [0, 5]), part(true, false, true, [6, 8]), part(false, true, true, [7, 8])]
    }

    fn agree(parts: &[InputShare; 3], a: PartyId, b: PartyId) -> bool {
        let of = |one: PartyId, other| *Replicas::of(one, &parts[one.index()]).with(one, other).unwrap();
        of(a, b) == of(b, a)
    }

    #[test]
    fn a_changed_copy_shows_to_the_pair_that_holds_it_and_to_no_other() {
        type Change = fn(&mut [InputShare; 3]);
        let changes: [(Change, (PartyId, PartyId)); 12] = [
            (|p| p[0].first_seed = Some([9; 32]), (P0, P1)),
            (|p| p[1].first_seed = Some([9; 32]), (P0, P1)),
            (|p| p[1].first_seed = None, (P0, P1)),
            (|p| p[0].second_seed = Some([9; 32]), (P0, P2)),
            (|p| p[2].second_seed = Some([9; 32]), (P0, P2)),
            (|p| p[1].masked[0][4] ^= 1, (P1, P2)),
            (|p| p[2].masked[2][0] ^= 128, (P1, P2)),
            (|p| p[2].masked.swap(0, 2), (P1, P2)),
            (|p| p[1].masked = vec![[vec![3; 5], vec![4; 9]].concat()], (P1, P2)),
            (|p| p[1].keys[1][6] ^= 1, (P1, P2)),
            (|p| p[2].keys[1].truncate(6), (P1, P2)),
            (|p| p[2].masked[1].push(0), (P1, P2)),
        ];
        for (at, (change, odd)) in changes.into_iter().enumerate() {
            let mut changed = parts();
            change(&mut changed);
            for pair in [(P0, P1), (P0, P2), (P1, P2)] {
                assert!(agree(&parts(), pair.0, pair.1));
                assert_eq!(agree(&changed, pair.0, pair.1), pair != odd, "change {at}, pair {pair:?}");
            }
        }
        // The keys into masked values are no copies: P1 and P2 hold different ones.
        let mut changed = parts();
        changed[1].keys[0][0] ^= 1;
        assert!(agree(&changed, P1, P2));
        let mut changed = parts();
        changed[0].rows += 1;
        assert!(!agree(&changed, P0, P1) && !agree(&changed, P0, P2) && agree(&changed, P1, P2));
    }
}
