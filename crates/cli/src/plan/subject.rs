//! What is priced: the public part of a model, as far as there is one.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use tercet_engine::{Manifest, ModelShare, Profile, choose};
use tercet_model::Model;
use tercet_model::graph::Graph;

use crate::bench::assumed;
use crate::bench::catalogue::{self, Origin};
use crate::bench::weights;
use crate::public::Public;
use crate::{fetch, owner, shares};

/// A model to price.
pub(super) struct Subject {
    /// What people call it.
    pub(super) name: String,
    /// Its public part, as shared or as it would be.
    pub(super) manifest: Manifest,
    /// Whether its numbers follow from assumed ranges.
    pub(super) assumed: bool,
}

impl Subject {
    /// The model at a path; of the catalogue, where there is nothing at it.
    ///
    /// # Errors
    /// Neither is there; a folder holds shares of several models; the model cannot be loaded; its values do not fit; what is shared
    /// cannot be made public any more.
    pub(super) fn of(path: &Path, profile: Profile, public: Public) -> Result<Self> {
        if !path.exists() {
            return Self::named(path, profile, public);
        }
        let share = if path.is_file() { Some(path.to_owned()) } else { share_in(path)? };
        if let Some(share) = share {
            if public != Public::default() {
                bail!("{} is shared already: what is public of it is so, and the rest is not", share.display());
            }
            let manifest = ModelShare::open(&share)?.manifest().clone();
            return Ok(Self { name: manifest.name.clone(), manifest, assumed: false });
        }
        let name = path.file_name().map_or_else(|| "unshared".into(), |name| name.to_string_lossy().into_owned());
        if path.join("config.json").is_file() && !has(path, "safetensors")? && !has(path, "safetensors.index.json")? {
            return Self::assumed(name, Model::graph_of(path, public.gate())?, profile, public);
        }
        let model = owner::load_with(path, public.gate())?;
        let mut numerics = owner::numbers(&model, &owner::ranges(&model, Vec::new())?, profile, false)?;
        public.apply(&model.graph, &mut numerics);
        Ok(Self { name, manifest: owner::manifest(&model, numerics), assumed: false })
    }

    fn named(path: &Path, profile: Profile, public: Public) -> Result<Self> {
        let name = path.to_string_lossy();
        let entry =
            catalogue::find(&name).map_err(|unknown| anyhow!("there is no {}, and {unknown}", path.display()))?;
        match entry.origin {
            Origin::Fetched => match fetch::fetched(entry.name)? {
                Some(dir) => Self::of(&dir, profile, public),
                None => bail!("{name} is not on this machine; run `tercet fetch {name}` first"),
            },
            Origin::Random(shape) => {
                let dir = tempfile::tempdir().context("cannot make a folder for a configuration")?;
                weights::config(&shape, dir.path()).context("cannot write a configuration")?;
                Self::assumed(name.into_owned(), Model::graph_of(dir.path(), public.gate())?, profile, public)
            }
        }
    }

    fn assumed(name: String, graph: Graph, profile: Profile, public: Public) -> Result<Self> {
        owner::check_gate(&graph, public.gate())?;
        let numerics = choose(&graph, &assumed::ranges(&graph), profile, false);
        let mut numerics = numerics.map_err(|problems| owner::no_headroom(&problems, profile))?;
        public.apply(&graph, &mut numerics);
        let (sharing_id, tokenizer, generation, base) = ([0; 32], None, None, None);
        let manifest = Manifest { name: name.clone(), sharing_id, graph, numerics, tokenizer, generation, base };
        Ok(Self { name, manifest, assumed: true })
    }
}

/// The share of the only model in a folder, or in the folders p0, p1 and p2 of it, if there is one.
fn share_in(dir: &Path) -> Result<Option<std::path::PathBuf>> {
    let mut files = shares::models(dir)?;
    match files.len() {
        0 | 1 => Ok(files.pop()),
        _ => Err(shares::several(dir, &files)),
    }
}

/// Whether a folder has a file whose name ends so.
fn has(dir: &Path, ending: &str) -> Result<bool> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(ending)))
}

#[cfg(test)]
mod tests {
    use tercet_core::Layout;
    use tercet_engine::{Choice, StepShape, plan_step};

    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name)
    }

    #[test]
    fn names_and_bare_configurations_are_priced_without_weights() {
        let of = |path: &Path| Subject::of(path, Profile::Fast, Public::default()).unwrap();
        let llama = of(Path::new("llama-7b"));
        assert!(llama.assumed && llama.manifest.graph.is_decoder());
        let whole = of(&fixture("llama"));
        assert!(!whole.assumed);
        let bare = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("llama").join("config.json"), bare.path().join("config.json")).unwrap();
        let bare = of(bare.path());
        assert!(bare.assumed);
        assert_eq!(bare.manifest.graph, whole.manifest.graph);
    }

    #[test]
    fn what_is_nowhere_is_met_with_what_there_is() {
        let error = Subject::of(Path::new("llama-8b"), Profile::Fast, Public::default()).err().unwrap().to_string();
        assert!(error.contains("there is no llama-8b") && error.contains("llama-7b"), "{error}");
    }

    #[test]
    fn public_weights_cost_less_than_secret_ones() {
        let price = |public| {
            let subject = Subject::of(Path::new("gpt2-tiny"), Profile::Fast, public).unwrap();
            let shape =
                StepShape { layout: Layout::decode(&[30]), choice: Choice::Scores, reentry: false, noisy: false };
            let plan = plan_step(&subject.manifest, &shape).unwrap();
            (plan.total.total_bytes(), plan.weight_bytes.iter().sum::<u64>())
        };
        let secret = price(Public::default());
        let table = price(Public { public_table: true, ..Public::default() });
        let all = price(Public { public_weights: true, ..Public::default() });
        assert!(all.0 < table.0 && table.0 < secret.0, "{all:?} {table:?} {secret:?}");
        // What is public is a plane at the helper, too, which draws its masks of what is secret.
        assert!(all.1 > table.1 && table.1 > secret.1, "{all:?} {table:?} {secret:?}");
    }

    #[test]
    fn a_public_gate_spares_the_experts_that_a_token_does_not_go_to() {
        let price = |public_gate| {
            let public = Public { public_gate, ..Public::default() };
            let subject = Subject::of(Path::new("moe-small"), Profile::Fast, public).unwrap();
            let shape =
                StepShape { layout: Layout::decode(&[30]), choice: Choice::Scores, reentry: false, noisy: false };
            plan_step(&subject.manifest, &shape).unwrap().total
        };
        let (secret, public) = (price(false), price(true));
        assert!(2 * public.total_bytes() < secret.total_bytes(), "{public:?} {secret:?}");
        assert!(public.bytes[1][0] > 0 && public.bytes[2][0] == 0 && secret.bytes[1][0] == 0);
        let gpt2 = Public { public_gate: true, ..Public::default() };
        let error = Subject::of(Path::new("gpt2-tiny"), Profile::Fast, gpt2).err().unwrap().to_string();
        assert!(error.contains("mixtures"), "{error}");
    }
}
