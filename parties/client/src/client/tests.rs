//! The client against nodes that answer as each test wants.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tercet_model::Interface;
use tercet_net::{ClientPolicy, Connection, Endpoint, InputShare, NetError, Work, WorkEntry};
use tercet_ring::pack;
use tokio::task::JoinHandle;

use super::*;
use crate::fixture;

mod dying;
mod generating;

/// What a node answers to a message; no answer at all where there is none.
type Script = Arc<dyn Fn(PartyId, ClientMessage) -> Option<Vec<NodeMessage>> + Send + Sync>;

/// Three ports with scripted answers.
struct Nodes {
    dir: tempfile::TempDir,
    keys: [Option<PublicKey>; 3],
    endpoints: [Endpoint; 3],
    accepting: [JoinHandle<()>; 3],
    script: Script,
}

impl Nodes {
    /// Nodes that follow a script, and show that they live.
    fn start(script: impl Fn(PartyId, ClientMessage) -> Option<Vec<NodeMessage>> + Send + Sync + 'static) -> Self {
        Self::with_signs_of_life(move |party, message| match message {
            ClientMessage::Models => Some(vec![NodeMessage::Models(Vec::new())]),
            message => script(party, message),
        })
    }

    /// The same, where the script also says who shows that it lives.
    fn with_signs_of_life(
        script: impl Fn(PartyId, ClientMessage) -> Option<Vec<NodeMessage>> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = PartyId::ALL.map(|party| {
            let identity = Identity::generate().unwrap();
            identity.save(&dir.path().join(party.to_string())).unwrap();
            Some(identity.public_key())
        });
        let script: Script = Arc::new(script);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let [(a, x), (b, y), (c, z)] =
            PartyId::ALL.map(|party| listen(&dir, keys, party, any, script.clone()).unwrap());
        Self { dir, keys, endpoints: [a, b, c], accepting: [x, y, z], script }
    }

    async fn client(&self) -> Result<Client, Error> {
        self.client_with(|config| config).await
    }

    /// A client that is set up with a change.
    async fn client_with(&self, change: impl FnOnce(ClientConfig) -> ClientConfig) -> Result<Client, Error> {
        let node = |party: PartyId| NodeAddress {
            key: self.keys[party.index()].unwrap(),
            address: PeerAddress::new(Default::default(), self.endpoints[party.index()].local_address().unwrap()),
        };
        let config = ClientConfig::new(Identity::generate().unwrap(), PartyId::ALL.map(node));
        Client::connect(change(ClientConfig { profile: LinkProfile::Loopback, ..config })).await
    }

    /// Ends a node: its connections break, and nobody answers at its place.
    async fn stop(&self, party: PartyId) {
        self.accepting[party.index()].abort();
        self.endpoints[party.index()].shutdown("it dies").await;
    }

    /// Stops a node and starts it again at the same place.
    async fn restart(&mut self, party: PartyId) {
        let at = party.index();
        let address = self.endpoints[at].local_address().unwrap();
        self.stop(party).await;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        // Lets go of the old one, whose port is free as soon as its last connection has ended.
        (self.endpoints[at], self.accepting[at]) = self.listen(party, any).unwrap();
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            if let Ok(again) = self.listen(party, address) {
                (self.endpoints[at], self.accepting[at]) = again;
                return;
            }
        }
        panic!("{address} does not become free");
    }

    fn listen(&self, party: PartyId, address: SocketAddr) -> Result<(Endpoint, JoinHandle<()>), NetError> {
        listen(&self.dir, self.keys, party, address, self.script.clone())
    }
}

fn listen(
    dir: &tempfile::TempDir,
    keys: [Option<PublicKey>; 3],
    party: PartyId,
    address: SocketAddr,
    script: Script,
) -> Result<(Endpoint, JoinHandle<()>), NetError> {
    let identity = Identity::load(&dir.path().join(party.to_string())).unwrap();
    let config = EndpointConfig::node(identity, party, address, keys);
    let config = EndpointConfig { clients: ClientPolicy::Open, profile: LinkProfile::Loopback, ..config };
    let endpoint = Endpoint::bind(config)?;
    let listening = endpoint.clone();
    let accepting = tokio::spawn(async move {
        loop {
            let connection = listening.accept().await;
            tokio::spawn(serve(connection, party, script.clone()));
        }
    });
    Ok((endpoint, accepting))
}

async fn serve(connection: Connection, party: PartyId, script: Script) {
    while let Ok((_, mut channel)) = connection.accept_channel().await {
        let script = script.clone();
        tokio::spawn(async move {
            // A generation is a conversation, everything else one question.
            while let Ok(message) = channel.receiver.recv(codec::LARGEST_BYTES, Duration::from_secs(10)).await {
                let Some(answers) = script(party, message) else {
                    // Until the client leaves.
                    let _ = channel.receiver.next_bytes(0, Duration::from_secs(60)).await;
                    return;
                };
                let goes_on = matches!(answers.last(), Some(NodeMessage::Step { .. }));
                for answer in answers {
                    if matches!(answer, NodeMessage::Table(_)) {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    channel.send(&answer).await.unwrap();
                }
                if !goes_on {
                    break;
                }
            }
            channel.sender.finish();
            let _ = channel.receiver.next_bytes(0, Duration::from_secs(10)).await;
        });
    }
}

/// A node's part of the scores (5, 7) for every image, under masks 11 and 22.
fn scores(party: PartyId, share: &InputShare) -> NodeMessage {
    let packed = |plain: [u64; 2]| {
        let mut out = Vec::new();
        pack::pack(&plain.repeat(share.batch as usize), 20, &mut out);
        out
    };
    let m = packed([(5 << 10) + 33, (7 << 10) + 33]);
    let (l1, l2) = (packed([11; 2]), packed([22; 2]));
    let planes = match party {
        PartyId::P0 => [l1, l2],
        PartyId::P1 => [m, l1],
        PartyId::P2 => [m, l2],
    };
    let mut bytes = [[0; 3]; 3];
    bytes[party.index()][(party.index() + 1) % 3] = 100 + party.index() as u64;
    let usage = Usage { rounds: 3, bytes, ..Usage::default() };
    NodeMessage::Output { share: OutputShare { planes }, usage, profile: None }
}

/// A well-behaved answer of a model with this face.
fn good(interface: &Interface, digest: u8, party: PartyId, message: &ClientMessage) -> NodeMessage {
    match message {
        ClientMessage::Manifest { .. } => fixture::answer(interface, digest),
        ClientMessage::Run { share, .. } => scores(party, share),
        other => panic!("{other:?}"),
    }
}

fn refused(fault: Fault) -> NodeMessage {
    NodeMessage::Refused { fault, reason: "so".into() }
}

const IMAGES: Inputs<'_> = Inputs::Images(&[&[0.5; 16], &[0.25; 16], &[1.0; 16]]);

#[tokio::test]
async fn an_answer_is_put_together_from_three() {
    let nodes = Nodes::start(|party, message| Some(vec![good(&fixture::images(), 7, party, &message)]));
    let client = nodes.client().await.unwrap();
    let options = Options { max_batch: 2, deadline: Duration::MAX, ..Options::default() };
    let found = client.classify("small", IMAGES, &options).await.unwrap();
    assert_eq!(found.classes.len(), 3);
    assert!(found.classes.iter().all(|class| class.label == "dog" && class.scores == [5.0, 7.0]));
    assert_eq!(found.usage.iter().map(|used| used.batch).collect::<Vec<_>>(), [2, 1]);
    let used = &found.usage[0];
    assert_eq!((used.rounds, used.bytes), (3, [[0, 100, 0], [0, 0, 101], [102, 0, 0]]));
    assert!(used.sent.iter().all(|&bytes| bytes > 0) && used.sent[0] < used.sent[1]);
    let error = client.embed("small", &["text"], &options).await.unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error}");
    client.close().await;
}

#[tokio::test]
async fn copies_that_differ_are_not_asked_for_again() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let nodes = Nodes::start(|party, message| {
        let mut answer = good(&fixture::images(), 7, party, &message);
        if let (NodeMessage::Output { share, .. }, PartyId::P2) = (&mut answer, party) {
            RUNS.fetch_add(1, Ordering::SeqCst);
            share.planes[1][0] ^= 4;
        }
        Some(vec![answer])
    });
    let client = nodes.client().await.unwrap();
    let error = client.classify("small", IMAGES, &Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Disagreement { parties: [PartyId::P0, PartyId::P2], .. }), "{error}");
    assert_eq!(RUNS.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_profile_is_given_if_asked_for_and_makes_sense() {
    type Lie = fn(PartyId, bool) -> Option<WorkProfile>;
    fn of(parent: u32) -> WorkProfile {
        let root = WorkEntry { wall_ns: [5; Work::COUNT], ..WorkEntry::default() };
        WorkProfile {
            changes: 3,
            entries: vec![root, WorkEntry { name: "layer0/add".into(), parent, ..WorkEntry::default() }],
        }
    }
    let honest: Lie = |_, asked| asked.then(|| of(0));
    // What a node sends, and what the client says to it where it was asked and where it was not.
    let lies: [(Lie, Option<&str>, Option<&str>); 4] = [
        (honest, None, None),
        (|party, asked| (asked || party == PartyId::P2).then(|| of(0)), None, Some("nobody asked for")),
        (|party, asked| (asked && party != PartyId::P1).then(|| of(0)), Some("no profile"), None),
        (|party, asked| asked.then(|| of(u32::from(party == PartyId::P0))), Some("before the one around it"), None),
    ];
    for (lie, asked, unasked) in lies {
        let nodes = Nodes::start(move |party, message| {
            let mut answer = good(&fixture::images(), 7, party, &message);
            if let (NodeMessage::Output { profile, .. }, ClientMessage::Run { profile: asked, .. }) =
                (&mut answer, message)
            {
                *profile = lie(party, asked);
            }
            Some(vec![answer])
        });
        let client = nodes.client().await.unwrap();
        for (profile, complaint) in [(true, asked), (false, unasked)] {
            let options = Options { profile, ..Options::default() };
            match (client.classify("small", IMAGES, &options).await, complaint) {
                (Ok(found), None) => {
                    let expected = profile.then(|| [(); 3].map(|()| of(0)));
                    assert!(found.usage.iter().all(|used| used.profiles == expected));
                }
                (Err(error), Some(words)) => {
                    let protocol = matches!(error, Error::Node { error: NetError::Protocol { .. }, .. });
                    assert!(protocol && error.to_string().contains(words), "{error}");
                }
                (found, complaint) => panic!("{found:?} where {complaint:?}"),
            }
        }
    }
}

#[tokio::test]
async fn another_try_is_another_request() {
    static SEEN: Mutex<Vec<([u8; 16], [u8; 32])>> = Mutex::new(Vec::new());
    let nodes = Nodes::start(|party, message| {
        let answer = good(&fixture::images(), 7, party, &message);
        let (ClientMessage::Run { request_id, share, .. }, PartyId::P1) = (message, party) else {
            return Some(vec![answer]);
        };
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push((request_id, share.first_seed.unwrap()));
        Some(vec![if seen.len() == 1 { refused(Fault::Nodes) } else { answer }])
    });
    let client = nodes.client().await.unwrap();
    client.classify("small", IMAGES, &Options::default()).await.unwrap();
    let seen = std::mem::take(&mut *SEEN.lock().unwrap());
    assert_eq!(seen.len(), 2);
    assert!(seen[0].0 != seen[1].0 && seen[0].1 != seen[1].1, "numbers and masks are drawn anew");
}

#[tokio::test]
async fn the_request_that_is_at_fault_is_named_although_others_complain() {
    let nodes = Nodes::start(|party, message| match (&message, party) {
        (ClientMessage::Run { .. }, PartyId::P0) => Some(vec![refused(Fault::Nodes)]),
        // Says nothing at all.
        (ClientMessage::Run { .. }, PartyId::P1) => None,
        (ClientMessage::Run { .. }, PartyId::P2) => {
            std::thread::sleep(Duration::from_millis(100));
            Some(vec![refused(Fault::Request)])
        }
        _ => Some(vec![good(&fixture::images(), 7, party, &message)]),
    });
    let client = nodes.client().await.unwrap();
    let error = client.classify("small", IMAGES, &Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { party: PartyId::P2, fault: Fault::Request, .. }), "{error}");
}

#[tokio::test]
async fn a_model_that_was_shared_anew_is_looked_at_anew() {
    static DIGEST: AtomicU8 = AtomicU8::new(7);
    let nodes = Nodes::start(|party, message| match &message {
        ClientMessage::Run { digest, .. } if digest[0] != 8 => Some(vec![refused(Fault::Request)]),
        _ => Some(vec![good(&fixture::images(), DIGEST.load(Ordering::SeqCst), party, &message)]),
    });
    let client = nodes.client().await.unwrap();
    assert_eq!(client.model("small").await.unwrap().digest(), [7; 32]);
    DIGEST.store(8, Ordering::SeqCst);
    assert_eq!(client.classify("small", IMAGES, &Options::default()).await.unwrap().classes.len(), 3);
    assert_eq!(client.model("small").await.unwrap().digest(), [8; 32]);
}

#[tokio::test]
async fn a_node_that_came_back_is_found_again() {
    let mut nodes = Nodes::start(|party, message| Some(vec![good(&fixture::images(), 7, party, &message)]));
    let client = nodes.client().await.unwrap();
    let options = Options::default();
    client.classify("small", IMAGES, &options).await.unwrap();
    nodes.restart(PartyId::P1).await;
    client.classify("small", IMAGES, &options).await.unwrap();
}

#[tokio::test]
async fn nobody_waits_beyond_the_deadline() {
    let nodes = Nodes::start(|party, message| match (&message, party) {
        (ClientMessage::Run { .. }, PartyId::P2) => None,
        _ => Some(vec![good(&fixture::images(), 7, party, &message)]),
    });
    let client = nodes.client().await.unwrap();
    let options = Options { deadline: Duration::from_millis(300), ..Options::default() };
    let error = client.classify("small", IMAGES, &options).await.unwrap_err();
    let late = matches!(error, Error::Deadline { .. } | Error::Node { party: PartyId::P2, .. });
    assert!(late, "{error}");
}

#[tokio::test]
async fn a_public_table_comes_in_pieces_and_no_longer_than_it_is() {
    let table: Vec<u8> = (0..40).collect();
    let pieces = Arc::new(Mutex::new(vec![table[..24].to_vec(), table[24..].to_vec()]));
    let sent = pieces.clone();
    let nodes = Nodes::start(move |party, message| match message {
        ClientMessage::Table { .. } => Some(sent.lock().unwrap().iter().cloned().map(NodeMessage::Table).collect()),
        message => Some(vec![good(&fixture::public_words(32), 7, party, &message)]),
    });
    let client = nodes.client().await.unwrap();
    let face = client.model("small").await.unwrap();
    assert_eq!(*client.table(&face).await.unwrap(), table);
    let client = nodes.client().await.unwrap();
    pieces.lock().unwrap()[1].push(0);
    assert!(matches!(client.table(&face).await, Err(Error::Node { .. })));
    // Byte by byte, each in time, it would take two seconds.
    *pieces.lock().unwrap() = table.iter().map(|byte| vec![*byte]).collect();
    let message = encoded(&ClientMessage::Table { model: "small".into() }).unwrap();
    let late = client.0.links.table(PartyId::P1, message, table.len(), Duration::from_millis(300)).await;
    assert!(matches!(late, Err(Error::Deadline { waited_ms: 300 })), "{late:?}");
}

/// The length that a node announces is held to what the question can have as an answer, before
/// anything is kept of it.
#[tokio::test]
async fn an_answer_is_no_longer_than_it_can_be() {
    let nodes = Nodes::with_signs_of_life(|party, message| match message {
        ClientMessage::Models => {
            let name = "m".repeat(if party == PartyId::P1 { QUESTION_BYTES } else { 1 });
            Some(vec![NodeMessage::Models(vec![ModelCard { name, digest: [7; 32], profile: "fast".into() }])])
        }
        message => {
            let mut answer = good(&fixture::images(), 7, party, &message);
            if let (NodeMessage::Output { share, .. }, PartyId::P2) = (&mut answer, party) {
                share.planes[0].resize(1 << 15, 0);
            }
            Some(vec![answer])
        }
    });
    let client = nodes.client().await.unwrap();
    let long = [
        (PartyId::P1, client.models().await.map(drop)),
        (PartyId::P2, client.classify("small", IMAGES, &Options::default()).await.map(drop)),
    ];
    for (liar, answer) in long {
        let error = answer.unwrap_err();
        let named = matches!(&error, Error::Node { party, error: NetError::Protocol { .. }, .. } if *party == liar);
        assert!(named && error.to_string().contains("over the limit"), "{error}");
    }
}
