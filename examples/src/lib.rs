//! What the programs of this package share: the digits that the demonstration classifies, the model that it classifies them
//! with, and the model that it finishes sentences with.

pub mod digits;
pub mod gpt;
