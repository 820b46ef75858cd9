//! What goes wrong in a request, and through whose fault.

use tercet_net::{Fault, NetError, PartyId};

/// Why there is no answer. No error carries anything of an input or an output.
///
/// When a node dies, the error names it as soon as its connection counts as lost, and 300 ms later
/// at most.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An input is not one that the model takes: the caller is at fault.
    #[error("input {}: {what}", .index + 1)]
    Input {
        /// Which of the inputs, counted from 0.
        index: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The client was set up or asked wrongly: the caller is at fault.
    #[error("{0}")]
    Misuse(String),
    /// A node, or the way to it, failed.
    #[error("{}", named(*party, error))]
    Node {
        /// Which node.
        party: PartyId,
        /// What failed.
        error: NetError,
        /// Whether there was a connection: without one the node cannot have got its part of the
        /// request.
        connected: bool,
    },
    /// A node did not serve the request.
    #[error("{party} refused: {reason}")]
    Refused {
        /// Which node.
        party: PartyId,
        /// Whose fault it is, in the node's eyes.
        fault: Fault,
        /// The cause, in the node's words.
        reason: String,
    },
    /// Two nodes contradict each other: one of them is wrong or lies. Nothing of the answer is given out.
    #[error("{} and {} disagree on {what}: one of them is at fault", .parties[0], .parties[1])]
    Disagreement {
        /// The two nodes.
        parties: [PartyId; 2],
        /// On what.
        what: String,
    },
    /// The nodes agree on something that no client can work with.
    #[error("the nodes describe model {model} unusably: {what}")]
    Unusable {
        /// The model.
        model: String,
        /// What is wrong with it.
        what: String,
    },
    /// The deadline of the request has passed.
    #[error("no answer within {waited_ms} ms")]
    Deadline {
        /// How long the client waited.
        waited_ms: u64,
    },
}

impl Error {
    pub(crate) fn input(index: usize, what: impl ToString) -> Self {
        Self::Input { index, what: what.to_string() }
    }

    /// A message that a correct node does not send here.
    pub(crate) fn unexpected(party: PartyId, what: &str) -> Self {
        Self::node(party, NetError::Protocol { peer: party.to_string(), what: what.into() })
    }

    /// A failure of a node that was connected.
    pub(crate) fn node(party: PartyId, error: NetError) -> Self {
        Self::Node { party, error, connected: true }
    }

    /// Whether the nodes may have computed the request, or a part of it. They have not where all
    /// three could not get their part, or where one of them refused before it began.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Input { .. } | Self::Misuse(_) => false,
            Self::Node { connected, .. } => *connected,
            Self::Refused { fault, .. } => *fault == Fault::Nodes,
            Self::Disagreement { .. } | Self::Unusable { .. } | Self::Deadline { .. } => true,
        }
    }

    /// Whether a fresh request may well succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Node { error, .. } => matches!(error, NetError::Lost { .. }),
            Self::Refused { fault, .. } => *fault == Fault::Nodes,
            _ => false,
        }
    }

    /// How much an error says about the cause: of several at once the highest is reported.
    pub(crate) fn weight(&self) -> u8 {
        match self {
            Self::Refused { fault: Fault::Request, .. } => 3,
            Self::Node { .. } => 2,
            Self::Refused { .. } => 1,
            _ => 0,
        }
    }
}

/// An error of the links, with the node's name in front where it does not begin with it.
fn named(party: PartyId, error: &NetError) -> String {
    let text = error.to_string();
    if text.starts_with(&party.to_string()) { text } else { format!("{party}: {text}") }
}
