//! Whether numbers are ones that a party can compute with. They may come from a stranger's share file, and rings that do not fit
//! their lanes, or each other, would end a session far from where they were written.
//!
//! What is written is held to what numbers are derived from it; what is derived is checked on a walk of the graph, in the form in
//! which a suite would get it and beside the rings that values come in: on as many rows as numbers are derived for in another way,
//! and for a decoder on steps that choose a token and read it again.

use tercet_core::fit::{Segments, Series};
use tercet_core::spec::{
    ActivationSpec, AttentionSpec, BoundSpec, CausalHeads, CausalSpec, ChoiceSpec, EXP_LOG2_RANGE, EXP_TOP_BITS,
    ExpertsSpec, GateSpec, GatedSpec, InverseSpec, LinearSpec, LookupSpec, NormSpec, Numerics, RouteSpec, ScaleSpec,
};
use tercet_core::{Error, Geometry, Layout, Result, Suite};
use tercet_helper::price::{Price, Shape, Shapes};
use tercet_model::graph::{Op, Output};

use crate::manifest::Manifest;
use crate::numerics::{ATTENTION_ROWS, NodeSpec, Profile};
use crate::step::{Choice, StepShape};
use crate::walk::{Rows, walk};

/// Bits of the widest lane.
const LANE: u32 = 64;
/// Bits of the narrow lane, which scores and what is compared come in.
const NARROW: u32 = 32;
/// Segments and bounds beyond this are no approximation that anybody chose.
const PIECES: usize = 1 << 12;
/// Nor are harmonics beyond this.
const HARMONICS: usize = 1 << 6;
/// Fractional bits of a factor that is computed in floating point, at most.
const FLOAT_BITS: u32 = 50;

/// Checks every number of a manifest whose graph is valid and whose formats are known.
///
/// # Errors
/// Numbers that nobody can compute with, and where they are.
pub(crate) fn check(manifest: &Manifest) -> Result<()> {
    if let Some(name) = written(manifest) {
        return Err(Error::Misuse(format!("numbers of {name} that nobody can compute with")));
    }
    let numerics = &manifest.numerics;
    if let Output::NextToken { .. } = manifest.graph.output {
        let step = |layout, reentry| StepShape { layout, choice: Choice::Token, reentry, noisy: true };
        for step in [step(Layout::prefill(1), false), step(Layout::decode(&[1]), true)] {
            let mut suite = Sound { price: manifest.step_price(&step), manifest, at: String::new() };
            let scores = walk(&mut suite, &manifest.graph, numerics, Rows::Step, |_, _| ())?;
            suite.choose(&scores, &numerics.choice(scores.cols, scores.ring))?;
        }
        return Ok(());
    }
    let most = manifest.graph.max_rows();
    let steps = [1, 2, ATTENTION_ROWS, ATTENTION_ROWS + 1, most];
    for rows in steps.into_iter().filter(|&rows| manifest.check_geometry(Geometry { batch: 1, rows }).is_ok()) {
        let price = manifest.price(Geometry { batch: 1, rows });
        let mut suite = Sound { price, manifest, at: String::new() };
        walk(&mut suite, &manifest.graph, numerics, Rows::Inputs(rows), |_, _| ())?;
    }
    Ok(())
}

/// The first node, by its name, from whose written numbers nothing can be derived; or what they
/// have in common.
fn written(manifest: &Manifest) -> Option<&str> {
    let Manifest { graph, numerics, .. } = manifest;
    let Numerics { wide, frac } = numerics.formats;
    let (least, most) = (frac + EXP_LOG2_RANGE + 2, 1 + frac + EXP_LOG2_RANGE + EXP_TOP_BITS);
    if (wide == NARROW) != (numerics.profile == Profile::Fast) {
        return Some("another profile");
    }
    if !(least..=most.min(NARROW)).contains(&numerics.score_ring) {
        return Some("scores");
    }
    let value = |largest: f64| (1.0..1e9).contains(&largest);
    let top = |top: usize| (1..=PIECES).contains(&top);
    let holds = |op: &Op, spec: &NodeSpec| match (op, spec) {
        (Op::Lookup { .. }, NodeSpec::Lookup(spec)) => spec.frac < wide,
        (Op::Linear { .. }, NodeSpec::Linear(spec)) => linear(spec, wide),
        (Op::LayerNorm { .. }, NodeSpec::Norm(spec)) => spec.centred,
        (Op::RmsNorm { .. }, NodeSpec::Norm(spec)) => !spec.centred,
        (Op::Attention { .. }, NodeSpec::Attention { max_value }) => value(*max_value),
        (Op::CausalAttention { .. }, NodeSpec::Causal { max_value, bound: of }) => value(*max_value) && bound(of),
        (Op::Activation(_), NodeSpec::Activation(spec)) => activation(spec, wide, frac),
        (Op::Gated(_), NodeSpec::Gated(spec)) => gated(spec, wide, frac),
        (Op::Route { .. }, NodeSpec::Route { top: of }) => top(*of),
        (Op::Experts { .. }, NodeSpec::Experts { top: of, up, gated: gate, down, combine }) => {
            let sums = within(combine.ring, combine.truncate, LANE) && combine.ring <= wide;
            top(*of) && linear(up, wide) && linear(down, wide) && gated(gate, wide, frac) && sums
        }
        (Op::ScaleBlocks, NodeSpec::Scale(ScaleSpec { truncate, ring })) => within(*ring, *truncate, wide),
        (Op::Add, NodeSpec::Add { ring }) => (2..=wide).contains(ring),
        (
            Op::AddRows { .. }
            | Op::PrependRow { .. }
            | Op::AddPositions { .. }
            | Op::FirstRow
            | Op::LastRow
            | Op::MeanRows,
            NodeSpec::None,
        ) => true,
        _ => false,
    };
    let mut nodes = graph.nodes.iter().zip(&numerics.nodes);
    nodes.find(|(node, spec)| !holds(&node.op, spec)).map(|(node, _)| node.name.as_str())
}

/// A price list that refuses numbers which nobody can compute with.
struct Sound<'a> {
    price: Price<'a, Manifest>,
    manifest: &'a Manifest,
    at: String,
}

impl Sound<'_> {
    fn require(&self, holds: bool) -> Result<()> {
        let refused = || Error::Misuse(format!("numbers of {} that nobody can compute with", self.at));
        holds.then_some(()).ok_or_else(refused)
    }

    /// A tensor comes in lanes of so many bits, in a ring of `ring` bits at least, and as the
    /// right-hand matrix of a product where it is one.
    fn tensor(&self, name: &str, lane: u32, ring: u32, matrix: bool) -> Result<()> {
        let format = self.manifest.numerics.tensors.get(name);
        match format.is_some_and(|of| of.lane_bits == lane && of.ring >= ring && of.matrix == matrix) {
            true => Ok(()),
            false => Err(Error::Misuse(format!("tensor {name} is in another format than {} reads", self.at))),
        }
    }

    fn formats(&self) -> Numerics {
        self.manifest.numerics.formats
    }

    /// Rows that are read in wide lanes.
    fn rows(&self, name: &str, ring: u32) -> Result<()> {
        self.tensor(name, self.formats().wide, ring, false)
    }

    /// A matrix that is multiplied by in wide lanes.
    fn matrix(&self, name: &str, ring: u32) -> Result<()> {
        self.tensor(name, self.formats().wide, ring, true)
    }

    fn norm(&self, gain: &str, bias: Option<&str>, spec: &NormSpec) -> Result<()> {
        self.require(norm(spec, self.formats().wide))?;
        self.tensor(gain, LANE, spec.scaled_ring + spec.scaled_truncate, false)?;
        bias.map_or(Ok(()), |bias| self.tensor(bias, LANE, spec.ring + spec.truncate, false))
    }
}

impl Suite for Sound<'_> {
    type Tensor = Shape;

    fn set_label(&mut self, label: &str) {
        self.at = label.to_owned();
        self.price.set_label(label);
    }

    fn shape(&self, x: &Shape) -> (usize, usize) {
        self.price.shape(x)
    }

    fn input(&mut self) -> Result<Shape> {
        self.price.input()
    }

    fn lookup(&mut self, table: &str, spec: &LookupSpec) -> Result<Shape> {
        self.rows(table, self.formats().wide)?;
        let (entries, bits) = (self.manifest.shape_of(table)?.0, self.manifest.index_bits());
        self.require(!self.manifest.graph.is_decoder() || bits <= NARROW && entries as u64 <= 1 << bits)?;
        self.price.lookup(table, spec)
    }

    fn widen(&mut self, x: &Shape) -> Result<Shape> {
        self.price.widen(x)
    }

    fn linear(&mut self, x: &Shape, weight: &str, bias: Option<&str>, spec: &LinearSpec) -> Result<Shape> {
        let ring = spec.ring + spec.truncate;
        self.matrix(weight, ring)?;
        bias.map_or(Ok(()), |bias| self.rows(bias, ring))?;
        self.price.linear(x, weight, bias, spec)
    }

    fn add_rows(&mut self, x: &Shape, rows: &str, count: usize) -> Result<Shape> {
        self.rows(rows, x.ring)?;
        self.price.add_rows(x, rows, count)
    }

    fn prepend_row(&mut self, x: &Shape, row: &str, count: usize) -> Result<Shape> {
        self.rows(row, x.ring)?;
        self.price.prepend_row(x, row, count)
    }

    fn layer_norm(&mut self, x: &Shape, gain: &str, bias: &str, spec: &NormSpec) -> Result<Shape> {
        self.norm(gain, Some(bias), spec)?;
        self.price.layer_norm(x, gain, bias, spec)
    }

    fn rms_norm(&mut self, x: &Shape, gain: &str, spec: &NormSpec) -> Result<Shape> {
        self.norm(gain, None, spec)?;
        self.price.rms_norm(x, gain, spec)
    }

    fn attention(&mut self, qkv: &Shape, rows: usize, heads: usize, spec: &AttentionSpec) -> Result<Shape> {
        self.require(attention(spec, self.formats()) && spec.score_ring + self.formats().frac <= self.formats().wide)?;
        self.price.attention(qkv, rows, heads, spec)
    }

    fn causal_attention(&mut self, qkv: &Shape, layer: usize, heads: &CausalHeads, spec: &CausalSpec) -> Result<Shape> {
        let formats = self.formats();
        let turned = if heads.rotary.is_some() { spec.rotary_frac } else { 0 };
        let bits = spec.attention.score_ring + formats.frac + turned;
        self.require(attention(&spec.attention, formats) && bits <= LANE)?;
        self.price.causal_attention(qkv, layer, heads, spec)
    }

    fn add_positions(&mut self, x: &Shape, rows: &str) -> Result<Shape> {
        self.rows(rows, x.ring)?;
        self.price.add_positions(x, rows)
    }

    fn activation(&mut self, x: &Shape, spec: &ActivationSpec) -> Result<Shape> {
        self.require(reads(spec, x.ring, self.formats().frac))?;
        self.price.activation(x, spec)
    }

    fn gated(&mut self, x: &Shape, spec: &GatedSpec) -> Result<Shape> {
        self.require(reads(&spec.activation, x.ring, self.formats().frac))?;
        self.price.gated(x, spec)
    }

    fn route(&mut self, x: &Shape, spec: &RouteSpec) -> Result<Shape> {
        self.require(attention(&spec.softmax, self.formats()))?;
        self.price.route(x, spec)
    }

    fn scale_blocks(&mut self, x: &Shape, weights: &Shape, spec: &ScaleSpec) -> Result<Shape> {
        self.require(x.ring.min(weights.ring) >= spec.ring + spec.truncate)?;
        self.price.scale_blocks(x, weights, spec)
    }

    fn experts(&mut self, x: &Shape, scores: &Shape, names: &[[&str; 2]], spec: &ExpertsSpec) -> Result<Shape> {
        let ExpertsSpec { route, up, gated, down, .. } = spec;
        let rings = [up.ring + up.truncate, down.ring + down.truncate];
        let reads = reads(&gated.activation, up.ring, self.formats().frac);
        self.require(attention(&route.softmax, self.formats()) && x.ring >= rings[0] && reads)?;
        for names in names {
            names.iter().zip(rings).try_for_each(|(name, ring)| self.matrix(name, ring))?;
        }
        self.price.experts(x, scores, names, spec)
    }

    fn choose(&mut self, x: &Shape, spec: &ChoiceSpec) -> Result<Shape> {
        self.set_label("head/choice");
        self.price.choose(x, spec)
    }

    fn add(&mut self, x: &Shape, y: &Shape, ring: u32) -> Result<Shape> {
        self.require(x.ring.min(y.ring) >= ring)?;
        self.price.add(x, y, ring)
    }

    fn first_row(&mut self, x: &Shape, rows: usize) -> Result<Shape> {
        self.price.first_row(x, rows)
    }

    fn last_row(&mut self, x: &Shape) -> Result<Shape> {
        self.price.last_row(x)
    }

    fn sum_rows(&mut self, x: &Shape, rows: usize) -> Result<Shape> {
        self.price.sum_rows(x, rows)
    }
}

/// Whether a ring and what is dropped above it fit.
fn within(ring: u32, truncate: u32, most: u32) -> bool {
    ring >= 2 && ring.checked_add(truncate).is_some_and(|sum| sum <= most)
}

/// Whether these bits together are so many at most.
fn fit(bits: &[u32], most: u32) -> bool {
    bits.iter().try_fold(0u32, |sum, &bits| sum.checked_add(bits)).is_some_and(|sum| sum <= most)
}

fn linear(spec: &LinearSpec, wide: u32) -> bool {
    within(spec.ring, spec.truncate, wide) && spec.weight_frac < wide
}

fn segments(Segments { edges, lines, scale }: &Segments, high: u32) -> bool {
    let inside = edges.iter().all(|&edge| (0..=1 << high).contains(&edge));
    edges.len() < PIECES && lines.len() == edges.len() + 1 && edges.is_sorted() && inside && *scale < 2 * LANE
}

fn inverse(spec: &InverseSpec) -> bool {
    let InverseSpec { low, high, ring, truncate, ring_out, frac_out, .. } = *spec;
    low < high
        && high < LANE - 2
        && high + 2 - spec.coarsen() <= NARROW
        && within(ring_out, truncate, LANE)
        && ring == ring_out + truncate
        && frac_out < LANE
        && segments(&spec.segments, high)
}

fn norm(spec: &NormSpec, wide: u32) -> bool {
    let NormSpec { extended, shift, scaled_truncate, scaled_ring, square_shift, v_shift, truncate, ring, .. } = *spec;
    (2..=LANE).contains(&extended)
        && fit(&[shift, scaled_truncate, scaled_ring], extended)
        && fit(&[square_shift, v_shift, 3], extended)
        && v_shift.is_multiple_of(2)
        && within(ring, truncate, LANE)
        && ring <= wide
        && (2..ring + truncate).contains(&scaled_ring)
        && spec.epsilon >= 1
        && spec.gain_frac < LANE
        && inverse(&spec.inverse)
        && spec.inverse.high + 2 <= spec.square_ring() - v_shift
}

/// Numbers of an attention, or of the weights of experts.
fn attention(spec: &AttentionSpec, Numerics { wide, frac }: Numerics) -> bool {
    let AttentionSpec { score_ring, exp_frac, exp_top_bits, exp_guard, exp_ring, value_ring, .. } = *spec;
    let AttentionSpec { normalize_ring, ring, ref inverse, .. } = *spec;
    let dropped = inverse.frac_out.checked_sub(normalize_ring.saturating_sub(ring));
    let scores = fit(&[frac, EXP_LOG2_RANGE, exp_top_bits], score_ring.min(NARROW)) && exp_top_bits <= EXP_TOP_BITS;
    let guards = exp_guard.0.max(exp_guard.1) <= FLOAT_BITS && exp_guard.0 + exp_guard.1 >= exp_frac;
    scores
        && guards
        && fit(&[exp_ring, exp_guard.0 + exp_guard.1 - exp_frac], LANE)
        && score_ring + frac <= LANE
        && (exp_ring..=LANE).contains(&value_ring)
        && exp_frac < exp_ring
        && normalize_ring <= LANE
        && (2..normalize_ring.min(wide + 1)).contains(&ring)
        && self::inverse(inverse)
        && inverse.ring_out <= normalize_ring
        && inverse.high + 2 <= value_ring
        && dropped.is_some_and(|by| by + 2 <= value_ring)
}

fn bound(spec: &BoundSpec) -> bool {
    spec.lowest.unsigned_abs() < 1 << 20
        && spec.step.is_power_of_two()
        && spec.step <= 4
        && (1..=PIECES as u32).contains(&spec.steps)
}

fn activation(spec: &ActivationSpec, wide: u32, frac: u32) -> bool {
    match spec {
        ActivationSpec::Relu { ring } => (2..=wide).contains(ring),
        ActivationSpec::Gate(spec) | ActivationSpec::Odd(spec) => gate(spec, frac) && spec.ring <= wide,
    }
}

fn gated(GatedSpec { activation: spec, truncate, ring }: &GatedSpec, wide: u32, frac: u32) -> bool {
    // The product is taken in lanes that hold it.
    let product = ring.checked_add(*truncate);
    matches!(spec, ActivationSpec::Gate(of) if Some(of.ring) == product && gate(of, frac)) && (2..=wide).contains(ring)
}

fn gate(spec: &GateSpec, frac: u32) -> bool {
    let GateSpec { edge, compare_ring, dealt_frac, public_frac, body_ring, ring, .. } = *spec;
    let fracs = (1..31).contains(&dealt_frac) && (1..31).contains(&public_frac) && dealt_frac + public_frac >= frac;
    let rings = (4..=LANE).contains(&body_ring) && (4..=LANE).contains(&ring);
    // A threshold is compared with values of up to half of what the ring holds.
    let room = compare_ring.checked_sub(frac + 2).map_or(0, |bits| 1u64 << bits.min(LANE - 1));
    fracs
        && rings
        && compare_ring <= GateSpec::widest_compare_ring(frac)
        && (1..=room.min(1 << 10)).contains(&edge.into())
        && body_ring + dealt_frac + public_frac - frac <= LANE
        && series(&spec.series)
}

fn series(spec: &Series) -> bool {
    let finite = spec.cosines.iter().chain(&spec.sines).all(|v| v.is_finite() && v.abs() < 1e6);
    finite && matches!(spec.step, 1 | 2) && spec.log2_period < 20 && (1..=HARMONICS).contains(&spec.harmonics())
}

/// Whether an activation whose own numbers hold can read values of `ring` bits: twice a result fits
/// a lane, a period the values, and what is dealt of every harmonic has bits left.
fn reads(spec: &ActivationSpec, ring: u32, frac: u32) -> bool {
    let (gate, odd) = match spec {
        ActivationSpec::Relu { .. } => return true,
        ActivationSpec::Gate(gate) => (gate, false),
        ActivationSpec::Odd(gate) => (gate, true),
    };
    let product = gate.body_ring + gate.dealt_frac + gate.public_frac - frac;
    let coarsest = (0..gate.series.harmonics()).map(|j| gate.drop_bits(j)).max().unwrap_or(0);
    gate.inner_ring(ring, odd) <= LANE && frac + gate.series.log2_period <= ring && product >= coarsest + 2
}
