//! Three parties in one process: what the tests of protocols run in.
//!
//! [`World::run`] runs one program at all three parties over memory links and hands back what each
//! returned, the cost that was measured, and every byte that each party received, on which
//! [`uniformity`] puts a figure. [`World::record`] keeps what one party needs to do its part again
//! alone. [`encoder`] shares a whole model between them and runs it, beside its twin and the float
//! oracle. [`lookup`] makes what clients send for a token, as they should and as they should not.

pub mod decoder;
pub mod encoder;
pub mod lookup;
mod replay;
pub mod sharing;
pub mod uniformity;
mod world;

pub use replay::Recorded;
pub use world::{Run, World};
