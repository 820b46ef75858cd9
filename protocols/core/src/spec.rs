//! The numbers of each tensor operation: rings, scales and approximations. They are public, chosen once from the model and a
//! calibration run, agreed on by all parties, and the same for every suite.
//!
//! Between operations a tensor is *wide* (ring `Numerics::wide`, what a linear layer reads) or *narrow* (what a truncation
//! left); both are at scale `Numerics::frac`. Sums stay narrow where calibration says that they fit.

use serde::{Deserialize, Serialize};

use crate::fit::{Segments, Series};

/// The formats that tensors have between operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numerics {
    /// Ring of linear layers: 32 or 64.
    pub wide: u32,
    /// Fractional bits of activations.
    pub frac: u32,
}

/// `x W + b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinearSpec {
    /// Fractional bits of the weights; the bias has `weight_frac + input scale`.
    pub weight_frac: u32,
    /// Bits dropped after the product: what takes the product's scale back to that of activations.
    pub truncate: u32,
    /// Ring after truncation; `ring + truncate` is at most the wide ring.
    pub ring: u32,
}

/// `v^-power` for one value a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InverseSpec {
    /// Lines on `[2^low, 2^high)`.
    pub segments: Segments,
    /// log2 of the smallest argument.
    pub low: u32,
    /// log2 of the largest argument.
    pub high: u32,
    /// Ring in which the lines are evaluated.
    pub ring: u32,
    /// Bits dropped afterwards.
    pub truncate: u32,
    /// Ring of the result: `ring - truncate`.
    pub ring_out: u32,
    /// Scale of the result.
    pub frac_out: u32,
}

impl InverseSpec {
    /// Bits dropped before comparing with the edges: eight remain below the smallest argument.
    pub fn coarsen(&self) -> u32 {
        self.low.saturating_sub(8)
    }

    /// The result's scale is `frac_out`; it must fit `ring_out` with two bits to spare.
    pub fn new(
        power: f64,
        low: u32,
        high: u32,
        per_octave: u32,
        ring: u32,
        ring_out: u32,
        frac_out: u32,
    ) -> InverseSpec {
        let truncate = ring - ring_out;
        let segments = Segments::inverse_power(power, low, high, per_octave, frac_out + truncate);
        InverseSpec { segments, low, high, ring, truncate, ring_out, frac_out }
    }
}

/// Softmax attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// Ring of the scores (scale `frac`), at most 32: holds scores, their differences and the padding bias.
    pub score_ring: u32,
    /// Fractional bits of the unnormalised exponentials.
    pub exp_frac: u32,
    /// Bits of an exponent above its range: the ring of exponents holds what two scores may differ by.
    pub exp_top_bits: u32,
    /// Guard bits: of the helper's factor, of the evaluators' factor.
    pub exp_guard: (u32, u32),
    /// Ring that the exponentials leave in.
    pub exp_ring: u32,
    /// Ring of the product with the values.
    pub value_ring: u32,
    /// Inverse of the row sums (scale `exp_frac`).
    pub inverse: InverseSpec,
    /// Ring of the product with the inverse.
    pub normalize_ring: u32,
    /// Ring after that product is truncated.
    pub ring: u32,
}

impl AttentionSpec {
    /// Bits dropped after the product with the values, so that the product with the inverse comes out at the scale of the
    /// values: `exp_frac` where a row's largest exponential is about one, and fewer where it may be as small as `2^-n`.
    pub fn value_truncate(&self) -> u32 {
        self.inverse.frac_out - (self.normalize_ring - self.ring)
    }
}

/// LayerNorm and RMSNorm. The input is extended to a ring that everything local fits; `d = width * x - sum x` is its centred row. `d / 2^shift`
/// is multiplied by the gain; `d / 2^square_shift` is squared and summed to `v`, whose inverse root the product is multiplied by.
///
/// With `w` columns and `j = floor(log2(w) / 2)` the gain carries [`NormSpec::gain_factor`] `= sqrt(w) / 2^j` beside
/// `2^gain_frac`, and the product with the root has `frac + truncate` fractional bits, which is the scale of the bias.
///
/// RMSNorm has no mean to take off, so that `d = x` and `v = sum x^2` lack two powers of the width that LayerNorm has in both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormSpec {
    /// Whether the mean of a row is taken off: LayerNorm, else RMSNorm.
    pub centred: bool,
    /// Ring to which the input is extended.
    pub extended: u32,
    /// Bits dropped from the centred row before the gain.
    pub shift: u32,
    /// Scale of the gain.
    pub gain_frac: u32,
    /// Bits dropped from centred row times gain; with `scaled_ring` at most `extended - shift`.
    pub scaled_truncate: u32,
    /// Ring of the scaled row that this leaves.
    pub scaled_ring: u32,
    /// Bits dropped from the centred row before it is squared.
    pub square_shift: u32,
    /// `eps` at the scale of `v`, as an integer, at least 1.
    pub epsilon: i64,
    /// Bits dropped from `v` before the inverse root; even.
    pub v_shift: u32,
    /// Inverse root of the shifted `v`. Its result is extended to `ring + truncate` where it leaves a smaller ring.
    pub inverse: InverseSpec,
    /// Bits dropped after the product with the root.
    pub truncate: u32,
    /// Ring of the result; with `truncate` more than `scaled_ring`.
    pub ring: u32,
}

impl NormSpec {
    /// Ring of the sum of squares; it is below a quarter of it.
    pub fn square_ring(&self) -> u32 {
        self.extended - self.square_shift
    }

    /// `floor(log2(width) / 2)`: what the gain does not carry of `sqrt(width)`.
    pub fn root_width_log2(width: usize) -> u32 {
        width.max(1).ilog2() / 2
    }

    /// What the gain is multiplied by before it is encoded.
    pub fn gain_factor(width: usize) -> f64 {
        (width.max(1) as f64).sqrt() / f64::from(NormSpec::root_width_log2(width)).exp2()
    }

    /// Fractional bits of scaled row times inverse root, for rows of `width`.
    ///
    /// `d` and the root of its sum of squares have the same scale, so only the root of the width is left: `sqrt v` is
    /// `sqrt(width)` times the deviation at the scale of `d`. For RMSNorm likewise: `sqrt v` is `sqrt(width)` times the root of the
    /// mean square.
    pub fn product_frac(&self, width: usize) -> i64 {
        let up = self.gain_frac + self.square_shift + self.v_shift / 2 + self.inverse.frac_out;
        i64::from(up) - i64::from(self.scaled_truncate + self.shift + NormSpec::root_width_log2(width))
    }
}

/// Which keys a query of causal attention meets: those of `kv_heads`, turned by their positions, as far as it sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CausalHeads {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values.
    pub kv_heads: usize,
    /// Radians a position for each pair of columns `(i, i + width / 2)` of a head; none where positions are not rotary.
    pub rotary: Option<Vec<f64>>,
    /// Keys up to and including its own that a query sees; none for all.
    pub window: Option<usize>,
    /// Positions at the beginning that every query sees.
    pub global: usize,
}

impl CausalHeads {
    /// The positions that the query at `position` sees: the global ones before its window, and its window.
    pub fn visible(&self, position: usize) -> [std::ops::Range<usize>; 2] {
        let from = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        [0..self.global.min(from), from..position + 1]
    }

    /// How many positions that is.
    pub fn visible_count(&self, position: usize) -> usize {
        self.visible(position).into_iter().map(|range| range.len()).sum()
    }
}

/// Softmax attention over a cache. The shift of the softmax is a bound of each row's maximum from below, one of
/// `lowest + i * step`, so that its rounds do not depend on how many keys there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CausalSpec {
    /// The rest. Its rings hold the longest context of the model, so that a step's costs are linear in its own.
    pub attention: AttentionSpec,
    /// Fractional bits of the sines and cosines of rotary positions.
    pub rotary_frac: u32,
    /// The bound.
    pub bound: BoundSpec,
}

/// A bound of the maximum of a row: the largest of `lowest + i * step`, `i < steps`, in whole units, that one of its elements
/// reaches; `lowest` where none does. Elements are compared in units of a step, so that one may pass for up to a step more
/// than it is: the maximum is less than one step above the bound, and at most one below it.
///
/// Exponents are taken from the bound and a step: that of the largest element is above zero and at most two steps. So every
/// maximum should be at least `lowest - step`: the further it lies below, the smaller are all exponentials of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundSpec {
    /// The lowest bound. The ring of the scores holds their differences from it.
    pub lowest: i64,
    /// Between two bounds: a power of two.
    pub step: u32,
    /// Number of bounds; the largest maximum is below `lowest + steps * step`. Fewer than `2^(coarse_bits - 1)`, so that what
    /// passes for a step more is still in the upper half of the ring.
    pub steps: u32,
}

impl BoundSpec {
    /// Bits of a score of `Z_2^ring` at scale `frac` in units of a step. What is dealt for each score is `2^` of it.
    pub fn coarse_bits(&self, ring: u32, frac: u32) -> u32 {
        ring - self.coarsen(frac)
    }

    /// Bits of a score at scale `frac` below a step.
    pub fn coarsen(&self, frac: u32) -> u32 {
        frac + self.step.ilog2()
    }
}

/// `f(a) b`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatedSpec {
    /// `f`; its result is in `ring + truncate`.
    pub activation: ActivationSpec,
    /// Bits dropped after the product.
    pub truncate: u32,
    /// Ring of the result.
    pub ring: u32,
}

/// The weights of experts from their scores: the softmax over the largest of a row. Scores come scaled by `log2(e)`, which belongs in
/// the weights of the gate as it does in those of queries; weights leave at the scale of activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteSpec {
    /// How many experts have a say.
    pub top: usize,
    /// The softmax: its score ring, exponentials, inverse, and the ring of the result; nothing else of it counts. A row's scores differ by
    /// less than the ring of exponents holds, less 16. The sum is between one exponential, rounded, and `top`. The last
    /// product is taken in `ring + inverse.frac_out - frac` bits, at most 64.
    pub softmax: AttentionSpec,
}

/// Blocks of columns times a column each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleSpec {
    /// Bits dropped after the product.
    pub truncate: u32,
    /// Ring of the result.
    pub ring: u32,
}

/// Experts behind a public gate: each row goes through its own alone.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// The weights of the experts of a row: the softmax over their scores alone.
    pub route: RouteSpec,
    /// What leads into an expert: its gate and what is gated, side by side.
    pub up: LinearSpec,
    /// The gate.
    pub gated: GatedSpec,
    /// What leads out of an expert.
    pub down: LinearSpec,
    /// The sum over the experts of a row, each times its weight.
    pub combine: ScaleSpec,
}

/// The choice of a token inside the computation: the place of the largest of a row of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceSpec {
    /// Fractional bits of the scores that are compared.
    pub compare_frac: u32,
    /// Ring in which scores at that scale are compared, at most 32: it holds what two of a row differ by, noise included.
    pub compare_ring: u32,
    /// Bits of a place, at least one.
    pub index_bits: u32,
}

/// An elementwise function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ActivationSpec {
    /// `x/2 + h(x)` with an even `h` for `|x| < edge`, `x` above, 0 below: GELU, SiLU.
    Gate(GateSpec),
    /// An odd function for `|x| < edge`, `1` above, `-1` below: tanh.
    Odd(GateSpec),
    /// `max(x, 0)`; the ring is that of the result.
    Relu {
        /// Ring of the result.
        ring: u32,
    },
}

/// A trigonometric series between two thresholds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateSpec {
    /// The series.
    pub series: Series,
    /// Where it ends, in whole units.
    pub edge: u32,
    /// Ring in which the thresholds are compared, at most [`GateSpec::widest_compare_ring`] and that of the values: it holds the
    /// sum of a value and the edge.
    pub compare_ring: u32,
    /// Fractional bits of the dealt sines and cosines of the largest harmonic.
    pub dealt_frac: u32,
    /// Fractional bits of the evaluators' factors.
    pub public_frac: u32,
    /// Ring of the series' value.
    pub body_ring: u32,
    /// Ring of the result.
    pub ring: u32,
}

impl GateSpec {
    /// Bits by which a harmonic (counted from 0) is dealt more coarsely than the largest: one for every time that its coefficient
    /// can be doubled and stays below the largest, so that all contribute the same rounding error.
    ///
    /// A dealt value of `b` fewer fractional bits also needs `b` fewer bits of ring: its product is multiplied by `2^b`.
    pub fn drop_bits(&self, harmonic: usize) -> u32 {
        let (of, largest) = (self.series.size(harmonic), (0..self.series.harmonics()).map(|j| self.series.size(j)));
        let largest = largest.fold(0.0, f64::max);
        // Halving is exact: all parties count alike.
        (0..self.dealt_frac).take_while(|&b| of * f64::from(2u32 << b) <= largest).count() as u32
    }

    /// Bits that values at scale `frac` drop before they are compared.
    pub fn coarsened_by(frac: u32) -> u32 {
        frac.saturating_sub(GATE_FRAC)
    }

    /// The edge at the scale in which values of scale `frac` are compared.
    pub fn coarse_edge(&self, frac: u32) -> i64 {
        i64::from(self.edge) << frac.min(GATE_FRAC)
    }

    /// The widest ring whose values at scale `frac` take 32 bits after coarsening.
    pub fn widest_compare_ring(frac: u32) -> u32 {
        32 + Self::coarsened_by(frac)
    }

    /// The ring of values at scale `frac` between the comparison and the last truncation: twice the result fits it.
    pub fn inner_ring(&self, ring_in: u32, odd: bool) -> u32 {
        1 + if odd { self.body_ring } else { ring_in }.min(self.ring)
    }
}

/// A private table lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupSpec {
    /// Fractional bits of the table (the LayerNorm that follows takes any scale).
    pub frac: u32,
}

/// Fractional bits to which values are coarsened before a maximum compares them.
pub const MAXIMUM_FRAC: u32 = 5;
/// Fractional bits to which values are coarsened before a gate compares them with its edge; a series is fitted twice as far
/// beyond its edge.
pub const GATE_FRAC: u32 = 3;
/// `2^-t` is zero from `t = 2^EXP_LOG2_RANGE` on.
pub const EXP_LOG2_RANGE: u32 = 4;
/// Most bits of `t` above that range that an exponential takes: `t < 2^(EXP_LOG2_RANGE + EXP_TOP_BITS)`.
pub const EXP_TOP_BITS: u32 = 6;
