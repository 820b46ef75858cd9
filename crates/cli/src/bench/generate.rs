//! `tercet bench generate`: texts that go on side by side between three node processes, measured and held to their plans.

mod course;
mod outcome;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tercet_client::{Client, GenerateOptions};
use tercet_core::{Cost, Extent, Layout};
use tercet_engine::{Choice, Manifest, Profile, StepPlan, StepShape, plan_step};
use tercet_ring::Heap;

use super::catalogue::find;
use super::inputs::Asked;
use super::measure::{PATIENCE, link};
use super::process::Process;
use super::record;
use super::stock::Stock;
use crate::cluster::{Cluster, Setup};
use crate::connection::{interrupted, runtime};
use crate::plan::priced::rounds_of_layers;
use crate::public::Public;
use crate::screen::bar;
use course::Course;
use outcome::{Case, Counted, Outcome};

/// Further tokens where a step is measured at a context.
const AT_CONTEXT: usize = 5;

/// Measure generations: time to the first token and for each further one, alone and side by side; rounds and bytes, which must
/// be those of the plan. Shares are kept in the cache (TERCET_CACHE, else ~/.cache/tercet).
#[derive(clap::Args, Clone)]
pub(super) struct Args {
    /// Which model; see `tercet bench list`.
    #[arg(long, value_name = "NAME", default_value = "gpt2")]
    model: String,
    /// Tokens of each prompt.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "32")]
    rows: Vec<usize>,
    /// Tokens after the first.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    new: u32,
    /// Generations side by side.
    #[arg(long, value_name = "S,…", value_delimiter = ',', default_value = "1")]
    sessions: Vec<usize>,
    /// Measure a step at each of these lengths of the text instead, and compare the last with the first.
    #[arg(long, value_name = "C,…", value_delimiter = ',', conflicts_with_all = ["rows", "sessions", "new"])]
    contexts: Vec<usize>,
    /// fast or precise.
    #[arg(long, default_value = "fast")]
    profile: Profile,
    /// The links between the nodes: none, lan, metro, wan, or like 2ms,1gbit.
    #[arg(long, value_name = "LINK", default_value = "none")]
    link: String,
    /// Threads of each node; 0 is one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    public: Public,
    /// Tokens are chosen inside the computation, and go back in unseen.
    #[arg(long)]
    inside: bool,
    /// Write everything to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    sessions: usize,
    /// Tokens after the first.
    new: usize,
}

impl Args {
    fn shapes(&self) -> Result<Vec<Shape>> {
        let sessions = self.sessions.iter().copied();
        let of = |rows: usize| sessions.clone().map(move |sessions| Shape { rows, sessions, new: self.new as usize });
        let at = |&context: &usize| Shape { rows: context.saturating_sub(1), sessions: 1, new: AT_CONTEXT };
        let shapes: Vec<Shape> = match self.contexts.is_empty() {
            true => self.rows.iter().copied().flat_map(of).collect(),
            false => self.contexts.iter().map(at).collect(),
        };
        match shapes.iter().any(|shape| shape.rows == 0 || shape.sessions == 0) {
            true => bail!("a prompt has one token at least (a context two), and there is one generation at least"),
            false => Ok(shapes),
        }
    }

    /// A step of all generations of a shape together: 0 is that of the prompts.
    fn plan(&self, manifest: &Manifest, shape: Shape, step: usize) -> Result<StepPlan> {
        let extent = match step {
            0 => Extent { past: 0, rows: shape.rows },
            step => Extent { past: shape.rows + step - 1, rows: 1 },
        };
        let layout = Layout { sequences: vec![extent; shape.sessions], every_row: false };
        let choice = if self.inside { Choice::Token } else { Choice::Scores };
        let reentry = self.inside && step > 0;
        Ok(plan_step(manifest, &StepShape { layout, choice, reentry, noisy: false })?)
    }

    fn options(&self, tokens: usize) -> GenerateOptions {
        let (max_new_tokens, inside) = (tokens, self.inside);
        GenerateOptions {
            max_new_tokens,
            inside,
            ignore_eos: true,
            deadline: PATIENCE,
            retries: 0,
            ..Default::default()
        }
    }
}

pub(super) fn run(args: Args) -> Result<()> {
    let shapes = args.shapes()?;
    // What cannot be written is said before the first minute is spent on what it should hold.
    args.json.iter().try_for_each(|path| record::reserve(path))?;
    let runtime = runtime()?;
    let measured = runtime.block_on(async {
        // Dropped at a signal, the measurement takes its nodes with it.
        tokio::select! {
            measured = measure(&args, &shapes) => measured,
            interrupted = interrupted() => interrupted.map(|()| Vec::new()),
        }
    });
    runtime.shutdown_background();
    let outcome = Outcome::now(&args, measured?);
    outcome.say();
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&outcome).context("the result has no JSON form")?;
        record::write(path, &(text + "\n"))?;
    }
    outcome.check()
}

/// A model, and prompts of each shape.
struct Prepared {
    manifest: Manifest,
    folders: [PathBuf; 3],
    prompts: Vec<Vec<String>>,
}

fn prepare(args: &Args, shapes: &[Shape]) -> Result<Prepared> {
    let Stock { model, manifest, folders } = Stock::of(&find(&args.model)?, args.profile, args.public)?;
    if !model.graph.is_decoder() {
        bail!("{} does not continue texts: `tercet bench run` measures it", args.model);
    }
    let prompts = |shape: &Shape| {
        args.plan(&manifest, *shape, shape.new).with_context(|| format!("{shape} cannot be run"))?;
        match Asked::of(&model, shape.sessions, shape.rows)? {
            Asked::Texts(texts) => Ok(texts),
            Asked::Images(_) => bail!("{} takes images", args.model),
        }
    };
    let prompts = shapes.iter().map(prompts).collect::<Result<_>>()?;
    Ok(Prepared { manifest, folders, prompts })
}

async fn measure(args: &Args, shapes: &[Shape]) -> Result<Vec<Case>> {
    link(&args.link)?;
    // On a thread of its own, so that a signal ends it.
    let (own, of) = (args.clone(), shapes.to_vec());
    let prepared = tokio::task::spawn_blocking(move || prepare(&own, &of)).await;
    let Prepared { manifest, folders, prompts } = prepared.context("preparing the model stopped")??;
    // What calibration and sharing took goes back to the system, and does not count as the client's.
    Heap::retain_at_most(0);
    Heap::retain_at_most(Heap::RETAINED);
    let most = shapes.iter().map(|shape| shape.sessions).max().unwrap_or(1);
    let patience = PATIENCE.as_millis() as u64;
    let numbers = [
        ("threads", args.threads as u64),
        ("max_batch", most as u64),
        // What is measured is not refused for its size; the system says where memory ends.
        ("memory_mib", 1 << 20),
        ("cache_mib", 1 << 20),
        ("round_deadline_ms", patience),
        ("request_deadline_ms", patience),
        ("generation_deadline_ms", patience),
        ("idle_deadline_ms", patience),
    ];
    let dir = tempfile::Builder::new().prefix("tercet-bench-").tempdir()?;
    let shape = Some(args.link.as_str()).filter(|shape| *shape != "none");
    let mut cluster = Cluster::start(dir.path(), &Setup { shape, shares: Some(folders), numbers: &numbers })?;
    let client = cluster.client(&args.model).await?;
    let nodes = cluster.processes();
    let &[p0, p1, p2] = nodes.as_slice() else { bail!("three nodes were started, and {} are there", nodes.len()) };
    let processes = [Process::Own, Process::Other(p0), Process::Other(p1), Process::Other(p2)];
    let run = Run { args, manifest: &manifest, client: &client, processes };
    let bar = bar(shapes.len() as u64, "measuring", false);
    let mut cases: Vec<Case> = Vec::new();
    for (shape, prompts) in shapes.iter().zip(&prompts) {
        bar.set_message(shape.to_string());
        let alone = cases.iter().find(|case| (case.rows, case.sessions) == (shape.rows, 1));
        let case = run.case(*shape, prompts, alone.map(|case| case.tokens.as_slice())).await?;
        cases.push(case);
        bar.inc(1);
    }
    bar.finish_and_clear();
    client.close().await;
    Ok(cases)
}

/// Nodes that run, and what is asked of them.
struct Run<'a> {
    args: &'a Args,
    manifest: &'a Manifest,
    client: &'a Client,
    /// The client's, and those of the nodes.
    processes: [Process; 4],
}

impl Run<'_> {
    /// All generations of a shape, begun at once; `alone` is what came of the first prompt by itself.
    async fn case(&self, shape: Shape, prompts: &[String], alone: Option<&[u32]>) -> Result<Case> {
        // Warms the nodes, and tells what the prompt costs: one token, which does not go back in.
        let model = &self.args.model;
        let first = prompts.first().context("no prompt")?;
        let warm = Course::run(self.client.clone(), model.clone(), first.clone(), self.args.options(1)).await?;
        self.processes.iter().for_each(|process| process.forget_peak());
        let before = self.processes.map(Process::counters);
        let options = self.args.options(shape.new + 1);
        let courses = prompts.iter().map(|prompt| {
            tokio::spawn(Course::run(self.client.clone(), model.clone(), prompt.clone(), options.clone()))
        });
        let mut all = Vec::new();
        for course in courses.collect::<Vec<_>>() {
            all.push(course.await.context("a generation stopped")??);
        }
        let after = self.processes.map(Process::counters);
        let cpu = std::array::from_fn(|at| (after[at].cpu_seconds - before[at].cpu_seconds).max(0.0));
        let plans =
            (0..=shape.new).map(|step| self.args.plan(self.manifest, shape, step)).collect::<Result<Vec<_>>>()?;
        let of = |plan: &StepPlan| Counted::of(&plan.total);
        let prompt = of(&plans[0]);
        let further = plans[1..].iter().map(of).fold(Counted::default(), Counted::and);
        let mut case = Case::of(shape, &all, cpu, self.processes.map(Process::peak_bytes))?;
        let layers = rounds_of_layers(&plans[1].parts);
        case.rounds_per_layer = layers.map_or(0.0, |(layers, rounds)| rounds as f64 / layers as f64);
        case.planned = [prompt, further];
        case.planned_client_bytes = plans[1].client_bytes;
        if shape.sessions == 1 {
            // Exactly: steps that end while the last one is read do not matter.
            let counted = all.first().map(|course| course.usage).context("no generation")?;
            case.counted =
                [Counted::of_usage(&warm.usage), Counted::of_usage(&counted).less(Counted::of_usage(&warm.usage))];
            case.sent = std::array::from_fn(|at| (counted.sent[at] - warm.usage.sent[at]) / shape.new as u64);
            case.as_planned = Some(case.counted == case.planned);
        } else {
            case.together =
                all.first().map(|course| course.steps().zip(&plans).filter(|(step, plan)| *step == of(plan)).count());
        }
        case.as_alone = alone.map(|alone| alone == case.tokens.as_slice());
        Ok(case)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} + {}", self.sessions, self.rows, self.new)
    }
}

impl Counted {
    fn of(cost: &Cost) -> Self {
        Self { rounds: cost.rounds, bytes: cost.bytes }
    }
}
