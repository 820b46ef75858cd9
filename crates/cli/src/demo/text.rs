//! The demonstration on a text that goes on, with the small GPT that is shipped.

use std::path::Path;

use anyhow::Result;
use serde_json::json;
use tercet_client::GenerateOptions;
use tercet_examples::gpt;
use tercet_model::{Model, Oracle, Truncate};

use super::{Args, Stage, glimpse};
use crate::generate::{Generated, go_on, say_usage, usage_json};
use crate::screen::{say, say_json, say_piece};

/// New tokens.
const TOKENS: usize = 64;

pub(super) async fn show(args: &Args, dir: &Path, prompt: &str) -> Result<()> {
    let folder = dir.join("model");
    gpt::write_model(&folder)?;
    let model = Model::load(&folder)?;
    let mut stage = Stage::set(args, dir, model, "gpt", Vec::new()).await?;
    let client = stage.cluster.client(stage.name).await?;
    let options = GenerateOptions { max_new_tokens: TOKENS, ..GenerateOptions::default() };
    let piece = |text: &str| {
        if !args.json {
            say_piece(text);
        }
    };
    if !args.json {
        say("a client has a text go on; no node sees a word of it\n");
    }
    piece(prompt);
    let mut generated = go_on(&client, stage.name, prompt, &options, piece).await?;
    if let Some(error) = generated.error.take() {
        return Err(error.into());
    }
    client.close().await;
    let plain = Plain::beside(&stage.model, prompt, &generated)?;
    let Generated { text, ids, usage, .. } = generated;
    if args.json {
        return say_json(&json!({
            "model": "gpt", "profile": args.profile, "prompt": prompt, "text": text, "ids": ids,
            "plain_agrees": plain.agrees, "plain_text": plain.text, "usage": usage_json(&usage),
        }));
    }
    let count = ids.len();
    say(format_args!(
        "\n\nthe plain model would have taken the same token at {} of {count} places; alone it says\n",
        plain.agrees
    ));
    say(format_args!("{prompt}{}\n", plain.text));
    say_usage(&usage);
    say(glimpse::TITLE);
    glimpse::weight(&stage.model, &stage.shares)
}

/// What the plain model makes of the same prompt.
struct Plain {
    /// At how many places of the private text it would have taken the same token.
    agrees: usize,
    /// What it says by itself.
    text: String,
}

impl Plain {
    fn beside(model: &Model, prompt: &str, private: &Generated) -> Result<Self> {
        let tokenizer = model.tokenizer().ok_or_else(|| anyhow::anyhow!("this model takes no texts"))?;
        let oracle = Oracle::new(model)?;
        let prompt = tokenizer.encode(prompt, model.graph.max_rows(), Truncate::No)?;
        let likeliest = |ids: &[u32]| -> Result<Vec<u32>> {
            let scores = oracle.scores(ids)?;
            let rows = scores.data.chunks_exact(scores.width);
            let best = |row: &[f32]| (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best });
            Ok(rows.map(|row| best(row) as u32).collect())
        };
        let whole = [prompt.as_slice(), &private.ids].concat();
        let taken = likeliest(&whole[..whole.len().saturating_sub(1)])?;
        let agrees =
            taken[prompt.len() - 1..].iter().zip(&private.ids).filter(|(plain, private)| plain == private).count();
        let mut alone = prompt.clone();
        for _ in &private.ids {
            alone.extend(likeliest(&alone)?.last());
        }
        let read = |ids: &[u32]| tokenizer.decode(ids);
        let (all, before) = (read(&alone)?, read(&prompt)?);
        Ok(Self { agrees, text: all.get(before.len()..).unwrap_or_default().to_owned() })
    }
}
