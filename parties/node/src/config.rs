//! How a node is set up: defaults, then a TOML file, then `TERCET_NODE_*` variables, then flags; each value knows whence it
//! came.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use figment::providers::{Env, Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use tercet_net::{ClientPolicy, LinkKind, LinkProfile, LinkShape, PartyId, PeerAddress, PublicKey};

/// What variables of the environment begin with.
const ENV_PREFIX: &str = "TERCET_NODE_";

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
    ("max_batch", Some("32"), "inputs that run together in one session"),
    ("max_queue", Some("256"), "requests that may wait"),
    ("max_clients", Some("256"), "clients that may be connected"),
    ("memory_mib", Some("4096"), "working memory that all sessions together may take, beside the weights"),
    ("round_deadline_ms", Some("30000"), "how long a peer may be silent within a session"),
    ("connect_deadline_ms", Some("10000"), "how long a connection may take to be established"),
    ("request_deadline_ms", Some("300000"), "the longest that a request may wait, whatever its client says"),
    ("grace_ms", Some("30000"), "how long running sessions are given when the node is told to stop"),
    ("shape", Some("none"), "slows links down, for measurements: none, lan, metro, wan, or like 2ms,1gbit"),
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
    /// Requests that may wait.
    pub max_queue: usize,
    /// Clients that may be connected.
    pub max_clients: usize,
    /// Working memory of all sessions together, in bytes.
    pub memory_bytes: u64,
    /// How long a peer may be silent within a session.
    pub round_deadline: Duration,
    /// How long a connection may take to be established.
    pub connect_deadline: Duration,
    /// The longest that a request may wait.
    pub request_deadline: Duration,
    /// How long running sessions are given when the node is told to stop.
    pub grace: Duration,
    /// What incoming messages are held to, for measurements.
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
            max_clients: 256,
            memory_bytes: 4 << 30,
            round_deadline: Duration::from_secs(30),
            connect_deadline: Duration::from_secs(10),
            request_deadline: Duration::from_secs(300),
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
            let readable = std::fs::File::open(path).map_err(|error| ConfigError {
                problems: vec![Problem {
                    key: "configuration file".into(),
                    source: path.display().to_string(),
                    what: error.to_string(),
                }],
            });
            readable?;
            figment = figment.merge(Toml::file_exact(path));
        }
        let variables = Env::prefixed(ENV_PREFIX).ignore(&["config", "log"]);
        figment = figment.merge(variables.map(|key| dotted(key.as_str()).into()));
        for (key, value) in overrides {
            figment = figment.merge(Pair { source: "flag".into(), key: key.clone(), value: text_value(value) });
        }
        Reader { figment, values: Vec::new(), problems: Vec::new() }.read()
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

/// A value from a default or a flag.
struct Pair {
    source: String,
    key: String,
    value: Value,
}

impl Provider for Pair {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let dict = figment::util::nest(&self.key, self.value.clone()).into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

/// One value as it was written; none for lists and tables.
fn scalar(value: Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text),
        Value::Char(_, char) => Some(char.to_string()),
        Value::Bool(_, bool) => Some(bool.to_string()),
        Value::Num(_, num) => {
            let whole = num.to_u128().map(|n| n.to_string()).or_else(|| num.to_i128().map(|n| n.to_string()));
            whole.or_else(|| num.to_f64().map(|n| n.to_string()))
        }
        _ => None,
    }
}

/// A value as the environment would give it.
fn text_value(text: &str) -> Value {
    match Value::from_str(text) {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// `peers_p0_key` is `peers.p0.key`; all other keys have no parts.
fn dotted(key: &str) -> String {
    let key = key.to_ascii_lowercase();
    let peer = key.strip_prefix("peers_").and_then(|rest| rest.split_once('_'));
    peer.map_or(key.clone(), |(party, field)| format!("peers.{party}.{field}"))
}

struct Reader {
    figment: Figment,
    values: Vec<Setting>,
    problems: Vec<Problem>,
}

impl Reader {
    fn read(mut self) -> Result<Loaded, ConfigError> {
        if let Err(error) = self.figment.data() {
            for error in error {
                let source = error.metadata.as_ref().map(origin).unwrap_or_default();
                self.problems.push(Problem { key: "configuration".into(), source, what: error.to_string() });
            }
            return Err(ConfigError { problems: self.problems });
        }
        let party = self.parsed("party", parse_party);
        let listen = self.parsed("listen", |text| {
            text.parse::<SocketAddr>().map_err(|_| "write address:port, like 0.0.0.0:7411".to_owned())
        });
        let link = self.parsed("link", |text| match text {
            "quic" => Ok(LinkKind::Quic),
            "tcp" => Ok(LinkKind::Tcp),
            _ => Err("write quic or tcp".to_owned()),
        });
        let profile = self.parsed("profile", |text| text.parse::<LinkProfile>().map_err(|e| e.to_string()));
        let identity = self.parsed("identity", |text| Ok(PathBuf::from(text)));
        let identity = identity.map(|path| self.beside_file("identity", path));
        let clients = self.clients();
        let shares = self.list("shares").unwrap_or_default();
        let shares = shares.into_iter().map(|path| self.beside_file("shares", path.into())).collect();
        let threads = self.number("threads", 0, 1024);
        let max_sessions = self.number("max_sessions", 1, 64);
        let max_batch = self.number("max_batch", 1, 4096);
        let max_queue = self.number("max_queue", 1, 1 << 20);
        let max_clients = self.number("max_clients", 1, 1 << 16);
        let memory_mib = self.number("memory_mib", 16, 1 << 24);
        let round_deadline = self.number("round_deadline_ms", 10, 3_600_000).map(Duration::from_millis);
        let connect_deadline = self.number("connect_deadline_ms", 10, 600_000).map(Duration::from_millis);
        let request_deadline = self.number("request_deadline_ms", 10, 86_400_000).map(Duration::from_millis);
        let grace = self.number("grace_ms", 0, 3_600_000).map(Duration::from_millis);
        let shape = self.parsed("shape", |text| text.parse::<LinkShape>().map_err(|e| e.to_string()));
        let peers = PartyId::ALL.map(|peer| self.peer(peer, party, link.unwrap_or_default()));
        self.unknown_keys();
        let config = (|| {
            Some(Config {
                party: party?,
                listen: listen?,
                profile: profile?,
                identity: identity?,
                peers,
                clients: clients?,
                shares,
                threads: threads? as usize,
                max_sessions: max_sessions? as usize,
                max_batch: max_batch? as usize,
                max_queue: max_queue? as usize,
                max_clients: max_clients? as usize,
                memory_bytes: memory_mib? << 20,
                round_deadline: round_deadline?,
                connect_deadline: connect_deadline?,
                request_deadline: request_deadline?,
                grace: grace?,
                shape: shape?,
            })
        })();
        match config {
            Some(config) if self.problems.is_empty() => Ok(Loaded { config, values: self.values }),
            _ => Err(ConfigError { problems: self.problems }),
        }
    }

    fn source(&self, key: &str) -> String {
        let Some(metadata) = self.figment.find_metadata(key) else { return String::new() };
        match metadata.name.contains("environment") {
            true => format!("environment, {ENV_PREFIX}{}", key.replace('.', "_").to_ascii_uppercase()),
            false => origin(metadata),
        }
    }

    fn problem(&mut self, key: &str, what: impl Into<String>) {
        let source = self.source(key);
        self.problems.push(Problem { key: key.into(), source, what: what.into() });
    }

    fn note(&mut self, key: &str, value: String) {
        let source = self.source(key);
        self.values.push(Setting { key: key.into(), value, source });
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let text = scalar(self.figment.find_value(key).ok()?);
        if text.is_none() {
            self.problem(key, "one value is wanted, not a list or a table");
        }
        text
    }

    /// A value that must be there.
    fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if self.figment.find_value(key).is_err() {
            let meaning = KEYS.iter().find(|(known, ..)| *known == key).map_or("", |(.., meaning)| *meaning);
            self.problem(key, format!("missing; {meaning}"));
            return None;
        }
        let text = self.text(key)?;
        self.note(key, text.clone());
        parse(text.trim()).map_err(|what| self.problem(key, format!("{text:?}: {what}"))).ok()
    }

    fn number(&mut self, key: &str, least: u64, most: u64) -> Option<u64> {
        self.parsed(key, |text| {
            let number = text.parse::<u64>().ok().filter(|n| (least..=most).contains(n));
            number.ok_or_else(|| format!("write a whole number from {least} to {most}"))
        })
    }

    /// One text or a list of them; empty where the key is absent.
    fn list(&mut self, key: &str) -> Option<Vec<String>> {
        if self.figment.find_value(key).is_err() {
            return Some(Vec::new());
        }
        let list = match self.figment.extract_inner::<Vec<String>>(key) {
            Ok(list) => list,
            Err(_) => vec![self.text(key)?],
        };
        self.note(key, list.join(", "));
        Some(list)
    }

    fn clients(&mut self) -> Option<ClientPolicy> {
        let list = self.list("clients")?;
        if list.iter().map(String::as_str).eq(["anyone"]) {
            return Some(ClientPolicy::Open);
        }
        let mut keys = BTreeSet::new();
        for text in list {
            match text.parse::<PublicKey>() {
                Ok(key) => _ = keys.insert(key),
                Err(error) => self.problem("clients", format!("{text:?}: {error}; or write \"anyone\"")),
            }
        }
        Some(ClientPolicy::Listed(keys))
    }

    fn peer(&mut self, peer: PartyId, me: Option<PartyId>, link: LinkKind) -> Option<PeerConfig> {
        let name = format!("peers.p{}", peer.index());
        let (key_name, address_name) = (format!("{name}.key"), format!("{name}.address"));
        let (key, address) = (self.text(&key_name), self.text(&address_name));
        let mut parsed_address = None;
        if let Some(text) = address {
            self.note(&address_name, text.clone());
            match text.parse::<PeerAddress>() {
                Ok(found) if text.contains("://") => parsed_address = Some(found),
                Ok(found) => parsed_address = Some(PeerAddress { kind: link, ..found }),
                Err(error) => self.problem(&address_name, error.to_string()),
            }
        } else if me.is_some_and(|me| peer > me) {
            self.problem(&address_name, "missing; where that node listens, like quic://10.0.0.2:7411");
        }
        let Some(text) = key else {
            if me.is_some_and(|me| peer != me) {
                self.problem(&key_name, "missing; the public key on that node's card (tercet card)");
            }
            return None;
        };
        self.note(&key_name, text.clone());
        match text.parse::<PublicKey>() {
            Ok(key) => Some(PeerConfig { key, address: parsed_address }),
            Err(error) => {
                self.problem(&key_name, error.to_string());
                None
            }
        }
    }

    /// Paths that a file names are relative to that file.
    fn beside_file(&self, key: &str, path: PathBuf) -> PathBuf {
        let source = self.figment.find_metadata(key).and_then(|metadata| metadata.source.as_ref());
        match source.and_then(Source::file_path).and_then(Path::parent) {
            Some(parent) => parent.join(path),
            None => path,
        }
    }

    fn unknown_keys(&mut self) {
        let mut known: Vec<String> = KEYS.iter().map(|(key, ..)| (*key).to_owned()).collect();
        for party in PartyId::ALL {
            known.extend(["key", "address"].map(|field| format!("peers.p{}.{field}", party.index())));
        }
        let mut found = Vec::new();
        for dict in self.figment.data().unwrap_or_default().values() {
            leaves("", dict, &mut found);
        }
        for key in found {
            if !known.contains(&key) {
                let nearest = known.iter().min_by_key(|known| distance(known, &key));
                let close = nearest.filter(|known| distance(known, &key) <= 1 + key.len() / 3);
                let mend = close.map_or("remove it".to_owned(), |known| format!("did you mean {known}?"));
                self.problem(&key, format!("there is no such key; {mend}"));
            }
        }
    }
}

fn parse_party(text: &str) -> Result<PartyId, String> {
    let index = match text.to_ascii_lowercase().as_str() {
        "p0" => 0,
        "p1" => 1,
        "p2" => 2,
        _ => return Err("write p0 (helper), p1 (lead evaluator) or p2 (evaluator)".into()),
    };
    PartyId::from_index(index).ok_or_else(|| "no such party".into())
}

fn origin(metadata: &Metadata) -> String {
    match metadata.source.as_ref().and_then(Source::file_path) {
        Some(path) => format!("file {}", path.display()),
        None => metadata.name.to_string(),
    }
}

fn leaves(prefix: &str, dict: &Dict, out: &mut Vec<String>) {
    for (key, value) in dict {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Dict(_, inner) if !inner.is_empty() => leaves(&path, inner, out),
            _ => out.push(path),
        }
    }
}

/// Edits between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}
