//! Connections to the three nodes: opened when needed, opened again when a node came back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tercet_net::{
    CLIENT_CHANNELS, ChannelId, ClientMessage, Connection, Endpoint, EndpointConfig, NetError, NodeMessage, PartyId,
    PeerAddress, codec,
};
use tercet_ring::Seed;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::{Error, trio};

/// How long questions other than requests may take.
pub(crate) const QUESTION_DEADLINE: Duration = Duration::from_secs(30);

/// The longest answer to a question about a node, in bytes. Only a model's tokenizer may be longer.
pub(crate) const QUESTION_BYTES: usize = 1 << 20;

/// The slowest that a public table may come, in bytes per second.
const SLOWEST_BYTES_PER_S: u64 = 128 << 10;

/// Such questions at once. Their channels are kept free, so that nodes answer them however much is under way.
const QUESTIONS_AT_ONCE: usize = 7;

/// Generations and requests at once.
const WORK_AT_ONCE: usize = CLIENT_CHANNELS - QUESTIONS_AT_ONCE;

pub(crate) struct Links {
    endpoint: Endpoint,
    addresses: [PeerAddress; 3],
    ways: [Mutex<Way>; 3],
    work: Arc<Semaphore>,
    questions: Arc<Semaphore>,
}

/// The way to a node: the connection, and when and why it could last not be dialled.
#[derive(Default)]
struct Way {
    open: Option<Connection>,
    failed: Option<(Instant, NetError)>,
}

/// A place for one channel to each node. It is free again when the last that holds it is gone.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

/// An answer, with the bytes that went out and came in for it.
pub(crate) struct Answer {
    pub(crate) message: NodeMessage,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Links {
    pub(crate) fn new(config: EndpointConfig, addresses: [PeerAddress; 3]) -> Result<Self, Error> {
        let endpoint = Endpoint::bind(config).map_err(|error| Error::Misuse(error.to_string()))?;
        let (work, questions) = (Arc::new(Semaphore::new(WORK_AT_ONCE)), Arc::new(Semaphore::new(QUESTIONS_AT_ONCE)));
        Ok(Self { endpoint, addresses, ways: Default::default(), work, questions })
    }

    /// Waits for its turn to generate, or to make a request.
    pub(crate) async fn work(&self, until: Instant) -> Result<Place, Error> {
        place(&self.work, until.saturating_duration_since(Instant::now())).await
    }

    /// Waits for its turn to ask a question.
    pub(crate) async fn question(&self) -> Result<Place, Error> {
        place(&self.questions, QUESTION_DEADLINE).await
    }

    /// The living connection to a node, dialled anew where there is none.
    pub(crate) async fn connection(&self, party: PartyId) -> Result<Connection, Error> {
        let asked = Instant::now();
        let mut way = self.ways[party.index()].lock().await;
        if let Some(living) = way.open.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(living.clone());
        }
        // Who has waited while a dial failed need not wait for another.
        if let Some((_, error)) = way.failed.as_ref().filter(|(when, _)| *when > asked) {
            return Err(Error::Node { party, error: error.clone(), connected: false });
        }
        match self.endpoint.dial(party, &self.addresses[party.index()]).await {
            Ok(connection) => {
                tracing::debug!(%party, "connected");
                way.open = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                way.failed = Some((Instant::now(), error.clone()));
                Err(Error::Node { party, error, connected: false })
            }
        }
    }

    /// Sends an encoded message on a channel of its own and waits for the answer, of at most
    /// `limit` bytes. Dropped before it is there, it shows the node that the client has left.
    pub(crate) async fn ask(
        &self,
        party: PartyId,
        channel: u128,
        message: Bytes,
        limit: usize,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let node = |error: NetError| Error::node(party, error);
        let sent = message.len() as u64;
        let asked = async {
            let connection = self.connection(party).await?;
            let mut channel = connection.open_channel(ChannelId::request(channel)).await.map_err(node)?;
            channel.send_bytes(message).await.map_err(node)?;
            let bytes = channel.recv_bytes(limit, deadline).await.map_err(node)?;
            channel.sender.finish();
            let message = codec::decode(&bytes, limit).map_err(|error| Error::unexpected(party, &error.to_string()))?;
            Ok(Answer { message, sent, received: bytes.len() as u64 })
        };
        let late = Err(Error::Deadline { waited_ms: deadline.as_millis() as u64 });
        let answer = tokio::time::timeout(deadline, asked).await.unwrap_or(late)?;
        match answer.message {
            NodeMessage::Refused { fault, reason } => Err(Error::Refused { party, fault, reason: clean(&reason) }),
            _ => Ok(answer),
        }
    }

    /// Fetches a public table of `expected` bytes, which comes in pieces: within `deadline` and
    /// what its length takes at the slowest, however small the pieces are.
    pub(crate) async fn table(
        &self,
        party: PartyId,
        message: Bytes,
        expected: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, Error> {
        let all = deadline + Duration::from_secs(expected as u64 / SLOWEST_BYTES_PER_S);
        let pieces = self.pieces(party, message, expected, deadline);
        let late = Err(Error::Deadline { waited_ms: all.as_millis() as u64 });
        tokio::time::timeout(all, pieces).await.unwrap_or(late)
    }

    async fn pieces(
        &self,
        party: PartyId,
        message: Bytes,
        expected: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, Error> {
        let node = |error: NetError| Error::node(party, error);
        let connection = self.connection(party).await?;
        let id = ChannelId::request(u128::from_le_bytes(fresh_id()));
        let mut channel = connection.open_channel(id).await.map_err(node)?;
        channel.send_bytes(message).await.map_err(node)?;
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

    /// The first node that does not answer a question within `patience`, and how it failed. A node
    /// that is not connected is dialled for it.
    pub(crate) async fn absent(&self, patience: Duration) -> Option<Error> {
        let message = encoded(&ClientMessage::Models).ok()?;
        let asked = trio::each([(); 3], |party, ()| {
            let (channel, message) = (u128::from_le_bytes(fresh_id()), message.clone());
            async move {
                let asked = async {
                    let _place = self.question().await?;
                    self.ask(party, channel, message, QUESTION_BYTES, patience).await.map(drop)
                };
                let silent = NetError::Deadline {
                    peer: party.to_string(),
                    what: "answering a question",
                    waited_ms: patience.as_millis() as u64,
                };
                match tokio::time::timeout(patience, asked).await {
                    Ok(Ok(())) | Ok(Err(Error::Refused { .. })) => None,
                    Ok(Err(
                        error @ Error::Node { error: NetError::Lost { .. } | NetError::Unreachable { .. }, .. },
                    )) => Some(error),
                    _ => Some(Error::node(party, silent)),
                }
            }
        });
        let [p0, p1, p2] = asked;
        let (p0, p1, p2) = tokio::join!(p0, p1, p2);
        p0.or(p1).or(p2)
    }

    pub(crate) async fn shutdown(&self) {
        self.endpoint.shutdown("the client is done").await;
    }
}

async fn place(places: &Arc<Semaphore>, patience: Duration) -> Result<Place, Error> {
    match tokio::time::timeout(patience, places.clone().acquire_owned()).await {
        Ok(Ok(permit)) => Ok(Arc::new(permit)),
        _ => Err(Error::Deadline { waited_ms: patience.as_millis() as u64 }),
    }
}

/// A message as it is sent. It may hold seeds and keys: it is wiped as soon as the link needs it no
/// more.
pub(crate) fn encoded(message: &ClientMessage) -> Result<Bytes, Error> {
    let bytes = codec::encode_secret(message).map_err(|error| Error::Misuse(error.to_string()))?;
    Ok(Bytes::from_owner(bytes))
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use tercet_net::{Identity, LinkKind};

    #[tokio::test]
    async fn a_dial_that_fails_does_so_for_all_who_wait() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let keys = [(); 3].map(|()| Some(Identity::generate().unwrap().public_key()));
        let connect_deadline = Duration::from_millis(500);
        let config = EndpointConfig::client(Identity::generate().unwrap(), keys);
        let config = EndpointConfig { connect_deadline, ..config };
        let address = PeerAddress::new(LinkKind::Quic, silent.local_addr().unwrap());
        let links = Arc::new(Links::new(config, [(); 3].map(|()| address.clone())).unwrap());
        let started = Instant::now();
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let links = links.clone();
                tokio::spawn(async move { links.connection(PartyId::P1).await.unwrap_err() })
            })
            .collect();
        for waits in waiting {
            assert!(matches!(waits.await.unwrap(), Error::Node { party: PartyId::P1, .. }));
        }
        assert!(started.elapsed() < 5 * connect_deadline, "{:?}", started.elapsed());
        // Who comes later has it dialled anew.
        let again = Instant::now();
        links.connection(PartyId::P1).await.unwrap_err();
        assert!(again.elapsed() >= connect_deadline / 2);
    }
}
