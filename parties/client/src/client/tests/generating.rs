//! Generations against nodes that answer as each test wants.

use std::sync::atomic::AtomicBool;

use tercet_model::RowInput;
use tercet_net::{LinkKind, NoiseSeed, TokenChoice};
use tercet_ring::dpf;

use super::*;
use crate::{Finish, GenerateOptions, Sampling};

const VOCAB: usize = 5;

/// What was heard: by whom, what, and how many rows came with it.
type Heard = Arc<Mutex<Vec<(PartyId, &'static str, u32)>>>;

/// A node's part of `values` under masks 11 and 22.
pub(super) fn step(party: PartyId, values: &[u64], ring: u32) -> NodeMessage {
    let packed = |add: u64, only_mask: bool| {
        let mut out = Vec::new();
        let plane: Vec<u64> = values.iter().map(|v| if only_mask { add } else { v.wrapping_add(add) }).collect();
        pack::pack(&plane, ring, &mut out);
        out
    };
    let (m, l1, l2) = (packed(33, false), packed(11, true), packed(22, true));
    let planes = match party {
        PartyId::P0 => [l1, l2],
        PartyId::P1 => [m, l1],
        PartyId::P2 => [m, l2],
    };
    let mut bytes = [[0; 3]; 3];
    bytes[party.index()][(party.index() + 1) % 3] = 100;
    NodeMessage::Step {
        share: OutputShare { planes },
        usage: Usage { rounds: 3, bytes, batched: 1, ..Usage::default() },
    }
}

/// Scores of which one token has the highest.
pub(super) fn favour(party: PartyId, token: usize) -> NodeMessage {
    let scores: Vec<u64> = (0..VOCAB).map(|at| if at == token { 5 << 10 } else { 1 << 10 }).collect();
    step(party, &scores, 32)
}

/// Nodes that would have these tokens come, one a step, and note what they hear. `twist` may say something else at any step.
fn nodes(
    tokens: &'static [usize],
    twist: impl Fn(PartyId, usize) -> Option<NodeMessage> + Send + Sync + 'static,
) -> (Nodes, Heard) {
    let heard = Heard::default();
    let (noted, counts) = (heard.clone(), Mutex::new([0; 3]));
    let nodes = Nodes::start(move |party, message| {
        let (what, rows) = match &message {
            ClientMessage::Manifest { .. } => return Some(vec![fixture::answer(&fixture::decoder(32), 7)]),
            ClientMessage::Generate { share, .. } => ("generate", share.rows),
            ClientMessage::Next { share } => ("next", share.rows),
            ClientMessage::Finish => ("finish", 0),
            other => panic!("{other:?}"),
        };
        noted.lock().unwrap_or_else(PoisonError::into_inner).push((party, what, rows));
        if what == "finish" {
            return Some(Vec::new());
        }
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = counts[party.index()];
        counts[party.index()] += 1;
        Some(vec![twist(party, at).unwrap_or_else(|| favour(party, tokens[at]))])
    });
    (nodes, heard)
}

fn heard_by(heard: &Heard, party: PartyId) -> Vec<(&'static str, u32)> {
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.iter().filter(|(by, ..)| *by == party).map(|(_, what, rows)| (*what, *rows)).collect()
}

/// A model with a public gate is asked by a client that agrees to it, and by no other.
#[tokio::test]
async fn a_public_gate_needs_the_clients_consent() {
    let nodes = Nodes::start(move |party, message| match message {
        ClientMessage::Manifest { .. } => {
            let mut interface = fixture::decoder(32);
            interface.decoder.iter_mut().for_each(|decoder| decoder.public_gate = true);
            Some(vec![fixture::answer(&interface, 7)])
        }
        ClientMessage::Generate { .. } => Some(vec![favour(party, 0)]),
        ClientMessage::Finish => Some(Vec::new()),
        other => panic!("a client that does not agree sends {other:?}"),
    });
    let wary = nodes.client().await.unwrap();
    for error in [
        wary.generate("small", "one", &GenerateOptions::default()).await.map(|_| ()).unwrap_err(),
        wary.score("small", "one two", Duration::from_secs(9)).await.map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(&error, Error::Misuse(what) if what.contains("public_gate")), "{error}");
    }
    let agreeing = nodes.client_with(|config| ClientConfig { public_gate: true, ..config }).await.unwrap();
    let mut generation = agreeing.generate("small", "one", &GenerateOptions::default()).await.unwrap();
    assert_eq!(generation.next().await.unwrap().unwrap().id, 0);
}

async fn until_heard(heard: &Heard, what: &str) {
    for party in PartyId::ALL {
        while heard_by(heard, party).last().is_none_or(|(last, _)| *last != what) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn tokens_come_until_one_ends_the_text() {
    let (nodes, heard) = nodes(&[2, 3, 0], |_, _| None);
    let client = nodes.client().await.unwrap();
    let mut generation = client.generate("small", "one four", &GenerateOptions::default()).await.unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = generation.next().await {
        tokens.push(token.unwrap());
    }
    assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), [2, 3, 0]);
    assert_eq!(tokens.iter().map(|token| token.text.as_str()).collect::<String>(), " two three zero");
    let likely = tokens[0].log_probability.unwrap();
    assert!((likely + (1.0 + 4.0 * (-4f64).exp()).ln()).abs() < 1e-9, "{likely}");
    let usage = generation.usage();
    assert_eq!((usage.prompt_tokens, usage.new_tokens, usage.finish), (2, 3, Some(Finish::Eos)));
    assert_eq!((usage.rounds, usage.total_bytes(), usage.batched, usage.retried), (9, 900, 1, 0));
    assert!(usage.sent.iter().all(|bytes| *bytes > 0) && usage.received.iter().all(|bytes| *bytes > 0));
    until_heard(&heard, "finish").await;
    for party in PartyId::ALL {
        assert_eq!(heard_by(&heard, party), [("generate", 2), ("next", 1), ("next", 1), ("finish", 0)]);
    }
}

#[tokio::test]
async fn the_first_token_may_be_the_last() {
    let (nodes, heard) = nodes(&[2, 3, 0], |_, _| None);
    let client = nodes.client().await.unwrap();
    let options = GenerateOptions { stop: vec!["two".into()], ..Default::default() };
    let (text, usage) = client.generate("small", "one", &options).await.unwrap().text().await.unwrap();
    assert_eq!((text.as_str(), usage.new_tokens, usage.finish), (" ", 1, Some(Finish::Stop)));
    assert_eq!(usage.per_token(), None);
    until_heard(&heard, "finish").await;
    assert_eq!(heard_by(&heard, PartyId::P0), [("generate", 1), ("finish", 0)]);
}

#[tokio::test]
async fn a_text_ends_with_its_length_or_the_context() {
    let (nodes, _heard) = nodes(&[2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], |_, _| None);
    let client = nodes.client().await.unwrap();
    let options = GenerateOptions { max_new_tokens: 2, stop: vec!["three four".into()], ..Default::default() };
    let (text, usage) = client.generate("small", "one", &options).await.unwrap().text().await.unwrap();
    assert_eq!((text.as_str(), usage.finish), (" two three", Some(Finish::Length)), "held back, then not stopped at");
    // A context of 8: seven tokens go in, an eighth comes out.
    let long = "one one one one one one";
    let (_, usage) = client.generate("small", long, &GenerateOptions::default()).await.unwrap().text().await.unwrap();
    assert_eq!((usage.prompt_tokens, usage.new_tokens, usage.finish), (6, 3, Some(Finish::Length)));
    let error = client.generate("small", &"one ".repeat(9), &GenerateOptions::default()).await.unwrap_err();
    assert!(matches!(&error, Error::Input { .. }) && error.to_string().contains("9 tokens"), "{error}");
    let wrong = GenerateOptions { max_new_tokens: 0, ..Default::default() };
    assert!(matches!(client.generate("small", "one", &wrong).await, Err(Error::Misuse(_))));
    assert!(matches!(client.embed("small", &["one"], &Options::default()).await, Err(Error::Misuse(_))));
}

#[tokio::test]
async fn a_deadline_may_be_any() {
    let (nodes, _heard) = nodes(&[2, 3, 0], |_, _| None);
    let client = nodes.client().await.unwrap();
    let options = GenerateOptions { deadline: Duration::MAX, ..Default::default() };
    let (text, usage) = client.generate("small", "one", &options).await.unwrap().text().await.unwrap();
    assert_eq!((text.as_str(), usage.finish), (" two three zero", Some(Finish::Eos)));
}

#[tokio::test]
async fn copies_that_differ_end_a_generation_at_any_step() {
    for bad in 0..2 {
        let (nodes, _heard) =
            nodes(&[2, 3, 0], move |party, at| (party == PartyId::P2 && at == bad).then(|| favour(party, 4)));
        let client = nodes.client().await.unwrap();
        let mut generation = client.generate("small", "one", &GenerateOptions::default()).await.unwrap();
        for _ in 0..bad {
            generation.next().await.unwrap().unwrap();
        }
        let error = generation.next().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Disagreement { parties: [PartyId::P1, PartyId::P2], .. }), "{error}");
        assert!(generation.next().await.is_none());
        assert_eq!(generation.usage().finish, None);
    }
}

#[tokio::test]
async fn a_failed_prompt_is_sent_again_and_a_failed_step_is_not() {
    let (nodes, heard) = nodes(&[9, 2, 0], |_, at| (at == 0).then(|| refused(Fault::Nodes)));
    let client = nodes.client().await.unwrap();
    let (text, usage) =
        client.generate("small", "one", &GenerateOptions::default()).await.unwrap().text().await.unwrap();
    assert_eq!((text.as_str(), usage.retried, usage.new_tokens), (" two zero", 1, 2));
    assert_eq!(heard_by(&heard, PartyId::P1)[..3], [("generate", 1), ("generate", 1), ("next", 1)]);
    // With a token out the caller decides: it has the text so far.
    let (nodes, heard) = super::generating::nodes(&[2, 9], |_, at| (at == 1).then(|| refused(Fault::Nodes)));
    let client = nodes.client().await.unwrap();
    let options = GenerateOptions { retries: 100, ..Default::default() };
    let mut generation = client.generate("small", "one", &options).await.unwrap();
    let error = generation.text().await.unwrap_err();
    assert!(matches!(error, Error::Refused { fault: Fault::Nodes, .. }) && error.may_have_run(), "{error}");
    assert_eq!((generation.text_so_far(), generation.usage().retried), (" two", 0));
    assert!(generation.next().await.is_none());
    assert_eq!(heard_by(&heard, PartyId::P1), [("generate", 1), ("next", 1)]);
    // What is the caller's fault is not tried again, and the client is told by whom.
    let (nodes, heard) =
        super::generating::nodes(&[2], |party, _| (party == PartyId::P1).then(|| refused(Fault::Request)));
    let client = nodes.client().await.unwrap();
    let error = client.generate("small", "one", &GenerateOptions::default()).await.unwrap().text().await.unwrap_err();
    assert!(matches!(error, Error::Refused { party: PartyId::P1, fault: Fault::Request, .. }), "{error}");
    assert_eq!(heard_by(&heard, PartyId::P1), [("generate", 1)]);
}

#[tokio::test]
async fn what_a_failed_try_still_holds_is_waited_for() {
    let (nodes, heard) = nodes(&[9, 9, 9, 2, 3, 0], |_, at| match at {
        0 => Some(refused(Fault::Nodes)),
        1 | 2 => Some(refused(Fault::Busy)),
        _ => None,
    });
    let client = nodes.client().await.unwrap();
    let options = GenerateOptions { retries: 1, ..Default::default() };
    let (text, usage) = client.generate("small", "one", &options).await.unwrap().text().await.unwrap();
    assert_eq!((text.as_str(), usage.retried, usage.new_tokens), (" two three zero", 1, 3));
    let expected = [("generate", 1), ("generate", 1), ("generate", 1), ("generate", 1), ("next", 1), ("next", 1)];
    assert_eq!(heard_by(&heard, PartyId::P1)[..6], expected);
    // The nodes are full of others' texts: nothing is waited for, and not beyond the deadline.
    for (failing, tries, deadline) in [(0, 1..2, 60_000), (1, 2..9, 1000)] {
        let (nodes, heard) = super::generating::nodes(&[], move |_, at| {
            Some(refused(if at < failing { Fault::Nodes } else { Fault::Busy }))
        });
        let client = nodes.client().await.unwrap();
        let options = GenerateOptions { deadline: Duration::from_millis(deadline), ..options.clone() };
        let error = client.generate("small", "one", &options).await.unwrap().text().await.unwrap_err();
        assert!(matches!(error, Error::Refused { fault: Fault::Busy, .. }), "{error}");
        let heard = heard_by(&heard, PartyId::P1);
        assert!(tries.contains(&heard.len()) && heard.iter().all(|what| *what == ("generate", 1)), "{heard:?}");
    }
}

/// Whether each node has seen its channel break.
async fn broken(mut generation: crate::Generation, nodes_left: Arc<AtomicUsize>, cancel: bool) {
    generation.next().await.unwrap().unwrap();
    if cancel {
        generation.cancel();
        assert!(generation.next().await.is_none());
        assert_eq!(generation.usage().finish, Some(Finish::Cancelled));
    } else {
        drop(generation);
    }
    while nodes_left.load(Ordering::SeqCst) != 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn given_up_it_ends_at_once() {
    for cancel in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let keys = PartyId::ALL.map(|party| {
            let identity = Identity::generate().unwrap();
            identity.save(&dir.path().join(party.to_string())).unwrap();
            Some(identity.public_key())
        });
        // Nodes that give one token, then nothing, and wait for the client to leave.
        let left = Arc::new(AtomicUsize::new(0));
        let endpoints = PartyId::ALL.map(|party| {
            let identity = Identity::load(&dir.path().join(party.to_string())).unwrap();
            let config = EndpointConfig::node(identity, party, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), keys);
            let config = EndpointConfig { clients: ClientPolicy::Open, profile: LinkProfile::Loopback, ..config };
            let endpoint = Endpoint::bind(config).unwrap();
            let (listening, left) = (endpoint.clone(), left.clone());
            tokio::spawn(async move {
                let connection = listening.accept().await;
                while let Ok((_, mut channel)) = connection.accept_channel().await {
                    let patience = Duration::from_secs(20);
                    match channel.receiver.recv(codec::LARGEST_BYTES, patience).await.unwrap() {
                        ClientMessage::Manifest { .. } => {
                            channel.send(&fixture::answer(&fixture::decoder(32), 7)).await.unwrap();
                            channel.finish();
                        }
                        _ => {
                            channel.send(&favour(party, 2)).await.unwrap();
                            while let Ok(Some(_)) = channel.receiver.next_bytes(1 << 20, patience).await {}
                            left.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
            endpoint
        });
        let node = |party: PartyId| NodeAddress {
            key: keys[party.index()].unwrap(),
            address: PeerAddress::new(Default::default(), endpoints[party.index()].local_address().unwrap()),
        };
        let config = ClientConfig::new(Identity::generate().unwrap(), PartyId::ALL.map(node));
        let client = Client::connect(ClientConfig { profile: LinkProfile::Loopback, ..config }).await.unwrap();
        let generation = client.generate("small", "one", &GenerateOptions::default()).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), broken(generation, left, cancel)).await;
        assert!(ended.is_ok(), "cancel {cancel}");
    }
}

/// As many generations as there are channels for, and the nodes answer questions all the same.
#[tokio::test]
async fn more_generations_than_there_are_places_wait_for_their_turn() {
    for kind in [LinkKind::Quic, LinkKind::Tcp] {
        let (begun, going) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, answering) = (begun.clone(), going.clone());
        let nodes = Nodes::start(move |party, message| match message {
            ClientMessage::Manifest { .. } => Some(vec![fixture::answer(&fixture::decoder(32), 7)]),
            ClientMessage::Generate { .. } => {
                counted.fetch_add(usize::from(party == PartyId::P0), Ordering::SeqCst);
                answering.load(Ordering::SeqCst).then(|| vec![favour(party, 0)])
            }
            _ => Some(Vec::new()),
        });
        let over = |mut config: ClientConfig| {
            config.nodes.iter_mut().for_each(|node| node.address.kind = kind);
            config
        };
        let client = nodes.client_with(over).await.unwrap();
        let options = GenerateOptions { retries: 0, ..Default::default() };
        let many = async |count: usize| {
            let mut generations = Vec::new();
            for _ in 0..count {
                generations.push(client.generate("small", "one", &options).await.unwrap());
            }
            generations
        };
        let until_begun = async |count: usize| {
            while begun.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(begun.load(Ordering::SeqCst), count, "{kind:?}");
        };
        let all = async {
            let mut first = many(24).await;
            until_begun(24).await;
            let further = many(16).await;
            until_begun(24).await;
            let questions = (0..20).map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.models().await.unwrap() })
            });
            for question in questions.collect::<Vec<_>>() {
                question.await.unwrap();
            }
            // Who waits for its turn has a deadline all the same.
            let hasty = GenerateOptions { deadline: Duration::from_millis(50), ..options.clone() };
            let late = client.generate("small", "one", &hasty).await.unwrap().text().await.unwrap_err();
            assert!(matches!(late, Error::Deadline { .. }), "{late}");
            first.truncate(18);
            until_begun(30).await;
            going.store(true, Ordering::SeqCst);
            drop(first);
            // Six of them have begun and hear nothing.
            let mut done = 0;
            for mut generation in further {
                let heard = tokio::time::timeout(Duration::from_millis(300), generation.next()).await;
                done += usize::from(heard.is_ok_and(|token| token.unwrap().unwrap().id == 0));
            }
            assert_eq!(done, 10, "{kind:?}");
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("nobody waits for ever");
    }
}

#[tokio::test]
async fn inside_the_nodes_choose_and_only_the_helper_gets_noise() {
    type Seeds = Vec<(PartyId, Option<NoiseSeed>, TokenChoice)>;
    let (seeds, counts) = (Arc::new(Mutex::new(Seeds::new())), Mutex::new([0; 3]));
    let noted = seeds.clone();
    let nodes = Nodes::start(move |party, message| match message {
        ClientMessage::Manifest { .. } => Some(vec![fixture::answer(&fixture::decoder(32), 7)]),
        ClientMessage::Generate { noise_seed, options, .. } => {
            noted.lock().unwrap().push((party, noise_seed, options.choice));
            let count = &mut counts.lock().unwrap()[party.index()];
            *count += 1;
            // The third generation gets a token beyond the vocabulary.
            let tokens: &[u64] = if *count == 3 { &[7] } else { &[3, 1, 0] };
            Some(tokens.iter().map(|token| step(party, &[*token], 3)).collect())
        }
        _ => Some(Vec::new()),
    });
    let client = nodes.client().await.unwrap();
    let warm = Sampling { temperature: 0.5, seed: Some(9), ..Sampling::GREEDY };
    let options = GenerateOptions { inside: true, sampling: warm, retries: 0, ..Default::default() };
    for _ in 0..2 {
        let mut generation = client.generate("small", "one", &options).await.unwrap();
        let mut ids = Vec::new();
        while let Some(token) = generation.next().await {
            let token = token.unwrap();
            assert_eq!(token.log_probability, None);
            ids.push(token.id);
        }
        assert_eq!((ids, generation.usage().finish), (vec![3, 1, 0], Some(Finish::Eos)));
    }
    let error = client.generate("small", "one", &options).await.unwrap().text().await.unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    let seeds = seeds.lock().unwrap();
    let choice = TokenChoice::Token { temperature: Some(0.5), reenter: true };
    assert!(seeds.iter().all(|(party, seed, told)| seed.is_some() == (*party == PartyId::P0) && *told == choice));
    let of_helper: Vec<_> = seeds.iter().filter_map(|(_, seed, _)| seed.clone()).collect();
    assert_eq!(of_helper[0], of_helper[1], "the caller's seed gives the same noise again");
}

#[tokio::test]
async fn a_text_is_scored_row_by_row() {
    let nodes = Nodes::start(move |party, message| match message {
        ClientMessage::Manifest { .. } => Some(vec![fixture::answer(&fixture::decoder(64), 7)]),
        ClientMessage::Generate { options, share, .. } => {
            assert!(options.every_row && options.max_positions == 3 && share.rows == 3);
            let scores = [[0, 0, 1 << 10, 0, 0], [0; 5], [5 << 10; 5]].concat();
            Some(vec![step(party, &scores, 64)])
        }
        other => panic!("{other:?}"),
    });
    let client = nodes.client().await.unwrap();
    let score = client.score("small", "one two four", Duration::MAX).await.unwrap();
    assert_eq!(score.ids, [1, 2, 4]);
    let expected = [1.0 - (1f64.exp() + 4.0).ln(), -5f64.ln()];
    assert!(score.log_probabilities.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9));
    assert!((score.perplexity() - (-(expected[0] + expected[1]) / 2.0).exp()).abs() < 1e-9);
}

/// What goes out for a row: its keys and signs, and no other tensor.
#[test]
fn rows_are_shared_alone() {
    let face = fixture::face(&fixture::decoder(64)).unwrap();
    let shares = crate::share::rows(&face, vec![3, 1].into(), None).unwrap();
    let RowInput::Lookup { domain_bits, .. } = face.interface().rows else { panic!() };
    let error = face.share_rows(&[3, 777], None).unwrap_err().to_string();
    assert!(error.contains("place 2") && !error.contains("777"), "{error}");
    let keys = 2 * dpf::key_len(domain_bits);
    assert_eq!(shares.each_ref().map(|share| share.masked.len()), [0, 1, 1]);
    assert_eq!(shares.each_ref().map(|share| (share.batch, share.rows)), [(1, 2); 3]);
    assert_eq!(shares.each_ref().map(|share| share.keys.each_ref().map(Vec::len)), [[0, keys], [keys; 2], [keys; 2]]);
}
