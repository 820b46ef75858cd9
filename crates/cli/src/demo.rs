//! `tercet demo`: everything at once, on this machine, without a network.
//!
//! Three node processes with fresh keys, a model that is shared between them, secret inputs, and the private answers beside
//! those of the plain model. Then what it cost, and what each node held.

mod cost;
mod glimpse;
mod images;
mod sentences;
mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tercet_client::{Options, RequestUsage};
use tercet_engine::{ModelShare, Profile};
use tercet_model::{Model, OracleInput};
use tercet_net::secret_file;

use crate::cluster::{Cluster, Setup};
use crate::connection::{interrupted, runtime};
use crate::screen::{say, start_log};
use crate::{flame, owner};

/// Show it all on this machine: three nodes, a shared model, secret inputs, private answers.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// digits (handwritten digits, shipped) or minilm (sentences; fetched with `tercet fetch minilm`).
    #[arg(long, default_value = "digits")]
    model: String,
    /// fast or precise.
    #[arg(long, default_value = "fast")]
    profile: Profile,
    /// How many of the test digits.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=359))]
    digits: u16,
    /// All 359 test digits, not drawn.
    #[arg(long)]
    test_split: bool,
    /// Slows the links between the nodes down: none, lan, metro, wan, or like 2ms,1gbit.
    #[arg(long)]
    shape: Option<String>,
    /// Keep keys, configurations, shares and logs in this directory, as an example of all files.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Write a page (HTML) of where the nodes' time went to this file.
    #[arg(long, value_name = "FILE")]
    flame: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Have this text go on instead, token by token, with the small GPT that is shipped.
    #[arg(long, value_name = "PROMPT", conflicts_with_all = ["model", "sentences", "flame"])]
    generate: Option<String>,
    /// For minilm: the sentences.
    sentences: Vec<String>,
}

/// A model between three running nodes.
struct Stage {
    cluster: Cluster,
    shares: [ModelShare; 3],
    model: Model,
    name: &'static str,
}

pub(crate) fn run(args: Args) -> Result<()> {
    start_log("error");
    if args.model != "minilm" && !args.sentences.is_empty() {
        bail!("sentences are for --model minilm");
    }
    let temporary;
    let dir = match &args.keep {
        Some(dir) => {
            if dir.join("p0").exists() {
                bail!("{} holds a demonstration already; give --keep another folder, or remove it", dir.display());
            }
            secret_file::create_folder(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            dir.clone()
        }
        None => {
            temporary = tempfile::Builder::new().prefix("tercet-demo-").tempdir()?;
            temporary.path().to_owned()
        }
    };
    let runtime = runtime()?;
    let shown = runtime.block_on(async {
        // Dropped at a signal, the demonstration takes its nodes with it.
        tokio::select! {
            shown = show(&args, &dir) => shown,
            interrupted = interrupted() => interrupted,
        }
    });
    runtime.shutdown_background();
    shown
}

async fn show(args: &Args, dir: &Path) -> Result<()> {
    if let Some(prompt) = &args.generate {
        return text::show(args, dir, prompt).await;
    }
    match args.model.as_str() {
        "digits" => images::show(args, dir).await,
        "minilm" => sentences::show(args, dir).await,
        other => bail!("no demonstration of {other}; there are digits and minilm"),
    }
}

impl Args {
    /// The same options, and whether the nodes are asked where their time goes.
    fn with_flame(&self, options: Options) -> Options {
        Options { profile: self.flame.is_some(), ..options }
    }

    /// Writes the page of where the time went, if one is wanted.
    fn write_flame(&self, usage: &[RequestUsage]) -> Result<()> {
        self.flame.as_ref().map_or(Ok(()), |path| flame::write(path, &self.model, usage))
    }
}

impl Stage {
    /// Shares a model and starts the nodes.
    async fn set(args: &Args, dir: &Path, model: Model, name: &'static str, more: Vec<OracleInput>) -> Result<Self> {
        let aloud = |line: &str| {
            if !args.json {
                say(line);
            }
        };
        aloud("the model's owner looks how large its values get, and splits it into three shares …");
        let ranges = owner::ranges(&model, more)?;
        let numerics = owner::numbers(&model, &ranges, args.profile, false)?;
        let paths = owner::share(&model, name, numerics, dir)?;
        let [p0, p1, p2] = paths.each_ref().map(|path| ModelShare::open(path));
        let shares = [p0?, p1?, p2?];
        let cluster = Cluster::start(dir, &Setup { shape: args.shape.as_deref(), ..Setup::default() })?;
        let numbers = cluster.processes().iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        aloud(&format!("three nodes start with fresh keys (processes {numbers}) …"));
        Ok(Self { cluster, shares, model, name })
    }
}
