//! How a node is set up: defaults, then a TOML file, then `TERCET_NODE_*` variables, then flags; each value knows whence it
//! came.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::providers::{Env, Format, Toml};
use figment::{Figment, Provider};
use tercet_net::{ClientPolicy, LinkProfile, LinkShape, PartyId, PeerAddress, PublicKey};

use crate::reader::{Pair, Reader, dotted, text_value};

/// What variables of the environment begin with.
pub(crate) const ENV_PREFIX: &str = "TERCET_NODE_";

/// Every key outside `peers`, with its default and what it means.
pub const KEYS: &[(&str, Option<&str>, &str)] = &[
    ("party", None, "which party this node is: p0 (helper), p1 (lead evaluator) or p2 (evaluator)"),
    ("listen", Some("127.0.0.1:7411"), "address and port, for QUIC and for TLS over TCP"),
    ("link", Some("quic"), "how peers without a scheme in their address are dialled: quic or tcp"),
    ("profile", Some("wan"), "the network between the nodes: loopback, jumbo, lan1500 or wan"),
    ("identity", None, "key file of this node (tercet keygen)"),
    ("clients", None, "public keys of the clients that are let in, or \"anyone\""),
    ("shares", None, "share files of models, or directories of them"),
    ("threads", Some("0"), "worker threads for arithmetic; 0 takes one for each core"),
    ("max_sessions", Some("2"), "sessions that run at once"),
    ("max_batch", Some("32"), "inputs that run together in one session; the smallest of the three nodes counts"),
    ("max_queue", Some("256"), "requests that may wait, and generations that may be alive"),
    ("queue_mib", Some("512"), "memory that what clients send may take while it comes and waits"),
    ("max_clients", Some("256"), "clients that may be connected"),
    ("memory_mib", Some("4096"), "working memory that all sessions together may take, beside the weights"),
    ("cache_mib", Some("4096"), "memory that the keys and values of all generations together may take"),
    ("round_deadline_ms", Some("30000"), "how long a peer may be silent within a session"),
    ("connect_deadline_ms", Some("10000"), "how long a connection may take to be established"),
    ("request_deadline_ms", Some("300000"), "the longest that a request may wait, whatever its client says"),
    ("generation_deadline_ms", Some("600000"), "the longest that a generation may last, whatever its client says"),
    ("idle_deadline_ms", Some("60000"), "how long a generation waits for its client between steps"),
    ("grace_ms", Some("30000"), "how long running sessions are given when the node is told to stop"),
    ("shape", Some("none"), "a slower link to imitate, for measurements: none, lan, metro, wan, or like 2ms,1gbit"),
];

/// How one node is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which party it is.
    pub party: PartyId,
    /// Its port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The kind of network between the nodes.
    pub profile: LinkProfile,
    /// Its key file.
    pub identity: PathBuf,
    /// The nodes, by party; its own entry may be there or not.
    pub peers: [Option<PeerConfig>; 3],
    /// Who may be a client.
    pub clients: ClientPolicy,
    /// Share files, or directories of them.
    pub shares: Vec<PathBuf>,
    /// Worker threads for arithmetic; 0 takes one for each core.
    pub threads: usize,
    /// Sessions that run at once.
    pub max_sessions: usize,
    /// Inputs that run together in one session.
    pub max_batch: usize,
    /// Requests that may wait, and generations that may be alive.
    pub max_queue: usize,
    /// Memory for what clients send, while it comes and waits, in bytes.
    pub queue_bytes: u64,
    /// Clients that may be connected.
    pub max_clients: usize,
    /// Working memory of all sessions together, in bytes.
    pub memory_bytes: u64,
    /// Memory for the keys and values of all generations together, in bytes.
    pub cache_bytes: u64,
    /// How long a peer may be silent within a session.
    pub round_deadline: Duration,
    /// How long a connection may take to be established.
    pub connect_deadline: Duration,
    /// The longest that a request may wait.
    pub request_deadline: Duration,
    /// The longest that a generation may last.
    pub generation_deadline: Duration,
    /// How long a generation waits for its client between steps.
    pub idle_deadline: Duration,
    /// How long running sessions are given when the node is told to stop.
    pub grace: Duration,
    /// The link that this node's packets are held to, for measurements; all nodes set the same.
    pub shape: LinkShape,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its public key.
    pub key: PublicKey,
    /// Where it listens; a node dials those parties that come after it.
    pub address: Option<PeerAddress>,
}

impl Config {
    /// A node with the defaults, no peers, no clients and no models.
    pub fn new(party: PartyId, listen: SocketAddr, identity: PathBuf) -> Config {
        Config {
            party,
            listen,
            profile: LinkProfile::default(),
            identity,
            peers: [const { None }; 3],
            clients: ClientPolicy::Listed(BTreeSet::new()),
            shares: Vec::new(),
            threads: 0,
            max_sessions: 2,
            max_batch: 32,
            max_queue: 256,
            queue_bytes: 512 << 20,
            max_clients: 256,
            memory_bytes: 4 << 30,
            cache_bytes: 4 << 30,
            round_deadline: Duration::from_secs(30),
            connect_deadline: Duration::from_secs(10),
            request_deadline: Duration::from_secs(300),
            generation_deadline: Duration::from_secs(600),
            idle_deadline: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            shape: LinkShape::NONE,
        }
    }

    /// Reads the configuration: defaults, the file, the environment, then `overrides` (key and value, as text). Relative
    /// paths in the file are relative to the file.
    ///
    /// # Errors
    /// Everything that is wrong, at once, by key.
    pub fn load(path: Option<&Path>, overrides: &[(String, String)]) -> Result<Loaded, ConfigError> {
        let mut figment = Figment::new();
        for (key, default, _) in KEYS {
            if let Some(default) = default {
                figment =
                    figment.merge(Pair { source: "default".into(), key: (*key).into(), value: text_value(default) });
            }
        }
        if let Some(path) = path {
            let unusable = |what: String| {
                let (key, source) = ("configuration".into(), format!("file {}", path.display()));
                ConfigError { problems: vec![Problem { key, source, what }] }
            };
            std::fs::File::open(path).map_err(|error| unusable(error.to_string()))?;
            let file = Toml::file_exact(path);
            file.data().map_err(|error| unusable(error.to_string().trim().to_owned()))?;
            figment = figment.merge(file);
        }
        let variables = Env::prefixed(ENV_PREFIX).ignore(&["config", "log"]);
        figment = figment.merge(variables.map(|key| dotted(key.as_str()).into()));
        for (key, value) in overrides {
            figment = figment.merge(Pair { source: "flag".into(), key: key.clone(), value: text_value(value) });
        }
        Reader::new(figment).read()
    }
}

/// A configuration that was read, and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Its values in the order of [`KEYS`], peers last.
    pub values: Vec<Setting>,
}

/// One value and its source.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// The key, with dots.
    pub key: String,
    /// The value as text.
    pub value: String,
    /// `default`, the file, the variable, or `flag`.
    pub source: String,
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: String,
    /// Where its value came from.
    pub source: String,
    /// What is wrong and what would mend it.
    pub what: String,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// In the order of the keys.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, Problem { key, source, what }) in self.problems.iter().enumerate() {
            let (end, place) = (if at == 0 { "" } else { "\n" }, if source.is_empty() { "" } else { " (" });
            let close = if source.is_empty() { "" } else { ")" };
            write!(f, "{end}{key}{place}{source}{close}: {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn key(byte: u8) -> String {
        PublicKey::from_bytes([byte; 32]).to_string()
    }

    fn good() -> String {
        format!(
            "party = \"p1\"\nidentity = \"node.key\"\nclients = [\"{}\"]\nshares = [\"models\", \"/abs/a.tercet\"]\n\
             max_batch = 8\nlink = \"tcp\"\nshape = \"2ms,1gbit\"\n[peers.p0]\nkey = \"{}\"\n\
             [peers.p2]\nkey = \"{}\"\naddress = \"node2:7411\"\n",
            key(9),
            key(1),
            key(2)
        )
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.into(), value.into())
    }

    #[test]
    fn later_sources_win_and_are_named() {
        let (folder, path) = scratch(&good());
        let flags = [pair("max_batch", "3"), pair("peers.p2.address", "quic://other:99")];
        let Loaded { config, values } = Config::load(Some(&path), &flags).unwrap();
        assert_eq!((config.party, config.max_batch, config.max_sessions), (PartyId::P1, 3, 2));
        assert_eq!(config.identity, folder.path().join("node.key"));
        assert_eq!(config.shares, [folder.path().join("models"), "/abs/a.tercet".into()]);
        let p2 = config.peers[2].as_ref().unwrap().address.as_ref().unwrap();
        assert_eq!(p2.to_string(), "quic://other:99");
        assert!(matches!(&config.clients, ClientPolicy::Listed(keys) if keys.len() == 1));
        let source = |key: &str| values.iter().find(|value| value.key == key).unwrap().source.clone();
        assert_eq!(source("max_batch"), "flag");
        assert_eq!(source("max_sessions"), "default");
        assert_eq!(source("link"), format!("file {}", path.display()));
        assert!(KEYS.iter().all(|(key, ..)| values.iter().any(|value| value.key == *key)));
        // Without a scheme, an address has the kind that `link` says.
        let config = Config::load(Some(&path), &[]).unwrap().config;
        assert_eq!(config.peers[2].as_ref().unwrap().address.as_ref().unwrap().to_string(), "tcp://node2:7411");
    }

    #[test]
    fn the_environment_reaches_peers_too() {
        assert_eq!(dotted("MAX_BATCH"), "max_batch");
        assert_eq!(dotted("PEERS_P0_ADDRESS"), "peers.p0.address");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let text = "party = \"p9\"\nmax_bach = 4\nthreads = \"many\"\nlisten = 7\nclients = [\"nobody\"]\nround_deadline_ms = 0";
        let (_folder, path) = scratch(text);
        let error = Config::load(Some(&path), &[pair("profile", "moon")]).unwrap_err();
        let said = error.to_string();
        for words in [
            "party (file ",
            "did you mean max_batch?",
            "threads (file ",
            "listen (file ",
            "profile (flag): \"moon\"",
            "identity: missing",
            "nobody",
            "round_deadline_ms (file ",
        ] {
            assert!(said.contains(words), "{words:?} is not in:\n{said}");
        }
        let (_folder, path) = scratch("party = \"p1\"\nidentity = \"k\"\n[peers.p3]\nkey = 1");
        let said = Config::load(Some(&path), &[]).unwrap_err().to_string();
        for words in ["peers.p0.key: missing", "peers.p2.key: missing", "peers.p2.address: missing", "peers.p3.key"] {
            assert!(said.contains(words), "{words:?} is not in:\n{said}");
        }
        assert!(!said.contains("peers.p0.address"), "P1 does not dial P0:\n{said}");
    }

    #[test]
    fn files_that_are_none_are_named() {
        let (folder, path) = scratch("party = \n");
        let said = Config::load(Some(&path), &[]).unwrap_err().to_string();
        assert!(said.contains("node.toml"), "{said}");
        let absent = folder.path().join("absent.toml");
        let said = Config::load(Some(&absent), &[]).unwrap_err().to_string();
        assert!(said.contains("absent.toml"), "{said}");
    }

    #[test]
    fn anyone_must_be_said_aloud() {
        let (_folder, path) = scratch(&good());
        let open = Config::load(Some(&path), &[pair("clients", "anyone")]).unwrap().config;
        assert_eq!(open.clients, ClientPolicy::Open);
        let text = good().replace("clients", "# clients");
        let (_folder, path) = scratch(&text);
        let closed = Config::load(Some(&path), &[]).unwrap().config;
        assert_eq!(closed.clients, ClientPolicy::Listed(BTreeSet::new()));
    }
}
