//! Generations on three daemons: the tokens of the oracle, alone and together, and every way to end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tercet_client::{
    Client, ClientConfig, Error, Finish, GenerateOptions, Generation, GenerationUsage, ModelFace, Options, Sampling,
};
use tercet_core::Layout;
use tercet_engine::{Choice, ModelShare, Profile, StepShape, cache_bytes, choose, plan_step, split};
use tercet_model::{Gate, Model, Oracle, Truncate, calibrate, calibration_inputs};
use tercet_net::{
    ByteChannel, ClientMessage, Fault, GenerationOptions, InputShare, LinkKind, NodeMessage, PartyId, TokenChoice,
    codec,
};
use tercet_node::Config;

use crate::cluster::{Cluster, PATIENCE, Raw, assert_refused, fresh_id, open};
use crate::{P0, P1, P2, join_all, until};

const TEXTS: &str = "tiny-gpt2";

/// A GPT-2 of two layers with random weights, shared once.
struct Tiny {
    model: Model,
    oracle: Oracle,
    shares: [PathBuf; 3],
}

fn tiny() -> &'static Tiny {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    TINY.get_or_init(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures");
        let model = Model::load(&fixtures.join("gpt2")).unwrap();
        let ranges = calibrate(&model, &calibration_inputs(&model)).unwrap();
        let numerics = choose(&model.graph, &ranges, Profile::Precise, false).unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generation");
        let folders = ["p0", "p1", "p2"].map(|party| folder.join(party));
        folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        let shares = split(&model, TEXTS, numerics, folders.each_ref().map(PathBuf::as_path), |_| ()).unwrap();
        Tiny { oracle: Oracle::new(&model).unwrap(), model, shares }
    })
}

impl Tiny {
    fn ids(&self, text: &str) -> Vec<u32> {
        self.model.tokenizer().unwrap().encode(text, 320, Truncate::No).unwrap()
    }

    /// What the oracle goes on with, the likeliest token at a time. The likeliest must be so by far more than numbers lose.
    fn greedy(&self, prompt: &str, count: usize) -> Vec<u32> {
        let mut ids = self.ids(prompt);
        let before = ids.len();
        for _ in 0..count {
            let scores = self.oracle.scores(&ids).unwrap();
            let row = &scores.data[(ids.len() - 1) * scores.width..];
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let margin = row[order[0]] - row[order[1]];
            assert!(margin > 0.04, "{prompt:?} is undecided by {margin} after {}", ids.len());
            ids.push(order[0] as u32);
        }
        ids.split_off(before)
    }
}

/// A mixture of experts with a public gate.
fn open_gate(config: &mut Config) {
    static SHARES: OnceLock<[PathBuf; 3]> = OnceLock::new();
    let shares = SHARES.get_or_init(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures");
        let model = Model::load_with(&fixtures.join("mixtral"), Gate::Public).unwrap();
        let ranges = calibrate(&model, &calibration_inputs(&model)).unwrap();
        let numerics = choose(&model.graph, &ranges, Profile::Fast, false).unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("open-gate");
        let folders = ["p0", "p1", "p2"].map(|party| folder.join(party));
        folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        split(&model, TEXTS, numerics, folders.each_ref().map(PathBuf::as_path), |_| ()).unwrap()
    });
    config.shares = vec![shares[config.party.index()].clone()];
}

fn texts(config: &mut Config) {
    config.shares = vec![tiny().shares[config.party.index()].clone()];
}

/// Steps take a few hundred milliseconds, so that what is there together runs together.
fn slow_texts(config: &mut Config) {
    texts(config);
    config.shape = "1ms,1gbit".parse().unwrap();
}

fn tokens(count: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: count, ignore_eos: true, deadline: PATIENCE, retries: 0, ..Default::default() }
}

async fn ids(mut generation: Generation) -> (Vec<u32>, GenerationUsage) {
    let mut ids = Vec::new();
    while let Some(token) = generation.next().await {
        ids.push(token.unwrap().id);
    }
    (ids, generation.usage())
}

/// Waits until no node holds anything of a generation.
async fn until_free(cluster: &Cluster) {
    until("all is freed", || {
        PartyId::ALL.iter().all(|party| {
            let status = cluster.node(*party).status();
            (status.generations, status.cache_bytes, status.waiting) == (0, 0, 0)
        })
    })
    .await;
}

#[test]
fn tokens_are_those_of_the_oracle_at_the_declared_cost() {
    let cluster = Cluster::start(LinkKind::Quic, texts);
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        let (prompt, count) = (PROMPTS[0], 6);
        let expected = tiny().greedy(prompt, count);
        let share = ModelShare::open(&tiny().shares[1]).unwrap();
        let rows = tiny().ids(prompt).len();
        let priced = |layout, choice, reentry| {
            let shape = StepShape { layout, choice, reentry, noisy: false };
            plan_step(share.manifest(), &shape).unwrap().total
        };
        for inside in [false, true] {
            let options = GenerateOptions { inside, ..tokens(count) };
            let (found, usage) = ids(client.generate(TEXTS, prompt, &options).await.unwrap()).await;
            assert_eq!(found, expected, "inside: {inside}");
            let choice = if inside { Choice::Token } else { Choice::Scores };
            let mut costs = vec![priced(Layout::prefill(rows), choice, false)];
            costs.extend((0..count - 1).map(|step| priced(Layout::decode(&[rows + step]), choice, inside)));
            assert_eq!(usage.rounds, costs.iter().map(|cost| cost.rounds).sum::<u64>());
            let bytes: u64 = costs.iter().flat_map(|cost| cost.bytes.as_flattened()).sum();
            assert_eq!(usage.total_bytes(), bytes);
            assert_eq!((usage.new_tokens, usage.finish, usage.batched), (count, Some(Finish::Length), 1));
            until_free(&cluster).await;
        }
        for party in PartyId::ALL {
            let status = cluster.node(party).status();
            assert_eq!((status.steps_done, status.sessions_done, status.sessions_failed), (12, 12, 0));
        }
    });
}

/// The helper is told over a real link what it deals by, and a client that has not agreed to that asks nothing.
#[test]
fn a_public_gate_serves_who_agrees_to_it() {
    let cluster = Cluster::start(LinkKind::Quic, open_gate);
    cluster.runtime.block_on(async {
        let error = cluster.client().await.generate(TEXTS, "the fox", &tokens(2)).await.err().unwrap();
        assert!(matches!(&error, Error::Misuse(what) if what.contains("public_gate")), "{error}");
        assert!(PartyId::ALL.iter().all(|party| cluster.node(*party).status().generations == 0));
        let config = ClientConfig { public_gate: true, ..cluster.client_config(cluster.client_identity()) };
        let client = Client::connect(config).await.unwrap();
        let (found, usage) = ids(client.generate(TEXTS, "the fox", &tokens(5)).await.unwrap()).await;
        assert_eq!((found.len(), usage.finish), (5, Some(Finish::Length)));
        assert!(usage.bytes[1][0] > 0 && usage.bytes[2][0] == 0, "{:?}", usage.bytes);
        until_free(&cluster).await;
        assert!(PartyId::ALL.iter().all(|party| cluster.node(*party).status().sessions_failed == 0));
    });
}

/// Prompts of several lengths, the first the shortest, whose likeliest tokens are so by far.
const PROMPTS: [&str; 4] = ["the fox", "a dog and the quick fox", "the brown dog jumps", "The cat sat on the mat."];

#[test]
fn who_decodes_together_gets_what_it_gets_alone() {
    let cluster = Cluster::start(LinkKind::Quic, slow_texts);
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        // They join one after another and leave when they have enough, each at a position of its own.
        let counts = [12, 4, 7, 5];
        let runs = PROMPTS.iter().zip(counts).enumerate().map(|(at, (prompt, count))| {
            let client = client.clone();
            let cluster = &cluster;
            async move {
                until("earlier ones are under way", || cluster.node(P1).status().steps_done >= 2 * at as u64).await;
                ids(client.generate(TEXTS, prompt, &tokens(count)).await.unwrap()).await
            }
        });
        let found = join_all(runs).await;
        for ((prompt, count), (ids, usage)) in PROMPTS.iter().zip(counts).zip(&found) {
            assert_eq!(*ids, tiny().greedy(prompt, count), "{prompt:?}");
            assert!(usage.batched > 1, "{prompt:?} ran alone");
        }
        let status = cluster.node(P1).status();
        assert_eq!(status.steps_done, counts.iter().sum::<usize>() as u64);
        assert!(status.sessions_done < status.steps_done, "{} sessions", status.sessions_done);
        until_free(&cluster).await;
    });
}

/// What the smallest of the three nodes allows runs together, and the others wait for it.
#[test]
fn nodes_of_different_size_serve_all() {
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        slow_texts(config);
        (config.max_batch, config.max_sessions) = if config.party == P2 { (2, 1) } else { (32, 4) };
    });
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        for inside in [false, true] {
            let runs = (0..5).map(|at| {
                let (client, options) = (client.clone(), GenerateOptions { inside, ..tokens(4) });
                async move { ids(client.generate(TEXTS, PROMPTS[at % 4], &options).await.unwrap()).await }
            });
            for (at, (found, usage)) in join_all(runs).await.into_iter().enumerate() {
                assert_eq!(found, tiny().greedy(PROMPTS[at % 4], 4));
                assert!(usage.batched <= 2, "{} together", usage.batched);
            }
        }
        until_free(&cluster).await;
        assert_eq!(cluster.node(P1).status().refused, 0);
    });
}

/// A model whose owner lets a client's seed alone decide what is drawn inside.
fn repeatable(config: &mut Config) {
    static SHARES: OnceLock<[PathBuf; 3]> = OnceLock::new();
    let shares = SHARES.get_or_init(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures");
        let mut model = Model::load(&fixtures.join("gpt2")).unwrap();
        model.generation.get_or_insert_default().reproducible = true;
        let ranges = calibrate(&model, &calibration_inputs(&model)).unwrap();
        let numerics = choose(&model.graph, &ranges, Profile::Precise, false).unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("repeatable");
        let folders = ["p0", "p1", "p2"].map(|party| folder.join(party));
        folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        split(&model, TEXTS, numerics, folders.each_ref().map(PathBuf::as_path), |_| ()).unwrap()
    });
    config.shares = vec![shares[config.party.index()].clone()];
}

/// Draws of one prompt under one seed, so hot that two draws hardly ever agree by chance.
async fn drawn_under_one_seed(cluster: &Cluster) -> BTreeSet<Vec<u32>> {
    let client = cluster.client().await;
    let sampling = Sampling { temperature: 5.0, seed: Some(11), ..Sampling::GREEDY };
    let options = GenerateOptions { inside: true, sampling, ..tokens(4) };
    let mut found = BTreeSet::new();
    for _ in 0..4 {
        found.insert(ids(client.generate(TEXTS, PROMPTS[0], &options).await.unwrap()).await.0);
    }
    found
}

#[test]
fn a_draw_is_repeated_only_where_the_owner_allows_it() {
    for (tune, distinct) in [(texts as fn(&mut Config), 4), (repeatable, 1)] {
        let cluster = Cluster::start(LinkKind::Quic, tune);
        assert_eq!(cluster.runtime.block_on(drawn_under_one_seed(&cluster)).len(), distinct);
    }
}

#[test]
fn inside_the_nodes_sample_and_texts_are_scored() {
    let cluster = Cluster::start(LinkKind::Quic, texts);
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        let sampling = Sampling { temperature: 0.8, seed: Some(11), ..Sampling::GREEDY };
        let options = GenerateOptions { inside: true, sampling: sampling.clone(), ..tokens(4) };
        let seeds: BTreeSet<Vec<u32>> = join_all((0..4).map(|seed| {
            let sampling = Sampling { seed: Some(seed), temperature: 5.0, ..sampling.clone() };
            let (client, options) = (client.clone(), GenerateOptions { sampling, ..options.clone() });
            async move { ids(client.generate(TEXTS, PROMPTS[0], &options).await.unwrap()).await.0 }
        }))
        .await
        .into_iter()
        .collect();
        assert!(seeds.len() > 1, "every seed gives {seeds:?}");
        let hot = GenerateOptions { sampling: Sampling { temperature: 1e6, ..sampling }, ..options };
        let error = client.generate(TEXTS, PROMPTS[0], &hot).await.unwrap().text().await.unwrap_err();
        assert!(error.to_string().contains("temperature"), "{error}");

        let text = PROMPTS[3];
        let score = client.score(TEXTS, text, PATIENCE).await.unwrap();
        let ids = tiny().ids(text);
        let scores = tiny().oracle.scores(&ids).unwrap();
        let expected = scores.data.chunks(scores.width).zip(&ids[1..]).map(|(row, &next)| {
            let sum: f64 = row.iter().map(|score| f64::from(*score).exp()).sum();
            f64::from(row[next as usize]) - sum.ln()
        });
        let pairs: Vec<(f64, f64)> = score.log_probabilities.iter().copied().zip(expected).collect();
        assert!(score.ids == ids && pairs.len() == ids.len() - 1);
        assert!(pairs.iter().all(|(a, b)| (a - b).abs() < 0.03), "{pairs:?}");
        until_free(&cluster).await;
    });
}

/// A client without an SDK, with a generation.
struct RawGeneration {
    channels: [ByteChannel; 3],
}

fn public(max_positions: usize) -> GenerationOptions {
    GenerationOptions { max_positions: max_positions as u32, choice: TokenChoice::Scores, every_row: false }
}

fn opening(
    to: PartyId,
    face: &ModelFace,
    options: GenerationOptions,
    deadline_ms: u32,
    share: &InputShare,
) -> ClientMessage {
    opening_as(to, fresh_id(), face, options, deadline_ms, share)
}

fn opening_as(
    to: PartyId,
    request_id: [u8; 16],
    face: &ModelFace,
    options: GenerationOptions,
    deadline_ms: u32,
    share: &InputShare,
) -> ClientMessage {
    let (start_id, model, digest, share) = (face.start_id(to), face.name().into(), face.digest(), share.clone());
    ClientMessage::Generate { request_id, start_id, model, digest, deadline_ms, options, noise_seed: None, share }
}

impl RawGeneration {
    async fn open(raw: &Raw, prompt: &[u32], options: GenerationOptions, deadline_ms: u32) -> RawGeneration {
        RawGeneration::of(raw, &raw.face.share_rows(prompt, None).unwrap(), options, deadline_ms).await
    }

    async fn of(raw: &Raw, shares: &[InputShare; 3], options: GenerationOptions, deadline_ms: u32) -> RawGeneration {
        let (mut channels, id) = (Vec::new(), fresh_id());
        for (party, share) in PartyId::ALL.into_iter().zip(shares) {
            let mut channel = open(&raw.connections[party.index()]).await;
            channel.send(&opening_as(party, id, &raw.face, options, deadline_ms, share)).await.unwrap();
            channels.push(channel);
        }
        let Ok(channels) = channels.try_into() else { unreachable!() };
        RawGeneration { channels }
    }

    async fn answers(&mut self) -> [NodeMessage; 3] {
        let [c0, c1, c2] = &mut self.channels;
        let one = async |channel: &mut ByteChannel| channel.recv(codec::LARGEST_BYTES, PATIENCE).await.unwrap();
        let (a, b, c) = tokio::join!(one(c0), one(c1), one(c2));
        [a, b, c]
    }

    async fn step(&mut self) {
        for answer in self.answers().await {
            assert!(matches!(answer, NodeMessage::Step { .. }), "{answer:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_held() {
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        texts(config);
        config.shares.push(crate::shared().shares[config.party.index()].clone());
        config.idle_deadline = Duration::from_millis(400);
    });
    cluster.runtime.block_on(async {
        let raw = Raw::connect_to(&cluster, TEXTS).await;
        let ask =
            async |party: PartyId, message: &ClientMessage| crate::ask(&raw.connections[party.index()], message).await;
        let share = |count: usize| raw.face.share_rows(&vec![7; count], None).unwrap();
        let refused: [(&str, usize, GenerationOptions); 4] = [
            ("the prompt has 321 tokens, the model takes 1 to 320", 321, public(321)),
            ("room for 321 tokens is asked for: the prompt has 5, and the model takes at most 320", 5, public(321)),
            ("room for 4 tokens", 5, public(4)),
            (
                "every row",
                5,
                GenerationOptions {
                    every_row: true,
                    choice: TokenChoice::Token { temperature: None, reenter: true },
                    ..public(9)
                },
            ),
        ];
        for (words, rows, options) in refused {
            for party in PartyId::ALL {
                let message = opening(party, &raw.face, options, 30_000, &share(rows)[party.index()]);
                assert_refused(&ask(party, &message).await, Fault::Request, words);
            }
        }
        type Spoil = fn(&mut InputShare);
        let spoiled: [(&str, Spoil); 5] = [
            ("2 prompts where one is due", |share| share.batch = 2),
            ("the prompt has 0 tokens", |share| share.rows = 0),
            ("input share", |share| share.rows = 6),
            ("input share", |share| share.masked.clear()),
            ("input share", |share| share.keys[1].truncate(40)),
        ];
        for (words, spoil) in spoiled {
            let mut share = share(5)[2].clone();
            spoil(&mut share);
            assert_refused(&ask(P2, &opening(P2, &raw.face, public(9), 30_000, &share)).await, Fault::Request, words);
        }
        // Half of a conversation, and the wrong half.
        assert_refused(&ask(P0, &ClientMessage::Finish).await, Fault::Request, "no generation");
        let next = ClientMessage::Next { share: share(1)[1].clone() };
        assert_refused(&ask(P1, &next).await, Fault::Request, "no generation");
        // Models of another kind.
        let digits = Raw::connect(&cluster).await;
        let whole = digits.prepare(&crate::shared().digits[..1]);
        let answer = ask(P1, &opening(P1, &digits.face, public(9), 30_000, &share(5)[1])).await;
        assert_refused(&answer, Fault::Request, "generates nothing");
        let ClientMessage::Run { share: image, .. } = digits.message(P1, fresh_id(), &whole.shares()[1]) else {
            panic!()
        };
        let run = ClientMessage::Run {
            request_id: fresh_id(),
            start_id: raw.face.start_id(P1),
            model: TEXTS.into(),
            digest: raw.face.digest(),
            deadline_ms: 1000,
            profile: false,
            share: image,
        };
        assert_refused(&ask(P1, &run).await, Fault::Request, "ask it to generate");
        // A row that is none, or two; a row too early; none at all.
        let talk = async |message: Option<ClientMessage>, words: &str| {
            let mut generation = RawGeneration::open(&raw, &[7; 5], public(9), 30_000).await;
            generation.step().await;
            if let Some(message) = message {
                for channel in &mut generation.channels {
                    channel.send(&message).await.unwrap();
                }
            }
            for answer in generation.answers().await {
                assert_refused(&answer, Fault::Request, words);
            }
        };
        talk(Some(ClientMessage::Next { share: share(2)[1].clone() }), "where one row is due").await;
        talk(Some(ClientMessage::Models), "another message").await;
        talk(None, "no next row within 400 ms").await;
        until_free(&cluster).await;
        // One number serves once.
        let id = fresh_id();
        let both = share(5);
        let twice = async || {
            let answers = PartyId::ALL.map(async |party| {
                ask(party, &opening_as(party, id, &raw.face, public(5), 30_000, &both[party.index()])).await
            });
            join_all(answers).await
        };
        assert!(twice().await.iter().all(|answer| matches!(answer, NodeMessage::Step { .. })));
        for answer in twice().await {
            assert_refused(&answer, Fault::Request, "used before");
        }
        let alone = cluster.client().await.generate(TEXTS, PROMPTS[0], &tokens(2)).await.unwrap();
        assert_eq!(ids(alone).await.0, tiny().greedy(PROMPTS[0], 2));
        let error = cluster.client().await.embed(TEXTS, &["the fox"], &Options::default()).await.unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error}");
        until_free(&cluster).await;
    });
}

/// The sign of a key turned, alike at both evaluators, in a prompt and in a later row: refused by
/// both, and P0 hears of the end from them. Who decodes beside it notices nothing.
#[test]
fn a_client_that_contradicts_itself_is_refused_alone() {
    let cluster = Cluster::start(LinkKind::Quic, slow_texts);
    cluster.runtime.block_on(async {
        let raw = Raw::connect_to(&cluster, TEXTS).await;
        let contradictory = |ids: &[u32]| {
            let mut shares = raw.face.share_rows(ids, None).unwrap();
            shares[1..].iter_mut().for_each(|share| share.masked[0][0] ^= 2);
            shares
        };
        let client = cluster.client().await;
        let honest = client.generate(TEXTS, PROMPTS[0], &tokens(4)).await.unwrap();
        let deviate = async {
            for late in [false, true] {
                let prompt = if late { raw.face.share_rows(&[7; 5], None).unwrap() } else { contradictory(&[7; 5]) };
                let mut generation = RawGeneration::of(&raw, &prompt, public(9), 30_000).await;
                if late {
                    generation.step().await;
                    for (channel, share) in generation.channels.iter_mut().zip(contradictory(&[7])) {
                        channel.send(&ClientMessage::Next { share }).await.unwrap();
                    }
                }
                let [helper, first, second] = generation.answers().await;
                let words = "the parts that the client sent contradict each other";
                assert_refused(&first, Fault::Request, words);
                assert_refused(&second, Fault::Request, words);
                if let NodeMessage::Step { .. } = helper {
                    let then = generation.channels[0].recv(codec::LARGEST_BYTES, PATIENCE).await.unwrap();
                    assert_refused(&then, Fault::Request, words);
                } else {
                    assert_refused(&helper, Fault::Request, words);
                }
            }
        };
        let ((got, _), ()) = tokio::join!(ids(honest), deviate);
        assert_eq!(got, tiny().greedy(PROMPTS[0], 4));
        until_free(&cluster).await;
    });
}

#[test]
fn nodes_that_are_told_different_things_do_not_begin() {
    let cluster = Cluster::start(LinkKind::Quic, texts);
    cluster.runtime.block_on(async {
        let raw = Raw::connect_to(&cluster, TEXTS).await;
        let (shares, id) = (raw.face.share_rows(&[7; 5], None).unwrap(), fresh_id());
        let told = PartyId::ALL.map(|party| {
            let options = public(if party == P2 { 10 } else { 9 });
            opening_as(party, id, &raw.face, options, 2_000, &shares[party.index()])
        });
        let asked =
            PartyId::ALL.map(async |party| crate::ask(&raw.connections[party.index()], &told[party.index()]).await);
        let (answers, beside) = tokio::join!(join_all(asked), async {
            ids(cluster.client().await.generate(TEXTS, PROMPTS[0], &tokens(3)).await.unwrap()).await
        });
        for answer in answers {
            assert_refused(&answer, Fault::Request, "not ended within 2000 ms, the deadline that its client set");
        }
        assert_eq!(beside.0, tiny().greedy(PROMPTS[0], 3));
        until_free(&cluster).await;
    });
}

#[test]
fn a_client_that_is_gone_frees_its_pages_and_changes_nobodys_tokens() {
    for inside in [false, true] {
        let cluster = Cluster::start(LinkKind::Quic, slow_texts);
        cluster.runtime.block_on(async {
            let client = cluster.client().await;
            let options = |count| GenerateOptions { inside, ..tokens(count) };
            let stays = async { ids(client.generate(TEXTS, PROMPTS[1], &options(10)).await.unwrap()).await };
            let leaves = async {
                let leaver = cluster.client().await;
                let mut generation = leaver.generate(TEXTS, PROMPTS[0], &options(200)).await.unwrap();
                for _ in 0..3 {
                    generation.next().await.unwrap().unwrap();
                }
                let held = PartyId::ALL.map(|party| cluster.node(party).status().cache_bytes);
                drop(generation);
                // Its room for 200 tokens is free, at the latest when the step that it was in is over.
                let is_free = |party: PartyId| {
                    let status = cluster.node(party).status();
                    status.generations <= 1 && status.cache_bytes < held[party.index()]
                };
                until("its pages are free", || PartyId::ALL.into_iter().all(is_free)).await;
            };
            let ((found, usage), ()) = tokio::join!(stays, leaves);
            assert_eq!(found, tiny().greedy(PROMPTS[1], 10));
            assert_eq!(usage.finish, Some(Finish::Length));
            until_free(&cluster).await;
            assert_eq!(cluster.node(P1).status().sessions_failed, 0);
        });
    }
}

/// A client leaves P1 in the first step of a generation that goes on by itself; to the others it says nothing, and it hears
/// them or not.
#[test]
fn a_client_that_leaves_the_lead_leaves_nothing_behind() {
    const POSITIONS: usize = 300;
    fn room_for_one(config: &mut Config) {
        slow_texts(config);
        let share = ModelShare::open(&tiny().shares[config.party.index()]).unwrap();
        config.cache_bytes = cache_bytes(share.manifest(), config.party, POSITIONS);
    }
    let cluster = Cluster::start(LinkKind::Quic, room_for_one);
    cluster.runtime.block_on(async {
        let raw = Raw::connect_to(&cluster, TEXTS).await;
        let choice = TokenChoice::Token { temperature: None, reenter: true };
        for hears in [false, true] {
            let options = GenerationOptions { choice, ..public(POSITIONS) };
            let generation = RawGeneration::open(&raw, &[7; 5], options, 60_000).await;
            until("the first step runs", || cluster.node(P1).status().sessions_running == 1).await;
            let [at_p0, at_p1, at_p2] = generation.channels;
            drop(at_p1);
            let mut halves = [at_p0, at_p2].map(|channel| {
                let (sender, receiver) = channel.split();
                (sender, hears.then_some(receiver))
            });
            for receiver in halves.iter_mut().filter_map(|(_, receiver)| receiver.as_mut()) {
                let last = loop {
                    match receiver.recv(codec::LARGEST_BYTES, PATIENCE).await.unwrap() {
                        NodeMessage::Step { .. } => {}
                        other => break other,
                    }
                };
                assert_refused(&last, Fault::Nodes, "P1 has lost the client");
            }
            until_free(&cluster).await;
            let client = cluster.client().await;
            let count = POSITIONS + 1 - tiny().ids(PROMPTS[0]).len();
            let mut whole = client.generate(TEXTS, PROMPTS[0], &tokens(count)).await.unwrap();
            whole.next().await.unwrap().unwrap();
            drop(whole);
            until_free(&cluster).await;
        }
    });
}

#[test]
fn a_generation_does_not_outlive_its_deadline() {
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        slow_texts(config);
        config.generation_deadline = Duration::from_millis(1500);
    });
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        for inside in [false, true] {
            let begun = Instant::now();
            let mut generation =
                client.generate(TEXTS, PROMPTS[0], &GenerateOptions { inside, ..tokens(300) }).await.unwrap();
            let error = loop {
                if let Err(error) = generation.next().await.unwrap() {
                    break error;
                }
            };
            // Each node has a clock of its own: the others say what the first to give it up has said.
            let Error::Refused { fault: Fault::Request, reason, .. } = &error else { panic!("{error}") };
            assert!(reason.contains("not ended within 1500 ms, the longest that this node"), "{reason}");
            assert!(generation.usage().new_tokens >= 1 && begun.elapsed() < PATIENCE);
            until_free(&cluster).await;
        }
        // The client's own deadline is shorter.
        let hasty = GenerateOptions { deadline: Duration::from_millis(600), ..tokens(300) };
        let error = client.generate(TEXTS, PROMPTS[0], &hasty).await.unwrap().text().await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. } | Error::Refused { .. }), "{error}");
        until_free(&cluster).await;
    });
}

#[test]
fn more_generations_than_there_is_memory_for_are_refused_at_once() {
    // Whoever holds most has room for two.
    const POSITIONS: usize = 100;
    fn room_for_two(config: &mut Config) {
        slow_texts(config);
        let share = ModelShare::open(&tiny().shares[config.party.index()]).unwrap();
        config.cache_bytes = 2 * cache_bytes(share.manifest(), config.party, POSITIONS);
    }
    let cluster = Cluster::start(LinkKind::Quic, room_for_two);
    cluster.runtime.block_on(async {
        let client: Client = cluster.client().await;
        let prompt = PROMPTS[0];
        let count = POSITIONS + 1 - tiny().ids(prompt).len();
        let mut first = client.generate(TEXTS, prompt, &tokens(count)).await.unwrap();
        let mut second = client.generate(TEXTS, prompt, &tokens(count)).await.unwrap();
        for generation in [&mut first, &mut second] {
            generation.next().await.unwrap().unwrap();
        }
        let status = cluster.node(P0).status();
        assert_eq!((status.generations, status.cache_bytes), (2, status.cache_limit_bytes));
        let error = client.generate(TEXTS, prompt, &tokens(2)).await.unwrap().text().await.unwrap_err();
        let Error::Refused { fault: Fault::Busy, reason, .. } = &error else { panic!("{error}") };
        assert!(reason.contains("3 positions") && reason.contains("0.0 of"), "{reason}");
        first.cancel();
        let half = |party: &PartyId| {
            let status = cluster.node(*party).status();
            (status.generations, 2 * status.cache_bytes) == (1, status.cache_limit_bytes)
        };
        until("one is gone", || PartyId::ALL.iter().all(half)).await;
        let (found, _) = ids(client.generate(TEXTS, prompt, &tokens(2)).await.unwrap()).await;
        assert_eq!(found, tiny().greedy(prompt, 2));
        drop(second);
        until_free(&cluster).await;
    });
}

#[test]
fn a_text_may_stop_at_its_first_token() {
    let cluster = Cluster::start(LinkKind::Quic, texts);
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        for inside in [false, true] {
            let (whole, _) = client.generate(TEXTS, PROMPTS[0], &tokens(1)).await.unwrap().text().await.unwrap();
            assert!(!whole.is_empty());
            let options = GenerateOptions { inside, stop: vec![whole], ..tokens(50) };
            let (text, usage) = client.generate(TEXTS, PROMPTS[0], &options).await.unwrap().text().await.unwrap();
            assert_eq!((text.as_str(), usage.new_tokens, usage.finish), ("", 1, Some(Finish::Stop)));
            until_free(&cluster).await;
        }
    });
}

/// A node dies in mid-stream: the text so far stays with the caller, which asks again when the node
/// is back.
#[test]
fn a_text_ends_with_the_node_that_dies_and_what_came_of_it_stays() {
    let mut cluster = Cluster::start(LinkKind::Quic, |config| {
        slow_texts(config);
        config.round_deadline = Duration::from_secs(2);
    });
    let runtime = crate::cluster::runtime();
    let client = runtime.block_on(cluster.client());
    let (sender, began) = tokio::sync::oneshot::channel();
    let run = runtime.spawn(async move {
        let options = GenerateOptions { retries: 100, ..tokens(8) };
        let mut generation = client.generate(TEXTS, PROMPTS[1], &options).await.unwrap();
        let mut tokens = vec![generation.next().await.unwrap().unwrap()];
        sender.send(()).unwrap();
        let error = loop {
            match generation.next().await.expect("the text does not end by itself") {
                Ok(token) => tokens.push(token),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("P2") && error.may_have_run(), "{error}");
        assert_eq!(generation.text_so_far(), tokens.iter().map(|token| &token.text[..]).collect::<String>());
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        assert_eq!(ids, tiny().greedy(PROMPTS[1], ids.len()));
        (client, generation.text_so_far().to_owned())
    });
    runtime.block_on(began).unwrap();
    cluster.kill(P2);
    cluster.start_node(P2);
    let (client, so_far) = runtime.block_on(run).unwrap();
    runtime.block_on(until_free(&cluster));
    let again = async {
        loop {
            if let Ok(mut generation) = client.generate(TEXTS, PROMPTS[1], &tokens(8)).await
                && let Ok((text, _)) = generation.text().await
            {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let text = runtime.block_on(async { tokio::time::timeout(PATIENCE, again).await.expect("the nodes recover") });
    assert!(text.starts_with(&so_far) && text.len() > so_far.len(), "{so_far:?} {text:?}");
}

/// A node that is told to stop lets generations end: nobody loses a token, and newcomers hear that
/// it stops.
#[test]
fn a_node_that_is_stopped_lets_generations_end() {
    for party in PartyId::ALL {
        let cluster = Cluster::start(LinkKind::Quic, slow_texts);
        let runtime = crate::cluster::runtime();
        let client = runtime.block_on(cluster.client());
        let mut text = runtime.block_on(client.generate(TEXTS, PROMPTS[0], &tokens(12))).unwrap();
        runtime.block_on(text.next()).unwrap().unwrap();
        let (rest, late) = std::thread::scope(|scope| {
            let stopping = scope.spawn(|| cluster.shutdown(party, Duration::from_secs(60)));
            runtime.block_on(until("it stops", || cluster.node(party).status().stopping));
            let found = runtime.block_on(async {
                let late = client.generate(TEXTS, PROMPTS[0], &tokens(2)).await.unwrap().text().await;
                (ids(text).await.0, late)
            });
            stopping.join().unwrap();
            found
        });
        assert_eq!(rest, tiny().greedy(PROMPTS[0], 12)[1..], "{party} was stopped");
        let error = late.expect_err("was let in after the end");
        assert!(matches!(error, Error::Refused { party: by, fault: Fault::Nodes, .. } if by == party), "{error}");
    }
}
