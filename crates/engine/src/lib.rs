//! Runs a graph on a protocol suite: chooses its numbers, prices it, shares a model between the parties, and executes a
//! party's side of a batch of requests.

mod adapter;
mod chooser;
mod effort;
mod forecast;
mod gates;
mod manifest;
mod numerics;
mod plan;
mod replicas;
mod request;
mod sequence;
mod soundness;
mod split;
mod step;
mod store;
mod walk;

pub use adapter::{AdaptError, adapt};
pub use chooser::choose;
pub use effort::{Effort, Term};
pub use forecast::{Rates, Sample};
pub use manifest::{Base, MANIFEST_LIMIT_BYTES, MAX_ROWS_AT_ONCE, Manifest};
pub use numerics::{ModelNumerics, NoHeadroom, NodeSpec, Profile, TensorFormat};
pub use plan::{Plan, plan, weight_bytes};
pub use replicas::Replicas;
pub use request::{Parsed, check, check_rows, execute, parse, parse_rows};
pub use sequence::{Member, Place, Sequence, StepInput, execute_step};
pub use split::{SplitError, share_path, split, split_on};
pub use step::{Choice, StepPlan, StepShape, cache_bytes, plan_step};
pub use store::{ModelShare, StoreError};
pub use tercet_helper::noise::Noise;
pub use walk::{Rows, walk};
