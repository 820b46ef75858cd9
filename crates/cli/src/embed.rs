//! `tercet embed`: private embeddings of texts.

use anyhow::{Result, bail};
use serde_json::json;

use crate::connection::{RequestArgs, runtime, say_usage, texts_or_lines, usage_json};
use crate::screen::{say, say_json, start_log};

/// Embed texts privately: one vector a line.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    request: RequestArgs,
    /// Print the cosine similarities of the texts instead of their vectors.
    #[arg(long)]
    similarity: bool,
    /// The texts; without any, the lines of the standard input.
    texts: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    start_log("warn");
    let texts = texts_or_lines(args.texts)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    if texts.is_empty() {
        bail!("no text; give texts as arguments, or one a line on the standard input");
    }
    let request = args.request;
    let found = runtime()?.block_on(async {
        let client = request.model.connect().await?;
        let found = client.embed(&request.model.name, &texts, &request.options()).await;
        client.close().await;
        anyhow::Ok(found?)
    })?;
    request.write_flame(&found.usage)?;
    let similar = similarities(&found.vectors);
    if request.model.json {
        let numbers =
            if args.similarity { json!({ "similarity": similar }) } else { json!({ "vectors": found.vectors }) };
        return say_json(&json!({ "model": request.model.name, "result": numbers, "usage": usage_json(&found.usage) }));
    }
    let rows = if args.similarity { &similar } else { &found.vectors };
    for row in rows {
        say(row.iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>().join(" "));
    }
    say_usage(&found.usage);
    Ok(())
}

/// Cosine of every pair.
pub(crate) fn similarities(vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    vectors.iter().map(|one| vectors.iter().map(|other| cosine(one, other) as f32).collect()).collect()
}

/// Cosine of the angle between two vectors.
pub(crate) fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_do_not_depend_on_length() {
        let similar = similarities(&[vec![1.0, 0.0], vec![0.0, 5.0], vec![-2.0, 0.0], vec![0.0, 0.0]]);
        assert_eq!(similar[0], [1.0, 0.0, -1.0, 0.0]);
        assert_eq!(similar[1][1], 1.0);
    }
}
