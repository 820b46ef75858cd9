//! `tercet bench`: whole models between three node processes on this machine, measured and held to what they were.

pub(crate) mod assumed;
pub(crate) mod catalogue;
mod compare;
mod generate;
mod inputs;
mod layers;
mod machine;
mod measure;
pub(crate) mod probe;
mod process;
pub(crate) mod rates;
mod record;
mod report;
mod stock;
mod table;
pub(crate) mod weights;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::json;
use tercet_engine::{Plan, Profile};

use crate::connection::{interrupted, runtime};
use crate::screen::{say, say_json, start_log};
use catalogue::{CATALOGUE, Origin};
use measure::{Repeats, measure, rows_of};
use rates::Forecasts;
use record::{Case, Key, Record};

/// Measure whole models between three node processes on this machine, and compare with what was measured before.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(RunArgs),
    Generate(generate::Args),
    Compare(CompareArgs),
    Show(ShowArgs),
    List(ListArgs),
}

/// Measure models. Their shares are kept in the cache (TERCET_CACHE, else ~/.cache/tercet).
#[derive(clap::Args)]
struct RunArgs {
    /// Which models; see `tercet bench list`.
    #[arg(long = "model", value_name = "NAME,…", value_delimiter = ',', default_value = "minilm")]
    models: Vec<String>,
    /// Rows of each input: tokens of a text. Models of images have their own number.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "32,128")]
    rows: Vec<usize>,
    /// Inputs in one request.
    #[arg(long, value_name = "B,…", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// fast or precise.
    #[arg(long, value_name = "PROFILE,…", value_delimiter = ',', default_value = "fast")]
    profile: Vec<Profile>,
    /// The links between the nodes: none, lan, metro, wan, or like 2ms,1gbit. May be given several times.
    #[arg(long = "link", value_name = "LINK", default_value = "none")]
    links: Vec<String>,
    /// Threads of each node; 0 is one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    repeats: RepeatArgs,
    #[command(flatten)]
    out: OutArgs,
}

#[derive(clap::Args)]
struct RepeatArgs {
    /// Measured requests of each case.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Requests before them, which are not measured.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    warmup: u32,
}

#[derive(clap::Args)]
struct OutArgs {
    /// Write a record, for `tercet bench compare` and `show`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots, complete in itself.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Hold a run to a record: fails where rounds, frames, bytes or (of five runs or more) fresh memory grew, warns where time did.
#[derive(clap::Args)]
struct CompareArgs {
    /// What it was.
    record: PathBuf,
    /// What it is; without it, the cases of the record are measured now.
    #[arg(long, value_name = "RUN")]
    against: Option<PathBuf>,
    #[command(flatten)]
    repeats: RepeatArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Show records that were written before, all in one table or page.
#[derive(clap::Args)]
struct ShowArgs {
    /// The records.
    #[arg(required = true)]
    records: Vec<PathBuf>,
    /// Write a page with plots, complete in itself.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// List the models that can be measured, and where their shapes come from.
#[derive(clap::Args)]
struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    start_log("error");
    match args.command {
        Command::Run(args) => {
            let keys = args.keys()?;
            args.out.check()?;
            let (record, outcome) = recorded(&keys, args.repeats.repeats());
            if !record.cases.is_empty() {
                table::say_record(&record);
                args.out.write(&record)?;
            }
            outcome
        }
        Command::Generate(args) => generate::run(args),
        Command::Compare(args) => compare(args),
        Command::Show(ShowArgs { records, html }) => {
            let mut all = records.iter().map(|path| Record::read(path)).collect::<Result<Vec<_>>>()?;
            let cases = all.iter_mut().skip(1).flat_map(|record| std::mem::take(&mut record.cases)).collect::<Vec<_>>();
            let Some(mut first) = all.into_iter().next() else { bail!("no record") };
            first.cases.extend(cases);
            table::say_record(&first);
            OutArgs { json: None, html }.write(&first)
        }
        Command::List(ListArgs { json }) => list(json),
    }
}

impl RunArgs {
    /// Every combination, those on the same nodes together.
    fn keys(&self) -> Result<Vec<Key>> {
        let mut keys = Vec::new();
        for (model, profile) in self.models.iter().flat_map(|model| self.profile.iter().map(move |of| (model, of))) {
            for link in &self.links {
                for rows in rows_of(model, &self.rows)? {
                    keys.extend(self.batch.iter().map(|batch| Key {
                        model: model.clone(),
                        profile: profile.to_string(),
                        rows,
                        batch: *batch,
                        link: link.clone(),
                        threads: self.threads,
                    }));
                }
            }
        }
        Ok(keys)
    }
}

impl RepeatArgs {
    fn repeats(&self) -> Repeats {
        Repeats { warmup: self.warmup as usize, runs: self.runs as usize }
    }
}

impl OutArgs {
    /// Fails where a file cannot be written, before the first minute is spent on what it should hold.
    fn check(&self) -> Result<()> {
        [&self.json, &self.html].into_iter().flatten().try_for_each(|path| record::reserve(path))
    }

    fn write(&self, record: &Record) -> Result<()> {
        if let Some(path) = &self.json {
            record.write(path)?;
        }
        match &self.html {
            Some(path) => record::write(path, &report::page(record)),
            None => Ok(()),
        }
    }
}

/// Measures now, foretelling where the rates of this machine are known: what was measured, and what ended it.
fn recorded(keys: &[Key], repeats: Repeats) -> (Record, Result<()>) {
    let mut record = Record::begin();
    let forecasts = Forecasts::of(keys);
    let outcome = measured(keys, repeats, |plan, case| {
        let predicted_seconds = forecasts.seconds(plan, &case.key);
        record.cases.push(Case { predicted_seconds, ..case });
    });
    (record, outcome)
}

/// Measures cases until a signal ends it.
fn measured(keys: &[Key], repeats: Repeats, done: impl FnMut(&Plan, Case)) -> Result<()> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        // Dropped at a signal, the measurement takes its nodes with it.
        tokio::select! {
            outcome = measure(keys, repeats, done) => outcome,
            interrupted = interrupted() => interrupted,
        }
    });
    runtime.shutdown_background();
    outcome
}

fn compare(args: CompareArgs) -> Result<()> {
    let record = Record::read(&args.record)?;
    let run = match &args.against {
        Some(path) => Record::read(path)?,
        None => {
            let keys: Vec<Key> = record.cases.iter().map(|case| case.key.clone()).collect();
            let (run, outcome) = recorded(&keys, args.repeats.repeats());
            outcome?;
            run
        }
    };
    let found = compare::compare(&record, &run).map_err(anyhow::Error::msg)?;
    match args.json {
        true => say_json(&found)?,
        false => table::say_comparison(&found),
    }
    match found.regressions.as_slice() {
        [] => Ok(()),
        [only] => bail!("a regression: {only}"),
        [first, rest @ ..] => bail!("{} regressions, the first: {first}", rest.len() + 1),
    }
}

fn list(json: bool) -> Result<()> {
    if json {
        let all = CATALOGUE.iter().map(|entry| json!({ "name": entry.name, "source": entry.source }));
        return say_json(&all.collect::<Vec<_>>());
    }
    let row = |entry: &catalogue::Entry| {
        let [layers, width, heads] = match entry.origin {
            Origin::Random(shape) => [shape.layers, shape.hidden, shape.heads].map(|n| n.to_string()),
            Origin::Fetched => [const { String::new() }; 3],
        };
        vec![entry.name.to_owned(), layers, width, heads, entry.source.to_owned()]
    };
    let rows: Vec<Vec<String>> = CATALOGUE.iter().map(row).collect();
    crate::screen::say_table(&["model", "layers", "width", "heads", "shape published in"], &rows);
    say("\nweights are random where the source does not say otherwise");
    Ok(())
}
