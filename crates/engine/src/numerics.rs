//! The numbers of a model: rings, scales and approximations for every operation and every tensor, chosen from its weights'
//! calibration. A ring that overflows is silent and ruins the answer, so what has no headroom is refused here, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tercet_core::spec::{
    ActivationSpec, AttentionSpec, BoundSpec, CausalSpec, ChoiceSpec, EXP_LOG2_RANGE, ExpertsSpec, GatedSpec,
    InverseSpec, LinearSpec, LookupSpec, NormSpec, Numerics, RouteSpec, ScaleSpec,
};
use tercet_helper::noise;
use tercet_model::graph::{Graph, Input, Op, Output};
use tercet_model::{Decoder, Generation, Interface, RowInput};

use crate::chooser::Choice;

/// Rows up to which the inverse of an attention's sums keeps its precision in one ring, in `fast`.
pub(crate) const ATTENTION_ROWS: usize = 160;

/// Whole bits of the scores of tokens that a choice compares, at most.
pub(crate) const SCORE_BITS: u32 = 14;

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
    /// Of a LayerNorm or an RMSNorm.
    Norm(NormSpec),
    /// Of an attention: the largest value it may meet. The rest depends on the number of rows.
    Attention {
        /// Largest absolute element of the values, with margin.
        max_value: f64,
    },
    /// Of a causal attention. The rest depends on the longest context.
    Causal {
        /// Largest absolute element of the values, with margin.
        max_value: f64,
        /// Where the largest score of a row may lie.
        bound: BoundSpec,
    },
    /// Of an activation.
    Activation(ActivationSpec),
    /// Of a gated product.
    Gated(GatedSpec),
    /// Of the weights of experts; the rest depends on how many there are.
    Route {
        /// How many have a say.
        top: usize,
    },
    /// Of blocks scaled by these.
    Scale(ScaleSpec),
    /// Of experts behind a public gate; the numbers of their weights depend on how many have a say.
    Experts {
        /// How many have a say.
        top: usize,
        /// What leads into an expert.
        up: LinearSpec,
        /// The gate within it.
        gated: GatedSpec,
        /// What leads out of it.
        down: LinearSpec,
        /// The weighed sum.
        combine: ScaleSpec,
    },
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
    /// Whether its owner lets the nodes have it in the clear.
    pub public: bool,
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

impl ModelNumerics {
    /// Whether a tensor is public.
    pub fn is_public(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|format| format.public)
    }

    /// Makes the tensors public that `chosen` names. Their owner says so: a public tensor is in every share file in the clear, its
    /// products cost nothing dealt, and a public embedding table goes to every client.
    pub fn publish(&mut self, chosen: impl Fn(&str) -> bool) {
        self.tensors.iter_mut().filter(|(name, _)| chosen(name)).for_each(|(_, format)| format.public = true);
    }

    /// The numbers of an attention over `rows` rows.
    ///
    /// The product of exponentials and values must hold `rows * max_value`; that, and the sum of the exponentials, decide its
    /// ring. Up to 160 rows the inverse of the sums keeps its precision in one ring; beyond, and in `precise`, it leaves in
    /// a smaller one and is extended, for one round more.
    pub fn attention(&self, rows: usize, max_value: f64) -> AttentionSpec {
        let choice = Choice::of(self.profile, false);
        let frac = self.formats.frac;
        let long = rows > ATTENTION_ROWS;
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

    /// The numbers of a causal attention with up to `context` keys a row.
    ///
    /// Exponents are taken from a bound, so that the largest exponential of a row may be as small as two steps below one: they
    /// have so many fractional bits more than those of an encoder, which the product with the values keeps.
    pub fn causal(&self, context: usize, max_value: f64, bound: BoundSpec) -> CausalSpec {
        let choice = Choice::of(self.profile, true);
        let Numerics { wide, frac } = self.formats;
        let rows_log2 = (context as f64).log2().ceil() as u32;
        let size = (context as f64 * max_value).log2().ceil() as u32;
        let lift = 2 * bound.step;
        // The guard of the public factor grows with the lift: its error is that of a power below 2^16.
        let (kept, scale, exp_guard) = match self.profile {
            Profile::Fast => (12, 20, (11, 24 + lift)),
            Profile::Precise => (18, 28, (18, 32 + lift)),
        };
        let exp_frac = kept + lift;
        let value_ring = exp_frac + frac + 2 + size;
        let direct = 64 - (exp_guard.0 + exp_guard.1 - exp_frac);
        let exp_ring = if value_ring <= direct { value_ring } else { exp_frac + 4 };
        let ring = if wide == 32 { 32 } else { 36 };
        let (low, high) = (kept - 1, exp_frac + rows_log2 + 1);
        let per_octave = choice.inverse_per_octave;
        let attention = AttentionSpec {
            score_ring: self.score_ring,
            exp_frac,
            exp_top_bits: self.score_ring - 1 - frac - EXP_LOG2_RANGE,
            exp_guard,
            exp_ring,
            value_ring,
            inverse: InverseSpec::new(1.0, low, high, per_octave, 64, scale + 4, scale + kept),
            normalize_ring: ring + scale,
            ring,
        };
        CausalSpec { attention, rotary_frac: if wide == 32 { 10 } else { 17 }, bound }
    }

    /// The numbers of the weights of `experts` experts.
    pub fn route(&self, experts: usize, top: usize) -> RouteSpec {
        // Values of one: the weights themselves are what is normalised.
        RouteSpec { top, softmax: self.attention(experts, 1.0) }
    }

    /// The numbers of experts behind a public gate; none where these are of something else.
    pub fn experts(&self, spec: &NodeSpec) -> Option<ExpertsSpec> {
        let NodeSpec::Experts { top, up, gated, down, combine } = spec else { return None };
        // Exponentials are those of the top alone.
        let (route, gated) = (self.route(*top, *top), gated.clone());
        Some(ExpertsSpec { route, up: *up, gated, down: *down, combine: *combine })
    }

    /// The numbers of the choice of a token among scores that come in `ring`.
    pub fn choice(&self, vocab: usize, ring: u32) -> ChoiceSpec {
        let frac = self.formats.frac;
        // The chooser leaves room for the noise of a choice beside the largest score, see
        // `hottest`.
        let compare_frac = if self.profile == Profile::Fast { 8 } else { 10 };
        ChoiceSpec {
            compare_frac,
            compare_ring: ring.min(frac + SCORE_BITS).saturating_sub(frac - compare_frac).min(32),
            index_bits: vocab.next_power_of_two().trailing_zeros().max(1),
        }
    }

    /// What temperatures of choices among scores in `ring` must be below: noise and scores fit the
    /// ring of the comparisons together.
    pub fn hottest(&self, vocab: usize, ring: u32) -> f64 {
        let ChoiceSpec { compare_ring, compare_frac, .. } = self.choice(vocab, ring);
        noise::hottest(compare_ring, compare_frac)
    }

    /// What a client must know.
    pub fn interface(&self, graph: &Graph, output_ring: u32) -> Interface {
        let Numerics { wide, frac } = self.formats;
        let rows = match (&graph.input, &graph.nodes.first().map(|n| &n.op)) {
            (Input::Tokens { vocab, .. }, Some(Op::Lookup { table })) => {
                let frac = self.tensors.get(table).map_or(frac, |t| t.frac);
                if self.is_public(table) {
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
            decoder: match &graph.output {
                Output::NextToken { vocab } => Some(Decoder {
                    context: graph.max_rows(),
                    index_bits: self.choice(*vocab, output_ring).index_bits,
                    generation: Generation::default(),
                    public_gate: graph.opens_gate(),
                }),
                Output::Embedding { .. } | Output::Logits { .. } => None,
            },
        }
    }
}
