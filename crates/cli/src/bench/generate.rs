//! `tercet bench generate`: texts that go on side by side between three node processes, measured and held to their plans.

mod course;
mod outcome;

use std::path::PathBuf;
use std::time::Instant;

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
use outcome::{Case, Counted, Outcome, Step};

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

    /// The price of a step of generations at these places.
    fn plan(&self, manifest: &Manifest, sequences: Vec<Extent>) -> Result<StepPlan> {
        let reentry = self.inside && sequences.iter().all(|extent| extent.past > 0);
        let layout = Layout { sequences, every_row: false };
        let choice = if self.inside { Choice::Token } else { Choice::Scores };
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
        args.plan(&manifest, vec![shape.extent(shape.new); shape.sessions])
            .with_context(|| format!("{shape} cannot be run"))?;
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
        bar.show(shape);
        let alone = cases.iter().find(|case| (case.rows, case.sessions) == (shape.rows, 1));
        let case = run.case(*shape, prompts, alone.map(|case| case.tokens.as_slice())).await?;
        cases.push(case);
        bar.inc(1);
    }
    bar.clear();
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
        let course = |prompt: &String, tokens: usize| {
            let options = self.args.options(tokens);
            Course::run(self.client.clone(), self.processes, model.clone(), prompt.clone(), options)
        };
        let warm = course(first, 1).await?;
        self.processes.iter().for_each(|process| process.forget_peak());
        let cpu = || self.processes.map(|process| process.counters().cpu_seconds);
        let before = cpu();
        let courses = prompts.iter().map(|prompt| tokio::spawn(course(prompt, shape.new + 1)));
        let mut all = Vec::new();
        for course in courses.collect::<Vec<_>>() {
            all.push(course.await.context("a generation stopped")??);
        }
        let cpu = [before, cpu()];
        let mut case = Case::of(shape, &all, cpu, self.processes.map(Process::peak_bytes))?;
        let (steps, plans): (Vec<Step>, Vec<StepPlan>) = self.steps(shape, &all)?.into_iter().unzip();
        let [prompt, further @ ..] = plans.as_slice() else { bail!("no step was made") };
        let of = |plan: &StepPlan| Counted::of(&plan.total);
        case.planned = [of(prompt), further.iter().map(of).fold(Counted::default(), Counted::and)];
        if let Some(last) = further.last() {
            let layers = rounds_of_layers(&last.parts);
            case.rounds_per_layer = layers.map_or(0.0, |(layers, rounds)| rounds as f64 / layers as f64);
        }
        if let ([one], 1) = (all.as_slice(), shape.sessions) {
            // Beside one that ends with its first token: exact, however late the tokens were read.
            let [prompt, whole] = [warm.usage, one.usage].map(|usage| Counted::of_usage(&usage));
            case.counted = [prompt, whole.less(prompt)];
            let sent = |at: usize| (one.usage.sent[at].saturating_sub(warm.usage.sent[at])) / shape.new as u64;
            case.sent = Some(std::array::from_fn(sent));
            case.as_planned = Some(case.counted == case.planned);
        }
        case.steps = steps;
        case.as_alone = alone.map(|alone| alone.iter().zip(&case.tokens).take_while(|(a, b)| a == b).count());
        Ok(case)
    }

    /// The steps of the first of some generations with their plans, each for those that were in it: of every other one the step
    /// that ended at the same time, if the same was counted of it.
    fn steps(&self, shape: Shape, courses: &[Course]) -> Result<Vec<(Step, StepPlan)>> {
        let costs: Vec<Vec<Counted>> = courses.iter().map(|course| course.steps().collect()).collect();
        let ([first, others @ ..], [own, theirs @ ..]) = (courses, costs.as_slice()) else { return Ok(Vec::new()) };
        let mut steps = Vec::new();
        for (at, ((ended, _), cost)) in first.tokens.iter().zip(own).enumerate() {
            let mut sequences = vec![shape.extent(at)];
            for (other, costs) in others.iter().zip(theirs) {
                let apart = |(time, _): &(Instant, u32)| (*time).max(*ended) - (*time).min(*ended);
                let nearest = other.tokens.iter().enumerate().min_by_key(|(_, token)| apart(token)).map(|(at, _)| at);
                // Prompts and further steps never run together.
                let same = |step: &usize| costs.get(*step) == Some(cost) && (*step == 0) == (at == 0);
                sequences.extend(nearest.filter(same).map(|step| shape.extent(step)));
            }
            let generations = sequences.len();
            let plan = self.args.plan(self.manifest, sequences)?;
            steps.push((Step { generations, as_planned: Counted::of(&plan.total) == *cost }, plan));
        }
        Ok(steps)
    }
}

impl Shape {
    /// Where a generation is in a step: 0 is that of its prompt.
    fn extent(self, step: usize) -> Extent {
        match step {
            0 => Extent { past: 0, rows: self.rows },
            step => Extent { past: self.rows + step - 1, rows: 1 },
        }
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
