//! The demonstration on sentences, with the real all-MiniLM-L6-v2.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tercet_client::{Inputs, Options};
use tercet_model::graph::Input;
use tercet_model::{Model, Oracle, OracleInput, Truncate};

use super::cost::Bill;
use super::{Args, Stage, glimpse};
use crate::diff::normalized;
use crate::embed::{cosine, similarities};
use crate::fetch::fetched;
use crate::screen::{say, say_json, say_table};

const DEFAULT: [&str; 4] = [
    "My chest hurts when I climb the stairs.",
    "I feel pain in the thorax during exercise.",
    "The quarterly report is due on Friday.",
    "Finance wants our numbers by the end of the week.",
];

pub(super) async fn show(args: &Args, dir: &Path) -> Result<()> {
    let Some(model_dir) = fetched("minilm")? else {
        bail!("all-MiniLM-L6-v2 is not on this machine; run `tercet fetch minilm` first");
    };
    let model = Model::load(&model_dir)?;
    let texts: Vec<&str> = match args.sentences.as_slice() {
        [] => DEFAULT.to_vec(),
        given => given.iter().map(String::as_str).collect(),
    };
    let plain = plain(&model, &texts)?;

    let mut stage = Stage::set(args, dir, model, "minilm", Vec::new()).await?;
    let client = stage.cluster.client(stage.name).await?;
    let options = args.with_flame(Options::default());
    client.embed(stage.name, &texts[..1], &options).await?;

    let begun = Instant::now();
    let found = client.embed(stage.name, &texts, &options).await?;
    let elapsed = begun.elapsed();
    args.write_flame(&found.usage)?;
    let bill = Bill::of(&client, elapsed, texts.len(), found.usage.clone()).await?;
    client.close().await;

    let (private, wanted) = (similarities(&found.vectors), similarities(&plain));
    let cosines: Vec<f64> = found.vectors.iter().zip(&plain).map(|(a, b)| cosine(a, b)).collect();
    let errors = private.iter().flatten().zip(wanted.iter().flatten()).map(|(a, b)| (a - b).abs());
    let largest = errors.fold(0.0, f32::max);
    if args.json {
        return say_json(&json!({
            "model": "minilm", "profile": args.profile, "texts": texts, "private": private, "plain": wanted,
            "max_error": largest, "cosine_to_plain": cosines, "cost": bill.json(),
        }));
    }
    say("a client asks how similar these are; no node sees them\n");
    for (number, text) in texts.iter().enumerate() {
        say(format_args!("{:>3}  {text}", number + 1));
    }
    say("\ncosine similarity: private, with that of the plain model in brackets\n");
    let head: Vec<String> = (1..=texts.len()).map(|number| number.to_string()).collect();
    let head: Vec<&str> = [""].into_iter().chain(head.iter().map(String::as_str)).collect();
    let rows = private.iter().zip(&wanted).enumerate().map(|(number, (private, plain))| {
        let cells = private.iter().zip(plain).map(|(a, b)| format!("{a:.4} ({b:.4})"));
        [(number + 1).to_string()].into_iter().chain(cells).collect()
    });
    say_table(&head, &rows.collect::<Vec<Vec<String>>>());
    let worst = cosines.iter().copied().fold(1.0, f64::min);
    say(format_args!(
        "\nlargest error {largest:.5}; every vector has a cosine of {worst:.6} or more to the plain one\n"
    ));
    bill.say();
    say(glimpse::TITLE);
    glimpse::weight(&stage.model, &stage.shares)?;
    let what = "the first token of the first sentence, as keys of a private lookup (drawn anew in every request)";
    let first = ids(&stage.model, texts[0])?.first().copied().context("no token")?;
    glimpse::input(&stage.model, &stage.shares, Inputs::Texts(&texts[..1]), what, &format!("token {first}"))
}

/// What the plain model says.
fn plain(model: &Model, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
    let oracle = Oracle::new(model)?;
    let embed = |text: &&str| {
        let trace = oracle.run(&OracleInput::Tokens(ids(model, text)?))?;
        Ok(normalized(model, trace.output()))
    };
    texts.iter().map(embed).collect()
}

fn ids(model: &Model, text: &str) -> Result<Vec<u32>> {
    let (Some(tokenizer), Input::Tokens { max_tokens, .. }) = (model.tokenizer(), &model.graph.input) else {
        bail!("this model takes no texts");
    };
    Ok(tokenizer.encode(text, *max_tokens, Truncate::No)?)
}
