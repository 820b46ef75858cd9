//! One operation on the plain twin.

use tercet_core::spec::Numerics;
use tercet_core::{Error, Geometry, Result};
use tercet_plain::{PlainInput, PlainRows, PlainSuite, PlainWeight, PlainWeights, Value};

/// A model without tensors.
pub(super) struct NoWeights;

impl PlainWeights for NoWeights {
    fn weight(&self, name: &str) -> Result<&PlainWeight> {
        Err(Error::Misuse(format!("no {name}")))
    }
}

/// What the twin computes at scale `frac`, its noise being that where some is given.
pub(super) fn twin(
    frac: u32,
    noise: Option<Vec<i64>>,
    compute: impl Fn(&mut PlainSuite<'_, NoWeights>) -> Result<Value>,
) -> Vec<i64> {
    let input = PlainInput { rows: PlainRows::Matrix(vec![0]), key_bias: vec![0], row_weight: vec![1] };
    let suite = PlainSuite::new(&NoWeights, input, Geometry { batch: 1, rows: 1 }, Numerics { wide: 64, frac });
    let mut suite = suite.expect("one row");
    if let Some(noise) = noise {
        suite = suite.with_noise(noise);
    }
    compute(&mut suite).expect("an operation that fits").data().to_vec()
}
