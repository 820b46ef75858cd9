//! Why a protocol step failed, and by whose fault.

use tercet_net::{PartyId, TransportError};

/// The result of anything that may wait for a peer.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure inside a session. After one the session is over; the node is not.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The link failed, the peer was silent, or it ended the session.
    #[error("at {step}: {source}")]
    Transport {
        /// Where we were.
        step: String,
        /// What the link said.
        source: TransportError,
    },
    /// A peer sent something that does not fit this step.
    #[error("at {step}: {party} sent {what}")]
    Peer {
        /// The sender.
        party: PartyId,
        /// Where we were.
        step: String,
        /// What was wrong with it.
        what: String,
    },
    /// This party was asked for something that it cannot do: a mistake in the calling program or in its input.
    #[error("{0}")]
    Misuse(String),
}

impl Error {
    /// The party at fault, where it is another one.
    pub fn peer(&self) -> Option<PartyId> {
        match self {
            Error::Peer { party, .. } => Some(*party),
            Error::Transport { source, .. } => Some(match source {
                TransportError::Deadline { party, .. }
                | TransportError::Lost { party, .. }
                | TransportError::Aborted { party, .. }
                | TransportError::Protocol { party, .. } => *party,
            }),
            Error::Misuse(_) => None,
        }
    }
}
