//! How long a run takes, foretold from its effort, the rates of a machine, and the shape of its links.
//!
//! The rates come from runs of some small models on the machine itself, so they hold what no count knows: caches, threads, and
//! three processes that share its cores. They are the non-negative numbers with the smallest sum of squared relative errors.
//!
//! A slow link adds to that time. Between the evaluators nothing overlaps: a round waits for its delay and for the last of its
//! bytes. What the helper deals travels ahead of its use and is waited for only where its link is the slower one. And while
//! evaluators wait, the helper computes, which takes less of the cores from them afterwards: a part of the wait is hidden.

use serde::{Deserialize, Serialize};
use tercet_core::Cost;
use tercet_net::LinkShape;

use crate::effort::{Effort, Term};
use crate::plan::Plan;

/// What a machine takes for each term, and how it gets along with slow links.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Seconds for one of each term, in the order of [`Term::ALL`], of a run on loopback.
    pub seconds: [f64; Term::COUNT],
    /// The part of all processor time that the helper takes.
    pub helper: f64,
    /// The part of the wait for a link that the helper's work hides, as far as there is such work.
    pub hidden: f64,
    /// Seconds that a round on a slow link takes beyond the link's arithmetic.
    pub late: f64,
}

/// A run that was measured.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it was.
    pub plan: Plan,
    /// The links between the nodes.
    pub link: LinkShape,
    /// From the client's call to the opened answer.
    pub seconds: f64,
    /// Processor seconds of P0, P1 and P2.
    pub processor: [f64; 3],
}

impl Rates {
    /// The rates that fit some runs best; `None` where none of them was on loopback, or one took no time.
    pub fn fit(samples: &[Sample]) -> Option<Rates> {
        let (plain, shaped): (Vec<&Sample>, Vec<&Sample>) = samples.iter().partition(|sample| sample.link.is_none());
        if plain.is_empty() || samples.iter().any(|sample| sample.seconds.is_nan() || sample.seconds <= 0.0) {
            return None;
        }
        let row = |sample: &&Sample| (counts(&sample.plan.effort).map(|count| count / sample.seconds), 1.0);
        let seconds = non_negative(&plain.iter().map(row).collect::<Vec<_>>());
        let processor = |party: usize| plain.iter().map(|sample| sample.processor[party]).sum::<f64>();
        let all: f64 = (0..3).map(processor).sum();
        let helper = if all > 0.0 { processor(0) / all } else { 0.0 };
        let rates = Rates { seconds, helper, hidden: 0.0, late: 0.0 };
        // What the links alone do not explain: later by so much a round, earlier by a part of what the helper may hide.
        let row = |sample: &&Sample| {
            let (loopback, wait) = (rates.loopback(&sample.plan.effort), waiting(&sample.plan.total, sample.link));
            let left = sample.seconds - loopback - wait;
            let hidden = rates.most_hidden(loopback, wait);
            ([sample.plan.total.rounds as f64, -hidden].map(|each| each / sample.seconds), left / sample.seconds)
        };
        let [late, hidden] = non_negative(&shaped.iter().map(row).collect::<Vec<_>>());
        Some(Rates { hidden: hidden.min(1.0), late, ..rates })
    }

    /// Seconds from the client's call to the opened answer of a run on warm nodes over such links.
    pub fn predict(&self, plan: &Plan, link: LinkShape) -> f64 {
        let loopback = self.loopback(&plan.effort);
        if link.is_none() {
            return loopback;
        }
        let local = loopback - self.hidden * self.most_hidden(loopback, waiting(&plan.total, link));
        let all = plan.total.total_bytes().max(1) as f64;
        let (mut dealt, mut evaluators) = (0u64, 0.0f64);
        for (_, cost) in &plan.parts {
            dealt += cost.bytes[0][1].max(cost.bytes[0][2]);
            let computed = local * cost.total_bytes() as f64 / all;
            let ready = evaluators + computed + cost.rounds as f64 * self.late + waiting(cost, link);
            evaluators = ready.max(link.delay.as_secs_f64() + busy(link, dealt));
        }
        evaluators
    }

    /// How far the prediction of a run is from its measured time, as a part of the latter.
    pub fn off_by(&self, sample: &Sample) -> f64 {
        self.predict(&sample.plan, sample.link) / sample.seconds - 1.0
    }

    fn loopback(&self, effort: &Effort) -> f64 {
        counts(effort).iter().zip(&self.seconds).map(|(count, rate)| count * rate).sum()
    }

    fn most_hidden(&self, loopback: f64, wait: f64) -> f64 {
        wait.min(self.helper * loopback)
    }
}

fn counts(effort: &Effort) -> [f64; Term::COUNT] {
    Term::ALL.map(|term| effort.count(term) as f64)
}

/// Seconds for which evaluators wait on the link between them.
fn waiting(cost: &Cost, link: LinkShape) -> f64 {
    cost.rounds as f64 * link.delay.as_secs_f64() + busy(link, cost.bytes[1][2].max(cost.bytes[2][1]))
}

fn busy(link: LinkShape, bytes: u64) -> f64 {
    usize::try_from(bytes).map_or(f64::INFINITY, |bytes| link.busy(bytes).as_secs_f64())
}

/// The `x >= 0` of the smallest `sum (row x - wanted)^2`, by one coordinate after the other: always the same, and exact where
/// the columns are independent; of columns that are not, some solution. Columns of zeros get a zero.
fn non_negative<const N: usize>(rows: &[([f64; N], f64)]) -> [f64; N] {
    const SWEEPS: usize = 100_000;
    let norm = |of: &dyn Fn(&[f64; N]) -> f64| rows.iter().map(|(row, _)| of(row).powi(2)).sum::<f64>().sqrt();
    let scale: [f64; N] = std::array::from_fn(|t| norm(&|row| row[t])).map(|norm| if norm > 0.0 { norm } else { 1.0 });
    let gram: [[f64; N]; N] = std::array::from_fn(|t| {
        std::array::from_fn(|u| rows.iter().map(|(row, _)| row[t] * row[u]).sum::<f64>() / (scale[t] * scale[u]))
    });
    let wanted: [f64; N] =
        std::array::from_fn(|t| rows.iter().map(|(row, wanted)| row[t] * wanted).sum::<f64>() / scale[t]);
    let mut x = [0.0f64; N];
    for _ in 0..SWEEPS {
        for t in 0..N {
            let others: f64 = (0..N).filter(|&u| u != t).map(|u| gram[t][u] * x[u]).sum();
            x[t] = if gram[t][t] > 0.0 { ((wanted[t] - others) / gram[t][t]).max(0.0) } else { 0.0 };
        }
    }
    std::array::from_fn(|t| x[t] / scale[t])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tercet_core::Geometry;

    use super::*;

    /// A run of two operations: so many rounds and bytes on the four links, half of each in either.
    fn plan(effort: Effort, rounds: u64, bytes: [u64; 4]) -> Plan {
        let mut half = Cost { rounds: rounds / 2, ..Cost::NONE };
        for ((from, to), bytes) in [(0, 1), (0, 2), (1, 2), (2, 1)].into_iter().zip(bytes) {
            half.bytes[from][to] = bytes / 2;
        }
        Plan {
            geometry: Geometry { batch: 1, rows: 1 },
            total: half.then(half),
            parts: vec![("first".into(), half), ("second".into(), half)],
            weight_bytes: [0; 3],
            client_bytes: [[0; 3]; 2],
            working_bytes: 0,
            effort,
        }
    }

    /// Efforts of runs that differ in everything.
    fn efforts() -> Vec<Effort> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            1_000_000 + (state >> 40)
        };
        let effort = |_| Term::ALL[1..].iter().fold(Effort::request(), |effort, &term| effort.with(term, next()));
        (0..14).map(effort).collect()
    }

    #[test]
    fn rates_that_made_the_times_are_found_again() {
        let seconds = [0.05, 3e-8, 1e-9, 0.0, 2e-9, 5e-9, 7e-9, 0.0, 4e-9];
        let truth = Rates { seconds, helper: 0.25, hidden: 0.5, late: 4e-5 };
        let sample = |link: LinkShape| {
            let truth = &truth;
            move |effort: Effort| {
                let plan = plan(effort, 200, [0, 0, 4_000_000, 4_000_000]);
                let seconds = truth.predict(&plan, link);
                Sample { plan, link, seconds, processor: [0.5, 0.75, 0.75] }
            }
        };
        let mut samples: Vec<Sample> = efforts().into_iter().map(sample(LinkShape::NONE)).collect();
        samples.extend(efforts().into_iter().map(sample(LinkShape::LAN)));
        samples.extend(efforts().into_iter().take(3).map(sample(LinkShape::METRO)));
        let found = Rates::fit(&samples).unwrap();
        for (found, truth) in found.seconds.iter().zip(truth.seconds) {
            assert!((found - truth).abs() <= 1e-3 * truth.max(1e-10), "{found} for {truth}");
        }
        assert_eq!(found.helper, 0.25);
        assert!((found.hidden - 0.5).abs() < 1e-3 && (found.late - 4e-5).abs() < 1e-7, "{found:?}");
        assert!(samples.iter().all(|sample| found.off_by(sample).abs() < 1e-4));
        assert_eq!(Rates::fit(&samples).unwrap(), found, "the same each time");
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let sample =
            |link, seconds| Sample { plan: plan(Effort::request(), 2, [0; 4]), link, seconds, processor: [0.0; 3] };
        assert_eq!(Rates::fit(&[]), None);
        assert_eq!(Rates::fit(&[sample(LinkShape::LAN, 1.0)]), None);
        assert_eq!(Rates::fit(&[sample(LinkShape::NONE, 0.0)]), None);
        assert_eq!(Rates::fit(&[sample(LinkShape::NONE, f64::NAN)]), None);
        let found = Rates::fit(&[sample(LinkShape::NONE, 2.0)]).unwrap();
        assert!((found.seconds[Term::Request as usize] - 2.0).abs() < 1e-9 && found.helper == 0.0);
    }

    #[test]
    fn evaluators_wait_for_each_other_and_the_helper_runs_ahead() {
        let mut seconds = [0.0; Term::COUNT];
        seconds[Term::Request as usize] = 1.0;
        let rates = Rates { seconds, helper: 0.3, hidden: 1.0, late: 0.001 };
        // 8 Mbit/s: a megabyte takes a second.
        let link = LinkShape { delay: Duration::from_millis(10), bandwidth: Some(8_000_000) };
        let near = |plan: &Plan, link, wanted: f64| {
            let found = rates.predict(plan, link);
            assert!((found - wanted).abs() < 1e-9, "{found} for {wanted}");
        };
        let online = plan(Effort::request(), 100, [1_000_000, 1_000_000, 2_000_000, 2_000_000]);
        near(&online, LinkShape::NONE, 1.0);
        // Rounds and bytes, and of the computation what the helper does not do meanwhile.
        near(&online, link, 100.0 * 0.011 + 2.0 + 0.7);
        // A link that adds less than the helper computes is hidden, but for what comes late.
        let quick = LinkShape { delay: Duration::from_micros(100), bandwidth: None };
        near(&online, quick, 1.0 + 100.0 * 0.001);
        // Where more is dealt than the evaluators can wait for, the helper's busier link decides.
        near(&plan(Effort::request(), 100, [9_000_000, 8_000_000, 2_000_000, 2_000_000]), link, 9.01);
    }
}
