//! One authenticated connection, QUIC or TCP, as a source of two-way byte streams.

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, VarInt, WriteError};
use rustls::AlertDescription;
use zeroize::Zeroizing;

use crate::mux::{Mux, MuxRecv, MuxSend};
use crate::seed::EXPORT_LABEL;
use crate::{NetError, PublicKey, Refusal, quic};

/// Largest piece that a stream hands over at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes that a connection has put on the wire and taken from it, as the operating system sees them: UDP payloads for
/// QUIC, the TCP stream for TCP; TLS, framing and acknowledgements of QUIC included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireBytes {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

/// A connection whose peer has proved its key.
pub(crate) enum Link {
    Quic { connection: quinn::Connection, address: String },
    Tcp(Mux),
}

impl Link {
    pub(crate) fn quic(connection: quinn::Connection) -> Self {
        let address = connection.remote_address().to_string();
        Self::Quic { connection, address }
    }

    /// The peer's address.
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Quic { address, .. } => address,
            Self::Tcp(mux) => mux.address(),
        }
    }

    /// The peer's key.
    pub(crate) fn peer_key(&self) -> Option<PublicKey> {
        match self {
            Self::Quic { connection, .. } => quic::peer_key(connection),
            Self::Tcp(mux) => Some(mux.peer_key()),
        }
    }

    /// A new stream; the peer learns of it with its first byte.
    pub(crate) async fn open(&self) -> Result<(SendHalf, RecvHalf), NetError> {
        match self {
            Self::Quic { connection, address } => {
                let opened = connection.open_bi().await;
                let (send, recv) = opened.map_err(|error| quic::connection_error(address, &error))?;
                Ok(quic_halves(send, recv, address))
            }
            Self::Tcp(mux) => mux.open().map(|(send, recv)| (SendHalf::Tcp(send), RecvHalf::Tcp(recv))),
        }
    }

    /// The next stream that the peer opens. Loses nothing when it is dropped while waiting.
    pub(crate) async fn accept(&self) -> Result<(SendHalf, RecvHalf), NetError> {
        match self {
            Self::Quic { connection, address } => {
                let accepted = connection.accept_bi().await;
                let (send, recv) = accepted.map_err(|error| quic::connection_error(address, &error))?;
                Ok(quic_halves(send, recv, address))
            }
            Self::Tcp(mux) => mux.accept().await.map(|(send, recv)| (SendHalf::Tcp(send), RecvHalf::Tcp(recv))),
        }
    }

    /// Waits for the end of the connection, and says why it came.
    pub(crate) async fn closed(&self) -> NetError {
        match self {
            Self::Quic { connection, address } => quic::connection_error(address, &connection.closed().await),
            Self::Tcp(mux) => mux.closed().await,
        }
    }

    /// Whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Quic { connection, .. } => connection.close_reason().is_some(),
            Self::Tcp(mux) => mux.is_closed(),
        }
    }

    /// Ends the connection and tells the peer why.
    pub(crate) fn close(&self, reason: &str) {
        match self {
            Self::Quic { connection, .. } => connection.close(VarInt::from_u32(0), reason.as_bytes()),
            Self::Tcp(mux) => mux.close(reason),
        }
    }

    /// More streams and buffer, for a peer that has proved to be a party.
    pub(crate) fn widen(&self) {
        match self {
            Self::Quic { connection, .. } => quic::widen(connection),
            Self::Tcp(mux) => mux.widen(),
        }
    }

    /// The largest datagrams that the path carries, as far as that has been found out; none over
    /// TCP.
    pub(crate) fn datagram_bytes(&self) -> Option<u16> {
        match self {
            Self::Quic { connection, .. } => Some(connection.stats().path.current_mtu),
            Self::Tcp(_) => None,
        }
    }

    /// Less buffer, for a peer that has proved to be a client: what one key can have wait here is
    /// bounded.
    pub(crate) fn narrow(&self) {
        if let Self::Quic { connection, .. } = self {
            quic::narrow(connection);
        }
    }

    /// 32 bytes that only the two ends of this very TLS session know, for the pair seed.
    pub(crate) fn exported(&self) -> Result<Zeroizing<[u8; 32]>, NetError> {
        match self {
            Self::Quic { connection, .. } => {
                let mut out = Zeroizing::new([0; 32]);
                let exported = connection.export_keying_material(&mut *out, EXPORT_LABEL, &[]);
                exported.map(|()| out).map_err(|_| NetError::local("the TLS session exports no key"))
            }
            Self::Tcp(mux) => Ok(mux.exported()),
        }
    }

    pub(crate) fn wire_bytes(&self) -> WireBytes {
        match self {
            Self::Quic { connection, .. } => quic::wire_bytes(connection),
            Self::Tcp(mux) => mux.wire_bytes(),
        }
    }
}

/// What a TLS alert from the peer means: it turned this side away, and why.
pub(crate) fn unwelcome(peer: &str, alert: AlertDescription) -> NetError {
    match alert {
        AlertDescription::AccessDenied => NetError::Refused { peer: peer.into(), refusal: Refusal::Stranger },
        AlertDescription::NoApplicationProtocol => {
            NetError::Untrusted { peer: peer.into(), reason: "it does not speak tercet/1".into() }
        }
        other => NetError::Untrusted { peer: peer.into(), reason: format!("its TLS gave up with alert {other:?}") },
    }
}

fn quic_halves(stream: quinn::SendStream, recv: quinn::RecvStream, address: &str) -> (SendHalf, RecvHalf) {
    let send = QuicSend { stream, peer: address.into(), finished: false };
    (SendHalf::Quic(send), RecvHalf::Quic(recv, address.into()))
}

/// The sending half of a stream. Dropped unfinished, it resets the stream.
pub(crate) enum SendHalf {
    Quic(QuicSend),
    Tcp(MuxSend),
}

pub(crate) struct QuicSend {
    stream: quinn::SendStream,
    peer: String,
    finished: bool,
}

impl SendHalf {
    /// Writes all of it, without copying.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), NetError> {
        match self {
            Self::Quic(send) => send.stream.write_chunk(bytes).await.map_err(|error| match error {
                WriteError::ConnectionLost(error) => quic::connection_error(&send.peer, &error),
                WriteError::Stopped(_) => NetError::lost(&send.peer, "it reads no more"),
                other => NetError::lost(&send.peer, other.to_string()),
            }),
            Self::Tcp(send) => send.write(bytes).await,
        }
    }

    /// Nothing more follows.
    pub(crate) fn finish(&mut self) {
        match self {
            Self::Quic(send) => {
                send.finished = true;
                // It fails only when the stream is over already.
                let _ = send.stream.finish();
            }
            Self::Tcp(send) => send.finish(),
        }
    }

    /// Gives up: what was not yet sent is dropped, the peer sees a reset.
    pub(crate) fn reset(&mut self) {
        match self {
            Self::Quic(send) => {
                send.finished = true;
                let _ = send.stream.reset(VarInt::from_u32(1));
            }
            Self::Tcp(send) => send.reset(),
        }
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        // quinn would finish a dropped stream, which would make a broken message look whole.
        if !self.finished {
            let _ = self.stream.reset(VarInt::from_u32(1));
        }
    }
}

/// The receiving half of a stream.
pub(crate) enum RecvHalf {
    Quic(quinn::RecvStream, String),
    Tcp(MuxRecv),
}

impl RecvHalf {
    /// The next bytes in order, at most `most`; none at the end. Loses nothing when it is dropped while waiting.
    async fn read(&mut self, most: usize) -> Result<Option<Bytes>, NetError> {
        match self {
            Self::Quic(recv, peer) => match recv.read_chunk(most, true).await {
                Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
                Err(ReadError::ConnectionLost(error)) => Err(quic::connection_error(peer, &error)),
                Err(ReadError::Reset(_)) => Err(NetError::lost(peer, "it gave up in the middle")),
                Err(other) => Err(NetError::lost(peer, other.to_string())),
            },
            Self::Tcp(recv) => recv.read(most).await,
        }
    }

    fn peer(&self) -> &str {
        match self {
            Self::Quic(_, peer) => peer,
            Self::Tcp(recv) => recv.peer(),
        }
    }
}

/// Gathers what a stream delivers into pieces of wanted lengths.
pub(crate) struct ByteReader {
    half: RecvHalf,
    gathered: BytesMut,
    /// A chunk not yet gathered: a piece that lies within one chunk is never copied.
    chunk: Bytes,
}

impl ByteReader {
    pub(crate) fn new(half: RecvHalf) -> Self {
        Self { half, gathered: BytesMut::new(), chunk: Bytes::new() }
    }

    /// Exactly `count` bytes; none if the stream ended cleanly before the first of them. Loses nothing when it is dropped
    /// while waiting: the next call goes on where this one was.
    pub(crate) async fn take(&mut self, count: usize) -> Result<Option<Bytes>, NetError> {
        loop {
            if self.gathered.is_empty() && self.chunk.len() >= count {
                return Ok(Some(self.chunk.split_to(count)));
            }
            let missing = count.saturating_sub(self.gathered.len());
            if missing == 0 {
                return Ok(Some(self.gathered.split_to(count).freeze()));
            }
            if self.chunk.is_empty() {
                match self.half.read(PIECE_BYTES).await? {
                    Some(chunk) => self.chunk = chunk,
                    None if self.gathered.is_empty() => return Ok(None),
                    None => return Err(NetError::lost(self.half.peer(), "it ended in the middle of a message")),
                }
                continue;
            }
            if self.gathered.is_empty() {
                // Pages that no byte comes for are never touched; beyond this, growth waits for the bytes.
                self.gathered.reserve(count.min(64 << 20));
            }
            let part = self.chunk.split_to(missing.min(self.chunk.len()));
            self.gathered.extend_from_slice(&part);
        }
    }

    /// As [`ByteReader::take`], where the end is an error too.
    pub(crate) async fn need(&mut self, count: usize) -> Result<Bytes, NetError> {
        let taken = self.take(count).await?;
        taken.ok_or_else(|| NetError::lost(self.half.peer(), "it ended the stream"))
    }

    pub(crate) fn peer(&self) -> &str {
        self.half.peer()
    }
}
