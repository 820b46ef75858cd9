//! From a configuration to the graph, with a recipe for each of its tensors and a check of each stored tensor.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::error::Problem;
use crate::gate::Gate;
use crate::graph::{Graph, Node, Op, TensorSpec, ValueId};
use crate::pooling::Pooling;
use crate::recipe::{Block, Recipe};
use crate::weights::Weights;

/// A graph under construction.
pub(crate) struct Builder<'a> {
    weights: &'a Weights,
    problems: &'a mut Vec<Problem>,
    used: BTreeSet<String>,
    nodes: Vec<Node>,
    tensors: Vec<TensorSpec>,
    recipes: Vec<Recipe>,
}

/// Builds the graph; problems of stored tensors are reported, and the result is of use only if there were none.
pub(crate) fn build(
    config: &Config,
    pooling: Pooling,
    gate: Gate,
    weights: &Weights,
    problems: &mut Vec<Problem>,
) -> (Graph, Vec<Recipe>) {
    let (nodes, tensors, recipes, used) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
    let mut builder = Builder { weights, problems, used, nodes, tensors, recipes };
    let (family, input, output) = match config {
        Config::Encoder(config) => {
            let (input, output) = builder.encoder(config, pooling);
            (config.family, input, output)
        }
        Config::Decoder(config) => {
            let (input, output) = builder.decoder(config, gate);
            (config.family, input, output)
        }
    };
    let Builder { nodes, tensors, recipes, .. } = builder;
    (Graph { family: family.name().into(), input, nodes, output, tensors }, recipes)
}

impl Builder<'_> {
    /// A linear layer with a bias, stored `[out, in]`.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        stored: &str,
        width_in: usize,
        width_out: usize,
        x: ValueId,
    ) -> ValueId {
        let weight = self.stored(&format!("{stored}.weight"), &[width_out, width_in]);
        let weight = Block::transposed(weight, width_in, width_out);
        let bias = self.stored(&format!("{stored}.bias"), &[width_out]);
        let bias = Block::as_is(bias, 1, width_out);
        self.linear_of(name, weight.into(), Some(bias.into()), width_in, width_out, x)
    }

    /// A linear layer from the recipes of its parts.
    pub(crate) fn linear_of(
        &mut self,
        name: &str,
        weight: Recipe,
        bias: Option<Recipe>,
        width_in: usize,
        width_out: usize,
        x: ValueId,
    ) -> ValueId {
        let weight = self.tensor(name, "weight", width_in, width_out, weight);
        let bias = bias.map(|bias| self.tensor(name, "bias", 1, width_out, bias));
        self.node(name, Op::Linear { weight, bias }, vec![x])
    }

    /// A LayerNorm.
    pub(crate) fn norm(&mut self, name: &str, stored: &str, width: usize, eps: f64, x: ValueId) -> ValueId {
        let gain = Block::as_is(self.stored(&format!("{stored}.weight"), &[width]), 1, width);
        let bias = Block::as_is(self.stored(&format!("{stored}.bias"), &[width]), 1, width);
        let gain = self.tensor(name, "gain", 1, width, gain.into());
        let bias = self.tensor(name, "bias", 1, width, bias.into());
        self.node(name, Op::LayerNorm { gain, bias, eps }, vec![x])
    }

    /// One more node: the id of its result.
    pub(crate) fn node(&mut self, name: &str, op: Op, inputs: Vec<ValueId>) -> ValueId {
        self.nodes.push(Node { name: name.into(), op, inputs });
        self.nodes.len()
    }

    /// One more tensor of the graph: its name.
    pub(crate) fn tensor(&mut self, node: &str, role: &str, rows: usize, cols: usize, recipe: Recipe) -> String {
        let name = format!("{node}/{role}");
        self.tensors.push(TensorSpec { name: name.clone(), rows, cols });
        self.recipes.push(recipe);
        name
    }

    /// Checks that a stored tensor is there, of this shape, readable and finite: its name.
    pub(crate) fn stored(&mut self, name: &str, shape: &[usize]) -> String {
        if !self.used.insert(name.to_string()) {
            // A table that is tied to the head was already looked at.
            return name.to_string();
        }
        match self.weights.entry(name) {
            None => self.problems.push(Problem::MissingTensor { name: name.into() }),
            Some(entry) if entry.shape != shape => self.problems.push(Problem::WrongShape {
                name: entry.stored_name.clone(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            }),
            Some(entry) => {
                let checked = self.weights.check_type(entry).and_then(|()| self.weights.check_finite(entry));
                self.problems.extend(checked.err());
            }
        }
        name.to_string()
    }

    /// A layer or embedding that the configuration does not know would be left out in silence: whatever lies in the `body` of
    /// the model and is neither used nor `idle`.
    pub(crate) fn report_unexpected(&mut self, body: &[&str], idle: impl Fn(&str) -> bool) {
        for (name, entry) in self.weights.entries() {
            if body.iter().any(|part| name.starts_with(part)) && !self.used.contains(name) && !idle(name) {
                self.problems.push(Problem::UnexpectedTensor { name: entry.stored_name.clone() });
            }
        }
    }
}
