//! Runs cases: three node processes, a client in this one, and the same request again and again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tercet_client::{Client, Inputs, NodeStatus, Options, PartyId, RequestUsage};
use tercet_core::{Cost, Geometry, Work};
use tercet_engine::{Plan, Profile, plan};
use tercet_model::{Oracle, OracleInput};
use tercet_net::LinkShape;
use tercet_ring::Heap;

use super::catalogue::find;
use super::inputs::Asked;
use super::layers::Layers;
use super::process::{Counters, Process};
use super::record::{Accuracy, Case, Key, ProcessUse, Spread};
use super::stock::Stock;
use crate::cluster::{Cluster, Setup};
use crate::diff::normalized;
use crate::embed::cosine;
use crate::public::Public;
use crate::screen::bar;

/// How long one request may take, and a node be silent within it: slow links are slow, not broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);

/// Requests of each case that are profiled, at most.
const PROFILED: usize = 3;

/// How often each request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Repeats {
    pub(crate) warmup: usize,
    pub(crate) runs: usize,
}

/// A request, and what is known of it before it is made.
struct Question {
    key: Key,
    plan: Plan,
    asked: Asked,
    /// What the plain model answers.
    plain: Vec<Vec<f32>>,
}

/// Measures all cases, those of equal model, profile, link and threads on the same nodes. Each case is handed over with
/// its plan as soon as it is there.
///
/// # Errors
/// A model or a shape that does not exist; a node that fails.
pub(crate) async fn measure(keys: &[Key], repeats: Repeats, mut done: impl FnMut(&Plan, Case)) -> Result<()> {
    // Everything that can be refused is refused before the first minute is spent.
    for key in keys {
        find(&key.model)?;
        link(&key.link)?;
    }
    for group in keys.chunk_by(same_nodes) {
        let Some(first) = group.first() else { continue };
        let keys = group.to_vec();
        // On a thread of its own, so that a signal ends it.
        let prepared = tokio::task::spawn_blocking(move || questions(&keys)).await;
        let (questions, folders) = prepared.context("preparing the model stopped")??;
        // What the plain model took goes back to the system, and does not count as the client's.
        Heap::retain_at_most(0);
        Heap::retain_at_most(Heap::RETAINED);
        let numbers = [
            ("threads", first.threads as u64),
            ("max_sessions", 1),
            ("max_batch", group.iter().map(|key| key.batch as u64).max().unwrap_or(1)),
            // What is measured is not refused for its size; the system says where memory ends.
            ("memory_mib", 1 << 20),
            ("round_deadline_ms", PATIENCE.as_millis() as u64),
            ("request_deadline_ms", PATIENCE.as_millis() as u64),
        ];
        let dir = tempfile::Builder::new().prefix("tercet-bench-").tempdir()?;
        let shape = Some(first.link.as_str()).filter(|shape| *shape != "none");
        let mut cluster = Cluster::start(dir.path(), &Setup { shape, shares: Some(folders), numbers: &numbers })?;
        let client = cluster.client(&first.model).await?;
        let processes = cluster.processes();
        for question in questions {
            let plan = question.plan.clone();
            done(&plan, case(&client, &processes, question, repeats).await?);
        }
        client.close().await;
    }
    Ok(())
}

fn same_nodes(one: &Key, other: &Key) -> bool {
    let nodes = |key: &Key| (key.model.clone(), key.profile.clone(), key.link.clone(), key.threads);
    nodes(one) == nodes(other)
}

fn profile(text: &str) -> Result<Profile> {
    text.parse().map_err(anyhow::Error::msg)
}

pub(crate) fn link(text: &str) -> Result<LinkShape> {
    Ok(text.parse::<LinkShape>()?)
}

/// The requests of some cases of one model, and the folders of its shares; the plain model is needed no longer.
fn questions(keys: &[Key]) -> Result<(Vec<Question>, [PathBuf; 3])> {
    let first = keys.first().context("nothing to measure")?;
    let stock = Stock::of(&find(&first.model)?, profile(&first.profile)?, Public::default())?;
    let oracle = Oracle::new(&stock.model)?;
    let mut questions = Vec::new();
    for key in keys {
        let geometry = Geometry { batch: key.batch, rows: key.rows };
        let plan = plan(&stock.manifest, geometry).with_context(|| format!("{key} cannot be run"))?;
        let asked = Asked::of(&stock.model, key.batch, key.rows)?;
        let answer = |input: OracleInput| anyhow::Ok(normalized(&stock.model, oracle.run(&input)?.output()));
        let plain = asked.plain(&stock.model)?.into_iter().map(answer).collect::<Result<_>>()?;
        questions.push(Question { key: key.clone(), plan, asked, plain });
    }
    Ok((questions, stock.folders))
}

/// Rows of each input of a model: what was asked for, or where it has one number only, that.
///
/// # Errors
/// There is no such model.
pub(crate) fn rows_of(name: &str, asked: &[usize]) -> Result<Vec<usize>> {
    use super::catalogue::{Family, Origin};
    Ok(match find(name)?.origin {
        Origin::Random(shape) => match shape.family {
            Family::Vit { image, patch, .. } => vec![(image / patch) * (image / patch)],
            Family::Bert { .. } => asked.to_vec(),
            Family::Gpt2 { .. } | Family::Llama { .. } => {
                bail!("{name} continues texts: `tercet bench generate` measures it")
            }
        },
        Origin::Fetched => asked.to_vec(),
    })
}

/// The nodes' side at one moment.
struct Moment {
    counters: [Counters; 4],
    status: Vec<NodeStatus>,
}

impl Moment {
    async fn now(client: &Client, processes: &[Process; 4]) -> Result<Self> {
        let mut status = Vec::new();
        for party in PartyId::ALL {
            status.push(client.status(party).await?);
        }
        Ok(Self { counters: processes.map(Process::counters), status })
    }

    /// Bytes `[from][to]` as the operating system saw them leave.
    fn wire(&self) -> [[u64; 3]; 3] {
        let mut wire = [[0; 3]; 3];
        for (from, node) in wire.iter_mut().zip(&self.status) {
            node.peers.iter().for_each(|peer| from[peer.party.index()] = peer.wire_sent);
        }
        wire
    }
}

/// What the nodes' allocators take fresh from the system for a request: in a steady state nothing, though threads that meet by
/// chance may make one request need more than another. The least is what every request needs.
struct Fresh {
    so_far: [u64; 3],
    least: [u64; 3],
}

impl Fresh {
    async fn new(client: &Client) -> Result<Self> {
        Ok(Self { so_far: Self::counted(client).await?, least: [u64::MAX; 3] })
    }

    async fn counted(client: &Client) -> Result<[u64; 3]> {
        let mut counted = [0; 3];
        for party in PartyId::ALL {
            counted[party.index()] = client.status(party).await?.fresh_bytes;
        }
        Ok(counted)
    }

    async fn after_request(&mut self, client: &Client) -> Result<()> {
        let now = Self::counted(client).await?;
        for ((least, was), is) in self.least.iter_mut().zip(self.so_far).zip(now) {
            *least = (*least).min(is - was);
        }
        self.so_far = now;
        Ok(())
    }
}

async fn case(client: &Client, nodes: &[u32], question: Question, repeats: Repeats) -> Result<Case> {
    let Question { key, plan, asked, plain } = question;
    let &[p0, p1, p2] = nodes else { bail!("three nodes were started, and {} are there", nodes.len()) };
    let processes = [Process::Own, Process::Other(p0), Process::Other(p1), Process::Other(p2)];
    let runs = repeats.runs.max(1);
    let bar = bar((repeats.warmup + runs) as u64, "measuring", false);
    bar.show(&key);
    for _ in 0..repeats.warmup {
        ask(client, &key, &asked, false).await?;
        bar.inc(1);
    }
    processes.iter().for_each(|process| process.forget_peak());
    let before = Moment::now(client, &processes).await?;
    let mut fresh = Fresh::new(client).await?;
    let mut latencies = Vec::new();
    let mut usages = Vec::new();
    let mut error: Option<Accuracy> = None;
    for _ in 0..runs {
        let begun = Instant::now();
        let (answers, usage) = ask(client, &key, &asked, false).await?;
        latencies.push(begun.elapsed().as_secs_f64());
        usages.push(usage);
        let of_run = Accuracy::of(&answers, &plain);
        error = Some(error.map_or(of_run, |error| error.worse(of_run)));
        fresh.after_request(client).await?;
        bar.inc(1);
    }
    let after = Moment::now(client, &processes).await?;
    // Asked for afterwards: a profile makes the answer longer.
    let mut layers = Layers::default();
    for _ in 0..runs.min(PROFILED) {
        let (_, usage) = ask(client, &key, &asked, true).await?;
        layers.add(&usage.profiles.context("the nodes gave no profile")?);
    }
    bar.clear();
    let each = |total: u64| total / runs as u64;
    let mut wire_bytes = [[0; 3]; 3];
    for (mean, (from, to)) in
        wire_bytes.iter_mut().flatten().zip(before.wire().iter().flatten().zip(after.wire().iter().flatten()))
    {
        *mean = each(to.saturating_sub(*from));
    }
    let process = |at: usize| ProcessUse {
        cpu_seconds: (after.counters[at].cpu_seconds - before.counters[at].cpu_seconds).max(0.0) / runs as f64,
        peak_bytes: processes[at].peak_bytes(),
        page_faults: after.counters[at].minor_faults.saturating_sub(before.counters[at].minor_faults) as f64
            / runs as f64,
        fresh_bytes: at.checked_sub(1).map(|node| fresh.least[node]),
    };
    let last = usages.last().cloned().unwrap_or_default();
    let work_ms = |node: usize, kind: usize| {
        usages.iter().map(|used| used.work_us[node][kind]).sum::<u64>() as f64 / 1e3 / runs as f64
    };
    let sessions: Vec<f64> = usages.iter().map(|used| used.session.as_secs_f64()).collect();
    Ok(Case {
        runs,
        warmup: repeats.warmup,
        latency: Spread::of(&latencies),
        session: Spread::of(&sessions),
        throughput: (key.batch * runs) as f64 / latencies.iter().sum::<f64>().max(f64::MIN_POSITIVE),
        cost: usages.iter().map(cost).reduce(largest).unwrap_or_default(),
        planned: plan.total,
        wire_bytes,
        client_sent: last.sent,
        client_received: last.received,
        processes: std::array::from_fn(process),
        kinds: Work::ALL.map(|kind| kind.name().to_owned()).to_vec(),
        work_ms: std::array::from_fn(|node| Work::ALL.map(|kind| work_ms(node, kind as usize)).to_vec()),
        layers: layers.mean(),
        error,
        predicted_seconds: None,
        key,
    })
}

/// One request, all of whose inputs run in one session.
async fn ask(client: &Client, key: &Key, asked: &Asked, profile: bool) -> Result<(Vec<Vec<f32>>, RequestUsage)> {
    let options = Options { deadline: PATIENCE, max_batch: key.batch, retries: 0, profile, ..Options::default() };
    let labelled = !client.model(&key.model).await?.labels().is_empty();
    let (texts, images): (Vec<&str>, Vec<&[f32]>);
    let inputs = match asked {
        Asked::Texts(all) => {
            texts = all.iter().map(String::as_str).collect();
            Inputs::Texts(&texts)
        }
        Asked::Images(all) => {
            images = all.iter().map(Vec::as_slice).collect();
            Inputs::Images(&images)
        }
    };
    let (answers, usage) = match (labelled, inputs) {
        (false, Inputs::Texts(texts)) => {
            let found = client.embed(&key.model, texts, &options).await?;
            (found.vectors, found.usage)
        }
        _ => {
            let found = client.classify(&key.model, inputs, &options).await?;
            (found.classes.into_iter().map(|class| class.scores).collect(), found.usage)
        }
    };
    match <[RequestUsage; 1]>::try_from(usage) {
        Ok([usage]) => Ok((answers, usage)),
        Err(usage) => bail!("{key} became {} requests; one was to be measured", usage.len()),
    }
}

fn cost(used: &RequestUsage) -> Cost {
    Cost { rounds: used.rounds, bytes: used.bytes, frames: used.frames, ..Cost::NONE }
}

/// The larger of each number.
fn largest(one: Cost, other: Cost) -> Cost {
    let each = |a: [[u64; 3]; 3], b: [[u64; 3]; 3]| {
        std::array::from_fn(|from| std::array::from_fn(|to| a[from][to].max(b[from][to])))
    };
    Cost {
        rounds: one.rounds.max(other.rounds),
        bytes: each(one.bytes, other.bytes),
        frames: each(one.frames, other.frames),
        ..Cost::NONE
    }
}

impl Accuracy {
    /// Of answers against the plain ones.
    fn of(answers: &[Vec<f32>], plain: &[Vec<f32>]) -> Self {
        let mut error = Self { max: 0.0, mean: 0.0, cosine: 1.0 };
        let components: usize = plain.iter().map(Vec::len).sum();
        for (answer, plain) in answers.iter().zip(plain) {
            for (a, b) in answer.iter().zip(plain) {
                let off = f64::from((a - b).abs());
                error.max = error.max.max(off);
                error.mean += off / components.max(1) as f64;
            }
            error.cosine = error.cosine.min(cosine(answer, plain));
        }
        error
    }

    fn worse(self, other: Self) -> Self {
        let (max, mean) = (self.max.max(other.max), self.mean.max(other.mean));
        Self { max, mean, cosine: self.cosine.min(other.cosine) }
    }
}
