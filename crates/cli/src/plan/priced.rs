//! A price list as people read it: operations, links, memory.

use tercet_core::Cost;
use tercet_engine::{Plan, StepPlan};

use super::{By, group, grouped};
use crate::screen::{bytes, say, say_table};

/// What requests and steps of generations have in common.
pub(super) struct Priced<'a> {
    parts: &'a [(String, Cost)],
    total: Cost,
    weight_bytes: [u64; 3],
    /// Of steps.
    cache_bytes: Option<[u64; 3]>,
    working_bytes: u64,
    client_bytes: [[u64; 3]; 2],
}

impl<'a> From<&'a Plan> for Priced<'a> {
    fn from(plan: &'a Plan) -> Self {
        let Plan { total, weight_bytes, client_bytes, working_bytes, .. } = *plan;
        Self { parts: &plan.parts, total, weight_bytes, cache_bytes: None, working_bytes, client_bytes }
    }
}

impl<'a> From<&'a StepPlan> for Priced<'a> {
    fn from(step: &'a StepPlan) -> Self {
        let StepPlan { total, weight_bytes, cache_bytes, client_bytes, working_bytes, .. } = *step;
        Self { parts: &step.parts, total, weight_bytes, cache_bytes: Some(cache_bytes), working_bytes, client_bytes }
    }
}

impl Priced<'_> {
    /// Two tables: of the operations, and of the nodes.
    pub(super) fn say(&self, by: By) {
        let all = self.total.total_bytes().max(1) as f64;
        // The helper is told something by a public gate alone.
        let told = self.total.bytes[1][0] > 0;
        let links = [(1, 2), (2, 1), (0, 1), (0, 2), (1, 0)];
        let links = &links[..if told { 5 } else { 4 }];
        let row = |(name, cost): &(String, Cost)| {
            let links = links.iter().map(|&(from, to)| bytes(cost.bytes[from][to]));
            let share = format!("{:.1} %", 100.0 * cost.total_bytes() as f64 / all);
            [name.clone(), cost.rounds.to_string()].into_iter().chain(links).chain([share]).collect()
        };
        let mut rows: Vec<Vec<String>> = grouped(self.parts, by).iter().map(row).collect();
        rows.push(row(&("in all".into(), self.total)));
        let mut head = vec!["operation", "rounds", "P1→P2", "P2→P1", "P0→P1", "P0→P2", "share"];
        if told {
            head.insert(6, "P1→P0");
        }
        say_table(&head, &rows);
        if let (Some(_), Some((layers, rounds))) = (self.cache_bytes, rounds_of_layers(self.parts)) {
            say(format_args!("\n{:.1} rounds in each of {layers} layers", rounds as f64 / layers as f64));
        }
        say("");
        let party = |at: usize| {
            let [up, down] = self.client_bytes;
            let caches = self.cache_bytes.map(|caches| bytes(caches[at]));
            let row = [format!("P{at}"), bytes(self.weight_bytes[at])].into_iter().chain(caches);
            row.chain([self.working_bytes, up[at], down[at]].map(bytes)).collect()
        };
        let parties: Vec<Vec<String>> = (0..3).map(party).collect();
        let mut head = vec!["node", "weights", "working memory", "from client", "to client"];
        if self.cache_bytes.is_some() {
            head.insert(2, "caches");
        }
        say_table(&head, &parties);
    }
}

/// How many layers there are, and the rounds of all of them.
pub(crate) fn rounds_of_layers(parts: &[(String, Cost)]) -> Option<(usize, u64)> {
    let mut layers: Vec<String> = Vec::new();
    let mut rounds = 0;
    for (name, cost) in parts {
        // A part that is in no layer is a group of its own kind.
        if group(name, By::Kind).starts_with("layer/") {
            let layer = group(name, By::Layer);
            rounds += cost.rounds;
            if layers.last() != Some(&layer) {
                layers.push(layer);
            }
        }
    }
    (!layers.is_empty()).then_some((layers.len(), rounds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_those_of_layers_alone() {
        let part = |name: &str, rounds| (name.to_owned(), Cost { rounds, ..Cost::default() });
        let parts = ["layer0/a", "layer0/b", "layer1/a", "head/scores"].map(|name| part(name, 3));
        assert_eq!(rounds_of_layers(&parts), Some((2, 9)));
        assert_eq!(rounds_of_layers(&parts[3..]), None);
    }
}
