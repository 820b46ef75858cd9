//! Trains the small ViT of the demonstration on the 8x8 digits and writes it as an unmodified Hugging Face
//! `ViTForImageClassification` directory.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release -p tercet-examples --features train --bin train_digits -- examples/digits/model
//! ```
//!
//! Everything random comes from one seed, so a machine always writes the same bytes; another machine's floating point may
//! differ in the last digits. The directory in the repository is what this program wrote.

use std::collections::{BTreeMap, HashMap};
use std::f32::consts::PI;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use candle_nn::{loss, ops};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tercet_examples::digits::{self, Digit, PIXELS, SIDE};

const SEED: u64 = 1797;

const LABELS: usize = 10;
const PATCH: usize = 2;
const PATCHES: usize = (SIDE / PATCH) * (SIDE / PATCH);
const WIDTH: usize = 64;
const FFN_WIDTH: usize = 128;
const HEADS: usize = 4;
const LAYERS: usize = 2;
const LAYER_NORM_EPS: f64 = 1e-6;

const EPOCHS: usize = 200;
const BATCH: usize = 50;
const LEARNING_RATE: f64 = 2e-3;
const WARM_UP_STEPS: usize = 200;
const WEIGHT_DECAY: f64 = 0.05;
/// Share of the target spread evenly over all labels: keeps logits small.
const SMOOTHING: f64 = 0.1;

/// Each epoch sees every digit under a new random turn, stretch and shift, up to these bounds.
const TURN: f32 = 10.0 * PI / 180.0;
const STRETCH: f32 = 0.1;
const SHIFT_PIXELS: f32 = 0.6;

/// The pixel mean and deviation that the model is told to normalise with: ink in [0, 1] becomes [-1, 1].
const MEAN: f32 = 0.5;
const STD: f32 = 0.5;

/// The weights under the names that `transformers` gives them.
type Weights = BTreeMap<String, Var>;

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).context("usage: train_digits DIRECTORY")?;
    let (train, test) = (digits::train_split(), digits::test_split());
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let weights = initial_weights(&mut rng)?;
    let parameters: usize = weights.values().map(|w| w.elem_count()).sum();
    println!("{} digits to train on, {} to test on, {parameters} parameters", train.len(), test.len());

    fit(&weights, train, &mut rng)?;
    println!("test accuracy {:.4}", accuracy(&weights, &test)?);
    save(&weights, &dir).with_context(|| format!("cannot write the model to {}", dir.display()))?;
    println!("wrote {}", dir.display());
    Ok(())
}

/// AdamW under a warm-up and half a cosine.
fn fit(weights: &Weights, mut train: Vec<Digit>, rng: &mut ChaCha8Rng) -> Result<()> {
    let settings = ParamsAdamW { weight_decay: WEIGHT_DECAY, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(weights.values().cloned().collect(), settings)?;
    let steps = EPOCHS * (train.len() / BATCH);
    let (start, mut step) = (Instant::now(), 0);
    for epoch in 1..=EPOCHS {
        train.shuffle(rng);
        let mut total = 0.0;
        for batch in train.chunks_exact(BATCH) {
            let warm = (step + 1) as f64 / WARM_UP_STEPS as f64;
            let cosine = 0.5 + 0.5 * (std::f64::consts::PI * step as f64 / steps as f64).cos();
            optimizer.set_learning_rate(LEARNING_RATE * warm.min(1.0) * cosine);
            let batch: Vec<Digit> = batch.iter().map(|digit| warp(digit, rng)).collect();
            let loss = smoothed_loss(&logits(weights, &patches(&batch)?)?, &labels(&batch)?)?;
            ensure!(loss.to_scalar::<f32>()?.is_finite(), "the loss is no longer finite");
            total += f64::from(loss.to_scalar::<f32>()?);
            optimizer.backward_step(&loss)?;
            step += 1;
        }
        if epoch % 20 == 0 {
            let seconds = start.elapsed().as_secs();
            println!("epoch {epoch:4}  loss {:.4}  {seconds} s", total / (train.len() / BATCH) as f64);
        }
    }
    Ok(())
}

/// Cross entropy against targets that keep [`SMOOTHING`] for the other labels.
fn smoothed_loss(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let log_p = ops::log_softmax(logits, D::Minus1)?;
    let even = log_p.mean_all()?.neg()?;
    Ok(((loss::nll(&log_p, labels)? * (1.0 - SMOOTHING))? + (even * SMOOTHING)?)?)
}

fn accuracy(weights: &Weights, digits: &[Digit]) -> Result<f64> {
    let best = logits(weights, &patches(digits)?)?.argmax(D::Minus1)?;
    let right = best.eq(&labels(digits)?)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    Ok(f64::from(right) / digits.len() as f64)
}

/// The forward pass of `ViTForImageClassification`: patches `[batch, 16, 4]` to logits `[batch, 10]`.
fn logits(weights: &Weights, patches: &Tensor) -> Result<Tensor> {
    let batch = patches.dim(0)?;
    let rows = PATCHES + 1;
    let kernel = weight(weights, "vit.embeddings.patch_embeddings.projection.weight")?;
    let bias = weight(weights, "vit.embeddings.patch_embeddings.projection.bias")?;
    let kernel = kernel.reshape((WIDTH, PATCH * PATCH))?;
    let embedded = patches.reshape((batch * PATCHES, PATCH * PATCH))?.matmul(&kernel.t()?)?.broadcast_add(bias)?;
    let cls = weight(weights, "vit.embeddings.cls_token")?.expand((batch, 1, WIDTH))?;
    let mut x = Tensor::cat(&[&cls, &embedded.reshape((batch, PATCHES, WIDTH))?], 1)?
        .broadcast_add(weight(weights, "vit.embeddings.position_embeddings")?)?
        .reshape((batch * rows, WIDTH))?;
    for layer in 0..LAYERS {
        let at = format!("vit.encoder.layer.{layer}");
        let normed = layer_norm(weights, &format!("{at}.layernorm_before"), &x)?;
        let mixed = attention(weights, &format!("{at}.attention.attention"), &normed, batch)?;
        x = (x + linear(weights, &format!("{at}.attention.output.dense"), &mixed)?)?;
        let normed = layer_norm(weights, &format!("{at}.layernorm_after"), &x)?;
        let up = linear(weights, &format!("{at}.intermediate.dense"), &normed)?.gelu_erf()?;
        x = (x + linear(weights, &format!("{at}.output.dense"), &up)?)?;
    }
    let first = x.reshape((batch, rows, WIDTH))?.narrow(1, 0, 1)?.squeeze(1)?;
    linear(weights, "classifier", &layer_norm(weights, "vit.layernorm", &first)?)
}

/// Softmax attention over `x: [batch * rows, WIDTH]`, before the output projection.
fn attention(weights: &Weights, at: &str, x: &Tensor, batch: usize) -> Result<Tensor> {
    let rows = x.dim(0)? / batch;
    let heads = |name: &str| -> Result<Tensor> {
        let y = linear(weights, &format!("{at}.{name}"), x)?.reshape((batch, rows, HEADS, WIDTH / HEADS))?;
        Ok(y.transpose(1, 2)?.contiguous()?)
    };
    let scale = 1.0 / ((WIDTH / HEADS) as f64).sqrt();
    let scores = (heads("query")?.matmul(&heads("key")?.t()?)? * scale)?;
    let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&heads("value")?)?;
    Ok(mixed.transpose(1, 2)?.reshape((batch * rows, WIDTH))?)
}

fn linear(weights: &Weights, at: &str, x: &Tensor) -> Result<Tensor> {
    let w = weight(weights, &format!("{at}.weight"))?;
    Ok(x.matmul(&w.t()?)?.broadcast_add(weight(weights, &format!("{at}.bias"))?)?)
}

/// The fused kernel has no backward pass; this one is made of operations that do.
fn layer_norm(weights: &Weights, at: &str, x: &Tensor) -> Result<Tensor> {
    let (gain, bias) = (weight(weights, &format!("{at}.weight"))?, weight(weights, &format!("{at}.bias"))?);
    Ok(ops::layer_norm_slow(x, gain, bias, LAYER_NORM_EPS as f32)?)
}

fn weight<'a>(weights: &'a Weights, name: &str) -> Result<&'a Tensor> {
    Ok(weights.get(name).with_context(|| format!("no weight {name}"))?.as_tensor())
}

/// Matrices uniform after Glorot and Bengio (2010), embeddings small, gains one, biases zero.
fn initial_weights(rng: &mut ChaCha8Rng) -> Result<Weights> {
    let mut weights = Weights::new();
    let mut put = |name: String, shape: &[usize], bound: f32| -> Result<()> {
        let values = (0..shape.iter().product()).map(|_| bound * rng.random_range(-1.0..1.0)).collect();
        weights.insert(name, Var::from_tensor(&Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu)?)?);
        Ok(())
    };
    let glorot = |inputs: usize, outputs: usize| (6.0 / (inputs + outputs) as f32).sqrt();
    put("vit.embeddings.cls_token".into(), &[1, 1, WIDTH], 0.02)?;
    put("vit.embeddings.position_embeddings".into(), &[1, PATCHES + 1, WIDTH], 0.02)?;
    let projection = "vit.embeddings.patch_embeddings.projection";
    put(format!("{projection}.weight"), &[WIDTH, 1, PATCH, PATCH], glorot(PATCH * PATCH, WIDTH))?;
    put(format!("{projection}.bias"), &[WIDTH], 0.0)?;
    let mut linears = vec![("classifier".to_owned(), WIDTH, LABELS)];
    let mut norms = vec!["vit.layernorm".to_owned()];
    for layer in 0..LAYERS {
        let at = format!("vit.encoder.layer.{layer}");
        for name in ["attention.attention.query", "attention.attention.key", "attention.attention.value"] {
            linears.push((format!("{at}.{name}"), WIDTH, WIDTH));
        }
        linears.push((format!("{at}.attention.output.dense"), WIDTH, WIDTH));
        linears.push((format!("{at}.intermediate.dense"), WIDTH, FFN_WIDTH));
        linears.push((format!("{at}.output.dense"), FFN_WIDTH, WIDTH));
        norms.extend([format!("{at}.layernorm_before"), format!("{at}.layernorm_after")]);
    }
    for (at, inputs, outputs) in linears {
        put(format!("{at}.weight"), &[outputs, inputs], glorot(inputs, outputs))?;
        put(format!("{at}.bias"), &[outputs], 0.0)?;
    }
    for at in norms {
        weights.insert(format!("{at}.weight"), Var::ones(WIDTH, DType::F32, &Device::Cpu)?);
        weights.insert(format!("{at}.bias"), Var::zeros(WIDTH, DType::F32, &Device::Cpu)?);
    }
    Ok(weights)
}

/// The digit under a small random turn, stretch and shift about its centre, read bilinearly; no ink beyond the edge.
fn warp(digit: &Digit, rng: &mut ChaCha8Rng) -> Digit {
    let mut within = |bound: f32| rng.random_range(-bound..bound);
    let (sin, cos) = within(TURN).sin_cos();
    let (stretch_x, stretch_y) = (1.0 + within(STRETCH), 1.0 + within(STRETCH));
    let (shift_x, shift_y) = (within(SHIFT_PIXELS), within(SHIFT_PIXELS));
    let centre = (SIDE as f32 - 1.0) / 2.0;
    let ink = |row: f32, column: f32| {
        let inside = 0.0..SIDE as f32;
        if inside.contains(&row) && inside.contains(&column) {
            digit.pixels[row as usize * SIDE + column as usize]
        } else {
            0.0
        }
    };
    let mut pixels = [0.0; PIXELS];
    for (i, pixel) in pixels.iter_mut().enumerate() {
        let (y, x) = ((i / SIDE) as f32 - centre, (i % SIDE) as f32 - centre);
        let row = stretch_y * (cos * y - sin * x) + shift_y + centre;
        let column = stretch_x * (sin * y + cos * x) + shift_x + centre;
        let (top, left) = (row.floor(), column.floor());
        let (down, right) = (row - top, column - left);
        *pixel = (1.0 - down) * ((1.0 - right) * ink(top, left) + right * ink(top, left + 1.0))
            + down * ((1.0 - right) * ink(top + 1.0, left) + right * ink(top + 1.0, left + 1.0));
    }
    Digit { pixels, label: digit.label }
}

/// Normalised pixels cut into patches `[batch, 16, 4]`, as a patch convolution reads them.
fn patches(digits: &[Digit]) -> Result<Tensor> {
    let side = SIDE / PATCH;
    let pixels = digits.iter().flat_map(|digit| digit.pixels).map(|ink| (ink - MEAN) / STD).collect();
    Ok(Tensor::from_vec(pixels, (digits.len(), side, PATCH, side, PATCH), &Device::Cpu)?.transpose(2, 3)?.reshape((
        digits.len(),
        PATCHES,
        PATCH * PATCH,
    ))?)
}

fn labels(digits: &[Digit]) -> Result<Tensor> {
    let labels: Vec<u32> = digits.iter().map(|digit| u32::from(digit.label)).collect();
    Ok(Tensor::new(labels, &Device::Cpu)?)
}

/// Writes `config.json`, `model.safetensors` and `preprocessor_config.json`.
fn save(weights: &Weights, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let names: BTreeMap<String, String> = (0..LABELS).map(|i| (i.to_string(), i.to_string())).collect();
    let ids: BTreeMap<String, usize> = (0..LABELS).map(|i| (i.to_string(), i)).collect();
    let config = json!({
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": SIDE,
        "patch_size": PATCH,
        "num_channels": 1,
        "encoder_stride": PATCH,
        "hidden_size": WIDTH,
        "intermediate_size": FFN_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "qkv_bias": true,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "id2label": names,
        "label2id": ids,
        "torch_dtype": "float32",
    });
    let preprocessor = json!({
        "image_processor_type": "ViTImageProcessor",
        "do_resize": false,
        "size": {"height": SIDE, "width": SIDE},
        "do_rescale": true,
        // For images of 8-bit greys, as `transformers` expects them: full ink is 255.
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": [MEAN],
        "image_std": [STD],
    });
    std::fs::write(dir.join("config.json"), format!("{config:#}\n"))?;
    std::fs::write(dir.join("preprocessor_config.json"), format!("{preprocessor:#}\n"))?;
    // `transformers` refuses a file that does not say which framework laid it out.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors = weights.iter().map(|(name, var)| (name, var.as_tensor()));
    safetensors::serialize_to_file(tensors, Some(format), &dir.join("model.safetensors"))?;
    Ok(())
}
