//! What a run costs, known before it runs.

use serde::Serialize;
use tercet_core::spec::{ActivationSpec, GatedSpec};
use tercet_core::{Cost, Geometry, Result};
use tercet_helper::lookup::{PAIRS, SIGN_RING};
use tercet_helper::price::Shape;
use tercet_model::RowInput;
use tercet_model::graph::{Op, TensorSpec};
use tercet_net::PartyId;
use tercet_ring::dpf;
use tercet_ring::pack::packed_len;

use crate::effort::Effort;
use crate::manifest::Manifest;
use crate::numerics::NodeSpec;
use crate::walk::{Rows, walk};

/// The price of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Inputs side by side, and their rows.
    pub geometry: Geometry,
    /// Rounds, frames and bytes on every link.
    pub total: Cost,
    /// The same by operation of the model, in order.
    pub parts: Vec<(String, Cost)>,
    /// Bytes of the model's share at each party, without what a base lends.
    pub weight_bytes: [u64; 3],
    /// Bytes that a client sends to each party, and gets back from each, without framing.
    pub client_bytes: [[u64; 3]; 2],
    /// About how many bytes a run takes beside the weights at any party: what the largest operation has live at once, and the
    /// buffers of the links. An estimate, not a bound: with the weights, MiniLM at 128 tokens peaked 12 % above it.
    pub working_bytes: u64,
    /// What it computes: with the rates of a machine, how long it takes ([`crate::Rates`]).
    #[serde(skip)]
    pub effort: Effort,
}

/// What the links of a session may hold: the helper's window at both its ends.
pub(crate) const LINK_BUFFER_BYTES: u64 = 64 << 20;

/// Prices a run of `manifest` on inputs of this shape.
pub fn plan(manifest: &Manifest, geometry: Geometry) -> Result<Plan> {
    manifest.check_geometry(geometry)?;
    let mut price = manifest.price(geometry);
    let mut working = 0u64;
    let mut widest = 0u64;
    let lane = u64::from(manifest.numerics.formats.wide / 8);
    let graph = &manifest.graph;
    let mut effort = Ok(Effort::request());
    let output = walk(&mut price, graph, &manifest.numerics, Rows::Inputs(geometry.rows), |index, shape| {
        let len = (shape.rows * shape.cols) as u64;
        widest = widest.max(len);
        let scores = match &graph.nodes[index].op {
            Op::Attention { heads } => (geometry.batch * heads * (geometry.rows + 1).pow(2)) as u64,
            _ => 0,
        };
        working = working.max(working_bytes(manifest, index, len, scores));
        if let Ok(before) = effort {
            effort = before.compute(manifest, &graph.nodes[index].op, shape, geometry);
        }
    })?;
    // Values alive beside the one being made: a residual, the input of the node, and their two planes each.
    let working_bytes = LINK_BUFFER_BYTES + working + 3 * 2 * lane * widest;
    let weight_bytes = weight_bytes(manifest);
    let total = price.total();
    let parts = price.parts().to_vec();
    let effort = effort?.send(&graph.nodes, &parts);
    let client_bytes = client_bytes(manifest, geometry, output)?;
    Ok(Plan { geometry, total, parts, weight_bytes, client_bytes, working_bytes, effort })
}

/// Bytes of a model's share at each party, without what a base lends.
pub fn weight_bytes(manifest: &Manifest) -> [u64; 3] {
    PartyId::ALL.map(|party| {
        let of = |t: &TensorSpec| {
            let format = manifest.numerics.tensors.get(&t.name);
            // Masks are drawn, not held.
            let planes = u64::from(party != PartyId::P0 || format.is_some_and(|f| f.public));
            format.map_or(0, |f| u64::from(f.lane_bits / 8) * planes * (t.rows * t.cols) as u64)
        };
        manifest.graph.tensors.iter().filter(|t| manifest.holds(&t.name)).map(of).sum()
    })
}

/// Bytes that an operation has live per element, of which `scores` are attention scores, as an estimate: planes, dealt values, what is sent and received, packed and
/// not. Counted from the code of the primitives at the party that holds most, with room for the allocator; the constant
/// of scores was set after the peak memory of nodes running MiniLM on 500 tokens.
pub(crate) fn working_bytes(manifest: &Manifest, index: usize, len: u64, scores: u64) -> u64 {
    const SCORE_BYTES: u64 = 240;
    const ACTIVATION_BYTES: u64 = 56;
    const NORM_BYTES: u64 = 120;
    const LINEAR_BYTES: u64 = 48;
    match &manifest.graph.nodes[index].op {
        Op::Attention { .. } | Op::CausalAttention { .. } => SCORE_BYTES * scores + NORM_BYTES * len,
        Op::Activation(_) | Op::Gated(_) => {
            let harmonics = match &manifest.numerics.nodes[index] {
                NodeSpec::Activation(ActivationSpec::Gate(g) | ActivationSpec::Odd(g))
                | NodeSpec::Gated(GatedSpec { activation: ActivationSpec::Gate(g), .. }) => g.series.harmonics() as u64,
                _ => 0,
            };
            (ACTIVATION_BYTES * 3 + 2 * harmonics * 20) * len
        }
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => NORM_BYTES * len,
        _ => LINEAR_BYTES * len,
    }
}

/// Of a request.
fn client_bytes(manifest: &Manifest, geometry: Geometry, output: Shape) -> Result<[[u64; 3]; 2]> {
    let interface = manifest.interface()?;
    let rows = geometry.batch * geometry.rows;
    let masks = packed_len(rows, interface.score_ring) + packed_len(rows, interface.wide);
    let [mut up, down] = client_bytes_of(manifest, rows, output)?;
    up[1..].iter_mut().for_each(|bytes| *bytes += masks as u64);
    Ok([up, down])
}

/// Bytes that clients send to each party for so many rows, and what they get of an output.
pub(crate) fn client_bytes_of(manifest: &Manifest, rows: usize, output: Shape) -> Result<[[u64; 3]; 2]> {
    let interface = manifest.interface()?;
    // Of rows that are looked up the signs are shared, and an evaluator holds a key of either pair, the helper of one.
    let (masks, keys) = match interface.rows {
        RowInput::Matrix { width, .. } => (packed_len(rows * width, interface.wide), 0),
        RowInput::Lookup { domain_bits, .. } => (packed_len(rows * PAIRS, SIGN_RING), rows * dpf::key_len(domain_bits)),
    };
    let (evaluator, helper) = ((masks + 2 * keys + 32) as u64, (keys + 64) as u64);
    let back = 2 * packed_len(output.rows * output.cols, output.ring) as u64;
    Ok([[helper, evaluator, evaluator], [back; 3]])
}
