//! A run against a record: what may not grow did not grow.
//!
//! Rounds, frames and bytes are equal in every run on any machine, so they are compared exactly and fail a comparison. So does
//! the least that a request takes fresh from the system, where enough requests were measured: how threads meet can still
//! move it, so hold long runs to long runs. Time only warns.

use serde::Serialize;

use super::record::{Case, Key, Record};

/// Time may be this many times that of the record before it is remarked on.
const SLOWER: f64 = 1.25;
/// So may the largest error: the masks differ from run to run, and so do the last bits.
const LESS_ACCURATE: f64 = 2.0;

/// Measured requests from which on the least that one of them takes fresh from the system is what every request takes: the
/// first of a shape fill the shelves, and threads that meet by chance take more.
const STEADY: usize = 5;

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// Cases that are in both.
    pub(crate) compared: Vec<String>,
    /// What grew and may not.
    pub(crate) regressions: Vec<Change>,
    /// What shrank.
    pub(crate) improvements: Vec<Change>,
    /// What is worth a look.
    pub(crate) warnings: Vec<Change>,
    /// Cases of the record that the run lacks.
    pub(crate) missing: Vec<String>,
}

/// One number that is another.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Change {
    /// The case.
    pub(crate) case: String,
    /// Which number of it.
    pub(crate) what: String,
    /// What it was in the record.
    pub(crate) was: f64,
    /// What it is in the run.
    pub(crate) is: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { case, what, was, is, unit } = self;
        write!(f, "{case}: {what} was {was}{unit}, is {is}{unit}")?;
        if *was > 0.0 { write!(f, " ({:+.2} %)", 100.0 * (is / was - 1.0)) } else { Ok(()) }
    }
}

/// Holds `run` to `record`.
///
/// # Errors
/// They have no case in common, in words.
pub(crate) fn compare(record: &Record, run: &Record) -> Result<Comparison, String> {
    let mut found = Comparison::default();
    for was in &record.cases {
        match run.cases.iter().find(|case| case.key == was.key) {
            Some(is) => {
                found.compared.push(was.key.to_string());
                found.case(was, is);
            }
            None => found.missing.push(was.key.to_string()),
        }
    }
    if found.compared.is_empty() {
        let list =
            |record: &Record| record.cases.iter().map(|case| case.key.to_string()).collect::<Vec<_>>().join("; ");
        return Err(format!("no case in common: the record has {:?}, the run {:?}", list(record), list(run)));
    }
    Ok(found)
}

impl Comparison {
    fn case(&mut self, was: &Case, is: &Case) {
        let key = &was.key;
        self.exact(key, "rounds".into(), "", was.cost.rounds, is.cost.rounds);
        for from in 0..3 {
            for to in 0..3 {
                let link = format!("P{from} → P{to}");
                self.exact(key, format!("{link} bytes"), " B", was.cost.bytes[from][to], is.cost.bytes[from][to]);
                self.exact(key, format!("{link} frames"), "", was.cost.frames[from][to], is.cost.frames[from][to]);
            }
        }
        for (party, (was, is)) in was.client_sent.iter().zip(is.client_sent).enumerate() {
            self.exact(key, format!("client → P{party} bytes"), " B", *was, is);
        }
        for (party, (was, is)) in was.client_received.iter().zip(is.client_received).enumerate() {
            self.exact(key, format!("P{party} → client bytes"), " B", *was, is);
        }
        let steady = was.runs.min(is.runs) >= STEADY;
        for (party, (was, is)) in was.processes.iter().zip(&is.processes).skip(1).enumerate() {
            if let (true, Some(was), Some(is)) = (steady, was.fresh_bytes, is.fresh_bytes) {
                self.exact(key, format!("P{party} newly allocated"), " B", was, is);
            }
        }
        self.loose(key, "median latency", " s", SLOWER, was.latency.median, is.latency.median);
        self.loose(key, "CPU of the nodes", " s", SLOWER, was.node_cpu_seconds(), is.node_cpu_seconds());
        if let (Some(was), Some(is)) = (was.error, is.error) {
            self.loose(key, "largest error", "", LESS_ACCURATE, was.max, is.max);
        }
        if !is.as_planned() {
            let (planned, cost) = (is.planned.total_bytes() as f64, is.cost.total_bytes() as f64);
            let what = "bytes in all are not as planned: they".into();
            self.warnings.push(Change { case: key.to_string(), what, was: planned, is: cost, unit: " B" });
        }
    }

    fn exact(&mut self, key: &Key, what: String, unit: &'static str, was: u64, is: u64) {
        let change = Change { case: key.to_string(), what, was: was as f64, is: is as f64, unit };
        match is.cmp(&was) {
            std::cmp::Ordering::Greater => self.regressions.push(change),
            std::cmp::Ordering::Less => self.improvements.push(change),
            std::cmp::Ordering::Equal => {}
        }
    }

    fn loose(&mut self, key: &Key, what: &str, unit: &'static str, most: f64, was: f64, is: f64) {
        if is > most * was {
            self.warnings.push(Change { case: key.to_string(), what: what.into(), was, is, unit });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::example;

    /// The example against itself after a change.
    fn after(change: impl FnOnce(&mut Case)) -> Comparison {
        let mut run = example();
        change(&mut run.cases[0]);
        compare(&example(), &run).unwrap()
    }

    #[test]
    fn equal_runs_are_equal() {
        let same = after(|_| ());
        assert_eq!(same, Comparison { compared: vec!["minilm 1 x 32".into()], ..Comparison::default() });
    }

    #[test]
    fn one_more_byte_round_frame_or_allocation_is_a_regression() {
        let of = |change: fn(&mut Case)| {
            let found = after(change);
            assert_eq!((found.regressions.len(), found.improvements.len()), (1, 0));
            found.regressions[0].to_string()
        };
        assert!(
            of(|case| case.cost.bytes[1][2] += 1)
                .starts_with("minilm 1 x 32: P1 → P2 bytes was 25000000 B, is 25000001 B")
        );
        assert!(of(|case| case.cost.rounds += 1).contains("rounds was 280, is 281"));
        assert!(of(|case| case.cost.frames[0][1] += 1).contains("P0 → P1 frames"));
        assert!(of(|case| case.cost.frames[1][0] += 1).ends_with("P1 → P0 frames was 0, is 1"));
        assert!(of(|case| case.client_sent[2] += 1).contains("client → P2"));
        assert!(of(|case| case.client_received[0] += 1).contains("P0 → client"));
        let (mut record, mut run) = (example(), example());
        record.cases[0].processes[3].fresh_bytes = Some(4096);
        run.cases[0].processes[3].fresh_bytes = Some(8192);
        // Nothing is steady after a few requests.
        assert_eq!(compare(&record, &run).unwrap().regressions, []);
        (record.cases[0].runs, run.cases[0].runs) = (STEADY, STEADY);
        let found = compare(&record, &run).unwrap();
        assert!(found.regressions[0].to_string().contains("P2 newly allocated was 4096 B, is 8192 B"));
        // A counter that only one of them has says nothing.
        assert_eq!(compare(&example(), &run).unwrap().regressions, []);
    }

    #[test]
    fn fewer_bytes_are_an_improvement_and_time_only_warns() {
        let found = after(|case| case.cost.bytes[0][2] -= 10);
        assert_eq!((found.regressions.len(), found.improvements.len()), (0, 1));
        assert!(found.improvements[0].what.contains("P0 → P2"));
        // What is no longer as planned is remarked on.
        assert_eq!(found.warnings.len(), 1);
        let slow = after(|case| case.latency.median *= 1.3);
        assert!(slow.regressions.is_empty() && slow.warnings[0].what == "median latency");
        assert!(after(|case| case.latency.median *= 1.2).warnings.is_empty());
        assert!(after(|case| case.latency.median /= 9.0).warnings.is_empty());
        let busy = after(|case| case.processes[2].cpu_seconds *= 2.0);
        assert_eq!(busy.warnings[0].what, "CPU of the nodes");
        let wrong = after(|case| case.error.as_mut().unwrap().max *= 3.0);
        assert_eq!(wrong.warnings[0].what, "largest error");
    }

    #[test]
    fn only_equal_cases_are_compared() {
        let mut run = example();
        run.cases[0].key.rows = 64;
        let error = compare(&example(), &run).unwrap_err();
        assert!(error.contains("minilm 1 x 32") && error.contains("minilm 1 x 64"), "{error}");
        run.cases.push(example().cases.remove(0));
        assert_eq!(compare(&example(), &run).unwrap().missing, Vec::<String>::new());
        assert_eq!(compare(&run, &example()).unwrap().missing, ["minilm 1 x 64"]);
        run.cases.clear();
        assert!(compare(&run, &example()).is_err() && compare(&example(), &run).is_err());
    }
}
