//! What the owner of a model lets everybody have.

use tercet_engine::ModelNumerics;
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

    /// In names of files and heads of tables; nothing where all is secret.
    pub(crate) fn suffix(self) -> &'static str {
        match (self.public_weights, self.public_table) {
            (true, _) => "-public-weights",
            (false, true) => "-public-table",
            (false, false) => "",
        }
    }
}
