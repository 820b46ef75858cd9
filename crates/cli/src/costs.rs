//! The largest costs of a session, and what would help against each.

use std::collections::BTreeMap;

use tercet_client::{PartyId, Work, WorkEntry, WorkProfile};

use crate::flame::{ns, primitive};
use crate::plan::{By, group};
use crate::screen::bytes;

/// What a share of a session must be for the evaluators to be held up by the helper.
const HELD_UP: f64 = 0.1;

/// One cost: a kind of work at one party; own arithmetic in one primitive alone.
pub(crate) struct Cost {
    party: PartyId,
    kind: Work,
    ns: u64,
    /// Of the party's session.
    share: f64,
    /// The same at the other evaluator, for costs of an evaluator.
    other: Option<(PartyId, u64)>,
    /// Where most of it is, with its part of the cost.
    primitive: (String, f64),
    operation: (String, f64),
    rounds: u64,
    sent: u64,
    /// At the helper the work that it does most.
    helper: Option<(Work, String, u64)>,
    /// Time that the evaluators wait for the helper, the longer of the two.
    held_up: u64,
}

/// The largest costs, the largest first. What both evaluators have in common is one cost, of the one that it takes longer.
pub(crate) fn largest(profiles: &[WorkProfile; 3], count: usize) -> Vec<Cost> {
    let [helper, evaluators @ ..] = profiles;
    let waits = |profile: &WorkProfile| profile.by_kind_ns()[Work::HelperWait as usize];
    let held_up = evaluators.iter().map(waits).max().unwrap_or(0);
    let session = evaluators.iter().map(WorkProfile::wall_ns).max().unwrap_or(0).max(1);
    let mut costs = of(PartyId::P0, helper);
    // A helper that nobody waits for is ahead, and waits for room on its links: that costs nothing.
    costs.retain(|cost| cost.kind != Work::Sending || held_up as f64 / session as f64 > HELD_UP);
    let busy = costs.iter().max_by_key(|cost| cost.ns).map(|cost| (cost.kind, cost.primitive.0.clone(), cost.ns));
    let [mut first, second] = [(PartyId::P1, &evaluators[0]), (PartyId::P2, &evaluators[1])].map(|(p, e)| of(p, e));
    for mut cost in second {
        let same = |other: &&mut Cost| {
            other.kind == cost.kind && (cost.kind != Work::Local || other.primitive.0 == cost.primitive.0)
        };
        match first.iter_mut().find(same) {
            Some(other) if other.ns >= cost.ns => other.other = Some((cost.party, cost.ns)),
            Some(other) => {
                cost.other = Some((other.party, other.ns));
                *other = cost;
            }
            None => first.push(cost),
        }
    }
    costs.extend(first);
    costs.sort_by_key(|cost| std::cmp::Reverse(cost.ns));
    costs.truncate(count);
    for cost in &mut costs {
        cost.held_up = held_up;
        cost.helper = busy.clone().filter(|_| cost.kind == Work::HelperWait);
    }
    costs
}

/// Everything that takes a party's time.
fn of(party: PartyId, profile: &WorkProfile) -> Vec<Cost> {
    let mut operation_of: Vec<&str> = Vec::with_capacity(profile.entries.len());
    let mut sums: BTreeMap<(usize, &str), Sum<'_>> = BTreeMap::new();
    for (index, entry) in profile.entries.iter().enumerate() {
        let inside = operation_of.get(entry.parent as usize).copied().unwrap_or_default();
        let operation = if entry.parent == 0 { entry.name.as_str() } else { inside };
        operation_of.push(operation);
        let primitive = primitive(index, entry);
        for (kind, time) in entry.wall_ns.iter().enumerate().filter(|(_, time)| **time > 0) {
            let own = if kind == Work::Local as usize { primitive } else { "" };
            let sum = sums.entry((kind, own)).or_default();
            sum.ns += time;
            *sum.primitives.entry(primitive).or_default() += time;
            *sum.operations.entry(group(operation, By::Kind)).or_default() += time;
        }
    }
    let count = |number: fn(&WorkEntry) -> u64| profile.entries.iter().map(number).sum();
    let (rounds, sent) = (count(|entry| entry.rounds), count(|entry| entry.sent.iter().sum()));
    let cost = |((kind, _), sum): ((usize, &str), Sum<'_>)| Cost {
        party,
        kind: Work::ALL[kind],
        ns: sum.ns,
        share: sum.ns as f64 / profile.wall_ns().max(1) as f64,
        other: None,
        primitive: most(&sum.primitives, sum.ns),
        operation: most(&sum.operations, sum.ns),
        rounds,
        sent,
        helper: None,
        held_up: 0,
    };
    sums.into_iter().map(cost).collect()
}

#[derive(Default)]
struct Sum<'a> {
    ns: u64,
    primitives: BTreeMap<&'a str, u64>,
    operations: BTreeMap<String, u64>,
}

/// The name with the largest part, and the part.
fn most<K: AsRef<str>>(parts: &BTreeMap<K, u64>, all: u64) -> (String, f64) {
    let largest = parts.iter().max_by_key(|(_, part)| **part);
    largest.map_or((String::new(), 0.0), |(name, part)| (name.as_ref().into(), *part as f64 / all.max(1) as f64))
}

impl Cost {
    /// What it is, and how much.
    pub(crate) fn what(&self) -> String {
        let percent = |part: f64| format!("{:.0} %", 100.0 * part);
        let (primitive, within) = &self.primitive;
        let (operation, at) = &self.operation;
        let what = match self.kind {
            Work::Local => format!("arithmetic in {primitive}"),
            kind => kind.name().to_owned(),
        };
        let mut places = Vec::new();
        if self.kind != Work::Local {
            places.push(format!("{} in {primitive}", percent(*within)));
        }
        if !operation.is_empty() {
            places.push(format!("{} in {operation}", percent(*at)));
        }
        let other = self.other.map_or(String::new(), |(party, time)| format!("; {party}: {}", ns(time)));
        let places = places.join(", ");
        format!("{}: {what}, {}, {} of its session ({places}{other}).", self.party, ns(self.ns), percent(self.share))
    }

    /// What would help.
    pub(crate) fn mend(&self) -> String {
        let helper = self.party == PartyId::P0;
        let (rounds, sent) = (self.rounds, bytes(self.sent));
        let primitive = &self.primitive.0;
        let mend = match self.kind {
            Work::Local => format!(
                "What would help: fewer or wider passes over memory in the loops of {primitive}, on more threads, in the widest \
                 vectors that the machine has."
            ),
            Work::Matmul => {
                "What would help: more threads for the node, a processor with AVX-512, the fast profile (32-bit \
                             lanes), and more inputs a batch, so that weights are read once for all of them."
                    .into()
            }
            Work::Randomness => format!(
                "What would help: a processor with vector AES, and masks drawn where they are used, instead of through memory; \
                 fewer masked values in {primitive}."
            ),
            Work::Packing => format!(
                "What would help: byte-aligned rings, or packing joined with what makes and uses the values; {sent} were sent."
            ),
            Work::Sending if helper => format!(
                "The helper waits for room on its links, or for the processor that carries them: {sent} were sent. What \
                 would help: more bandwidth, larger datagrams (profile jumbo or loopback), larger buffers."
            ),
            Work::Sending => format!(
                "What would help: larger datagrams (profile jumbo or loopback) or TCP, so that {sent} take fewer calls into the \
                 operating system."
            ),
            Work::HelperWait => self.of_the_helper(),
            Work::EvaluatorWait => format!(
                "{rounds} rounds: {} and {} a round. What would help: a shorter delay between P1 and P2 and more inputs a \
                 batch, which share its rounds, where it is the rounds; bandwidth, where it is the bytes; the same number of \
                 cores at both, where one waits for the other to compute.",
                ns(self.ns / rounds.max(1)),
                bytes(self.sent / rounds.max(1)),
            ),
        };
        match helper && self.kind != Work::Sending {
            true => format!("{mend} The evaluators wait {} for the helper.", ns(self.held_up)),
            false => mend,
        }
    }

    fn of_the_helper(&self) -> String {
        let busy = self.helper.as_ref().map_or(String::new(), |(kind, primitive, time)| {
            format!(" Most of its own time is {}, {} (chiefly {primitive}).", kind.name(), ns(*time))
        });
        format!(
            "The helper is what the evaluators wait for.{busy} What would help: more or faster cores there, a start ahead of the \
             request (its work does not depend on the input), and bandwidth from it."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flame::tests::profile;

    #[test]
    fn the_largest_costs_are_found_at_whom_they_are() {
        let mut profiles = [profile(), profile(), profile()];
        // P2 waits longer for P1 than the reverse, and the helper is ahead: it waits to send, and nobody for it.
        profiles[2].entries[7].wall_ns[6] += 1_000_000;
        profiles[0].entries[7].wall_ns = [0, 0, 0, 0, 50_000_000, 0, 0];
        for evaluator in &mut profiles[1..] {
            evaluator.entries[4].wall_ns[5] = 1000;
        }
        let costs = largest(&profiles, 3);
        let found: Vec<(PartyId, Work, u64)> = costs.iter().map(|cost| (cost.party, cost.kind, cost.ns)).collect();
        let matmul = (PartyId::P0, Work::Matmul, 9_000_000);
        assert_eq!(
            found,
            [matmul, (PartyId::P1, Work::Matmul, 9_000_000), (PartyId::P2, Work::EvaluatorWait, 9_000_000)]
        );
        assert_eq!(costs[2].other, Some((PartyId::P1, 8_000_000)));
        let what = costs[2].what();
        assert!(
            what.starts_with("P2: waiting for evaluator, 9.00 ms, 36 % of its session (100 % in compare, "),
            "{what}"
        );
        assert!(what.ends_with("100 % in layer/act; P1: 8.00 ms)."), "{what}");
        assert!(costs[2].mend().contains("8 rounds: 1.12 ms and 30 B a round"), "{}", costs[2].mend());

        // Now it is behind.
        profiles[1].entries[4].wall_ns[5] = 60_000_000;
        let costs = largest(&profiles, 2);
        assert_eq!((costs[0].party, costs[0].kind), (PartyId::P1, Work::HelperWait));
        assert!(
            costs[0].mend().contains("Most of its own time is sending, 50 ms (chiefly compare)."),
            "{}",
            costs[0].mend()
        );
        assert_eq!((costs[1].party, costs[1].kind), (PartyId::P0, Work::Sending));
    }

    #[test]
    fn own_arithmetic_is_told_apart_by_primitive() {
        let mut one = profile();
        for (index, entry) in one.entries.iter_mut().enumerate() {
            entry.wall_ns = [0; Work::COUNT];
            entry.wall_ns[0] = 1_000_000 * index as u64;
        }
        let costs = largest(&[one.clone(), one.clone(), one], 2);
        // Entries 3 and 7 are comparisons, all but 0 and 4 beside them operations.
        assert_eq!(costs.iter().map(|cost| cost.ns).collect::<Vec<_>>(), [14_000_000; 2]);
        let what = costs[0].what();
        assert!(what.starts_with("P0: arithmetic in the operations themselves, 14 ms, 50 % of its session"), "{what}");
    }
}
