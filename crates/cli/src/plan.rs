//! `tercet plan`: what a request costs, before it is made.
//!
//! Rounds, bytes and memory are exact or bounded, and need nothing but the model's public part. Time is foretold from the rates of
//! this machine, which `--measure` takes from short runs of small models on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::json;
use tercet_core::{Cost, Geometry};
use tercet_engine::{Manifest, ModelShare, Plan, Profile, plan};
use tercet_net::LinkShape;

use crate::bench::probe::{probe, say_fit};
use crate::bench::rates::{self, Measured};
use crate::owner;
use crate::screen::{bytes, say, say_json, say_table, start_log, time};

/// Say what a request costs before it is made: rounds, bytes on every link, memory, time.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A share of a model, or a Hugging Face directory.
    #[arg(required_unless_present = "measure")]
    model: Option<PathBuf>,
    /// Measure this machine first, in about a minute, so that time can be foretold. The result is kept in the cache
    /// (TERCET_CACHE, else ~/.cache/tercet).
    #[arg(long)]
    measure: bool,
    /// The links between the nodes to foretell time for: none, lan, metro, wan, or like 2ms,1gbit. May be given several
    /// times; without it, those four.
    #[arg(long = "link", value_name = "LINK")]
    links: Vec<LinkShape>,
    /// Rows of each input: tokens of a text, special ones included. A model of images has its own number.
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Inputs side by side.
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// For a directory, and for --measure: fast or precise.
    #[arg(long, default_value = "fast")]
    profile: Profile,
    /// How the costs are summed.
    #[arg(long, value_enum, default_value_t = By::Kind)]
    by: By,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How operations are grouped.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum By {
    /// The same operation of all layers together.
    Kind,
    /// All operations of a layer together.
    Layer,
    /// Every operation.
    Operation,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.measure {
        start_log("error");
        let (measured, samples) = probe(args.profile)?;
        measured.keep(args.profile)?;
        match (&args.model, args.json) {
            (None, true) => return say_json(&measured),
            (_, true) => {}
            (_, false) => say_fit(&measured, &samples),
        }
        if args.model.is_some() && !args.json {
            say("");
        }
    }
    let Some(model) = &args.model else { return Ok(()) };
    let manifest = manifest(model, args.profile)?;
    let most = manifest.graph.max_rows();
    let rows = match (args.rows, manifest.tokenizer.is_some()) {
        (Some(rows), _) => rows,
        (None, false) => most,
        (None, true) => bail!("how long is a text? give --rows, from 1 to {most} tokens"),
    };
    let plan = plan(&manifest, Geometry { batch: args.batch, rows })?;
    let parts = grouped(&plan, args.by);
    let measured = Measured::read(manifest.numerics.profile);
    let links = if args.links.is_empty() { LINKS.to_vec() } else { args.links };
    if args.json {
        let seconds = measured.ok().flatten().map(|measured| {
            let of = |link: &LinkShape| (link.to_string(), measured.rates.predict(&plan, *link).into());
            links.iter().map(of).collect::<serde_json::Map<_, _>>()
        });
        let (model, profile) = (manifest.name, manifest.numerics.profile);
        return say_json(&json!({ "model": model, "profile": profile, "plan": plan, "seconds": seconds }));
    }
    say(format_args!("{} in profile {}: {} x {rows} rows", manifest.name, manifest.numerics.profile, args.batch));
    say("");
    let row = |(name, cost): &(String, Cost)| {
        vec![
            name.clone(),
            cost.rounds.to_string(),
            bytes(cost.bytes[1][2]),
            bytes(cost.bytes[2][1]),
            bytes(cost.bytes[0][1]),
            bytes(cost.bytes[0][2]),
            format!("{:.1} %", 100.0 * cost.total_bytes() as f64 / plan.total.total_bytes().max(1) as f64),
        ]
    };
    let mut rows: Vec<Vec<String>> = parts.iter().map(row).collect();
    rows.push(row(&("in all".into(), plan.total)));
    say_table(&["operation", "rounds", "P1→P2", "P2→P1", "P0→P1", "P0→P2", "share"], &rows);
    say("");
    let party = |index: usize| {
        let [up, down] = plan.client_bytes;
        let [up, down] = [up[index], down[index]].map(bytes);
        vec![format!("P{index}"), bytes(plan.weight_bytes[index]), bytes(plan.working_bytes), up, down]
    };
    let parties: Vec<Vec<String>> = (0..3).map(party).collect();
    say_table(&["node", "weights", "working memory", "from client", "to client"], &parties);
    say("");
    match measured {
        Ok(Some(measured)) => say_times(&plan, &measured, &links),
        Ok(None) => say(format_args!("no time is foretold, as this machine was not measured: {}", rates::HOW)),
        Err(error) => say(format_args!("no time is foretold: {error:#}")),
    }
    Ok(())
}

/// The links for which time is foretold where none is named.
const LINKS: [LinkShape; 4] = [LinkShape::NONE, LinkShape::LAN, LinkShape::METRO, LinkShape::WAN];

fn say_times(plan: &Plan, measured: &Measured, links: &[LinkShape]) {
    let seconds = |count: f64| time(Duration::from_secs_f64(count));
    let online = plan.total.bytes[1][2].max(plan.total.bytes[2][1]);
    let dealt = plan.total.bytes[0][1].max(plan.total.bytes[0][2]);
    let row = |link: &LinkShape| {
        let busy = |bytes| seconds(link.busy(usize::try_from(bytes).unwrap_or(usize::MAX)).as_secs_f64());
        vec![
            if link.is_none() { "loopback".into() } else { link.to_string() },
            seconds(measured.rates.predict(plan, *link)),
            seconds(plan.total.rounds as f64 * link.delay.as_secs_f64()),
            busy(online),
            busy(dealt),
        ]
    };
    say_table(
        &["link", "foretold", "rounds x delay", "evaluators' bytes", "helper's bytes"],
        &links.iter().map(row).collect::<Vec<_>>(),
    );
    say(format_args!(
        "\nfor three nodes and a client on this machine, measured {}; its probes were met within {:.0} %",
        measured.date,
        100.0 * measured.residual
    ));
}

/// The public part of a shared model, or of a directory as it would be shared.
fn manifest(path: &Path, profile: Profile) -> Result<Manifest> {
    if path.is_file() {
        return Ok(ModelShare::open(path)?.manifest().clone());
    }
    let share = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let share =
        share.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "tercet"));
    if let Some(share) = share.min() {
        return Ok(ModelShare::open(&share)?.manifest().clone());
    }
    let model = owner::load(path)?;
    let numerics = owner::numbers(&model, &owner::ranges(&model, Vec::new())?, profile, false)?;
    Ok(owner::manifest(&model, numerics))
}

/// Costs by group, in the order in which the groups first occur.
fn grouped(plan: &Plan, by: By) -> Vec<(String, Cost)> {
    let mut groups: Vec<(String, Cost)> = Vec::new();
    for (name, cost) in &plan.parts {
        let name = group(name, by);
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, sum)) => *sum = sum.then(*cost),
            None => groups.push((name, *cost)),
        }
    }
    groups
}

/// The group of an operation of the model.
pub(crate) fn group(name: &str, by: By) -> String {
    let layer = name.split_once('/').filter(|(head, _)| {
        head.strip_prefix("layer").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    match (by, layer) {
        (By::Kind, Some((_, operation))) => format!("layer/{operation}"),
        (By::Layer, Some((layer, _))) => layer.into(),
        (By::Layer, None) => name.split('/').next().unwrap_or(name).into(),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_from_the_rest() {
        assert_eq!(group("layer11/ffn/up", By::Kind), "layer/ffn/up");
        assert_eq!(group("layer11/ffn/up", By::Layer), "layer11");
        assert_eq!(group("layernorm/final", By::Kind), "layernorm/final");
        assert_eq!(group("embeddings/table", By::Layer), "embeddings");
        assert_eq!(group("layer0/add", By::Operation), "layer0/add");
    }
}
