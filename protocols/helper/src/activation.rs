//! Elementwise functions (protocol.md, "GeLU, SiLU"): a trigonometric series between two thresholds, tanh, and ReLU.
//!
//! Since `c = x + lambda` is known to the evaluators modulo the period, `cos w(c - lambda) = cos wc cos wl + sin wc sin wl`: P0 deals
//! the two mask-side values of each harmonic, and the series costs no interaction. Two comparisons say where `x` is; they are
//! made on values coarsened to 2^-3, because on both sides of an edge both formulas hold.
//!
//! *Error*: that of the series, plus about `2^-public_frac` a term. *Cost*: three rounds. *Security*: an evaluator receives
//! halves of fresh sharings and the other's halves under uniform masks.

use tercet_core::functions::{cos_sin_turns, round};
use tercet_core::spec::{ActivationSpec, GATE_FRAC, GateSpec};
use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;
use tercet_ring::{Element, simd};

use crate::bits::MaskedBits;
use crate::masked::{Additive, Masked};
use crate::select::{self, expand, select};
use crate::{compare, extend, truncate};

/// The wire cost of an activation of `len` elements that come in `ring` at scale `frac`.
pub fn cost(len: usize, ring: u32, frac: u32, spec: &ActivationSpec) -> Cost {
    match spec {
        ActivationSpec::Relu { ring: out } => compare::cost(len, 1, ring, 1)
            .and(extend::cost(len, ring, *out).hidden())
            .then(select::cost(len, *out).and(truncate::cost(len, 0, *out))),
        ActivationSpec::Gate(gate) | ActivationSpec::Odd(gate) => {
            let by = coarsen(frac);
            let flags = compare::cost(len, 1, gate.compare_ring - by, 2);
            let product_ring = gate.body_ring + series_truncate(gate, frac);
            let series = Cost::deal(2 * gate.series.harmonics() * len, product_ring);
            let series = series.and(truncate::cost(len, series_truncate(gate, frac), gate.body_ring)).hidden();
            let out = gate.ring + 1;
            let body = extend::cost(len, gate.body_ring, out).hidden();
            let rest = match spec {
                ActivationSpec::Gate(_) => extend::cost(len, ring, out).hidden().and(select::cost(len, out)),
                _ => Cost::deal(2 * len, out),
            };
            let chosen = select::cost(len, out).and(truncate::cost(len, 1, gate.ring));
            flags.and(series).and(body).and(rest).then(chosen)
        }
    }
}

/// Applies the activation to `x` at scale `frac`; the result has the same scale.
pub fn activation<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, spec: &ActivationSpec) -> Result<Masked<E>> {
    s.scope("activation", |s| match spec {
        ActivationSpec::Relu { ring } => relu(s, x, *ring),
        ActivationSpec::Gate(gate) if narrow(gate, frac) => gated::<E, u32>(s, x, frac, gate, false),
        ActivationSpec::Gate(gate) => gated::<E, u64>(s, x, frac, gate, false),
        ActivationSpec::Odd(gate) if narrow(gate, frac) => gated::<E, u32>(s, x, frac, gate, true),
        ActivationSpec::Odd(gate) => gated::<E, u64>(s, x, frac, gate, true),
    })
}

/// Whether everything between the thresholds fits 32-bit lanes.
fn narrow(gate: &GateSpec, frac: u32) -> bool {
    gate.ring < 32 && gate.body_ring + series_truncate(gate, frac) <= 32
}

fn relu<E: Element>(s: &mut Session, x: &Masked<E>, ring: u32) -> Result<Masked<E>> {
    let sign = compare::post(s, x, 1, &[0])?;
    let wide = extend::post::<E, E>(s, x, ring)?;
    let sign = sign.next(s)?;
    let wide = wide.finish(s)?;
    let sign = sign.finish(s)?;
    let chosen = select(s, &sign[0], &wide)?;
    truncate::remask(s, chosen, ring)
}

/// `2 g = inside (2h + x) + above 2x` for a gate; `2 g = inside 2h + 2 (above - below)` for an odd function. Where `|x|` is
/// beyond the edge, the body may have wrapped and its extension be wrong; `inside` is zero there. `F` are the lanes in between.
fn gated<E: Element, F: Element>(
    s: &mut Session,
    x: &Masked<E>,
    frac: u32,
    gate: &GateSpec,
    odd: bool,
) -> Result<Masked<E>> {
    let out = gate.ring + 1;
    let edge = i64::from(gate.edge) << frac.min(GATE_FRAC);
    let coarse: Masked<u32> = x.low::<E>(gate.compare_ring).shift(coarsen(frac));
    let flags = compare::post(s, &coarse, 1, &[-edge, edge])?;
    let body = series::<E, F>(s, x, frac, &gate.series, gate)?;
    let body = truncate::post(s, body, series_truncate(gate, frac), gate.body_ring)?;

    let flags = flags.next(s)?;
    let body: Masked<F> = body.finish(s)?;
    let doubled = body.times(2);
    let body = if odd { doubled } else { doubled.add(&x.low(gate.body_ring)) };
    let body = extend::post::<F, F>(s, &body, out)?;
    let wide = if odd { None } else { Some(extend::post::<E, F>(s, x, out)?) };

    let [low, high]: [MaskedBits; 2] = flags.finish(s)?.try_into().map_err(|_| two_flags())?;
    let body = body.finish(s)?;
    let inside = low.clone().xor(&high);
    let mut sum = select(s, &inside, &body)?;
    sum = match wide {
        Some(wide) => {
            let wide = wide.finish(s)?.times(2);
            sum.add(&select(s, &high, &wide)?)
        }
        None => sum.add(&signs::<F>(s, &low, &high, out, frac + 1)?.reshape(x.shape())),
    };
    truncate::truncate(s, sum, 1, gate.ring)
}

fn two_flags() -> tercet_core::Error {
    tercet_core::Error::Misuse("two thresholds give two flags".into())
}

/// `(above - below) 2^frac = (high + low - 1) 2^frac` as an additive sharing.
fn signs<F: Element>(
    s: &mut Session,
    low: &MaskedBits,
    high: &MaskedBits,
    ring: u32,
    frac: u32,
) -> Result<Additive<F>> {
    let len = low.len();
    let dealt: Vec<F> =
        s.deal(2 * len, ring, |_| [low, high].iter().flat_map(|bits| expand::<F>(&bits.sigma(), len)).collect())?;
    let mut half = Vec::new();
    if !s.is_helper() {
        let one = if s.party() == PartyId::P1 { F::ONE } else { F::ZERO };
        half = vec![F::ZERO.sub(one << frac); len];
        for (bits, sigma) in [low, high].iter().zip(dealt.chunks(len.max(1))) {
            for ((half, beta), &sigma) in half.iter_mut().zip(expand::<F>(bits.beta(), len)).zip(sigma) {
                let bit = beta.mul(one).add(F::ONE.sub(beta.add(beta)).mul(sigma));
                *half = half.add(bit << frac);
            }
        }
    }
    Ok(Additive::new(s.party(), [len], half))
}

/// The series at scale `dealt_frac + public_frac`.
fn series<E: Element, F: Element>(
    s: &mut Session,
    x: &Masked<E>,
    frac: u32,
    series: &tercet_core::fit::Series,
    gate: &GateSpec,
) -> Result<Additive<F>> {
    let (len, harmonics) = (x.len(), series.harmonics());
    let bits = frac + series.log2_period;
    let period = (f64::from(bits)).exp2();
    let ring = gate.body_ring + series_truncate(gate, frac);
    let turns = |v: E| v.low(bits).to_u64() as f64 / period;
    let dealt: Vec<F> = s.scope("series", |s| {
        s.deal(2 * harmonics * len, ring, |_| {
            let unit = f64::from(gate.dealt_frac).exp2();
            let lambda = x.lambda();
            let mut out = vec![F::ZERO; 2 * harmonics * len];
            walk(&lambda, turns, harmonics, |from, j, c, s| {
                let at = 2 * (j - 1) * len + from;
                out[at..at + c.len()].iter_mut().zip(c).for_each(|(o, c)| *o = F::from_i64(round(c * unit)));
                let at = at + len;
                out[at..at + s.len()].iter_mut().zip(s).for_each(|(o, s)| *o = F::from_i64(round(s * unit)));
            });
            out
        })
    })?;
    let mut half = Vec::new();
    if !s.is_helper() {
        let unit = f64::from(gate.public_frac).exp2();
        let coefficient = |list: &[f64], j: usize| list.get(j).copied().unwrap_or(0.0) * unit;
        let constant = coefficient(&series.cosines, 0) * f64::from(gate.dealt_frac).exp2();
        let constant = if s.party() == PartyId::P1 { F::from_i64(round(constant)) } else { F::ZERO };
        half = vec![constant; len];
        // a cos w(c - l) + b sin w(c - l) = (a cos wc + b sin wc) cos wl + (a sin wc - b cos wc) sin wl
        walk(x.m(), turns, harmonics, |from, j, c, s| {
            let (a, b) =
                (coefficient(&series.cosines, j), if j == 0 { 0.0 } else { coefficient(&series.sines, j - 1) });
            let cosines = &dealt[2 * (j - 1) * len + from..];
            let sines = &dealt[(2 * j - 1) * len + from..];
            for i in 0..c.len() {
                let with_cosine = F::from_i64(round(a * c[i] + b * s[i]));
                let with_sine = F::from_i64(round(a * s[i] - b * c[i]));
                let sum = with_cosine.mul(cosines[i]).add(with_sine.mul(sines[i]));
                half[from + i] = half[from + i].add(sum);
            }
        });
    }
    Ok(Additive::new(s.party(), x.shape(), half))
}

/// Calls `visit(first index, harmonic, cosines, sines)` for blocks of elements and harmonics 1, 2, ...
#[inline(always)]
fn walk<E: Element>(
    values: &[E],
    turns: impl Fn(E) -> f64,
    harmonics: usize,
    mut visit: impl FnMut(usize, usize, &[f64], &[f64]),
) {
    const BLOCK: usize = 256;
    simd::run!(|| {
        let (mut c1, mut s1) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (mut c, mut s) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (index, block) in values.chunks(BLOCK).enumerate() {
            let n = block.len();
            for i in 0..n {
                (c1[i], s1[i]) = cos_sin_turns(turns(block[i]));
            }
            (c, s) = (c1, s1);
            for j in 1..=harmonics {
                visit(index * BLOCK, j, &c[..n], &s[..n]);
                for i in 0..n {
                    (c[i], s[i]) = (c[i] * c1[i] - s[i] * s1[i], s[i] * c1[i] + c[i] * s1[i]);
                }
            }
        }
        let _ = (c, s);
    });
}

fn series_truncate(gate: &GateSpec, frac: u32) -> u32 {
    gate.dealt_frac + gate.public_frac - frac
}

fn coarsen(frac: u32) -> u32 {
    frac.saturating_sub(GATE_FRAC)
}
