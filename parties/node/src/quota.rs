//! What clients may occupy at one node, each in a [`Ledger`] by key.

use std::sync::Arc;

use tercet_net::PublicKey;

/// A resource that clients share.
pub(crate) type Ledger = tercet_net::Ledger<PublicKey>;

/// A client's part of a resource.
pub(crate) type Lease = tercet_net::Lease<PublicKey>;

/// Tables that are sent at once, each to another client.
const TABLES_AT_ONCE: u64 = 16;

/// All that clients share at one node.
#[derive(Debug)]
pub(crate) struct Quotas {
    /// Requests, and beginnings of generations, that wait for their session.
    pub(crate) places: Arc<Ledger>,
    /// Generations that are alive.
    pub(crate) generations: Arc<Ledger>,
    /// Bytes of what clients send, from its first byte until its session has read it.
    pub(crate) bytes: Arc<Ledger>,
    /// Bytes of the keys and values of generations.
    pub(crate) pages: Arc<Ledger>,
    /// Public tables on their way to clients, one to each.
    pub(crate) tables: Arc<Ledger>,
}

impl Quotas {
    /// `queue` requests wait, and as many generations live; what waits takes `queue_bytes`, and
    /// generations `cache_bytes`.
    pub(crate) fn new(queue: usize, queue_bytes: u64, cache_bytes: u64) -> Quotas {
        Quotas {
            places: Ledger::new(queue as u64),
            generations: Ledger::new(queue as u64),
            bytes: Ledger::new(queue_bytes),
            pages: Ledger::new(cache_bytes),
            tables: Ledger::with_cap(TABLES_AT_ONCE, 1),
        }
    }
}
