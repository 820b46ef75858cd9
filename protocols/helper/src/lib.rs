//! The three-party suite with a helper: masked sharing, and every primitive that a transformer needs.
//!
//! P0, the helper, knows masks only; P1 and P2, the evaluators, hold masked values and one half of each mask. All of P0's
//! work is independent of the input, so it runs ahead and only sends. One file a primitive; each says what it computes,
//! what it costs, how exact it is, and what every party receives. Semi-honest security against one corrupted party.

// `x.add(&y)` borrows its second operand and checks rings and shapes; operators would hide both.
#![allow(clippy::should_implement_trait)]

pub mod activation;
pub mod argmax;
pub mod attention;
pub mod bits;
pub mod boolean;
pub mod bound;
pub mod cache;
pub mod causal;
pub mod compare;
pub mod experts;
pub mod exponential;
pub mod extend;
pub mod gated;
pub mod inverse;
pub mod linear;
pub mod lookup;
pub mod masked;
pub mod maximum;
pub mod mixed;
pub mod noise;
pub mod norm;
pub mod onehot;
pub mod open;
pub mod plane;
pub mod price;
pub mod ragged;
pub mod reentry;
pub mod rotary;
pub mod route;
pub mod routing;
pub mod scale;
pub mod select;
pub mod suite;
pub mod truncate;

pub use masked::{Additive, Masked};
