//! Three node processes on this machine, with fresh keys, for as long as a demonstration or a measurement lasts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tercet_client::{Client, Identity, LinkProfile, NodeAddress};
use tercet_net::{LinkKind, PartyId, PeerAddress, secret_file};

use crate::connection::{NodesFile, Peers};

/// How long three nodes may take to start and find each other.
const START: Duration = Duration::from_secs(180);
/// How long a node may take to end by itself.
const END: Duration = Duration::from_secs(5);

/// How the nodes are set up, beside their keys and addresses.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// Slows the links between them down: the text of a [`tercet_net::LinkShape`].
    pub(crate) shape: Option<&'a str>,
    /// The folder of each party's share files; without them, its own folder.
    pub(crate) shares: Option<[PathBuf; 3]>,
    /// More keys of every node's file, whose values are numbers.
    pub(crate) numbers: &'a [(&'a str, u64)],
}

/// The processes; they end with this value, and with this program in any case.
pub(crate) struct Cluster {
    dir: PathBuf,
    nodes: Vec<Child>,
}

impl Cluster {
    /// Writes keys and configurations into `dir` and its folders p0, p1 and p2, and starts the nodes.
    pub(crate) fn start(dir: &Path, setup: &Setup<'_>) -> Result<Self> {
        let addresses = free_addresses()?;
        let mut keys = Vec::new();
        for party in PartyId::ALL {
            let folder = dir.join(format!("p{}", party.index()));
            secret_file::create_folder(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let identity = Identity::generate()?;
            identity.save(&folder.join("node.key"))?;
            keys.push(identity.public_key());
        }
        let client = Identity::generate()?;
        client.save(&dir.join("client.key"))?;
        let card = |party: PartyId| NodeAddress {
            key: keys[party.index()],
            address: PeerAddress::new(LinkKind::Quic, addresses[party.index()]),
        };
        let peers = Peers { p0: card(PartyId::P0), p1: card(PartyId::P1), p2: card(PartyId::P2) };
        let (identity, profile) = ("client.key".into(), LinkProfile::Loopback);
        let nodes = NodesFile { identity, profile, connect_ms: None, public_gate: true, peers };
        secret_file::write_new(&dir.join("nodes.toml"), toml::to_string(&nodes)?.as_bytes())?;
        for party in PartyId::ALL {
            let shares = setup.shares.as_ref().map_or(Path::new("."), |folders| &folders[party.index()]);
            let shares = shares.to_str().context("the folder of the shares has no name in Unicode")?;
            let mut text = format!(
                "party = \"p{}\"\nlisten = \"{}\"\nprofile = \"loopback\"\nidentity = \"node.key\"\n\
                 clients = [\"{}\"]\nshares = [{}]\n",
                party.index(),
                addresses[party.index()],
                client.public_key(),
                toml::Value::from(shares)
            );
            if let Some(shape) = setup.shape {
                text += &format!("shape = {}\n", toml::Value::from(shape));
            }
            for (key, value) in setup.numbers {
                text += &format!("{key} = {value}\n");
            }
            for peer in party.others() {
                let NodeAddress { key, address } = card(peer);
                text += &format!("\n[peers.p{}]\nkey = \"{key}\"\naddress = \"{address}\"\n", peer.index());
            }
            secret_file::write_new(&dir.join(format!("p{}/node.toml", party.index())), text.as_bytes())?;
        }
        let mut cluster = Self { dir: dir.to_owned(), nodes: Vec::new() };
        for party in PartyId::ALL {
            cluster.spawn(party)?;
        }
        Ok(cluster)
    }

    fn spawn(&mut self, party: PartyId) -> Result<()> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let log = secret_file::create_new(&self.log(party))?;
        let node = Command::new(program)
            .args(["node", "run", "--with-parent", "--config"])
            .arg(self.dir.join(format!("p{}/node.toml", party.index())))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start the process of {party}"))?;
        self.nodes.push(node);
        Ok(())
    }

    fn log(&self, party: PartyId) -> PathBuf {
        self.dir.join(format!("p{}/node.log", party.index()))
    }

    /// Process numbers, by party.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.nodes.iter().map(Child::id).collect()
    }

    /// A client of the nodes, once all three serve `model` and are connected to each other.
    pub(crate) async fn client(&mut self, model: &str) -> Result<Client> {
        let begun = Instant::now();
        loop {
            self.check_alive()?;
            let trouble = match ready(&self.dir, model).await {
                Ok(client) => return Ok(client),
                Err(trouble) => trouble,
            };
            if begun.elapsed() > START {
                return Err(trouble.context("the nodes do not get ready"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Fails where a node has ended, with the last line of its log.
    fn check_alive(&mut self) -> Result<()> {
        for (party, node) in PartyId::ALL.into_iter().zip(&mut self.nodes) {
            if let Some(status) = node.try_wait()? {
                let log = std::fs::read_to_string(self.dir.join(format!("p{}/node.log", party.index())));
                let log = log.unwrap_or_default();
                bail!("{party} ended ({status}): {}", log.lines().last().unwrap_or("it said nothing"));
            }
        }
        Ok(())
    }
}

async fn ready(dir: &Path, model: &str) -> Result<Client> {
    let client = Client::connect(NodesFile::read(&dir.join("nodes.toml"))?.client()?).await?;
    for party in PartyId::ALL {
        let status = client.status(party).await?;
        if !status.models.iter().any(|card| card.name == model) {
            bail!("{party} does not serve {model}");
        }
        if let Some(peer) = status.peers.iter().find(|peer| !peer.connected) {
            bail!("{party} is not connected to {}: {}", peer.party, peer.place);
        }
    }
    Ok(client)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The end of their standard input tells the nodes to stop.
        self.nodes.iter_mut().for_each(|node| drop(node.stdin.take()));
        let begun = Instant::now();
        for node in &mut self.nodes {
            while begun.elapsed() < END && matches!(node.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
            // Fails where the process has ended, as it should have.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Three ports that are free for UDP and TCP.
fn free_addresses() -> Result<[SocketAddr; 3]> {
    const TRIES: usize = 100;
    let mut held = Vec::new();
    for _ in 0..TRIES {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no free UDP port on 127.0.0.1")?;
        let address = udp.local_addr()?;
        if let Ok(tcp) = TcpListener::bind(address) {
            held.push((address, udp, tcp));
        }
        if let [a, b, c] = held.as_slice() {
            return Ok([a.0, b.0, c.0]);
        }
    }
    bail!("no three free ports on 127.0.0.1")
}
