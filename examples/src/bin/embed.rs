//! Private embeddings through the SDK, as a program of your own would ask for them.
//!
//! ```text
//! tercet demo --keep stage            # writes an example of all files
//! embed stage/nodes.toml minilm "first text" "second text"
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tercet_client::{Client, ClientConfig, Error, Fault, Identity, NodeAddress, Options};

/// The client's file: its key and the three nodes.
#[derive(Deserialize)]
struct Nodes {
    identity: PathBuf,
    peers: Peers,
}

#[derive(Deserialize)]
struct Peers {
    p0: NodeAddress,
    p1: NodeAddress,
    p2: NodeAddress,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, model, texts @ ..] = args.as_slice() else { bail!("usage: embed NODES.toml MODEL TEXT…") };
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();

    let file = Path::new(file);
    let nodes: Nodes = toml::from_str(&std::fs::read_to_string(file).context("cannot read the nodes' file")?)?;
    let identity = Identity::load(&file.parent().unwrap_or(Path::new("")).join(nodes.identity))?;
    let Peers { p0, p1, p2 } = nodes.peers;

    // One client serves any number of requests, also side by side; it finds nodes again that were away.
    let client = Client::connect(ClientConfig::new(identity, [p0, p1, p2])).await?;
    // Round lengths up to multiples of 16 tokens: the nodes learn no more than that.
    let options = Options { bucket: Some(16), ..Options::default() };
    match client.embed(model, &texts, &options).await {
        Ok(found) => {
            for (text, vector) in texts.iter().zip(&found.vectors) {
                println!("{text:?}: {:.4?} … ({} numbers)", &vector[..4.min(vector.len())], vector.len());
            }
            for used in &found.usage {
                println!("{} rounds, {} bytes between the nodes", used.rounds, used.total_bytes());
            }
        }
        // Errors say whose fault they are.
        Err(Error::Input { index, what }) => eprintln!("text {} cannot be embedded: {what}", index + 1),
        Err(Error::Disagreement { parties, what }) => eprintln!("do not trust {parties:?}: they disagree on {what}"),
        Err(Error::Refused { party, fault: Fault::Busy, .. }) => eprintln!("{party} is busy: try again later"),
        Err(other) => return Err(other.into()),
    }
    client.close().await;
    Ok(())
}
