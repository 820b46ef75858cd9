//! `tercet generate`: a text that goes on privately, printed as it comes.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tercet_client::{Client, Error, GenerateOptions, GenerationUsage, Sampling};
use tercet_model::Generation;

use crate::connection::{ModelArgs, interrupted, runtime, text_or_input};
use crate::screen::{bytes, note, say, say_json, say_piece, start_log, time};

/// Generate a text privately: the prompt goes on, printed as it comes.
///
/// How tokens are chosen is up to the model's makers (generation_config.json) where no option says otherwise.
///
/// The text goes to the standard output as it comes. On a terminal its control characters are
/// shown, as \u001b; a file or a program gets it as it is. When a node fails, the text so far
/// stays, the error names the node, and the exit code is 1.
///
/// Two runs of one prompt may differ, also at --temperature 0, because scores carry a small random
/// error of fixed-point arithmetic. In a model that was shared in profile `fast` another token may
/// win wherever the two best scores are closer than this error: of the shipped GPT 0.007 in the mean and
/// 0.07 at most. In `precise` the error is about thirty times smaller, so that only near ties remain.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// New tokens at most.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new: u32,
    /// Draw tokens by the softmax of their scores over this; 0 takes the likeliest, as does a model whose makers do not draw.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draw from only so many of the likeliest tokens; 0 for all.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from only the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Make tokens that already stand in the text less likely; 1 for not.
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f64>,
    /// Repeat the draws of an earlier run. Of draws inside the nodes, this works only where the
    /// model was shared with --reproducible-choice.
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
    /// What the options say, and of the rest what the model's makers do.
    fn sampling(&self, makers: Option<&Generation>) -> Sampling {
        let mut otherwise = makers.map_or(Sampling::GREEDY, Sampling::of);
        if self.inside {
            // The nodes have a temperature and nothing else.
            otherwise = Sampling { temperature: otherwise.temperature, ..Sampling::GREEDY };
        }
        Sampling {
            temperature: self.temperature.unwrap_or(otherwise.temperature),
            top_k: self.top_k.or(otherwise.top_k).filter(|k| *k != 0),
            top_p: self.top_p.unwrap_or(otherwise.top_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(otherwise.repetition_penalty),
            seed: self.seed,
        }
    }

    fn options(&self, makers: Option<&Generation>) -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: self.max_new as usize,
            sampling: self.sampling(makers),
            inside: self.inside,
            stop: self.stop.clone(),
            deadline: Duration::from_secs(self.deadline),
            ..GenerateOptions::default()
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    start_log("warn");
    let (prompt, model) = (text_or_input(args.prompt.clone())?, &args.model);
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
        let generating = async {
            let face = client.model(&model.name).await?;
            let options = args.options(face.interface().decoder.as_ref().map(|decoder| &decoder.generation));
            go_on(&client, &model.name, &prompt, &options, piece).await
        };
        let generated = tokio::select! {
            generated = generating => generated,
            // Dropped at a signal, the generation ends at the nodes, too.
            interrupted = interrupted() => interrupted.map(|()| Generated::default()),
        };
        if !model.json {
            say("");
        }
        client.close().await;
        generated
    })?;
    let Generated { text, ids, usage, error } = generated;
    if model.json {
        let (usage, error) = (usage_json(&usage), error.as_ref().map(Error::to_string));
        say_json(&json!({ "model": model.name, "text": text, "ids": ids, "usage": usage, "error": error }))?;
    } else {
        say_usage(&usage);
    }
    error.map_or(Ok(()), |error| Err(error.into()))
}

/// The text that has come of a prompt, also where an error ended it.
#[derive(Default)]
pub(crate) struct Generated {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) usage: GenerationUsage,
    pub(crate) error: Option<Error>,
}

/// Generates to the end, or to the error that comes before it, and shows each piece as it comes.
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
        match token {
            Ok(token) => {
                piece(&token.text);
                generated.ids.push(token.id);
            }
            Err(error) => generated.error = Some(error),
        }
    }
    generated.text = generation.text_so_far().to_owned();
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
    note(format_args!(
        "{} tokens after {}, to the first in {}{per_token}: {} rounds, {} between the nodes, {} up and {} down; ended by {}",
        usage.new_tokens,
        usage.prompt_tokens,
        time(usage.first_token),
        usage.rounds,
        bytes(usage.total_bytes()),
        bytes(usage.sent.iter().sum()),
        bytes(usage.received.iter().sum()),
        usage.finish.map_or("nothing", |finish| finish.name()),
    ));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn tokens_are_chosen_as_the_makers_do_unless_an_option_says_otherwise() {
        let makers = Generation {
            sample: true,
            temperature: 0.6,
            top_k: Some(50),
            top_p: 0.9,
            repetition_penalty: 1.1,
            ..Generation::default()
        };
        let of = |makers: Option<&Generation>, flags: &[&str]| {
            let line = [&["generate", "--model", "m", "prompt"][..], flags].concat();
            Line::parse_from(line).args.sampling(makers)
        };
        let theirs = Sampling::of(&makers);
        assert_eq!(of(Some(&makers), &[]), theirs);
        assert_eq!(of(None, &[]), Sampling::GREEDY);
        assert_eq!(of(Some(&Generation::default()), &[]), Sampling::GREEDY);
        assert_eq!(of(Some(&makers), &["--temperature", "0"]), Sampling { temperature: 0.0, ..theirs.clone() });
        let flags = ["--top-k", "0", "--top-p", "0.5", "--repetition-penalty", "1", "--seed", "7"];
        let own = Sampling { temperature: 0.6, top_k: None, top_p: 0.5, repetition_penalty: 1.0, seed: Some(7) };
        assert_eq!(of(Some(&makers), &flags), own);
        assert_eq!(of(Some(&makers), &["--inside"]), Sampling { temperature: 0.6, ..Sampling::GREEDY });
        assert_eq!(of(None, &["--inside", "--top-k", "5"]).top_k, Some(5), "which the client refuses by name");
    }
}
