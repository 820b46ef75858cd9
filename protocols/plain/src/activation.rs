//! Elementwise functions: a trigonometric series between two thresholds, tanh, and ReLU.

use tercet_core::fit::Series;
use tercet_core::functions::{cos_sin_turns, round};
use tercet_core::spec::{ActivationSpec, GATE_FRAC, GateSpec};

use crate::value::{Value, truncate, wrap};

/// The activation of a narrow matrix at scale `frac`.
pub(crate) fn activation(x: &Value, frac: u32, spec: &ActivationSpec) -> Value {
    match spec {
        ActivationSpec::Relu { ring } => x.map(*ring, |v| v.max(0)),
        ActivationSpec::Gate(gate) => x.map(gate.ring, |v| gated(v, frac, gate, false)),
        ActivationSpec::Odd(gate) => x.map(gate.ring, |v| gated(v, frac, gate, true)),
    }
}

/// `2 g = inside (2h + x) + above 2x` for a gate; `2 g = inside 2h + 2 (above - below)` for an odd function; then halved.
fn gated(x: i64, frac: u32, gate: &GateSpec, odd: bool) -> i64 {
    let by = frac.saturating_sub(GATE_FRAC);
    let coarse = truncate(wrap(x, gate.compare_ring), by, gate.compare_ring - by);
    let edge = i64::from(gate.edge) << frac.min(GATE_FRAC);
    let (low, high) = (coarse >= -edge, coarse >= edge);
    let one = i64::from;
    let body = 2 * series(x, frac, gate) + if odd { 0 } else { x };
    let inside = one(low != high) * wrap(body, gate.body_ring);
    let rest = if odd { (one(high) + one(low) - 1) << (frac + 1) } else { one(high) * 2 * x };
    truncate(wrap(inside.wrapping_add(rest), gate.ring + 1), 1, gate.ring)
}

/// The series at `x`, at scale `frac` in the ring of the body. Its argument is taken modulo the period, as a fraction of a
/// turn; the sum is rounded where the shares' factors are, at scale `dealt_frac + public_frac`, then truncated.
fn series(x: i64, frac: u32, gate: &GateSpec) -> i64 {
    let Series { log2_period, cosines, sines } = &gate.series;
    let turns = x as f64 / f64::from(frac + log2_period).exp2();
    let even = cosines.iter().enumerate().map(|(j, a)| a * cos_sin_turns(j as f64 * turns).0);
    let odd = sines.iter().enumerate().map(|(j, b)| b * cos_sin_turns((j + 1) as f64 * turns).1);
    let scale = gate.dealt_frac + gate.public_frac;
    let sum = round(even.chain(odd).sum::<f64>() * f64::from(scale).exp2());
    truncate(sum, scale - frac, gate.body_ring)
}
