//! What the owner of a model does: load it, see how large its values get, choose its numbers, split it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use tercet_engine::{
    Base, Manifest, ModelNumerics, NoHeadroom, Profile, SplitError, StoreError, choose, share_path, split_on,
    weight_bytes,
};
use tercet_model::graph::{Graph, Input};
use tercet_model::{Gate, Model, OracleInput, Ranges, calibrate_with, calibration_inputs, text_inputs};
use tercet_net::{PartyId, secret_file};

use crate::screen::{bar, bytes};

/// Loads a Hugging Face directory, or says everything that is wrong with it.
pub(crate) fn load(dir: &Path) -> Result<Model> {
    load_with(dir, Gate::Secret)
}

/// The same with a gate of its mixtures.
pub(crate) fn load_with(dir: &Path, gate: Gate) -> Result<Model> {
    if !dir.is_dir() {
        bail!("{} is no directory; give that of a Hugging Face model", dir.display());
    }
    let model = Model::load_with(dir, gate)?;
    check_gate(&model.graph, gate)?;
    Ok(model)
}

/// Refuses a public gate where there is none to be opened.
pub(crate) fn check_gate(graph: &Graph, gate: Gate) -> Result<()> {
    match gate == Gate::Public && !graph.opens_gate() {
        true => bail!("--public-gate is for mixtures of experts, and this model is none"),
        false => Ok(()),
    }
}

/// Ranges of every value over the built-in inputs and `more`.
pub(crate) fn ranges(model: &Model, more: Vec<OracleInput>) -> Result<Ranges> {
    let mut inputs = calibration_inputs(model);
    inputs.extend(more);
    let bar = bar(model.graph.nodes.len() as u64, "calibrating", false);
    let ranges = calibrate_with(model, &inputs, |done| bar.set_position(done as u64))?;
    bar.clear();
    Ok(ranges)
}

/// The lines of a file as inputs.
pub(crate) fn lines_of(model: &Model, path: &Path) -> Result<Vec<OracleInput>> {
    if !matches!(model.graph.input, Input::Tokens { .. }) {
        bail!("--calibrate takes a file of texts, and this model takes images; leave it out");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let inputs = text_inputs(model, &lines);
    if inputs.is_empty() {
        bail!("{} holds no text to calibrate with; put one on each line", path.display());
    }
    Ok(inputs)
}

/// The numbers of a model in a profile, or everything that does not fit.
pub(crate) fn numbers(model: &Model, ranges: &Ranges, profile: Profile, public_table: bool) -> Result<ModelNumerics> {
    choose(&model.graph, ranges, profile, public_table).map_err(|problems| no_headroom(&problems, profile))
}

/// Says everything that does not fit, and what to do about it.
pub(crate) fn no_headroom(problems: &[NoHeadroom], profile: Profile) -> anyhow::Error {
    let listed: Vec<String> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
    let mend = match profile {
        Profile::Fast => "share it with --profile precise",
        Profile::Precise => "its values are too large to be computed with",
    };
    anyhow!("the model has no headroom in profile {profile}; {mend}:{}", listed.concat())
}

/// Splits a model into `out/p0`, `out/p1` and `out/p2`.
pub(crate) fn share(model: &Model, name: &str, numerics: ModelNumerics, out: &Path) -> Result<[PathBuf; 3]> {
    share_on(model, name, numerics, None, out)
}

/// The same without what a base lends.
pub(crate) fn share_on(
    model: &Model,
    name: &str,
    numerics: ModelNumerics,
    base: Option<Base>,
    out: &Path,
) -> Result<[PathBuf; 3]> {
    let dirs = PartyId::ALL.map(|party| out.join(format!("p{}", party.index())));
    for dir in &dirs {
        secret_file::create_folder(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    for party in PartyId::ALL {
        let path = share_path(&dirs[party.index()], name, party);
        if path.exists() {
            bail!("{} exists already; choose another --name or --out, or remove the old shares", path.display());
        }
    }
    let shared = Manifest { base: base.clone(), ..manifest(model, numerics.clone()) };
    let needed = weight_bytes(&shared).iter().sum();
    let lent = base.as_ref().map_or(0, |base| base.tensors.len());
    let bar = bar((model.graph.tensors.len() - lent) as u64, "sharing", false);
    let dirs = dirs.each_ref().map(PathBuf::as_path);
    let paths = split_on(model, name, numerics, base, dirs, |tensor| {
        bar.show(tensor);
        bar.inc(1);
    });
    bar.clear();
    paths.map_err(|error| match error {
        SplitError::Store(StoreError::Io { path, source })
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            let place = path.parent().unwrap_or(&path).display().to_string();
            anyhow!(
                "no space left in {place}: the three shares take about {}; free it or choose another --out",
                bytes(needed)
            )
        }
        other => other.into(),
    })
}

/// The public part of a model that has not been shared: good for pricing, not for running.
pub(crate) fn manifest(model: &Model, numerics: ModelNumerics) -> Manifest {
    Manifest {
        name: "unshared".into(),
        sharing_id: [0; 32],
        graph: model.graph.clone(),
        numerics,
        tokenizer: model.tokenizer().map(|tokenizer| tokenizer.json().to_vec()),
        generation: model.generation.clone(),
        base: None,
    }
}
