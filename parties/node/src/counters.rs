//! What a node counts about itself; nothing in it depends on a value.

use std::sync::atomic::{AtomicU64, Ordering};

use tercet_net::{NodeStatus, PeerStatus};

use crate::shared::{Phase, Shared};

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sessions_running: Count,
    pub(crate) sessions_done: Count,
    pub(crate) sessions_failed: Count,
    pub(crate) answered: Count,
    pub(crate) refused: Count,
    pub(crate) steps_done: Count,
    pub(crate) clients: Count,
}

/// One number that tasks change side by side.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One more, until the guard is dropped.
    pub(crate) fn during(&self) -> During<'_> {
        self.add();
        During(self)
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Takes one off again when dropped.
pub(crate) struct During<'a>(&'a Count);

impl Drop for During<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// How this node is doing.
    pub(crate) fn status(&self) -> NodeStatus {
        let counters = &self.counters;
        NodeStatus {
            party: self.me,
            software: concat!("tercet/", env!("CARGO_PKG_VERSION")).into(),
            uptime_s: self.started.elapsed().as_secs(),
            stopping: *self.phase.borrow() >= Phase::Stopping,
            models: self.models.cards(),
            peers: self.me.others().map(|party| {
                let (connection, [session_sent, session_received], wire) = self.traffic(party);
                let trouble = || self.endpoint.party_trouble(party).map_or(String::new(), |error| error.to_string());
                PeerStatus {
                    party,
                    connected: connection.is_some(),
                    place: connection.map_or_else(trouble, |connection| connection.peer().address.clone()),
                    session_sent,
                    session_received,
                    wire_sent: wire.sent,
                    wire_received: wire.received,
                }
            }),
            clients: counters.clients.get() as u32,
            waiting: self.desk.len() as u32,
            sessions_running: counters.sessions_running.get() as u32,
            sessions_done: counters.sessions_done.get(),
            sessions_failed: counters.sessions_failed.get(),
            answered: counters.answered.get(),
            refused: counters.refused.get(),
            generations: self.desk.generations() as u32,
            steps_done: counters.steps_done.get(),
            queue_bytes: self.quotas.bytes.held(),
            queue_limit_bytes: self.quotas.bytes.limit(),
            cache_bytes: self.quotas.pages.held(),
            cache_limit_bytes: self.quotas.pages.limit(),
            peak_rss_bytes: peak_rss_bytes(),
            fresh_bytes: tercet_ring::Heap::statistics().fresh_bytes,
        }
    }
}

/// The most memory that this process has had resident, in bytes; zero where `/proc` does not say.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
