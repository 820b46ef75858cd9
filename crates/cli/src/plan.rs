//! `tercet plan`: what a request costs, before it is made.
//!
//! Rounds, bytes and memory are exact or bounded, and need nothing but the model's public part. Time is foretold from the rates of
//! this machine, which `--measure` takes from short runs of small models on it; not for steps of generations.

pub(crate) mod priced;
mod subject;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;
use tercet_core::{Cost, Extent, Geometry, Layout};
use tercet_engine::{Choice, Plan, Profile, StepPlan, StepShape, plan, plan_step};
use tercet_model::graph::Input;
use tercet_net::LinkShape;

use crate::bench::probe::{probe, say_fit};
use crate::bench::rates::{self, Measured};
use crate::public::Public;
use crate::screen::{note, say, say_json, say_table, start_log, time};
use crate::share::OPENED;
use priced::Priced;
use subject::Subject;

/// Say what a request costs before it is made: rounds, bytes on every link, memory, time.
///
/// Of a model that continues texts, what the prompt costs (--rows) and what each further token does (--context).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A share of a model, the folder that it is in, a Hugging Face directory, or a name from `tercet bench list`. Where the
    /// weights are not there, how large values get is assumed.
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
    /// A step of a generation that makes its text so many tokens long.
    #[arg(long, value_name = "C", conflicts_with = "links")]
    context: Option<usize>,
    /// Inputs, or generations, side by side.
    #[arg(long, visible_alias = "sessions", value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Tokens are chosen inside the computation, and go back in unseen.
    #[arg(long)]
    inside: bool,
    /// For what is not shared yet, and for --measure: fast or precise.
    #[arg(long, default_value = "fast")]
    profile: Profile,
    #[command(flatten)]
    public: Public,
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
    let subject = Subject::of(model, args.profile, args.public)?;
    if subject.assumed && !args.json {
        note(
            "note: without the weights, how large values get is assumed; rounds and bytes may come out a few percent \
             otherwise",
        );
    }
    match subject.manifest.graph.is_decoder() {
        true => steps(&subject, &args),
        false => request(&subject, &args),
    }
}

/// A request of a model that answers at once.
fn request(subject: &Subject, args: &Args) -> Result<()> {
    let manifest = &subject.manifest;
    if args.context.is_some() || args.inside {
        bail!("--context and --inside are for models that continue texts, and this one does not");
    }
    let most = manifest.graph.max_rows();
    let rows = match (args.rows, &manifest.graph.input) {
        (Some(rows), _) => rows,
        (None, Input::Patches { .. }) => most,
        (None, Input::Tokens { .. }) => bail!("how long is a text? give --rows, from 1 to {most} tokens"),
    };
    let plan = plan(manifest, Geometry { batch: args.batch, rows })?;
    let profile = manifest.numerics.profile;
    let measured = Measured::read(profile);
    let links = if args.links.is_empty() { LINKS.to_vec() } else { args.links.clone() };
    if args.json {
        let seconds = measured.ok().flatten().map(|measured| {
            let of = |link: &LinkShape| (link.to_string(), measured.rates.predict(&plan, *link).into());
            links.iter().map(of).collect::<serde_json::Map<_, _>>()
        });
        return say_json(&json!({
            "model": subject.name, "profile": profile, "assumed": subject.assumed, "plan": plan, "seconds": seconds,
        }));
    }
    say(format_args!("{} in profile {profile}: {} x {rows} rows", subject.name, args.batch));
    say("");
    Priced::from(&plan).say(args.by);
    say("");
    match measured {
        Ok(Some(measured)) => say_times(&plan, &measured, &links),
        Ok(None) => say(format_args!("no time is foretold, as this machine was not measured: {}", rates::HOW)),
        Err(error) => say(format_args!("no time is foretold: {error:#}")),
    }
    Ok(())
}

/// The steps of generations: their prompts, or a further token of each.
fn steps(subject: &Subject, args: &Args) -> Result<()> {
    let manifest = &subject.manifest;
    let most = manifest.graph.max_rows();
    if (args.rows, args.context) == (None, None) {
        bail!("how long is a prompt, or the text after a step? give --rows from 1, --context from 2, to {most} tokens");
    }
    let choice = if args.inside { Choice::Token } else { Choice::Scores };
    let of = |extent: Extent| -> Result<StepPlan> {
        let layout = Layout { sequences: vec![extent; args.batch], every_row: false };
        let reentry = args.inside && extent.past > 0;
        Ok(plan_step(manifest, &StepShape { layout, choice, reentry, noisy: false })?)
    };
    let prompt = args.rows.map(|rows| of(Extent { past: 0, rows })).transpose()?;
    let further = match args.context {
        Some(context) if context < 2 => bail!("--context {context}: a step follows one token at least, so from 2"),
        Some(context) => Some(of(Extent { past: context - 1, rows: 1 })?),
        None => None,
    };
    let profile = manifest.numerics.profile;
    if args.json {
        return say_json(&json!({
            "model": subject.name, "profile": profile, "assumed": subject.assumed, "sessions": args.batch,
            "inside": args.inside, "public_gate": manifest.graph.opens_gate(), "rows": args.rows, "prefill": prompt, "context": args.context, "decode": further,
        }));
    }
    let say_step = |what: &str, length: Option<usize>, step: &StepPlan| {
        let length = length.unwrap_or(0);
        say(format_args!("{} in profile {profile}: {} x {what} {length} tokens", subject.name, args.batch));
        say("");
        Priced::from(step).say(args.by);
        say("");
    };
    prompt.iter().for_each(|step| say_step("a prompt of", args.rows, step));
    further.iter().for_each(|step| say_step("one more token, which makes the text", args.context, step));
    if manifest.graph.opens_gate() {
        say(format_args!("PUBLIC GATE: {OPENED}\n"));
    }
    say("no time is foretold for generations: `tercet bench generate` measures them");
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

/// Costs by group, in the order in which the groups first occur.
fn grouped(parts: &[(String, Cost)], by: By) -> Vec<(String, Cost)> {
    let mut groups: Vec<(String, Cost)> = Vec::new();
    for (name, cost) in parts {
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
