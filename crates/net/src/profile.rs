//! Where the time of one session went at one node, as it travels to a client that asked for it.
//!
//! A profile is a tree: the session, the operations of the model in it, and the scopes of the protocol within each. Every
//! entry holds what happened in itself alone, not in its children, so that sums over any set of entries are true sums;
//! over all entries the times add up to the session's wall time, bytes and rounds to those of its meters.
//!
//! *Security*: nothing here depends on a secret. Names are those of the public graph and of the program's own scopes, counts
//! and bytes follow from public shapes, and wall time is what anyone who watches the network sees of a session; code of a
//! session takes the same steps whatever the values are.

use serde::{Deserialize, Serialize};

use crate::PartyId;

/// Kinds of work that a session tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// This party's own arithmetic: whatever is none of the others.
    Local,
    /// Ring matrix products.
    Matmul,
    /// Shared and own randomness, lookup keys included.
    Randomness,
    /// Bit packing and unpacking.
    Packing,
    /// Handing frames to the links. At the helper this includes waiting for room: for whoever reads more slowly than it deals.
    Sending,
    /// Blocked on frames of the helper.
    HelperWait,
    /// Blocked on frames of the other evaluator.
    EvaluatorWait,
}

impl Work {
    /// How many kinds there are.
    pub const COUNT: usize = 7;
    /// All kinds, in the order of every list by kind.
    pub const ALL: [Work; Work::COUNT] = [
        Work::Local,
        Work::Matmul,
        Work::Randomness,
        Work::Packing,
        Work::Sending,
        Work::HelperWait,
        Work::EvaluatorWait,
    ];

    /// Blocked on frames of `peer`.
    pub fn wait_for(peer: PartyId) -> Work {
        if peer == PartyId::P0 { Work::HelperWait } else { Work::EvaluatorWait }
    }

    /// A word or three for tables.
    pub fn name(self) -> &'static str {
        match self {
            Work::Local => "local",
            Work::Matmul => "matmul",
            Work::Randomness => "randomness",
            Work::Packing => "packing",
            Work::Sending => "sending",
            Work::HelperWait => "waiting for helper",
            Work::EvaluatorWait => "waiting for evaluator",
        }
    }
}

/// Where the time of one session went at one node: entry 0 is the session, its children are the operations of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkProfile {
    /// How often the place or the kind of work changed. Each change is a look at the clock, so this says what measuring cost.
    pub changes: u64,
    /// Parents before their children, children in the order in which they first ran.
    pub entries: Vec<WorkEntry>,
}

/// One place of a session: an operation of the model, or a scope of the protocol within its parent. All numbers are of
/// the place itself, without its children.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkEntry {
    /// The operation's name in the graph (`layer3/attention`) or the scope's (`compare`).
    pub name: String,
    /// The entry around it; an entry before this one. 0 at entry 0.
    pub parent: u32,
    /// When it was first entered, in nanoseconds after the session's start.
    pub first_ns: u64,
    /// Wall time of the session's thread by kind of work, in the order of [`Work::ALL`], in nanoseconds.
    pub wall_ns: [u64; Work::COUNT],
    /// How often it was entered.
    pub visits: u64,
    /// Exchanges that began in it.
    pub exchanges: u64,
    /// Rounds that it added to the session's longest chain of exchanges.
    pub rounds: u64,
    /// Bytes sent to each party, frame headers included.
    pub sent: [u64; 3],
    /// Bytes received from each party, likewise.
    pub received: [u64; 3],
}

impl WorkEntry {
    /// Longest name, in bytes.
    pub const LONGEST_NAME_BYTES: usize = 256;

    /// Wall time of all kinds together, in nanoseconds.
    pub fn own_ns(&self) -> u64 {
        self.wall_ns.iter().sum()
    }

    /// All numbers of the entry that have a meaningful sum.
    fn numbers(&self) -> impl Iterator<Item = &u64> {
        self.wall_ns.iter().chain([&self.visits, &self.exchanges, &self.rounds]).chain(&self.sent).chain(&self.received)
    }
}

impl WorkProfile {
    /// Most entries of a profile. A model of a hundred layers has a tenth of it.
    pub const MOST_ENTRIES: usize = 1 << 16;

    /// Wall time of the session by kind of work, in the order of [`Work::ALL`], in nanoseconds.
    pub fn by_kind_ns(&self) -> [u64; Work::COUNT] {
        Work::ALL.map(|kind| self.entries.iter().map(|entry| entry.wall_ns[kind as usize]).sum())
    }

    /// Wall time of the session, in nanoseconds.
    pub fn wall_ns(&self) -> u64 {
        self.by_kind_ns().iter().sum()
    }

    /// Checks a profile of outside origin, after which its entries form one tree and no sum over any of them overflows.
    ///
    /// # Errors
    /// What is wrong, in words that follow "a profile with".
    pub fn check(&self) -> Result<(), &'static str> {
        if self.entries.is_empty() || self.entries.len() > WorkProfile::MOST_ENTRIES {
            return Err("no entry, or too many");
        }
        let mut sum = 0u64;
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.parent as usize >= index.max(1) {
                return Err("an entry before the one around it");
            }
            if entry.name.len() > WorkEntry::LONGEST_NAME_BYTES || entry.name.chars().any(char::is_control) {
                return Err("a name that is none");
            }
            for number in entry.numbers() {
                sum = sum.checked_add(*number).ok_or("numbers beyond all measure")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn entry(name: &str, parent: u32) -> WorkEntry {
        WorkEntry { name: name.into(), parent, wall_ns: [1, 2, 3, 4, 5, 6, 7], ..WorkEntry::default() }
    }

    fn profile() -> WorkProfile {
        let entries = vec![entry("", 0), entry("layer0/ffn/up", 0), entry("product", 1), entry("norm", 0)];
        WorkProfile { changes: 9, entries }
    }

    #[test]
    fn a_profile_travels_and_adds_up() {
        let profile = profile();
        assert_eq!(profile.check(), Ok(()));
        assert_eq!(profile.by_kind_ns(), [4, 8, 12, 16, 20, 24, 28]);
        assert_eq!(profile.wall_ns(), 4 * 28);
        let bytes = codec::encode(&profile).unwrap();
        assert_eq!(codec::decode::<WorkProfile>(&bytes, bytes.len()).unwrap(), profile);
        assert_eq!(Work::ALL.map(|kind| kind as usize), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_no_tree_of_numbers_is_refused() {
        type Spoil = fn(&mut WorkProfile);
        let spoiled: [(&str, Spoil); 8] = [
            ("no entry", |p| p.entries.clear()),
            ("too many", |p| p.entries.resize(WorkProfile::MOST_ENTRIES + 1, WorkEntry::default())),
            ("before", |p| p.entries[2].parent = 2),
            ("before", |p| p.entries[1].parent = u32::MAX),
            ("before", |p| p.entries[0].parent = 1),
            ("name", |p| p.entries[1].name = "x".repeat(257)),
            ("name", |p| p.entries[1].name = "a\nb".into()),
            ("measure", |p| (p.entries[1].wall_ns[2], p.entries[2].sent[1]) = (u64::MAX / 2, u64::MAX / 2 + 1)),
        ];
        for (words, spoil) in spoiled {
            let mut profile = profile();
            spoil(&mut profile);
            assert!(profile.check().unwrap_err().contains(words), "{words}");
        }
    }
}
