//! Two-way channels on a connection that carry whole messages: a length (u64, little-endian), then so many bytes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::link::{ByteReader, RecvHalf, SendHalf};
use crate::shaped::LinkClock;
use crate::{Connection, NetError, codec};

const LENGTH_BYTES: usize = 8;

/// Messages up to this many bytes leave together with their length.
const COALESCE_BYTES: usize = 16 << 10;

/// Bytes that go out under one deadline.
const STRIDE_BYTES: usize = 4 << 20;

/// How long a peer may take no byte of what is sent to it.
const SEND_PATIENCE: Duration = Duration::from_secs(30);

/// The slowest that a long message may come, in bytes a second, once it has begun.
const SLOWEST_BYTES_PER_S: u64 = 128 << 10;

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChannelKind {
    /// One request of a client, or of one party to another.
    Request,
    /// The frames of one session between two parties.
    Session,
}

/// Names a channel to the side that accepts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId {
    /// What it is for.
    pub kind: ChannelKind,
    /// Chosen by the side that opens it.
    pub id: u128,
}

impl ChannelId {
    pub(crate) const BYTES: usize = 17;

    /// A channel for a request.
    pub fn request(id: u128) -> Self {
        Self { kind: ChannelKind::Request, id }
    }

    /// A channel for a session.
    pub fn session(id: u128) -> Self {
        Self { kind: ChannelKind::Session, id }
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::BYTES);
        bytes.extend_from_slice(&[match self.kind {
            ChannelKind::Request => 1,
            ChannelKind::Session => 2,
        }]);
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.freeze()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, id) = bytes.split_first()?;
        let kind = match kind {
            1 => ChannelKind::Request,
            2 => ChannelKind::Session,
            _ => return None,
        };
        Some(Self { kind, id: u128::from_le_bytes(id.try_into().ok()?) })
    }
}

/// The incoming direction of a shaped connection, shared by its channels.
pub(crate) type SharedClock = Option<Arc<Mutex<LinkClock>>>;

/// Both directions of a channel. Dropped before [`ByteSender::finish`], it shows the peer a broken channel, not an end.
pub struct ByteChannel {
    /// The way out.
    pub sender: ByteSender,
    /// The way in.
    pub receiver: ByteReceiver,
}

impl ByteChannel {
    pub(crate) fn new(send: SendHalf, recv: ByteReader, peer: Arc<str>, clock: SharedClock) -> Self {
        Self {
            sender: ByteSender { half: send, peer: peer.clone(), keep: None },
            receiver: ByteReceiver { reader: recv, peer, clock, length: None, held: None, keep: None },
        }
    }

    pub(crate) fn from_halves(send: SendHalf, recv: RecvHalf, peer: Arc<str>, clock: SharedClock) -> Self {
        Self::new(send, ByteReader::new(recv), peer, clock)
    }

    /// The connection lives as long as its channels.
    pub(crate) fn kept_by(mut self, connection: &Connection) -> Self {
        self.sender.keep = Some(connection.clone());
        self.receiver.keep = Some(connection.clone());
        self
    }

    /// The two directions, for two tasks.
    pub fn split(self) -> (ByteSender, ByteReceiver) {
        (self.sender, self.receiver)
    }

    /// As [`ByteSender::send_bytes`].
    pub async fn send_bytes(&mut self, bytes: Bytes) -> Result<(), NetError> {
        self.sender.send_bytes(bytes).await
    }

    /// As [`ByteSender::send`].
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), NetError> {
        self.sender.send(message).await
    }

    /// As [`ByteReceiver::recv_bytes`].
    pub async fn recv_bytes(&mut self, limit: usize, deadline: Duration) -> Result<Bytes, NetError> {
        self.receiver.recv_bytes(limit, deadline).await
    }

    /// As [`ByteReceiver::recv`].
    pub async fn recv<T: DeserializeOwned>(&mut self, limit: usize, deadline: Duration) -> Result<T, NetError> {
        self.receiver.recv(limit, deadline).await
    }

    /// As [`ByteSender::finish`].
    pub fn finish(&mut self) {
        self.sender.finish();
    }
}

/// The way out of a channel.
pub struct ByteSender {
    half: SendHalf,
    peer: Arc<str>,
    keep: Option<Connection>,
}

impl ByteSender {
    /// Sends one message, without copying it when it is large. It fails when the peer takes nothing for 30 s.
    pub async fn send_bytes(&mut self, mut bytes: Bytes) -> Result<(), NetError> {
        let length = (bytes.len() as u64).to_le_bytes();
        if bytes.len() <= COALESCE_BYTES {
            // A copy, of what may be secret.
            let mut whole = Zeroizing::new(Vec::with_capacity(LENGTH_BYTES + bytes.len()));
            whole.extend_from_slice(&length);
            whole.extend_from_slice(&bytes);
            return self.write(Bytes::from_owner(whole)).await;
        }
        self.write(Bytes::copy_from_slice(&length)).await?;
        while !bytes.is_empty() {
            let stride = bytes.split_to(bytes.len().min(STRIDE_BYTES));
            self.write(stride).await?;
        }
        Ok(())
    }

    /// Sends one control message through the codec.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), NetError> {
        let bytes = codec::encode(message).map_err(|error| NetError::local(error.to_string()))?;
        self.send_bytes(bytes.into()).await
    }

    /// Says that nothing more follows. What was sent still arrives.
    pub fn finish(&mut self) {
        self.half.finish();
    }

    /// Gives up: the peer sees a broken channel, and what has not left yet does not arrive.
    pub fn reset(&mut self) {
        self.half.reset();
    }

    /// Writes bytes as they are, under one deadline.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), NetError> {
        match tokio::time::timeout(SEND_PATIENCE, self.half.write(bytes)).await {
            Ok(written) => written.map_err(|error| error.about(&self.peer)),
            Err(_) => Err(deadline_error(&self.peer, "reading what it asked for", SEND_PATIENCE)),
        }
    }

    pub(crate) fn half(&mut self) -> &mut SendHalf {
        &mut self.half
    }
}

/// The way into a channel.
pub struct ByteReceiver {
    reader: ByteReader,
    peer: Arc<str>,
    clock: SharedClock,
    /// The length of the message that is arriving.
    length: Option<usize>,
    /// A message that the shape of the link holds back.
    held: Option<(Instant, Bytes)>,
    keep: Option<Connection>,
}

impl ByteReceiver {
    /// The length in bytes of the next message, as its sender declares it and at most `limit`,
    /// before any of it is taken; none if the peer has finished. It must begin within `deadline`.
    /// Loses nothing when it is dropped while waiting.
    pub async fn next_length(&mut self, limit: usize, deadline: Duration) -> Result<Option<usize>, NetError> {
        match &self.held {
            Some((_, held)) => Ok(Some(held.len())),
            None => self.length(limit, Some(deadline)).await,
        }
    }

    /// The next message, of at most `limit` bytes, or none if the peer has finished. It must begin within `deadline`, and
    /// then come in at 128 KiB/s or faster. Loses nothing when it is dropped while waiting.
    pub async fn next_bytes(&mut self, limit: usize, deadline: Duration) -> Result<Option<Bytes>, NetError> {
        self.next(limit, Some(deadline), deadline).await
    }

    /// As [`ByteReceiver::next_bytes`], where the end is an error.
    pub async fn recv_bytes(&mut self, limit: usize, deadline: Duration) -> Result<Bytes, NetError> {
        let next = self.next_bytes(limit, deadline).await?;
        next.ok_or_else(|| NetError::lost(&self.peer, "it ended the channel"))
    }

    /// The next control message, decoded.
    pub async fn recv<T: DeserializeOwned>(&mut self, limit: usize, deadline: Duration) -> Result<T, NetError> {
        let bytes = self.recv_bytes(limit, deadline).await?;
        codec::decode(&bytes, limit).map_err(|error| NetError::protocol(&self.peer, error.to_string()))
    }

    /// A message that may take any time to begin when `begin` is none.
    pub(crate) async fn next(
        &mut self,
        limit: usize,
        begin: Option<Duration>,
        deadline: Duration,
    ) -> Result<Option<Bytes>, NetError> {
        if self.held.is_none() {
            let Some(length) = self.length(limit, begin).await? else { return Ok(None) };
            let slack = Duration::from_secs(length as u64 / SLOWEST_BYTES_PER_S);
            let body = tokio::time::timeout(deadline + slack, self.reader.need(length)).await;
            let body = body.map_err(|_| deadline_error(&self.peer, "a message it had begun", deadline + slack))?;
            let body = body.map_err(|error| error.about(&self.peer))?;
            self.length = None;
            let Some(clock) = &self.clock else { return Ok(Some(body)) };
            let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
            self.held = Some((clock.arrival(Instant::now(), LENGTH_BYTES + length), body));
        }
        if let Some((ready, _)) = &self.held {
            tokio::time::sleep_until((*ready).into()).await;
        }
        Ok(self.held.take().map(|(_, body)| body))
    }

    async fn length(&mut self, limit: usize, begin: Option<Duration>) -> Result<Option<usize>, NetError> {
        if self.length.is_none() {
            let head = self.reader.take(LENGTH_BYTES);
            let head = match begin {
                None => head.await,
                Some(begin) => {
                    let head = tokio::time::timeout(begin, head).await;
                    head.map_err(|_| deadline_error(&self.peer, "a message", begin))?
                }
            };
            let Some(head) = head.map_err(|error| error.about(&self.peer))? else { return Ok(None) };
            let length = head[..].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
            if length > limit as u64 {
                let what = format!("a message of {length} bytes, over the limit of {limit}");
                return Err(NetError::protocol(&self.peer, what));
            }
            self.length = Some(length as usize);
        }
        Ok(self.length)
    }

    pub(crate) fn reader(&mut self) -> &mut ByteReader {
        &mut self.reader
    }
}

fn deadline_error(peer: &str, what: &'static str, waited: Duration) -> NetError {
    NetError::Deadline { peer: peer.into(), what, waited_ms: waited.as_millis() as u64 }
}
