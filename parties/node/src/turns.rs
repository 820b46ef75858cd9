//! Which generations are alive, and when those that decode together begin their next step.
//!
//! At most one batch of a kind decodes at once. When it ends, those of it that go on come back within moments, each by a
//! way of its own; the lead gathers them for a small part of a step's time, so that they go on together instead of drifting
//! apart into batches of one. Whoever misses a gathering is not waited for again until it has come.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tercet_engine::Choice;

use crate::key::Name;

/// The longest that a batch waits for those who are expected.
const GATHER_LIMIT: Duration = Duration::from_millis(50);

/// And the part of the last step's time.
const GATHER_PART: u32 = 4;

/// Generations that may decode together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) model: String,
    pub(crate) choice: Choice,
    /// Whether tokens go back in by themselves.
    pub(crate) reentry: bool,
}

/// Where a generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before its first step has ended, or within any.
    Away,
    /// Its last step is over, and the next is expected.
    Expected,
    /// It has missed a gathering.
    Late,
}

/// When the next batch of a kind may begin.
#[derive(Debug)]
enum Pace {
    Running { since: Instant },
    Gathering { until: Instant },
}

/// What is known of the generations at a node.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    alive: BTreeMap<Name, (Kind, Stage)>,
    paces: Vec<(Kind, Pace)>,
}

/// Whether a batch may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    /// Not before others have come, or this time.
    Later(Instant),
    /// Not before the one that runs has ended.
    Busy,
}

impl Turns {
    /// A generation begins; false where one of this name lives.
    pub(crate) fn join(&mut self, name: Name, kind: Kind) -> bool {
        let fresh = !self.alive.contains_key(&name);
        if fresh {
            self.alive.insert(name, (kind, Stage::Away));
        }
        fresh
    }

    pub(crate) fn leave(&mut self, name: Name) {
        if let Some((kind, _)) = self.alive.remove(&name)
            && !self.alive.values().any(|(other, _)| *other == kind)
        {
            self.paces.retain(|(other, pace)| *other != kind || matches!(pace, Pace::Running { .. }));
        }
    }

    pub(crate) fn is_alive(&self, name: &Name) -> bool {
        self.alive.contains_key(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.alive.len()
    }

    /// A session has taken this one's step.
    pub(crate) fn taken(&mut self, name: &Name) {
        self.set(name, Stage::Away);
    }

    /// This one's step has ended.
    pub(crate) fn back(&mut self, name: &Name) {
        self.set(name, Stage::Expected);
    }

    fn set(&mut self, name: &Name, stage: Stage) {
        if let Some((_, of)) = self.alive.get_mut(name) {
            *of = stage;
        }
    }

    /// Whether those of a kind that are `ready` may begin.
    pub(crate) fn may_begin(&mut self, kind: &Kind, ready: impl Fn(&Name) -> bool, now: Instant) -> Turn {
        let until = match self.paces.iter().find(|(of, _)| of == kind) {
            Some((_, Pace::Running { .. })) => return Turn::Busy,
            Some((_, Pace::Gathering { until })) => *until,
            None => return Turn::Now,
        };
        let missing =
            self.alive.iter_mut().filter(|(name, (of, stage))| of == kind && *stage == Stage::Expected && !ready(name));
        if now < until {
            return if missing.count() == 0 { Turn::Now } else { Turn::Later(until) };
        }
        missing.for_each(|(_, (_, stage))| *stage = Stage::Late);
        Turn::Now
    }

    /// A batch of this kind begins.
    pub(crate) fn begin(&mut self, kind: &Kind, now: Instant) {
        self.pace(kind, Pace::Running { since: now });
    }

    /// It has ended, well or not.
    pub(crate) fn end(&mut self, kind: &Kind, now: Instant) {
        let running = self.paces.iter().find_map(|(of, pace)| match pace {
            Pace::Running { since } if of == kind => Some(*since),
            _ => None,
        });
        let took = running.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.pace(kind, Pace::Gathering { until: now + GATHER_LIMIT.min(took / GATHER_PART) });
    }

    fn pace(&mut self, kind: &Kind, pace: Pace) {
        self.paces.retain(|(of, _)| of != kind);
        self.paces.push((kind.clone(), pace));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> Kind {
        Kind { model: "m".into(), choice: Choice::Scores, reentry: false }
    }

    fn names(count: u8) -> Vec<Name> {
        (0..count).map(Name::for_tests).collect()
    }

    #[test]
    fn those_who_decode_together_are_gathered() {
        let (mut turns, names, start) = (Turns::default(), names(3), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for name in &names {
            assert!(turns.join(*name, kind()));
        }
        assert!(!turns.join(names[0], kind()), "one of this name lives");
        // Before any has decoded nobody is waited for.
        assert_eq!(turns.may_begin(&kind(), |name| *name == names[0], at(0)), Turn::Now);
        names.iter().for_each(|name| turns.taken(name));
        turns.begin(&kind(), at(0));
        assert_eq!(turns.may_begin(&kind(), |_| true, at(10)), Turn::Busy);
        let other = Kind { choice: Choice::Token, ..kind() };
        assert_eq!(turns.may_begin(&other, |_| true, at(10)), Turn::Now);
        names.iter().for_each(|name| turns.back(name));
        turns.end(&kind(), at(40));
        // A quarter of 40 ms is the time to come back.
        let two = |name: &Name| *name != names[2];
        assert_eq!(turns.may_begin(&kind(), two, at(41)), Turn::Later(at(50)));
        assert_eq!(turns.may_begin(&kind(), |_| true, at(41)), Turn::Now);
        // Who ends is not waited for.
        assert_eq!(turns.may_begin(&kind(), two, at(50)), Turn::Now);
        turns.begin(&kind(), at(50));
        names[..2].iter().for_each(|name| turns.taken(name));
        names[..2].iter().for_each(|name| turns.back(name));
        turns.end(&kind(), at(90));
        // Who was late is not waited for either, until it has come.
        assert_eq!(turns.may_begin(&kind(), two, at(91)), Turn::Now);
        turns.taken(&names[2]);
        turns.back(&names[2]);
        assert_eq!(turns.may_begin(&kind(), two, at(91)), Turn::Later(at(100)));
        turns.leave(names[2]);
        assert_eq!(turns.may_begin(&kind(), two, at(91)), Turn::Now);
        assert_eq!((turns.len(), turns.is_alive(&names[2])), (2, false));
    }

    #[test]
    fn nobody_waits_long_after_a_slow_step() {
        let (mut turns, names, start) = (Turns::default(), names(2), Instant::now());
        names.iter().for_each(|name| _ = turns.join(*name, kind()));
        turns.begin(&kind(), start);
        names.iter().for_each(|name| turns.back(name));
        let end = start + Duration::from_secs(10);
        turns.end(&kind(), end);
        assert_eq!(turns.may_begin(&kind(), |name| *name == names[0], end), Turn::Later(end + GATHER_LIMIT));
        // A lone one never waits.
        turns.leave(names[1]);
        assert_eq!(turns.may_begin(&kind(), |name| *name == names[0], end), Turn::Now);
    }
}
