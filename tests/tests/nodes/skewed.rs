//! Clients whose three parts do not belong together: every part that two nodes hold alike is
//! changed at one of them, alone and together with every other, in every kind of request. None
//! reaches a session.

use tercet_client::{Inputs, ModelFace, Options};
use tercet_net::{
    ByteChannel, ClientMessage, Fault, GenerationOptions, InputShare, LinkKind, NodeMessage, PartyId, TokenChoice,
    codec,
};
use tercet_node::Config;

use crate::cluster::{Cluster, MODEL, PATIENCE, Raw, ask, assert_refused, fresh_id, open, share_fixture, shared};
use crate::{P0, P1, P2, join_all};

const WORDS: [&str; 2] = ["skewed-secret", "skewed-public"];
const TEXTS: [&str; 2] = ["skewed-gpt-secret", "skewed-gpt-public"];

fn serving(config: &mut Config) {
    let at = config.party.index();
    for (public, (words, texts)) in WORDS.into_iter().zip(TEXTS).enumerate() {
        config.shares.push(share_fixture("bert_encoder", words, public == 1)[at].clone());
        config.shares.push(share_fixture("gpt2", texts, public == 1)[at].clone());
    }
}

/// A change of one copy: at which party, and of which part.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Skew {
    FirstSeed(PartyId),
    SecondSeed(PartyId),
    Masked(PartyId, usize),
    MaskKeys(PartyId),
}

use Skew::{FirstSeed, MaskKeys, Masked, SecondSeed};

impl Skew {
    /// All that an input has.
    fn all(shares: &[InputShare; 3]) -> Vec<Skew> {
        let mut all = vec![FirstSeed(P0), FirstSeed(P1), SecondSeed(P0), SecondSeed(P2)];
        for party in [P1, P2] {
            all.extend((0..shares[1].masked.len()).map(|at| Masked(party, at)));
            all.extend((!shares[1].keys[1].is_empty()).then_some(MaskKeys(party)));
        }
        all
    }

    fn party(self) -> PartyId {
        match self {
            FirstSeed(party) | SecondSeed(party) | Masked(party, _) | MaskKeys(party) => party,
        }
    }

    /// In another way at each party, so that two changes never make one input of another kind.
    fn apply(self, shares: &mut [InputShare; 3]) {
        let party = self.party();
        let (share, by) = (&mut shares[party.index()], 1 << party.index());
        match self {
            FirstSeed(_) => share.first_seed.as_mut().unwrap()[3] ^= by,
            SecondSeed(_) => share.second_seed.as_mut().unwrap()[31] ^= by,
            Masked(_, at) => share.masked[at][0] ^= by,
            // The last byte of a key corrects a leaf: it is a key still.
            MaskKeys(_) => *share.keys[1].last_mut().unwrap() ^= by,
        }
    }

    /// Every one, and every two.
    fn sets(shares: &[InputShare; 3]) -> Vec<Vec<Skew>> {
        let all = Skew::all(shares);
        let mut sets: Vec<Vec<Skew>> = all.iter().map(|one| vec![*one]).collect();
        for (at, one) in all.iter().enumerate() {
            sets.extend(all[at + 1..].iter().map(|other| vec![*one, *other]));
        }
        sets
    }
}

fn skewed(shares: &[InputShare; 3], set: &[Skew]) -> [InputShare; 3] {
    let mut shares = shares.clone();
    set.iter().for_each(|skew| skew.apply(&mut shares));
    shares
}

/// Sessions that a node has begun.
fn sessions(cluster: &Cluster) -> [u64; 3] {
    PartyId::ALL.map(|party| {
        let status = cluster.node(party).status();
        status.sessions_done + status.sessions_failed + u64::from(status.sessions_running)
    })
}

#[track_caller]
fn assert_contradiction(set: &[Skew], answers: &[NodeMessage]) {
    for answer in answers {
        let refused = matches!(answer, NodeMessage::Refused { fault: Fault::Request, reason } if reason.contains("belong together"));
        assert!(refused, "{set:?}: {answer:?}");
    }
}

async fn table(raw: &Raw) -> Vec<u8> {
    let mut channel = open(&raw.connections[1]).await;
    channel.send(&ClientMessage::Table { model: raw.face.name().into() }).await.unwrap();
    let mut table = Vec::new();
    while let Ok(NodeMessage::Table(piece)) = channel.recv(codec::LARGEST_BYTES, PATIENCE).await {
        table.extend(piece);
    }
    table
}

#[test]
fn no_copy_that_differs_reaches_a_session_of_a_whole_request() {
    let cluster = Cluster::start(LinkKind::Quic, serving);
    cluster.runtime.block_on(async {
        cluster.assert_works().await;
        let image = &shared().digits[0].pixels[..];
        let kinds = [
            (MODEL, Inputs::Images(&[image]), 3),
            (WORDS[0], Inputs::Texts(&["the fox"]), 4),
            (WORDS[1], Inputs::Texts(&["the fox"]), 3),
        ];
        for (model, inputs, parts) in kinds {
            let raw = Raw::connect_to(&cluster, model).await;
            let fetched = if model == WORDS[1] { Some(table(&raw).await) } else { None };
            let prepared = raw.face.prepare(inputs, &Options::default(), fetched.as_deref()).unwrap().swap_remove(0);
            let honest = raw.open(&prepared, raw.run(fresh_id(), prepared.shares()).await);
            let before = sessions(&cluster);
            let sets = Skew::sets(prepared.shares());
            let singles = 4 + 2 * parts;
            assert_eq!(sets.len(), singles * (singles + 1) / 2, "{model}");
            for set in sets {
                let answers = raw.run(fresh_id(), &skewed(prepared.shares(), &set)).await;
                assert_contradiction(&set, &answers);
            }
            assert_eq!(sessions(&cluster), before, "{model}: a session began");
            let again = raw.open(&prepared, raw.run(fresh_id(), prepared.shares()).await);
            assert!(again[0].iter().zip(&honest[0]).all(|(a, b)| (a - b).abs() < 0.1), "{model}");
        }
    });
}

#[test]
fn a_request_whose_copies_differ_takes_no_neighbour_along() {
    let cluster = Cluster::start(LinkKind::Quic, crate::slow);
    cluster.runtime.block_on(async {
        let raw = Raw::connect(&cluster).await;
        let client = cluster.client().await;
        // One session runs; what comes meanwhile is planned together.
        let first = cluster.classify(&client, &shared().digits[..1]);
        let rest = async {
            crate::until("the first runs", || cluster.node(P2).status().sessions_running == 1).await;
            let prepared = raw.prepare(&shared().digits[1..2]);
            let bad = skewed(prepared.shares(), &[Masked(P2, 2)]);
            let (odd, even) = tokio::join!(raw.run(fresh_id(), &bad), raw.run(fresh_id(), prepared.shares()));
            assert_contradiction(&[Masked(P2, 2)], &odd);
            raw.open(&prepared, even)
        };
        let (first, even) = tokio::join!(first, rest);
        first.unwrap();
        let oracle = shared().oracle();
        crate::cluster::assert_close(&even[0], &crate::cluster::logits(&oracle, &shared().digits[1]));
        assert_eq!(cluster.node(P1).status().sessions_failed, 0);
    });
}

/// The channels of a generation that is told things by hand.
struct Told([ByteChannel; 3]);

impl Told {
    async fn open(raw: &Raw, shares: &[InputShare; 3]) -> Told {
        let request_id = fresh_id();
        let options = GenerationOptions { max_positions: 9, choice: TokenChoice::Scores, every_row: false };
        let channels = PartyId::ALL.map(async |party| {
            let face: &ModelFace = &raw.face;
            let (start_id, model, digest) = (face.start_id(party), face.name().into(), face.digest());
            let (deadline_ms, share) = (30_000, shares[party.index()].clone());
            let mut channel = open(&raw.connections[party.index()]).await;
            let message = ClientMessage::Generate {
                request_id,
                start_id,
                model,
                digest,
                deadline_ms,
                options,
                noise_seed: None,
                share,
            };
            channel.send(&message).await.unwrap();
            channel
        });
        let Ok(channels) = join_all(channels).await.try_into() else { unreachable!() };
        Told(channels)
    }

    async fn next(&mut self, shares: &[InputShare; 3]) {
        for (channel, share) in self.0.iter_mut().zip(shares) {
            channel.send(&ClientMessage::Next { share: share.clone() }).await.unwrap();
        }
    }

    async fn answers(&mut self) -> Vec<NodeMessage> {
        let answers =
            self.0.each_mut().map(async |channel| channel.recv(codec::LARGEST_BYTES, PATIENCE).await.unwrap());
        join_all(answers).await
    }

    #[track_caller]
    fn assert_step(answers: &[NodeMessage]) {
        assert!(answers.iter().all(|answer| matches!(answer, NodeMessage::Step { .. })), "{answers:?}");
    }
}

#[test]
fn no_copy_that_differs_reaches_a_step_of_a_generation() {
    let cluster = Cluster::start(LinkKind::Quic, serving);
    cluster.runtime.block_on(async {
        cluster.assert_works().await;
        for (model, parts) in TEXTS.into_iter().zip([2, 1]) {
            let raw = Raw::connect_to(&cluster, model).await;
            let fetched = if parts == 1 { Some(table(&raw).await) } else { None };
            let share = |ids: &[u32]| raw.face.share_rows(ids, fetched.as_deref()).unwrap();
            let (prompt, row) = (share(&[7; 5]), share(&[3]));
            let singles = 4 + 2 * parts;
            for (first, part) in [(true, &prompt), (false, &row)] {
                let sets = Skew::sets(part);
                assert_eq!(sets.len(), singles * (singles + 1) / 2, "{model}");
                for set in sets {
                    // What makes the last step the odd one goes in front of it.
                    let mut told = Told::open(&raw, &if first { skewed(part, &set) } else { prompt.clone() }).await;
                    if !first {
                        Told::assert_step(&told.answers().await);
                        told.next(&row).await;
                        Told::assert_step(&told.answers().await);
                        let before = sessions(&cluster);
                        told.next(&skewed(part, &set)).await;
                        assert_contradiction(&set, &told.answers().await);
                        assert_eq!(sessions(&cluster), before, "{model}: a session began");
                    } else {
                        let before = sessions(&cluster);
                        assert_contradiction(&set, &told.answers().await);
                        assert_eq!(sessions(&cluster), before, "{model}: a session began");
                    }
                }
            }
        }
        crate::until("all is freed", || {
            PartyId::ALL.iter().all(|party| cluster.node(*party).status().cache_bytes == 0)
        })
        .await;
    });
}

/// Parts that are not due are no place to put anything in.
#[test]
fn parts_that_are_not_due_are_refused_at_the_door() {
    let cluster = Cluster::start(LinkKind::Quic, serving);
    cluster.runtime.block_on(async {
        let raw = Raw::connect(&cluster).await;
        let prepared = raw.prepare(&shared().digits[..1]);
        type Spoil = fn(&mut [InputShare; 3]);
        let spoiled: [(PartyId, &str, Spoil); 6] = [
            (P1, "the second seed, which is not for P1", |shares| shares[1].second_seed = Some([1; 32])),
            (P2, "the first seed, which is not for P2", |shares| shares[2].first_seed = Some([1; 32])),
            (P0, "no second seed", |shares| shares[0].second_seed = None),
            (P0, "1 masked tensors where 0 are due", |shares| shares[0].masked.push(vec![1])),
            (P2, "bytes where", |shares| shares[2].masked[0].push(0)),
            (P1, "lookup keys, but the rows", |shares| shares[1].keys[0].push(0)),
        ];
        for (party, words, spoil) in spoiled {
            let mut shares = prepared.shares().clone();
            spoil(&mut shares);
            let message = raw.message(party, fresh_id(), &shares[party.index()]);
            assert_refused(&ask(&raw.connections[party.index()], &message).await, Fault::Request, words);
        }
    });
}
