//! What every protocol suite stands on: sessions, steps, shared randomness, declared cost, and the trait that the engine
//! is written against.

mod cost;
mod error;
pub mod fit;
pub mod functions;
mod profile;
mod prss;
mod session;
pub mod spec;
mod suite;

pub use cost::Cost;
pub use error::{Error, Result};
pub use prss::{Drawn, PairSeeds};
pub use session::{Posted, Session};
pub use suite::{Extent, Geometry, Layout, Suite};
pub use tercet_net::{Work, WorkEntry, WorkProfile};
