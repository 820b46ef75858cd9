//! Walking a graph on a suite: the same walk runs the protocol, its plaintext twin, and the price list.

use tercet_core::spec::{ActivationSpec, CausalHeads};
use tercet_core::{Error, Result, Suite};
use tercet_model::graph::{Graph, Op};

use crate::numerics::{ModelNumerics, NodeSpec};

/// Runs `graph` on `suite` and returns the last value. `seen` is called with every value as it is made (0 is the result of
/// node 0), which is what a comparison layer by layer needs.
pub fn walk<S: Suite>(
    suite: &mut S,
    graph: &Graph,
    numerics: &ModelNumerics,
    rows: Rows,
    mut seen: impl FnMut(usize, &S::Tensor),
) -> Result<S::Tensor> {
    let last_use = last_uses(graph);
    let mut values: Vec<Option<Value<S::Tensor>>> = vec![None];
    let mut layer = 0;
    for (index, (node, spec)) in graph.nodes.iter().zip(&numerics.nodes).enumerate() {
        suite.set_label(&node.name);
        let place = Place { graph, numerics, rows, layer };
        let made = step(suite, &node.op, spec, place, &node.inputs, &mut values)?;
        layer += usize::from(matches!(node.op, Op::CausalAttention { .. }));
        seen(index, &made.tensor);
        for &input in &node.inputs {
            if last_use[input] == index {
                values[input] = None;
            }
        }
        values.push(Some(made));
    }
    values.pop().flatten().map(|v| v.tensor).ok_or_else(|| Error::Misuse("the graph has no node".into()))
}

/// The rows that a walk begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// So many in each input.
    Inputs(usize),
    /// Those of a decoder's step, which the suite knows.
    Step,
}

/// The heads of a causal attention, as suites take them.
pub(crate) fn causal_heads(op: &Op) -> Option<CausalHeads> {
    let Op::CausalAttention { heads, kv_heads, rotary, reach } = op else { return None };
    let (window, global) = (reach.window, reach.global);
    Some(CausalHeads { heads: *heads, kv_heads: *kv_heads, rotary: rotary.clone(), window, global })
}

/// A value on the way.
#[derive(Clone)]
struct Value<T> {
    tensor: T,
    ring: u32,
    /// Rows of each input.
    rows: usize,
}

/// What an operation needs to know beyond its own numbers.
#[derive(Clone, Copy)]
struct Place<'a> {
    graph: &'a Graph,
    numerics: &'a ModelNumerics,
    rows: Rows,
    /// Causal attentions before it.
    layer: usize,
}

fn step<S: Suite>(
    suite: &mut S,
    op: &Op,
    spec: &NodeSpec,
    Place { graph, numerics, rows, layer }: Place<'_>,
    inputs: &[usize],
    values: &mut [Option<Value<S::Tensor>>],
) -> Result<Value<S::Tensor>> {
    let wide = numerics.formats.wide;
    let rows = if let Rows::Inputs(rows) = rows { rows } else { 0 };
    if let (Op::Lookup { table }, NodeSpec::Lookup(spec)) = (op, spec) {
        return Ok(Value { tensor: suite.lookup(table, spec)?, ring: wide, rows });
    }
    let first = inputs.first().copied().unwrap_or(0);
    if first == 0 && values[0].is_none() {
        values[0] = Some(Value { tensor: suite.input()?, ring: wide, rows });
    }
    let keeps = |x: &Value<S::Tensor>, tensor: S::Tensor, ring: u32| Value { tensor, ring, rows: x.rows };
    Ok(match (op, spec) {
        (Op::Linear { weight, bias }, NodeSpec::Linear(spec)) => {
            let x = at_least(suite, values, first, spec.ring + spec.truncate, wide)?;
            keeps(&x, suite.linear(&x.tensor, weight, bias.as_deref(), spec)?, spec.ring)
        }
        (Op::LayerNorm { gain, bias, .. }, NodeSpec::Norm(spec)) => {
            let x = present(values, first)?;
            keeps(&x, suite.layer_norm(&x.tensor, gain, bias, spec)?, spec.ring)
        }
        (Op::RmsNorm { gain, .. }, NodeSpec::Norm(spec)) => {
            let x = present(values, first)?;
            keeps(&x, suite.rms_norm(&x.tensor, gain, spec)?, spec.ring)
        }
        (Op::CausalAttention { .. }, NodeSpec::Causal { max_value, bound }) => {
            let x = present(values, first)?;
            let spec = numerics.causal(graph.max_rows(), *max_value, *bound);
            let heads = causal_heads(op).ok_or_else(|| Error::Misuse("no causal attention".into()))?;
            keeps(&x, suite.causal_attention(&x.tensor, layer, &heads, &spec)?, spec.attention.ring)
        }
        (Op::Gated(_), NodeSpec::Gated(spec)) => {
            let x = present(values, first)?;
            keeps(&x, suite.gated(&x.tensor, spec)?, spec.ring)
        }
        (Op::Route { .. }, NodeSpec::Route { top }) => {
            let x = present(values, first)?;
            let (_, experts) = suite.shape(&x.tensor);
            let spec = numerics.route(experts, *top);
            keeps(&x, suite.route(&x.tensor, &spec)?, spec.softmax.ring)
        }
        (Op::ScaleBlocks, NodeSpec::Scale(spec)) => {
            let ring = spec.ring + spec.truncate;
            let x = at_least(suite, values, first, ring, wide)?;
            let weights = at_least(suite, values, inputs.get(1).copied().unwrap_or(0), ring, wide)?;
            keeps(&x, suite.scale_blocks(&x.tensor, &weights.tensor, spec)?, spec.ring)
        }
        (Op::Experts { experts, .. }, NodeSpec::Experts { up, .. }) => {
            let x = at_least(suite, values, first, up.ring + up.truncate, wide)?;
            let scores = present(values, inputs.get(1).copied().unwrap_or(0))?;
            let spec = numerics.experts(spec).ok_or_else(|| Error::Misuse("no experts".into()))?;
            let names: Vec<[&str; 2]> = experts.iter().map(|e| [e.up.as_str(), e.down.as_str()]).collect();
            keeps(&x, suite.experts(&x.tensor, &scores.tensor, &names, &spec)?, spec.combine.ring)
        }
        (Op::Attention { heads }, NodeSpec::Attention { max_value }) => {
            let x = present(values, first)?;
            let spec = numerics.attention(x.rows, *max_value);
            keeps(&x, suite.attention(&x.tensor, x.rows, *heads, &spec)?, spec.ring)
        }
        (Op::Activation(_), NodeSpec::Activation(spec)) => {
            let x = present(values, first)?;
            let ring = match spec {
                ActivationSpec::Gate(gate) | ActivationSpec::Odd(gate) => gate.ring,
                ActivationSpec::Relu { ring } => *ring,
            };
            keeps(&x, suite.activation(&x.tensor, spec)?, ring)
        }
        (Op::AddRows { rows }, _) => {
            let x = at_least(suite, values, first, wide, wide)?;
            keeps(&x, suite.add_rows(&x.tensor, rows, x.rows)?, wide)
        }
        (Op::AddPositions { rows }, _) => {
            let x = at_least(suite, values, first, wide, wide)?;
            keeps(&x, suite.add_positions(&x.tensor, rows)?, wide)
        }
        (Op::PrependRow { row }, _) => {
            let x = at_least(suite, values, first, wide, wide)?;
            let tensor = suite.prepend_row(&x.tensor, row, x.rows)?;
            Value { tensor, ring: wide, rows: x.rows + 1 }
        }
        (Op::Add, NodeSpec::Add { ring }) => {
            let x = at_least(suite, values, first, *ring, wide)?;
            let y = at_least(suite, values, inputs.get(1).copied().unwrap_or(0), *ring, wide)?;
            keeps(&x, suite.add(&x.tensor, &y.tensor, *ring)?, *ring)
        }
        (Op::FirstRow, _) => {
            let x = present(values, first)?;
            Value { tensor: suite.first_row(&x.tensor, x.rows)?, ring: x.ring, rows: 1 }
        }
        (Op::LastRow, _) => {
            let x = present(values, first)?;
            Value { tensor: suite.last_row(&x.tensor)?, ring: x.ring, rows: 1 }
        }
        (Op::MeanRows, _) => {
            let x = at_least(suite, values, first, wide, wide)?;
            Value { tensor: suite.sum_rows(&x.tensor, x.rows)?, ring: wide, rows: 1 }
        }
        _ => return Err(Error::Misuse("the numerics do not fit the graph".into())),
    })
}

fn present<T: Clone>(values: &[Option<Value<T>>], id: usize) -> Result<Value<T>> {
    values.get(id).cloned().flatten().ok_or_else(|| Error::Misuse(format!("value {id} is not there")))
}

/// The value in a ring of at least `ring` bits: as it is, or widened, once for all its readers.
fn at_least<S: Suite>(
    suite: &mut S,
    values: &mut [Option<Value<S::Tensor>>],
    id: usize,
    ring: u32,
    wide: u32,
) -> Result<Value<S::Tensor>> {
    let mut value = present(values, id)?;
    if value.ring < ring {
        value.tensor = suite.widen(&value.tensor)?;
        value.ring = wide;
        values[id] = Some(value.clone());
    }
    Ok(value)
}

/// The index of the node that reads each value last.
fn last_uses(graph: &Graph) -> Vec<usize> {
    let mut last = vec![usize::MAX; graph.nodes.len() + 1];
    for (index, node) in graph.nodes.iter().enumerate() {
        for &input in &node.inputs {
            last[input] = index;
        }
    }
    last
}
