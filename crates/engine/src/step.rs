//! Steps of a decoder: which sequences take which rows together, and what that costs, known before it runs.

use serde::{Deserialize, Serialize};
use tercet_core::{Cost, Error, Layout, Result, Suite};
use tercet_helper::cache;
use tercet_helper::price::Price;
use tercet_model::graph::{Op, Output};
use tercet_net::PartyId;

use crate::manifest::{MAX_ROWS_AT_ONCE, Manifest};
use crate::plan::{self, LINK_BUFFER_BYTES};
use crate::walk::{causal_heads, walk};
use crate::{NodeSpec, Rows};

/// What a step leaves for the clients of its sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Choice {
    /// The scores of every token: the client chooses.
    Scores,
    /// The token, chosen inside.
    Token,
}

/// The public shape of a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StepShape {
    /// The sequences and their rows.
    pub layout: Layout,
    /// What comes out.
    pub choice: Choice,
    /// Whether the rows are the tokens that the last step of each sequence chose, which nobody has seen; else clients send them.
    pub reentry: bool,
    /// Whether any token is chosen with noise.
    pub noisy: bool,
}

/// The price of a step.
#[derive(Clone, Debug, Serialize)]
pub struct StepPlan {
    /// Rounds, frames and bytes on every link.
    pub total: Cost,
    /// The same by operation of the model, in order.
    pub parts: Vec<(String, Cost)>,
    /// Bytes of the model's share at each party, without what a base lends.
    pub weight_bytes: [u64; 3],
    /// Bytes that the caches of all sequences take after the step, at each party.
    pub cache_bytes: [u64; 3],
    /// Bytes that the clients of the sequences send to each party together, and get back from each, without framing.
    pub client_bytes: [[u64; 3]; 2],
    /// About how many bytes a step takes beside weights and caches at any party, as [`crate::Plan::working_bytes`].
    pub working_bytes: u64,
}

/// Prices a step.
///
/// # Errors
/// The model is no decoder, or does not take a step of this shape.
pub fn plan_step(manifest: &Manifest, shape: &StepShape) -> Result<StepPlan> {
    manifest.check_step(shape)?;
    let numerics = &manifest.numerics;
    let layout = &shape.layout;
    let mut price = manifest.step_price(shape);
    let (mut working, mut widest) = (0u64, 0u64);
    let lane = u64::from(numerics.formats.wide / 8);
    let output = walk(&mut price, &manifest.graph, numerics, Rows::Step, |index, made| {
        let len = (made.rows * made.cols) as u64;
        let scores = match &manifest.graph.nodes[index].op {
            op @ Op::CausalAttention { heads, .. } => {
                let visible =
                    causal_heads(op).map_or(0, |of| layout.positions().map(|p| of.visible_count(p)).sum::<usize>());
                (heads * visible) as u64
            }
            _ => 0,
        };
        widest = widest.max(len);
        working = working.max(plan::working_bytes(manifest, index, len, scores));
    })?;
    let chosen = match shape.choice {
        Choice::Scores => output,
        Choice::Token => {
            price.set_label("head/choice");
            let spec = numerics.choice(output.cols, output.ring);
            price.choose(&output, &spec)?
        }
    };
    let caches = |party| layout.sequences.iter().map(|of| cache_bytes(manifest, party, of.past + of.rows)).sum();
    Ok(StepPlan {
        total: price.total(),
        parts: price.parts().to_vec(),
        weight_bytes: plan::weight_bytes(manifest),
        cache_bytes: PartyId::ALL.map(caches),
        client_bytes: plan::client_bytes_of(manifest, if shape.reentry { 0 } else { layout.rows() }, chosen)?,
        working_bytes: LINK_BUFFER_BYTES + working + 3 * 2 * lane * widest,
    })
}

/// Bytes that the cache of a sequence of so many positions takes at a party, in whole pages.
pub fn cache_bytes(manifest: &Manifest, party: PartyId, positions: usize) -> u64 {
    let graph = &manifest.graph;
    let frac = manifest.numerics.formats.frac;
    let layers = graph.nodes.iter().zip(&manifest.numerics.nodes);
    let bytes = layers.filter_map(|(node, spec)| {
        let NodeSpec::Causal { max_value, bound } = spec else { return None };
        let heads = causal_heads(&node.op)?;
        let value = *node.inputs.first()?;
        let width = graph.width(value) / (heads.heads + 2 * heads.kv_heads);
        let spec = manifest.numerics.causal(graph.max_rows(), *max_value, *bound);
        Some(cache::bytes_per_position(party, &heads, width, frac, &spec) as u64)
    });
    bytes.sum::<u64>() * positions.next_multiple_of(cache::PAGE) as u64
}

impl Manifest {
    /// Refuses steps that the model does not take.
    pub fn check_step(&self, shape: &StepShape) -> Result<()> {
        let bad = |what: String| Err(Error::Misuse(what));
        let Output::NextToken { .. } = self.graph.output else {
            return bad(format!("{} gives no next token", self.name));
        };
        let (context, layout) = (self.graph.max_rows(), &shape.layout);
        if layout.sequences.is_empty() || layout.sequences.iter().any(|extent| extent.rows == 0) {
            return bad("a step of nothing".into());
        }
        let most = layout.sequences.iter().map(|extent| extent.past.saturating_add(extent.rows)).max().unwrap_or(0);
        if most > context {
            return bad(format!("{most} tokens; the context of {} is {context}", self.name));
        }
        let rows = layout.sequences.iter().fold(0usize, |sum, extent| sum.saturating_add(extent.rows));
        if rows > MAX_ROWS_AT_ONCE {
            return bad(format!("{rows} rows in one step; at most {MAX_ROWS_AT_ONCE} are computed at once"));
        }
        if shape.reentry && layout.sequences.iter().any(|extent| extent.rows != 1 || extent.past == 0) {
            return bad("a chosen token is one row, after others".into());
        }
        if shape.choice == Choice::Token && layout.every_row {
            return bad("tokens are chosen for the last row of a sequence alone".into());
        }
        Ok(())
    }

    /// A price list for steps of this shape.
    pub(crate) fn step_price<'a>(&'a self, shape: &'a StepShape) -> Price<'a, Manifest> {
        let width = if self.looks_up() { None } else { Some(self.input_width()) };
        let price = Price::step(self, &shape.layout, self.numerics.formats, width);
        let price = if shape.noisy { price.with_noise() } else { price };
        if shape.reentry { price.by_places(self.index_bits()) } else { price }
    }

    /// Bits that tell one token of a decoder's vocabulary from another.
    pub fn index_bits(&self) -> u32 {
        let Output::NextToken { vocab } = self.graph.output else { return 1 };
        self.numerics.choice(vocab, self.numerics.formats.wide).index_bits
    }
}
