//! The numbers of an adapted model: those of its base where the base is, and new ones for the changes of low rank.
//!
//! The tensors of the base were encoded for the numbers that it has, so these stay; what an adapter may do to the values on the way
//! is held to the room that they leave.

use tercet_core::spec::{ActivationSpec, GatedSpec, LinearSpec, ScaleSpec};
use tercet_model::graph::{Graph, Node, Op};
use tercet_model::{AttentionStats, Model, NodeStats, NormStats, Ranges};

use crate::chooser::{Choice, MARGIN, ROUTE_DROP, VARIANCE_MARGIN, bits_of, power};
use crate::manifest::{Base, Manifest};
use crate::numerics::{ModelNumerics, NoHeadroom, NodeSpec, TensorFormat};

/// Why a model cannot stand on a base.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdaptError {
    /// It is not that base with changes of low rank.
    #[error("it is no adapted form of model {base:?}: {what}")]
    AnotherBase {
        /// The base.
        base: String,
        /// Where they differ.
        what: String,
    },
    /// With the adapter values leave the room that the base's numbers give them.
    #[error("the adapter makes values too large for the numbers of its base: {}", listed(.0))]
    NoHeadroom(Vec<NoHeadroom>),
}

fn listed(problems: &[NoHeadroom]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// The numbers of an adapted model, and what it borrows. `base_ranges` are those that the base's numbers were chosen from,
/// `ranges` those of the model with its adapter on the same inputs.
///
/// A change of low rank leaves its result at the scale of the layer `X` that it changes, and their sum is in `X`'s own ring. A value
/// of the base may be larger than its numbers were chosen for as far as their margin goes, or the ring it is in.
///
/// # Errors
/// The model is not this base with changes of low rank, or everything that has no headroom.
pub fn adapt(
    base: &Manifest,
    base_ranges: &Ranges,
    model: &Model,
    ranges: &Ranges,
) -> Result<(ModelNumerics, Base), AdaptError> {
    let another = |what: String| AdaptError::AnotherBase { base: base.name.clone(), what };
    if base.base.is_some() {
        return Err(another("it is an adapter itself; stand on its base".into()));
    }
    let mut adapting = Adapting {
        base,
        base_ranges,
        ranges,
        graph: &model.graph,
        choice: Choice::of_graph(base.numerics.profile, &base.graph),
        numerics: ModelNumerics { nodes: Vec::new(), ..base.numerics.clone() },
        problems: Vec::new(),
        values: vec![(0, base.numerics.formats.frac, base.numerics.formats.wide)],
    };
    adapting.nodes().map_err(another)?;
    let Adapting { numerics, problems, .. } = adapting;
    if !problems.is_empty() {
        return Err(AdaptError::NoHeadroom(problems));
    }
    let borrowed = |name: &String| base.graph.tensor_spec(name) == model.graph.tensor_spec(name);
    let tensors = base.graph.tensors.iter().map(|spec| spec.name.clone()).collect();
    if let Some(name) = base.graph.tensors.iter().map(|spec| &spec.name).find(|name| !borrowed(name)) {
        return Err(another(format!("{name} has another shape")));
    }
    let digest = base.digest().map_err(|error| another(error.to_string()))?;
    Ok((numerics, Base { name: base.name.clone(), digest, tensors }))
}

struct Adapting<'a> {
    base: &'a Manifest,
    base_ranges: &'a Ranges,
    ranges: &'a Ranges,
    graph: &'a Graph,
    choice: Choice,
    numerics: ModelNumerics,
    problems: Vec<NoHeadroom>,
    /// Of every value so far the value of the base that it stands for, its scale and its ring.
    values: Vec<(usize, u32, u32)>,
}

impl<'a> Adapting<'a> {
    /// All nodes in order: those of the base, and after a linear layer those that change it.
    fn nodes(&mut self) -> Result<(), String> {
        let graph = self.graph;
        let mut at = 0;
        for (index, of_base) in self.base.graph.nodes.iter().enumerate() {
            let differs = || format!("{} is not there as it has it", of_base.name);
            let node = graph.nodes.get(at).ok_or_else(differs)?;
            let read = node.inputs.iter().map(|&value| self.values.get(value).map(|v| v.0)).collect::<Option<Vec<_>>>();
            if (&node.name, &node.op) != (&of_base.name, &of_base.op) || read.as_ref() != Some(&of_base.inputs) {
                return Err(differs());
            }
            let spec = self.base.numerics.nodes.get(index).cloned().ok_or_else(differs)?;
            self.check(node, &spec, &node.name);
            let (frac, ring) = self.leaves(node, &spec);
            self.values.push((index + 1, frac, ring));
            at += 1;
            if let (NodeSpec::Linear(whole), Some([down, up, sum])) = (&spec, self.change(at)) {
                self.numerics.nodes.push(spec.clone());
                self.low_rank(whole, index + 1, frac, [down, up]);
                self.check(node, &NodeSpec::Linear(*whole), &sum.name);
                self.numerics.nodes.push(NodeSpec::Add { ring });
                self.values.push((index + 1, frac, ring));
                at += 3;
            } else {
                self.numerics.nodes.push(spec);
            }
        }
        let rest = graph.nodes.get(at).map_or(Ok(()), |node| Err(format!("it has no {}", node.name)));
        rest.and(if graph.input == self.base.graph.input { Ok(()) } else { Err("it reads other inputs".into()) })
    }

    /// The change of the linear layer that ends before node `at`: what leads down, up, and their sum.
    fn change(&self, at: usize) -> Option<[&'a Node; 3]> {
        let [down, up, sum] = self.graph.nodes.get(at..at + 3)? else { return None };
        let reads = |node: &Node, values: &[usize]| node.inputs == values;
        let whole = &self.graph.nodes[at - 1];
        let is_change = self.graph.is_low_rank_sum(at + 2)
            && reads(down, &whole.inputs)
            && reads(up, &[at + 1])
            && reads(sum, &[at, at + 2]);
        is_change.then_some([down, up, sum])
    }

    /// The scale and the ring in which a node of the base leaves its value.
    fn leaves(&self, node: &Node, spec: &NodeSpec) -> (u32, u32) {
        let formats = self.numerics.formats;
        let (_, frac, ring) = node.inputs.first().map_or((0, formats.frac, formats.wide), |&value| self.values[value]);
        match spec {
            NodeSpec::Lookup(spec) => (spec.frac, formats.wide),
            NodeSpec::Linear(spec) => (frac + spec.weight_frac - spec.truncate, spec.ring),
            NodeSpec::Norm(spec) => (formats.frac, spec.ring),
            NodeSpec::Add { ring } => (frac, *ring),
            NodeSpec::Gated(GatedSpec { ring, .. }) | NodeSpec::Scale(ScaleSpec { ring, .. }) => (formats.frac, *ring),
            NodeSpec::Activation(ActivationSpec::Gate(gate) | ActivationSpec::Odd(gate)) => (formats.frac, gate.ring),
            NodeSpec::Activation(ActivationSpec::Relu { ring }) => (formats.frac, *ring),
            NodeSpec::Experts { down, combine, .. } => (formats.frac + down.weight_frac - down.truncate, combine.ring),
            NodeSpec::Attention { .. } | NodeSpec::Causal { .. } | NodeSpec::Route { .. } => {
                (formats.frac, formats.wide)
            }
            NodeSpec::None => match node.op {
                Op::FirstRow | Op::LastRow => (frac, ring),
                _ => (frac, formats.wide),
            },
        }
    }

    /// The numbers of a change of `whole`, whose value stands for `value` of the base at scale `frac`.
    fn low_rank(&mut self, whole: &LinearSpec, value: usize, frac: u32, [down, up]: [&Node; 2]) {
        let (wide, middle) = (self.numerics.formats.wide, self.numerics.formats.frac);
        let (_, frac_in, ring_in) = down.inputs.first().map_or((0, middle, wide), |&value| self.values[value]);
        // What `whole` has had widened is wide for this one too; what it has not, is taken as it is if that is enough.
        let comes = if ring_in < whole.ring + whole.truncate { wide } else { ring_in };
        let inner = self.linear(down, [frac_in, middle], &[comes, wide], 0);
        // A result in the ring of the sum needs no widening.
        let outer = self.linear(up, [middle, frac], &[wide], whole.ring);
        self.values.push((value, middle, inner.ring));
        self.values.push((value, frac, outer.ring));
        self.numerics.nodes.extend([inner, outer].map(NodeSpec::Linear));
    }

    /// A linear layer whose product is in the first of these rings where the result fits, at the finest weights that leave at
    /// least `wanted` bits of it, if there are such.
    fn linear(&mut self, node: &Node, [frac_in, frac]: [u32; 2], rings: &[u32], wanted: u32) -> LinearSpec {
        let stats = self.ranges.node(&node.name);
        let size = stats.map_or(0.0, |stats| f64::from(stats.max_abs) * MARGIN);
        let Choice { weight_frac: finest, least_weight_frac: least, .. } = self.choice;
        let wide = self.numerics.formats.wide;
        let spec = |product: u32, weight_frac: u32| {
            let truncate = (frac_in + weight_frac).saturating_sub(frac);
            LinearSpec { weight_frac, truncate, ring: product.saturating_sub(truncate) }
        };
        let fits = |spec: &LinearSpec, least: u32| spec.ring >= least.max(bits_of(size, frac));
        let options = [wanted, 0].into_iter().flat_map(|least_ring| {
            let of_ring = move |&product: &u32| (least..=finest).rev().map(move |f| (product, f, least_ring));
            rings.iter().flat_map(of_ring)
        });
        let found = options.map(|(product, f, ring)| (spec(product, f), ring)).find(|(spec, ring)| fits(spec, *ring));
        let chosen = found.map_or_else(|| spec(wide, least), |(spec, _)| spec);
        self.limit(&node.name, "the result", size, power(chosen.ring as i32 - 2 - frac as i32));
        if let Op::Linear { weight, .. } = &node.op {
            let lane_bits = if wide <= 32 { 32 } else { 64 };
            let format = TensorFormat {
                lane_bits,
                ring: wide,
                frac: chosen.weight_frac,
                factor: 1.0,
                matrix: true,
                public: false,
            };
            self.numerics.tensors.insert(weight.clone(), format);
        }
        chosen
    }

    /// Holds what was seen of a node, or of the sum that stands for it under the name `seen`, to the room that its numbers give.
    fn check(&mut self, node: &Node, spec: &NodeSpec, seen: &str) {
        let unseen = NodeStats::default();
        let before = self.base_ranges.node(&node.name).unwrap_or(&unseen).clone();
        let stats = self.ranges.node(seen).unwrap_or(&unseen).clone();
        let (frac, ring) = self.leaves(node, spec);
        let room = |ring: u32| power(ring as i32 - 2 - frac as i32);
        let name = seen;
        match spec {
            NodeSpec::Linear(_) | NodeSpec::Add { .. } | NodeSpec::Gated(_) | NodeSpec::Scale(_) => {
                self.grown(name, "the result", [before.max_abs, stats.max_abs], room(ring));
            }
            NodeSpec::Norm(_) => {
                self.grown(name, "the result", [before.max_abs, stats.max_abs], room(ring));
                if let (Op::LayerNorm { eps, .. } | Op::RmsNorm { eps, .. }, Some(before), Some(after)) =
                    (&node.op, before.norm, stats.norm)
                {
                    self.norm(name, *eps, before, after);
                }
            }
            NodeSpec::Attention { max_value } | NodeSpec::Causal { max_value, .. } => {
                if let (Some(before), Some(after)) = (before.attention, stats.attention) {
                    self.limit(name, "the values", f64::from(after.max_value), max_value + f64::EPSILON);
                    let [before_most, after_most] = [before, after].map(|seen| seen.max_spread.max(seen.max_score));
                    self.scores(name, before_most, after_most, 0.0);
                    if let NodeSpec::Causal { .. } = spec {
                        self.maxima(name, before, after);
                    }
                }
            }
            NodeSpec::Route { .. } => self.route(name, &before, &stats),
            NodeSpec::Experts { up, gated, down, .. } => {
                self.grown(name, "the sum over experts", [before.max_abs, stats.max_abs], room(ring));
                self.route(name, &before, &stats);
                let (before, after) = (before.experts.unwrap_or_default(), stats.experts.unwrap_or_default());
                let inner = self.numerics.formats.frac;
                let room = |ring: u32, frac: u32| power(ring as i32 - 2 - frac as i32);
                self.grown(name, "what leads into an expert", [before.up, after.up], room(up.ring, inner));
                self.grown(name, "the gated product", [before.gated, after.gated], room(gated.ring, inner));
                self.grown(name, "what leads out of an expert", [before.down, after.down], room(down.ring, frac));
            }
            NodeSpec::None if node.op == Op::MeanRows => {
                self.grown(name, "the mean over rows", [before.max_abs, stats.max_abs], 0.0);
            }
            // Functions of what was looked at already, and what no adapter changes.
            NodeSpec::Lookup(_) | NodeSpec::Activation(_) | NodeSpec::None => {}
        }
    }

    fn route(&mut self, name: &str, before: &NodeStats, after: &NodeStats) {
        if let (Some(before), Some(after)) = (before.route, after.route) {
            let [before, after] = [before, after].map(|seen| seen.max_spread.max(seen.max_score));
            self.scores(name, before, after, ROUTE_DROP);
        }
    }

    /// Scores that differ by more than any two of the base may still fit, where theirs is not the largest spread. Some fall by
    /// `drop` besides.
    fn scores(&mut self, name: &str, before: f32, after: f32, drop: f64) {
        let ModelNumerics { formats, score_ring, padding_bias, .. } = self.numerics;
        let padding = (-padding_bias >> formats.frac) as f64;
        // A padded key falls 16 below every other one; a decoder has none, and its bound has its own distance.
        let room = if self.graph.is_decoder() {
            power((score_ring - 1 - formats.frac) as i32) - padding.max(drop)
        } else {
            padding - 16.0
        };
        self.grown(name, "the spread of scores", [before, after], room);
    }

    /// The maxima of rows lie between the bounds, with half of the room above them left: a row beyond them is lost.
    fn maxima(&mut self, name: &str, before: AttentionStats, after: AttentionStats) {
        let [(lowest, highest), (least, most)] =
            [before, after].map(|seen| (f64::from(seen.row_max.min), f64::from(seen.row_max.max)));
        let room = (highest - lowest).max(8.0) / 4.0;
        self.limit(name, "the largest score of a row", most, highest + room);
        self.limit(name, "the largest score of a row, below zero,", -least, room - lowest);
    }

    fn norm(&mut self, name: &str, eps: f64, before: NormStats, after: NormStats) {
        let [before_max, before_min] = [before.variance.max, before.variance.min].map(f64::from);
        let [max, min] = [after.variance.max, after.variance.min].map(f64::from);
        // Variances are squares of values.
        let largest = (before_max * VARIANCE_MARGIN + eps) / (MARGIN * MARGIN);
        self.limit(name, "the variance", max + eps, largest.max(before_max + eps) * (1.0 + 1e-6));
        let smallest = before_min / VARIANCE_MARGIN + eps;
        self.limit(name, "one over the variance", 1.0 / (min + eps), (1.0 + 1e-3) / smallest);
        self.grown(name, "the centred input times its gain", [before.max_scaled, after.max_scaled], 0.0);
    }

    /// What a value may grow to: beyond the base's by the margin, or up to `room` with the margin.
    fn grown(&mut self, name: &str, what: &'static str, [before, after]: [f32; 2], room: f64) {
        let limit = (f64::from(before) * MARGIN * MARGIN).max(room);
        self.limit(name, what, f64::from(after) * MARGIN, limit + f64::EPSILON);
    }

    fn limit(&mut self, name: &str, what: &'static str, seen: f64, limit: f64) {
        // What is not a number does not fit.
        if seen.is_nan() || seen >= limit {
            let profile = self.numerics.profile;
            self.problems.push(NoHeadroom { name: name.to_owned(), what, seen, limit, profile });
        }
    }
}
