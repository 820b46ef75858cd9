//! `tercet share`: splits a model, or an adapter of one, between the three nodes.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use tercet_engine::{Base, ModelNumerics, ModelShare, Profile};
use tercet_model::graph::{Input, Reach};
use tercet_model::{Gate, Model};
use tercet_net::PartyId;

use crate::screen::{bytes, hex, note, say, say_json};
use crate::{adapter, owner};

/// Split a model into three shares, one for each node; no single one says anything about its weights.
///
/// With --adapter it is an adapter (LoRA) of the model that is split: three small shares, which nodes serve beside those of the
/// base under a name of their own. Clients choose between them by that name, request by request.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A Hugging Face directory.
    dir: PathBuf,
    /// The name by which clients ask for the model.
    #[arg(long)]
    name: String,
    /// Where the shares go: into its folders p0, p1 and p2, one for each node.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// fast, or precise (nearly twice the bytes, errors about thirty times smaller).
    /// An adapter has that of its base.
    #[arg(long, default_value = "fast", conflicts_with = "adapter")]
    profile: Profile,
    /// Leave the tensors unshared whose names match, in the clear for all three nodes: products with them are cheaper. A star stands
    /// for any characters: `layer*/ffn/*`, `*/weight`, `*`. May be given again.
    #[arg(long, value_name = "PATTERN")]
    public: Vec<String>,
    /// Split this adapter, a PEFT directory, instead of the model itself.
    #[arg(long, value_name = "PEFT_DIR", requires = "base")]
    adapter: Option<PathBuf>,
    /// A share of the model that the adapter stands on, of any party, or the folder that it is in.
    #[arg(long, value_name = "SHARE", requires = "adapter")]
    base: Option<PathBuf>,
    /// Leave the embedding table unshared: nodes and clients get to know it, and clients look words up by themselves.
    #[arg(long, conflicts_with = "adapter")]
    public_table: bool,
    /// Let the nodes learn, in every layer of a mixture of experts, which of them each token goes to, so that these alone run. It says
    /// something of the texts: clients are told, and must agree. With --adapter, what the base was shared with, as the next three are.
    #[arg(long)]
    public_gate: bool,
    /// Let a client's seed alone decide tokens that are drawn inside the nodes, so that a draw can
    /// be repeated. A client that asks often under seeds and temperatures of its choice then learns
    /// the scores, too.
    #[arg(long, conflicts_with = "adapter")]
    reproducible_choice: bool,
    /// Let a model that continues texts take at most so many tokens, if that is less than it takes: rings, and with them bytes,
    /// become smaller.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Let each token of such a model see so many tokens up to its own at most, so that attention costs as much for each token of a
    /// long text. It is no longer quite the model.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    window: Option<u32>,
    /// And the first so many of the text.
    #[arg(long, value_name = "TOKENS", requires = "window")]
    global: Option<u32>,
    /// Texts of the model's own field, one a line, to find out how large its values get. With --adapter, those that the base was
    /// shared with.
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a public gate opens.
pub(crate) const OPENED: &str = "all three nodes learn, in every layer and for every token, which of the experts it goes to, and no more of their scores";

pub(crate) fn run(args: Args) -> Result<()> {
    if args.name.is_empty() || !args.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        bail!("{:?} is no name; use letters, digits, dots, dashes and underscores", args.name);
    }
    let gate = if args.public_gate { Gate::Public } else { Gate::Secret };
    let mut model = owner::load_with(&args.dir, gate)?;
    if (args.context.is_some() || args.window.is_some()) && !model.graph.is_decoder() {
        bail!("--context and --window are for models that continue texts");
    }
    if let Some(context) = args.context {
        model.graph = model.graph.with_context(context as usize);
    }
    if let Some(window) = args.window {
        let global = args.global.unwrap_or(0) as usize;
        model.graph = model.graph.with_reach(Reach { window: Some(window as usize), global });
    }
    if args.reproducible_choice {
        match &mut model.generation {
            Some(generation) => generation.reproducible = true,
            None => bail!("--reproducible-choice is for models that continue texts"),
        }
    }
    if args.public_table && !matches!(model.graph.input, Input::Tokens { .. }) {
        bail!("--public-table is for models of texts; this one takes images");
    }
    for remark in &model.notes {
        note(format_args!("note: {remark}"));
    }
    let more = args.calibrate.as_deref().map(|path| owner::lines_of(&model, path)).transpose()?.unwrap_or_default();
    let Prepared { model, mut numerics, base, calibrated } = match (&args.adapter, &args.base) {
        (Some(dir), Some(base)) => adapter::prepare(model, dir, base, more)?,
        _ => {
            let ranges = owner::ranges(&model, more)?;
            let numerics = owner::numbers(&model, &ranges, args.profile, args.public_table)?;
            Prepared { model, numerics, base: None, calibrated: ranges.inputs }
        }
    };
    let published = publish(&model, &mut numerics, base.as_ref(), &args.public)?;
    if args.public_table {
        note(
            "PUBLIC TABLE: the embedding table is NOT shared. All three nodes and every client get it in the clear; \
             all other weights, the texts and the answers stay secret.",
        );
    }
    if model.graph.opens_gate() {
        note(format_args!(
            "PUBLIC GATE: {OPENED}; weights, texts and answers stay secret. Clients must agree before they ask it."
        ));
    }
    warn_of(&published, &model, &numerics);
    let profile = numerics.profile.to_string();
    let paths = owner::share_on(&model, &args.name, numerics, base, &args.out)?;
    // All three have the same; the helper's is the small one.
    let digest = hex(&ModelShare::open(&paths[0])?.digest());
    let sizes = paths.iter().map(|path| Ok(std::fs::metadata(path)?.len())).collect::<Result<Vec<u64>>>()?;
    if args.json {
        let files: Vec<_> =
            paths.iter().zip(&sizes).map(|(path, size)| json!({ "path": path, "bytes": size })).collect();
        return say_json(&json!({
            "name": args.name, "digest": digest, "profile": profile, "public_table": args.public_table,
            "public": published, "public_gate": model.graph.opens_gate(), "calibration_inputs": calibrated, "files": files,
        }));
    }
    for ((path, size), party) in paths.iter().zip(sizes).zip(PartyId::ALL) {
        say(format_args!("{party}  {}  {}", bytes(size), path.display()));
    }
    say(format_args!("digest {digest}"));
    note("give each node its own file and nobody two of them: two shares together are the model");
    Ok(())
}

/// What is to be split.
pub(crate) struct Prepared {
    pub(crate) model: Model,
    pub(crate) numerics: ModelNumerics,
    /// For an adapter.
    pub(crate) base: Option<Base>,
    /// Inputs that its numbers were chosen after.
    pub(crate) calibrated: usize,
}

/// Makes the tensors public that match, of those that are split now: their names.
fn publish(
    model: &Model,
    numerics: &mut ModelNumerics,
    base: Option<&Base>,
    patterns: &[String],
) -> Result<Vec<String>> {
    let own = |name: &str| base.is_none_or(|base| !base.tensors.contains(name));
    let names: Vec<&str> = model.graph.tensors.iter().map(|spec| spec.name.as_str()).filter(|name| own(name)).collect();
    for pattern in patterns {
        if !names.iter().any(|name| matches(pattern, name)) {
            let some = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
            bail!("--public {pattern:?} matches no tensor; tensors are called {some} and the like");
        }
    }
    let chosen = |name: &str| own(name) && patterns.iter().any(|pattern| matches(pattern, name));
    numerics.publish(chosen);
    Ok(names.into_iter().filter(|name| chosen(name)).map(str::to_owned).collect())
}

/// Says loudly what is public.
fn warn_of(published: &[String], model: &Model, numerics: &ModelNumerics) {
    if published.is_empty() {
        return;
    }
    let elements = |name: &str| model.graph.tensor_spec(name).map_or(0, |spec| spec.rows * spec.cols);
    let count: usize = published.iter().map(|name| elements(name)).sum();
    note(format_args!(
        "PUBLIC WEIGHTS: {} tensors of {count} elements are NOT shared. All three nodes get them in the clear; all other weights, \
         the texts and the answers stay secret. They are: {}",
        published.len(),
        published.join(", ")
    ));
    let table = model.graph.nodes.first().and_then(|node| node.op.tensors().first().copied());
    if table.is_some_and(|table| published.iter().any(|name| name == table) && numerics.is_public(table)) {
        note("PUBLIC TABLE: the embedding table is among them, and goes to every client as well.");
    }
}

/// Whether a name is what a pattern says, in which a star stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(left) = name.strip_prefix(before) else { return false };
    (0..=left.len()).filter(|at| left.is_char_boundary(*at)).any(|at| matches(rest, &left[at..]))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("*", "layer0/ffn/up/weight", true),
            ("layer*/ffn/*", "layer11/ffn/up/weight", true),
            ("layer*/ffn/*", "layer11/attention/out/weight", false),
            ("*/weight", "head/scores/weight", true),
            ("*/weight", "head/scores/bias", false),
            ("layer1/*", "layer11/ffn/up/weight", false),
            ("layer0/ffn/up/weight", "layer0/ffn/up/weight", true),
            ("ffn", "layer0/ffn/up/weight", false),
            ("*up*", "layer0/ffn/up/weight", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} and {name}");
        }
    }
}
