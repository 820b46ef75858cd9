//! Trains the small GPT-2 of the demonstration on four novels by Jane Austen and writes it as an unmodified Hugging Face
//! `GPT2LMHeadModel` directory.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release -p tercet-examples --features train --bin train_gpt -- \
//!     examples/gpt/model [--steps 6000] [--minutes N] [--seed 1775] [--from DIRECTORY]
//! ```
//!
//! It uses two cores, one for each half of a batch. Every 250 steps it prints the loss on chapters held out, the seconds and
//! a sample, and writes the directory, so that there is always a model to use. The learning rate falls to zero at the
//! last step or at `--minutes`, whichever comes first. `--from` starts at a directory's weights instead of random ones: give
//! it another seed then, or it sees the same windows again. Everything random comes from the seed, so as long as the
//! minutes do not decide, a machine always writes the same bytes; another machine's floating point may differ.

mod corpus;
mod directory;
mod network;
mod sweeps;

use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use corpus::Corpus;
use network::{CONTEXT, Pass, Weights};
use tercet_examples::gpt::PROMPTS;

/// Tokens in each half of a batch.
const HALF_BATCH: usize = 4 * CONTEXT;
/// Until this share of the way, windows are half as long as the context and twice as many: attention costs less.
const SHORT_WINDOWS: f64 = 0.6;
const LEARNING_RATE: f64 = 2e-3;
const WARM_UP_STEPS: usize = 100;
const WEIGHT_DECAY: f64 = 0.1;
/// Gradients longer than this are cut to it.
const GRADIENT_NORM: f64 = 1.0;
const CHECK_EVERY: usize = 250;

const SAMPLE_TOKENS: usize = 48;
const TEMPERATURE: f32 = 0.7;

struct Options {
    dir: PathBuf,
    steps: usize,
    minutes: f64,
    seed: u64,
    from: Option<PathBuf>,
}

impl Options {
    fn from_arguments() -> Result<Self> {
        const USAGE: &str = "usage: train_gpt DIRECTORY [--steps N] [--minutes N] [--seed N] [--from DIRECTORY]";
        let mut arguments = std::env::args_os().skip(1);
        let dir = arguments.next().map(PathBuf::from).context(USAGE)?;
        let mut options = Self { dir, steps: 6000, minutes: f64::INFINITY, seed: 1775, from: None };
        while let Some(name) = arguments.next() {
            let value = arguments.next().and_then(|value| value.into_string().ok()).context(USAGE)?;
            match name.to_str() {
                Some("--steps") => options.steps = value.parse().context(USAGE)?,
                Some("--minutes") => options.minutes = value.parse().context(USAGE)?,
                Some("--seed") => options.seed = value.parse().context(USAGE)?,
                Some("--from") => options.from = Some(value.into()),
                _ => bail!(USAGE),
            }
        }
        ensure!(options.steps > 0 && options.minutes > 0.0, "nothing to do: {USAGE}");
        Ok(options)
    }
}

fn main() -> Result<()> {
    let options = Options::from_arguments()?;
    let corpus = Corpus::load()?;
    let weights = match &options.from {
        Some(dir) => directory::weights(dir).with_context(|| format!("cannot read the model in {}", dir.display()))?,
        None => network::initial_weights(corpus::VOCABULARY, &mut ChaCha8Rng::seed_from_u64(options.seed))?,
    };
    let parameters: usize = weights.values().map(|w| w.elem_count()).sum();
    println!("{} bytes to learn, {} held out, {parameters} parameters", corpus.bytes(), corpus.held_out_bytes);

    fit(&weights, &corpus, &options)?;
    let stored = directory::weights(&options.dir)?;
    let mut pass = Pass::measuring(&stored);
    println!("as stored: held-out loss {}", held_out_loss(&mut pass, &corpus)?);
    println!("{:?}", pass.extremes());
    for prompt in PROMPTS {
        println!("greedy: {}", sample(&stored, &corpus, prompt, 0.0, options.seed)?);
    }
    Ok(())
}

/// AdamW under a warm-up and half a cosine; two threads share each batch.
fn fit(weights: &Weights, corpus: &Corpus, options: &Options) -> Result<()> {
    let of_rank = |decayed: bool| weights.values().filter(move |var| (var.rank() > 1) == decayed).cloned().collect();
    let settings = ParamsAdamW { beta2: 0.98, weight_decay: WEIGHT_DECAY, ..ParamsAdamW::default() };
    let mut matrices = AdamW::new(of_rank(true), settings.clone())?;
    let mut vectors = AdamW::new(of_rank(false), ParamsAdamW { weight_decay: 0.0, ..settings })?;
    let start = Instant::now();
    let mut total = 0.0;
    for step in 1.. {
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        let progress = (step as f64 / options.steps as f64).max(minutes / options.minutes).min(1.0);
        let warm = (step as f64 / WARM_UP_STEPS as f64).min(1.0);
        let rate = LEARNING_RATE * warm * (0.5 + 0.5 * (std::f64::consts::PI * progress).cos());
        let rows = if progress < SHORT_WINDOWS { CONTEXT / 2 } else { CONTEXT };
        let (loss, gradients) = gradients(weights, corpus, rows, options.seed, step)?;
        total += loss;
        for optimizer in [&mut matrices, &mut vectors] {
            optimizer.set_learning_rate(rate);
            optimizer.step(&gradients)?;
        }
        let last = progress >= 1.0;
        if step % CHECK_EVERY == 0 || last {
            let held_out = held_out_loss(&mut Pass::plain(weights), corpus)?;
            let mean = total / ((step - 1) % CHECK_EVERY + 1) as f64;
            total = 0.0;
            println!("step {step:5}  loss {mean:.4}  held out {held_out:.4}  {} s", start.elapsed().as_secs());
            let prompt = PROMPTS[step / CHECK_EVERY % PROMPTS.len()];
            println!("    {}", sample(weights, corpus, prompt, TEMPERATURE, options.seed)?);
            let saved = directory::save(weights, &corpus.tokenizer, &options.dir);
            saved.with_context(|| format!("cannot write the model to {}", options.dir.display()))?;
        }
        if last {
            break;
        }
    }
    Ok(())
}

/// The loss of one batch of windows of `rows` and its gradients, cut to [`GRADIENT_NORM`].
fn gradients(weights: &Weights, corpus: &Corpus, rows: usize, seed: u64, step: usize) -> Result<(f64, GradStore)> {
    let half = |half: usize| -> Result<(f64, GradStore)> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream((2 * step + half) as u64);
        let windows = corpus.windows(HALF_BATCH / rows, rows, &mut rng)?;
        let loss = (Pass::training(weights, rng).loss(&windows)? / 2.0)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        ensure!(value.is_finite(), "the loss is no longer finite");
        Ok((value, loss.backward()?))
    };
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| half(1));
        (half(0), second.join().expect("the other half does not panic"))
    });
    let ((loss, mut gradients), (other_loss, other_gradients)) = (first?, second?);
    gradients.extend(other_gradients)?;
    let gradient = |var: &Var| gradients.get(var).cloned().context("a weight has no gradient");
    let all = weights.values().map(|var| Ok((var, gradient(var)?))).collect::<Result<Vec<_>>>()?;
    let mut squares = 0.0;
    for (_, gradient) in &all {
        squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let cut = GRADIENT_NORM / squares.sqrt();
    if cut < 1.0 {
        for (var, gradient) in all {
            gradients.insert(var, (gradient * cut)?);
        }
    }
    Ok((loss + other_loss, gradients))
}

/// Mean cross entropy of the held-out tokens, in nats.
fn held_out_loss(pass: &mut Pass, corpus: &Corpus) -> Result<f64> {
    let (mut total, mut count) = (0.0, 0);
    for window in &corpus.held_out {
        let predicted = window.dim(1)? - 1;
        total += f64::from(pass.loss(window)?.to_scalar::<f32>()?) * predicted as f64;
        count += predicted;
    }
    Ok(total / count as f64)
}

/// The prompt with [`SAMPLE_TOKENS`] more tokens, drawn at a temperature; at 0 the likeliest.
fn sample(weights: &Weights, corpus: &Corpus, prompt: &str, temperature: f32, seed: u64) -> Result<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ids = corpus::encode(&corpus.tokenizer, prompt)?;
    for _ in 0..SAMPLE_TOKENS.min(CONTEXT - ids.len()) {
        let logits = Pass::plain(weights).logits(&Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?)?;
        let logits: Vec<f32> = logits.get(ids.len() - 1)?.to_vec1()?;
        // The largest of logits with Gumbel noise is a draw from their softmax.
        let noisy = |&logit: &f32| logit - temperature * (-rng.random_range(f32::MIN_POSITIVE..1.0).ln()).ln();
        let noisy: Vec<f32> = logits.iter().map(noisy).collect();
        let best = (0..noisy.len()).max_by(|&a, &b| noisy[a].total_cmp(&noisy[b])).expect("there are tokens");
        ids.push(best as u32);
    }
    corpus.tokenizer.decode(&ids, false).map_err(anyhow::Error::from_boxed)
}
