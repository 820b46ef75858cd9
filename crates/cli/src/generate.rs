//! `tercet generate`: a text that goes on privately, printed as it comes.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tercet_client::{Client, GenerateOptions, GenerationUsage, Sampling};

use crate::connection::{ModelArgs, interrupted, runtime, text_or_input};
use crate::screen::{bytes, say, say_json, say_piece, start_log, time};

/// Generate a text privately: the prompt goes on, printed as it comes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// New tokens at most.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new: u32,
    /// Draw tokens by the softmax of their scores over this; 0 takes the likeliest.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from only so many of the likeliest tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from only the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Make tokens that already stand in the text less likely; 1 for not.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// The same draws again.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// A text to stop at; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Have the nodes choose the tokens inside the computation: nobody sees a score, by temperature alone.
    #[arg(long)]
    inside: bool,
    /// How long to wait for the whole text, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86400))]
    deadline: u64,
    /// How the text begins; without it, the standard input.
    prompt: Option<String>,
}

impl Args {
    fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: self.max_new as usize,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            inside: self.inside,
            stop: self.stop.clone(),
            deadline: Duration::from_secs(self.deadline),
            ..GenerateOptions::default()
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    start_log("warn");
    let (options, model) = (args.options(), &args.model);
    let prompt = text_or_input(args.prompt)?;
    if prompt.is_empty() {
        bail!("no prompt; give it as an argument, or on the standard input");
    }
    let piece = |text: &str| {
        if !model.json {
            say_piece(text);
        }
    };
    let generated = runtime()?.block_on(async {
        let client = model.connect().await?;
        piece(&prompt);
        let generated = tokio::select! {
            generated = go_on(&client, &model.name, &prompt, &options, piece) => generated,
            // Dropped at a signal, the generation ends at the nodes, too.
            interrupted = interrupted() => interrupted.map(|()| Default::default()),
        };
        if !model.json {
            say("");
        }
        client.close().await;
        generated
    })?;
    let Generated { text, ids, usage } = generated;
    if model.json {
        let usage = usage_json(&usage);
        return say_json(&json!({ "model": model.name, "text": text, "ids": ids, "usage": usage }));
    }
    say_usage(&usage);
    Ok(())
}

/// What has come of a prompt.
#[derive(Default)]
pub(crate) struct Generated {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) usage: GenerationUsage,
}

/// Generates to the end, and shows each piece as it comes.
pub(crate) async fn go_on(
    client: &Client,
    model: &str,
    prompt: &str,
    options: &GenerateOptions,
    piece: impl Fn(&str),
) -> Result<Generated> {
    let mut generation = client.generate(model, prompt, options).await?;
    let mut generated = Generated::default();
    while let Some(token) = generation.next().await {
        let token = token?;
        piece(&token.text);
        generated.text += &token.text;
        generated.ids.push(token.id);
    }
    generated.usage = generation.usage();
    Ok(generated)
}

/// What a generation has cost, as JSON.
pub(crate) fn usage_json(usage: &GenerationUsage) -> Value {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    json!({
        "prompt_tokens": usage.prompt_tokens, "new_tokens": usage.new_tokens, "batched": usage.batched,
        "rounds": usage.rounds, "bytes": usage.bytes, "total_bytes": usage.total_bytes(),
        "client_sent": usage.sent, "client_received": usage.received, "retried": usage.retried,
        "first_token_ms": ms(usage.first_token), "per_token_ms": usage.per_token().map(ms),
        "finish": usage.finish.map(|finish| finish.name()),
    })
}

/// What a generation has cost, in a line on the standard error output.
pub(crate) fn say_usage(usage: &GenerationUsage) {
    let per_token = usage.per_token().map_or(String::new(), |each| format!(", {} for each further one", time(each)));
    eprintln!(
        "{} tokens after {}, to the first in {}{per_token}: {} rounds, {} between the nodes, {} up and {} down; ended by {}",
        usage.new_tokens,
        usage.prompt_tokens,
        time(usage.first_token),
        usage.rounds,
        bytes(usage.total_bytes()),
        bytes(usage.sent.iter().sum()),
        bytes(usage.received.iter().sum()),
        usage.finish.map_or("nothing", |finish| finish.name()),
    );
}
