//! `tercet diff`: the private computation against the float oracle, layer by layer.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use tercet_client::{Inputs, ModelFace, Options};
use tercet_engine::{Manifest, ModelShare, NodeSpec, Profile};
use tercet_examples::digits;
use tercet_model::graph::{Input, Op};
use tercet_model::{Model, Oracle, OracleInput, Trace, Truncate};

use crate::embed::cosine;
use crate::screen::{bar, say, say_json, say_table};
use crate::{owner, three};

/// Compare a private run with the float model, layer by layer. All three parties run in this process.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A Hugging Face directory.
    dir: PathBuf,
    /// fast or precise.
    #[arg(long, default_value = "fast")]
    profile: Profile,
    /// For a model of 8 x 8 images: which of the shipped test digits.
    #[arg(long, value_name = "N", default_value_t = 0)]
    digit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The text.
    text: Option<String>,
}

/// The error of one value.
#[derive(serde::Serialize)]
struct Error {
    name: String,
    max: f64,
    mean: f64,
    largest: f64,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let model = owner::load(&args.dir)?;
    if model.graph.is_decoder() {
        bail!("diff is for models that answer at once, and this one continues texts");
    }
    let pixels = digits::test_split().get(args.digit).map(|digit| digit.pixels).unwrap_or([0.0; digits::PIXELS]);
    let text = args.text.unwrap_or_default();
    let (inputs, plain) = match &model.graph.input {
        Input::Patches { .. } => {
            (Inputs::Images(&[&pixels]), OracleInput::Patches(model.graph.input.patches(&pixels)?))
        }
        Input::Tokens { .. } if text.is_empty() => bail!("this model takes texts; give one after the directory"),
        Input::Tokens { max_tokens, .. } => {
            let ids = model.tokenizer().map(|tokenizer| tokenizer.encode(&text, *max_tokens, Truncate::No));
            let ids = ids.transpose()?.unwrap_or_default();
            (Inputs::Texts(&[&text]), OracleInput::Tokens(ids))
        }
    };

    let ranges = owner::ranges(&model, Vec::new())?;
    let numerics = owner::numbers(&model, &ranges, args.profile, false)?;
    let dir = tempfile::tempdir()?;
    let paths = owner::share(&model, "diff", numerics, dir.path())?;
    let [p0, p1, p2] = paths.each_ref().map(|path| ModelShare::open(path));
    let shares = [p0?, p1?, p2?];
    let manifest = shares[0].manifest();
    let face = ModelFace::new("diff", shares[0].digest(), manifest.interface()?, manifest.tokenizer.clone())?;

    let trace = Oracle::new(&model)?.run(&plain)?;
    let prepared = face.prepare(inputs, &Options::default(), None)?;
    let Some(request) = prepared.first() else { bail!("nothing to compare") };

    let fracs = fracs(manifest);
    let bar = bar(manifest.graph.nodes.len() as u64, "computing", false);
    let mut errors = Vec::new();
    let outcome = three::run(&shares, &face, request, |index, value| {
        bar.inc(1);
        errors.push(compare(manifest, &trace, request.rows(), index, &value, fracs[index]));
    })?;
    bar.clear();

    let output = &outcome.output[0];
    let wanted = normalized(&model, trace.output());
    let cosine = cosine(output, &wanted);
    let largest = output.iter().zip(&wanted).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    if args.json {
        return say_json(&json!({
            "profile": args.profile, "rows": request.rows(), "values": errors, "cosine": cosine,
            "output_max_error": largest, "cost": outcome.cost,
        }));
    }
    let cells = |e: &Error| {
        vec![e.name.clone(), format!("{:.2e}", e.max), format!("{:.2e}", e.mean), format!("{:.2}", e.largest)]
    };
    let rows: Vec<Vec<String>> = errors.iter().map(cells).collect();
    say_table(&["value", "max error", "mean error", "largest"], &rows);
    say("");
    say(format_args!("output: cosine {cosine:.8}, max error {largest:.2e}, {} rounds", outcome.cost.rounds));
    Ok(())
}

/// Scale of every value, by node.
fn fracs(manifest: &Manifest) -> Vec<u32> {
    let activations = manifest.numerics.formats.frac;
    let mut fracs = vec![activations];
    for (node, spec) in manifest.graph.nodes.iter().zip(&manifest.numerics.nodes) {
        let frac = match spec {
            NodeSpec::Lookup(lookup) => lookup.frac,
            NodeSpec::None | NodeSpec::Add { .. } => node.inputs.first().map_or(activations, |&input| fracs[input]),
            _ => activations,
        };
        fracs.push(frac);
    }
    fracs.split_off(1)
}

fn compare(manifest: &Manifest, trace: &Trace, rows: usize, index: usize, value: &three::Value, frac: u32) -> Error {
    let node = &manifest.graph.nodes[index];
    // Parties sum over rows; the client divides.
    let divisor = if matches!(node.op, Op::MeanRows) { rows as f64 } else { 1.0 };
    let unit = (-f64::from(frac)).exp2() / divisor;
    let wanted = &trace.values[index];
    let mut error = Error { name: node.name.clone(), max: 0.0, mean: 0.0, largest: 0.0 };
    if (wanted.rows, wanted.width) != (value.rows, value.cols) {
        error.max = f64::INFINITY;
        return error;
    }
    for (&integer, &float) in value.integers.iter().zip(&wanted.data) {
        let off = (integer as f64 * unit - f64::from(float)).abs();
        error.max = error.max.max(off);
        error.mean += off / wanted.data.len() as f64;
        error.largest = error.largest.max(f64::from(float.abs()));
    }
    error
}

/// The oracle's output as a client reads it.
pub(crate) fn normalized(model: &Model, output: &[f32]) -> Vec<f32> {
    use tercet_model::graph::Output;
    let length = match model.graph.output {
        Output::Embedding { normalize: true, .. } => output.iter().map(|v| v * v).sum::<f32>().sqrt(),
        _ => 1.0,
    };
    output.iter().map(|v| v / length.max(f32::MIN_POSITIVE)).collect()
}
