//! What the owner of a model lets everybody have, or learn.

use tercet_engine::ModelNumerics;
use tercet_model::Gate;
use tercet_model::graph::{Graph, Op};

/// Which weights are not secret: those of a public table, or of a public model, cost nothing dealt.
#[derive(clap::Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Public {
    /// Leave the embedding table unshared: nodes and clients know it, and clients look words up by themselves.
    #[arg(long)]
    pub(crate) public_table: bool,
    /// Leave all weights unshared: the nodes know the model, and texts and answers alone are secret.
    #[arg(long)]
    pub(crate) public_weights: bool,
    /// Let the nodes learn which experts of a mixture each token goes to: these alone run.
    #[arg(long)]
    pub(crate) public_gate: bool,
}

impl Public {
    /// Makes the numbers of a graph say so.
    pub(crate) fn apply(self, graph: &Graph, numerics: &mut ModelNumerics) {
        let table = match graph.nodes.first().map(|node| &node.op) {
            Some(Op::Lookup { table }) if self.public_table => Some(table.as_str()),
            _ => None,
        };
        numerics.publish(|name| self.public_weights || table == Some(name));
    }

    /// The gate of mixtures.
    pub(crate) fn gate(self) -> Gate {
        if self.public_gate { Gate::Public } else { Gate::Secret }
    }

    /// In names of files and heads of tables; nothing where all is secret.
    pub(crate) fn suffix(self) -> String {
        let weights = match (self.public_weights, self.public_table) {
            (true, _) => "-public-weights",
            (false, true) => "-public-table",
            (false, false) => "",
        };
        format!("{weights}{}", self.gate_suffix())
    }

    /// The same of what the graph depends on.
    pub(crate) fn gate_suffix(self) -> &'static str {
        if self.public_gate { "-public-gate" } else { "" }
    }
}
