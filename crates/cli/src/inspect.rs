//! `tercet inspect`: what a model directory holds, and whether it can be run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use tercet_engine::{Profile, choose};
use tercet_model::graph::{Graph, Input, Op, Output, TensorSpec};

use crate::screen::{say, say_json};
use crate::{adapter, owner};

/// Look at a model directory: what it computes, whether its values fit, and everything that is wrong with it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A Hugging Face directory.
    dir: PathBuf,
    /// An adapter of it as well, a PEFT directory: what it changes, and whether it goes with the model.
    #[arg(long, value_name = "PEFT_DIR")]
    adapter: Option<PathBuf>,
    /// Do not run the model to see how large its values get.
    #[arg(long)]
    no_calibration: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let model = owner::load(&args.dir)?;
    let adapted = args.adapter.as_deref().map(|dir| adapter::load(&model, dir)).transpose()?;
    let graph = &model.graph;
    let parameters: usize = graph.tensors.iter().map(|tensor| tensor.rows * tensor.cols).sum();
    let ranges = if args.no_calibration { None } else { Some(owner::ranges(&model, Vec::new())?) };
    let of_adapted = match (&adapted, &ranges) {
        (Some(adapted), Some(_)) => Some(owner::ranges(adapted, Vec::new())?),
        _ => None,
    };
    let profiles = [Profile::Fast, Profile::Precise].map(|profile| {
        let problems =
            ranges.as_ref().map(|ranges| match (choose(graph, ranges, profile, false), &adapted, &of_adapted) {
                (Ok(numerics), Some(adapted), Some(of_adapted)) => {
                    adapter::problems(&owner::manifest(&model, numerics), [ranges, of_adapted], adapted)
                }
                (Ok(_), _, _) => Vec::new(),
                (Err(problems), _, _) => problems.iter().map(ToString::to_string).collect(),
            });
        (profile, problems)
    });
    let changes: Vec<String> = adapted.iter().flat_map(|adapted| changes(&adapted.graph)).collect();
    if args.json {
        let profiles: BTreeMap<String, _> = profiles.iter().map(|(p, problems)| (p.to_string(), problems)).collect();
        return say_json(&json!({
            "family": graph.family, "parameters": parameters, "tensors": graph.tensors.len(),
            "input": graph.input, "output": graph.output, "operations": operations(graph),
            "notes": model.notes, "adapter": args.adapter.as_ref().map(|_| &changes), "no_headroom": profiles,
        }));
    }
    say(format_args!("family      {}", graph.family));
    say(format_args!("input       {}", input(&graph.input)));
    say(format_args!("output      {}", output(&graph.output)));
    let counted: Vec<String> = operations(graph).into_iter().map(|(name, count)| format!("{count} {name}")).collect();
    say(format_args!("operations  {}", counted.join(", ")));
    say(format_args!("parameters  {parameters} in {} tensors", graph.tensors.len()));
    for change in &changes {
        say(format_args!("adapter     {change}"));
    }
    for note in &model.notes {
        say(format_args!("note        {note}"));
    }
    for (profile, problems) in profiles {
        match problems.as_deref() {
            None => {}
            Some([]) => say(format_args!("{:<12}fits", profile.to_string())),
            Some(problems) => {
                say(format_args!("{:<12}does not fit", profile.to_string()));
                problems.iter().for_each(|problem| say(format_args!("            {problem}")));
            }
        }
    }
    Ok(())
}

/// What an adapter changes, and by which rank: the layers, and how much it has of its own.
fn changes(graph: &Graph) -> Vec<String> {
    let of = |tensor: &TensorSpec| {
        let layer = tensor.name.strip_suffix("/lora/down/weight")?;
        Some(format!("{layer} by rank {}", tensor.cols))
    };
    graph.tensors.iter().filter_map(of).collect()
}

fn input(input: &Input) -> String {
    match input {
        Input::Tokens { vocab, max_tokens } => format!("texts of up to {max_tokens} tokens out of {vocab}"),
        Input::Patches { channels, image_size, patch_size, .. } => format!(
            "images of {channels} x {image_size} x {image_size} pixels in patches of {patch_size} x {patch_size}"
        ),
    }
}

fn output(output: &Output) -> String {
    match output {
        Output::Embedding { width, normalize: true } => format!("vectors of {width} numbers, scaled to unit length"),
        Output::Embedding { width, normalize: false } => format!("vectors of {width} numbers"),
        Output::Logits { labels } => format!("scores of {} labels: {}", labels.len(), labels.join(", ")),
        Output::NextToken { vocab } => format!("the next of {vocab} tokens"),
    }
}

/// How often each operation occurs, by name.
fn operations(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for node in &graph.nodes {
        let name = match node.op {
            Op::Lookup { .. } => "lookup",
            Op::AddRows { .. } => "positions",
            Op::PrependRow { .. } => "class token",
            Op::Linear { .. } => "linear",
            Op::LayerNorm { .. } => "layer norm",
            Op::Attention { .. } => "attention",
            Op::Add => "residual",
            Op::Activation(_) => "activation",
            Op::FirstRow => "first row",
            Op::MeanRows => "mean",
            Op::RmsNorm { .. } => "RMS norm",
            Op::CausalAttention { .. } => "causal attention",
            Op::AddPositions { .. } => "positions",
            Op::Gated(_) => "gated activation",
            Op::Route { .. } => "router",
            Op::ScaleBlocks => "weighed experts",
            Op::Experts { .. } => "experts behind a public gate",
            Op::LastRow => "last row",
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}
