//! The numbers of a model: rings, scales and approximations for every operation and every tensor, chosen from its weights'
//! calibration. A ring that overflows is silent and ruins the answer, so what has no headroom is refused here, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tercet_core::fit::Series;
use tercet_core::spec::{
    ActivationSpec, AttentionSpec, EXP_LOG2_RANGE, EXP_TOP_BITS, GATE_FRAC, GateSpec, InverseSpec, LinearSpec,
    LookupSpec, NormSpec, Numerics,
};
use tercet_model::graph::{Activation, Graph, Input, Node, Op};
use tercet_model::{Interface, NodeStats, NormStats, Ranges, RowInput};

/// How many bits everything takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Linear layers in `Z_2^32`, activations at 10 fractional bits, weights at 12.
    Fast,
    /// Linear layers in `Z_2^64`, activations and weights at 16 fractional bits.
    Precise,
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Profile, String> {
        match text {
            "fast" => Ok(Profile::Fast),
            "precise" => Ok(Profile::Precise),
            other => Err(format!("no profile {other}: fast or precise")),
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Profile::Fast => "fast",
            Profile::Precise => "precise",
        })
    }
}

/// The numbers of one node of a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NodeSpec {
    /// Of a lookup.
    Lookup(LookupSpec),
    /// Of a linear layer.
    Linear(LinearSpec),
    /// Of a LayerNorm.
    Norm(NormSpec),
    /// Of an attention: the largest value it may meet. The rest depends on the number of rows.
    Attention {
        /// Largest absolute element of the values, with margin.
        max_value: f64,
    },
    /// Of an activation.
    Activation(ActivationSpec),
    /// Of a sum.
    Add {
        /// Its ring, which its operands are reduced to.
        ring: u32,
    },
    /// Nothing to choose.
    None,
}

/// How a named tensor is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorFormat {
    /// 32 or 64.
    pub lane_bits: u32,
    /// Its ring.
    pub ring: u32,
    /// Fractional bits.
    pub frac: u32,
    /// Multiplied in before encoding.
    pub factor: f64,
    /// Whether it is the right-hand matrix of a linear layer, kept ready for its product.
    pub matrix: bool,
}

/// Everything that a suite needs to know beyond the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelNumerics {
    /// The profile it was made for.
    pub profile: Profile,
    /// Formats between operations.
    pub formats: Numerics,
    /// By node of the graph.
    pub nodes: Vec<NodeSpec>,
    /// By tensor name.
    pub tensors: BTreeMap<String, TensorFormat>,
    /// Ring of attention scores: holds the difference of any two, one of them padded.
    pub score_ring: u32,
    /// What is added to the scores of a padded key, at the scale of activations: more than any two scores differ by.
    pub padding_bias: i64,
    /// Whether the embedding table is public: the client looks up by itself.
    pub public_table: bool,
}

/// A value that does not fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name}: {what} reaches {seen:.1}, and there is headroom for {limit:.1} in profile {profile}")]
pub struct NoHeadroom {
    /// The node.
    pub name: String,
    /// Which of its values.
    pub what: &'static str,
    /// Its size in calibration, margin included.
    pub seen: f64,
    /// What fits.
    pub limit: f64,
    /// Where it does not fit.
    pub profile: Profile,
}

/// Calibrated sizes are multiplied by this before rings are chosen.
const MARGIN: f64 = 1.25;
/// Where a ring may be chosen freely, it holds this many times the calibrated size with its margin.
const HEADROOM: f64 = 1.5;
/// Calibrated variances are multiplied, and divided, by this.
const VARIANCE_MARGIN: f64 = 4.0;
/// Whole bits of a difference of scores at least: room for inputs unlike those of the calibration.
const LEAST_SCORE_BITS: u32 = 7;
/// Segments of an inverse root start at most this many octaves below their end.
const MAX_OCTAVES: u32 = 24;

/// What a profile fixes for every model.
struct Choice {
    profile: Profile,
    formats: Numerics,
    weight_frac: u32,
    least_weight_frac: u32,
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
    inverse_per_octave: u32,
}

impl Choice {
    fn of(profile: Profile) -> Choice {
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

fn power(exponent: i32) -> f64 {
    f64::from(exponent).exp2()
}

/// Chooses the numbers of a model, or says everything that has no headroom.
pub fn choose(
    graph: &Graph,
    ranges: &Ranges,
    profile: Profile,
    public_table: bool,
) -> Result<ModelNumerics, Vec<NoHeadroom>> {
    let choice = Choice::of(profile);
    let mut chooser = Chooser {
        choice,
        graph,
        ranges,
        problems: Vec::new(),
        tensors: BTreeMap::new(),
        fracs: Vec::new(),
        rings: Vec::new(),
        spread: 0.0,
    };
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
                NodeSpec::Add { ring } => *ring,
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
    // A padded key must fall at least 16 below the largest score, where its exponential is zero.
    let padding = (spread + 16.0).ceil();
    let score_ring = 1 + frac + ((spread + padding).log2().ceil() as u32).max(LEAST_SCORE_BITS);
    let padding_bias = -((padding as i64) << frac);
    Ok(ModelNumerics { profile, formats: choice.formats, nodes, tensors, score_ring, padding_bias, public_table })
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
    /// Largest difference between two scores, with margin.
    spread: f64,
}

impl Chooser<'_> {
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
            Op::AddRows { rows: tensor } | Op::PrependRow { row: tensor } => {
                self.tensor(tensor, wide, input_frac, 1.0, false);
                (NodeSpec::None, input_frac)
            }
            Op::Linear { weight, bias } => (NodeSpec::Linear(self.linear(name, weight, bias, input_frac, size)), frac),
            Op::LayerNorm { gain, bias, eps } => {
                let width = input.map_or(1, |v| self.graph.width(v));
                let variance = tercet_model::Span { min: 0.0, max: 1.0 };
                let seen = stats.norm.unwrap_or(NormStats { variance, max_centred: 1.0, max_scaled: 1.0 });
                self.check(name, "the result", size, self.choice.limit(self.choice.norm_ring));
                let spec = self.norm(name, gain, bias, *eps, width, input_frac, &seen);
                (NodeSpec::Norm(spec), frac)
            }
            Op::Attention { .. } => {
                let seen = stats.attention.as_ref();
                let spread = seen.map_or(0.0, |a| f64::from(a.max_spread).max(f64::from(a.max_score)) * MARGIN);
                // Twice the spread, where one of the two is padded, must stay within the exponent's range.
                self.check(
                    name,
                    "the spread of scores",
                    spread,
                    power((EXP_LOG2_RANGE + EXP_TOP_BITS) as i32 - 1) - 16.0,
                );
                self.spread = self.spread.max(spread);
                let max_value = seen.map_or(1.0, |a| f64::from(a.max_value) * MARGIN).max(1.0);
                (NodeSpec::Attention { max_value }, frac)
            }
            Op::Add => {
                self.check(name, "the sum", size, power(wide as i32 - 2 - frac as i32));
                (NodeSpec::Add { ring: self.sum_ring(name, inputs, bits_of(size, input_frac)) }, input_frac)
            }
            Op::Activation(kind) => {
                let ring = input.and_then(|v| self.rings.get(v)).copied().unwrap_or(wide);
                (NodeSpec::Activation(activation(*kind, self.choice.profile, ring)), frac)
            }
            Op::MeanRows => {
                let largest = size * self.graph.max_rows() as f64;
                self.check(name, "the sum over rows", largest, power(wide as i32 - 1 - frac as i32));
                (NodeSpec::None, input_frac)
            }
            Op::FirstRow => (NodeSpec::None, input_frac),
        }
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
        self.tensors.insert(name.to_owned(), TensorFormat { lane_bits, ring, frac, factor, matrix });
    }

    /// Whether the node reads an activation, or an activation reads it.
    fn beside_activation(&self, name: &str) -> bool {
        let nodes = &self.graph.nodes;
        let activates = |value: usize| value.checked_sub(1).is_some_and(|i| matches!(nodes[i].op, Op::Activation(_)));
        let Some(index) = nodes.iter().position(|n| n.name == name) else { return false };
        let read = nodes.iter().any(|n| n.inputs.contains(&(index + 1)) && matches!(n.op, Op::Activation(_)));
        read || nodes[index].inputs.iter().any(|&v| activates(v))
    }

    /// A table is looked up at the finest scale that the LayerNorm after it can centre in the wide ring.
    fn lookup(&mut self, table: &str, size: f64) -> LookupSpec {
        let width = self.graph.tensor_spec(table).map_or(1, |t| t.cols) as f64;
        let wide = self.choice.formats.wide;
        let room = f64::from(wide) - 3.0 - (size.max(1e-3) * 2.0 * width).log2();
        let frac = (room.floor() as u32).clamp(4, 24);
        self.tensor(table, wide, frac, 1.0, false);
        LookupSpec { frac }
    }

    fn linear(&mut self, name: &str, weight: &str, bias: &str, input_frac: u32, size: f64) -> LinearSpec {
        let Numerics { wide, frac } = self.choice.formats;
        let fits = |weight_frac: u32| size < self.choice.limit(wide - (input_frac + weight_frac - frac));
        let weight_frac =
            (self.choice.least_weight_frac..=self.choice.weight_frac).rev().find(|&f| fits(f)).unwrap_or_else(|| {
                let least = self.choice.least_weight_frac;
                let limit = self.choice.limit(wide - (input_frac + least - frac));
                self.check(name, "the result", size, limit);
                least
            });
        let truncate = input_frac + weight_frac - frac;
        self.tensor(weight, wide, weight_frac, 1.0, true);
        self.tensor(bias, wide, input_frac + weight_frac, 1.0, false);
        // Beside an activation a smaller ring is fewer bytes; elsewhere what is saved here is paid for by the extension. A sum
        // that is kept narrow must fit it as well.
        let needed = bits_of(size, frac).max(self.bits_of_sums(name, frac));
        let ring = if self.beside_activation(name) { needed.min(wide - truncate) } else { wide - truncate };
        LinearSpec { weight_frac, truncate, ring }
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
        bias: &str,
        eps: f64,
        width: usize,
        input_frac: u32,
        seen: &NormStats,
    ) -> NormSpec {
        let Choice { norm_ring: ring, gain_frac, .. } = self.choice;
        let frac = self.choice.formats.frac;
        let [norm_bits, square_bits] = [self.choice.norm_bits, self.choice.square_bits].map(f64::from);
        let largest = (f64::from(seen.variance.max) * VARIANCE_MARGIN + eps).max(1e-30);
        let smallest =
            (f64::from(seen.variance.min) / VARIANCE_MARGIN + eps).max(largest * power(-(MAX_OCTAVES as i32)));
        // d = width (x - mean) 2^input_frac; in units of d, the least deviation of a row.
        let width_log2 = (width as f64).log2();
        let deviation = width_log2 + f64::from(input_frac) + smallest.log2() / 2.0;
        let bits = |v: f64| v.max(0.0) as u32;

        // The gain is multiplied by d at `norm_bits` and two bits of the least deviation, or at two bits beyond those of x. The
        // scaled row keeps `norm_bits`.
        let shift = bits((width_log2 - 2.0).max(deviation - norm_bits - 2.0));
        let factor = NormSpec::gain_factor(width);
        let scaled_truncate = bits(deviation + factor.log2() + f64::from(gain_frac) - f64::from(shift) - norm_bits);
        let scale = width_log2 + factor.log2() + f64::from(input_frac + gain_frac) - f64::from(shift + scaled_truncate);
        let scaled = f64::from(seen.max_scaled) * MARGIN;
        let room = 64.0 - 2.0 - f64::from(shift + scaled_truncate) - scale;
        self.check(name, "the centred input times its gain", scaled, room.exp2() / HEADROOM);
        let scaled_ring = 2 + bits(((HEADROOM * scaled).log2() + scale).ceil()).clamp(2, 62 - shift - scaled_truncate);

        // v = sum d^2 of a d with `square_bits` of the least deviation; coarser where that does not fit 64 bits.
        let v_log2 = |variance: f64, shift: u32| {
            3.0 * width_log2 + variance.log2() + 2.0 * (f64::from(input_frac) - f64::from(shift))
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
        self.tensor(bias, 64, frac + spec.truncate, 1.0, false);
        spec
    }
}

/// Bits that a value of this size takes, with headroom and the two that an extension needs.
fn bits_of(size: f64, frac: u32) -> u32 {
    2 + frac + (HEADROOM * size.max(1.0)).log2().ceil() as u32
}

/// An activation read by linear layers alone leaves in the ring of their product, if that is smaller than its own; the
/// linear layer that it reads leaves a ring that holds the body of its function.
fn fit_activations(graph: &Graph, nodes: &mut [NodeSpec]) {
    for index in 0..nodes.len() {
        let readers = graph.nodes.iter().zip(nodes.iter()).filter(|(node, _)| node.inputs.contains(&(index + 1)));
        let product = |spec: &NodeSpec| match spec {
            NodeSpec::Linear(linear) => linear.ring + linear.truncate,
            _ => u32::MAX,
        };
        let needed = readers.map(|(_, spec)| product(spec)).max().unwrap_or(u32::MAX);
        let NodeSpec::Activation(ActivationSpec::Gate(gate) | ActivationSpec::Odd(gate)) = &mut nodes[index] else {
            continue;
        };
        gate.ring = gate.ring.min(needed);
        // The argument is added to the series' value, in its ring.
        let body_ring = gate.body_ring;
        let source = graph.nodes[index].inputs.first().and_then(|value| value.checked_sub(1));
        if let Some(NodeSpec::Linear(linear)) = source.map(|at| &mut nodes[at]) {
            linear.ring = linear.ring.max(body_ring);
        }
    }
}

/// The numbers of an activation of values in a ring of `ring` bits.
fn activation(kind: Activation, profile: Profile, ring: u32) -> ActivationSpec {
    let (out, compare_ring) = match profile {
        Profile::Fast => (32, ring),
        Profile::Precise => (47, ring.min(30)),
    };
    if kind == Activation::Relu {
        return ActivationSpec::Relu { ring: if profile == Profile::Fast { 32 } else { 64 } };
    }
    let odd = kind == Activation::Tanh;
    let (edge, step, terms, scale) = match (profile, odd) {
        (Profile::Fast, false) => (4, 2, 4, 11),
        (Profile::Precise, false) => (5, 1, 10, 18),
        (Profile::Fast, true) => (6, 1, 14, 12),
        (Profile::Precise, true) => (6, 1, 18, 18),
    };
    // Comparisons are coarse: the series must hold a little beyond its edge.
    let edge_at = f64::from(edge) + 2.0 * power(-(GATE_FRAC as i32));
    let series = match kind {
        Activation::Gelu => Series::fit_even(|x| gelu(x) - x / 2.0, edge_at, 4, step, terms),
        Activation::GeluTanh => Series::fit_even(|x| gelu_tanh(x) - x / 2.0, edge_at, 4, step, terms),
        _ => Series::fit_odd(f64::tanh, edge_at, 4, step, terms),
    };
    // Room for |2h + x| <= 2 edge, and for its extension.
    let body_ring = if profile == Profile::Fast { 10 + 6 } else { 16 + 7 };
    let gate = GateSpec { series, edge, compare_ring, dealt_frac: scale, public_frac: scale, body_ring, ring: out };
    if odd { ActivationSpec::Odd(gate) } else { ActivationSpec::Gate(gate) }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
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

impl ModelNumerics {
    /// The numbers of an attention over `rows` rows.
    ///
    /// The product of exponentials and values must hold `rows * max_value`; that, and the sum of the exponentials, decide its
    /// ring. Up to 160 rows the inverse of the sums keeps its precision in one ring; beyond, and in `precise`, it leaves in
    /// a smaller one and is extended, for one round more.
    pub fn attention(&self, rows: usize, max_value: f64) -> AttentionSpec {
        let choice = Choice::of(self.profile);
        let frac = self.formats.frac;
        let long = rows > 160;
        let size = (rows as f64 * max_value).log2().ceil() as u32;
        let rows_log2 = (rows as f64).log2().ceil() as u32;
        let (exp_frac, exp_guard, out_ring, scale) = match self.profile {
            Profile::Fast => (if long { 11 } else { 12 }, (11, 24), 32, 20),
            Profile::Precise => (16, (16, 30), 36, 28),
        };
        let value_ring = exp_frac + frac + 2 + size;
        let exp_ring = if self.profile == Profile::Fast { value_ring } else { exp_frac + 4 };
        let normalize_ring = out_ring + scale;
        let (low, high) = (exp_frac - 1, exp_frac + rows_log2 + 1);
        let frac_out = scale + exp_frac;
        let one_ring = self.profile == Profile::Fast && !long;
        let ring_out = if one_ring { normalize_ring } else { scale + 4 };
        let per_octave = choice.inverse_per_octave;
        AttentionSpec {
            score_ring: self.score_ring,
            exp_frac,
            // An exponent is a difference of two scores.
            exp_top_bits: self.score_ring - 1 - frac - EXP_LOG2_RANGE,
            exp_guard,
            exp_ring,
            value_ring,
            inverse: InverseSpec::new(1.0, low, high, per_octave, 64, ring_out, frac_out),
            normalize_ring,
            ring: out_ring,
        }
    }

    /// What a client must know.
    pub fn interface(&self, graph: &Graph, output_ring: u32) -> Interface {
        let Numerics { wide, frac } = self.formats;
        let rows = match (&graph.input, &graph.nodes.first().map(|n| &n.op)) {
            (Input::Tokens { vocab, .. }, Some(Op::Lookup { table })) => {
                let frac = self.tensors.get(table).map_or(frac, |t| t.frac);
                if self.public_table {
                    RowInput::Matrix { width: graph.width(1), frac }
                } else {
                    RowInput::Lookup { entries: *vocab, domain_bits: vocab.next_power_of_two().trailing_zeros().max(1) }
                }
            }
            _ => RowInput::Matrix { width: graph.width(0), frac },
        };
        Interface {
            input: graph.input.clone(),
            output: graph.output.clone(),
            max_rows: graph.max_rows(),
            wide,
            rows,
            score_ring: self.score_ring,
            padding_bias: self.padding_bias,
            output_ring,
            output_frac: frac,
            output_is_sum: matches!(graph.nodes.last().map(|n| &n.op), Some(Op::MeanRows)),
            output_width: graph.width(graph.nodes.len()),
        }
    }
}
