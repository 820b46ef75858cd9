//! Runs a graph on a protocol suite: chooses its numbers, prices it, shares a model between the parties, and executes a
//! party's side of a batch of requests.

mod chooser;
mod effort;
mod forecast;
mod gates;
mod manifest;
mod numerics;
mod plan;
mod request;
mod soundness;
mod split;
mod store;
mod walk;

pub use effort::{Effort, Term};
pub use forecast::{Rates, Sample};
pub use manifest::{Base, MANIFEST_LIMIT_BYTES, MAX_ROWS_AT_ONCE, Manifest};
pub use chooser::choose;
pub use numerics::{ModelNumerics, NoHeadroom, NodeSpec, Profile, TensorFormat};
pub use plan::{Plan, plan};
pub use request::{Parsed, execute, parse};
pub use split::{SplitError, share_path, split, split_on};
pub use store::{ModelShare, StoreError};
pub use walk::walk;
