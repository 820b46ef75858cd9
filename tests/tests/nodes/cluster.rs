//! Three daemons in one process, each on a runtime of its own so that it can be killed, and a client that may lie.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tercet_client::{Client, ClientConfig, Inputs, ModelFace, NodeAddress, Options, Prepared};
use tercet_engine::{Profile, choose, split};
use tercet_examples::digits::{self, Digit};
use tercet_model::{Model, Oracle, OracleInput, calibrate, calibration_inputs};
use tercet_net::{
    ByteChannel, ChannelId, ClientMessage, ClientPolicy, Connection, Endpoint, EndpointConfig, Fault, Identity,
    InputShare, LinkKind, LinkProfile, NodeMessage, PartyId, PeerAddress, PublicKey, codec,
};
use tercet_node::{Config, Node, PeerConfig, StartError};
use tokio::runtime::Runtime;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The name under which the digits are shared.
pub(crate) const MODEL: &str = "digits";

/// A model that was shared once for all tests, with what the oracle makes of it.
pub(crate) struct Shared {
    folder: PathBuf,
    pub(crate) model: Model,
    pub(crate) shares: [PathBuf; 3],
    /// Images that the model has not seen.
    pub(crate) digits: Vec<Digit>,
}

pub(crate) fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        // Statics are never dropped: a folder that the next run writes over.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nodes");
        digits::write_model(&folder.join("model")).unwrap();
        let model = Model::load(&folder.join("model")).unwrap();
        let shares = share_model(&model, MODEL, &folder);
        Shared { folder, model, shares, digits: digits::test_split() }
    })
}

/// Shares a model under a name, each part in a folder of its own beneath `folder`.
pub(crate) fn share_model(model: &Model, name: &str, folder: &Path) -> [PathBuf; 3] {
    let ranges = calibrate(model, &calibration_inputs(model)).unwrap();
    let numerics = choose(&model.graph, &ranges, Profile::Fast, false).unwrap();
    let folders = ["p0", "p1", "p2"].map(|party| folder.join(party));
    folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
    split(model, name, numerics, folders.each_ref().map(PathBuf::as_path), |_| ()).unwrap()
}

/// The shares of a fixture under a name, made once for a test program.
pub(crate) fn share_fixture(fixture: &str, name: &str, public_table: bool) -> [PathBuf; 3] {
    static MADE: Mutex<BTreeMap<String, [PathBuf; 3]>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shares) = made.get(name) {
        return shares.clone();
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures");
    let model = Model::load(&fixtures.join(fixture)).unwrap();
    let ranges = calibrate(&model, &calibration_inputs(&model)[..1]).unwrap();
    let numerics = choose(&model.graph, &ranges, Profile::Fast, public_table).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures").join(name);
    let folders = ["p0", "p1", "p2"].map(|party| folder.join(party));
    folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
    let shares = split(&model, name, numerics, folders.each_ref().map(PathBuf::as_path), |_| ()).unwrap();
    made.insert(name.into(), shares.clone());
    shares
}

impl Shared {
    /// A scratch folder beside the shares.
    pub(crate) fn scratch(&self) -> TempDir {
        tempfile::tempdir_in(&self.folder).unwrap()
    }

    pub(crate) fn oracle(&self) -> Oracle {
        Oracle::new(&self.model).unwrap()
    }
}

/// The logits of the float oracle.
pub(crate) fn logits(oracle: &Oracle, digit: &Digit) -> Vec<f32> {
    let patches = shared().model.graph.input.patches(&digit.pixels).unwrap();
    oracle.run(&OracleInput::Patches(patches)).unwrap().output().to_vec()
}

/// Logits from shares are those of the oracle within what fixed-point numbers lose.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], exact: &[f32]) {
    let worst = got.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(got.len() == exact.len() && worst < 0.15, "off by {worst}: {got:?} for {exact:?}");
}

struct Daemon {
    node: Node,
    runtime: Runtime,
}

/// Three nodes and a client's key.
pub(crate) struct Cluster {
    folder: TempDir,
    kind: LinkKind,
    keys: [PublicKey; 3],
    ports: [SocketAddr; 3],
    client_key: PathBuf,
    daemons: [Option<Daemon>; 3],
    /// Where clients run.
    pub(crate) runtime: Runtime,
    tune: fn(&mut Config),
}

impl Cluster {
    /// Nodes that are not started yet; `tune` has the last word on their configuration.
    pub(crate) fn prepare(kind: LinkKind, tune: fn(&mut Config)) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let save = |name: &str| {
            let identity = Identity::generate().unwrap();
            identity.save(&folder.path().join(name)).unwrap();
            identity.public_key()
        };
        let keys = ["p0.key", "p1.key", "p2.key"].map(save);
        save("client.key");
        let client_key = folder.path().join("client.key");
        let ports = [(); 3].map(|()| free_port());
        Cluster { folder, kind, keys, ports, client_key, daemons: [const { None }; 3], runtime: runtime(), tune }
    }

    /// Nodes that run.
    pub(crate) fn start(kind: LinkKind, tune: fn(&mut Config)) -> Cluster {
        let mut cluster = Cluster::prepare(kind, tune);
        PartyId::ALL.into_iter().for_each(|party| cluster.start_node(party));
        cluster
    }

    pub(crate) fn config(&self, party: PartyId) -> Config {
        let at = party.index();
        let identity = self.folder.path().join(format!("p{at}.key"));
        let mut config = Config::new(party, self.ports[at], identity);
        config.profile = LinkProfile::Loopback;
        config.threads = 1;
        config.shares = vec![shared().shares[at].clone()];
        config.clients = ClientPolicy::Listed([self.client_identity().public_key()].into());
        config.round_deadline = Duration::from_secs(10);
        config.peers = [0, 1, 2].map(|index: usize| {
            let address = Some(self.address(PartyId::ALL[index]));
            Some(PeerConfig { key: self.keys[index], address })
        });
        (self.tune)(&mut config);
        config
    }

    pub(crate) fn start_node(&mut self, party: PartyId) {
        let config = self.config(party);
        self.start_with(config).unwrap();
    }

    pub(crate) fn start_with(&mut self, config: Config) -> Result<(), StartError> {
        let (runtime, party) = (runtime(), config.party);
        let node = runtime.block_on(Node::start(config))?;
        self.daemons[party.index()] = Some(Daemon { node, runtime });
        Ok(())
    }

    /// Ends a node without a word, as a crash would.
    pub(crate) fn kill(&mut self, party: PartyId) {
        if let Some(Daemon { node, runtime }) = self.daemons[party.index()].take() {
            drop(node);
            runtime.shutdown_timeout(Duration::from_millis(100));
        }
    }

    pub(crate) fn node(&self, party: PartyId) -> &Node {
        &self.daemons[party.index()].as_ref().expect("a running node").node
    }

    /// Shuts a node down in good order, on its own runtime.
    pub(crate) fn shutdown(&self, party: PartyId, grace: Duration) {
        let daemon = self.daemons[party.index()].as_ref().expect("a running node");
        daemon.runtime.block_on(daemon.node.shutdown(grace));
    }

    pub(crate) fn address(&self, party: PartyId) -> PeerAddress {
        PeerAddress::new(self.kind, self.ports[party.index()])
    }

    pub(crate) fn identity(&self, party: PartyId) -> Identity {
        Identity::load(&self.folder.path().join(format!("p{}.key", party.index()))).unwrap()
    }

    pub(crate) fn keys(&self) -> [Option<PublicKey>; 3] {
        self.keys.map(Some)
    }

    pub(crate) fn client_identity(&self) -> Identity {
        Identity::load(&self.client_key).unwrap()
    }

    pub(crate) async fn client_as(&self, identity: Identity) -> Result<Client, tercet_client::Error> {
        Client::connect(self.client_config(identity)).await
    }

    pub(crate) fn client_config(&self, identity: Identity) -> ClientConfig {
        let nodes =
            PartyId::ALL.map(|party| NodeAddress { key: self.keys[party.index()], address: self.address(party) });
        let mut config = ClientConfig::new(identity, nodes);
        config.profile = LinkProfile::Loopback;
        config.connect_deadline = Duration::from_secs(2);
        config
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_as(self.client_identity()).await.unwrap()
    }

    /// Classifies digits once, without another try.
    pub(crate) async fn classify(&self, client: &Client, digits: &[Digit]) -> Result<Answer, tercet_client::Error> {
        let images: Vec<&[f32]> = digits.iter().map(|digit| &digit.pixels[..]).collect();
        let options = Options { retries: 0, deadline: PATIENCE, max_batch: 64, ..Options::default() };
        let found = client.classify(MODEL, Inputs::Images(&images), &options).await?;
        Ok(Answer { scores: found.classes.into_iter().map(|class| class.scores).collect(), usage: found.usage })
    }

    /// A good request succeeds, and says the same as the oracle.
    pub(crate) async fn assert_works(&self) {
        let client = self.client().await;
        let digit = &shared().digits[..1];
        let answer = self.classify(&client, digit).await.unwrap();
        assert_close(&answer.scores[0], &logits(&shared().oracle(), &digit[0]));
    }

    /// A good request succeeds before long: nodes may still have to find each other.
    pub(crate) async fn assert_recovers(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let tried = match self.client_as(self.client_identity()).await {
                Ok(client) => self.classify(&client, &shared().digits[..1]).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(answer) => {
                    return assert_close(&answer.scores[0], &logits(&shared().oracle(), &shared().digits[0]));
                }
                Err(error) => assert!(std::time::Instant::now() < deadline, "does not recover: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub(crate) struct Answer {
    pub(crate) scores: Vec<Vec<f32>>,
    pub(crate) usage: Vec<tercet_client::RequestUsage>,
}

/// A client without an SDK, that sends what it likes.
pub(crate) struct Raw {
    _endpoint: Endpoint,
    pub(crate) connections: [Connection; 3],
    pub(crate) face: ModelFace,
}

impl Raw {
    pub(crate) async fn connect(cluster: &Cluster) -> Raw {
        Raw::connect_to(cluster, MODEL).await
    }

    pub(crate) async fn connect_to(cluster: &Cluster, model: &str) -> Raw {
        let mut config = EndpointConfig::client(cluster.client_identity(), cluster.keys());
        config.profile = LinkProfile::Loopback;
        let endpoint = Endpoint::bind(config).unwrap();
        let mut connections = Vec::new();
        for party in PartyId::ALL {
            connections.push(endpoint.dial(party, &cluster.address(party)).await.unwrap());
        }
        let connections: [Connection; 3] = connections.try_into().unwrap();
        let mut start_ids = [[0; 16]; 3];
        let mut face = None;
        for (connection, own) in connections.iter().zip(&mut start_ids) {
            let manifest = ask(connection, &ClientMessage::Manifest { model: model.into() }).await;
            let NodeMessage::Manifest { digest, start_id, interface, tokenizer } = manifest else {
                panic!("{manifest:?}")
            };
            *own = start_id;
            let interface = codec::decode(&interface, 1 << 20).unwrap();
            face.get_or_insert_with(|| ModelFace::new(model, digest, interface, tokenizer).unwrap());
        }
        let face = face.expect("three nodes").at_starts(start_ids);
        Raw { _endpoint: endpoint, connections, face }
    }

    pub(crate) fn prepare(&self, digits: &[Digit]) -> Prepared {
        let images: Vec<&[f32]> = digits.iter().map(|digit| &digit.pixels[..]).collect();
        let mut prepared = self.face.prepare(Inputs::Images(&images), &Options::default(), None).unwrap();
        assert_eq!(prepared.len(), 1);
        prepared.swap_remove(0)
    }

    pub(crate) fn message(&self, party: PartyId, request_id: [u8; 16], share: &InputShare) -> ClientMessage {
        ClientMessage::Run {
            request_id,
            start_id: self.face.start_id(party),
            model: self.face.name().into(),
            digest: self.face.digest(),
            deadline_ms: 30_000,
            profile: false,
            share: share.clone(),
        }
    }

    /// Sends each node its part and waits for all answers.
    pub(crate) async fn run(&self, request_id: [u8; 16], shares: &[InputShare; 3]) -> [NodeMessage; 3] {
        let [m0, m1, m2] = PartyId::ALL.map(|party| self.message(party, request_id, &shares[party.index()]));
        let [c0, c1, c2] = &self.connections;
        let (a0, a1, a2) = tokio::join!(ask(c0, &m0), ask(c1, &m1), ask(c2, &m2));
        [a0, a1, a2]
    }

    /// As [`Raw::run`], put together.
    pub(crate) fn open(&self, prepared: &Prepared, answers: [NodeMessage; 3]) -> Vec<Vec<f32>> {
        let shares = answers.map(|answer| match answer {
            NodeMessage::Output { share, .. } => share,
            other => panic!("no output: {other:?}"),
        });
        self.face.open(prepared, &shares).unwrap()
    }
}

/// One question on a channel of its own.
pub(crate) async fn ask(connection: &Connection, message: &ClientMessage) -> NodeMessage {
    let mut channel = open(connection).await;
    channel.send(message).await.unwrap();
    channel.recv(codec::LARGEST_BYTES, PATIENCE).await.unwrap()
}

pub(crate) async fn open(connection: &Connection) -> ByteChannel {
    let id = u128::from_le_bytes(fresh_id());
    connection.open_channel(ChannelId::request(id)).await.unwrap()
}

pub(crate) fn fresh_id() -> [u8; 16] {
    let seed = tercet_ring::Seed::random();
    std::array::from_fn(|at| seed.as_bytes()[at])
}

/// The answer is a refusal that blames `fault` and says `words`.
#[track_caller]
pub(crate) fn assert_refused(answer: &NodeMessage, fault: Fault, words: &str) {
    match answer {
        NodeMessage::Refused { fault: found, reason } if *found == fault && reason.contains(words) => {}
        other => panic!("not refused as {fault:?} with {words:?}: {other:?}"),
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A port that is free for UDP and TCP just now.
pub(crate) fn free_port() -> SocketAddr {
    loop {
        let udp = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = udp.local_addr().unwrap();
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
