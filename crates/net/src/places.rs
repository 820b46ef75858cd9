//! Places for the connections of clients, by key: one key has a few at most, and gives way to those
//! that have fewer.
//!
//! Where everyone may be a client, keys cost nothing: there the connections of one address give
//! way, too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::greetings::network;
use crate::{Lease, Ledger, PublicKey};

/// Connections of one key at once. Each may have [`crate::quic`]'s windows of a client wait here
/// unread and unsent.
pub(crate) const CONNECTIONS_OF_A_KEY: u64 = 8;

/// All places for clients.
#[derive(Debug)]
pub(crate) struct ClientPlaces {
    by_key: Arc<Ledger<PublicKey>>,
    /// Where everyone may be a client.
    by_address: Option<Arc<Ledger<IpAddr>>>,
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct ClientPlace {
    of_key: Lease<PublicKey>,
    of_address: Option<Lease<IpAddr>>,
}

impl ClientPlaces {
    pub(crate) fn new(at_once: usize, open: bool) -> ClientPlaces {
        let all = at_once as u64;
        ClientPlaces {
            by_key: Ledger::with_cap(all, CONNECTIONS_OF_A_KEY.min(all)),
            by_address: open.then(|| Ledger::new(all)),
        }
    }

    /// A place for a client of this key at this address; none where there is none to be had.
    pub(crate) async fn take(&self, key: PublicKey, address: &str) -> Option<ClientPlace> {
        let of_address = match (&self.by_address, address.parse::<SocketAddr>()) {
            (Some(ledger), Ok(address)) => Some(ledger.take(network(address.ip()), 1).await.ok()?),
            _ => None,
        };
        let of_key = self.by_key.take(key, 1).await.ok()?;
        Some(ClientPlace { of_key, of_address })
    }
}

impl ClientPlace {
    /// Waits until it must be given back.
    pub(crate) async fn revoked(&self) {
        match &self.of_address {
            None => self.of_key.revoked().await,
            Some(of_address) => tokio::select! {
                () = self.of_key.revoked() => {}
                () = of_address.revoked() => {}
            },
        }
    }
}
