//! `tercet share`: splits a model between the three nodes.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use tercet_engine::{ModelShare, Profile};
use tercet_model::graph::Input;

use crate::owner;
use crate::screen::{bytes, hex, say, say_json};

/// Split a model into three shares, one for each node; no single one says anything about its weights.
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
    #[arg(long, default_value = "fast")]
    profile: Profile,
    /// Leave the embedding table unshared: nodes and clients get to know it, and clients look words up by themselves.
    #[arg(long)]
    public_table: bool,
    /// Texts of the model's own field, one a line, to find out how large its values get.
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.name.is_empty() || !args.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        bail!("{:?} is no name; use letters, digits, dots, dashes and underscores", args.name);
    }
    let model = owner::load(&args.dir)?;
    if args.public_table && !matches!(model.graph.input, Input::Tokens { .. }) {
        bail!("--public-table is for models of texts; this one takes images");
    }
    for note in &model.notes {
        eprintln!("note: {note}");
    }
    let more = args.calibrate.as_deref().map(|path| owner::lines_of(&model, path)).transpose()?.unwrap_or_default();
    let ranges = owner::ranges(&model, more)?;
    let numerics = owner::numbers(&model, &ranges, args.profile, args.public_table)?;
    if args.public_table {
        eprintln!(
            "PUBLIC TABLE: the embedding table is NOT shared. All three nodes and every client get it in the clear; \
             all other weights, the texts and the answers stay secret."
        );
    }
    let paths = owner::share(&model, &args.name, numerics, &args.out)?;
    let shares = paths.iter().map(|path| ModelShare::open(path)).collect::<Result<Vec<_>, _>>()?;
    let digest = hex(&shares[0].digest());
    if args.json {
        let files: Vec<_> = paths
            .iter()
            .zip(&shares)
            .map(|(path, share)| json!({ "path": path, "bytes": share.len_bytes() }))
            .collect();
        let profile = args.profile.to_string();
        return say_json(&json!({
            "name": args.name, "digest": digest, "profile": profile, "public_table": args.public_table,
            "calibration_inputs": ranges.inputs, "files": files,
        }));
    }
    for (path, share) in paths.iter().zip(&shares) {
        say(format_args!("{}  {}  {}", share.party(), bytes(share.len_bytes()), path.display()));
    }
    say(format_args!("digest {digest}"));
    eprintln!("give each node its own file and nobody two of them: two shares together are the model");
    Ok(())
}
