//! Numbers of strangers: every number of the manifests of all fixtures is changed, and what is
//! accepted nevertheless is priced and run. It may fail or give garbage, but it ends nothing beyond
//! its session and takes no memory that its price did not say.
//!
//! A run is a child process whose memory is bounded, because what an allocation ends is the
//! process. `MUTATIONS` says how many manifests are changed; the few of a usual run are chosen so
//! that every field is among them.

#[path = "mutations/changes.rs"]
mod changes;
#[path = "mutations/subject.rs"]
mod subject;

use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};

use changes::Changes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use subject::{Outcome, subjects};
use tercet_engine::{Manifest, ModelShare, NodeSpec, Profile, choose, split};
use tercet_model::{Model, calibrate, calibration_inputs};

/// Manifests that are changed where nothing else is said.
const USUAL: usize = 600;
/// What a child may map, in KiB: the largest sessions that are run, three parties each, and the
/// program itself.
const CHILD_KIB: usize = 4 << 20;
/// Says to a child from which change on it goes.
const FROM: &str = "MUTATIONS_FROM";

fn count() -> usize {
    std::env::var("MUTATIONS").ok().map_or(USUAL, |count| count.parse().expect("MUTATIONS is a number"))
}

/// In a child: goes through the changes and says what became of each.
#[test]
#[ignore = "the child of numbers_of_strangers_end_nothing"]
fn child() {
    let Ok(from) = std::env::var(FROM) else { return };
    let from: usize = from.parse().expect("a number");
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        println!("PANIC {place}");
    }));
    let subjects = subjects();
    for (number, change) in Changes::new(&subjects, count()).enumerate().skip(from) {
        println!("AT {number} {} {change}", subjects[change.subject].name);
        std::io::stdout().flush().expect("a parent that reads");
        let Some(bytes) = change.bytes(&subjects) else {
            println!("IS unencodable");
            continue;
        };
        let subject = &subjects[change.subject];
        let outcome = match catch_unwind(AssertUnwindSafe(|| Manifest::from_bytes(&bytes))) {
            Err(_) => "PANICKED".to_owned(),
            Ok(Err(_)) => "refused".to_owned(),
            Ok(Ok(manifest)) => match catch_unwind(AssertUnwindSafe(|| subject.run(&manifest, number as u64))) {
                Err(_) => "PANICKED".to_owned(),
                Ok(Outcome::TooLarge) => "large".to_owned(),
                Ok(Outcome::Unpriced) => "unpriced".to_owned(),
                Ok(Outcome::Ran) => "ran".to_owned(),
                Ok(Outcome::Failed(_)) => "failed".to_owned(),
                Ok(Outcome::Panicked) => "contained".to_owned(),
            },
        };
        println!("IS {outcome}");
    }
    println!("END");
}

/// What a child said, counted.
#[derive(Debug, Default)]
struct Seen {
    refused: usize,
    ran: usize,
    failed: usize,
    large: usize,
    unpriced: usize,
    contained: Vec<String>,
    outside: Vec<String>,
    aborted: Vec<String>,
}

#[test]
fn numbers_of_strangers_end_nothing() {
    let total = count();
    let mut seen = Seen::default();
    let mut from = 0;
    while from < total {
        let program = std::env::current_exe().expect("the path of this program");
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -v {CHILD_KIB}; exec \"$0\" child --exact --ignored --nocapture")])
            .arg(&program)
            .env(FROM, from.to_string())
            .env("MUTATIONS", total.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (mut at, mut panics, mut ended) = (None, Vec::new(), false);
        for line in output.lines().map_while(Result::ok) {
            // The harness writes before the first line without an end of its own.
            let Some(line) = ["AT ", "IS ", "PANIC ", "END"].iter().find_map(|w| line.find(w).map(|at| &line[at..]))
            else {
                continue;
            };
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "AT" => {
                    let number = rest.split(' ').next().and_then(|n| n.parse::<usize>().ok()).expect("a number");
                    at = Some((number, rest.to_owned()));
                    panics.clear();
                }
                "PANIC" => panics.push(rest.to_owned()),
                "IS" => {
                    let (number, what) = at.take().expect("a change before its outcome");
                    from = number + 1;
                    match rest {
                        "refused" => seen.refused += 1,
                        "ran" => seen.ran += 1,
                        "failed" => seen.failed += 1,
                        "large" => seen.large += 1,
                        "unpriced" => seen.unpriced += 1,
                        "contained" => seen.contained.push(format!("{what}: {panics:?}")),
                        "PANICKED" => seen.outside.push(format!("{what}: {panics:?}")),
                        other => panic!("{what} is {other}"),
                    }
                }
                _ => ended = true,
            }
        }
        let status = child.wait().expect("a child that ends");
        if ended && status.success() {
            assert_eq!(from, total, "every change has an outcome");
            break;
        }
        let Some((number, what)) = at else { panic!("a child ended outside of a change: {status}") };
        seen.aborted.push(format!("{what}: {status}"));
        from = number + 1;
        assert!(seen.aborted.len() < 20, "{:#?}", seen.aborted);
    }
    println!(
        "{total} changes: {} refused, {} ran, {} failed with an error, {} not priced, {} beyond the memory of the test, \
         {} panics within a session, {} outside, {} aborts",
        seen.refused,
        seen.ran,
        seen.failed,
        seen.unpriced,
        seen.large,
        seen.contained.len(),
        seen.outside.len(),
        seen.aborted.len()
    );
    assert!(seen.outside.is_empty() && seen.aborted.is_empty(), "{:#?}\n{:#?}", seen.outside, seen.aborted);
    assert!(seen.contained.is_empty(), "{:#?}", seen.contained);
    assert!(seen.ran > total / 100 && seen.refused > total / 10, "changes that show something: {seen:?}");
}

/// A ring of two bits for the scores of tokens: what is derived from it for their choice would hold
/// nothing.
#[test]
fn scores_in_two_bits_are_refused() {
    let subjects = subjects();
    let gpt = subjects.iter().find(|subject| subject.name.starts_with("gpt2 fast")).expect("a decoder");
    let mut manifest: Manifest = serde_json::from_value(gpt.value.clone()).expect("a manifest");
    let Some(NodeSpec::Linear(scores)) = manifest.numerics.nodes.last_mut() else { panic!("scores") };
    scores.ring = 2;
    let refused = Manifest::from_bytes(&manifest.to_bytes().expect("bytes")).expect_err("it is refused");
    assert!(refused.to_string().contains("scores of 2 bits"), "{refused}");
}

/// Share files whose bytes were changed, with a checksum that fits what they became: an error or a
/// share, never a panic.
#[test]
fn changed_share_files_end_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/gpt2");
    let model = Model::load(&fixture).expect("a fixture");
    let ranges = calibrate(&model, &calibration_inputs(&model)[..1]).expect("inputs");
    let numerics = choose(&model.graph, &ranges, Profile::Fast, false).expect("a model that fits");
    let paths = split(&model, "model", numerics, [dir.path(); 3], |_| ()).expect("three files");
    // As private as a share is: what others may read is refused unread.
    let path = dir.path().join("changed.tercet");
    std::fs::copy(&paths[0], &path).expect("a file");
    let mut rng = StdRng::seed_from_u64(9);
    let (mut opened, mut refused) = (0, 0);
    for at in 0..count() {
        let mut bytes = std::fs::read(&paths[at % 3]).expect("a file");
        let footer = bytes.len() - 48;
        let offset = u64::from_le_bytes(bytes[footer + 32..footer + 40].try_into().expect("eight bytes")) as usize;
        for _ in 0..rng.random_range(1..4) {
            // Most of a file is its planes, of which every byte will do: the header is where
            // changes count.
            let place = match rng.random_range(0..8) {
                0 => rng.random_range(0..64.min(footer)),
                1 => rng.random_range(0..footer),
                2 => footer + 32 + rng.random_range(0..8),
                _ => rng.random_range(offset..footer),
            };
            bytes[place] = if rng.random_bool(0.5) { rng.random() } else { bytes[place] ^ 1 << rng.random_range(0..8) };
        }
        let sum = Sha256::digest(&bytes[..footer]);
        bytes[footer..footer + 32].copy_from_slice(&sum);
        std::fs::write(&path, &bytes).expect("a file");
        match catch_unwind(|| ModelShare::open(&path).map(|share| share.manifest().interface().map(|_| ()))) {
            Ok(Ok(_)) => opened += 1,
            Ok(Err(_)) => refused += 1,
            Err(_) => panic!("change {at} of a share file ends its reader"),
        }
    }
    println!("{} share files: {opened} opened, {refused} refused", count());
    assert!(refused > count() / 4 && opened > 0, "{refused} are refused, {opened} opened");
}
