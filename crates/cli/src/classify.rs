//! `tercet classify`: private classes of texts or images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tercet_client::Inputs;

use crate::connection::{RequestArgs, runtime, say_usage, texts_or_lines, usage_json};
use crate::screen::{say, say_json, start_log};

/// Classify texts or images privately: one label a line.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    request: RequestArgs,
    /// A JSON file of images: a list of lists of pixels from 0 to 1, channels, then rows, then columns.
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    images: Option<PathBuf>,
    /// The texts; without any, the lines of the standard input.
    texts: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    start_log("warn");
    let images = args.images.as_deref().map(read_images).transpose()?;
    let texts = if images.is_some() { Vec::new() } else { texts_or_lines(args.texts)? };
    let images: Option<Vec<&[f32]>> = images.as_ref().map(|images| images.iter().map(Vec::as_slice).collect());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let inputs = images.as_deref().map_or(Inputs::Texts(&texts), Inputs::Images);
    if inputs.is_empty() {
        bail!("nothing to classify; give texts as arguments, or a file with --images");
    }
    let request = args.request;
    let (found, labels) = runtime()?.block_on(async {
        let client = request.model.connect().await?;
        let found = client.classify(&request.model.name, inputs, &request.options()).await;
        let face = client.model(&request.model.name).await;
        client.close().await;
        anyhow::Ok((found?, face?.labels().to_vec()))
    })?;
    request.write_flame(&found.usage)?;
    if request.model.json {
        let classes = found.classes.iter().map(|class| json!({ "label": class.label, "scores": class.scores }));
        let classes: Vec<_> = classes.collect();
        let usage = usage_json(&found.usage);
        return say_json(&json!({ "model": request.model.name, "labels": labels, "classes": classes, "usage": usage }));
    }
    for class in &found.classes {
        say(format_args!("{}\t{:.4}", class.label, class.scores[class.index]));
    }
    say_usage(&found.usage);
    Ok(())
}

fn read_images(path: &Path) -> Result<Vec<Vec<f32>>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no list of lists of numbers", path.display()))
}
