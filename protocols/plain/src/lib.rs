//! The fixed-point twin of the three-party suite, without secrecy: the oracle of its tests.
//!
//! [`PlainSuite`] computes what every operation of [`tercet_core::spec`] means, on plain integers: the same rings, scales,
//! series and segments as the shares, one rounding to nearest wherever the shares lose up to a unit and a half, and the
//! true maximum where theirs may be a little low. What the parties reconstruct differs from the twin by truncation noise
//! alone; what the twin differs from floating point is the error of the chosen numbers.
//!
//! It is deterministic, and an input's result is exactly the same alone, beside others, and padded.

mod activation;
mod attention;
mod causal;
mod choice;
mod norm;
mod suite;
mod value;

pub use causal::PlainCache;
pub use suite::{PlainInput, PlainRows, PlainSuite, PlainWeight, PlainWeights};
pub use value::Value;
