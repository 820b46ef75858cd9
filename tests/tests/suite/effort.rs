//! What a run computes, against counts by hand.

use tercet_core::Geometry;
use tercet_engine::{Effort, Profile, Term, plan};
use tercet_model::graph::Op;
use tercet_testkit::encoder::Encoder;

use super::models::{encoder, load, share};

fn effort(encoder: &Encoder, batch: usize, rows: usize) -> Effort {
    plan(encoder.manifest(), Geometry { batch, rows }).expect("a geometry of this model").effort
}

/// Two layers of width 32, with 48 between their two linear layers, over a table of 64 rows.
#[test]
fn a_small_encoder_is_counted_by_hand() {
    for (batch, rows) in [(1, 1), (1, 7), (3, 5)] {
        let encoder = encoder("bert_encoder", Profile::Fast);
        let effort = effort(&encoder, batch, rows);
        let all = (batch * rows) as u64;
        // Queries, keys and values at once; the output of attention; up and down.
        let weights = 2 * (32 * 96 + 32 * 32 + 32 * 48 + 48 * 32);
        // Every row of an input with every other one: 32 for the scores, 32 for the values.
        let attention = 2 * (2 * 32 * all * rows as u64);
        assert_eq!(effort.count(Term::Request), 1);
        assert_eq!(effort.count(Term::Weight), weights);
        assert_eq!(effort.count(Term::MultiplyAdd), all * weights + attention);
        assert_eq!(effort.count(Term::LookedUp), all * 64 * 32);
    }
}

#[test]
fn every_byte_and_every_round_is_counted_once() {
    for name in ["bert_encoder", "vit_classifier"] {
        let encoder = encoder(name, Profile::Precise);
        let rows = encoder.model().graph.max_rows();
        let plan = plan(encoder.manifest(), Geometry { batch: 2, rows }).expect("a geometry of this model");
        let count = |term| plan.effort.count(term);
        let bytes = [Term::LinearByte, Term::AttentionByte, Term::ActivationByte, Term::NormByte];
        assert_eq!(bytes.into_iter().map(count).sum::<u64>(), plan.total.total_bytes(), "{name}");
        assert_eq!(count(Term::Round), plan.total.rounds, "{name}");
        let of = |is: fn(&Op) -> bool| {
            let named = |part: &str| encoder.model().graph.nodes.iter().any(|node| node.name == part && is(&node.op));
            plan.parts.iter().filter(|(part, _)| named(part)).map(|(_, cost)| cost.total_bytes()).sum::<u64>()
        };
        assert_eq!(count(Term::AttentionByte), of(|op| matches!(op, Op::Attention { .. })), "{name}");
        assert_eq!(count(Term::ActivationByte), of(|op| matches!(op, Op::Activation(_))), "{name}");
        assert_eq!(count(Term::NormByte), of(|op| matches!(op, Op::LayerNorm { .. })), "{name}");
        assert!(bytes.into_iter().all(|term| count(term) > 0), "{name}");
    }
}

#[test]
fn what_the_client_looks_up_is_no_work_of_the_nodes() {
    let public = share(load("bert_encoder"), Profile::Fast, true).expect("it fits");
    assert_eq!(effort(&public, 1, 7).count(Term::LookedUp), 0);
    let images = encoder("vit_classifier", Profile::Fast);
    assert_eq!(effort(&images, 1, images.model().graph.max_rows()).count(Term::LookedUp), 0);
}
