//! What each node holds: the beginning of its share of one weight and of one input, beside the plain values.

use anyhow::{Context, Result};
use tercet_client::{Inputs, ModelFace, Options};
use tercet_engine::{ModelShare, Parsed, parse};
use tercet_helper::plane::Plane;
use tercet_helper::suite::{InputRows, Stored, Weights};
use tercet_model::graph::Op;
use tercet_model::{Model, RowInput};
use tercet_ring::Element;

use crate::screen::{hex, say};

/// What is shown, and how it hangs together.
pub(super) const TITLE: &str = "\na glimpse of what each node held: x = m - l1 - l2, and no node has all three\n";

/// Elements of a weight or an input that are shown.
const SHOWN: usize = 4;

/// Prints the beginning of the first linear weight, plain and at each node.
pub(super) fn weight(model: &Model, shares: &[ModelShare; 3]) -> Result<()> {
    let name = model.graph.nodes.iter().find_map(|node| match &node.op {
        Op::Linear { weight, .. } => Some(weight),
        _ => None,
    });
    let name = name.context("the model has no linear layer")?;
    let plain = model.tensor(name)?;
    say(format_args!("the weight {name}"));
    say(format_args!("  plain  {}", numbers(&plain)));
    for share in shares {
        let wide = share.manifest().numerics.tensors.get(name).is_some_and(|format| format.lane_bits == 64);
        let planes = if wide { planes::<u64>(share, name)? } else { planes::<u32>(share, name)? };
        // A weight is kept ready for its product: see `tercet_engine::split`.
        let held = ["l2, l1: both drawn from seeds", "m - l1", "l2: drawn from a seed, m"][share.party().index()];
        say(format_args!("  {}     {}   ({held})", share.party(), planes.join("   ")));
    }
    Ok(())
}

fn planes<E: Element>(share: &ModelShare, name: &str) -> Result<Vec<String>> {
    let Stored { planes, rows, cols, .. } = share.stored::<E>(name)?;
    let there = planes.iter().filter(|plane| !matches!(plane, Plane::Held([])));
    Ok(there.map(|plane| lanes(&plane.part(0, SHOWN.min(rows * cols)))).collect())
}

/// Prints the beginning of one input, plain and as a node receives it. The masks are drawn anew for every request, so
/// this is what the nodes get if they are asked once more.
pub(super) fn input(
    model: &Model,
    shares: &[ModelShare; 3],
    inputs: Inputs<'_>,
    what: &str,
    plain: &str,
) -> Result<()> {
    let manifest = shares[0].manifest();
    let interface = manifest.interface()?;
    let tokenizer = model.tokenizer().map(|tokenizer| tokenizer.json().to_vec());
    let face = ModelFace::new(&manifest.name, shares[0].digest(), interface.clone(), tokenizer)?;
    let requests = face.prepare(inputs, &Options::default(), None)?;
    let request = requests.first().context("no input")?;
    say(what);
    say(format_args!("  plain  {plain}"));
    for (share, input) in shares.iter().zip(request.shares()) {
        let shown = match parse(share.party(), manifest, &interface, input)? {
            Parsed::Narrow(parsed) => rows(&parsed.rows, &input.keys),
            Parsed::Wide(parsed) => rows(&parsed.rows, &input.keys),
        };
        let held = match interface.rows {
            RowInput::Lookup { .. } => ["into l1 + l2", "into m, into l1", "into m, into l2"],
            RowInput::Matrix { .. } => ["l1, l2", "m, l1", "m, l2"],
        };
        say(format_args!("  {}     {}   ({})", share.party(), shown.join("   "), held[share.party().index()]));
    }
    Ok(())
}

fn rows<E: Element>(rows: &InputRows<E>, keys: &[Vec<u8>; 2]) -> Vec<String> {
    match rows {
        InputRows::Matrix(matrix) | InputRows::Places(matrix) => {
            matrix.planes().iter().map(|plane| lanes(plane.data())).collect()
        }
        // One key at P0, two at the evaluators.
        InputRows::Lookup(_) => {
            keys.iter().filter(|key| !key.is_empty()).map(|key| hex(key.get(..16).unwrap_or_default())).collect()
        }
    }
}

fn lanes<E: Element>(plane: &[E]) -> String {
    let digits = E::BITS as usize / 4;
    plane.iter().take(SHOWN).map(|lane| format!("{:0digits$x}", lane.to_u64())).collect::<Vec<_>>().join(" ")
}

/// The beginning of plain values.
pub(super) fn numbers(values: &[f32]) -> String {
    values.iter().take(SHOWN).map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(" ")
}
