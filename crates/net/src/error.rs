//! Why a connection, a channel or a message failed, and through whose fault.

use std::net::SocketAddr;

/// What goes wrong between two endpoints. `peer` names the other side: a party, a client's key, or an address.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetError {
    /// This side's port or socket is not to be had.
    #[error("cannot listen on {address} ({kind}): {reason}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        kind: &'static str,
        /// What the operating system said.
        reason: String,
    },
    /// This side was set up or used wrongly.
    #[error("{what}")]
    Local {
        /// What to mend.
        what: String,
    },
    /// Nobody answers at the address.
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable {
        /// Who was wanted, with the address.
        peer: String,
        /// What the link reported.
        reason: String,
    },
    /// The other side is not who it should be: its key is another than the pinned one, or its TLS is none of ours.
    #[error("{peer} did not prove who it is: {reason}")]
    Untrusted {
        /// The offender.
        peer: String,
        /// What failed.
        reason: String,
    },
    /// The other side does not want this side.
    #[error("{peer} refused the connection: {refusal}")]
    Refused {
        /// Who refused.
        peer: String,
        /// Why.
        refusal: Refusal,
    },
    /// This side does not want the other side, and has told it so.
    #[error("turned {peer} away: {why}")]
    TurnedAway {
        /// Who was turned away.
        peer: String,
        /// What it did wrong.
        why: &'static str,
    },
    /// The other side is too slow.
    #[error("{peer} did not finish {what} within {waited_ms} ms")]
    Deadline {
        /// The slow one.
        peer: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited_ms: u64,
    },
    /// The connection or channel ended, by the network or by the other side's will.
    #[error("connection to {peer} lost: {reason}")]
    Lost {
        /// The other side.
        peer: String,
        /// What the link reported.
        reason: String,
    },
    /// The other side sent what no version of ours sends.
    #[error("{peer} broke the protocol: {what}")]
    Protocol {
        /// The offender.
        peer: String,
        /// What was wrong.
        what: String,
    },
}

impl NetError {
    pub(crate) fn local(what: impl Into<String>) -> Self {
        Self::Local { what: what.into() }
    }

    pub(crate) fn lost(peer: &str, reason: impl Into<String>) -> Self {
        Self::Lost { peer: peer.into(), reason: reason.into() }
    }

    pub(crate) fn protocol(peer: &str, what: impl Into<String>) -> Self {
        Self::Protocol { peer: peer.into(), what: what.into() }
    }

    /// The same failure, with a better name for the other side.
    pub(crate) fn about(mut self, name: &str) -> Self {
        match &mut self {
            Self::Bind { .. } | Self::Local { .. } => {}
            Self::Unreachable { peer, .. }
            | Self::Untrusted { peer, .. }
            | Self::Refused { peer, .. }
            | Self::TurnedAway { peer, .. }
            | Self::Deadline { peer, .. }
            | Self::Lost { peer, .. }
            | Self::Protocol { peer, .. } => *peer = name.into(),
        }
        self
    }
}

/// Why an endpoint turns a connection away. It is sent to the one turned away.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The two speak different versions of the protocol.
    #[error("it speaks protocol version {theirs}, this side {ours}")]
    Version {
        /// The version of the one refused.
        ours: u16,
        /// The version of the one refusing.
        theirs: u16,
    },
    /// The connecting side claims to be a party whose pinned key is another.
    #[error("the key of this side is not the one it holds for {claimed}")]
    PartyKey {
        /// The claimed role.
        claimed: String,
    },
    /// The key is on no list.
    #[error("the key of this side is not on its list")]
    Stranger,
    /// Parties connect in one direction only, and this was the other.
    #[error("a connection in this direction is not expected")]
    Direction,
    /// There are too many connections already.
    #[error("it has too many connections")]
    Busy,
}

impl Refusal {
    /// The same, as the refusing side says it.
    pub(crate) fn complaint(&self) -> &'static str {
        match self {
            Self::Version { .. } => "it speaks another version of the protocol",
            Self::PartyKey { .. } => "it claims to be a party whose key it does not hold",
            Self::Stranger => "its key is not on the list of clients",
            Self::Direction => "it should wait to be dialled",
            Self::Busy => "too many clients are connected",
        }
    }
}
