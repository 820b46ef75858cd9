//! The three parties of a computation.

use serde::{Deserialize, Serialize};

/// One of the three nodes. `P0` is the helper, `P1` (the lead) and `P2` are the evaluators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PartyId {
    /// The helper: holds masks only, sends, receives nothing during a computation.
    P0,
    /// The first evaluator, which also leads: it decides which requests run together.
    P1,
    /// The second evaluator.
    P2,
}

impl PartyId {
    /// All three, in order.
    pub const ALL: [PartyId; 3] = [PartyId::P0, PartyId::P1, PartyId::P2];

    /// 0, 1 or 2.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The party with this index, if there is one.
    pub fn from_index(index: usize) -> Option<PartyId> {
        Self::ALL.get(index).copied()
    }

    /// The two others, in order.
    pub fn others(self) -> [PartyId; 2] {
        match self {
            PartyId::P0 => [PartyId::P1, PartyId::P2],
            PartyId::P1 => [PartyId::P0, PartyId::P2],
            PartyId::P2 => [PartyId::P0, PartyId::P1],
        }
    }
}

impl std::fmt::Display for PartyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "P{}", self.index())
    }
}
