//! Elementwise functions: a trigonometric series between two thresholds, tanh, and ReLU.
//!
//! Since `c = x + lambda` is known to the evaluators modulo the period, `cos w(c - lambda) = cos wc cos wl + sin wc sin wl`: P0 deals
//! the two mask-side values of each harmonic, and the series costs no interaction. A harmonic with a small coefficient is
//! dealt more coarsely, and in a ring smaller by as many bits ([`GateSpec::drop_bits`]). Two comparisons say where `x` is; they
//! are made on values coarsened to 2^-3, because on both sides of an edge both formulas hold. Selections happen in the ring that
//! `x` came in; only the result is extended.
//!
//! *Error*: that of the series, plus about `2^-public_frac` a term, plus 1.5 units. *Cost*: three rounds, and one for the
//! extension where there is one. *Security*: an evaluator receives halves of fresh sharings and the other's halves under
//! uniform masks.

use tercet_core::fit::Series;
use tercet_core::functions::{cos_sin_turns, round};
use tercet_core::spec::{ActivationSpec, GateSpec};
use tercet_core::{Cost, Error, Result, Session};
use tercet_net::PartyId;
use tercet_ring::{Element, simd};

use crate::bits::MaskedBits;
use crate::masked::{Additive, Masked};
use crate::select::{self, Term, expand, select, select_sum};
use crate::{compare, extend, truncate};

/// The wire cost of an activation of `len` elements that come in `ring` at scale `frac`.
pub fn cost(len: usize, ring: u32, frac: u32, spec: &ActivationSpec) -> Cost {
    match spec {
        ActivationSpec::Relu { ring: out } => compare::cost(len, 1, ring, 1)
            .and(extend::cost(len, ring, *out).hidden())
            .then(select::cost(1, len, *out).and(truncate::cost(len, 0, *out))),
        ActivationSpec::Gate(gate) => gate_cost(len, ring, frac, gate, false),
        ActivationSpec::Odd(gate) => gate_cost(len, ring, frac, gate, true),
    }
}

fn gate_cost(len: usize, ring: u32, frac: u32, gate: &GateSpec, odd: bool) -> Cost {
    let inner = gate.inner_ring(ring, odd);
    let flags = compare::cost(len, 1, gate.compare_ring - GateSpec::coarsened_by(frac), 2);
    let dealt = (0..gate.series.harmonics()).map(|j| Cost::deal(2 * len, series_ring(gate, frac) - gate.drop_bits(j)));
    let series = dealt.fold(Cost::NONE, Cost::and);
    let series = series.and(truncate::cost(len, series_truncate(gate, frac), gate.body_ring)).hidden();
    let body = extend::cost(len, gate.body_ring, inner).hidden();
    let terms =
        if odd { select::cost(1, len, inner).and(Cost::deal(2 * len, inner)) } else { select::cost(2, len, inner) };
    let chosen = terms.and(truncate::cost(len, 1, inner - 1));
    flags.and(series).and(body).then(chosen).then(extend::cost(len, inner - 1, gate.ring))
}

/// The ring that an activation's result is in.
pub fn result_ring(spec: &ActivationSpec) -> u32 {
    match spec {
        ActivationSpec::Gate(gate) | ActivationSpec::Odd(gate) => gate.ring,
        ActivationSpec::Relu { ring } => *ring,
    }
}

/// Refuses an activation that compares in a larger ring than its values', which come in `ring`.
pub(crate) fn check(ring: u32, spec: &ActivationSpec) -> Result<()> {
    match spec {
        ActivationSpec::Gate(gate) | ActivationSpec::Odd(gate) if gate.compare_ring > ring => {
            Err(Error::Misuse(format!("values of {ring} bits compared in {}", gate.compare_ring)))
        }
        _ => Ok(()),
    }
}

/// Applies the activation to `x` at scale `frac`; the result has the same scale.
///
/// # Errors
/// It compares in a larger ring than that of `x`.
pub fn activation<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, spec: &ActivationSpec) -> Result<Masked<E>> {
    check(x.ring(), spec)?;
    s.scope("activation", |s| match spec {
        ActivationSpec::Relu { ring } => relu(s, x, *ring),
        ActivationSpec::Gate(gate) => in_lanes(s, x, frac, gate, false),
        ActivationSpec::Odd(gate) => in_lanes(s, x, frac, gate, true),
    })
}

/// Chooses the lanes of everything between the comparison and the result.
fn in_lanes<E: Element>(s: &mut Session, x: &Masked<E>, frac: u32, gate: &GateSpec, odd: bool) -> Result<Masked<E>> {
    if gate.inner_ring(x.ring(), odd).max(series_ring(gate, frac)) <= 32 {
        gated::<E, u32>(s, x, frac, gate, odd)
    } else {
        gated::<E, u64>(s, x, frac, gate, odd)
    }
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
    let inner = gate.inner_ring(x.ring(), odd);
    let edge = gate.coarse_edge(frac);
    let coarse: Masked<u32> = x.shift_low(gate.compare_ring, GateSpec::coarsened_by(frac));
    let flags = compare::post(s, &coarse, 1, &[-edge, edge])?;
    let body = series::<E, F>(s, x, frac, gate)?;
    let body = truncate::post(s, body, series_truncate(gate, frac), gate.body_ring)?;

    let flags = flags.next(s)?;
    let mut body: Masked<F> = body.finish(s)?;
    for (body, x) in body.planes_mut().iter_mut().zip(x.planes()) {
        let (body, x) = (body.data_mut(), x.data());
        simd::run!(|| {
            if odd {
                body.iter_mut().for_each(|h| *h = *h << 1);
            } else {
                body.iter_mut().zip(x).for_each(|(h, x)| *h = (*h << 1).add(F::from_u64(x.to_u64())));
            }
        });
    }
    let body = extend::post::<F, F>(s, &body, inner)?;

    let [low, high]: [MaskedBits; 2] = flags.finish(s)?.try_into().map_err(|_| two_flags())?;
    let body = body.finish(s)?;
    let inside = low.clone().xor(&high);
    let sum = if odd {
        let chosen = select_sum(s, &[Term::of(&inside, &body)], inner)?;
        chosen.add(&signs::<F>(s, &low, &high, inner, frac + 1)?)
    } else {
        let doubled: Masked<F> = x.each(inner, |plane| plane.map(|v| F::from_u64(v.to_u64()) << 1));
        select_sum(s, &[Term::of(&inside, &body), Term::of(&high, &doubled)], inner)?
    };
    let result: Masked<E> = truncate::truncate(s, sum.reshape(x.shape()), 1, inner - 1)?;
    extend::extend(s, &result, gate.ring)
}

fn two_flags() -> Error {
    Error::Misuse("two thresholds give two flags".into())
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
fn series<E: Element, F: Element>(s: &mut Session, x: &Masked<E>, frac: u32, gate: &GateSpec) -> Result<Additive<F>> {
    let (len, series) = (x.len(), &gate.series);
    let (harmonics, ring) = (series.harmonics(), series_ring(gate, frac));
    let bits = frac + series.log2_period;
    let period = f64::from(bits).exp2();
    let turns = |v: E| v.low(bits).to_u64() as f64 / period;
    let dealt: Vec<Vec<F>> = s.scope("series", |s| {
        let mut tables = vec![Vec::new(); harmonics];
        if s.is_helper() {
            tables.iter_mut().for_each(|table| table.resize(2 * len, F::ZERO));
            let units: Vec<f64> =
                (0..harmonics).map(|j| f64::from(gate.dealt_frac - gate.drop_bits(j)).exp2()).collect();
            walk(&x.lambda(), turns, series, |from, j, c, s| {
                let (cosines, sines) = tables[j].split_at_mut(len);
                let encode = |out: &mut [F], values: &[f64]| {
                    out.iter_mut().zip(values).for_each(|(o, v)| *o = F::from_i64(round(v * units[j])));
                };
                encode(&mut cosines[from..from + c.len()], c);
                encode(&mut sines[from..from + s.len()], s);
            });
        }
        let deal = |(j, table)| s.deal(2 * len, ring - gate.drop_bits(j), |_| table);
        tables.into_iter().enumerate().map(deal).collect::<Result<_>>()
    })?;
    let mut half = Vec::new();
    if !s.is_helper() {
        let unit = f64::from(gate.public_frac).exp2();
        let constant = series.constant() * unit * f64::from(gate.dealt_frac).exp2();
        let constant = if s.party() == PartyId::P1 { F::from_i64(round(constant)) } else { F::ZERO };
        half = vec![constant; len];
        // a cos w(c - l) + b sin w(c - l) = (a cos wc + b sin wc) cos wl + (a sin wc - b cos wc) sin wl
        walk(x.m(), turns, series, |from, j, c, s| {
            let ((a, b), drop) = (series.coefficients(j), gate.drop_bits(j));
            let (a, b) = (a * unit, b * unit);
            let (cosines, sines) = dealt[j].split_at(len);
            let (cosines, sines) = (&cosines[from..from + c.len()], &sines[from..from + c.len()]);
            let half = &mut half[from..from + c.len()];
            for i in 0..c.len() {
                let with_cosine = F::from_i64(round(a * c[i] + b * s[i]));
                let with_sine = F::from_i64(round(a * s[i] - b * c[i]));
                let sum = with_cosine.mul(cosines[i]).add(with_sine.mul(sines[i]));
                half[i] = half[i].add(sum << drop);
            }
        });
    }
    Ok(Additive::new(s.party(), x.shape(), half))
}

/// Calls `visit(first index, harmonic from 0, cosines, sines)` for blocks of elements and every harmonic of the series.
#[inline(always)]
fn walk<E: Element>(
    values: &[E],
    turns: impl Fn(E) -> f64,
    series: &Series,
    mut visit: impl FnMut(usize, usize, &[f64], &[f64]),
) {
    const BLOCK: usize = 256;
    simd::run!(|| {
        let (mut c, mut s) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (mut cs, mut ss) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (index, block) in values.chunks(BLOCK).enumerate() {
            let n = block.len();
            for i in 0..n {
                (c[i], s[i]) = cos_sin_turns(turns(block[i]));
                // What a harmonic is ahead of the one before.
                let doubled = (c[i] * c[i] - s[i] * s[i], 2.0 * s[i] * c[i]);
                (cs[i], ss[i]) = if series.step == 2 { doubled } else { (c[i], s[i]) };
            }
            for j in 0..series.harmonics() {
                visit(index * BLOCK, j, &c[..n], &s[..n]);
                for i in 0..n {
                    (c[i], s[i]) = (c[i] * cs[i] - s[i] * ss[i], s[i] * cs[i] + c[i] * ss[i]);
                }
            }
        }
    });
}

/// The ring of the series before truncation.
fn series_ring(gate: &GateSpec, frac: u32) -> u32 {
    gate.body_ring + series_truncate(gate, frac)
}

fn series_truncate(gate: &GateSpec, frac: u32) -> u32 {
    gate.dealt_frac + gate.public_frac - frac
}
