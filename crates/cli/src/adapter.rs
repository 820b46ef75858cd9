//! What the owner of an adapter does: load it, put it on its base, find its numbers beside those of the base.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use tercet_engine::{AdaptError, Manifest, ModelShare, TensorFormat, adapt};
use tercet_model::{Adapter, Model, OracleInput, Ranges};

use crate::share::Prepared;
use crate::{owner, shares};

/// A model with its adapter, or everything by which they do not go together.
pub(crate) fn load(model: &Model, dir: &Path) -> Result<Model> {
    if !dir.is_dir() {
        bail!("{} is no directory; give that of an adapter as PEFT saves it", dir.display());
    }
    let of_adapter = || format!("adapter {}", dir.display());
    let adapter = Adapter::load(dir).with_context(of_adapter)?;
    model.with_adapter(&adapter).with_context(of_adapter)
}

/// The adapter of a model in `dir`, to be split on the base whose share is at `base`.
pub(crate) fn prepare(model: Model, dir: &Path, base: &Path, more: Vec<OracleInput>) -> Result<Prepared> {
    let adapted = load(&model, dir)?;
    let share = of_base(base)?;
    let base = share.manifest();
    if base.graph != model.graph {
        bail!(
            "the share of {:?} is not one of this model: it computes something else; give what that was shared with \
             (--context, --window, --global, --public-gate), or share the model, and give --base that",
            base.name
        );
    }
    let of_base = owner::ranges(&model, more.clone())?;
    let chosen = owner::numbers(&model, &of_base, base.numerics.profile, false)?;
    if formats(&chosen.tensors) != formats(&base.numerics.tensors) || chosen.score_ring != base.numerics.score_ring {
        bail!(
            "the share of {:?} has other numbers than this model: it is one of other weights, or was calibrated with other texts; \
             give --calibrate the file that it was shared with",
            base.name
        );
    }
    let ranges = owner::ranges(&adapted, more)?;
    let (numerics, lent) = adapt(base, &of_base, &adapted, &ranges).map_err(|error| match error {
        AdaptError::NoHeadroom(_) => anyhow!(
            "{error}\ncalibrate the base with texts on which its values are as large (tercet share --calibrate FILE), or share \
             it in profile precise"
        ),
        other => other.into(),
    })?;
    Ok(Prepared { model: adapted, numerics, base: Some(lent), calibrated: ranges.inputs })
}

/// How tensors are encoded, whether they are public or not.
fn formats(tensors: &BTreeMap<String, TensorFormat>) -> BTreeMap<&str, TensorFormat> {
    tensors.iter().map(|(name, format)| (name.as_str(), TensorFormat { public: false, ..*format })).collect()
}

/// The share of a base: the file, or the only model with weights of its own in a folder or in the folders p0, p1 and p2 of it.
fn of_base(path: &Path) -> Result<ModelShare> {
    if !path.is_dir() {
        return Ok(ModelShare::open(path)?);
    }
    let (mut files, mut bases) = (Vec::new(), Vec::new());
    for file in shares::models(path)? {
        let share = ModelShare::open(&file)?;
        if share.manifest().base.is_none() {
            files.push(file);
            bases.push(share);
        }
    }
    match (bases.pop(), files.len()) {
        (Some(share), 1) => Ok(share),
        (None, _) => bail!("{} holds no share of a model; share the base first", path.display()),
        _ => Err(shares::several(path, &files)),
    }
}

/// Of an adapter on a base that has not been shared: whether its values fit the base's numbers.
pub(crate) fn problems(base: &Manifest, ranges: [&Ranges; 2], adapted: &Model) -> Vec<String> {
    match adapt(base, ranges[0], adapted, ranges[1]) {
        Ok(_) => Vec::new(),
        Err(AdaptError::NoHeadroom(problems)) => problems.iter().map(ToString::to_string).collect(),
        Err(other) => vec![other.to_string()],
    }
}
