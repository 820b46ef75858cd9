//! Where a node is to be found, and over which transport.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What carries a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// QUIC over UDP.
    #[default]
    Quic,
    /// TLS 1.3 over TCP, for networks that block UDP.
    Tcp,
}

/// Where a node listens and over what: `quic://host:port`, `tcp://host:port`, or `host:port`, which is QUIC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// What to dial with.
    pub kind: LinkKind,
    /// `host:port`, looked up at each attempt.
    pub host: String,
}

impl PeerAddress {
    /// The address of a socket.
    pub fn new(kind: LinkKind, address: SocketAddr) -> Self {
        Self { kind, host: address.to_string() }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            LinkKind::Quic => write!(f, "quic://{}", self.host),
            LinkKind::Tcp => write!(f, "tcp://{}", self.host),
        }
    }
}

/// A text that is no address of a node.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no address: write quic://host:port or tcp://host:port")]
pub struct AddressError(String);

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        let (kind, host) = match text.split_once("://") {
            None => (LinkKind::Quic, text),
            Some(("quic", host)) => (LinkKind::Quic, host),
            Some(("tcp", host)) => (LinkKind::Tcp, host),
            Some(_) => return Err(AddressError(text.chars().take(80).collect())),
        };
        let port = host.rsplit_once(':').filter(|(name, _)| !name.is_empty()).map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(1..)) => Ok(Self { kind, host: host.into() }),
            _ => Err(AddressError(text.chars().take(80).collect())),
        }
    }
}

impl Serialize for PeerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, written) in [
            ("127.0.0.1:7000", "quic://127.0.0.1:7000"),
            ("tcp://node.example:7000", "tcp://node.example:7000"),
            (" quic://[::1]:7000 ", "quic://[::1]:7000"),
        ] {
            assert_eq!(text.parse::<PeerAddress>().unwrap().to_string(), written);
        }
        for bad in ["", ":7000", "host", "host:0", "host:70000", "udp://host:7000", "tcp://", "tcp://host"] {
            assert!(bad.parse::<PeerAddress>().is_err(), "{bad:?} was taken");
        }
    }
}
