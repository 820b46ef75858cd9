//! What one client's key can make a node hold, in bytes, places, pages and seconds, while another
//! client is served. A program of its own, whose tests run one at a time: memory is measured of the
//! whole process.

#[path = "nodes/cluster.rs"]
#[allow(dead_code)]
mod cluster;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cluster::{Cluster, MODEL, PATIENCE, Raw, ask, assert_refused, fresh_id, open, share_fixture, shared};
use tercet_client::GenerateOptions;
use tercet_engine::{Profile, choose, split};
use tercet_model::{Model, calibrate, calibration_inputs};
use tercet_net::{
    ByteChannel, ClientMessage, ClientPolicy, Connection, Endpoint, EndpointConfig, Fault, GenerationOptions, Identity,
    InputShare, LinkKind, LinkProfile, NodeMessage, PartyId, TokenChoice, codec,
};
use tercet_node::Config;
use tercet_ring::pack;

use PartyId::{P0, P1, P2};

const TEXTS: &str = "bounds-gpt";

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn anyone(config: &mut Config) {
    config.clients = ClientPolicy::Open;
}

/// Somebody with a key of its own, who sends what it likes to one node.
struct Attacker {
    endpoint: Endpoint,
}

impl Attacker {
    fn new(cluster: &Cluster) -> Attacker {
        let mut config = EndpointConfig::client(Identity::generate().unwrap(), cluster.keys());
        config.profile = LinkProfile::Loopback;
        Attacker { endpoint: Endpoint::bind(config).unwrap() }
    }

    async fn dial(&self, cluster: &Cluster, party: PartyId) -> Connection {
        self.endpoint.dial(party, &cluster.address(party)).await.unwrap()
    }
}

/// Digest of a model and number of a node's start.
async fn manifest(connection: &Connection, model: &str) -> ([u8; 32], [u8; 16]) {
    match ask(connection, &ClientMessage::Manifest { model: model.into() }).await {
        NodeMessage::Manifest { digest, start_id, .. } => (digest, start_id),
        other => panic!("{other:?}"),
    }
}

fn helper_part(batch: u32, rows: u32) -> InputShare {
    InputShare {
        batch,
        rows,
        first_seed: Some([1; 32]),
        second_seed: Some([2; 32]),
        masked: vec![],
        keys: Default::default(),
    }
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends questions on channels of their own, which stay open.
async fn hold(connection: &Connection, messages: impl Iterator<Item = ClientMessage>) -> Vec<ByteChannel> {
    let mut kept = Vec::new();
    for message in messages {
        let mut channel = open(connection).await;
        channel.send(&message).await.unwrap();
        kept.push(channel);
    }
    kept
}

/// A ViT of ordinary images (224 x 224 in patches of 16) with hardly any weights: its inputs are
/// large.
fn wide_vit() -> &'static [PathBuf; 3] {
    static SHARES: OnceLock<[PathBuf; 3]> = OnceLock::new();
    SHARES.get_or_init(|| {
        use tercet_examples::digits::MODEL as FILES;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bounds-vit");
        let dir = folder.join("model");
        std::fs::create_dir_all(&dir).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(FILES[0].1).unwrap();
        let hidden = config["hidden_size"].as_u64().unwrap() as usize;
        for (key, value) in [("image_size", 224), ("patch_size", 16), ("num_channels", 3)] {
            config[key] = value.into();
        }
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let mut images: serde_json::Value = serde_json::from_slice(FILES[2].1).unwrap();
        images["size"] = serde_json::json!({"height": 224, "width": 224});
        for key in ["image_mean", "image_std"] {
            images[key] = serde_json::json!([0.5, 0.5, 0.5]);
        }
        std::fs::write(dir.join("preprocessor_config.json"), images.to_string()).unwrap();
        rewrite(FILES[1].1, &dir, |name, shape| match name {
            name if name.ends_with("patch_embeddings.projection.weight") => vec![hidden, 3, 16, 16],
            name if name.ends_with("position_embeddings") => vec![1, 197, hidden],
            _ => shape,
        });
        share(&Model::load(&dir).unwrap(), "vit", &folder, false)
    })
}

/// A GPT-2 with a public table of 24 MiB.
fn large_table() -> &'static [PathBuf; 3] {
    static SHARES: OnceLock<[PathBuf; 3]> = OnceLock::new();
    SHARES.get_or_init(|| {
        const VOCAB: usize = 200_000;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bounds-table");
        let dir = folder.join("model");
        std::fs::create_dir_all(&dir).unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gpt2");
        for name in ["tokenizer.json", "generation_config.json"] {
            std::fs::copy(fixture.join(name), dir.join(name)).unwrap();
        }
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(fixture.join("config.json")).unwrap()).unwrap();
        let small = config["vocab_size"].as_u64().unwrap() as usize;
        config["vocab_size"] = VOCAB.into();
        config["dtype"] = "float32".into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let weights = std::fs::read(fixture.join("model.safetensors")).unwrap();
        rewrite(&weights, &dir, |_, mut shape| {
            if shape.first() == Some(&small) {
                shape[0] = VOCAB;
            }
            shape
        });
        share(&Model::load(&dir).unwrap(), "gpt", &folder, true)
    })
}

/// Weights of other shapes: ones for gains, small pseudorandom numbers for all else.
fn rewrite(weights: &[u8], dir: &Path, shape_of: impl Fn(&str, Vec<usize>) -> Vec<usize>) {
    let old = safetensors::SafeTensors::deserialize(weights).unwrap();
    let mut state = 7u32;
    let mut made: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut names: Vec<String> = old.names().into_iter().map(ToString::to_string).collect();
    names.sort();
    for name in names {
        let shape = shape_of(&name, old.tensor(&name).unwrap().shape().to_vec());
        let gain = name.ends_with("weight") && (name.contains("norm") || name.contains("ln_"));
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if gain { 1.0 } else { ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.1 }
        };
        let bytes = (0..shape.iter().product()).flat_map(|_| value().to_le_bytes()).collect();
        made.push((name, shape, bytes));
    }
    let views = made.iter().map(|(name, shape, bytes)| {
        (name.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn share(model: &Model, name: &str, folder: &Path, public_table: bool) -> [PathBuf; 3] {
    let ranges = calibrate(model, &calibration_inputs(model)[..1]).unwrap();
    let numerics = choose(&model.graph, &ranges, Profile::Fast, public_table).unwrap();
    let folders = ["p0", "p1", "p2"].map(|party| folder.join(party));
    folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
    split(model, name, numerics, folders.each_ref().map(PathBuf::as_path), |_| ()).unwrap()
}

/// Seeds stay seeds until their session: 30 requests to the helper take what they have on the wire.
#[test]
fn a_request_takes_no_more_memory_than_its_bytes() {
    let _alone = alone();
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        anyone(config);
        config.shares.push(wide_vit()[config.party.index()].clone());
    });
    cluster.runtime.block_on(async {
        cluster.assert_works().await;
        let connection = Attacker::new(&cluster).dial(&cluster, P0).await;
        let (digest, start_id) = manifest(&connection, "vit").await;
        let message = || ClientMessage::Run {
            request_id: fresh_id(),
            start_id,
            model: "vit".into(),
            digest,
            deadline_ms: u32::MAX,
            profile: false,
            share: helper_part(32, 196),
        };
        let length = codec::encode(&message()).unwrap().len() as u64;
        let before = resident_bytes();
        let kept = hold(&connection, (0..30).map(|_| message())).await;
        until("all wait", || cluster.node(P0).status().waiting == 30).await;
        let (held, after) = (cluster.node(P0).status().queue_bytes, resident_bytes());
        println!(
            "30 requests of {length} bytes: {held} bytes held, {} KiB resident",
            after.saturating_sub(before) >> 10
        );
        assert_eq!(held, 30 * length);
        // Expanded they would be 37 MiB each.
        assert!(after - before.min(after) < 24 << 20, "{before} -> {after}");
        cluster.assert_works().await;
        drop(kept);
        until("all is freed", || cluster.node(P0).status().queue_bytes == 0).await;
    });
}

/// One key that asks P0 alone fills its queue; another client is served all the same, and what P1
/// never hears of is dropped.
#[test]
fn places_are_had_by_who_has_fewer() {
    let _alone = alone();
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        anyone(config);
        config.max_queue = 64;
    });
    cluster.runtime.block_on(async {
        cluster.assert_works().await;
        let attacker = Attacker::new(&cluster);
        let (mut kept, begun) = (Vec::new(), Instant::now());
        let mut connections = Vec::new();
        while cluster.node(P0).status().waiting < 64 {
            let connection = attacker.dial(&cluster, P0).await;
            let (digest, start_id) = manifest(&connection, MODEL).await;
            let message = || ClientMessage::Run {
                request_id: fresh_id(),
                start_id,
                model: MODEL.into(),
                digest,
                deadline_ms: u32::MAX,
                profile: false,
                share: helper_part(1, 16),
            };
            kept.extend(hold(&connection, (0..30).map(|_| message())).await);
            connections.push(connection);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut served = Vec::new();
        for _ in 0..5 {
            let client = cluster.client_as(Identity::generate().unwrap()).await.unwrap();
            let asked = Instant::now();
            cluster.classify(&client, &shared().digits[..1]).await.unwrap();
            served.push(asked.elapsed().as_millis());
        }
        println!("P0 full by one key; another client is served within {served:?} ms");
        until("what nobody else has is dropped", || cluster.node(P0).status().waiting == 0).await;
        println!("P0 holds none of it {:?} after the first came", begun.elapsed());
    });
}

/// Openings of generations to P0 alone reserve its memory for seconds, and for as long as nobody
/// else needs it.
#[test]
fn pages_are_had_by_who_has_fewer() {
    let _alone = alone();
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        anyone(config);
        config.shares = vec![share_fixture("gpt2", TEXTS, false)[config.party.index()].clone()];
        config.cache_bytes = 8 << 20;
    });
    cluster.runtime.block_on(async {
        let attacker = Attacker::new(&cluster);
        let connection = attacker.dial(&cluster, P0).await;
        let (digest, start_id) = manifest(&connection, TEXTS).await;
        let share = Raw::connect_to(&cluster, TEXTS).await.face.share_rows(&[7; 5], None).unwrap()[0].clone();
        let options = GenerationOptions { max_positions: 320, choice: TokenChoice::Scores, every_row: false };
        let message = || ClientMessage::Generate {
            request_id: fresh_id(),
            start_id,
            model: TEXTS.into(),
            digest,
            deadline_ms: u32::MAX,
            options,
            noise_seed: None,
            share: share.clone(),
        };
        let kept = hold(&connection, (0..30).map(|_| message())).await;
        let full = || {
            let status = cluster.node(P0).status();
            status.cache_bytes > status.cache_limit_bytes / 2
        };
        until("its memory is taken", full).await;
        let status = cluster.node(P0).status();
        let generation = GenerateOptions {
            max_new_tokens: 4,
            ignore_eos: true,
            retries: 0,
            deadline: PATIENCE,
            ..Default::default()
        };
        let client = cluster.client_as(Identity::generate().unwrap()).await.unwrap();
        let mut text = client.generate(TEXTS, "the fox", &generation).await.unwrap();
        let mut count = 0;
        while let Some(token) = text.next().await {
            token.unwrap();
            count += 1;
        }
        println!(
            "one key held {} of {} bytes of pages at P0 by {} openings; another client got {count} tokens",
            status.cache_bytes, status.cache_limit_bytes, status.generations
        );
        assert_eq!(count, 4);
        until("what nobody else has is dropped", || cluster.node(P0).status().cache_bytes == 0).await;
        drop(kept);
    });
}

/// What one key sends to P1 alone takes the memory of its queue, and gives way.
#[test]
fn bytes_are_had_by_who_has_fewer() {
    let _alone = alone();
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        anyone(config);
        config.shares.push(wide_vit()[config.party.index()].clone());
        config.queue_bytes = 64 << 20;
    });
    cluster.runtime.block_on(async {
        cluster.assert_works().await;
        let raw = Raw::connect_to(&cluster, "vit").await;
        let (interface, rows) = (raw.face.interface(), 16 * 196);
        let masked = [(rows, interface.score_ring), (rows, interface.wide), (rows * 768, interface.wide)];
        let share = InputShare {
            batch: 16,
            rows: 196,
            first_seed: Some([1; 32]),
            second_seed: None,
            masked: masked.map(|(len, ring)| vec![0; pack::packed_len(len, ring)]).into(),
            keys: Default::default(),
        };
        let attacker = Attacker::new(&cluster).dial(&cluster, P1).await;
        let length = codec::encode(&raw.message(P1, fresh_id(), &share)).unwrap().len() as u64;
        let kept = hold(&attacker, (0..30).map(|_| raw.message(P1, fresh_id(), &share))).await;
        let full = || cluster.node(P1).status().queue_bytes + length > 64 << 20;
        until("its memory is taken", full).await;
        let held = cluster.node(P1).status().queue_bytes;
        println!("one key sends 30 requests of {length} bytes: {held} bytes are held of {}", 64 << 20);
        assert!(held <= 64 << 20);
        let client = cluster.client_as(Identity::generate().unwrap()).await.unwrap();
        let asked = Instant::now();
        cluster.classify(&client, &shared().digits[..16]).await.unwrap();
        println!("another client is served within {:?}", asked.elapsed());
        drop(kept);
        until("all is freed", || cluster.node(P1).status().queue_bytes == 0).await;
    });
}

/// A public table is on its way to a client once, a piece at a time.
#[test]
fn a_table_is_sent_piece_by_piece_and_once_to_each() {
    let _alone = alone();
    let mut cluster = Cluster::prepare(LinkKind::Quic, anyone);
    let mut config = cluster.config(P2);
    config.shares = vec![large_table()[2].clone()];
    cluster.start_with(config).unwrap();
    cluster.runtime.block_on(async {
        let connection = Attacker::new(&cluster).dial(&cluster, P2).await;
        let table = || ClientMessage::Table { model: "gpt".into() };
        let before = resident_bytes();
        let mut kept = hold(&connection, (0..30).map(|_| table())).await;
        let mut most = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            most = most.max(resident_bytes());
        }
        println!(
            "30 questions for a table of 24 MiB: {} MiB resident with the asker's own windows",
            most.saturating_sub(before) >> 20
        );
        assert!(most - before.min(most) < 120 << 20, "{before} -> {most}");
        // All but one were refused; and somebody else has the table in the meantime.
        let other = Attacker::new(&cluster).dial(&cluster, P2).await;
        let mut channel = open(&other).await;
        channel.send(&table()).await.unwrap();
        let mut bytes = 0;
        while let Ok(NodeMessage::Table(piece)) = channel.recv(codec::LARGEST_BYTES, PATIENCE).await {
            assert!(piece.len() <= 1 << 20, "a piece of {} bytes", piece.len());
            bytes += piece.len();
        }
        assert_eq!(bytes, 200_000 * 32 * 4);
        let mut refused = 0;
        for channel in &mut kept {
            match channel.recv(codec::LARGEST_BYTES, PATIENCE).await.unwrap() {
                NodeMessage::Table(_) => {}
                answer => {
                    assert_refused(&answer, Fault::Busy, "on its way to this client already");
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, 29);
    });
}
