//! Gumbel noise that no evaluator knows.
//!
//! The place of the largest of `s_j + T g_j`, with `g = -ln(-ln u)` for independent uniform `u`, is a sample of the softmax of `s / T`.
//! P0 draws the noise from a stream of its own, encodes it and deals it: it is added to the scores as an additive sharing, which is
//! remasked.
//!
//! *Error*: noise is rounded to the scale of the scores, and ends at [`MOST`], which one draw in `2 * 10^10` reaches. *Cost*: one
//! ring element dealt an element, one round of as many bits each way; the same whatever the noise.
//!
//! *Security*: an evaluator receives a half of a fresh sharing and the other's half under a uniform mask, so nothing about the noise.
//! The helper knows the noise and receives nothing here or later, so that to it every score and every place is as likely as before;
//! but for what a generation that stops says of its last token (SECURITY.md). Only who knows the place *and* the noise learns more
//! than the place: an order between scores. Whoever gives P0 a seed can be that, and must be allowed to know it: the client, who
//! learns its places from nobody else.
//! Temperatures, and whether a row has noise, are public; a row without noise is dealt zeros where another has some.

use tercet_core::functions::ln;
use tercet_core::{Cost, Error, Result, Session};
use tercet_ring::{Element, Prg, Seed};

use crate::masked::{Additive, Masked};
use crate::truncate;

/// The largest noise of temperature 1.
pub const MOST: f64 = 24.0;
/// What two draws of temperature 1 may differ by: headroom that the ring of the comparisons needs beside the scores'.
pub const SPREAD: f64 = 28.0;

/// What temperatures of choices must be below, where scores are compared in `Z_2^ring` at scale
/// `frac`.
///
/// Two scores of a row are told apart as long as they differ by less than half of what the ring
/// holds, noise included. Half of that is the noise's, of which two draws differ by `SPREAD`
/// temperatures at most; the other half is the scores': the largest without its sign is an eighth
/// of what the ring holds, for which whoever chooses the numbers leaves room.
pub fn hottest(ring: u32, frac: u32) -> f64 {
    f64::from(ring.saturating_sub(2)).exp2() / f64::from(frac).exp2() / SPREAD
}

/// The noise of one row.
pub struct Noise {
    /// What it is multiplied by, above zero. Public.
    pub temperature: f64,
    /// Where P0 draws it from; fresh where there is none. It serves this row alone. Nobody else has it.
    pub seed: Option<Seed>,
}

/// The seed is P0's secret: a debug print shows the temperature alone.
impl std::fmt::Debug for Noise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Noise({})", self.temperature)
    }
}

/// The wire cost of adding noise to `len` scores.
pub fn cost(len: usize, ring: u32) -> Cost {
    Cost::deal(len, ring).and(truncate::cost(len, 0, ring))
}

/// `x: [rows, n]` at scale `frac`, plus the noise of each row. Free where no row has any; `noise` is empty then, or as long as there
/// are rows.
///
/// # Errors
/// Noise for another number of rows; a temperature that is not above zero and below [`hottest`].
pub fn add<E: Element>(s: &mut Session, x: Masked<E>, frac: u32, noise: &[Option<Noise>]) -> Result<Masked<E>> {
    let (rows, width, ring) = (x.planes()[0].rows(), x.planes()[0].width(), x.ring());
    if !noise.is_empty() && noise.len() != rows {
        return Err(Error::Misuse(format!("noise for {} rows of {rows}", noise.len())));
    }
    let most = hottest(ring, frac);
    for Noise { temperature, .. } in noise.iter().flatten() {
        if !(*temperature > 0.0 && *temperature < most) {
            return Err(Error::Misuse(format!("a temperature of {temperature}: above 0 and below {most} fit")));
        }
    }
    if noise.iter().flatten().next().is_none() {
        return Ok(x);
    }
    s.scope("noise", |s| {
        let dealt = s.deal(x.len(), ring, |_| {
            let mut values = vec![E::ZERO; rows * width];
            for (row, noise) in values.chunks_exact_mut(width.max(1)).zip(noise) {
                if let Some(noise) = noise {
                    gumbel(noise, frac, row);
                }
            }
            values
        })?;
        let z = x.to_additive().add(&Additive::new(s.party(), x.shape(), dealt));
        truncate::remask(s, z, ring)
    })
}

/// `T g` at scale `frac`.
fn gumbel<E: Element>(noise: &Noise, frac: u32, out: &mut [E]) {
    /// Bits of `u`, which lies halfway between two of their fractions and so neither at 0 nor at 1.
    const BITS: u32 = 52;
    let mut drawn = vec![0u64; out.len()];
    Prg::new(noise.seed.as_ref().unwrap_or(&Seed::random())).fill(0, 0, &mut drawn);
    let scale = noise.temperature * f64::from(frac).exp2();
    tercet_ring::simd::run!(|| {
        for (out, drawn) in out.iter_mut().zip(&drawn) {
            let u = ((drawn >> (64 - BITS)) as f64 + 0.5) / (1u64 << BITS) as f64;
            let gumbel = (-ln(-ln(u))).min(MOST);
            *out = E::from_i64(tercet_core::functions::round(gumbel * scale));
        }
    });
}
