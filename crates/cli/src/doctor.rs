//! `tercet doctor`: what would keep a node or a client from working, and the mend for it.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use serde::Serialize;
use tercet_client::{Client, ClientConfig, Identity, PartyId};
use tercet_engine::ModelShare;
use tercet_net::{Connection, Endpoint, EndpointConfig, LinkProfile, NetError, PeerAddress, Refusal};
use tercet_node::Config;
use tercet_ring::simd::Isa;

use crate::connection::{NodesFile, runtime};
use crate::screen::{bytes, say, say_json, start_log};

/// Socket buffers that the links ask for.
const SOCKET_BUFFER_BYTES: u64 = 8 << 20;
/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// No clock is right that shows an earlier time: 2026-01-01.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// Look for what would keep a node or a client from working.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The configuration of the node on this machine.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The file of a client: asks its nodes how they are.
    #[arg(long, value_name = "FILE", env = "TERCET_NODES")]
    nodes: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// It works, but look at it.
    Doubtful,
    Bad,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    /// What was found, and what would mend it.
    detail: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, verdict: Verdict, detail: impl Into<String>) {
        self.0.push(Finding { what: what.into(), verdict, detail: detail.into() });
    }

    /// Good or bad, by the outcome of a check; its value where it is good.
    fn check<T, E: std::fmt::Display>(
        &mut self,
        what: impl Into<String>,
        found: Result<T, E>,
        detail: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match found {
            Ok(value) => {
                self.add(what, Verdict::Good, detail(&value));
                Some(value)
            }
            Err(error) => {
                self.add(what, Verdict::Bad, error.to_string());
                None
            }
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    start_log("error");
    let mut findings = Findings::default();
    machine(&mut findings);
    if let Some(config) = &args.config {
        node(&mut findings, config)?;
    }
    if let Some(nodes) = &args.nodes {
        client(&mut findings, nodes)?;
    }
    let bad = findings.0.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    if args.json {
        say_json(&findings.0)?;
    } else {
        for Finding { what, verdict, detail } in &findings.0 {
            let mark = match verdict {
                Verdict::Good => "good",
                Verdict::Doubtful => "note",
                Verdict::Bad => "BAD ",
            };
            say(format_args!("{mark}  {what}: {}", detail.replace('\n', "\n      ")));
        }
        if args.config.is_none() && args.nodes.is_none() {
            say("      this machine alone was looked at; give --config for a node, --nodes for a client");
        }
    }
    if bad > 0 {
        bail!("{bad} of {} checks failed; each says what would mend it", findings.0.len());
    }
    Ok(())
}

fn machine(findings: &mut Findings) {
    let isa = Isa::detect();
    let (verdict, detail) = match isa {
        Isa::Portable => (Verdict::Doubtful, "neither AVX2 nor AVX-512: arithmetic takes several times longer".into()),
        _ => (Verdict::Good, format!("{isa:?}")),
    };
    findings.add("instruction set", verdict, detail);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    findings.add("cores", Verdict::Good, cores.to_string());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if now < EARLIEST {
        findings.add("clock", Verdict::Bad, "it shows a time before 2026; set it (timedatectl set-ntp true)");
    } else {
        findings.add("clock", Verdict::Good, format!("{} s since 1970", now.as_secs()));
    }
    if let Some(most) = read_number("/proc/sys/net/core/rmem_max") {
        let enough = most >= SOCKET_BUFFER_BYTES;
        let mend = format!("; fast links lose packets, run `sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES}`");
        let detail = format!("{}{}", bytes(most), if enough { "" } else { &mend });
        findings.add("socket buffer", if enough { Verdict::Good } else { Verdict::Doubtful }, detail);
    }
}

fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn node(findings: &mut Findings, path: &Path) -> Result<()> {
    let loaded = Config::load(Some(path), &[]);
    let Some(loaded) = findings
        .check("configuration", loaded, |loaded| format!("{}, {} values", loaded.config.party, loaded.values.len()))
    else {
        return Ok(());
    };
    let config = loaded.config;
    let identity = findings.check("key file", Identity::load(&config.identity), |identity| {
        format!("{}, readable by its owner alone", identity.public_key().short())
    });
    port(findings, config.listen);
    shares(findings, &config);
    if let Some(identity) = identity {
        runtime()?.block_on(peers(findings, identity, &config))?;
    }
    Ok(())
}

/// A port is good when it is free, and also when the node itself has it.
fn port(findings: &mut Findings, address: SocketAddr) {
    let taken = UdpSocket::bind(address).map(drop).and_then(|()| TcpListener::bind(address).map(drop));
    match taken {
        Ok(()) => findings.add("port", Verdict::Good, format!("{address} is free for UDP and TCP")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => findings.add(
            "port",
            Verdict::Doubtful,
            format!("{address} is in use: by this node if it runs, else stop what uses it or change `listen`"),
        ),
        Err(error) => findings.add("port", Verdict::Bad, format!("{address}: {error}; change `listen`")),
    }
}

fn shares(findings: &mut Findings, config: &Config) {
    let mut files = Vec::new();
    for path in &config.shares {
        match crate::shares::files(path) {
            Ok(found) => files.extend(found),
            Err(_) => files.push(path.clone()),
        }
    }
    files.sort();
    if files.is_empty() {
        findings.add("shares", Verdict::Bad, "no share of a model; set `shares` to what `tercet share` wrote");
    }
    let opened: Vec<_> = files.into_iter().map(|file| (ModelShare::open(&file), file)).collect();
    let digests: Vec<[u8; 32]> =
        opened.iter().filter_map(|(share, _)| share.as_ref().ok()).map(ModelShare::digest).collect();
    for (share, file) in opened {
        let what = format!("share {}", file.display());
        let stands =
            |share: &ModelShare| share.manifest().base.as_ref().is_none_or(|base| digests.contains(&base.digest));
        match share {
            Ok(share) if share.party() != config.party => {
                let detail = format!("it is the share of {}; this node needs that of {}", share.party(), config.party);
                findings.add(what, Verdict::Bad, detail);
            }
            Ok(share) if !stands(&share) => {
                let base = share.manifest().base.as_ref().map_or("", |base| base.name.as_str());
                let detail = format!("it is an adapter of model {base:?}, of which that very sharing is not here");
                findings.add(what, Verdict::Bad, detail);
            }
            share => {
                findings.check(what, share, |share| {
                    let profile = share.manifest().numerics.profile;
                    format!("{} ({profile}), {}, checksum right", share.manifest().name, bytes(share.len_bytes()))
                });
            }
        }
    }
}

/// Reaches the other nodes as a stranger that holds this node's key: the running node is not disturbed.
async fn peers(findings: &mut Findings, identity: Identity, config: &Config) -> Result<()> {
    let keys = config.peers.each_ref().map(|peer| peer.as_ref().map(|peer| peer.key));
    let endpoint = EndpointConfig { profile: config.profile, ..EndpointConfig::client(identity, keys) };
    let endpoint = Endpoint::bind(EndpointConfig { connect_deadline: PATIENCE, ..endpoint })?;
    for party in config.party.others() {
        match config.peers[party.index()].as_ref().and_then(|peer| peer.address.as_ref()) {
            Some(address) => _ = reach(findings, &endpoint, party, address, false, config.profile).await,
            None => findings.add(format!("node {party}"), Verdict::Good, "has no address here: it dials this node"),
        }
    }
    endpoint.shutdown("only looking").await;
    Ok(())
}

/// Dials a node; `known` says whether it should let this key in, and not only answer.
async fn reach(
    findings: &mut Findings,
    endpoint: &Endpoint,
    party: PartyId,
    address: &PeerAddress,
    known: bool,
    profile: LinkProfile,
) -> bool {
    let reached = match endpoint.dial(party, address).await {
        Ok(connection) => {
            path(findings, &connection, party, profile).await;
            Ok(())
        }
        // It has proved its key before it refused.
        Err(NetError::Refused { refusal: Refusal::Stranger, .. }) if !known => Ok(()),
        Err(error @ NetError::Refused { refusal: Refusal::Stranger, .. }) => {
            Err(format!("{error}; put this client's key (tercet card) on its list `clients`"))
        }
        Err(error) => Err(format!("{error}; is it running, is the address right, does a firewall drop UDP?")),
    };
    let reached = findings
        .check(format!("node {party}"), reached, |()| format!("reached at {address}, with the key listed for it"));
    reached.is_some()
}

/// Whether the path carries the datagrams that the profile expects: the connection has a moment to
/// find out.
async fn path(findings: &mut Findings, connection: &Connection, party: PartyId, profile: LinkProfile) {
    const MOMENT: Duration = Duration::from_millis(500);
    let Some(_) = connection.datagram_bytes() else { return };
    tokio::time::sleep(MOMENT).await;
    let (carried, expected) = (connection.datagram_bytes().unwrap_or(0), profile.datagram_bytes());
    if carried < expected {
        let said =
            format!("datagrams of {carried} bytes; profile {profile} expects {expected}: lan1500 or wan may be right");
        findings.add(format!("path to {party}"), Verdict::Doubtful, said);
    }
}

fn client(findings: &mut Findings, path: &Path) -> Result<()> {
    let open = || NodesFile::read(path).and_then(NodesFile::client);
    let Some(config) = findings.check("client file", open(), |config| config.identity.public_key().short()) else {
        return Ok(());
    };
    // A key is not to be copied: the second connection reads it again.
    let second = open()?;
    runtime()?.block_on(async {
        let keys = config.nodes.each_ref().map(|node| Some(node.key));
        let profile = config.profile;
        let endpoint = EndpointConfig { profile, ..EndpointConfig::client(config.identity, keys) };
        let endpoint = Endpoint::bind(EndpointConfig { connect_deadline: PATIENCE, ..endpoint })?;
        let mut all = true;
        for (party, node) in PartyId::ALL.into_iter().zip(&config.nodes) {
            all &= reach(findings, &endpoint, party, &node.address, true, profile).await;
        }
        endpoint.shutdown("only looking").await;
        if all {
            nodes(findings, second).await;
        }
        Ok(())
    })
}

/// Asks nodes that were reached how they are.
async fn nodes(findings: &mut Findings, config: ClientConfig) {
    let Some(client) = findings.check("client", Client::connect(config).await, |_| "let in by all three".into()) else {
        return;
    };
    for party in PartyId::ALL {
        let status = client.status(party).await;
        let Some(status) = findings.check(format!("status of {party}"), status, |status| {
            format!(
                "{} for {} s, {} sessions done and {} failed, {} waiting, peak memory {}",
                status.software,
                status.uptime_s,
                status.sessions_done,
                status.sessions_failed,
                status.waiting,
                bytes(status.peak_rss_bytes)
            )
        }) else {
            continue;
        };
        for peer in status.peers.iter().filter(|peer| !peer.connected) {
            findings.add(format!("{party} and {}", peer.party), Verdict::Bad, format!("not connected: {}", peer.place));
        }
    }
    findings.check("models", client.models().await, |models| match models.as_slice() {
        [] => "none that all three nodes serve alike; share one and give each node its part".into(),
        models => models.iter().map(|m| format!("{} ({})", m.name, m.profile)).collect::<Vec<_>>().join(", "),
    });
    client.close().await;
}
