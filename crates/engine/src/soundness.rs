//! Whether numbers are ones that a party can compute with. They may come from a stranger's share file, and rings that do not fit
//! their lanes, or each other, would end a session far from where they were written.

use tercet_core::fit::{Segments, Series};
use tercet_core::spec::{
    ActivationSpec, AttentionSpec, BoundSpec, EXP_LOG2_RANGE, EXP_TOP_BITS, GateSpec, GatedSpec, InverseSpec,
    LinearSpec, NormSpec, Numerics, ScaleSpec,
};
use tercet_model::graph::{Graph, Op};

use crate::numerics::{ModelNumerics, NodeSpec};

/// Bits of the widest lane.
const LANE: u32 = 64;
/// Segments, bounds and harmonics beyond this are no approximation that anybody chose.
const PIECES: usize = 1 << 12;

/// The first node whose numbers do not hold, by its name.
pub(crate) fn unsound<'a>(graph: &'a Graph, numerics: &ModelNumerics) -> Option<&'a str> {
    let frac = numerics.formats.frac;
    let scores =
        (frac + EXP_LOG2_RANGE + 1..=(1 + frac + EXP_LOG2_RANGE + EXP_TOP_BITS).min(32)).contains(&numerics.score_ring);
    let sound = |op: &Op, spec: &NodeSpec| match spec {
        NodeSpec::Lookup(spec) => spec.frac < numerics.formats.wide,
        NodeSpec::Linear(spec) => linear(spec, numerics.formats),
        NodeSpec::Norm(spec) => norm(spec),
        NodeSpec::Attention { max_value } => {
            scores && value(*max_value) && attention(&numerics.attention(graph.max_rows() + 1, *max_value), frac)
        }
        NodeSpec::Causal { max_value, bound: of } => {
            let fits = scores && value(*max_value) && bound(of);
            fits && {
                let spec = numerics.causal(graph.max_rows(), *max_value, *of);
                let turned =
                    if matches!(op, Op::CausalAttention { rotary: Some(_), .. }) { spec.rotary_frac } else { 0 };
                attention(&spec.attention, frac) && numerics.score_ring + frac + turned <= LANE
            }
        }
        NodeSpec::Activation(spec) => activation(spec, numerics.formats),
        NodeSpec::Gated(spec) => gated(spec, numerics.formats),
        NodeSpec::Route { top } => scores && (1..=PIECES).contains(top),
        NodeSpec::Experts { top, up, gated: gate, down, combine } => {
            let linear = |spec| linear(spec, numerics.formats);
            let sums = within(combine.ring, combine.truncate, LANE) && combine.ring <= numerics.formats.wide;
            scores && (1..=PIECES).contains(top) && linear(up) && linear(down) && gated(gate, numerics.formats) && sums
        }
        NodeSpec::Scale(ScaleSpec { truncate, ring }) => within(*ring, *truncate, numerics.formats.wide),
        NodeSpec::Add { ring } => (2..=numerics.formats.wide).contains(ring),
        NodeSpec::None => true,
    };
    graph
        .nodes
        .iter()
        .zip(&numerics.nodes)
        .find(|(node, spec)| !sound(&node.op, spec))
        .map(|(node, _)| node.name.as_str())
}

/// Whether a ring and what is dropped above it fit.
fn within(ring: u32, truncate: u32, most: u32) -> bool {
    ring >= 2 && ring.checked_add(truncate).is_some_and(|sum| sum <= most)
}

/// Whether this can be the largest of some values.
fn value(largest: f64) -> bool {
    (1.0..1e9).contains(&largest)
}

fn linear(spec: &LinearSpec, formats: Numerics) -> bool {
    within(spec.ring, spec.truncate, formats.wide) && spec.weight_frac < formats.wide
}

fn segments(Segments { edges, lines, .. }: &Segments) -> bool {
    edges.len() < PIECES && lines.len() == edges.len() + 1 && edges.is_sorted()
}

fn inverse(spec: &InverseSpec) -> bool {
    let InverseSpec { low, high, ring, truncate, ring_out, frac_out, .. } = *spec;
    low < high
        && high < LANE - 2
        && within(ring_out, truncate, LANE)
        && ring == ring_out + truncate
        && frac_out < LANE
        && segments(&spec.segments)
}

fn norm(spec: &NormSpec) -> bool {
    let NormSpec { extended, shift, scaled_truncate, scaled_ring, square_shift, v_shift, truncate, ring, .. } = *spec;
    let least = [shift, scaled_truncate, scaled_ring].iter().try_fold(0u32, |sum, &bits| sum.checked_add(bits));
    let rings =
        (2..=LANE).contains(&extended) && least.is_some_and(|least| least <= extended) && square_shift + 2 <= extended;
    rings
        && v_shift.is_multiple_of(2)
        && v_shift + 2 < spec.square_ring()
        && within(ring, truncate, LANE)
        && (2..ring + truncate).contains(&scaled_ring)
        && spec.epsilon >= 1
        && spec.gain_frac < LANE
        && inverse(&spec.inverse)
        && spec.inverse.high + 2 <= spec.square_ring() - v_shift
}

fn attention(spec: &AttentionSpec, frac: u32) -> bool {
    let product = spec.exp_ring + spec.exp_guard.0 + spec.exp_guard.1;
    let values = spec.value_ring <= LANE && spec.exp_ring <= spec.value_ring && spec.exp_frac < spec.exp_ring;
    values
        && product <= LANE + spec.exp_frac
        && spec.score_ring + frac <= LANE
        && spec.normalize_ring <= LANE
        && spec.ring < spec.normalize_ring
        && inverse(&spec.inverse)
        && spec.inverse.ring_out <= spec.normalize_ring
        && spec.inverse.high + 2 <= spec.value_ring
}

fn bound(spec: &BoundSpec) -> bool {
    spec.lowest.unsigned_abs() < 1 << 20
        && spec.step.is_power_of_two()
        && spec.step <= 4
        && (1..=PIECES as u32).contains(&spec.steps)
}

fn activation(spec: &ActivationSpec, formats: Numerics) -> bool {
    match spec {
        ActivationSpec::Relu { ring } => (2..=formats.wide).contains(ring),
        ActivationSpec::Gate(spec) | ActivationSpec::Odd(spec) => gate(spec, formats.frac),
    }
}

fn gated(GatedSpec { activation: spec, truncate, ring }: &GatedSpec, formats: Numerics) -> bool {
    let gate = matches!(spec, ActivationSpec::Gate(gate) if Some(gate.ring) == ring.checked_add(*truncate));
    gate && activation(spec, formats)
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
    finite && matches!(spec.step, 1 | 2) && spec.log2_period < 20 && (1..=PIECES).contains(&spec.harmonics())
}
