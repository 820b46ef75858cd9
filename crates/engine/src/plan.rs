//! What a run costs, known before it runs.

use serde::Serialize;
use tercet_core::{Cost, Geometry, Result};
use tercet_net::PartyId;

use crate::effort::Effort;
use crate::manifest::Manifest;
use crate::walk::walk;

/// The price of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Inputs side by side, and their rows.
    pub geometry: Geometry,
    /// Rounds, frames and bytes on every link.
    pub total: Cost,
    /// The same by operation of the model, in order.
    pub parts: Vec<(String, Cost)>,
    /// Bytes of the model's share at each party.
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
const LINK_BUFFER_BYTES: u64 = 64 << 20;

/// Prices a run of `manifest` on inputs of this shape.
pub fn plan(manifest: &Manifest, geometry: Geometry) -> Result<Plan> {
    manifest.check_geometry(geometry)?;
    let mut price = manifest.price(geometry);
    let mut working = 0u64;
    let mut widest = 0u64;
    let lane = u64::from(manifest.numerics.formats.wide / 8);
    let graph = &manifest.graph;
    let mut effort = Ok(Effort::request());
    let output = walk(&mut price, graph, &manifest.numerics, geometry, |index, shape| {
        let len = (shape.rows * shape.cols) as u64;
        widest = widest.max(len);
        working = working.max(working_bytes(manifest, index, len, geometry));
        let op = &graph.nodes[index].op;
        if let Ok(before) = effort {
            effort = before.compute(manifest, op, shape, geometry);
        }
    })?;
    // Values alive beside the one being made: a residual, the input of the node, and their two planes each.
    let working_bytes = LINK_BUFFER_BYTES + working + 3 * 2 * lane * widest;
    let weight_bytes = PartyId::ALL.map(|party| {
        let of = |t: &tercet_model::graph::TensorSpec| {
            let format = manifest.numerics.tensors.get(&t.name);
            let one = format.is_some_and(|f| f.public || f.matrix && party == PartyId::P1);
            let planes = if one { 1 } else { 2 };
            format.map_or(0, |f| u64::from(f.lane_bits / 8) * planes * (t.rows * t.cols) as u64)
        };
        manifest.graph.tensors.iter().map(of).sum()
    });
    let total = price.total();
    let parts = price.parts().to_vec();
    let effort = effort?.send(&graph.nodes, &parts);
    let client_bytes = client_bytes(manifest, geometry, output.ring, output.rows * output.cols)?;
    Ok(Plan { geometry, total, parts, weight_bytes, client_bytes, working_bytes, effort })
}

/// Bytes that an operation has live per element, as an estimate: planes, dealt values, what is sent and received, packed and
/// not. Counted from the code of the primitives at the party that holds most, with room for the allocator; the constant
/// of scores was set after the peak memory of nodes running MiniLM on 500 tokens.
fn working_bytes(manifest: &Manifest, index: usize, len: u64, geometry: Geometry) -> u64 {
    use tercet_model::graph::Op;
    const SCORE_BYTES: u64 = 240;
    const ACTIVATION_BYTES: u64 = 56;
    const NORM_BYTES: u64 = 120;
    const LINEAR_BYTES: u64 = 48;
    match &manifest.graph.nodes[index].op {
        Op::Attention { heads } => {
            let rows = geometry.rows as u64 + 1;
            SCORE_BYTES * geometry.batch as u64 * *heads as u64 * rows * rows + NORM_BYTES * len
        }
        Op::Activation(_) => {
            let harmonics = match &manifest.numerics.nodes[index] {
                crate::NodeSpec::Activation(
                    tercet_core::spec::ActivationSpec::Gate(g) | tercet_core::spec::ActivationSpec::Odd(g),
                ) => g.series.harmonics() as u64,
                _ => 0,
            };
            (ACTIVATION_BYTES * 3 + 2 * harmonics * 20) * len
        }
        Op::LayerNorm { .. } => NORM_BYTES * len,
        _ => LINEAR_BYTES * len,
    }
}

fn client_bytes(manifest: &Manifest, geometry: Geometry, output_ring: u32, outputs: usize) -> Result<[[u64; 3]; 2]> {
    use tercet_model::RowInput;
    use tercet_ring::{dpf, pack::packed_len};
    let interface = manifest.interface()?;
    let rows = geometry.batch * geometry.rows;
    let masks = packed_len(rows, interface.score_ring) + packed_len(rows, interface.wide);
    // Of rows that are looked up the signs are shared, and an evaluator holds a key of either pair, the helper of one.
    let (width, keys) = match interface.rows {
        RowInput::Matrix { width, .. } => (width, 0),
        RowInput::Lookup { domain_bits, .. } => (tercet_helper::lookup::PAIRS, rows * dpf::key_len(domain_bits)),
    };
    let masks = masks + packed_len(rows * width, interface.wide);
    let (evaluator, helper) = ((masks + 2 * keys + 32) as u64, (keys + 64) as u64);
    let back = 2 * packed_len(outputs, output_ring) as u64;
    Ok([[helper, evaluator, evaluator], [back; 3]])
}
