//! The file by which a client knows the three nodes, as `tercet demo --keep` writes one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use tercet_client::{Client, ClientConfig, Identity, NodeAddress};

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

/// A client of the nodes that a file names. It serves any number of requests, also side by side, and finds nodes again that were
/// away.
///
/// # Errors
/// The file or the key cannot be read; a node cannot be reached.
pub async fn client(file: &Path) -> Result<Client> {
    let nodes: Nodes = toml::from_str(&std::fs::read_to_string(file).context("cannot read the nodes' file")?)?;
    let identity = Identity::load(&file.parent().unwrap_or(Path::new("")).join(nodes.identity))?;
    let Peers { p0, p1, p2 } = nodes.peers;
    Ok(Client::connect(ClientConfig::new(identity, [p0, p1, p2])).await?)
}
