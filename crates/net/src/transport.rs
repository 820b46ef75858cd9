//! What a protocol session sees of the network: tagged frames to and from two peers.

use std::time::Duration;

use bytes::Bytes;

use crate::PartyId;

/// Bytes that a frame costs beyond its payload: tag (8), payload length (4), kind (4), all little-endian.
pub const FRAME_HEADER_BYTES: usize = 16;

/// The links of one party in one session. Bytes in, bytes out; no cryptography is known here.
///
/// Frames between two parties keep their order. A tag is used once a direction in a session: a second frame with the
/// same tag counts as a replay and ends the session. A transport belongs to one session and one thread; dropping it ends
/// its part of the session, after what was sent has left.
pub trait Transport: Send {
    /// Whose links these are.
    fn party(&self) -> PartyId;

    /// Hands a frame to the link. It never waits for the peer's *program*, only for room in bounded buffers on the
    /// helper's links (which is what bounds how far the helper runs ahead).
    fn send(&mut self, to: PartyId, tag: u64, payload: Bytes) -> Result<(), TransportError>;

    /// The next frame from `from`, which must carry `tag` (frames that overtook it are kept for their own turn). Blocks
    /// until the frame, the round deadline, or the peer's abort.
    fn recv(&mut self, from: PartyId, tag: u64) -> Result<Bytes, TransportError>;

    /// Tells both peers that this session is over and why; best effort, never blocks long.
    fn abort(&mut self, reason: &str);

    /// Waits until everything handed to `send` has left for the wire (not until it was read), or the deadline.
    fn flush(&mut self) -> Result<(), TransportError>;

    /// What has travelled so far.
    fn meter(&self) -> Meter;
}

/// Frames and bytes of one session at one party, by peer (index by [`PartyId::index`]; the own entry stays zero).
/// Bytes include [`FRAME_HEADER_BYTES`] a frame; they do not include TLS, QUIC or TCP framing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Sent to each peer.
    pub sent: [Traffic; 3],
    /// Received from each peer.
    pub received: [Traffic; 3],
    /// Time that `recv` spent blocked.
    pub waiting: Duration,
}

/// A count of frames and of their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes, headers included.
    pub bytes: u64,
}

impl Traffic {
    /// Counts one frame with this many payload bytes.
    pub(crate) fn count(&mut self, payload_bytes: usize) {
        self.frames += 1;
        self.bytes += (payload_bytes + FRAME_HEADER_BYTES) as u64;
    }
}

/// Why a frame did not come or go.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TransportError {
    /// The peer was silent beyond the round deadline.
    #[error("{party} kept this party waiting for {waited_ms} ms, beyond the deadline")]
    Deadline {
        /// The silent party.
        party: PartyId,
        /// How long we waited.
        waited_ms: u64,
    },
    /// The connection to the peer ended.
    #[error("connection to {party} lost: {reason}")]
    Lost {
        /// The peer.
        party: PartyId,
        /// What the link reported.
        reason: String,
    },
    /// The peer ended the session.
    #[error("{party} aborted: {reason}")]
    Aborted {
        /// The party that aborted.
        party: PartyId,
        /// The reason it gave (bounded in length, control characters removed).
        reason: String,
    },
    /// The peer sent something that this session does not expect.
    #[error("{party} broke the protocol: {what}")]
    Protocol {
        /// The offender.
        party: PartyId,
        /// What was wrong.
        what: String,
    },
}
