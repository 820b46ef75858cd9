//! The `tercet` command: keys, models, nodes, requests, and a demonstration of them all.
//!
//! Every command prints lines for people, or with `--json` one JSON document for programs. It exits with 0 when it did
//! what was asked, with 1 when that failed (one line on the standard error output names the cause and the mend), and with 2 when
//! it was asked wrongly.

mod adapter;
mod bench;
mod card;
mod chart;
mod classify;
mod cluster;
mod connection;
mod costs;
mod demo;
mod diff;
mod doctor;
mod embed;
mod fetch;
mod flame;
mod generate;
mod inspect;
mod keygen;
mod node;
mod owner;
mod page;
mod plan;
mod public;
mod screen;
mod share;
mod shares;
mod three;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tercet_ring::Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// Private transformer inference between three nodes, none of which sees the input, the output or the weights.
#[derive(Parser)]
#[command(name = "tercet", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Keygen(keygen::Args),
    Card(card::Args),
    Fetch(fetch::Args),
    Inspect(inspect::Args),
    Share(share::Args),
    Plan(plan::Args),
    Diff(diff::Args),
    Bench(bench::Args),
    Node(Box<node::Args>),
    Embed(embed::Args),
    Classify(classify::Args),
    Generate(generate::Args),
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Keygen(args) => keygen::run(args),
        Command::Card(args) => card::run(args),
        Command::Fetch(args) => fetch::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Share(args) => share::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Node(args) => node::run(*args),
        Command::Embed(args) => embed::run(args),
        Command::Classify(args) => classify::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen::note(format_args!("error: {}", in_full(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, each said once: many of ours quote their cause themselves.
fn in_full(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("no space").context("cannot write: no space").context("sharing failed");
        assert_eq!(in_full(&error), "sharing failed: cannot write: no space");
    }
}
