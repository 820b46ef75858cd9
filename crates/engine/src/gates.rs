//! The numbers of elementwise functions.

use tercet_core::fit::Series;
use tercet_core::spec::{ActivationSpec, GATE_FRAC, GateSpec};
use tercet_model::graph::Activation;

use crate::numerics::Profile;

/// The numbers of an activation of values at scale `frac` in a ring of `ring` bits, or in that of its body where this is wider.
pub(crate) fn activation(kind: Activation, profile: Profile, frac: u32, ring: u32) -> ActivationSpec {
    let out = if profile == Profile::Fast { 32 } else { 47 };
    if kind == Activation::Relu {
        return ActivationSpec::Relu { ring: if profile == Profile::Fast { 32 } else { 64 } };
    }
    let odd = kind == Activation::Tanh;
    // Edge, log2 of the period, distance of the harmonics, how many, scale of the factors; bits above the scale that |2h + x|
    // <= 2 edge and its extension take. As many hold a value beside the edge, so that no threshold wraps.
    let (edge, log2_period, step, terms, scale, body_bits) = match (profile, kind) {
        (Profile::Fast, Activation::Tanh) => (6, 4, 1, 14, 12, 6),
        (Profile::Precise, Activation::Tanh) => (6, 4, 1, 18, 18, 7),
        (Profile::Fast, Activation::Silu) => (9, 5, 2, 6, 12, 7),
        (Profile::Precise, Activation::Silu) => (14, 5, 1, 20, 18, 8),
        (Profile::Fast, _) => (4, 4, 2, 4, 11, 6),
        (Profile::Precise, _) => (5, 4, 1, 10, 18, 7),
    };
    // Comparisons are coarse: the series must hold a little beyond its edge.
    let edge_at = f64::from(edge) + 2.0 * f64::from(GATE_FRAC).exp2().recip();
    let series = match kind {
        Activation::Gelu => Series::fit_even(|x| gelu(x) - x / 2.0, edge_at, log2_period, step, terms),
        Activation::GeluTanh => Series::fit_even(|x| gelu_tanh(x) - x / 2.0, edge_at, log2_period, step, terms),
        Activation::Silu => Series::fit_even(|x| silu(x) - x / 2.0, edge_at, log2_period, step, terms),
        _ => Series::fit_odd(f64::tanh, edge_at, log2_period, step, terms),
    };
    let body_ring = body_bits + frac;
    let compare_ring = ring.max(body_ring).min(GateSpec::widest_compare_ring(frac));
    // `precise` keeps two bits beyond those of its values.
    let scale = if profile == Profile::Precise { scale.max(frac + 2) } else { scale };
    let gate = GateSpec { series, edge, compare_ring, dealt_frac: scale, public_frac: scale, body_ring, ring: out };
    if odd { ActivationSpec::Odd(gate) } else { ActivationSpec::Gate(gate) }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The error function by its Maclaurin series; good to 1e-10 for `|x| < 4`.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}
