//! Choosing the numbers of a model from its calibration.

use std::collections::BTreeMap;

use tercet_core::spec::{
    ActivationSpec, BoundSpec, EXP_LOG2_RANGE, EXP_TOP_BITS, GatedSpec, InverseSpec, LinearSpec, LookupSpec, NormSpec,
    Numerics, ScaleSpec,
};
use tercet_model::graph::{Activation, Expert, Graph, Node, Op};
use tercet_model::{AttentionStats, NodeStats, NormStats, Ranges};

use crate::gates::activation;
use crate::numerics::{ModelNumerics, NoHeadroom, NodeSpec, Profile, SCORE_BITS, TensorFormat};

/// Calibrated sizes are multiplied by this before rings are chosen.
pub(crate) const MARGIN: f64 = 1.25;
/// Where a ring may be chosen freely, it holds this many times the calibrated size with its margin.
const HEADROOM: f64 = 1.5;
/// Calibrated variances are multiplied, and divided, by this.
pub(crate) const VARIANCE_MARGIN: f64 = 4.0;
/// Whole bits of a difference of scores at least: room for inputs unlike those of the calibration.
const LEAST_SCORE_BITS: u32 = 7;
/// Segments of an inverse root start at most this many octaves below their end.
const MAX_OCTAVES: u32 = 24;
/// Fractional bits that the residual stream of a decoder has beyond those of activations, as far as its sums allow: its rows
/// begin as small as the embeddings are, and nothing normalises them on the way.
const RESIDUAL_BITS: u32 = 4;
/// Between two bounds of a row's largest score, at most: exponentials end at 16 beyond a bound, which is up to two steps above the
/// maximum.
const BOUND_STEP: u32 = 2;
/// What a bound may be beyond all scores of its row, at most: room for it beside their spread.
const BOUND_DISTANCE: f64 = (4 * BOUND_STEP) as f64;
/// What the scores of experts that are not at the top lose before their exponentials, which are nothing then.
pub(crate) const ROUTE_DROP: f64 = (1 << EXP_LOG2_RANGE) as f64;
/// What the scores of tokens must stay below, whatever their ring: an eighth of what a choice
/// compares at most.
const LARGEST_SCORE: f64 = (1 << (SCORE_BITS - 3)) as f64;
/// Bounds of a row that are worth half the step in `fast`.
const FINE_BOUNDS: f64 = 64.0;

/// What a profile fixes for every model.
pub(crate) struct Choice {
    profile: Profile,
    pub(crate) formats: Numerics,
    pub(crate) weight_frac: u32,
    pub(crate) least_weight_frac: u32,
    /// Ring in which a LayerNorm leaves its result.
    norm_ring: u32,
    gain_frac: u32,
    /// Of the least deviation of a row: fractional bits of its centred elements times the gain, and of those that are squared.
    norm_bits: u32,
    square_bits: u32,
    /// Bits that the smallest variance and the smallest inverse root keep, and those of a line's slope within its segment.
    variance_bits: u32,
    root_bits: u32,
    slope_bits: u32,
    root_per_octave: u32,
    pub(crate) inverse_per_octave: u32,
}

impl Choice {
    /// What a profile fixes for a graph.
    pub(crate) fn of_graph(profile: Profile, graph: &Graph) -> Choice {
        Choice::of(profile, graph.is_decoder())
    }

    /// What a profile fixes for decoders, or for encoders.
    ///
    /// The softmax of a decoder meets hundreds of keys whose scores nothing keeps small, so that what its rows are off by counts as
    /// often as scores are large: `precise` has two fractional bits more there, and roots to match.
    pub(crate) fn of(profile: Profile, decoder: bool) -> Choice {
        let choice = Choice::of_encoders(profile);
        match profile {
            Profile::Precise if decoder => Choice {
                formats: Numerics { frac: 18, ..choice.formats },
                weight_frac: 20,
                norm_ring: 30,
                norm_bits: 18,
                root_bits: 18,
                root_per_octave: 48,
                inverse_per_octave: 40,
                ..choice
            },
            _ => choice,
        }
    }

    fn of_encoders(profile: Profile) -> Choice {
        match profile {
            Profile::Fast => Choice {
                profile,
                formats: Numerics { wide: 32, frac: 10 },
                weight_frac: 12,
                least_weight_frac: 8,
                norm_ring: 32,
                gain_frac: 12,
                norm_bits: 11,
                square_bits: 4,
                variance_bits: 10,
                root_bits: 10,
                slope_bits: 5,
                root_per_octave: 6,
                inverse_per_octave: 10,
            },
            Profile::Precise => Choice {
                profile,
                formats: Numerics { wide: 64, frac: 16 },
                weight_frac: 16,
                least_weight_frac: 16,
                norm_ring: 27,
                gain_frac: 18,
                norm_bits: 16,
                square_bits: 9,
                variance_bits: 16,
                root_bits: 15,
                slope_bits: 10,
                root_per_octave: 20,
                inverse_per_octave: 24,
            },
        }
    }

    fn limit(&self, ring: u32) -> f64 {
        power(ring as i32 - 2 - self.formats.frac as i32)
    }
}

pub(crate) fn power(exponent: i32) -> f64 {
    f64::from(exponent).exp2()
}

/// Chooses the numbers of a model, or says everything that has no headroom. Nothing is public but the embedding table, and that
/// where `public_table` says so; see [`ModelNumerics::publish`].
pub fn choose(
    graph: &Graph,
    ranges: &Ranges,
    profile: Profile,
    public_table: bool,
) -> Result<ModelNumerics, Vec<NoHeadroom>> {
    let choice = Choice::of_graph(profile, graph);
    let mut chooser = Chooser {
        choice,
        graph,
        ranges,
        problems: Vec::new(),
        tensors: BTreeMap::new(),
        fracs: Vec::new(),
        rings: Vec::new(),
        residual_frac: 0,
        spread: 0.0,
    };
    chooser.residual_frac = chooser.residual();
    chooser.fracs.push(chooser.choice.formats.frac);
    chooser.rings.push(chooser.choice.formats.wide);
    let unseen = NodeStats::default();
    let mut nodes: Vec<NodeSpec> = graph
        .nodes
        .iter()
        .map(|node| {
            let stats = ranges.node(&node.name).unwrap_or(&unseen);
            let input = node.inputs.first().map_or(chooser.choice.formats.frac, |&v| chooser.fracs[v]);
            let (spec, frac) = chooser.node(&node.name, &node.op, input, &node.inputs, stats);
            chooser.fracs.push(frac);
            chooser.rings.push(match &spec {
                NodeSpec::Linear(linear) => linear.ring,
                NodeSpec::Norm(norm) => norm.ring,
                NodeSpec::Add { ring }
                | NodeSpec::Gated(GatedSpec { ring, .. })
                | NodeSpec::Scale(ScaleSpec { ring, .. })
                | NodeSpec::Experts { combine: ScaleSpec { ring, .. }, .. } => *ring,
                _ => chooser.choice.formats.wide,
            });
            spec
        })
        .collect();
    let Chooser { choice, problems, tensors, spread, .. } = chooser;
    if !problems.is_empty() {
        return Err(problems);
    }
    fit_activations(graph, &mut nodes);
    let frac = choice.formats.frac;
    // A padded key must fall at least 16 below the largest score, where its exponential is zero. In a decoder there is no padding;
    // what is added to a difference of scores there is the distance of its bound.
    let padding = if graph.is_decoder() { BOUND_DISTANCE } else { (spread + 16.0).ceil() };
    let bounds = nodes.iter().map(|spec| match spec {
        NodeSpec::Causal { bound, .. } => 1 + bound.step.ilog2() + bound.steps.next_power_of_two().ilog2(),
        _ => 0,
    });
    let score_bits = ((spread + padding).log2().ceil() as u32).max(LEAST_SCORE_BITS).max(bounds.max().unwrap_or(0));
    let score_ring = 1 + frac + score_bits;
    let padding_bias = -((padding as i64) << frac);
    let mut numerics = ModelNumerics { profile, formats: choice.formats, nodes, tensors, score_ring, padding_bias };
    if public_table && let Some(Op::Lookup { table }) = graph.nodes.first().map(|node| &node.op) {
        numerics.publish(|name| name == table);
    }
    Ok(numerics)
}

struct Chooser<'a> {
    choice: Choice,
    graph: &'a Graph,
    ranges: &'a Ranges,
    problems: Vec<NoHeadroom>,
    tensors: BTreeMap<String, TensorFormat>,
    /// Scale of every value so far.
    fracs: Vec<u32>,
    /// Ring of every value so far, where a linear layer, a LayerNorm or a sum left it; else the wide one.
    rings: Vec<u32>,
    /// Scale of the residual stream of a decoder; of all activations elsewhere.
    residual_frac: u32,
    /// Largest difference between two scores, with margin.
    spread: f64,
}

impl Chooser<'_> {
    /// The scale of the residual stream: as fine as its sums allow.
    fn residual(&self) -> u32 {
        let Numerics { wide, frac } = self.choice.formats;
        if !self.graph.is_decoder() || wide == 64 {
            return frac;
        }
        let streams = |(index, node): &(usize, &Node)| match node.op {
            Op::Add => !self.graph.is_low_rank_sum(*index),
            _ => matches!(node.op, Op::Lookup { .. } | Op::AddPositions { .. }),
        };
        let size = |node: &Node| self.ranges.node(&node.name).map_or(0.0, |stats| f64::from(stats.max_abs) * MARGIN);
        let largest = self.graph.nodes.iter().enumerate().filter(streams).map(|(_, n)| size(n)).fold(0.0, f64::max);
        (frac..=frac + RESIDUAL_BITS).rev().find(|&f| bits_of(largest, f) <= wide).unwrap_or(frac)
    }

    /// The scale in which a linear layer leaves its result: that of the sum which reads it, or that of activations.
    fn linear_frac(&self, name: &str) -> u32 {
        let nodes = &self.graph.nodes;
        let index = nodes.iter().position(|n| n.name == name);
        if self.graph.is_decoder() && index.is_some_and(|index| self.is_streamed(index)) {
            self.residual_frac
        } else {
            self.choice.formats.frac
        }
    }

    /// Whether what a node gives is added to the residual stream, with a change of low rank or without one.
    fn is_streamed(&self, index: usize) -> bool {
        let nodes = self.graph.nodes.iter().enumerate();
        let mut sums = nodes.filter(|(_, n)| matches!(n.op, Op::Add) && n.inputs.contains(&(index + 1)));
        sums.any(|(sum, _)| !self.graph.is_low_rank_sum(sum) || self.is_streamed(sum))
    }

    /// The numbers of a node, and the scale of its result.
    fn node(&mut self, name: &str, op: &Op, input_frac: u32, inputs: &[usize], stats: &NodeStats) -> (NodeSpec, u32) {
        let input = inputs.first().copied();
        let Numerics { wide, frac } = self.choice.formats;
        let size = f64::from(stats.max_abs) * MARGIN;
        match op {
            Op::Lookup { table } => {
                let spec = self.lookup(table, size);
                (NodeSpec::Lookup(spec), spec.frac)
            }
            Op::AddRows { rows: tensor } | Op::PrependRow { row: tensor } | Op::AddPositions { rows: tensor } => {
                self.tensor(tensor, wide, input_frac, 1.0, false);
                (NodeSpec::None, input_frac)
            }
            Op::Linear { weight, bias } => {
                let out = self.linear_frac(name);
                (NodeSpec::Linear(self.linear(name, weight, bias.as_deref(), [input_frac, out], size)), out)
            }
            Op::LayerNorm { gain, eps, .. } | Op::RmsNorm { gain, eps } => {
                let bias = if let Op::LayerNorm { bias, .. } = op { Some(bias.as_str()) } else { None };
                let width = input.map_or(1, |v| self.graph.width(v));
                let variance = tercet_model::Span { min: 0.0, max: 1.0 };
                let seen = stats.norm.unwrap_or(NormStats { variance, max_centred: 1.0, max_scaled: 1.0 });
                self.check(name, "the result", size, self.choice.limit(self.choice.norm_ring));
                let spec = self.norm(name, gain, bias, *eps, width, input_frac, &seen);
                (NodeSpec::Norm(spec), frac)
            }
            Op::Attention { .. } => {
                let max_value = self.attention(name, stats.attention.as_ref(), 16.0);
                (NodeSpec::Attention { max_value }, frac)
            }
            Op::CausalAttention { .. } => {
                let seen = stats.attention.as_ref();
                let max_value = self.attention(name, seen, BOUND_DISTANCE);
                let maxima = seen.map_or((0.0, 0.0), |a| (a.row_max.min.into(), a.row_max.max.into()));
                let bound = bound(maxima, self.choice.profile);
                (NodeSpec::Causal { max_value, bound }, frac)
            }
            Op::Add => {
                self.check(name, "the sum", size, power(wide as i32 - 2 - input_frac as i32));
                (NodeSpec::Add { ring: self.sum_ring(name, inputs, bits_of(size, input_frac)) }, input_frac)
            }
            Op::Activation(kind) => {
                let ring = input.and_then(|v| self.rings.get(v)).copied().unwrap_or(wide);
                (NodeSpec::Activation(activation(*kind, self.choice.profile, frac, ring)), frac)
            }
            Op::MeanRows => {
                let largest = size * self.graph.max_rows() as f64;
                self.check(name, "the sum over rows", largest, power(wide as i32 - 1 - frac as i32));
                (NodeSpec::None, input_frac)
            }
            Op::Gated(kind) => {
                let ring = input.and_then(|v| self.rings.get(v)).copied().unwrap_or(wide);
                (NodeSpec::Gated(self.gated(name, *kind, ring, size)), frac)
            }
            Op::Route { top } => {
                self.route(name, stats);
                (NodeSpec::Route { top: *top }, frac)
            }
            Op::ScaleBlocks => {
                let ring = wide - frac;
                self.check(name, "the scaled blocks", size, self.choice.limit(ring));
                (NodeSpec::Scale(ScaleSpec { truncate: frac, ring }), frac)
            }
            Op::Experts { top, activation, experts } => {
                let out = self.linear_frac(name);
                (self.experts(name, *top, *activation, experts, [input_frac, out], stats), out)
            }
            Op::FirstRow | Op::LastRow => (NodeSpec::None, input_frac),
        }
    }

    /// The numbers of a gated product of this size, whose halves come in `ring`.
    fn gated(&mut self, name: &str, kind: Activation, ring: u32, size: f64) -> GatedSpec {
        let Numerics { wide, frac } = self.choice.formats;
        let ring_out = if wide == 32 { wide } else { wide - frac };
        let mut function = activation(kind, self.choice.profile, frac, ring);
        if let ActivationSpec::Gate(gate) = &mut function {
            gate.ring = ring_out + frac;
        }
        self.check(name, "the gated product", size, self.choice.limit(ring_out));
        GatedSpec { activation: function, truncate: frac, ring: ring_out }
    }

    /// The numbers of experts behind a public gate, which read and give values at these scales.
    fn experts(
        &mut self,
        name: &str,
        top: usize,
        kind: Activation,
        experts: &[Expert],
        [input_frac, out]: [u32; 2],
        stats: &NodeStats,
    ) -> NodeSpec {
        let Numerics { wide, frac } = self.choice.formats;
        let seen = stats.experts.unwrap_or_default();
        let [sum, up, gated, down] = [stats.max_abs, seen.up, seen.gated, seen.down].map(|v| f64::from(v) * MARGIN);
        self.route(name, stats);
        let up_frac = self.weight_frac(name, input_frac, up);
        let down_frac = self.weight_frac(name, frac, down);
        for Expert { up, down } in experts {
            self.tensor(up, wide, up_frac, 1.0, true);
            self.tensor(down, wide, down_frac, 1.0, true);
        }
        let truncate = input_frac + up_frac - frac;
        let mut ring = bits_of(up, frac).min(wide - truncate);
        let gated = self.gated(name, kind, ring, gated);
        if let ActivationSpec::Gate(gate) = &gated.activation {
            ring = ring.max(gate.body_ring);
        }
        let up = LinearSpec { weight_frac: up_frac, truncate, ring };
        let truncate = frac + down_frac - out;
        let down = LinearSpec { weight_frac: down_frac, truncate, ring: wide - truncate };
        // The sum is taken in wide lanes.
        let combine = ScaleSpec { truncate: frac, ring: if wide == 32 { wide } else { wide - frac } };
        self.check(name, "the sum over experts", sum, power(combine.ring as i32 - 2 - out as i32));
        NodeSpec::Experts { top, up, gated, down, combine }
    }

    /// Takes the scores of experts into account: those of all but the top fall [`ROUTE_DROP`] further, of which a decoder's scores
    /// have room for the distance of a bound.
    fn route(&mut self, name: &str, stats: &NodeStats) {
        let spread = stats.route.map_or(0.0, |r| f64::from(r.max_spread).max(f64::from(r.max_score)) * MARGIN);
        self.scores(name, spread + ROUTE_DROP - BOUND_DISTANCE, BOUND_DISTANCE);
    }

    /// Takes the scores of an attention into account; the largest of its values.
    fn attention(&mut self, name: &str, seen: Option<&AttentionStats>, beside: f64) -> f64 {
        let spread = seen.map_or(0.0, |a| f64::from(a.max_spread).max(f64::from(a.max_score)) * MARGIN);
        self.scores(name, spread, beside);
        seen.map_or(1.0, |a| f64::from(a.max_value) * MARGIN).max(1.0)
    }

    /// Differences of scores must stay `beside` below half of what an exponent holds: twice the spread, where one of the two is
    /// padded, is within its range.
    fn scores(&mut self, name: &str, spread: f64, beside: f64) {
        self.check(name, "the spread of scores", spread, power((EXP_LOG2_RANGE + EXP_TOP_BITS) as i32 - 1) - beside);
        self.spread = self.spread.max(spread);
    }

    fn check(&mut self, name: &str, what: &'static str, seen: f64, limit: f64) {
        // What is not a number does not fit.
        if seen.is_nan() || seen >= limit {
            let profile = self.choice.profile;
            self.problems.push(NoHeadroom { name: name.to_owned(), what, seen, limit, profile });
        }
    }

    fn tensor(&mut self, name: &str, ring: u32, frac: u32, factor: f64, matrix: bool) {
        let lane_bits = if ring <= 32 { 32 } else { 64 };
        self.tensors.insert(name.to_owned(), TensorFormat { lane_bits, ring, frac, factor, matrix, public: false });
    }

    /// Whether the node reads an activation, or an activation reads it.
    fn beside_activation(&self, name: &str) -> bool {
        let nodes = &self.graph.nodes;
        let activation = |op: &Op| matches!(op, Op::Activation(_) | Op::Gated(_));
        let activates = |value: usize| value.checked_sub(1).is_some_and(|i| activation(&nodes[i].op));
        let Some(index) = nodes.iter().position(|n| n.name == name) else { return false };
        let read = nodes.iter().any(|n| n.inputs.contains(&(index + 1)) && activation(&n.op));
        read || nodes[index].inputs.iter().any(|&v| activates(v))
    }

    /// A table is looked up at the finest scale that the LayerNorm after it can centre in the wide ring.
    fn lookup(&mut self, table: &str, size: f64) -> LookupSpec {
        let width = self.graph.tensor_spec(table).map_or(1, |t| t.cols) as f64;
        let wide = self.choice.formats.wide;
        if self.graph.is_decoder() {
            // The head of the residual stream, which later layers are added to.
            self.tensor(table, wide, self.residual_frac, 1.0, false);
            return LookupSpec { frac: self.residual_frac };
        }
        let room = f64::from(wide) - 3.0 - (size.max(1e-3) * 2.0 * width).log2();
        let frac = (room.floor() as u32).clamp(4, 24);
        self.tensor(table, wide, frac, 1.0, false);
        LookupSpec { frac }
    }

    fn linear(
        &mut self,
        name: &str,
        weight: &str,
        bias: Option<&str>,
        [input_frac, frac]: [u32; 2],
        size: f64,
    ) -> LinearSpec {
        let wide = self.choice.formats.wide;
        // Scores of tokens leave half of their ring's room for the noise that one is chosen with.
        let chosen = self.graph.is_decoder() && self.graph.nodes.last().is_some_and(|last| last.name == name);
        if chosen {
            self.check(name, "the largest score", size, LARGEST_SCORE);
        }
        let weight_frac = self.weight_frac(name, input_frac, if chosen { 2.0 * size } else { size });
        let truncate = input_frac + weight_frac - frac;
        self.tensor(weight, wide, weight_frac, 1.0, true);
        if let Some(bias) = bias {
            self.tensor(bias, wide, input_frac + weight_frac, 1.0, false);
        }
        // Beside an activation a smaller ring is fewer bytes; elsewhere what is saved here is paid for by the extension. A sum
        // that is kept narrow must fit it as well.
        let needed = bits_of(size, frac).max(self.bits_of_sums(name, frac));
        let ring = if self.beside_activation(name) { needed.min(wide - truncate) } else { wide - truncate };
        LinearSpec { weight_frac, truncate, ring }
    }

    /// The scale of weights: as fine as products of this size allow.
    fn weight_frac(&mut self, name: &str, input_frac: u32, size: f64) -> u32 {
        let wide = self.choice.formats.wide;
        let limit = |weight_frac: u32| power((wide - input_frac - weight_frac) as i32 - 2);
        let least = self.choice.least_weight_frac;
        (least..=self.choice.weight_frac).rev().find(|&f| size < limit(f)).unwrap_or_else(|| {
            self.check(name, "the result", size, limit(least));
            least
        })
    }

    /// Bits that the largest sum takes which reads this node.
    fn bits_of_sums(&self, name: &str, frac: u32) -> u32 {
        let nodes = &self.graph.nodes;
        let Some(index) = nodes.iter().position(|n| n.name == name) else { return 0 };
        let sums = nodes.iter().filter(|n| matches!(n.op, Op::Add) && n.inputs.contains(&(index + 1)));
        let size = |n: &Node| self.ranges.node(&n.name).map_or(0.0, |stats| f64::from(stats.max_abs) * MARGIN);
        sums.map(|n| bits_of(size(n), frac)).max().unwrap_or(0)
    }

    /// The ring of a sum that takes `needed` bits: the smallest in which its operands come. An operand comes in its own ring
    /// where that holds the sum and no linear layer has had it widened before, else in the wide one.
    fn sum_ring(&self, name: &str, inputs: &[usize], needed: u32) -> u32 {
        let (nodes, wide) = (&self.graph.nodes, self.choice.formats.wide);
        let index = nodes.iter().position(|n| n.name == name).unwrap_or(0);
        let widened = |value: usize| {
            nodes[..index].iter().any(|n| matches!(n.op, Op::Linear { .. }) && n.inputs.contains(&value))
        };
        let comes = |&value: &usize| match self.rings.get(value) {
            Some(&ring) if ring >= needed && !widened(value) => ring,
            _ => wide,
        };
        inputs.iter().map(comes).min().unwrap_or(wide)
    }

    #[allow(clippy::too_many_arguments)]
    fn norm(
        &mut self,
        name: &str,
        gain: &str,
        bias: Option<&str>,
        eps: f64,
        width: usize,
        input_frac: u32,
        seen: &NormStats,
    ) -> NormSpec {
        let Choice { norm_ring: ring, gain_frac, .. } = self.choice;
        let frac = self.choice.formats.frac;
        let [norm_bits, mut square_bits] = [self.choice.norm_bits, self.choice.square_bits].map(f64::from);
        if self.graph.is_decoder() {
            // What the elements of a row are off by counts less the more of them there are; a root that is off stretches all scores of its
            // row, and a decoder's are large.
            let wanted = if self.choice.profile == Profile::Fast { 11.0 } else { 17.0 };
            square_bits = square_bits.max(wanted - (width as f64).log2() / 2.0);
        }
        let largest = (f64::from(seen.variance.max) * VARIANCE_MARGIN + eps).max(1e-30);
        let smallest =
            (f64::from(seen.variance.min) / VARIANCE_MARGIN + eps).max(largest * power(-(MAX_OCTAVES as i32)));
        // d = width (x - mean) 2^input_frac, or x 2^input_frac; in units of d, the least deviation of a row.
        let centred = bias.is_some();
        let width_log2 = (width as f64).log2();
        let lift = if centred { width_log2 } else { 0.0 };
        let deviation = lift + f64::from(input_frac) + smallest.log2() / 2.0;
        let bits = |v: f64| v.max(0.0) as u32;

        // The gain is multiplied by d at `norm_bits` and two bits of the least deviation, or at two bits beyond those of x. The
        // scaled row keeps `norm_bits`.
        let shift = bits((lift - 2.0).max(deviation - norm_bits - 2.0));
        let factor = NormSpec::gain_factor(width);
        let scaled_truncate = bits(deviation + factor.log2() + f64::from(gain_frac) - f64::from(shift) - norm_bits);
        let scale = lift + factor.log2() + f64::from(input_frac + gain_frac) - f64::from(shift + scaled_truncate);
        let scaled = f64::from(seen.max_scaled) * MARGIN;
        let room = 64.0 - 2.0 - f64::from(shift + scaled_truncate) - scale;
        self.check(name, "the centred input times its gain", scaled, room.exp2() / HEADROOM);
        let scaled_ring = 2 + bits(((HEADROOM * scaled).log2() + scale).ceil()).clamp(2, 62 - shift - scaled_truncate);

        // v = sum d^2 of a d with `square_bits` of the least deviation; coarser where that does not fit 64 bits.
        let v_log2 = |variance: f64, shift: u32| {
            2.0 * lift + width_log2 + variance.log2() + 2.0 * (f64::from(input_frac) - f64::from(shift))
        };
        let high = |shift: u32| (v_log2(largest, shift).ceil().max(0.0) as u32).max(16);
        let square_shift = (bits(deviation - square_bits)..62).find(|&s| high(s) + 2 + s <= 64).unwrap_or(40);
        let high = high(square_shift);
        let extended = (high + 2 + square_shift).max(scaled_ring + scaled_truncate + shift);
        let low = bits(v_log2(smallest, square_shift)).max(4).clamp(high.saturating_sub(MAX_OCTAVES), high - 1);
        let v_shift = low.saturating_sub(self.choice.variance_bits) & !1;
        let (low, high) = (low - v_shift, high - v_shift);

        // The root keeps `root_bits` where it is smallest. Its lines are evaluated in 64 bits; if their slopes allow, they leave
        // the ring of the last product at once.
        let frac_out = self.choice.root_bits + high.div_ceil(2);
        let mut spec = NormSpec {
            centred,
            extended,
            shift,
            gain_frac,
            scaled_truncate,
            scaled_ring,
            square_shift,
            epsilon: ((eps * v_log2(1.0, square_shift).exp2()).round() as i64).max(1),
            v_shift,
            inverse: InverseSpec::new(0.5, low, high, 1, 64, 64, frac_out),
            truncate: 0,
            ring,
        };
        spec.truncate = bits((spec.product_frac(width) - i64::from(frac)) as f64);
        let fits = frac_out + 3 - low / 2;
        let precise = (frac_out + 64).saturating_sub(3 * high / 2 + self.choice.slope_bits);
        let ring_out = (ring + spec.truncate).min(precise.max(fits));
        spec.inverse = InverseSpec::new(0.5, low, high, self.choice.root_per_octave, 64, ring_out, frac_out);
        self.tensor(gain, 64, gain_frac, factor, false);
        if let Some(bias) = bias {
            self.tensor(bias, 64, frac + spec.truncate, 1.0, false);
        }
        spec
    }
}

/// Bounds for maxima of rows that calibration saw between these; room for half of that range above, where a row that goes beyond
/// is lost, and for a quarter below, where it loses precision.
fn bound((lowest, highest): (f64, f64), profile: Profile) -> BoundSpec {
    let range = (highest - lowest).max(8.0);
    let lowest = (lowest - range / 4.0).floor();
    let whole = highest + range / 2.0 - lowest;
    let step = if profile == Profile::Precise || whole <= FINE_BOUNDS { 1 } else { BOUND_STEP };
    BoundSpec { lowest: lowest as i64, step, steps: (whole / f64::from(step)).ceil() as u32 + 1 }
}

/// Bits that a value of this size takes, with headroom and the two that an extension needs.
pub(crate) fn bits_of(size: f64, frac: u32) -> u32 {
    2 + frac + (HEADROOM * size.max(1.0)).log2().ceil() as u32
}

/// An activation read by linear layers alone leaves in the ring of their product, if that is smaller than its own; the
/// linear layer that it reads, or the sum of that and a change of low rank, leaves a ring that holds the body of its function.
fn fit_activations(graph: &Graph, nodes: &mut [NodeSpec]) {
    for index in 0..nodes.len() {
        let readers = graph.nodes.iter().zip(nodes.iter()).filter(|(node, _)| node.inputs.contains(&(index + 1)));
        let product = |spec: &NodeSpec| match spec {
            NodeSpec::Linear(linear) => linear.ring + linear.truncate,
            _ => u32::MAX,
        };
        let needed = readers.map(|(_, spec)| product(spec)).max().unwrap_or(u32::MAX);
        let gate = match &mut nodes[index] {
            NodeSpec::Activation(ActivationSpec::Gate(gate) | ActivationSpec::Odd(gate)) => {
                gate.ring = gate.ring.min(needed);
                gate
            }
            NodeSpec::Gated(GatedSpec { activation: ActivationSpec::Gate(gate), .. }) => gate,
            _ => continue,
        };
        // The argument is added to the series' value, in its ring.
        let body_ring = gate.body_ring;
        let source = graph.nodes[index].inputs.first().and_then(|value| value.checked_sub(1));
        let source = source.map(|at| &mut nodes[at]);
        if let Some(NodeSpec::Linear(LinearSpec { ring, .. }) | NodeSpec::Add { ring }) = source {
            *ring = body_ring.max(*ring);
        }
    }
}
