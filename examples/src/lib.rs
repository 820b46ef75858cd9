//! What the programs of this package share: the digits that the demonstration classifies, and the model that it
//! classifies them with.

pub mod digits;
