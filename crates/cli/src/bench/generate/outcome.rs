//! What was measured of generations: for people in tables, for programs as JSON.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tercet_client::GenerationUsage;

use super::course::Course;
use super::{Args, Shape};
use crate::bench::machine::{Machine, now};
use crate::bench::probe::busy_processes;
use crate::bench::record::Spread;
use crate::bench::table::seconds;
use crate::screen::{bytes, say, say_table};

/// Everything of one call.
#[derive(Serialize)]
pub(super) struct Outcome {
    kind: &'static str,
    date: String,
    program: &'static str,
    machine: Machine,
    /// Processes that ran or would have over the last minute, those measured among them.
    busy_processes: f64,
    model: String,
    profile: String,
    link: String,
    threads: usize,
    public_table: bool,
    public_weights: bool,
    inside: bool,
    cases: Vec<Case>,
    /// Time of a step at the last of the contexts over that at the first, and these; where contexts were asked for.
    context_ratio: Option<(f64, [usize; 2])>,
}

/// Generations side by side.
#[derive(Serialize)]
pub(super) struct Case {
    pub(super) rows: usize,
    pub(super) sessions: usize,
    /// Tokens after the first.
    pub(super) new: usize,
    /// Seconds to the first token, over the generations.
    first_token: Spread,
    /// Seconds for each further token, over all of them.
    further_token: Spread,
    /// Tokens a second of all generations, while each has its first token and none its last.
    tokens_per_second: f64,
    /// What the nodes counted of the prompts' steps, and of the further ones that the first generation was in.
    pub(super) counted: [Counted; 2],
    /// The same as planned.
    pub(super) planned: [Counted; 2],
    /// Of a lone generation: whether the two are equal.
    pub(super) as_planned: Option<bool>,
    /// The steps of the first generation, that of its prompt first.
    pub(super) steps: Vec<Step>,
    /// Rounds of a further step in each layer.
    pub(super) rounds_per_layer: f64,
    /// Bytes for each further token from a lone client to each node; from each node to it.
    pub(super) sent: Option<[u64; 3]>,
    received: [u64; 3],
    /// Processor time of the client first, then of P0, P1 and P2: until each generation has its first token, and from there on.
    cpu_seconds: [[f64; 4]; 2],
    /// Most bytes resident at once, weights included.
    peak_bytes: [u64; 4],
    /// How many tokens of the first prompt are as they came of it alone, up to the first that is another; where it was measured
    /// alone before. With scores that lie close together the last bits, which differ from run to run, decide.
    pub(super) as_alone: Option<usize>,
    /// Of the first prompt.
    #[serde(skip)]
    pub(super) tokens: Vec<u32>,
}

/// One step.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Step {
    /// Generations that were in it.
    pub(super) generations: usize,
    /// Whether it cost what is planned for these.
    pub(super) as_planned: bool,
}

/// What steps cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counted {
    pub(super) rounds: u64,
    /// Bytes `[from][to]`, frame headers included.
    pub(super) bytes: [[u64; 3]; 3],
}

impl Counted {
    pub(super) fn of_usage(usage: &GenerationUsage) -> Self {
        Self { rounds: usage.rounds, bytes: usage.bytes }
    }

    pub(super) fn and(self, more: Self) -> Self {
        let bytes = |from: usize, to: usize| self.bytes[from][to] + more.bytes[from][to];
        Self { rounds: self.rounds + more.rounds, bytes: each_link(bytes) }
    }

    /// What came after `before`.
    pub(super) fn less(self, before: Self) -> Self {
        let bytes = |from: usize, to: usize| self.bytes[from][to].saturating_sub(before.bytes[from][to]);
        Self { rounds: self.rounds.saturating_sub(before.rounds), bytes: each_link(bytes) }
    }

    /// The mean of so many steps.
    fn mean(self, steps: usize) -> Self {
        let steps = steps.max(1) as u64;
        Self { rounds: self.rounds / steps, bytes: each_link(|from, to| self.bytes[from][to] / steps) }
    }

    fn total_bytes(&self) -> u64 {
        self.bytes.iter().flatten().sum()
    }
}

fn each_link(of: impl Fn(usize, usize) -> u64) -> [[u64; 3]; 3] {
    std::array::from_fn(|from| std::array::from_fn(|to| of(from, to)))
}

impl Case {
    /// What the courses tell by themselves; the plan is to be put beside it.
    pub(super) fn of(
        shape: Shape,
        courses: &[Course],
        [before, after]: [[f64; 4]; 2],
        peak_bytes: [u64; 4],
    ) -> Result<Self> {
        let Shape { rows, sessions, new } = shape;
        let first = courses.first().context("no generation")?;
        let firsts: Vec<f64> = courses.iter().map(Course::first).collect();
        let further: Vec<f64> = courses.iter().flat_map(Course::further).collect();
        // The counters only grow: the last of the first tokens has seen most.
        let mut at_first = before;
        courses.iter().for_each(|course| {
            at_first.iter_mut().zip(course.cpu_at_first).for_each(|(most, seen)| *most = most.max(seen));
        });
        let between = |from: [f64; 4], to: [f64; 4]| std::array::from_fn(|at| f64::max(to[at] - from[at], 0.0));
        let mut steps = first.steps();
        let prompt = steps.next().unwrap_or_default();
        Ok(Self {
            rows,
            sessions,
            new,
            first_token: Spread::of(&firsts),
            further_token: Spread::of(&further),
            tokens_per_second: together(courses),
            counted: [prompt, steps.fold(Counted::default(), Counted::and)],
            planned: [Counted::default(); 2],
            as_planned: None,
            steps: Vec::new(),
            rounds_per_layer: 0.0,
            sent: None,
            // Answers are all of the same length.
            received: first.usage.received.map(|all| all / (new as u64 + 1)),
            cpu_seconds: [between(before, at_first), between(at_first, after)],
            peak_bytes,
            as_alone: None,
            tokens: first.tokens.iter().map(|(_, id)| *id).collect(),
        })
    }

    fn name(&self) -> String {
        Shape { rows: self.rows, sessions: self.sessions, new: self.new }.to_string()
    }
}

/// Tokens a second from the last first token to the first last one; over all the further time where these do not overlap.
fn together(courses: &[Course]) -> f64 {
    let ends = |course: &Course| Some((course.tokens.first()?.0, course.tokens.last()?.0));
    let (begins, ends): (Vec<_>, Vec<_>) = courses.iter().filter_map(ends).unzip();
    let pair = |begin: Option<_>, end: Option<_>| begin.zip(end).filter(|(begin, end)| begin < end);
    let overlap = pair(begins.iter().max(), ends.iter().min());
    let Some((begin, end)) = overlap.or_else(|| pair(begins.iter().min(), ends.iter().max())) else { return 0.0 };
    let came = courses.iter().flat_map(|course| &course.tokens).filter(|(at, _)| at > begin && at <= end).count();
    came as f64 / (*end - *begin).as_secs_f64()
}

impl Outcome {
    /// What was measured just now.
    pub(super) fn now(args: &Args, cases: Vec<Case>) -> Self {
        let ratio = || {
            let ([first, .., last], [from, .., to]) = (cases.as_slice(), args.contexts.as_slice()) else { return None };
            Some((last.further_token.median / first.further_token.median, [*from, *to]))
        };
        Self {
            kind: "tercet bench generate",
            date: now(),
            program: concat!("tercet/", env!("CARGO_PKG_VERSION")),
            machine: Machine::this(),
            busy_processes: busy_processes(),
            model: args.model.clone(),
            profile: args.profile.to_string(),
            link: args.link.clone(),
            threads: args.threads,
            public_table: args.public.public_table,
            public_weights: args.public.public_weights,
            inside: args.inside,
            context_ratio: ratio(),
            cases,
        }
    }

    /// Everything in three tables.
    pub(super) fn say(&self) {
        let Self { model, profile, link, machine, busy_processes, .. } = self;
        let inside = if self.inside { ", tokens chosen inside" } else { "" };
        say(format_args!(
            "{model} in profile {profile} over link {link}{inside}; {} cores, {busy_processes:.1} processes of late\n",
            machine.cores
        ));
        let told = |is: bool| if is { "yes" } else { "NO" }.to_owned();
        let rows = self.cases.iter().map(|case| {
            let exact = case.steps.iter().filter(|step| step.as_planned).count();
            let together = case.steps.iter().map(|step| step.generations).sum::<usize>() as f64;
            vec![
                case.name(),
                seconds(case.first_token.median),
                seconds(case.further_token.median),
                seconds(case.further_token.p95),
                format!("{:.2}", case.tokens_per_second),
                case.counted[0].rounds.to_string(),
                case.counted[1].mean(case.new).rounds.to_string(),
                format!("{:.1}", case.rounds_per_layer),
                format!("{:.1}", together / case.steps.len().max(1) as f64),
                case.as_planned.map_or_else(|| format!("{exact} of {} steps", case.steps.len()), told),
                case.as_alone.map_or(String::new(), |same| format!("{same} of {}", case.tokens.len())),
            ]
        });
        let head = ["case", "first token", "further", "p95", "tokens/s", "rounds", "a step", "a layer"];
        let head: Vec<&str> = head.into_iter().chain(["together", "as planned", "as alone"]).collect();
        say_table(&head, &rows.collect::<Vec<_>>());
        say("");
        let links = |of: &Counted| {
            let links = [(1, 2), (2, 1), (0, 1), (0, 2)].map(|(from, to)| bytes(of.bytes[from][to]));
            [bytes(of.total_bytes())].into_iter().chain(links).collect::<Vec<_>>()
        };
        let rows = self.cases.iter().flat_map(|case| {
            let step = case.counted[1].mean(case.new);
            let client = [case.sent, Some(case.received)];
            let client = client.map(|each| each.map_or(String::new(), |each| bytes(each.iter().sum())));
            let name = |what: &str| vec![case.name(), what.to_owned()];
            let none = [const { String::new() }; 2].to_vec();
            [
                [name("prompt"), links(&case.counted[0]), none].concat(),
                [name("step"), links(&step), client.to_vec()].concat(),
            ]
        });
        let head = ["case", "of", "all bytes", "P1→P2", "P2→P1", "P0→P1", "P0→P2", "from client", "to client"];
        say_table(&head, &rows.collect::<Vec<_>>());
        say("");
        let rows = self.cases.iter().flat_map(|case| {
            let row = |what: &str, cpu: [f64; 4], peak: Vec<String>| {
                let cpu = cpu.iter().map(|&of| seconds(of));
                [case.name(), what.into()].into_iter().chain(cpu).chain(peak).collect()
            };
            let [prompts, further] = case.cpu_seconds;
            let token = further.map(|seconds| seconds / (case.sessions * case.new) as f64);
            [
                row("prompts", prompts, vec![String::new(); 4]),
                row("further token", token, case.peak_bytes.map(bytes).to_vec()),
            ]
        });
        let head = ["case", "of", "CPU client", "P0", "P1", "P2", "peak client", "P0", "P1", "P2"];
        say_table(&head, &rows.collect::<Vec<_>>());
        if let Some((ratio, [from, to])) = self.context_ratio {
            say(format_args!("\na step at context {to} takes {ratio:.2} times as long as one at {from}"));
        }
    }

    /// Fails where a lone generation did not cost exactly what was planned.
    pub(super) fn check(&self) -> Result<()> {
        let Some(case) = self.cases.iter().find(|case| case.as_planned == Some(false)) else { return Ok(()) };
        let [prompt, further] = [0, 1].map(|at| {
            let (is, was) = (case.counted[at], case.planned[at]);
            let (found, planned) = (is.total_bytes(), was.total_bytes());
            format!("{} rounds and {found} bytes where {} and {planned} were planned", is.rounds, was.rounds)
        });
        bail!("{} {} took for its prompt {prompt}, and for its further steps {further}", self.model, case.name())
    }
}
