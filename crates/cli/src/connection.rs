//! How commands reach the nodes: the client's file, and what every request may be told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tercet_client::{Client, ClientConfig, Identity, LinkProfile, NodeAddress, Options, RequestUsage, Work};
use tokio::signal::unix::{SignalKind, signal};

use crate::flame;
use crate::screen::{bytes, note, time};

/// The file of a client (TOML): its key file, and the cards of the three nodes.
///
/// ```toml
/// identity = "client.key"      # relative to this file
/// profile = "wan"              # loopback, jumbo, lan1500 or wan; may be left out
/// connect_ms = 1500            # how long a connection may take; may be left out
/// public_gate = true           # also ask models whose nodes learn which experts a token goes to; may be left out
/// [peers.p0]                   # the three cards (tercet card)
/// key = "tercet:…"
/// address = "quic://10.0.0.1:7411"
/// ```
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodesFile {
    pub(crate) identity: PathBuf,
    #[serde(default)]
    pub(crate) profile: LinkProfile,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connect_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) public_gate: bool,
    pub(crate) peers: Peers,
}

/// The three nodes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peers {
    pub(crate) p0: NodeAddress,
    pub(crate) p1: NodeAddress,
    pub(crate) p2: NodeAddress,
}

impl NodesFile {
    /// Reads the file; the key's path becomes relative to it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}; `tercet demo --keep DIR` writes an example", path.display()))?;
        let mut file: Self = toml::from_str(&text).map_err(|error| {
            let message = error.message().replace('\n', " ");
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            anyhow!("{} line {line}: {message}", path.display())
        })?;
        file.identity = path.parent().unwrap_or(Path::new("")).join(&file.identity);
        Ok(file)
    }

    /// How a client is set up by this file.
    pub(crate) fn client(self) -> Result<ClientConfig> {
        let identity = Identity::load(&self.identity)?;
        let Peers { p0, p1, p2 } = self.peers;
        let config = ClientConfig::new(identity, [p0, p1, p2]);
        let connect_deadline = self.connect_ms.map_or(config.connect_deadline, |ms| Duration::from_millis(ms.into()));
        Ok(ClientConfig { profile: self.profile, public_gate: self.public_gate, connect_deadline, ..config })
    }
}

/// Whom to ask, and for what.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// The client's file: its key and the three nodes.
    #[arg(long, value_name = "FILE", env = "TERCET_NODES", default_value = "nodes.toml")]
    nodes: PathBuf,
    /// The name of the model on the nodes.
    #[arg(long = "model", value_name = "NAME")]
    pub(crate) name: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl ModelArgs {
    /// Connects to the nodes of the file.
    pub(crate) async fn connect(&self) -> Result<Client> {
        Ok(Client::connect(NodesFile::read(&self.nodes)?.client()?).await?)
    }
}

/// What every request may be told.
#[derive(clap::Args)]
pub(crate) struct RequestArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Cut texts that are too long, instead of refusing them.
    #[arg(long)]
    truncate: bool,
    /// Pad texts to a multiple of this many tokens, to hide their exact length from the nodes.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    bucket: Option<u32>,
    /// Inputs in one request at most; longer lists become several requests.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_batch: u32,
    /// How long to wait for the answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86400))]
    deadline: u64,
    /// Ask the nodes where the time went, and write a page (HTML) of it to this file.
    #[arg(long, value_name = "FILE")]
    flame: Option<PathBuf>,
}

impl RequestArgs {
    pub(crate) fn options(&self) -> Options {
        Options {
            truncate: self.truncate,
            deadline: Duration::from_secs(self.deadline),
            bucket: self.bucket.map(|tokens| tokens as usize),
            max_batch: self.max_batch as usize,
            profile: self.flame.is_some(),
            ..Options::default()
        }
    }

    /// Writes the page of where the time went, if one is wanted.
    pub(crate) fn write_flame(&self, usage: &[RequestUsage]) -> Result<()> {
        self.flame.as_ref().map_or(Ok(()), |path| flame::write(path, &self.model.name, usage))
    }
}

/// A runtime for one command.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start worker threads")
}

/// Ends with an error at the first SIGINT or SIGTERM.
pub(crate) async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed?,
        _ = terminate.recv() => {}
    }
    bail!("interrupted")
}

/// Requests as JSON; `profiles` is null where nobody asked for them, and every list by kind of work in the order of `work`.
pub(crate) fn usage_json(usage: &[RequestUsage]) -> serde_json::Value {
    let one = |used: &RequestUsage| {
        serde_json::json!({
            "batch": used.batch, "rows": used.rows, "batched": used.batched, "rounds": used.rounds,
            "bytes": used.bytes, "total_bytes": used.total_bytes(),
            "client_sent": used.sent, "client_received": used.received,
            "session_ms": used.session.as_millis() as u64, "queued_ms": used.queued.as_millis() as u64,
            "elapsed_ms": used.elapsed.as_millis() as u64, "work_us": used.work_us,
            "work": Work::ALL.map(Work::name), "profiles": used.profiles,
        })
    };
    usage.iter().map(one).collect()
}

/// Requests in a line each, on the standard error output, so that results can be piped.
pub(crate) fn say_usage(usage: &[RequestUsage]) {
    for used in usage {
        note(format_args!(
            "{} x {} rows in {}: {} rounds, {} between the nodes, {} up and {} down",
            used.batch,
            used.rows,
            time(used.elapsed),
            used.rounds,
            bytes(used.total_bytes()),
            bytes(used.sent.iter().sum()),
            bytes(used.received.iter().sum()),
        ));
    }
}

/// One line for each text: the texts given, or the lines of the standard input where there is none.
pub(crate) fn texts_or_lines(given: Vec<String>) -> Result<Vec<String>> {
    if !given.is_empty() {
        return Ok(given);
    }
    let lines: std::io::Result<Vec<String>> = std::io::stdin().lines().collect();
    lines.context("cannot read texts from the standard input")
}

/// The text given, or the whole standard input without the end of its last line. Every user of the machine sees arguments,
/// and nobody the standard input.
pub(crate) fn text_or_input(given: Option<String>) -> Result<String> {
    given.map_or_else(|| text_of(std::io::stdin().lock()), Ok)
}

fn text_of(input: impl std::io::Read) -> Result<String> {
    let text = std::io::read_to_string(input).context("cannot read a text from the standard input")?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn cards() -> String {
        let card = |party: usize| {
            let key = Identity::generate().unwrap().public_key();
            format!("[peers.p{party}]\nkey = \"{key}\"\naddress = \"tcp://node{party}:7411\"\n")
        };
        (0..3).map(card).collect()
    }

    #[test]
    fn a_text_ends_before_the_end_of_its_last_line() {
        for (input, text) in [
            ("", ""),
            ("\n", ""),
            ("one", "one"),
            ("one\n", "one"),
            ("one\r\n", "one"),
            (" one\ntwo \n\n", " one\ntwo \n"),
        ] {
            assert_eq!(text_of(input.as_bytes()).unwrap(), text);
        }
        assert!(text_of(&b"\xFF"[..]).unwrap_err().to_string().contains("standard input"));
        assert_eq!(text_or_input(Some("given\n".into())).unwrap(), "given\n");
    }

    #[test]
    fn the_file_is_three_cards_and_a_key() {
        let (dir, path) = written(&format!("identity = \"client.key\"\n{}", cards()));
        let file = NodesFile::read(&path).unwrap();
        assert_eq!(file.identity, dir.path().join("client.key"));
        assert_eq!(file.profile, LinkProfile::Wan);
        assert_eq!(file.peers.p2.address.to_string(), "tcp://node2:7411");
        assert!(file.client().is_err(), "there is no key file");
        Identity::generate().unwrap().save(&dir.path().join("client.key")).unwrap();
        let of = |line: &str| {
            std::fs::write(&path, format!("identity = \"client.key\"\n{line}\n{}", cards())).unwrap();
            NodesFile::read(&path).unwrap().client().unwrap().connect_deadline
        };
        assert_eq!([of(""), of("connect_ms = 4000")], [1500, 4000].map(Duration::from_millis));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let wrong = [
            (format!("identity = \"a\"\ncolour = 3\n{}", cards()), "unknown field `colour`"),
            (format!("identity = \"a\"\nprofile = \"fast\"\n{}", cards()), "line 2"),
            (format!("identity = \"a\"\n{}", cards().replace("tcp://node1:7411", "node1")), "no address"),
            (format!("identity = \"a\"\n{}", cards().replace("tercet:", "tercet:0")), "not a public key"),
            ("identity = \"a\"\n".into(), "missing field `peers`"),
        ];
        for (text, said) in wrong {
            let (_dir, path) = written(&text);
            let error = NodesFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains('\n'), "{error}");
        }
    }
}
