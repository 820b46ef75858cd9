//! What the programs of this package share: the digits that the demonstration classifies, the model that it classifies them
//! with, the model that it continues texts with, and the way to the nodes.

pub mod digits;
pub mod gpt;
pub mod nodes;
