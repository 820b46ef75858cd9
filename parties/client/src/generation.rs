//! A text that is generated: what the caller asks for, the tokens as they come, and what they cost.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use crate::{Error, Sampling};

/// How a text is generated. [`GenerateOptions::default`] takes up to 128 tokens, each the likeliest, chosen here.
///
/// Two runs of one prompt may differ, also at temperature 0, because scores carry a small random
/// error of fixed-point arithmetic. In a model that was shared in profile `fast` another token may
/// win wherever the two best scores are closer than this error: of the shipped GPT 0.007 in the mean and
/// 0.07 at most. In `precise` the error is about thirty times smaller, so that only near ties remain.
#[derive(Clone, PartialEq)]
pub struct GenerateOptions {
    /// New tokens at most; fewer where the model's context ends before.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Have the nodes choose inside the computation: this client then learns the tokens and no scores, and nobody anything
    /// else. Temperature is all that they know of sampling. Each token goes back in as a secret before this client has read it, so
    /// that one or two may be computed beyond the last.
    pub inside: bool,
    /// Texts that end the generation. They are not given out themselves.
    pub stop: Vec<String>,
    /// Go on after a token that ends a text in the model's eyes.
    pub ignore_eos: bool,
    /// How long all of it may take.
    pub deadline: Duration,
    /// How often a generation that a lost connection or a failing node has ended before its first
    /// token is begun anew, under a new number and fresh masks. This happens only where all three
    /// nodes answer within 300 ms of the failure. While the nodes still hold what it had before, it
    /// waits. After the first token the caller decides: it has the text so far.
    pub retries: u32,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            sampling: Sampling::GREEDY,
            inside: false,
            stop: Vec::new(),
            ignore_eos: false,
            deadline: Duration::from_secs(600),
            retries: 1,
        }
    }
}

/// Stop texts may be secret: a debug print shows how many there are.
impl fmt::Debug for GenerateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenerateOptions")
            .field("max_new_tokens", &self.max_new_tokens)
            .field("sampling", &self.sampling)
            .field("inside", &self.inside)
            .field("stop", &self.stop.len())
            .finish_non_exhaustive()
    }
}

impl GenerateOptions {
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.sampling.check()?;
        if self.max_new_tokens == 0 {
            return Err(Error::Misuse("no tokens are asked for".into()));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::Misuse("an empty text to stop at".into()));
        }
        if self.inside && !self.sampling.is_plain() {
            let what =
                "inside the computation tokens are chosen by temperature alone: no top-k, top-p or repetition penalty";
            return Err(Error::Misuse(what.into()));
        }
        Ok(())
    }
}

/// One token.
#[derive(Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// What of the text has become sure with it: nothing while a character is incomplete or a text to stop at may begin, and
    /// more than its own part after that.
    pub text: String,
    /// The natural logarithm of its probability in the model's eyes, before any option of sampling; none where the nodes
    /// chose it.
    pub log_probability: Option<f64>,
}

/// Tokens are the client's secret: a debug print shows none.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token[{} bytes]", self.text.len())
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A text to stop at has come.
    Stop,
    /// A token that ends a text has come.
    Eos,
    /// There were as many tokens as were asked for, or the context is full.
    Length,
    /// The caller has given it up.
    Cancelled,
}

impl Finish {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Eos => "eos",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a generation has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were generated.
    pub new_tokens: usize,
    /// Bytes that the client sent to each node.
    pub sent: [u64; 3],
    /// Bytes that each node sent back.
    pub received: [u64; 3],
    /// Rounds of the sessions of all its steps.
    pub rounds: u64,
    /// Session bytes `[from][to]` between the nodes in all its steps, frame headers included: of all generations that ran
    /// together.
    pub bytes: [[u64; 3]; 3],
    /// The most generations that a step of it ran together with, itself included.
    pub batched: u32,
    /// From the call to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub further_tokens: Duration,
    /// How often it was begun anew.
    pub retried: u32,
    /// Why it ended; none while it goes on, or where an error ended it.
    pub finish: Option<Finish>,
}

impl GenerationUsage {
    /// Time for each token after the first; none where there is no other.
    pub fn per_token(&self) -> Option<Duration> {
        let further = u32::try_from(self.new_tokens).ok()?.checked_sub(1)?;
        self.further_tokens.checked_div(further)
    }

    /// Session bytes on all links between the nodes.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().flatten().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// What the caller and the task that generates have in common.
#[derive(Clone, Default)]
pub(crate) struct SharedUsage(Arc<Mutex<GenerationUsage>>);

impl SharedUsage {
    pub(crate) fn get(&self) -> GenerationUsage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it. Why the generation ended is said once: whoever is first, the caller or the task, has the word.
    pub(crate) fn change(&self, change: impl FnOnce(&mut GenerationUsage)) {
        let mut usage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let finish = usage.finish;
        change(&mut usage);
        usage.finish = finish.or(usage.finish);
    }
}

/// A text that is being generated: a stream of tokens. It goes on whether or not they are read; dropped, it ends at once, and
/// the nodes free what they hold for it.
pub struct Generation {
    tokens: UnboundedReceiver<Result<Token, Error>>,
    task: JoinHandle<()>,
    usage: SharedUsage,
    read: String,
    failed: bool,
}

impl Generation {
    pub(crate) fn new(
        tokens: UnboundedReceiver<Result<Token, Error>>,
        task: JoinHandle<()>,
        usage: SharedUsage,
    ) -> Generation {
        Generation { tokens, task, usage, read: String::new(), failed: false }
    }

    /// The next token; none after the last, and after an error. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Result<Token, Error>> {
        let next = match self.tokens.recv().await {
            // A text does not end without a reason.
            None if !self.failed && self.usage().finish.is_none() => {
                Some(Err(Error::Misuse("the task that generates has stopped".into())))
            }
            next => next,
        };
        match &next {
            Some(Ok(token)) => self.read += &token.text,
            Some(Err(_)) => self.failed = true,
            None => {}
        }
        next
    }

    /// The whole text from here on.
    ///
    /// # Errors
    /// The cause that ends the generation before its end; [`Generation::text_so_far`] has the text
    /// up to there.
    pub async fn text(&mut self) -> Result<(String, GenerationUsage), Error> {
        let from = self.read.len();
        while let Some(token) = self.next().await {
            token?;
        }
        Ok((self.read[from..].to_owned(), self.usage()))
    }

    /// The text of all tokens that were read, also after an error.
    pub fn text_so_far(&self) -> &str {
        &self.read
    }

    /// Ends it at once. Tokens that have come are still there to be read.
    pub fn cancel(&mut self) {
        self.task.abort();
        self.usage.change(|usage| usage.finish = Some(Finish::Cancelled));
    }

    /// What it has cost so far; after the last token, altogether.
    pub fn usage(&self) -> GenerationUsage {
        self.usage.get()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generation[{} tokens]", self.usage().new_tokens)
    }
}

/// How likely a text is in a model's eyes.
#[derive(Clone, PartialEq)]
pub struct Score {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// For every token but the first the natural logarithm of its probability after those before it.
    pub log_probabilities: Vec<f64>,
    /// What it cost.
    pub usage: GenerationUsage,
}

impl Score {
    /// The exponential of the mean surprise: what number of equally likely tokens would be as hard to guess.
    pub fn perplexity(&self) -> f64 {
        let count = self.log_probabilities.len().max(1) as f64;
        (-self.log_probabilities.iter().sum::<f64>() / count).exp()
    }
}

/// Scores are the client's secret: a debug print shows how many there are.
impl fmt::Debug for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Score[{}]", self.ids.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        assert!(GenerateOptions::default().check().is_ok());
        let top = Sampling { top_k: Some(5), ..Sampling::GREEDY };
        let warm = Sampling { temperature: 0.7, ..Sampling::GREEDY };
        assert!(GenerateOptions { inside: true, sampling: warm, ..Default::default() }.check().is_ok());
        for bad in [
            GenerateOptions { max_new_tokens: 0, ..Default::default() },
            GenerateOptions { stop: vec!["a".into(), String::new()], ..Default::default() },
            GenerateOptions { inside: true, sampling: top.clone(), ..Default::default() },
            GenerateOptions { sampling: Sampling { top_p: 2.0, ..top }, ..Default::default() },
        ] {
            assert!(matches!(bad.check(), Err(Error::Misuse(_))), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_task_that_dies_is_no_end_of_a_text() {
        let dead = || {
            let (out, tokens) = tokio::sync::mpsc::unbounded_channel();
            let task = tokio::spawn(async move {
                let _ = out.send(Ok(Token { id: 1, text: "one".into(), log_probability: None }));
                panic!("as it should");
            });
            Generation::new(tokens, task, SharedUsage::default())
        };
        assert!(matches!(dead().text().await, Err(Error::Misuse(_))));
        let mut generation = dead();
        assert_eq!(generation.next().await.unwrap().unwrap().id, 1);
        assert!(matches!(generation.next().await, Some(Err(Error::Misuse(_)))));
        assert!(generation.next().await.is_none());
    }

    #[test]
    fn a_step_under_way_does_not_undo_a_cancellation() {
        let usage = SharedUsage::default();
        let step = GenerationUsage { rounds: 3, ..usage.get() };
        usage.change(|usage| usage.finish = Some(Finish::Cancelled));
        usage.change(|usage| *usage = step);
        usage.change(|usage| usage.finish = Some(Finish::Length));
        assert_eq!((usage.get().rounds, usage.get().finish), (3, Some(Finish::Cancelled)));
    }

    #[test]
    fn bytes_beyond_all_measure_are_no_overflow() {
        let bytes = [[u64::MAX; 3]; 3];
        assert_eq!(GenerationUsage { bytes, ..Default::default() }.total_bytes(), u64::MAX);
        assert_eq!(crate::RequestUsage { bytes, ..Default::default() }.total_bytes(), u64::MAX);
    }

    #[test]
    fn time_is_by_further_token() {
        let usage =
            |new_tokens| GenerationUsage { new_tokens, further_tokens: Duration::from_secs(6), ..Default::default() };
        assert_eq!(usage(4).per_token(), Some(Duration::from_secs(2)));
        assert_eq!((usage(1).per_token(), usage(0).per_token()), (None, None));
    }
}
