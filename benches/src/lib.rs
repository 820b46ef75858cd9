//! The harness of the benches: the [limits](limit) of this machine, and the [ledger](Ledger) that holds every kernel
//! against one of them.

mod clock;
mod ledger;
pub mod limit;

pub use clock::Clock;
pub use ledger::{Ledger, criterion};

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
