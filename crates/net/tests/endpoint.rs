//! Nodes and clients at their ports: any order, strangers, garbage, deaths and returns.

#[path = "support/nodes.rs"]
mod nodes;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nodes::{Keys, Nodes, PATIENCE, any_port, runtime};
use tercet_net::{
    CONTROL_LIMIT_BYTES, ChannelId, ClientPolicy, Endpoint, EndpointConfig, FrameLimits, Identity, LinkKind,
    LinkProfile, LinkShape, NetError, PartyId, PeerAddress, Refusal, Role, SessionLinks, SessionSettings, Transport,
    TransportError,
};

use PartyId::{P0, P1, P2};

const KINDS: [LinkKind; 2] = [LinkKind::Quic, LinkKind::Tcp];

/// A port that is free for UDP and TCP just now.
fn free_port() -> SocketAddr {
    loop {
        let udp = UdpSocket::bind(any_port()).unwrap();
        let address = udp.local_addr().unwrap();
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

#[test]
fn nodes_start_in_any_order() {
    for (order, kind) in [([2, 0, 1], LinkKind::Quic), ([0, 1, 2], LinkKind::Tcp), ([1, 2, 0], LinkKind::Quic)] {
        let runtime = runtime();
        runtime.block_on(async {
            let keys = Keys::new();
            let ports = [(); 3].map(|()| free_port());
            let addresses = ports.map(|port| Some(PeerAddress::new(kind, port)));
            let mut endpoints = [None, None, None];
            for index in order {
                let party = PartyId::from_index(index).unwrap();
                let endpoint = Endpoint::bind(keys.config(party, ports[index])).unwrap();
                endpoint.keep_parties(addresses.clone()).unwrap();
                endpoints[index] = Some(endpoint);
                // Long enough for the first attempts to fail.
                tokio::time::sleep(Duration::from_millis(120)).await;
            }
            let endpoints = endpoints.map(Option::unwrap);
            let mut seeds = BTreeSet::new();
            for party in PartyId::ALL {
                for peer in party.others() {
                    let here = endpoints[party.index()].wait_party(peer, PATIENCE).await.unwrap();
                    let there = endpoints[peer.index()].wait_party(party, PATIENCE).await.unwrap();
                    assert_eq!(here.peer().role, Role::Party(peer));
                    assert_eq!(Some(here.peer().key), keys.public[peer.index()]);
                    assert_eq!(here.pair_seed().unwrap().expose(), there.pair_seed().unwrap().expose());
                    seeds.insert(*here.pair_seed().unwrap().expose());
                }
            }
            assert_eq!(seeds.len(), 3, "pairs share seeds with each other");
        });
    }
}

#[test]
fn strangers_and_impostors_are_told() {
    let runtime = runtime();
    runtime.block_on(async {
        let keys = Keys::new();
        let friend = Identity::generate().unwrap();
        let mut config = keys.config(P2, any_port());
        config.clients = ClientPolicy::Listed(BTreeSet::from([friend.public_key()]));
        let node = Endpoint::bind(config).unwrap();
        let address = |kind| PeerAddress::new(kind, node.local_address().unwrap());
        let friend = Endpoint::bind(EndpointConfig::client(friend, keys.public)).unwrap();
        for kind in KINDS {
            let stranger = Endpoint::bind(EndpointConfig::client(Identity::generate().unwrap(), keys.public)).unwrap();
            let error = stranger.dial(P2, &address(kind)).await.expect_err("let a stranger in");
            assert!(matches!(&error, NetError::Refused { refusal: Refusal::Stranger, .. }), "{kind:?}: {error}");

            // The friend believes the node to be P1, whose key is another.
            let error = friend.dial(P1, &address(kind)).await.expect_err("believed another key");
            assert!(matches!(&error, NetError::Untrusted { .. }), "{kind:?}: {error}");

            let connection = friend.dial(P2, &address(kind)).await.unwrap();
            assert_eq!(connection.peer().role, Role::Party(P2));
            assert!(connection.pair_seed().is_none());
            let at_node = node.accept().await;
            assert_eq!((at_node.peer().role, at_node.peer().key), (Role::Client, friend.public_key()));
        }
    });
}

#[test]
fn garbage_at_the_port_disturbs_nobody() {
    let runtime = runtime();
    let nodes = runtime.block_on(Nodes::start(LinkKind::Quic));
    let port = nodes.endpoints[1].local_address().unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let mut byte = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| byte()).collect()
    };
    let udp = UdpSocket::bind(any_port()).unwrap();
    for length in [0, 1, 7, 20, 1200, 1452, 4000] {
        for first in [0x00, 0x40, 0xc0, 0xff] {
            let mut datagram = noise(length);
            if let Some(byte) = datagram.first_mut() {
                *byte = first;
            }
            // An initial packet of QUIC version 1 that ends, or goes on with noise.
            if length >= 7 {
                datagram[1..5].copy_from_slice(&[0, 0, 0, 1]);
            }
            udp.send_to(&datagram, port).unwrap();
        }
    }
    // Connections that say nothing, half a TLS record, or something else altogether, and stay.
    let held: Vec<TcpStream> = (0..40)
        .map(|at| {
            let mut socket = TcpStream::connect(port).unwrap();
            let words = match at % 4 {
                0 => Vec::new(),
                1 => vec![22, 3, 1, 2, 0, 1, 0, 1],
                2 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                _ => noise(3000),
            };
            // The node may have hung up by then.
            let _ = socket.write_all(&words);
            socket
        })
        .collect();
    runtime.block_on(async {
        for kind in KINDS {
            let client = nodes.client();
            let address = PeerAddress::new(kind, port);
            client.dial(P1, &address).await.unwrap();
        }
        let [mut p0, mut p1, _p2] = nodes.session([SessionSettings::default(); 3]).await;
        tokio::task::spawn_blocking(move || {
            p0.send(P1, 1, Bytes::from_static(b"still here")).unwrap();
            assert_eq!(p1.recv(P0, 1).unwrap(), "still here");
        })
        .await
        .unwrap();
    });
    drop(held);
}

#[test]
fn requests_and_messages_cross_both_ways() {
    let runtime = runtime();
    for kind in KINDS {
        let nodes = runtime.block_on(Nodes::start(kind));
        runtime.block_on(async {
            let client = nodes.client();
            let here = client.dial(P1, &nodes.address(P1)).await.unwrap();
            let there = loop {
                let connection = nodes.endpoints[1].accept().await;
                if connection.peer().role == Role::Client {
                    break connection;
                }
            };
            here.send_message(&(7u32, "hello")).await.unwrap();
            there.send_message(&vec![1u64, 2, 3]).await.unwrap();
            assert_eq!(there.recv_message::<(u32, String)>().await.unwrap(), (7, "hello".into()));
            assert_eq!(here.recv_message::<Vec<u64>>().await.unwrap(), [1, 2, 3]);
            let too_large = here.send_message(&vec![0u8; CONTROL_LIMIT_BYTES]).await.unwrap_err();
            assert!(matches!(too_large, NetError::Local { .. }));
            here.send_message(&0u8).await.unwrap();
            let wrong = there.recv_message::<String>().await.unwrap_err();
            assert!(matches!(wrong, NetError::Protocol { .. }), "{wrong}");

            // Two requests at once, of 30 MB and of nothing.
            let payload = Bytes::from((0..30_000_000u32).map(|at| (at >> 7) as u8).collect::<Vec<u8>>());
            let mut large = here.open_channel(ChannelId::request(1)).await.unwrap();
            let mut small = here.open_channel(ChannelId::request(2)).await.unwrap();
            let sent = payload.clone();
            let upload = tokio::spawn(async move {
                large.send_bytes(sent).await.unwrap();
                large.finish();
                (large.recv::<u64>(100, PATIENCE).await.unwrap(), large.receiver.next_bytes(1, PATIENCE).await.unwrap())
            });
            small.send_bytes(Bytes::new()).await.unwrap();
            let mut served = BTreeSet::new();
            for _ in 0..2 {
                let (id, mut channel) = there.accept_channel().await.unwrap();
                served.insert(id.id);
                if id == ChannelId::request(1) {
                    assert!(channel.recv_bytes(30_000_000, PATIENCE).await.unwrap() == payload, "changed on its way");
                    assert_eq!(channel.receiver.next_bytes(1, PATIENCE).await.unwrap(), None);
                    channel.send(&42u64).await.unwrap();
                    channel.finish();
                } else {
                    assert_eq!(channel.recv_bytes(0, PATIENCE).await.unwrap(), "");
                    let late = channel.recv_bytes(0, Duration::from_millis(50)).await.unwrap_err();
                    assert!(matches!(late, NetError::Deadline { .. }), "{late}");
                }
            }
            assert_eq!(served, BTreeSet::from([1, 2]));
            assert_eq!(upload.await.unwrap(), (42, None));

            // More than the other side wants; then a client that leaves in the middle.
            let mut greedy = here.open_channel(ChannelId::request(3)).await.unwrap();
            greedy.send_bytes(Bytes::from(vec![0; 2000])).await.unwrap();
            let (_, mut channel) = there.accept_channel().await.unwrap();
            let error = channel.recv_bytes(1999, PATIENCE).await.unwrap_err();
            assert!(matches!(error, NetError::Protocol { .. }), "{error}");
            let mut leaving = here.open_channel(ChannelId::request(4)).await.unwrap();
            leaving.send_bytes(Bytes::from_static(b"first part")).await.unwrap();
            let (_, mut channel) = there.accept_channel().await.unwrap();
            assert_eq!(channel.recv_bytes(100, PATIENCE).await.unwrap(), "first part");
            drop(leaving);
            let error = channel.recv_bytes(100, PATIENCE).await.unwrap_err();
            assert!(matches!(error, NetError::Lost { .. }), "{error}");
            drop((here, small, greedy, client));
            let error = there.accept_channel().await.err().expect("the client is gone");
            assert!(matches!(error, NetError::Lost { .. }), "{error}");
        });
    }
}

#[test]
fn uploads_beyond_the_unread_bound_all_arrive() {
    let runtime = runtime();
    for kind in KINDS {
        runtime.block_on(async {
            let nodes = Nodes::start(kind).await;
            let client = nodes.client();
            let here = client.dial(P1, &nodes.address(P1)).await.unwrap();
            let there = loop {
                let connection = nodes.endpoints[1].accept().await;
                if connection.peer().role == Role::Client {
                    break connection;
                }
            };
            // 120 MiB in all, of which a client may leave 64 MiB unread.
            let block = Bytes::from(vec![9; 20 << 20]);
            let uploads = (0..6).map(|id| {
                let (here, block) = (here.clone(), block.clone());
                tokio::spawn(async move {
                    let mut channel = here.open_channel(ChannelId::request(id)).await.unwrap();
                    channel.send_bytes(block).await.unwrap();
                    channel.finish();
                    channel.recv::<bool>(1, PATIENCE).await.unwrap()
                })
            });
            let uploads: Vec<_> = uploads.collect();
            // Nobody reads for a while.
            tokio::time::sleep(Duration::from_millis(200)).await;
            for _ in 0..6 {
                let (_, mut channel) = there.accept_channel().await.unwrap();
                let block = block.clone();
                tokio::spawn(async move {
                    let same = channel.recv_bytes(block.len(), PATIENCE).await.unwrap() == block;
                    channel.send(&same).await.unwrap();
                    channel.finish();
                });
            }
            for upload in uploads {
                assert!(upload.await.unwrap(), "{kind:?}: an upload was changed");
            }
        });
    }
}

#[test]
fn too_many_clients_are_told() {
    let runtime = runtime();
    runtime.block_on(async {
        let keys = Keys::new();
        let mut config = keys.config(P1, any_port());
        config.clients = ClientPolicy::Open;
        config.clients_at_once = 1;
        let node = Endpoint::bind(config).unwrap();
        let address = PeerAddress::new(LinkKind::Quic, node.local_address().unwrap());
        let [one, other] = [(); 2]
            .map(|()| Endpoint::bind(EndpointConfig::client(Identity::generate().unwrap(), keys.public)).unwrap());
        let first = one.dial(P1, &address).await.unwrap();
        let at_node = node.accept().await;
        let error = other.dial(P1, &address).await.expect_err("one too many");
        assert!(matches!(&error, NetError::Refused { refusal: Refusal::Busy, .. }), "{error}");
        drop(first);
        at_node.closed().await;
        drop(at_node);
        let mut dialled = other.dial(P1, &address).await;
        while dialled.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            dialled = other.dial(P1, &address).await;
        }
    });
}

#[test]
fn a_node_that_stops_says_so_to_everyone() {
    let runtime = runtime();
    for kind in KINDS {
        runtime.block_on(async {
            let nodes = Nodes::start(kind).await;
            let client = nodes.client();
            let connection = client.dial(P1, &nodes.address(P1)).await.unwrap();
            let [_, at_p2] = nodes.connections(P0).await;
            let [_, p1_at_p2] = nodes.connections(P2).await;
            nodes.endpoints[1].shutdown("maintenance").await;
            for connection in [&connection, &p1_at_p2] {
                let error = connection.closed().await;
                assert!(matches!(&error, NetError::Lost { reason, .. } if reason == "maintenance"), "{error}");
            }
            assert!(!at_p2.is_closed());
            let error = client.dial(P1, &nodes.address(P1)).await.expect_err("the port is closed");
            let gone =
                matches!(&error, NetError::Unreachable { .. } | NetError::Lost { .. } | NetError::Deadline { .. });
            assert!(gone, "{error}");
        });
    }
}

#[test]
fn a_port_in_use_is_named() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let keys = Keys::new();
    let first = Endpoint::bind(keys.config(P0, any_port())).unwrap();
    let address = first.local_address().unwrap();
    let error = Endpoint::bind(keys.config(P1, address)).unwrap_err();
    assert!(matches!(error, NetError::Bind { address: named, .. } if named == address), "{error}");
    // Keys that contradict each other are found before the port is touched.
    let mut config = keys.config(P1, address);
    config.parties[0] = config.parties[2];
    assert!(matches!(Endpoint::bind(config), Err(NetError::Local { .. })));
    let mut config = keys.config(P1, address);
    config.parties[2] = None;
    assert!(matches!(Endpoint::bind(config), Err(NetError::Local { .. })));
}

#[test]
fn a_node_that_dies_is_lost_and_comes_back() {
    for kind in KINDS {
        let keys = Keys::new();
        let ports = [(); 3].map(|()| free_port());
        let addresses = ports.map(|port| Some(PeerAddress::new(kind, port)));
        let start = |party: PartyId| {
            let runtime = runtime();
            let endpoint = {
                let _inside = runtime.enter();
                Endpoint::bind(keys.config(party, ports[party.index()])).unwrap()
            };
            {
                let _inside = runtime.enter();
                endpoint.keep_parties(addresses.clone()).unwrap();
            }
            (runtime, endpoint)
        };
        let settings = SessionSettings { round_deadline: Duration::from_secs(4), limits: FrameLimits::default() };
        type Node = (tokio::runtime::Runtime, Endpoint);
        let session = |nodes: &[Node; 3], id: u128| -> Result<[SessionLinks; 3], NetError> {
            std::thread::scope(|scope| {
                let opened = PartyId::ALL.map(|party| {
                    let (runtime, endpoint) = &nodes[party.index()];
                    scope.spawn(move || {
                        runtime.block_on(async {
                            let [one, other] = party.others();
                            let one = endpoint.wait_party(one, PATIENCE).await?;
                            let other = endpoint.wait_party(other, PATIENCE).await?;
                            SessionLinks::establish(party, [&one, &other], id, settings).await
                        })
                    })
                });
                let [p0, p1, p2] = opened.map(|thread| thread.join().unwrap());
                Ok([p0?, p1?, p2?])
            })
        };
        let nodes = PartyId::ALL.map(start);
        let [mut p0, mut p1, p2] = session(&nodes, 1).unwrap();
        let old_seed = *nodes[1].1.party(P2).unwrap().pair_seed().unwrap().expose();
        // The process of P2 ends without a word: its tasks and sockets are gone at once.
        let [node0, node1, (runtime2, endpoint2)] = nodes;
        drop(p2);
        drop(endpoint2);
        runtime2.shutdown_timeout(Duration::from_millis(200));
        let error = p1.recv(P2, 1).unwrap_err();
        let at_fault =
            matches!(error, TransportError::Lost { party: P2, .. } | TransportError::Deadline { party: P2, .. });
        assert!(at_fault, "{error}");
        p1.abort("P2 is gone");
        assert!(matches!(p0.recv(P1, 1), Err(TransportError::Aborted { party: P1, .. })));
        drop((p0, p1));

        let nodes = [node0, node1, start(P2)];
        // The survivors notice the return by themselves; until then one may offer its connection to the dead.
        let deadline = std::time::Instant::now() + PATIENCE;
        let (mut p0, mut p1, mut p2) = loop {
            static NEXT: AtomicU64 = AtomicU64::new(2);
            match session(&nodes, NEXT.fetch_add(1, Ordering::Relaxed).into()) {
                Ok([p0, p1, p2]) => break (p0, p1, p2),
                Err(error) => assert!(std::time::Instant::now() < deadline, "no session after the return: {error}"),
            }
        };
        p0.send(P2, 1, Bytes::from_static(b"welcome back")).unwrap();
        assert_eq!(p2.recv(P0, 1).unwrap(), "welcome back");
        p2.send(P1, 1, Bytes::from_static(b"thanks")).unwrap();
        assert_eq!(p1.recv(P2, 1).unwrap(), "thanks");
        assert_ne!(nodes[1].1.party(P2).unwrap().pair_seed().unwrap().expose(), &old_seed);
    }
}

#[test]
fn framing_and_tls_stay_below_four_percent() {
    let runtime = runtime();
    let cases = [
        (LinkKind::Quic, LinkProfile::Loopback),
        (LinkKind::Quic, LinkProfile::Lan1500),
        (LinkKind::Tcp, LinkProfile::Loopback),
    ];
    for (kind, profile) in cases {
        runtime.block_on(async {
            let nodes = Nodes::start_with(kind, profile, LinkShape::NONE).await;
            let [_, to_p2] = nodes.connections(P1).await;
            let before = to_p2.wire_bytes();
            let [_p0, mut p1, mut p2] = nodes.session([SessionSettings::default(); 3]).await;
            let (p1, _p2) = tokio::task::spawn_blocking(move || {
                let block = Bytes::from(vec![5u8; 200_000]);
                for tag in 0..100 {
                    p1.send(P2, tag, block.clone()).unwrap();
                    p2.send(P1, tag, block.clone()).unwrap();
                    p2.recv(P1, tag).unwrap();
                    p1.recv(P2, tag).unwrap();
                }
                (p1, p2)
            })
            .await
            .unwrap();
            let after = to_p2.wire_bytes();
            let meter = p1.meter();
            for (wire, metered) in [
                (after.sent - before.sent, meter.sent[2].bytes),
                (after.received - before.received, meter.received[2].bytes),
            ] {
                let overhead = wire as f64 / metered as f64 - 1.0;
                println!("{kind:?} {profile}: {metered} bytes metered, {wire} on the wire, {:.2} %", 100.0 * overhead);
                assert!((0.0..0.04).contains(&overhead), "{kind:?} {profile}: {wire} bytes for {metered}");
            }
        });
    }
}

#[test]
fn a_shaped_link_is_no_faster_than_its_shape() {
    let runtime = runtime();
    let shape = LinkShape { delay: Duration::from_millis(25), bandwidth: Some(200_000_000) };
    let profiles = [LinkProfile::Loopback, LinkProfile::Lan1500, LinkProfile::Wan];
    let quic = profiles.map(|profile| (LinkKind::Quic, profile));
    for (kind, profile) in quic.into_iter().chain([(LinkKind::Tcp, LinkProfile::Loopback)]) {
        let nodes = runtime.block_on(Nodes::start_with(kind, profile, shape));
        let [_p0, mut p1, mut p2] = runtime.block_on(nodes.session([SessionSettings::default(); 3]));
        let start = std::time::Instant::now();
        p1.send(P2, 1, Bytes::from_static(b"there")).unwrap();
        p2.recv(P1, 1).unwrap();
        p2.send(P1, 1, Bytes::from_static(b"and back")).unwrap();
        p1.recv(P2, 1).unwrap();
        assert!(start.elapsed() >= 2 * shape.delay);
        // Four frames of 500 kB both ways at once: each direction has its own 200 Mbit/s, and nothing is lost.
        let block = Bytes::from((0..500_000u32).map(|at| (at >> 3) as u8).collect::<Vec<u8>>());
        let start = std::time::Instant::now();
        for tag in 2..6 {
            p1.send(P2, tag, block.clone()).unwrap();
            p2.send(P1, tag, block.clone()).unwrap();
        }
        for tag in 2..6 {
            assert!(p2.recv(P1, tag).unwrap() == block && p1.recv(P2, tag).unwrap() == block);
        }
        assert!(start.elapsed() >= shape.delay + Duration::from_millis(4 * 20), "{kind:?} {profile}");
    }
}

#[test]
fn ends_of_different_profiles_understand_each_other() {
    let runtime = runtime();
    let profiles = [LinkProfile::Loopback, LinkProfile::Jumbo, LinkProfile::Lan1500, LinkProfile::Wan];
    for profile in profiles {
        let nodes = runtime.block_on(Nodes::start_with(LinkKind::Quic, profile, LinkShape::NONE));
        for other in profiles {
            let mut config = EndpointConfig::client(Identity::generate().unwrap(), nodes.keys.public);
            config.profile = other;
            runtime.block_on(async {
                let client = Endpoint::bind(config).unwrap();
                let to_node = client.dial(P1, &nodes.address(P1)).await.unwrap();
                let mut asking = to_node.open_channel(ChannelId::request(1)).await.unwrap();
                let block = Bytes::from(vec![7; 3_000_000]);
                let answering = async {
                    let at_node = loop {
                        let arrived = nodes.endpoints[1].accept().await;
                        if arrived.peer().role == Role::Client {
                            break arrived;
                        }
                    };
                    let (_, mut channel) = at_node.accept_channel().await.unwrap();
                    let received = channel.recv_bytes(1 << 22, PATIENCE).await.unwrap();
                    channel.send_bytes(received).await.unwrap();
                    channel
                };
                let (asked, _channel) = tokio::join!(asking.send_bytes(block.clone()), answering);
                asked.unwrap();
                assert!(asking.recv_bytes(1 << 22, PATIENCE).await.unwrap() == block, "{profile} and {other}");
            });
        }
    }
}

#[test]
fn quic_packets_are_shaped_from_the_first() {
    let runtime = runtime();
    let shape = LinkShape { delay: Duration::from_millis(25), bandwidth: None };
    let start = std::time::Instant::now();
    let nodes = runtime.block_on(Nodes::start_with(LinkKind::Quic, LinkProfile::Loopback, shape));
    // The handshake, then the greeting: a round trip each.
    assert!(start.elapsed() >= 4 * shape.delay);
    runtime.block_on(async {
        let closing = std::time::Instant::now();
        let at_p2 = nodes.endpoints[2].party(P1).unwrap();
        nodes.endpoints[1].party(P2).unwrap().close("the last word");
        let reason = at_p2.closed().await;
        assert!(closing.elapsed() >= shape.delay && reason.to_string().contains("the last word"), "{reason}");
    });
}

#[test]
fn one_key_leaves_places_to_others() {
    let runtime = runtime();
    runtime.block_on(async {
        let keys = Keys::new();
        let [identity, second] = [(); 2].map(|()| Identity::generate().unwrap());
        let mut config = keys.config(P1, any_port());
        config.clients = ClientPolicy::Listed([identity.public_key(), second.public_key()].into());
        config.clients_at_once = 6;
        let node = Endpoint::bind(config).unwrap();
        let address = PeerAddress::new(LinkKind::Quic, node.local_address().unwrap());
        let greedy = Endpoint::bind(EndpointConfig::client(identity, keys.public)).unwrap();
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push((greedy.dial(P1, &address).await.unwrap(), node.accept().await));
        }
        let error = greedy.dial(P1, &address).await.expect_err("nobody gives way to who has most");
        assert!(matches!(&error, NetError::Refused { refusal: Refusal::Busy, .. }), "{error}");
        // The newest of the key that has most makes room.
        let modest = Endpoint::bind(EndpointConfig::client(second, keys.public)).unwrap();
        let accept = tokio::spawn({
            let last = held.pop().unwrap();
            async move {
                let reason = last.0.closed().await;
                drop(last);
                reason.to_string()
            }
        });
        let _modest = modest.dial(P1, &address).await.unwrap();
        let reason = accept.await.unwrap();
        assert!(reason.contains("another client needs the place"), "{reason}");
        assert!(held.iter().all(|(connection, _)| !connection.is_closed()));
    });
}

/// A stranger that opens sockets and says nothing, or a byte now and then.
async fn idle_sockets(address: std::net::SocketAddr, count: usize) -> Vec<tokio::net::TcpStream> {
    let mut idle = Vec::new();
    for _ in 0..count {
        if let Ok(socket) = tokio::net::TcpStream::connect(address).await {
            idle.push(socket);
        }
    }
    idle
}

#[test]
fn a_stranger_that_says_nothing_keeps_nobody_out() {
    let runtime = runtime();
    for kind in KINDS {
        runtime.block_on(async {
            let keys = Keys::new();
            let mut config = keys.config(P1, any_port());
            config.clients = ClientPolicy::Open;
            let node = Endpoint::bind(config).unwrap();
            let socket = node.local_address().unwrap();
            let address = PeerAddress::new(kind, socket);
            let mut idle = idle_sockets(socket, 1100).await;
            assert!(idle.len() > 1000, "{} sockets", idle.len());
            // The first byte of a TLS handshake, and no second.
            for socket in idle.iter_mut().skip(100) {
                let _ = tokio::io::AsyncWriteExt::write_all(socket, &[22]).await;
            }
            let begun = Instant::now();
            let client = Endpoint::bind(EndpointConfig::client(Identity::generate().unwrap(), keys.public)).unwrap();
            let _client = client.dial(P1, &address).await.unwrap();
            let as_client = begun.elapsed();
            let begun = Instant::now();
            let p0 = Endpoint::bind(keys.config(P0, any_port())).unwrap();
            let _peer = p0.dial(P1, &address).await.unwrap();
            println!(
                "{kind:?}: {} idle sockets; a client is in after {as_client:?}, a party after {:?}",
                idle.len(),
                begun.elapsed()
            );
            // Whoever never says a word is hung up on.
            let mut silent = idle.swap_remove(50);
            let mut byte = [0];
            let read = tokio::io::AsyncReadExt::read(&mut silent, &mut byte);
            let ended = tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is kept");
            assert!(matches!(ended, Ok(0) | Err(_)));
        });
    }
}

/// Forwards datagrams between whoever dials it and a node, but for those of more than `largest`
/// bytes, which it loses.
async fn narrow_path(node: SocketAddr, largest: usize) -> SocketAddr {
    let [near, far] = [any_port(); 2].map(|address| UdpSocket::bind(address).unwrap());
    for socket in [&near, &far] {
        socket.set_nonblocking(true).unwrap();
    }
    let address = near.local_addr().unwrap();
    let [near, far] = [near, far].map(|socket| tokio::net::UdpSocket::from_std(socket).unwrap());
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut dialler = None;
        loop {
            tokio::select! {
                Ok((count, from)) = near.recv_from(&mut there) => {
                    dialler = Some(from);
                    if count <= largest {
                        let _ = far.send_to(&there[..count], node).await;
                    }
                }
                Ok((count, _)) = far.recv_from(&mut back) => {
                    if let Some(dialler) = dialler.filter(|_| count <= largest) {
                        let _ = near.send_to(&back[..count], dialler).await;
                    }
                }
            }
        }
    });
    address
}

/// Every profile connects where datagrams of an ordinary network pass and no larger ones; and finds
/// out what does pass.
#[test]
fn a_path_that_is_narrower_than_the_profile_says_carries_all_the_same() {
    let runtime = runtime();
    for (profile, largest) in
        [(LinkProfile::Loopback, 1472), (LinkProfile::Jumbo, 1472), (LinkProfile::Loopback, 1 << 16)]
    {
        runtime.block_on(async {
            let keys = Keys::new();
            let identity = Identity::generate().unwrap();
            let mut config = keys.config(P1, any_port());
            config.profile = profile;
            config.clients = ClientPolicy::Open;
            let node = Endpoint::bind(config).unwrap();
            let path = narrow_path(node.local_address().unwrap(), largest).await;
            let client = EndpointConfig { profile, ..EndpointConfig::client(identity, keys.public) };
            let client = Endpoint::bind(client).unwrap();
            let connection = client.dial(P1, &PeerAddress::new(LinkKind::Quic, path)).await.unwrap();
            let at_node = node.accept().await;
            let mut channel = connection.open_channel(ChannelId::request(7)).await.unwrap();
            let message = Bytes::from(vec![5; 5 << 20]);
            channel.send_bytes(message.clone()).await.unwrap();
            let (_, mut arrived) = at_node.accept_channel().await.unwrap();
            assert_eq!(arrived.recv_bytes(8 << 20, PATIENCE).await.unwrap(), message);
            let carried = connection.datagram_bytes().unwrap();
            println!("{profile} over a path of {largest} bytes: datagrams of {carried}");
            assert!(usize::from(carried) <= largest);
            assert!(largest < 2000 || carried > 30_000, "datagrams of {carried} bytes");
        });
    }
}

/// A name with addresses of both families, of which the node listens on one.
#[test]
fn a_second_address_is_tried() {
    let runtime = runtime();
    for kind in KINDS {
        runtime.block_on(async {
            let keys = Keys::new();
            let mut config = keys.config(P1, any_port());
            config.clients = ClientPolicy::Open;
            let node = Endpoint::bind(config).unwrap();
            let host = format!("localhost:{}", node.local_address().unwrap().port());
            let scheme = if kind == LinkKind::Quic { "quic" } else { "tcp" };
            let address: PeerAddress = format!("{scheme}://{host}").parse().unwrap();
            let client = Endpoint::bind(EndpointConfig::client(Identity::generate().unwrap(), keys.public)).unwrap();
            client.dial(P1, &address).await.unwrap();
            let families: BTreeSet<bool> =
                tokio::net::lookup_host(&host).await.unwrap().map(|address| address.is_ipv6()).collect();
            if families.len() < 2 {
                println!("SKIP the other family: this machine gives localhost one address");
            }
        });
    }
}
