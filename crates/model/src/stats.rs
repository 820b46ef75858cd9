//! What a calibration pass learns about each node: how large its values get.

use serde::{Deserialize, Serialize};

/// Ranges seen at one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStats {
    /// Largest absolute element of the result.
    pub max_abs: f32,
    /// For an activation: the range of what it reads.
    pub activation: Option<Span>,
    /// For attention.
    pub attention: Option<AttentionStats>,
    /// For a LayerNorm or an RMSNorm.
    pub norm: Option<NormStats>,
    /// For a gated activation.
    pub gated: Option<GatedStats>,
    /// For a choice of experts.
    pub route: Option<RouteStats>,
    /// For experts behind a public gate, beside the ranges of their gated activations and of their choice.
    pub experts: Option<ExpertsStats>,
}

/// Smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Smallest.
    pub min: f32,
    /// Largest.
    pub max: f32,
}

/// Ranges inside a softmax attention. Scores are to base 2, as the graph's queries are scaled; of a causal attention only
/// those of keys that the query sees count, and queries and keys are taken after rotary positions have turned them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionStats {
    /// Largest absolute element of the queries.
    pub max_query: f32,
    /// Largest absolute element of the keys.
    pub max_key: f32,
    /// Largest absolute element of the values.
    pub max_value: f32,
    /// Largest absolute score.
    pub max_score: f32,
    /// Largest difference between the maximum and the minimum of a row of scores.
    pub max_spread: f32,
    /// The maximum of a row of scores.
    pub row_max: Span,
    /// Sums over rows of `2^(score - maximum of the row)`, from 1 to the number of rows.
    pub row_sum: Span,
    /// Largest absolute element of `2^(score - maximum) V`, before it is divided by the row sum.
    pub max_unnormalised: f32,
    /// Largest absolute element of the result.
    pub max_output: f32,
}

/// Ranges inside a LayerNorm. An RMSNorm is one whose mean is taken to be zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormStats {
    /// The variance of a row, without eps.
    pub variance: Span,
    /// Largest `|x - mean|`.
    pub max_centred: f32,
    /// Largest `|gain (x - mean)|`.
    pub max_scaled: f32,
}

/// Ranges inside a gated activation `f(a) * b`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatedStats {
    /// Of `a`.
    pub argument: Span,
    /// Largest `|f(a)|`.
    pub activated: f32,
    /// Largest `|b|`.
    pub factor: f32,
}

/// Ranges inside a choice of experts. Scores are to base 2, as the graph's router is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteStats {
    /// Largest absolute score.
    pub max_score: f32,
    /// Largest difference between the maximum and the minimum of a row of scores.
    pub max_spread: f32,
}

/// Ranges inside the experts that rows went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertsStats {
    /// Largest absolute element of what matrices in give.
    pub up: f32,
    /// Largest absolute gated product.
    pub gated: f32,
    /// Largest absolute element of what matrices out give.
    pub down: f32,
}

impl GatedStats {
    /// Of nothing.
    pub(crate) const NONE: Self = Self { argument: Span { min: 0.0, max: 0.0 }, activated: 0.0, factor: 0.0 };
}

impl Span {
    /// Of all values given. Of none: `[0, 0]`.
    pub fn of(values: impl IntoIterator<Item = f32>) -> Self {
        let ends = values.into_iter().fold(None, |ends: Option<Self>, v| {
            Some(ends.map_or(Self { min: v, max: v }, |s| Self { min: s.min.min(v), max: s.max.max(v) }))
        });
        ends.unwrap_or(Self { min: 0.0, max: 0.0 })
    }

    fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

impl NodeStats {
    /// Widens the ranges to hold those of another run of the same node.
    pub fn merge(&mut self, other: &Self) {
        self.max_abs = self.max_abs.max(other.max_abs);
        merge_into(&mut self.activation, &other.activation, Span::merge);
        merge_into(&mut self.attention, &other.attention, |a, b| {
            a.max_query = a.max_query.max(b.max_query);
            a.max_key = a.max_key.max(b.max_key);
            a.max_value = a.max_value.max(b.max_value);
            a.max_score = a.max_score.max(b.max_score);
            a.max_spread = a.max_spread.max(b.max_spread);
            a.row_max.merge(&b.row_max);
            a.row_sum.merge(&b.row_sum);
            a.max_unnormalised = a.max_unnormalised.max(b.max_unnormalised);
            a.max_output = a.max_output.max(b.max_output);
        });
        merge_into(&mut self.norm, &other.norm, |a, b| {
            a.variance.merge(&b.variance);
            a.max_centred = a.max_centred.max(b.max_centred);
            a.max_scaled = a.max_scaled.max(b.max_scaled);
        });
        merge_into(&mut self.gated, &other.gated, |a, b| {
            a.argument.merge(&b.argument);
            a.activated = a.activated.max(b.activated);
            a.factor = a.factor.max(b.factor);
        });
        merge_into(&mut self.route, &other.route, |a, b| {
            a.max_score = a.max_score.max(b.max_score);
            a.max_spread = a.max_spread.max(b.max_spread);
        });
        merge_into(&mut self.experts, &other.experts, |a, b| {
            a.up = a.up.max(b.up);
            a.gated = a.gated.max(b.gated);
            a.down = a.down.max(b.down);
        });
    }
}

fn merge_into<T: Copy>(to: &mut Option<T>, from: &Option<T>, merge: impl FnOnce(&mut T, &T)) {
    match (to.as_mut(), from) {
        (Some(a), Some(b)) => merge(a, b),
        (None, Some(b)) => *to = Some(*b),
        (_, None) => {}
    }
}
