//! `tercet node`: the daemon of one party.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tercet_node::{Config, Loaded, Node};
use tokio::signal::unix::{SignalKind, signal};

use crate::connection::runtime;
use crate::screen::{say_json, say_table, start_log};

/// Run a node, or show how it is set up.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run the node until SIGTERM or Ctrl-C; running sessions are finished first.
    Run(Settings),
    /// Print every value of the configuration and where it came from.
    Config(Show),
}

#[derive(clap::Args)]
struct Show {
    #[command(flatten)]
    settings: Settings,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Each flag overrides its key in the file and in the environment (TERCET_NODE_…).
#[derive(clap::Args, Default)]
pub(crate) struct Settings {
    /// The node's configuration (TOML).
    #[arg(long, value_name = "FILE", env = "TERCET_NODE_CONFIG")]
    config: Option<PathBuf>,
    /// p0 (helper), p1 (lead evaluator) or p2 (evaluator).
    #[arg(long)]
    party: Option<String>,
    /// Address and port, like 0.0.0.0:7411.
    #[arg(long)]
    listen: Option<String>,
    /// Key file of this node.
    #[arg(long)]
    identity: Option<String>,
    /// Share files of models, or directories of them.
    #[arg(long)]
    shares: Option<String>,
    /// The network between the nodes: loopback, jumbo, lan1500 or wan.
    #[arg(long)]
    profile: Option<String>,
    /// Worker threads for arithmetic; 0 takes one for each core.
    #[arg(long)]
    threads: Option<String>,
    /// A slower link to imitate, for measurements: none, lan, metro, wan, or like 2ms,1gbit.
    #[arg(long)]
    shape: Option<String>,
    /// Any other key, like max_batch=8 or peers.p0.address=10.0.0.1:7411; may be given many times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Stop when the standard input ends: with the program that started the node.
    #[arg(long, hide = true)]
    with_parent: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Settings {
    pub(crate) fn load(&self) -> Result<Loaded> {
        let flags = [
            ("party", &self.party),
            ("listen", &self.listen),
            ("identity", &self.identity),
            ("shares", &self.shares),
            ("profile", &self.profile),
            ("threads", &self.threads),
            ("shape", &self.shape),
        ];
        let flags = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        let overrides: Vec<(String, String)> = flags.chain(self.set.iter().cloned()).collect();
        Ok(Config::load(self.config.as_deref(), &overrides)?)
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.command {
        Some(Command::Config(show)) => config(&show),
        Some(Command::Run(settings)) => serve(&settings),
        None => serve(&args.settings),
    }
}

fn config(show: &Show) -> Result<()> {
    let loaded = show.settings.load()?;
    if show.json {
        return say_json(&loaded.values);
    }
    let rows = loaded.values.into_iter().map(|setting| vec![setting.key, setting.source, setting.value]);
    say_table(&["key", "from", "value"], &rows.collect::<Vec<_>>());
    Ok(())
}

fn serve(settings: &Settings) -> Result<()> {
    start_log("info");
    let config = settings.load()?.config;
    let with_parent = settings.with_parent;
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let node = Node::start(config).await?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = parent_left(), if with_parent => {}
            }
        };
        node.run_until(stop).await;
        anyhow::Ok(())
    })
}

/// Waits for the end of the standard input, on a thread that nobody waits for.
async fn parent_left() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        ended.send(())
    });
    // It can only end one way.
    let _ = end.await;
}
