//! Ranges of values where no weights are there to calibrate with: for plans of published shapes.
//!
//! They are about what calibration finds in trained models of the families that are known here, rounded up; outliers of
//! some trained models are larger. Rings follow from them, and with the rings bytes: a plan on assumed ranges is as exact as
//! its assumptions, and is within a few percent where a value is twice or half as large, as a ring is then one bit wider or
//! narrower. Of rounds a few in each layer depend on them, for values that no longer fit one ring: GPT-2 small has 38 in a layer on these
//! ranges, and 33 on those of its shape with random weights, which are far smaller.

use tercet_model::graph::{Graph, Op};
use tercet_model::{AttentionStats, ExpertsStats, GatedStats, NodeStats, NormStats, Ranges, RouteStats, Span};

/// Rows of tables.
const ROW: f32 = 8.0;
/// The residual stream.
const RESIDUAL: f32 = 200.0;
/// What linear layers give.
const LINEAR: f32 = 60.0;
/// Scores of tokens or labels, which the last linear layer gives.
const LOGIT: f32 = 40.0;
/// What norms give.
const NORMALISED: f32 = 40.0;
/// The mean square, or the variance, of what norms read: from the first embeddings to the last layers.
const MEAN_SQUARE: Span = Span { min: 1e-4, max: 400.0 };
/// Largest element of a norm's input times its gain.
const SCALED: f32 = 100.0;
/// Values of attentions.
const VALUE: f32 = 8.0;
/// Largest difference of two scores of a row, to base 2.
const SCORE_SPREAD: f32 = 60.0;
/// The largest score of a row.
const ROW_MAXIMUM: Span = Span { min: -10.0, max: 40.0 };
/// Activations of a feed-forward layer, and gated products.
const ACTIVATED: f32 = 60.0;
const GATED: f32 = 100.0;
/// Scores of a router.
const ROUTE: f32 = 16.0;

/// Ranges of every node of a graph.
pub(crate) fn ranges(graph: &Graph) -> Ranges {
    let last = graph.nodes.len();
    let nodes = graph.nodes.iter().enumerate().map(|(at, node)| (node.name.clone(), stats(&node.op, at + 1 == last)));
    Ranges { inputs: 0, nodes: nodes.collect() }
}

fn stats(op: &Op, is_last: bool) -> NodeStats {
    let of = |max_abs: f32| NodeStats { max_abs, ..NodeStats::default() };
    match op {
        Op::Lookup { .. } | Op::AddRows { .. } | Op::PrependRow { .. } | Op::AddPositions { .. } => of(ROW),
        Op::Linear { .. } if is_last => of(LOGIT),
        Op::Linear { .. } => of(LINEAR),
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => NodeStats {
            norm: Some(NormStats { variance: MEAN_SQUARE, max_centred: RESIDUAL, max_scaled: SCALED }),
            ..of(NORMALISED)
        },
        Op::Attention { .. } | Op::CausalAttention { .. } => NodeStats { attention: Some(attention()), ..of(VALUE) },
        Op::Activation(_) => NodeStats { activation: Some(around(LINEAR)), ..of(ACTIVATED) },
        Op::Gated(_) => NodeStats { gated: Some(gated()), ..of(GATED) },
        Op::Route { .. } => NodeStats { route: Some(route()), ..of(1.0) },
        Op::ScaleBlocks => of(GATED),
        Op::Experts { .. } => NodeStats {
            route: Some(route()),
            gated: Some(gated()),
            experts: Some(ExpertsStats { up: LINEAR, gated: GATED, down: LINEAR }),
            ..of(LINEAR)
        },
        Op::Add | Op::FirstRow | Op::LastRow => of(RESIDUAL),
        Op::MeanRows => of(NORMALISED),
    }
}

fn around(size: f32) -> Span {
    Span { min: -size, max: size }
}

fn gated() -> GatedStats {
    GatedStats { argument: around(LINEAR), activated: LINEAR, factor: LINEAR }
}

fn route() -> RouteStats {
    RouteStats { max_score: ROUTE, max_spread: 2.0 * ROUTE }
}

fn attention() -> AttentionStats {
    let (rows, magnitude) = (512.0, ROW_MAXIMUM.max.sqrt());
    AttentionStats {
        max_query: magnitude,
        max_key: magnitude,
        max_value: VALUE,
        max_score: SCORE_SPREAD,
        max_spread: SCORE_SPREAD,
        row_max: ROW_MAXIMUM,
        row_sum: Span { min: 1.0, max: rows },
        max_unnormalised: rows * VALUE,
        max_output: VALUE,
    }
}

#[cfg(test)]
mod tests {
    use tercet_engine::{Profile, choose};
    use tercet_model::{Gate, Model};

    use super::*;
    use crate::bench::catalogue::{CATALOGUE, Origin};
    use crate::bench::weights;

    #[test]
    fn every_shape_of_the_catalogue_has_headroom_in_both_profiles() {
        for entry in CATALOGUE {
            let Origin::Random(shape) = entry.origin else { continue };
            let dir = tempfile::tempdir().unwrap();
            weights::config(&shape, dir.path()).unwrap();
            let graph = Model::graph_of(dir.path(), Gate::Secret).unwrap();
            let ranges = ranges(&graph);
            assert_eq!(ranges.nodes.len(), graph.nodes.len(), "{}", entry.name);
            for profile in [Profile::Fast, Profile::Precise] {
                assert!(choose(&graph, &ranges, profile, false).is_ok(), "{} {profile}", entry.name);
            }
        }
    }
}
