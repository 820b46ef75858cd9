//! Values out of merged sources: each checked by itself, so that everything wrong is said at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use tercet_net::{ClientPolicy, LinkKind, LinkProfile, LinkShape, PartyId, PeerAddress, PublicKey};

use crate::config::{Config, ConfigError, ENV_PREFIX, KEYS, Loaded, PeerConfig, Problem, Setting};

/// A value from a default or a flag.
pub(crate) struct Pair {
    pub(crate) source: String,
    pub(crate) key: String,
    pub(crate) value: Value,
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

/// A value as the environment would give it: a list in brackets, or a text.
pub(crate) fn text_value(text: &str) -> Value {
    if text.trim_start().starts_with('[')
        && let Ok(list) = Value::from_str(text)
    {
        return list;
    }
    Value::from(text)
}

/// `peers_p0_key` is `peers.p0.key`; all other keys have no parts.
pub(crate) fn dotted(key: &str) -> String {
    let key = key.to_ascii_lowercase();
    let peer = key.strip_prefix("peers_").and_then(|rest| rest.split_once('_'));
    peer.map_or(key.clone(), |(party, field)| format!("peers.{party}.{field}"))
}

/// Takes values out of merged sources, and notes where each came from and what is wrong with it.
pub(crate) struct Reader {
    figment: Figment,
    values: Vec<Setting>,
    problems: Vec<Problem>,
}

impl Reader {
    pub(crate) fn new(figment: Figment) -> Reader {
        Reader { figment, values: Vec::new(), problems: Vec::new() }
    }

    pub(crate) fn read(mut self) -> Result<Loaded, ConfigError> {
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
        let queue_mib = self.number("queue_mib", 1, 1 << 24);
        let cache_mib = self.number("cache_mib", 0, 1 << 24);
        let round_deadline = self.number("round_deadline_ms", 10, 3_600_000).map(Duration::from_millis);
        let connect_deadline = self.number("connect_deadline_ms", 10, 600_000).map(Duration::from_millis);
        let request_deadline = self.number("request_deadline_ms", 10, 86_400_000).map(Duration::from_millis);
        let generation_deadline = self.number("generation_deadline_ms", 10, 86_400_000).map(Duration::from_millis);
        let idle_deadline = self.number("idle_deadline_ms", 10, 3_600_000).map(Duration::from_millis);
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
                queue_bytes: queue_mib? << 20,
                cache_bytes: cache_mib? << 20,
                round_deadline: round_deadline?,
                connect_deadline: connect_deadline?,
                request_deadline: request_deadline?,
                generation_deadline: generation_deadline?,
                idle_deadline: idle_deadline?,
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
