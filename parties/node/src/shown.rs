//! How the nodes make sure, before a session, that a client's input is a sharing: that copies of
//! one thing are the same.
//!
//! P0 and P2 send P1, with their word that they accept a plan, a *tag* of each request and each
//! pair that they belong to: a MAC under the seed that the pair shares, of what the pair holds
//! alike ([`Replicas`]). P1 compares those of the pairs (P0, P1) and (P1, P2) with its own, and
//! those of (P0, P2) with each other. A request whose tags differ never reaches a session; those
//! beside it wait on. The tags travel within messages that a plan has anyway: no round more.
//!
//! *Security*: P1 sees its own tags, and those of the pair (P0, P2) under a seed that it does not
//! know: uniform but for whether they are equal, which is what it is to learn. P0 and P2 receive
//! nothing. A tag is bound to its session and request, so it says nothing about any other.

use serde::{Deserialize, Serialize};
use tercet_engine::Replicas;
use tercet_net::{Connection, PartyId, codec};
use tercet_ring::Seed;

use crate::key::RequestKey;

/// What makes the key of tags unlike any other that grows from the seed of a pair.
const KEY_LABEL: &str = "tercet input tags v1";
/// What makes a tag unlike a [`Bond`].
const TAG_LABEL: &str = "tercet input tag v1";
const BOND_LABEL: &str = "tercet input bond v1";

/// A MAC of what two parties hold alike of one request.
type Tag = [u8; 16];

/// What two nodes show each other of the requests in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PairTags {
    /// Which seed of the pair the tags are under: a connection that broke has another than the one
    /// after it.
    bond: Tag,
    /// One of each request, in the order of the plan.
    tags: Vec<Tag>,
}

/// What one node shows: its tags with each of the two others, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown([PairTags; 2]);

impl Shown {
    /// What `me` shows of the requests of a plan of this hash, over its connections to the two
    /// others. None where one of them leads to no node.
    pub(crate) fn of(
        me: PartyId,
        plan_hash: &[u8; 32],
        connections: &[Connection; 2],
        requests: &[(RequestKey, Replicas)],
    ) -> Option<Shown> {
        let [first, second] = me.others().map(|other| {
            let to = connections.iter().find(|connection| connection.peer().role.party() == Some(other))?;
            let pair = Seed::from_bytes(*to.pair_seed()?.expose());
            PairTags::of(&pair, plan_hash, requests, |replicas| replicas.with(me, other).copied())
        });
        Some(Shown([first?, second?]))
    }

    #[cfg(test)]
    pub(crate) fn of_nothing() -> Shown {
        Shown([(); 2].map(|()| PairTags { bond: [0; 16], tags: Vec::new() }))
    }

    fn with(&self, me: PartyId, other: PartyId) -> Option<&PairTags> {
        me.others().into_iter().zip(&self.0).find_map(|(of, tags)| (of == other).then_some(tags))
    }
}

impl PairTags {
    fn of(
        pair: &Seed,
        plan_hash: &[u8; 32],
        requests: &[(RequestKey, Replicas)],
        digest: impl Fn(&Replicas) -> Option<[u8; 32]>,
    ) -> Option<PairTags> {
        let key = pair.derive(KEY_LABEL, plan_hash);
        let tags = requests.iter().map(|(request, replicas)| {
            let mut context = codec::encode(request).ok()?;
            context.extend(digest(replicas)?);
            Some(short(&key.derive(TAG_LABEL, &context)))
        });
        Some(PairTags { bond: short(&key.derive(BOND_LABEL, &[])), tags: tags.collect::<Option<_>>()? })
    }
}

fn short(seed: &Seed) -> Tag {
    std::array::from_fn(|at| seed.as_bytes()[at])
}

/// What comparing has shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The places in the plan of requests whose copies differ; none, as a rule.
    Odd(Vec<usize>),
    /// Two nodes do not speak of the same connection: one of theirs has just been made anew.
    Elsewhere(PartyId, PartyId),
}

/// Compares what all three show of `count` requests, in the order of parties.
pub(crate) fn compare(shown: [&Shown; 3], count: usize) -> Comparison {
    let [p0, p1, p2] = PartyId::ALL;
    let mut odd = vec![false; count];
    for (one, other) in [(p0, p1), (p0, p2), (p1, p2)] {
        let (Some(a), Some(b)) = (shown[one.index()].with(one, other), shown[other.index()].with(other, one)) else {
            return Comparison::Elsewhere(one, other);
        };
        if a.bond != b.bond || a.tags.len() != count || b.tags.len() != count {
            return Comparison::Elsewhere(one, other);
        }
        for (odd, (a, b)) in odd.iter_mut().zip(a.tags.iter().zip(&b.tags)) {
            *odd |= a != b;
        }
    }
    Comparison::Odd(odd.into_iter().enumerate().filter_map(|(place, odd)| odd.then_some(place)).collect())
}

#[cfg(test)]
mod tests {
    use tercet_net::{InputShare, PublicKey};

    use super::*;

    fn replicas(party: PartyId, change: impl Fn(&mut InputShare)) -> Replicas {
        let first_seed = (party != PartyId::P2).then_some([1; 32]);
        let second_seed = (party != PartyId::P1).then_some([2; 32]);
        let masked = if party == PartyId::P0 { Vec::new() } else { vec![vec![3; 9]] };
        let mut share = InputShare { batch: 1, rows: 1, first_seed, second_seed, masked, keys: Default::default() };
        change(&mut share);
        Replicas::of(party, &share)
    }

    /// What a party shows of three requests, the second of which is changed, where its pairs have
    /// these seeds.
    fn shown(party: PartyId, hash: u8, pairs: [u8; 3], change: fn(&mut InputShare)) -> Shown {
        let client = PublicKey::from_bytes([9; 32]);
        let requests: Vec<(RequestKey, Replicas)> = (0..3)
            .map(|at| {
                let key = RequestKey::new(&client, [at; 16]);
                (
                    key,
                    replicas(party, |share| {
                        if at == 1 {
                            change(share)
                        }
                    }),
                )
            })
            .collect();
        Shown(party.others().map(|other| {
            let pair = Seed::from_bytes([pairs[party.index() + other.index() - 1]; 32]);
            PairTags::of(&pair, &[hash; 32], &requests, |replicas| replicas.with(party, other).copied()).unwrap()
        }))
    }

    const PAIRS: [u8; 3] = [11, 12, 13];

    #[test]
    fn copies_that_differ_are_found_by_request() {
        let good = PartyId::ALL.map(|party| shown(party, 1, PAIRS, |_| ()));
        assert_eq!(compare(good.each_ref(), 3), Comparison::Odd(vec![]));
        type Change = fn(&mut InputShare);
        let changes: [(PartyId, Change); 6] = [
            (PartyId::P0, |share| share.first_seed = Some([8; 32])),
            (PartyId::P0, |share| share.second_seed = Some([8; 32])),
            (PartyId::P1, |share| share.first_seed = Some([8; 32])),
            (PartyId::P1, |share| share.masked[0][3] ^= 1),
            (PartyId::P2, |share| share.second_seed = Some([8; 32])),
            (PartyId::P2, |share| share.masked[0][0] ^= 1),
        ];
        for (party, change) in changes {
            let mut changed = good.clone();
            changed[party.index()] = shown(party, 1, PAIRS, change);
            assert_eq!(compare(changed.each_ref(), 3), Comparison::Odd(vec![1]), "{party}");
        }
    }

    #[test]
    fn a_connection_made_anew_is_nobodys_fault() {
        let good = PartyId::ALL.map(|party| shown(party, 1, PAIRS, |_| ()));
        let mut other = good.clone();
        other[2] = shown(PartyId::P2, 1, [11, 99, 13], |_| ());
        assert_eq!(compare(other.each_ref(), 3), Comparison::Elsewhere(PartyId::P0, PartyId::P2));
        let mut other = good.clone();
        other[0] = shown(PartyId::P0, 2, PAIRS, |_| ());
        assert_eq!(compare(other.each_ref(), 3), Comparison::Elsewhere(PartyId::P0, PartyId::P1));
        assert_eq!(compare(good.each_ref(), 2), Comparison::Elsewhere(PartyId::P0, PartyId::P1));
    }

    #[test]
    fn tags_of_two_sessions_or_requests_have_nothing_in_common() {
        let [a, b] = [1, 2].map(|hash| shown(PartyId::P0, hash, PAIRS, |_| ()));
        let all: Vec<Tag> = [a, b].iter().flat_map(|shown| shown.0.iter().flat_map(|pair| pair.tags.clone())).collect();
        let distinct: std::collections::BTreeSet<&Tag> = all.iter().collect();
        assert_eq!((all.len(), distinct.len()), (12, 12));
    }
}
