//! The result of a measurement as a file: JSON with a version, read back for comparisons and pages.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tercet_core::Cost;

use super::machine::{Machine, now};

/// What a record says it is.
const KIND: &str = "tercet bench";
/// Changes with every change of meaning, so that old records are refused instead of misread.
const SCHEMA: u32 = 1;

/// Several cases, measured on one machine by one program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Always `tercet bench`.
    pub(crate) kind: String,
    /// The version of this form.
    pub(crate) schema: u32,
    /// When it was begun, in UTC.
    pub(crate) date: String,
    /// Name and version of the program.
    pub(crate) program: String,
    /// What it ran on.
    pub(crate) machine: Machine,
    /// What was measured.
    pub(crate) cases: Vec<Case>,
}

/// Which case: two results of equal keys may be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    /// A name of the catalogue.
    pub(crate) model: String,
    /// `fast` or `precise`.
    pub(crate) profile: String,
    /// Rows of each input.
    pub(crate) rows: usize,
    /// Inputs in one request.
    pub(crate) batch: usize,
    /// The shape of the links between the nodes.
    pub(crate) link: String,
    /// Threads of each node; 0 is one for each core.
    pub(crate) threads: usize,
}

/// One case: the same request again and again, one at a time, on nodes that are warm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) key: Key,
    /// Requests that were measured.
    pub(crate) runs: usize,
    /// Requests before them, which were not.
    pub(crate) warmup: usize,
    /// Seconds from the call of the client to the opened answer.
    pub(crate) latency: Spread,
    /// Seconds of the nodes' session alone.
    pub(crate) session: Spread,
    /// Inputs answered a second.
    pub(crate) throughput: f64,
    /// Rounds, frames and bytes of the session; of several runs that differ, the largest of each.
    pub(crate) cost: Cost,
    /// What was planned before it ran.
    pub(crate) planned: Cost,
    /// Bytes `[from][to]` with TLS, QUIC and UDP, a run.
    pub(crate) wire_bytes: [[u64; 3]; 3],
    /// Bytes from the client to each node.
    pub(crate) client_sent: [u64; 3],
    /// Bytes from each node to the client.
    pub(crate) client_received: [u64; 3],
    /// The client's process first, then P0, P1 and P2.
    pub(crate) processes: [ProcessUse; 4],
    /// The kinds of work that the nodes tell apart.
    pub(crate) kinds: Vec<String>,
    /// Milliseconds of the session's thread at P0, P1 and P2 by kind, a run.
    pub(crate) work_ms: [Vec<f64>; 3],
    /// The same by layer of the model, in order; empty where no profile was asked for.
    pub(crate) layers: Vec<Layer>,
    /// Against the float model; absent where a model has none.
    pub(crate) error: Option<Accuracy>,
    /// Seconds that `tercet plan` foretold for this machine and link, where it was asked.
    pub(crate) predicted_seconds: Option<f64>,
}

/// What one layer of a model took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// `layer3`, or the name of a part that is in no layer.
    pub(crate) name: String,
    /// As [`Case::work_ms`].
    pub(crate) work_ms: [Vec<f64>; 3],
}

/// A quantity over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    /// The smallest value that 95 % of the runs do not exceed: below 20 runs, the largest.
    pub(crate) p95: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// What a process took, a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProcessUse {
    /// Processor time of all threads.
    pub(crate) cpu_seconds: f64,
    /// Most bytes resident at once, mapped weights included.
    pub(crate) peak_bytes: u64,
    /// Fresh pages of memory that the system had to map.
    pub(crate) page_faults: f64,
    /// Bytes of large blocks that a request took fresh from the system: the least of the measured ones, compared exactly where
    /// these were enough. Not counted of the client.
    pub(crate) fresh_bytes: Option<u64>,
}

/// The answer against that of the float model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accuracy {
    /// Largest absolute error of a component.
    pub(crate) max: f64,
    /// Mean absolute error.
    pub(crate) mean: f64,
    /// Smallest cosine of an answer to its own.
    pub(crate) cosine: f64,
}

impl Record {
    /// A record without cases, made now.
    pub(crate) fn begin() -> Self {
        Self {
            kind: KIND.into(),
            schema: SCHEMA,
            date: now(),
            program: concat!("tercet/", env!("CARGO_PKG_VERSION")).into(),
            machine: Machine::this(),
            cases: Vec::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, is no record, or one of another version; the file is named.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let at = path.display();
        let text = std::fs::read(path).with_context(|| format!("cannot read {at}"))?;
        let bare: serde_json::Value = match serde_json::from_slice(&text) {
            Ok(bare) => bare,
            Err(error) => bail!("{at} is no record of `tercet bench run --json`: {error}"),
        };
        if bare.get("kind").and_then(|kind| kind.as_str()) != Some(KIND) {
            bail!("{at} is no record of `tercet bench run --json`");
        }
        match bare.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(other) => bail!("{at} is a record of version {other}; this program reads {SCHEMA}: measure again"),
            None => bail!("{at} is a record without a version"),
        }
        serde_json::from_value(bare).map_err(|error| anyhow::anyhow!("{at} is a damaged record: {error}"))
    }

    /// Writes a file, and the folder for it.
    ///
    /// # Errors
    /// The file system's own.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("the record has no JSON form")?;
        write(path, &(text + "\n"))
    }
}

/// Writes a text, and the folder for it.
///
/// # Errors
/// The file system's own.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    reserve(path)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a file that can be written, and the folder for it; one that is there stays as it is.
///
/// # Errors
/// The file system's own.
pub(crate) fn reserve(path: &Path) -> Result<()> {
    let made = path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), std::fs::create_dir_all);
    let made = made.and_then(|()| std::fs::OpenOptions::new().append(true).create(true).open(path));
    made.map(|_| ()).with_context(|| format!("cannot write {}", path.display()))
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.model, self.shape())?;
        if self.profile != "fast" {
            write!(f, " {}", self.profile)?;
        }
        if self.link != "none" {
            write!(f, " over {}", self.link)?;
        }
        match self.threads {
            0 => Ok(()),
            1 => write!(f, ", 1 thread a node"),
            threads => write!(f, ", {threads} threads a node"),
        }
    }
}

impl Key {
    /// Inputs times rows.
    pub(crate) fn shape(&self) -> String {
        format!("{} x {}", self.batch, self.rows)
    }
}

impl Case {
    /// Whether every run cost what was planned.
    pub(crate) fn as_planned(&self) -> bool {
        // What a client hears of a run says nothing of single frames.
        self.cost == Cost { largest_frame: self.cost.largest_frame, ..self.planned }
    }

    /// The part of all session bytes that comes from P0.
    pub(crate) fn helper_share(&self) -> f64 {
        self.cost.bytes[0].iter().sum::<u64>() as f64 / self.cost.total_bytes().max(1) as f64
    }

    /// Processor seconds of the three nodes, a run.
    pub(crate) fn node_cpu_seconds(&self) -> f64 {
        self.processes[1..].iter().map(|process| process.cpu_seconds).sum()
    }
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        let middle = (at(last / 2) + at(last.div_ceil(2))) / 2.0;
        let p95 = at((sorted.len() * 19).div_ceil(20).saturating_sub(1));
        Self { median: middle, p95, min: at(0), max: at(last) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of one case.
    pub(crate) fn example() -> Record {
        let mut cost = Cost { rounds: 280, ..Cost::NONE };
        for (from, to, bytes) in [(0, 1, 20), (0, 2, 30), (1, 2, 25), (2, 1, 25)] {
            cost.bytes[from][to] = bytes * 1_000_000;
            cost.frames[from][to] = bytes;
        }
        let key =
            Key { model: "minilm".into(), profile: "fast".into(), rows: 32, batch: 1, link: "none".into(), threads: 0 };
        let spread = Spread::of(&[0.3, 0.2, 0.4]);
        let case = Case {
            key,
            runs: 3,
            warmup: 1,
            latency: spread,
            session: spread,
            throughput: 3.3,
            cost,
            planned: cost,
            wire_bytes: cost.bytes,
            client_sent: [1, 2, 3],
            client_received: [4; 3],
            processes: [ProcessUse { cpu_seconds: 0.1, peak_bytes: 1 << 28, page_faults: 10.0, fresh_bytes: None }; 4],
            kinds: vec!["matmul".into(), "waiting".into()],
            work_ms: [(); 3].map(|()| vec![1.0, 2.0]),
            layers: vec![Layer { name: "layer0".into(), work_ms: [(); 3].map(|()| vec![1.0, 2.0]) }],
            error: Some(Accuracy { max: 1e-3, mean: 1e-4, cosine: 0.9999 }),
            predicted_seconds: None,
        };
        Record { cases: vec![case], ..Record::begin() }
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/record.json");
        let record = example();
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        let refused = |text: &str, said: &str| {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", Record::read(&path).unwrap_err());
            assert!(error.contains("record.json") && error.contains(said), "{error}");
        };
        refused("not json", "is no record");
        refused("{}", "is no record");
        refused("[1, 2]", "is no record");
        refused(r#"{"kind": "tercet bench"}"#, "without a version");
        refused(r#"{"kind": "tercet bench", "schema": 7}"#, "version 7");
        refused(r#"{"kind": "tercet bench", "schema": 1, "cases": 3}"#, "damaged");
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", Record::read(&path).unwrap_err()).contains("cannot read"));
    }

    #[test]
    fn spreads_are_of_the_sorted_values() {
        let few = Spread::of(&[3.0, 1.0, 2.0, 10.0]);
        assert_eq!((few.median, few.p95, few.min, few.max), (2.5, 10.0, 1.0, 10.0));
        let many: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let many = Spread::of(&many);
        assert_eq!((many.median, many.p95, many.min, many.max), (50.5, 95.0, 1.0, 100.0));
        assert_eq!(Spread::of(&[5.0]), Spread { median: 5.0, p95: 5.0, min: 5.0, max: 5.0 });
    }

    #[test]
    fn a_case_adds_up() {
        let case = &example().cases[0];
        assert!(case.as_planned());
        assert_eq!(case.helper_share(), 0.5);
        assert!((case.node_cpu_seconds() - 0.3).abs() < 1e-12);
        assert_eq!(case.key.to_string(), "minilm 1 x 32");
        let other = Key { profile: "precise".into(), link: "wan".into(), threads: 1, ..case.key.clone() };
        assert_eq!(other.to_string(), "minilm 1 x 32 precise over wan, 1 thread a node");
    }
}
