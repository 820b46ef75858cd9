//! Who learns which experts of a mixture a token goes to.

/// The gate of a mixture of experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Nobody learns it: every expert runs for every token.
    #[default]
    Secret,
    /// Every node learns, in every layer, which experts each token goes to: these alone run.
    Public,
}
