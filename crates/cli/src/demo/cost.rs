//! What the requests of a demonstration cost, as the nodes and the operating system saw it.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tercet_client::{Client, NodeStatus, PartyId, RequestUsage};

use crate::connection::usage_json;
use crate::screen::{bytes, say, say_table, time};

/// Rounds, bytes and time of several requests.
pub(super) struct Bill {
    elapsed: Duration,
    inputs: usize,
    usage: Vec<RequestUsage>,
    status: Vec<NodeStatus>,
}

impl Bill {
    /// Asks the nodes for their side.
    pub(super) async fn of(
        client: &Client,
        elapsed: Duration,
        inputs: usize,
        usage: Vec<RequestUsage>,
    ) -> Result<Self> {
        let mut status = Vec::new();
        for party in PartyId::ALL {
            status.push(client.status(party).await?);
        }
        Ok(Self { elapsed, inputs, usage, status })
    }

    /// Session bytes on a link. Requests that ran together each report the whole session.
    fn link(&self, from: usize, to: usize) -> u64 {
        self.usage.iter().map(|used| used.bytes[from][to] / u64::from(used.batched.max(1))).sum()
    }

    pub(super) fn say(&self) {
        let requests = self.usage.len();
        let rounds: u64 = self.usage.iter().map(|used| used.rounds / u64::from(used.batched.max(1))).sum();
        let each = self.elapsed / self.inputs.max(1) as u32;
        say(format_args!(
            "time    {} for {} inputs in {requests} request{}, {} each",
            time(self.elapsed),
            self.inputs,
            if requests == 1 { "" } else { "s" },
            time(each)
        ));
        say(format_args!("rounds  {rounds}"));
        let client =
            |of: fn(&RequestUsage) -> [u64; 3]| self.usage.iter().map(|used| of(used).iter().sum::<u64>()).sum();
        say(format_args!(
            "client  {} up, {} down",
            bytes(client(|used| used.sent)),
            bytes(client(|used| used.received))
        ));
        say("");
        let row = |(from, to): (usize, usize)| {
            let all = self.link(from, to);
            vec![format!("P{from} → P{to}"), bytes(all), bytes(all / self.inputs.max(1) as u64)]
        };
        say_table(&["link", "bytes", "per input"], &[(0, 1), (0, 2), (1, 2), (2, 1)].map(row));
        say("");
        let nodes = self.status.iter().map(|node| {
            let wire: u64 = node.peers.iter().map(|peer| peer.wire_sent).sum();
            let session: u64 = node.peers.iter().map(|peer| peer.session_sent).sum();
            vec![node.party.to_string(), bytes(session), bytes(wire), bytes(node.peak_rss_bytes)]
        });
        say_table(&["node", "sent since start", "with TLS and QUIC", "peak memory"], &nodes.collect::<Vec<_>>());
    }

    pub(super) fn json(&self) -> Value {
        let nodes = self.status.iter().map(|node| {
            let peers = node.peers.iter().map(|peer| {
                json!({
                    "party": peer.party, "session_sent": peer.session_sent, "session_received": peer.session_received,
                    "wire_sent": peer.wire_sent, "wire_received": peer.wire_received,
                })
            });
            json!({
                "party": node.party, "peak_rss_bytes": node.peak_rss_bytes, "sessions": node.sessions_done,
                "peers": peers.collect::<Vec<_>>(),
            })
        });
        json!({
            "elapsed_ms": self.elapsed.as_secs_f64() * 1e3, "inputs": self.inputs,
            "requests": usage_json(&self.usage), "nodes": nodes.collect::<Vec<_>>(),
        })
    }
}
