//! Elementwise functions: a trigonometric series between two thresholds, tanh, and ReLU.

use tercet_core::functions::{cos_sin_turns, round};
use tercet_core::spec::{ActivationSpec, GateSpec};

use crate::value::{Value, truncate, wrap};

/// The activation of a narrow matrix at scale `frac`.
pub(crate) fn activation(x: &Value, frac: u32, spec: &ActivationSpec) -> Value {
    match spec {
        ActivationSpec::Relu { ring } => x.map(*ring, |v| v.max(0)),
        ActivationSpec::Gate(gate) => x.map(gate.ring, |v| gated(v, x.ring(), frac, gate, false)),
        ActivationSpec::Odd(gate) => x.map(gate.ring, |v| gated(v, x.ring(), frac, gate, true)),
    }
}

/// `2 g = inside (2h + x) + above 2x` for a gate; `2 g = inside 2h + 2 (above - below)` for an odd function; then halved.
fn gated(x: i64, ring: u32, frac: u32, gate: &GateSpec, odd: bool) -> i64 {
    let by = GateSpec::coarsened_by(frac);
    let coarse = truncate(wrap(x, gate.compare_ring), by, gate.compare_ring - by);
    let edge = gate.coarse_edge(frac);
    // A difference that leaves the ring wraps, as that of shares does.
    let reaches = |threshold: i64| wrap(coarse - threshold, gate.compare_ring - by) >= 0;
    let (low, high) = (reaches(-edge), reaches(edge));
    let one = i64::from;
    let body = 2 * series(x, frac, gate) + if odd { 0 } else { x };
    let inside = one(low != high) * wrap(body, gate.body_ring);
    let rest = if odd { (one(high) + one(low) - 1) << (frac + 1) } else { one(high) * 2 * x };
    let inner = gate.inner_ring(ring, odd);
    wrap(truncate(wrap(inside.wrapping_add(rest), inner), 1, inner - 1), gate.ring)
}

/// The series at `x`, at scale `frac` in the ring of the body. Its argument is taken modulo the period, as a fraction of a
/// turn; the sum is rounded where the shares' factors are, at scale `dealt_frac + public_frac`, then truncated.
fn series(x: i64, frac: u32, gate: &GateSpec) -> i64 {
    let series = &gate.series;
    let turns = x as f64 / f64::from(frac + series.log2_period).exp2();
    let harmonic = |j: usize| {
        let ((a, b), (c, s)) = (series.coefficients(j), cos_sin_turns(series.multiple(j) as f64 * turns));
        a * c + b * s
    };
    let scale = gate.dealt_frac + gate.public_frac;
    let sum = series.constant() + (0..series.harmonics()).map(harmonic).sum::<f64>();
    truncate(round(sum * f64::from(scale).exp2()), scale - frac, gate.body_ring)
}

#[cfg(test)]
mod tests {
    use tercet_core::fit::Series;

    use super::*;

    fn gate(series: Series, edge: u32) -> GateSpec {
        GateSpec { series, edge, compare_ring: 20, dealt_frac: 12, public_frac: 12, body_ring: 16, ring: 32 }
    }

    fn silu(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    /// Largest error over the whole ring of 20 bits at scale 10.
    fn worst(spec: &ActivationSpec, exact: impl Fn(f64) -> f64) -> f64 {
        let x = Value::new(1, 5000, 20, (0..5000).map(|i| (i - 2500) * 100).collect());
        let got = activation(&x, 10, spec);
        let error = |(g, x): (&i64, &i64)| (*g as f64 / 1024.0 - exact(*x as f64 / 1024.0)).abs();
        got.data().iter().zip(x.data()).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn functions_hold_inside_and_far_outside_their_edges() {
        let even = Series::fit_even(|x| silu(x) - x / 2.0, 7.25, 4, 1, 12);
        assert!(worst(&ActivationSpec::Gate(gate(even, 7)), silu) < 8e-3, "SiLU ends at 7 with an error of 6e-3");
        let odd = Series::fit_odd(f64::tanh, 6.25, 4, 1, 14);
        assert!(worst(&ActivationSpec::Odd(gate(odd, 6)), f64::tanh) < 1.2e-3);
        assert_eq!(worst(&ActivationSpec::Relu { ring: 32 }, |x| x.max(0.0)), 0.0);
    }
}
