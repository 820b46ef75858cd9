//! Where a session's time goes: a cursor in a tree of scopes.
//!
//! The cursor stands on one place of the tree and on one kind of work. Whenever either changes, the time since the last
//! change is added to where it stood: one look at the clock a change, no time is counted twice or lost, and all times
//! together are the session's wall time to the nanosecond.
//!
//! *Cost*: two changes for every scope and every timed stretch, each 1.1 to 1.3 times a look at the clock
//! (`benches/benches/profile.rs`). A session of MiniLM makes 7,600 changes, 0.4 ms in all. Memory is one entry for each place, not
//! for each visit.
//!
//! *Security*: see [`tercet_net::WorkProfile`]: places, counts and bytes follow from public shapes alone.

use std::collections::BTreeMap;
use std::time::Instant;

use tercet_net::{FRAME_HEADER_BYTES, PartyId, Work, WorkEntry, WorkProfile};

/// A place of the tree, as an index of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

impl Place {
    /// The session itself.
    const ROOT: Place = Place(0);
}

/// The tree and the cursor of one session.
pub(crate) struct Profiler {
    slots: Vec<Slot>,
    /// The children of the root by name: there may be thousands, where a scope has a handful.
    operations: BTreeMap<String, u32>,
    changes: u64,
    place: Place,
    kind: Work,
    begun: Instant,
    /// When the cursor last moved.
    since: Instant,
}

/// An entry, and its place among those with the same parent: a list from the newest to the oldest. 0 ends it, as the root
/// is nobody's child.
#[derive(Default)]
struct Slot {
    entry: WorkEntry,
    newest_child: u32,
    older_sibling: u32,
}

impl Profiler {
    pub(crate) fn new() -> Profiler {
        let begun = Instant::now();
        let mut root = Slot::default();
        root.entry.visits = 1;
        Profiler {
            slots: vec![root],
            operations: BTreeMap::new(),
            changes: 0,
            place: Place::ROOT,
            kind: Work::Local,
            begun,
            since: begun,
        }
    }

    /// Goes into the child of this name; returns where it was.
    pub(crate) fn enter(&mut self, name: &str) -> Place {
        self.settle();
        let outer = self.place;
        self.place = self.child(outer, name);
        outer
    }

    /// Goes back to where it was.
    pub(crate) fn leave(&mut self, outer: Place) {
        self.settle();
        self.place = outer;
    }

    /// Goes to an operation of the model.
    pub(crate) fn operation(&mut self, name: &str) {
        self.settle();
        self.place = match self.operations.get(name) {
            Some(known) => self.visit(Place(*known)),
            None => {
                let place = self.add(Place::ROOT, name);
                self.operations.insert(name.into(), place.0);
                place
            }
        };
    }

    /// Turns to another kind of work; returns the one before.
    pub(crate) fn turn_to(&mut self, kind: Work) -> Work {
        self.settle();
        std::mem::replace(&mut self.kind, kind)
    }

    /// Counts a frame on its way to a party.
    pub(crate) fn sent(&mut self, to: PartyId, payload: usize) {
        self.here().sent[to.index()] += (payload + FRAME_HEADER_BYTES) as u64;
    }

    /// Counts a frame from a party.
    pub(crate) fn received(&mut self, from: PartyId, payload: usize) {
        self.here().received[from.index()] += (payload + FRAME_HEADER_BYTES) as u64;
    }

    /// Counts an exchange that begins.
    pub(crate) fn exchange(&mut self) {
        self.here().exchanges += 1;
    }

    /// Counts rounds that the session's longest chain has grown by.
    pub(crate) fn rounds(&mut self, more: u64) {
        self.here().rounds += more;
    }

    /// Everything until now.
    pub(crate) fn report(&mut self) -> WorkProfile {
        self.settle();
        let changes = self.changes;
        WorkProfile { changes, entries: self.slots.iter().map(|slot| slot.entry.clone()).collect() }
    }

    fn here(&mut self) -> &mut WorkEntry {
        &mut self.slots[self.place.0 as usize].entry
    }

    /// Adds the time since the last change to where the cursor stands.
    fn settle(&mut self) {
        let now = Instant::now();
        let passed = now.duration_since(self.since).as_nanos() as u64;
        self.since = now;
        self.changes += 1;
        let kind = self.kind as usize;
        self.here().wall_ns[kind] += passed;
    }

    /// The child of a place by name, made if it is new.
    fn child(&mut self, parent: Place, name: &str) -> Place {
        let mut at = self.slots[parent.0 as usize].newest_child;
        while at != 0 {
            let Slot { entry, older_sibling, .. } = &self.slots[at as usize];
            if entry.name == name {
                return self.visit(Place(at));
            }
            at = *older_sibling;
        }
        self.add(parent, name)
    }

    /// A new child of a place. Where the tree is full, the place itself.
    fn add(&mut self, parent: Place, name: &str) -> Place {
        if self.slots.len() == WorkProfile::MOST_ENTRIES {
            return parent;
        }
        let at = self.slots.len() as u32;
        let first_ns = self.since.duration_since(self.begun).as_nanos() as u64;
        let entry = WorkEntry { name: name.into(), parent: parent.0, first_ns, ..WorkEntry::default() };
        let older_sibling = std::mem::replace(&mut self.slots[parent.0 as usize].newest_child, at);
        self.slots.push(Slot { entry, newest_child: 0, older_sibling });
        self.visit(Place(at))
    }

    fn visit(&mut self, place: Place) -> Place {
        self.slots[place.0 as usize].entry.visits += 1;
        place
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tercet_net::memory_world;
    use tercet_ring::{Pool, Seed};

    use super::*;
    use crate::{PairSeeds, Result, Session};

    fn total(profile: &WorkProfile) -> Duration {
        Duration::from_nanos(profile.wall_ns())
    }

    /// Name, parent, visits.
    fn shape(profile: &WorkProfile) -> Vec<(&str, u32, u64)> {
        profile.entries.iter().map(|entry| (entry.name.as_str(), entry.parent, entry.visits)).collect()
    }

    #[test]
    fn times_add_up_to_the_nanosecond() {
        let mut profiler = Profiler::new();
        for round in 0..50 {
            profiler.operation(["one", "two", "one"][round % 3]);
            let outer = profiler.enter("scope");
            let local = profiler.turn_to(Work::Randomness);
            assert_eq!(local, Work::Local);
            let randomness = profiler.turn_to(Work::Packing);
            assert_eq!(profiler.turn_to(randomness), Work::Packing);
            profiler.turn_to(local);
            profiler.leave(outer);
        }
        let profile = profiler.report();
        assert_eq!(total(&profile), profiler.since - profiler.begun);
        assert_eq!(profile.changes, 50 * 7 + 1);
        assert_eq!(shape(&profile), [("", 0, 1), ("one", 0, 33), ("scope", 1, 33), ("two", 0, 17), ("scope", 3, 17)]);
        assert_eq!(profile.check(), Ok(()));
        assert_eq!(profile.by_kind_ns()[Work::Sending as usize..], [0; 3], "nothing was sent or waited for");
        let later = profiler.report();
        assert_eq!(total(&later), profiler.since - profiler.begun, "a report does not end it");
        assert!(profile.entries.windows(2).all(|pair| pair[0].first_ns <= pair[1].first_ns), "in order of first entry");
    }

    #[test]
    fn a_full_tree_counts_at_the_parent() {
        let mut profiler = Profiler::new();
        profiler.operation("first");
        for number in 2..WorkProfile::MOST_ENTRIES {
            profiler.operation(&number.to_string());
        }
        profiler.operation("first");
        let outer = profiler.enter("no room");
        assert_eq!((outer, profiler.place), (Place(1), Place(1)));
        profiler.leave(outer);
        profiler.operation("no room either");
        assert_eq!(profiler.place, Place::ROOT);
        let profile = profiler.report();
        assert_eq!((profile.entries.len(), profile.check()), (WorkProfile::MOST_ENTRIES, Ok(())));
    }

    /// Two operations: a dealing that both evaluators use, and two exchanges side by side in a scope.
    fn program(s: &mut Session) -> Result<()> {
        s.set_label("deal");
        s.deal::<u32>(1000, 20, |_| vec![7; 1000])?;
        s.set_label("talk");
        for _ in 0..3 {
            s.scope("outer", |s| {
                let pair = [s.post::<u32>(&[1; 8], 32)?, s.post::<u32>(&[2; 8], 32)?];
                s.scope("inner", |s| pair.into_iter().try_for_each(|posted| s.wait::<u32>(posted, 8, 32).map(|_| ())))
            })?;
        }
        s.finish()
    }

    #[test]
    fn a_profile_agrees_with_the_meters() {
        let seed = || Some(Seed::from_bytes([3; 32]));
        let parties = memory_world(Duration::from_secs(30)).map(|transport| {
            std::thread::spawn(move || {
                let seeds = PairSeeds { first: seed(), second: seed() };
                let mut session = Session::new(Box::new(transport), &seeds, Pool::default()).unwrap();
                program(&mut session).unwrap();
                (session.party(), session.cost(), session.profile())
            })
        });
        for (party, cost, profile) in parties.map(|thread| thread.join().unwrap()) {
            let (me, entries) = (party.index(), &profile.entries);
            assert_eq!(shape(&profile), [("", 0, 1), ("deal", 0, 1), ("talk", 0, 1), ("outer", 2, 3), ("inner", 3, 3)]);
            assert_eq!(entries.iter().map(|e| e.exchanges).collect::<Vec<_>>(), [0, 0, 0, 6, 0]);
            assert_eq!(entries.iter().map(|e| e.rounds).collect::<Vec<_>>(), [0, 0, 0, 0, 3]);
            assert_eq!(entries.iter().map(|e| e.rounds).sum::<u64>(), cost.rounds);
            for peer in party.others().map(PartyId::index) {
                assert_eq!(entries.iter().map(|e| e.sent[peer]).sum::<u64>(), cost.bytes[me][peer]);
                assert_eq!(entries.iter().map(|e| e.received[peer]).sum::<u64>(), cost.bytes[peer][me]);
            }
            let waited = |kind: Work| entries.iter().map(|e| e.wall_ns[kind as usize] > 0).collect::<Vec<_>>();
            let (helper, evaluator) = (waited(Work::HelperWait), waited(Work::EvaluatorWait));
            if me == 0 {
                assert!(!helper.contains(&true) && !evaluator.contains(&true), "the helper hears from nobody");
            } else {
                assert_eq!(helper, [false, true, false, false, false]);
                assert_eq!(evaluator, [false, false, false, false, true]);
            }
        }
    }
}
