//! ARCHITECTURE.md as a test: who may know whom, where `unsafe` and the big dependencies may appear, and what no source holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The members of the house and which of them each may know. Tests and benches may know all, and nobody knows them.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("ring", &[]),
    ("net", &[]),
    ("model", &[]),
    ("core", &["ring", "net"]),
    ("helper", &["core", "ring", "net"]),
    ("plain", &["core", "ring", "net"]),
    ("engine", &["model", "core", "helper", "net", "ring"]),
    ("testkit", &["engine", "model", "core", "helper", "plain", "net", "ring"]),
    ("node", &["engine", "model", "core", "helper", "net", "ring"]),
    ("client", &["net", "ring", "model"]),
    ("examples", &["client"]),
    ("cli", &["node", "client", "engine", "model", "core", "helper", "plain", "testkit", "net", "ring", "examples"]),
];
/// Members that stand outside: nothing may depend on them.
const OUTSIDE: [&str; 2] = ["tests", "benches"];

/// Dependencies that belong to some members alone.
const CONFINED: [(&str, &[&str]); 10] = [
    ("tokio", &["net", "node", "client", "cli", "examples", "tests", "benches"]),
    ("quinn", &["net"]),
    ("rustls", &["net", "cli"]),
    ("tokio-rustls", &["net"]),
    ("rcgen", &["net"]),
    ("bincode", &["net"]),
    ("candle-core", &["model", "examples"]),
    ("candle-nn", &["examples"]),
    ("tokenizers", &["model", "examples"]),
    ("cudarc", &["cuda"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Members by short name, with the names of what they depend on and of which kind (`None`: to run).
fn members() -> BTreeMap<String, Vec<(String, Option<String>)>> {
    let manifest = root().join("Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(manifest)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let package = |package: &Value| {
        let dependency = |d: &Value| (text(&d["name"]).unwrap_or_default(), text(&d["kind"]));
        let dependencies = package["dependencies"].as_array().into_iter().flatten().map(dependency).collect();
        (short(package["name"].as_str().unwrap_or_default()), dependencies)
    };
    metadata["packages"].as_array().into_iter().flatten().map(package).collect()
}

fn short(name: &str) -> String {
    name.strip_prefix("tercet-").unwrap_or(name).to_owned()
}

#[test]
fn knowledge_points_down() {
    let members = members();
    for (member, dependencies) in &members {
        if OUTSIDE.contains(&member.as_str()) {
            continue;
        }
        let allowed = ALLOWED.iter().find(|(name, _)| name == member);
        let (_, allowed) =
            allowed.unwrap_or_else(|| panic!("{member} has no place in the house yet: give it one here"));
        for (name, kind) in dependencies {
            let Some(inner) = name.strip_prefix("tercet-") else { continue };
            // Tests inside a crate may look where its code may not, but at nothing that stands outside.
            let fine = allowed.contains(&inner) || (kind.as_deref() == Some("dev") && !OUTSIDE.contains(&inner));
            assert!(fine, "{member} must not know {inner}");
        }
    }
    for (name, _) in ALLOWED {
        assert!(members.contains_key(name), "{name} is gone: take it out of this list");
    }
}

#[test]
fn every_member_knows_only_what_comes_before_it() {
    // The list is in an order in which each knows earlier ones alone; so there is no circle.
    let place = |name: &str| ALLOWED.iter().position(|(n, _)| *n == name).expect("a member of the list");
    for (name, knows) in ALLOWED {
        assert!(knows.iter().all(|k| place(k) < place(name) || *k == "examples"), "{name} knows something above it");
    }
}

#[test]
fn heavy_dependencies_stay_where_they_belong() {
    for (member, dependencies) in members() {
        for (name, kind) in dependencies {
            let confined = CONFINED.iter().find(|(dependency, _)| *dependency == name);
            let home = confined.is_none_or(|(_, homes)| homes.contains(&member.as_str()));
            assert!(home || kind.as_deref() == Some("dev"), "{member} must not depend on {name}");
        }
    }
}

/// Every file of ours whose name ends with one of `endings`, with its text.
fn sources(endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["crates", "protocols", "parties", "examples", "tests", "benches"] {
        collect(&root().join(folder), endings, &mut found);
    }
    for entry in fs::read_dir(root()).expect("the root is readable").flatten().filter(|e| e.path().is_file()) {
        add(entry.path(), endings, &mut found);
    }
    assert!(found.len() > 100, "{} files: the walk misses the sources", found.len());
    found
}

fn collect(folder: &Path, endings: &[&str], found: &mut Vec<(PathBuf, String)>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, endings, found);
        } else if path.is_file() {
            add(path, endings, found);
        }
    }
}

fn add(path: PathBuf, endings: &[&str], found: &mut Vec<(PathBuf, String)>) {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if endings.iter().any(|ending| name.ends_with(ending)) {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        found.push((path.strip_prefix(root()).unwrap_or(&path).to_owned(), text));
    }
}

/// Whether `word` stands in `line` as a whole word, before any comment.
fn says(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part))
}

#[test]
fn unsafe_code_lives_in_the_ring_alone() {
    let word = concat!("un", "safe");
    assert!(says(&format!("{word} {{ f() }}"), word) && !says(&format!("#![deny({word}_code)]"), word));
    let ring = Path::new("crates/ring/src");
    let mut seen = 0;
    for (path, text) in sources(&[".rs"]) {
        let lines = text.lines().enumerate().filter(|(_, line)| says(line, word));
        if path.starts_with(ring) {
            seen += lines.count();
        } else if let Some((number, line)) = lines.into_iter().next() {
            panic!("{}:{}: {line}", path.display(), number + 1);
        }
    }
    assert!(seen > 0, "the search finds nothing even where it should");
}

#[test]
fn nothing_is_left_unfinished() {
    let tokens = [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("db", "g!(")];
    for (path, text) in sources(&[".rs"]) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            assert!(tokens.iter().all(|t| !code.contains(t)), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}

#[test]
fn the_command_prints_in_one_place() {
    // `eprint` and `eprintln` hold these as well.
    let ways = [concat!("pri", "nt!("), concat!("print", "ln!("), "io::stdout", "io::stderr", "stdout()", "stderr()"];
    let (command, screen) = (Path::new("crates/cli/src"), Path::new("crates/cli/src/screen.rs"));
    let mut seen = 0;
    for (path, text) in sources(&[".rs"]).into_iter().filter(|(path, _)| path.starts_with(command)) {
        let lines = text.lines().enumerate().filter(|(_, line)| {
            let code = line.split("//").next().unwrap_or_default();
            ways.iter().any(|way| code.contains(way))
        });
        if path == screen {
            seen += lines.count();
        } else if let Some((number, line)) = lines.into_iter().next() {
            panic!("{}:{}: print through `screen`, which cleans: {line}", path.display(), number + 1);
        }
    }
    assert!(seen > 0, "the search finds nothing even where it should");
}

#[test]
fn files_stay_short() {
    const MOST_LINES: usize = 800;
    for (path, text) in sources(&[".rs"]) {
        let lines = text.lines().count();
        assert!(lines <= MOST_LINES, "{}: {lines} lines: find the second noun", path.display());
    }
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let paths = [
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/wo", "rk/"),
        concat!("/Us", "ers/"),
        concat!("/t", "mp/"),
    ];
    for (path, text) in sources(&[".rs", ".toml", ".md", ".py"]) {
        for (number, line) in text.lines().enumerate() {
            assert!(paths.iter().all(|p| !line.contains(p)), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}
