//! Connections to the three nodes: opened when needed, opened again when a node came back.

use std::time::Duration;

use tercet_net::{
    ChannelId, ClientMessage, Connection, Endpoint, EndpointConfig, NetError, NodeMessage, PartyId, PeerAddress, codec,
};
use tercet_ring::Seed;
use tokio::sync::Mutex;

use crate::Error;

pub(crate) struct Links {
    endpoint: Endpoint,
    addresses: [PeerAddress; 3],
    open: [Mutex<Option<Connection>>; 3],
}

/// An answer, with the bytes that went out and came in for it.
pub(crate) struct Answer {
    pub(crate) message: NodeMessage,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Links {
    pub(crate) fn new(config: EndpointConfig, addresses: [PeerAddress; 3]) -> Result<Self, Error> {
        let endpoint = Endpoint::bind(config).map_err(|error| Error::Misuse(error.to_string()))?;
        Ok(Self { endpoint, addresses, open: Default::default() })
    }

    /// The living connection to a node, dialled anew where there is none.
    pub(crate) async fn connection(&self, party: PartyId) -> Result<Connection, Error> {
        let mut open = self.open[party.index()].lock().await;
        if let Some(living) = open.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(living.clone());
        }
        let dialled = self.endpoint.dial(party, &self.addresses[party.index()]).await;
        let connection = dialled.map_err(|error| Error::Node { party, error })?;
        tracing::debug!(%party, "connected");
        *open = Some(connection.clone());
        Ok(connection)
    }

    /// Sends an encoded message on a channel of its own and waits for the answer. Dropped before it is there, it shows
    /// the node that the client has left.
    pub(crate) async fn ask(
        &self,
        party: PartyId,
        channel: u128,
        message: Vec<u8>,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let node = |error: NetError| Error::Node { party, error };
        let sent = message.len() as u64;
        let asked = async {
            let connection = self.connection(party).await?;
            let mut channel = connection.open_channel(ChannelId::request(channel)).await.map_err(node)?;
            channel.send_bytes(message.into()).await.map_err(node)?;
            let bytes = channel.recv_bytes(codec::LARGEST_BYTES, deadline).await.map_err(node)?;
            channel.sender.finish();
            let message = codec::decode(&bytes, codec::LARGEST_BYTES)
                .map_err(|error| Error::unexpected(party, &error.to_string()))?;
            Ok(Answer { message, sent, received: bytes.len() as u64 })
        };
        let late = Err(Error::Deadline { waited_ms: deadline.as_millis() as u64 });
        let answer = tokio::time::timeout(deadline, asked).await.unwrap_or(late)?;
        match answer.message {
            NodeMessage::Refused { fault, reason } => Err(Error::Refused { party, fault, reason: clean(&reason) }),
            _ => Ok(answer),
        }
    }

    /// Fetches a public table of `expected` bytes, which comes in pieces.
    pub(crate) async fn table(
        &self,
        party: PartyId,
        message: &ClientMessage,
        expected: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, Error> {
        let node = |error: NetError| Error::Node { party, error };
        let message = codec::encode(message).map_err(|error| Error::Misuse(error.to_string()))?;
        let connection = self.connection(party).await?;
        let id = ChannelId::request(u128::from_le_bytes(fresh_id()));
        let mut channel = connection.open_channel(id).await.map_err(node)?;
        channel.send_bytes(message.into()).await.map_err(node)?;
        let mut table = Vec::new();
        while table.len() < expected {
            match channel.receiver.recv(codec::LARGEST_BYTES, deadline).await.map_err(node)? {
                NodeMessage::Table(piece) if !piece.is_empty() && piece.len() <= expected - table.len() => {
                    table.extend(piece);
                }
                NodeMessage::Refused { fault, reason } => {
                    return Err(Error::Refused { party, fault, reason: clean(&reason) });
                }
                _ => return Err(Error::unexpected(party, "another answer than its public table")),
            }
        }
        channel.sender.finish();
        Ok(table)
    }

    pub(crate) async fn shutdown(&self) {
        self.endpoint.shutdown("the client is done").await;
    }
}

/// A number that names a channel or a request, never drawn twice.
pub(crate) fn fresh_id() -> [u8; 16] {
    let seed = Seed::random();
    std::array::from_fn(|at| seed.as_bytes()[at])
}

/// One bounded line of what a node says.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}
