//! One generation as it goes: when each token came, and what all steps had cost by then.

use std::time::Instant;

use anyhow::{Result, bail};
use tercet_client::{Client, GenerateOptions, GenerationUsage};

use super::outcome::Counted;
use crate::bench::process::Process;

/// A generation that has come to its end.
pub(super) struct Course {
    pub(super) begun: Instant,
    /// Every token, and when it could be read.
    pub(super) tokens: Vec<(Instant, u32)>,
    /// Processor seconds of the client and the nodes since their start, when the first token came.
    pub(super) cpu_at_first: [f64; 4],
    /// What was counted when the token came.
    so_far: Vec<Counted>,
    /// What all of it cost.
    pub(super) usage: GenerationUsage,
}

impl Course {
    /// Runs one to its end.
    ///
    /// # Errors
    /// The client's; fewer tokens came than were asked for.
    pub(super) async fn run(
        client: Client,
        processes: [Process; 4],
        model: String,
        prompt: String,
        options: GenerateOptions,
    ) -> Result<Self> {
        let begun = Instant::now();
        let mut generation = client.generate(&model, &prompt, &options).await?;
        let (mut tokens, mut so_far, mut cpu_at_first) = (Vec::new(), Vec::new(), [0.0; 4]);
        while let Some(token) = generation.next().await {
            tokens.push((Instant::now(), token?.id));
            so_far.push(Counted::of_usage(&generation.usage()));
            if tokens.len() == 1 {
                cpu_at_first = processes.map(|process| process.counters().cpu_seconds);
            }
        }
        let usage = generation.usage();
        if tokens.len() != options.max_new_tokens {
            bail!("{} tokens came where {} were asked for", tokens.len(), options.max_new_tokens);
        }
        Ok(Self { begun, tokens, cpu_at_first, so_far, usage })
    }

    /// Seconds to the first token.
    pub(super) fn first(&self) -> f64 {
        self.tokens.first().map_or(0.0, |(at, _)| (*at - self.begun).as_secs_f64())
    }

    /// Seconds between tokens.
    pub(super) fn further(&self) -> impl Iterator<Item = f64> {
        self.tokens.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs_f64())
    }

    /// What each step cost, that of the prompt first.
    pub(super) fn steps(&self) -> impl Iterator<Item = Counted> {
        let before = std::iter::once(Counted::default()).chain(self.so_far.iter().copied());
        self.so_far.iter().zip(before).map(|(after, before)| after.less(before))
    }
}
