//! GELU, normalisation, causal softmax and cross entropy, each of one sweep forwards and one backwards. Composed of candle's
//! operations, each takes a dozen, and together more time than the matrix products.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `gelu_new`, GELU in the tanh form.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
}

/// Each row of `x: [.., width]` with mean zero and deviation one.
pub(crate) fn normalise(x: &Tensor, epsilon: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Normalise { epsilon })
}

/// Softmax of row `i` of each square of `scores: [.., rows, rows]` over its first `i + 1` columns, zeros in the others.
pub(crate) fn causal_softmax(scores: &Tensor) -> Result<Tensor> {
    scores.contiguous()?.apply_op1(CausalSoftmax)
}

/// Mean of `-ln softmax(logits)[target]` over the rows of `logits: [rows, labels]`.
pub(crate) fn cross_entropy(logits: &Tensor, targets: Vec<u32>) -> Result<Tensor> {
    logits.contiguous()?.apply_op1(CrossEntropy { targets: targets.into() })
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("a sweep takes contiguous f32"),
    }
}

fn width(layout: &Layout) -> Result<usize> {
    match layout.dims() {
        [.., width] if *width > 0 => Ok(*width),
        dims => bail!("{dims:?} has no rows"),
    }
}

/// What a sweep gives: as candle wants it.
type Swept = Result<(CpuStorage, Shape)>;

/// With `s(x) = 1 / (1 + exp(-2 a (x + b x^3)))`, which is `(1 + tanh(a (x + b x^3))) / 2`: `x s(x)`.
struct Gelu;
/// The incoming gradient times `s + x s (1 - s) 2 a (1 + 3 b x^2)`.
struct GeluGradient;

/// `2 a = 2 sqrt(2 / pi)`.
const TWICE_A: f32 = 1.595_769;
const B: f32 = 0.044715;

fn gate(x: f32) -> f32 {
    1.0 / (1.0 + (-TWICE_A * (x + B * x * x * x)).exp())
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Swept {
        let y = values(x, layout)?.iter().map(|&x| x * gate(x)).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&gradient.contiguous()?, &GeluGradient)?))
    }
}

impl CustomOp2 for GeluGradient {
    fn name(&self) -> &'static str {
        "gelu gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, gradient: &CpuStorage, of: &Layout) -> Swept {
        let slope = |x: f32, s: f32| s + x * s * (1.0 - s) * TWICE_A * (1.0 + 3.0 * B * x * x);
        let pairs = values(x, layout)?.iter().zip(values(gradient, of)?);
        let product = pairs.map(|(&x, &gradient)| gradient * slope(x, gate(x))).collect();
        Ok((CpuStorage::F32(product), layout.shape().clone()))
    }
}

struct Normalise {
    epsilon: f32,
}
/// With `y` the normalised row and `g` the incoming gradient: `(g - mean(g) - y mean(g y)) / deviation`.
struct NormaliseGradient {
    epsilon: f32,
}

/// Mean, and one over the deviation.
fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = row.iter().sum::<f32>() / count;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

impl CustomOp1 for Normalise {
    fn name(&self) -> &'static str {
        "normalise"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Swept {
        let x = values(x, layout)?;
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(width(layout)?) {
            let (mean, scale) = moments(row, self.epsilon);
            y.extend(row.iter().map(|x| (x - mean) * scale));
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let sweep = NormaliseGradient { epsilon: self.epsilon };
        Ok(Some(x.apply_op2_no_bwd(&gradient.contiguous()?, &sweep)?))
    }
}

impl CustomOp2 for NormaliseGradient {
    fn name(&self) -> &'static str {
        "normalise gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, gradient: &CpuStorage, of: &Layout) -> Swept {
        let (x, gradient, width) = (values(x, layout)?, values(gradient, of)?, width(layout)?);
        let mut out = Vec::with_capacity(x.len());
        for (row, g) in x.chunks_exact(width).zip(gradient.chunks_exact(width)) {
            let (mean, scale) = moments(row, self.epsilon);
            let sum: f32 = g.iter().sum();
            let along: f32 = g.iter().zip(row).map(|(g, x)| g * (x - mean) * scale).sum();
            let (sum, along) = (sum / width as f32, along / width as f32);
            out.extend(g.iter().zip(row).map(|(g, x)| scale * (g - sum - (x - mean) * scale * along)));
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

struct CausalSoftmax;
/// With `p` the shares and `g` the incoming gradient of a row: `p (g - sum(g p))`.
struct SoftmaxGradient;

/// Turns logits into their softmax; its largest logit and the sum of the powers over it.
fn softmax(row: &mut [f32]) -> (f32, f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - largest).exp();
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
    (largest, sum)
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Swept {
        let rows = width(layout)?;
        let mut shares = values(scores, layout)?.to_vec();
        for (i, row) in shares.chunks_exact_mut(rows).enumerate() {
            let (past, future) = row.split_at_mut(i % rows + 1);
            softmax(past);
            future.fill(0.0);
        }
        Ok((CpuStorage::F32(shares), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, shares: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(shares.apply_op2_no_bwd(&gradient.contiguous()?, &SoftmaxGradient)?))
    }
}

impl CustomOp2 for SoftmaxGradient {
    fn name(&self) -> &'static str {
        "softmax gradient"
    }

    fn cpu_fwd(&self, shares: &CpuStorage, layout: &Layout, gradient: &CpuStorage, of: &Layout) -> Swept {
        let (shares, gradient, width) = (values(shares, layout)?, values(gradient, of)?, width(layout)?);
        let mut out = Vec::with_capacity(shares.len());
        for (p, g) in shares.chunks_exact(width).zip(gradient.chunks_exact(width)) {
            let sum: f32 = p.iter().zip(g).map(|(p, g)| p * g).sum();
            out.extend(p.iter().zip(g).map(|(p, g)| p * (g - sum)));
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

struct CrossEntropy {
    targets: Arc<[u32]>,
}
/// The softmax of each row, less one at its target, times `scale`.
struct CrossEntropyGradient {
    targets: Arc<[u32]>,
    scale: f32,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Swept {
        let mut total = 0.0;
        for (row, &target) in values(logits, layout)?.chunks_exact(width(layout)?).zip(&*self.targets) {
            let (largest, sum) = softmax(&mut row.to_vec());
            total += f64::from(sum.ln() + largest - row[target as usize]);
        }
        Ok((CpuStorage::F32(vec![(total / self.targets.len() as f64) as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let scale = gradient.to_scalar::<f32>()? / self.targets.len() as f32;
        Ok(Some(logits.apply_op1_no_bwd(&CrossEntropyGradient { targets: self.targets.clone(), scale })?))
    }
}

impl CustomOp1 for CrossEntropyGradient {
    fn name(&self) -> &'static str {
        "cross entropy gradient"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Swept {
        let mut out = values(logits, layout)?.to_vec();
        for (row, &target) in out.chunks_exact_mut(width(layout)?).zip(&*self.targets) {
            softmax(row);
            row[target as usize] -= 1.0;
            row.iter_mut().for_each(|x| *x *= self.scale);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Var};
    use candle_nn::{loss, ops};

    use super::*;

    /// `f` and `g` have one value and one gradient at a random point, whatever flows back into them.
    fn agree(shape: &[usize], f: impl Fn(&Tensor) -> Result<Tensor>, g: impl Fn(&Tensor) -> Result<Tensor>) {
        let x = Var::randn(0.0f32, 2.0, shape, &Device::Cpu).unwrap();
        let weights = f(&x).unwrap().randn_like(0.0, 1.0).unwrap();
        let both = [f(&x).unwrap(), g(&x).unwrap()].map(|y| {
            let gradients = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            (y.detach(), gradients.get(&x).unwrap().clone())
        });
        let apart = |a: &Tensor, b: &Tensor| {
            assert_eq!(a.dims(), b.dims());
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(apart(&both[0].0, &both[1].0) < 1e-5 && apart(&both[0].1, &both[1].1) < 1e-4);
    }

    #[test]
    fn sweeps_and_their_gradients_are_those_of_the_composed_operations() {
        agree(&[3, 5, 8], gelu, |x| x.gelu());
        agree(
            &[6, 16],
            |x| normalise(x, 1e-5),
            |x| {
                let (one, zero) = (Tensor::ones(16, x.dtype(), x.device())?, Tensor::zeros(16, x.dtype(), x.device())?);
                ops::layer_norm_slow(x, &one, &zero, 1e-5)
            },
        );
        agree(&[2, 3, 7, 7], causal_softmax, |x| {
            let future: Vec<f32> = (0..49).map(|i| if i % 7 > i / 7 { -1e9 } else { 0.0 }).collect();
            ops::softmax(&x.broadcast_add(&Tensor::from_vec(future, (7, 7), x.device())?)?, D::Minus1)
        });
        let targets = vec![0u32, 10, 3, 3];
        let composed = |x: &Tensor| loss::cross_entropy(x, &Tensor::new(&targets[..], x.device())?);
        agree(&[4, 11], |x| cross_entropy(x, targets.clone()), composed);
    }
}
