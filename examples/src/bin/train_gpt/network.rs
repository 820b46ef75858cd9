//! The network: GPT-2's forward pass over weights named as Hugging Face names them, with what training adds to it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use crate::sweeps::{causal_softmax, cross_entropy, gelu, normalise};

pub(crate) const CONTEXT: usize = 256;
pub(crate) const WIDTH: usize = 192;
pub(crate) const FFN_WIDTH: usize = 4 * WIDTH;
pub(crate) const HEADS: usize = 4;
pub(crate) const LAYERS: usize = 4;
pub(crate) const LAYER_NORM_EPS: f64 = 1e-5;
/// Deviation of the embeddings before training.
pub(crate) const INITIAL_DEVIATION: f64 = 0.02;

/// Share of the embedded rows and of each branch's outputs that training leaves out, in 256ths.
const DROPOUT: u8 = 13;

/// The weights under the names that `transformers` gives them.
pub(crate) type Weights = BTreeMap<String, Var>;

/// Embeddings and matrices uniform, the ones that write to the residual scaled down by their number as GPT-2 does (Radford
/// et al., 2019); gains one, biases zero.
pub(crate) fn initial_weights(vocabulary: usize, rng: &mut ChaCha8Rng) -> Result<Weights> {
    let mut weights = Weights::new();
    let mut put = |name: &str, shape: &[usize], deviation: f64| -> Result<()> {
        let bound = (3.0f64.sqrt() * deviation) as f32;
        let values = (0..shape.iter().product()).map(|_| bound * rng.random_range(-1.0..1.0)).collect();
        let tensor = Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu)?;
        weights.insert(format!("transformer.{name}"), Var::from_tensor(&tensor)?);
        Ok(())
    };
    put("wte.weight", &[vocabulary, WIDTH], INITIAL_DEVIATION)?;
    put("wpe.weight", &[CONTEXT, WIDTH], INITIAL_DEVIATION)?;
    let inner = 0.5 / (WIDTH as f64).sqrt();
    let outer = inner / ((2 * LAYERS) as f64).sqrt();
    let mut norms = vec!["transformer.ln_f".to_owned()];
    for layer in 0..LAYERS {
        let linears = [
            ("attn.c_attn", WIDTH, 3 * WIDTH, inner),
            ("attn.c_proj", WIDTH, WIDTH, outer),
            ("mlp.c_fc", WIDTH, FFN_WIDTH, inner),
            ("mlp.c_proj", FFN_WIDTH, WIDTH, outer),
        ];
        for (at, inputs, outputs, deviation) in linears {
            put(&format!("h.{layer}.{at}.weight"), &[inputs, outputs], deviation)?;
            put(&format!("h.{layer}.{at}.bias"), &[outputs], 0.0)?;
        }
        norms.extend(["ln_1", "ln_2"].map(|norm| format!("transformer.h.{layer}.{norm}")));
    }
    for at in norms {
        weights.insert(format!("{at}.weight"), Var::ones(WIDTH, DType::F32, &Device::Cpu)?);
        weights.insert(format!("{at}.bias"), Var::zeros(WIDTH, DType::F32, &Device::Cpu)?);
    }
    Ok(weights)
}

/// How far values went in a forward pass: what a fixed-point format must hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extremes {
    /// The largest absolute value between the blocks.
    pub(crate) residual: f32,
    /// The largest absolute attention score that a row may look at, scaled.
    pub(crate) score: f32,
    /// The smallest and the largest row maximum of those scores.
    pub(crate) row_maximum: (f32, f32),
    /// The largest absolute logit.
    pub(crate) logit: f32,
}

impl Extremes {
    /// Squares of `rows` columns, of which row `i` looks at the first `i + 1`.
    fn note_scores(&mut self, scores: &[f32], rows: usize) {
        for (i, row) in scores.chunks_exact(rows).enumerate() {
            let past = &row[..=i % rows];
            let maximum = past.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            self.row_maximum = (self.row_maximum.0.min(maximum), self.row_maximum.1.max(maximum));
            self.score = past.iter().fold(self.score, |most, score| most.max(score.abs()));
        }
    }
}

/// A forward pass over batches of rows, and what it does besides.
pub(crate) struct Pass<'a> {
    weights: &'a Weights,
    dropout: Option<ChaCha8Rng>,
    extremes: Option<Extremes>,
}

impl<'a> Pass<'a> {
    /// With dropout, whose masks come from `rng`.
    pub(crate) fn training(weights: &'a Weights, rng: ChaCha8Rng) -> Self {
        Self { weights, dropout: Some(rng), extremes: None }
    }

    /// As the model is used.
    pub(crate) fn plain(weights: &'a Weights) -> Self {
        Self { weights, dropout: None, extremes: None }
    }

    /// As the model is used, noting how far its values go.
    pub(crate) fn measuring(weights: &'a Weights) -> Self {
        let extremes = Extremes { row_maximum: (f32::INFINITY, f32::NEG_INFINITY), ..Extremes::default() };
        Self { weights, dropout: None, extremes: Some(extremes) }
    }

    pub(crate) fn extremes(&self) -> Option<Extremes> {
        self.extremes
    }

    /// Mean cross entropy of each token after the first of `ids: [batch, rows + 1]`, in nats.
    pub(crate) fn loss(&mut self, ids: &Tensor) -> Result<Tensor> {
        let rows = ids.dim(1)? - 1;
        let logits = self.logits(&ids.narrow(1, 0, rows)?.contiguous()?)?;
        Ok(cross_entropy(&logits, ids.narrow(1, 1, rows)?.flatten_all()?.to_vec1()?)?)
    }

    /// Logits `[batch * rows, vocabulary]` of `ids: [batch, rows]`.
    pub(crate) fn logits(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (batch, rows) = ids.dims2()?;
        let table = self.weight("wte.weight")?;
        let positions = self.weight("wpe.weight")?.narrow(0, 0, rows)?;
        let embedded = table.index_select(&ids.flatten_all()?, 0)?.reshape((batch, rows, WIDTH))?;
        let mut x = embedded.broadcast_add(&positions)?.reshape((batch * rows, WIDTH))?;
        x = self.drop_some(&x)?;
        for layer in 0..LAYERS {
            let at = format!("h.{layer}");
            let normed = self.layer_norm(&format!("{at}.ln_1"), &x)?;
            let mixed = self.attention(&format!("{at}.attn"), &normed, batch)?;
            x = (x + self.drop_some(&mixed)?)?;
            let normed = self.layer_norm(&format!("{at}.ln_2"), &x)?;
            let up = gelu(&self.linear(&format!("{at}.mlp.c_fc"), &normed)?)?;
            let down = self.linear(&format!("{at}.mlp.c_proj"), &up)?;
            x = (x + self.drop_some(&down)?)?;
            if let Some(extremes) = &mut self.extremes {
                extremes.residual = extremes.residual.max(largest(&x)?);
            }
        }
        let logits = self.layer_norm("ln_f", &x)?.matmul(&self.weight("wte.weight")?.t()?)?;
        if let Some(extremes) = &mut self.extremes {
            extremes.logit = extremes.logit.max(largest(&logits)?);
        }
        Ok(logits)
    }

    /// Causal softmax attention over `x: [batch * rows, WIDTH]`, with its output projection.
    fn attention(&mut self, at: &str, x: &Tensor, batch: usize) -> Result<Tensor> {
        let rows = x.dim(0)? / batch;
        let mixed = self.linear(&format!("{at}.c_attn"), x)?.reshape((batch, rows, 3, HEADS, WIDTH / HEADS))?;
        let head =
            |i: usize| -> Result<Tensor> { Ok(mixed.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous()?) };
        let scale = 1.0 / ((WIDTH / HEADS) as f64).sqrt();
        let scores = (head(0)? * scale)?.matmul(&head(1)?.t()?)?;
        if let Some(extremes) = &mut self.extremes {
            extremes.note_scores(&scores.flatten_all()?.to_vec1()?, rows);
        }
        let shares = causal_softmax(&scores)?;
        let mixed = shares.matmul(&head(2)?)?.transpose(1, 2)?.reshape((batch * rows, WIDTH))?;
        self.linear(&format!("{at}.c_proj"), &mixed)
    }

    /// Weights lie `[inputs, outputs]`, as GPT-2's `Conv1D` has them.
    fn linear(&self, at: &str, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight(&format!("{at}.weight"))?;
        Ok(x.matmul(weight)?.broadcast_add(self.weight(&format!("{at}.bias"))?)?)
    }

    fn layer_norm(&self, at: &str, x: &Tensor) -> Result<Tensor> {
        let (gain, bias) = (self.weight(&format!("{at}.weight"))?, self.weight(&format!("{at}.bias"))?);
        Ok(normalise(x, LAYER_NORM_EPS as f32)?.broadcast_mul(gain)?.broadcast_add(bias)?)
    }

    fn weight(&self, name: &str) -> Result<&'a Tensor> {
        let name = format!("transformer.{name}");
        Ok(self.weights.get(&name).with_context(|| format!("no weight {name}"))?.as_tensor())
    }

    /// The tensor itself, or in training with some of its values at zero and the others made up for it.
    fn drop_some(&mut self, x: &Tensor) -> Result<Tensor> {
        let Some(rng) = &mut self.dropout else { return Ok(x.clone()) };
        let mut bytes = vec![0u8; x.elem_count()];
        rng.fill_bytes(&mut bytes);
        let kept = 256.0 / (256.0 - f32::from(DROPOUT));
        let mask = bytes.iter().map(|&byte| if byte < DROPOUT { 0.0 } else { kept }).collect();
        Ok((x * Tensor::from_vec::<_, f32>(mask, x.shape(), &Device::Cpu)?)?)
    }
}

fn largest(x: &Tensor) -> Result<f32> {
    Ok(x.abs()?.max_all()?.to_scalar()?)
}
