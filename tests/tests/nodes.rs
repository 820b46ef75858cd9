//! Three daemons over real links: right answers, many clients, and every kind of bad luck and bad will.

#[path = "nodes/adapters.rs"]
mod adapters;
#[path = "nodes/cluster.rs"]
mod cluster;
#[path = "nodes/generation.rs"]
mod generation;
#[path = "nodes/skewed.rs"]
mod skewed;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cluster::{
    Cluster, MODEL, PATIENCE, Raw, ask, assert_close, assert_refused, fresh_id, logits, open, share_model, shared,
};
use tercet_client::{Error, Inputs, Options};
use tercet_core::Geometry;
use tercet_engine::{ModelShare, plan};
use tercet_net::{
    ClientMessage, ClientPolicy, Endpoint, EndpointConfig, Fault, Identity, InputShare, LinkKind, LinkProfile,
    NodeMessage, PartyId, Work, secret_file,
};
use tercet_node::{Config, Node};

use PartyId::{P0, P1, P2};

fn as_is(_: &mut Config) {}

/// One session at a time over links so slow that a session takes seconds.
fn slow(config: &mut Config) {
    config.shape = "10ms,1gbit".parse().unwrap();
    config.max_sessions = 1;
}

/// Waits until a node says that it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn answers_are_those_of_the_oracle_at_the_declared_cost() {
    let oracle = shared().oracle();
    for kind in [LinkKind::Quic, LinkKind::Tcp] {
        let cluster = Cluster::start(kind, as_is);
        cluster.runtime.block_on(async {
            let client = cluster.client().await;
            let digits = &shared().digits[..5];
            for digit in digits {
                let answer = cluster.classify(&client, std::slice::from_ref(digit)).await.unwrap();
                assert_close(&answer.scores[0], &logits(&oracle, digit));
                let share = ModelShare::open(&shared().shares[1]).unwrap();
                let rows = share.manifest().graph.max_rows();
                let planned = plan(share.manifest(), Geometry { batch: 1, rows }).unwrap();
                assert_eq!(answer.usage[0].bytes, planned.total.bytes, "{kind:?}");
                assert_eq!(answer.usage[0].rounds, planned.total.rounds, "{kind:?}");
                assert_eq!(answer.usage[0].batched, 1);
            }
            let together = cluster.classify(&client, digits).await.unwrap();
            for (scores, digit) in together.scores.iter().zip(digits) {
                assert_close(scores, &logits(&oracle, digit));
            }
            assert_eq!((together.usage.len(), together.usage[0].batch), (1, 5));
            let status = cluster.node(P1).status();
            assert_eq!((status.answered, status.refused, status.sessions_failed), (6, 0, 0));
            assert!(status.peers.iter().all(|peer| peer.connected) && status.peak_rss_bytes > 1 << 20);
            assert_eq!(status.models[0].name, MODEL);
        });
    }
}

/// Asked for, each node says where its time went, operation by operation, and that agrees with what it says of its cost.
#[test]
fn nodes_say_where_their_time_went_to_who_asks() {
    let cluster = Cluster::start(LinkKind::Quic, as_is);
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        let image = &shared().digits[0].pixels[..];
        let run = async |profile| {
            let options = Options { profile, retries: 0, deadline: PATIENCE, ..Options::default() };
            client.classify(MODEL, Inputs::Images(&[image]), &options).await.unwrap().usage.swap_remove(0)
        };
        assert_eq!(run(false).await.profiles, None);
        let used = run(true).await;
        let profiles = used.profiles.as_ref().unwrap();
        let names: Vec<&str> = shared().model.graph.nodes.iter().map(|node| node.name.as_str()).collect();
        for (party, profile) in PartyId::ALL.into_iter().zip(profiles) {
            let (me, entries) = (party.index(), &profile.entries);
            let operations = entries.iter().skip(1).filter(|entry| entry.parent == 0);
            assert_eq!(operations.map(|entry| entry.name.as_str()).collect::<Vec<_>>(), names, "{party}");
            assert_eq!(entries.iter().map(|entry| entry.rounds).sum::<u64>(), used.rounds);
            assert_eq!(profile.by_kind_ns().map(|ns| ns / 1000), used.work_us[me]);
            for peer in party.others().map(PartyId::index) {
                assert_eq!(entries.iter().map(|entry| entry.sent[peer]).sum::<u64>(), used.bytes[me][peer]);
                assert_eq!(entries.iter().map(|entry| entry.received[peer]).sum::<u64>(), used.bytes[peer][me]);
            }
        }
        // Who waits for whom is the one thing in which the three differ.
        let shape = |at: usize| profiles[at].entries.iter().map(|e| (&e.name, e.parent, e.visits, e.rounds));
        assert!(shape(0).eq(shape(1)) && shape(1).eq(shape(2)));
        let waits = profiles.each_ref().map(|profile| {
            let by_kind = profile.by_kind_ns();
            [Work::HelperWait, Work::EvaluatorWait].map(|kind| by_kind[kind as usize] > 0)
        });
        assert_eq!(waits, [[false; 2], [true; 2], [true; 2]]);
    });
}

#[test]
fn the_wire_carries_little_more_than_the_meters_say() {
    for kind in [LinkKind::Quic, LinkKind::Tcp] {
        let cluster = Cluster::start(kind, as_is);
        cluster.runtime.block_on(async {
            let client = cluster.client().await;
            cluster.classify(&client, &shared().digits[..1]).await.unwrap();
            let before = PartyId::ALL.map(|party| cluster.node(party).status().peers);
            for _ in 0..2 {
                cluster.classify(&client, &shared().digits[..32]).await.unwrap();
            }
            // The helper's last frames and the acknowledgements of all.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let after = PartyId::ALL.map(|party| cluster.node(party).status().peers);
            for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
                let meter = after.session_sent - before.session_sent;
                let wire = after.wire_sent - before.wire_sent;
                // The helper hears nothing within a session: only acknowledgements travel that way.
                if meter == 0 {
                    continue;
                }
                let overhead = wire as f64 / meter as f64 - 1.0;
                println!("{kind:?} to {}: {meter} metered, {wire} on the wire, {:.2} %", after.party, 100.0 * overhead);
                assert!((0.0..0.04).contains(&overhead), "{kind:?} to {}: {wire} for {meter}", after.party);
            }
        });
    }
}

#[test]
fn nodes_start_in_any_order() {
    for order in [[P2, P0, P1], [P1, P2, P0]] {
        let mut cluster = Cluster::prepare(LinkKind::Quic, as_is);
        for party in order {
            cluster.start_node(party);
            // Long enough for the first attempts to fail.
            std::thread::sleep(Duration::from_millis(120));
        }
        cluster.runtime.block_on(cluster.assert_recovers());
    }
}

#[test]
fn many_clients_are_served_at_once() {
    let cluster = Cluster::start(LinkKind::Quic, |config| config.clients = ClientPolicy::Open);
    let oracle = shared().oracle();
    cluster.runtime.block_on(async {
        let clients = (0..12).map(async |at| {
            let client = cluster.client_as(Identity::generate().unwrap()).await.unwrap();
            for digit in &shared().digits[at..at + 2] {
                let answer = cluster.classify(&client, std::slice::from_ref(digit)).await.unwrap();
                assert_close(&answer.scores[0], &logits(&oracle, digit));
            }
        });
        join_all(clients).await;
        assert_eq!(cluster.node(P2).status().answered, 24);
    });
}

/// Runs futures side by side.
async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, done) in &mut running {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if running.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    running.into_iter().filter_map(|(_, done)| done).collect()
}

#[test]
fn what_waits_runs_together() {
    let cluster = Cluster::start(LinkKind::Quic, slow);
    let oracle = shared().oracle();
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        let digits = &shared().digits[..6];
        let first = cluster.classify(&client, &digits[..1]);
        let rest = async {
            until("the first runs", || cluster.node(P1).status().sessions_running == 1).await;
            join_all(digits[1..].iter().map(|digit| cluster.classify(&client, std::slice::from_ref(digit)))).await
        };
        let (first, rest) = tokio::join!(first, rest);
        let answers: Vec<_> = std::iter::once(first).chain(rest).collect();
        let mut batched = Vec::new();
        for (answer, digit) in answers.into_iter().zip(digits) {
            let answer = answer.unwrap();
            assert_close(&answer.scores[0], &logits(&oracle, digit));
            batched.push(answer.usage[0].batched);
        }
        assert!(batched.iter().max() >= Some(&5), "{batched:?}");
        assert!(cluster.node(P1).status().sessions_done <= 2);
    });
}

/// A node is killed in a session; its clients hear which, and after its return the next request succeeds.
fn dies_and_comes_back(party: PartyId) {
    let mut cluster = Cluster::start(LinkKind::Quic, |config| {
        slow(config);
        config.round_deadline = Duration::from_secs(2);
    });
    let runtime = cluster::runtime();
    let client = runtime.block_on(cluster.client());
    let asked = runtime.spawn({
        let client = client.clone();
        async move {
            // Enough work that the helper, which runs ahead and waits for nobody, is met while it is at it.
            let pixels: Vec<&[f32]> = shared().digits.iter().cycle().take(16).map(|digit| &digit.pixels[..]).collect();
            let options =
                tercet_client::Options { retries: 0, deadline: PATIENCE, max_batch: 16, ..Default::default() };
            client.classify(MODEL, tercet_client::Inputs::Images(&pixels), &options).await
        }
    });
    runtime.block_on(until("a session runs", || cluster.node(party).status().sessions_running == 1));
    cluster.kill(party);
    let error = runtime.block_on(asked).unwrap().expect_err("an answer without one of the nodes");
    let clear = match &error {
        // The others name it; or its own last words reach the client.
        Error::Refused { party: said_by, fault: Fault::Nodes, reason } => {
            *said_by == party || reason.contains(&party.to_string())
        }
        Error::Node { party: named, .. } => *named == party,
        _ => false,
    };
    assert!(clear, "{party} died: {error}");
    // While it is gone, a request says which node is missing.
    let error = runtime.block_on(cluster.classify(&client, &shared().digits[..1])).err().expect("two nodes only");
    assert!(error.to_string().contains(&party.to_string()), "{error}");
    cluster.start_node(party);
    runtime.block_on(cluster.assert_recovers());
}

#[test]
fn the_helper_dies_in_a_session_and_comes_back() {
    dies_and_comes_back(P0);
}

#[test]
fn the_lead_dies_in_a_session_and_comes_back() {
    dies_and_comes_back(P1);
}

#[test]
fn the_second_evaluator_dies_in_a_session_and_comes_back() {
    dies_and_comes_back(P2);
}

#[test]
fn requests_that_do_not_fit_are_refused_to_their_client_alone() {
    let cluster = Cluster::start(LinkKind::Quic, |config| config.max_batch = 4);
    cluster.runtime.block_on(async {
        let raw = Raw::connect(&cluster).await;
        let good = raw.prepare(&shared().digits[..1]);
        type Spoil = fn(&mut InputShare);
        let spoiled: [(&str, &str, Spoil); 9] = [
            ("no inputs", "rows", |s| s.batch = 0),
            ("too many inputs", "4 are allowed", |s| s.batch = 5),
            ("a huge number of inputs", "4 are allowed", |s| s.batch = u32::MAX),
            ("too many rows", "rows", |s| s.rows += 1),
            ("rows beyond measure", "rows", |s| s.rows = u32::MAX),
            ("a short tensor", "input share", |s| s.masked[1].truncate(3)),
            ("a tensor too many", "masked tensors", |s| s.masked.push(vec![0; 8])),
            ("lookup keys", "lookup keys", |s| s.keys[0] = vec![1; 40]),
            ("no seed", "seed", |s| (s.first_seed, s.second_seed) = (None, None)),
        ];
        for (what, words, spoil) in spoiled {
            let mut shares = good.shares().clone();
            spoil(&mut shares[1]);
            let answer = ask(&raw.connections[1], &raw.message(P1, fresh_id(), &shares[1])).await;
            println!("{what}");
            assert_refused(&answer, Fault::Request, words);
        }
        let run = |model: &str, digest| ClientMessage::Run {
            request_id: fresh_id(),
            start_id: raw.face.start_id(P1),
            model: model.into(),
            digest,
            deadline_ms: 1000,
            profile: false,
            share: good.shares()[1].clone(),
        };
        let answer = ask(&raw.connections[1], &run("nonesuch", raw.face.digest())).await;
        assert_refused(&answer, Fault::Request, "it holds: digits");
        let answer = ask(&raw.connections[1], &run(MODEL, [7; 32])).await;
        assert_refused(&answer, Fault::Request, "shared anew");
        let answer = ask(&raw.connections[0], &ClientMessage::Table { model: MODEL.into() }).await;
        assert_refused(&answer, Fault::Request, "table");
        cluster.assert_works().await;
    });
}

#[test]
fn parts_that_do_not_match_or_do_not_come_disturb_nobody() {
    let cluster = Cluster::start(LinkKind::Quic, as_is);
    cluster.runtime.block_on(async {
        let raw = Raw::connect(&cluster).await;
        let one = raw.prepare(&shared().digits[..1]);
        let two = raw.prepare(&shared().digits[..2]);
        // P2 gets the part of another request.
        let mixed = [one.shares()[0].clone(), one.shares()[1].clone(), two.shares()[2].clone()];
        for answer in raw.run(fresh_id(), &mixed).await {
            let NodeMessage::Refused { reason, .. } = &answer else { panic!("{answer:?}") };
            assert!(reason.contains("P2") && reason.contains("do not match"), "{reason}");
        }
        // P0 gets nothing; meanwhile others are served.
        let id = fresh_id();
        let lone = [1, 2].map(|at: usize| raw.message(PartyId::ALL[at], id, &one.shares()[at]));
        let (at_p1, at_p2, ()) = tokio::join!(
            ask(&raw.connections[1], &lone[0]),
            ask(&raw.connections[2], &lone[1]),
            cluster.assert_works()
        );
        assert_refused(&at_p1, Fault::Nodes, "P0");
        assert_refused(&at_p2, Fault::Nodes, "P0");
        // Only P2 gets its part: no plan ever names it.
        let ClientMessage::Run { request_id, start_id, model, digest, share, .. } =
            raw.message(P2, fresh_id(), &one.shares()[2])
        else {
            unreachable!()
        };
        let hasty = ClientMessage::Run { request_id, start_id, model, digest, deadline_ms: 200, profile: false, share };
        assert_refused(&ask(&raw.connections[2], &hasty).await, Fault::Nodes, "no session within 200 ms");
        cluster.assert_works().await;
    });
}

#[test]
fn a_request_number_serves_once() {
    let cluster = Cluster::start(LinkKind::Quic, as_is);
    cluster.runtime.block_on(async {
        let raw = Raw::connect(&cluster).await;
        let digits = &shared().digits[..1];
        let (prepared, id) = (raw.prepare(digits), fresh_id());
        let answers = raw.run(id, prepared.shares()).await;
        assert_close(&raw.open(&prepared, answers)[0], &logits(&shared().oracle(), &digits[0]));
        for answer in raw.run(id, prepared.shares()).await {
            assert_refused(&answer, Fault::Request, "used before");
        }
        assert_eq!(cluster.node(P1).status().sessions_done, 1);
        cluster.assert_works().await;
    });
}

/// A node that has started anew remembers no number, and takes no request that was made for its start before.
#[test]
fn a_request_does_not_outlive_the_start_of_a_node() {
    let mut cluster = Cluster::start(LinkKind::Quic, as_is);
    let runtime = cluster::runtime();
    let (id, prepared, face) = runtime.block_on(async {
        let raw = Raw::connect(&cluster).await;
        let (prepared, id) = (raw.prepare(&shared().digits[..1]), fresh_id());
        raw.open(&prepared, raw.run(id, prepared.shares()).await);
        (id, prepared, raw.face)
    });
    PartyId::ALL.into_iter().for_each(|party| cluster.kill(party));
    PartyId::ALL.into_iter().for_each(|party| cluster.start_node(party));
    runtime.block_on(async {
        cluster.assert_recovers().await;
        let mut raw = Raw::connect(&cluster).await;
        raw.face = face;
        for answer in raw.run(id, prepared.shares()).await {
            assert_refused(&answer, Fault::Request, "has started anew since");
        }
        cluster.assert_works().await;
    });
}

#[test]
fn a_client_that_leaves_takes_nobody_along() {
    let cluster = Cluster::start(LinkKind::Quic, slow);
    cluster.runtime.block_on(async {
        let client = cluster.client().await;
        let raw = Raw::connect(&cluster).await;
        // The first occupies the only place; of those that wait, every other leaves, one of them with all its connections.
        let first = cluster.classify(&client, &shared().digits[..1]);
        let rest = async {
            until("the first runs", || cluster.node(P1).status().sessions_running == 1).await;
            let leaver = Raw::connect(&cluster).await;
            let mut left = Vec::new();
            for at in 0..4 {
                let (from, id) = (if at == 0 { &leaver } else { &raw }, fresh_id());
                let prepared = from.prepare(&shared().digits[..1]);
                for party in 0..3 {
                    let mut channel = open(&from.connections[party]).await;
                    channel.send(&from.message(PartyId::ALL[party], id, &prepared.shares()[party])).await.unwrap();
                    left.push(channel);
                }
            }
            until("all four wait", || cluster.node(P1).status().waiting == 4).await;
            let stayers = join_all((0..2).map(|_| cluster.classify(&client, &shared().digits[1..2])));
            let leaving = async {
                until("six wait", || cluster.node(P1).status().waiting == 6).await;
                drop((left, leaver));
            };
            tokio::join!(stayers, leaving).0
        };
        let (first, stayers) = tokio::join!(first, rest);
        first.unwrap();
        for answer in stayers {
            assert_close(&answer.unwrap().scores[0], &logits(&shared().oracle(), &shared().digits[1]));
        }
        until("nothing waits", || PartyId::ALL.iter().all(|party| cluster.node(*party).status().waiting == 0)).await;
        // One leaves when its session runs already.
        let prepared = raw.prepare(&shared().digits[..1]);
        let mut channels = Vec::new();
        let id = fresh_id();
        for party in 0..3 {
            let mut channel = open(&raw.connections[party]).await;
            channel.send(&raw.message(PartyId::ALL[party], id, &prepared.shares()[party])).await.unwrap();
            channels.push(channel);
        }
        until("it runs", || cluster.node(P2).status().sessions_running == 1).await;
        drop(channels);
        cluster.assert_works().await;
        assert_eq!(cluster.node(P1).status().sessions_failed, 0);
    });
}

#[test]
fn a_stranger_is_refused() {
    let cluster = Cluster::start(LinkKind::Quic, as_is);
    cluster.runtime.block_on(async {
        let error = cluster.client_as(Identity::generate().unwrap()).await.expect_err("let a stranger in");
        assert!(error.to_string().contains("not on its list"), "{error}");
        cluster.assert_works().await;
    });
}

#[test]
fn garbage_on_ports_and_channels_is_refused() {
    let cluster = Cluster::start(LinkKind::Quic, as_is);
    let mut held = Vec::new();
    for party in PartyId::ALL {
        let mut socket = TcpStream::connect(cluster.node(party).address()).unwrap();
        // The node may have hung up by then.
        let _ = socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
        held.push(socket);
    }
    cluster.runtime.block_on(async {
        let raw = Raw::connect(&cluster).await;
        for party in 0..3 {
            for noise in [vec![], vec![0xff; 3], vec![3; 5000], 9u32.to_le_bytes().to_vec()] {
                let mut channel = open(&raw.connections[party]).await;
                channel.send_bytes(noise.into()).await.unwrap();
                let answer: NodeMessage = channel.recv(1 << 20, PATIENCE).await.unwrap();
                assert_refused(&answer, Fault::Request, "not a message of this protocol");
            }
            // More than any request can be.
            let mut channel = open(&raw.connections[party]).await;
            let sent = channel.send_bytes(vec![0; 60 << 20].into()).await;
            if sent.is_ok() {
                let answer: NodeMessage = channel.recv(1 << 20, PATIENCE).await.unwrap();
                assert_refused(&answer, Fault::Request, "over the limit");
            }
            // Half a request, then silence; and a good one with something behind it.
            let mut half = open(&raw.connections[party]).await;
            half.send(&ClientMessage::Models).await.unwrap();
            half.send_bytes(vec![1; 100].into()).await.unwrap();
            let answer: NodeMessage = half.recv(1 << 20, PATIENCE).await.unwrap();
            assert!(matches!(answer, NodeMessage::Models(_)));
        }
        cluster.assert_works().await;
    });
    drop(held);
}

#[test]
fn a_peer_that_talks_nonsense_is_hung_up_on() {
    let mut cluster = Cluster::prepare(LinkKind::Quic, as_is);
    cluster.start_node(P1);
    cluster.start_node(P2);
    cluster.runtime.block_on(async {
        let mut config = EndpointConfig::node(cluster.identity(P0), P0, "127.0.0.1:0".parse().unwrap(), cluster.keys());
        config.profile = LinkProfile::Loopback;
        let liar = Endpoint::bind(config).unwrap();
        for _ in 0..2 {
            let connection = liar.dial(P1, &cluster.address(P1)).await.unwrap();
            connection.send_message(&"who knows what this is").await.unwrap();
            let ended = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("was listened to");
            assert!(ended.to_string().contains("protocol"), "{ended}");
        }
    });
    cluster.start_node(P0);
    cluster.runtime.block_on(cluster.assert_recovers());
}

#[test]
fn nodes_with_different_sharings_say_so() {
    let scratch = shared().scratch();
    let other = share_model(&shared().model, MODEL, scratch.path());
    let mut cluster = Cluster::prepare(LinkKind::Quic, as_is);
    cluster.start_node(P0);
    cluster.start_node(P1);
    let mut config = cluster.config(P2);
    config.shares = vec![other[2].clone()];
    cluster.start_with(config).unwrap();
    cluster.runtime.block_on(async {
        until("they have met", || cluster.node(P1).status().peers.iter().all(|peer| peer.connected)).await;
        let raw = Raw::connect(&cluster).await;
        let prepared = raw.prepare(&shared().digits[..1]);
        let answer = ask(&raw.connections[1], &raw.message(P1, fresh_id(), &prepared.shares()[1])).await;
        assert_refused(&answer, Fault::Nodes, "P2 holds model \"digits\"");
    });
    cluster.kill(P2);
    cluster.start_node(P2);
    cluster.runtime.block_on(cluster.assert_recovers());
}

#[test]
fn bad_shares_and_ports_keep_a_node_from_starting() {
    let mut cluster = Cluster::prepare(LinkKind::Quic, as_is);
    let scratch = shared().scratch();
    let mut refused = |shares: Vec<std::path::PathBuf>| {
        let mut config = cluster.config(P1);
        config.shares = shares;
        cluster.start_with(config).expect_err("started").to_string()
    };
    let mine = shared().shares[1].clone();
    let bytes = std::fs::read(&mine).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = scratch.path().join(name);
        let _ = std::fs::remove_file(&path);
        secret_file::write_new(&path, bytes).unwrap();
        path
    };
    let copy = write("copy.tercet", &bytes);
    let error = refused(vec![mine.clone(), copy.clone()]);
    for named in ["\"digits\"", &mine.display().to_string(), &copy.display().to_string()] {
        assert!(error.contains(named), "{error}");
    }
    let error = refused(vec![shared().shares[2].clone()]);
    assert!(error.contains("share of P2") && error.contains("this node is P1"), "{error}");
    for kept in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        let error = refused(vec![write("cut.tercet", &bytes[..kept])]);
        assert!(error.contains("cut.tercet"), "{kept}: {error}");
    }
    for at in [9, 70, bytes.len() / 3, bytes.len() - 60] {
        let mut altered = bytes.clone();
        altered[at] ^= 4;
        let error = refused(vec![write("altered.tercet", &altered)]);
        assert!(error.contains("altered.tercet"), "{at}: {error}");
    }
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = refused(vec![copy.clone()]);
    let mend = format!("(mode 640): run `chmod 600 {}`", copy.display());
    assert!(error.contains(&mend), "{error}");
    let error = refused(vec![scratch.path().join("absent.tercet")]);
    assert!(error.contains("absent.tercet"), "{error}");

    cluster.start_node(P1);
    let config = cluster.config(P1);
    let address = config.listen.to_string();
    let runtime = cluster::runtime();
    let error = runtime.block_on(Node::start(config)).expect_err("took a port that was taken").to_string();
    assert!(error.contains(&address) && error.contains("listen"), "{error}");
    cluster.start_node(P0);
    cluster.start_node(P2);
    cluster.runtime.block_on(cluster.assert_recovers());
}

#[test]
fn what_has_no_room_is_refused() {
    let cluster = Cluster::start(LinkKind::Quic, |config| {
        slow(config);
        config.max_queue = 2;
        // The buffers of the links, and room for one image.
        config.memory_bytes = 66 << 20;
    });
    cluster.runtime.block_on(async {
        let met = |party| cluster.node(party).status().peers.iter().all(|peer| peer.connected);
        until("all have met", || PartyId::ALL.into_iter().all(met)).await;
        let raw = Raw::connect(&cluster).await;
        let sixteen = raw.prepare(&shared().digits[..16]);
        let answer = ask(&raw.connections[1], &raw.message(P1, fresh_id(), &sixteen.shares()[1])).await;
        assert_refused(&answer, Fault::Request, "MiB of working memory");
        // One runs, two wait, one is too many.
        let client = cluster.client().await;
        let first = cluster.classify(&client, &shared().digits[..1]);
        let rest = async {
            let runs = |party| cluster.node(party).status().sessions_running == 1;
            until("the first runs", || PartyId::ALL.into_iter().all(runs)).await;
            let waiting = join_all((0..2).map(|_| cluster.classify(&client, &shared().digits[..1])));
            let more = async {
                until("two wait", || cluster.node(P1).status().waiting == 2).await;
                let one = raw.prepare(&shared().digits[..1]);
                let answer = ask(&raw.connections[1], &raw.message(P1, fresh_id(), &one.shares()[1])).await;
                assert_refused(&answer, Fault::Busy, "too many");
            };
            tokio::join!(waiting, more).0
        };
        let (first, waited) = tokio::join!(first, rest);
        first.unwrap();
        waited.into_iter().for_each(|answer| drop(answer.unwrap()));
    });
}

#[test]
fn a_node_that_is_stopped_finishes_what_runs() {
    let cluster = Cluster::start(LinkKind::Quic, slow);
    let runtime = cluster::runtime();
    let client = runtime.block_on(cluster.client());
    let ask = |at: usize| {
        let client = client.clone();
        runtime.spawn(async move {
            let pixels: Vec<&[f32]> = vec![&shared().digits[at].pixels[..]];
            let options = tercet_client::Options { retries: 0, deadline: PATIENCE, ..Default::default() };
            client.classify(MODEL, tercet_client::Inputs::Images(&pixels), &options).await
        })
    };
    let running = ask(0);
    runtime.block_on(until("it runs", || cluster.node(P2).status().sessions_running == 1));
    let waiting = ask(1);
    runtime.block_on(until("one waits", || cluster.node(P1).status().waiting == 1));
    let begun = Instant::now();
    let late = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| cluster.shutdown(P1, Duration::from_secs(30)));
        runtime.block_on(until("it stops", || cluster.node(P1).status().stopping));
        let late = ask(2);
        stopping.join().unwrap();
        late
    });
    assert!(begun.elapsed() < Duration::from_secs(30));
    for (at, asked) in [running, waiting].into_iter().enumerate() {
        let answer = runtime.block_on(asked).unwrap().unwrap();
        assert_close(&answer.classes[0].scores, &logits(&shared().oracle(), &shared().digits[at]));
    }
    let error = runtime.block_on(late).unwrap().expect_err("was let in after the end");
    assert!(matches!(error, Error::Refused { fault: Fault::Nodes, .. } | Error::Node { .. }), "{error}");
    assert_eq!(cluster.node(P1).status().sessions_done, 2);
}
