//! Models ready to run: their directories, calibrations and shares, kept in the cache from one measurement to the next.
//!
//! ```text
//! $TERCET_CACHE/bench/models/NAME/           a directory with random weights
//! $TERCET_CACHE/bench/ranges/NAME-GATE.json  what its calibration found, and of what
//! $TERCET_CACHE/bench/shares/NAME-PROFILE-PUBLIC/KEY/p0 p1 p2
//! ```
//!
//! The key is a digest of the program's version, the graph and its numbers: whatever changes one of them makes new
//! shares, and the old ones of that name and profile are removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tercet_engine::{Manifest, ModelNumerics, ModelShare, Profile, StoreError, share_path};
use tercet_model::{Model, OracleInput, Ranges, calibration_inputs};
use tercet_net::{PartyId, secret_file};

use super::catalogue::{Entry, Origin};
use super::weights;
use crate::public::Public;
use crate::screen::{hex, note};
use crate::{fetch, owner};

/// A model between three folders.
pub(crate) struct Stock {
    /// In plaintext, for the oracle.
    pub(crate) model: Model,
    /// What is public of the shares.
    pub(crate) manifest: Manifest,
    /// The folder of each party.
    pub(crate) folders: [PathBuf; 3],
}

impl Stock {
    /// Makes what is not in the cache.
    ///
    /// # Errors
    /// The model was not fetched; it has no headroom in this profile; the file system's own.
    pub(crate) fn of(entry: &Entry, profile: Profile, public: Public) -> Result<Self> {
        let root = fetch::cache()?.join("bench");
        secret_file::create_folder(&root).with_context(|| format!("cannot make {}", root.display()))?;
        // Of two measurements that begin at once, the second finds what the first has made.
        let lock = File::create(root.join(".lock")).context("cannot write to the cache")?;
        lock.lock().context("cannot lock the cache")?;
        let dir = match entry.origin {
            Origin::Random(shape) => weights::directory(entry.name, &shape, &root.join("models"))?,
            Origin::Fetched => match fetch::fetched(entry.name)? {
                Some(dir) => dir,
                None => bail!("{name} is not on this machine; run `tercet fetch {name}` first", name = entry.name),
            },
        };
        let model = owner::load_with(&dir, public.gate())?;
        let ranges = ranges(&model, &root.join("ranges").join(format!("{}{}.json", entry.name, public.gate_suffix())))?;
        let mut numerics = owner::numbers(&model, &ranges, profile, false)?;
        public.apply(&model.graph, &mut numerics);
        let of_model = root.join("shares").join(format!("{}-{profile}{}", entry.name, public.suffix()));
        let at = of_model.join(key(&model, &numerics)?);
        let folders = PartyId::ALL.map(|party| at.join(format!("p{}", party.index())));
        let open = |party: PartyId| ModelShare::open(&share_path(&folders[party.index()], entry.name, party));
        let shares: Result<Vec<ModelShare>, StoreError> = PartyId::ALL.into_iter().map(open).collect();
        let whole = shares.ok().filter(|shares| shares.iter().all(|share| share.digest() == shares[0].digest()));
        let manifest = match whole.and_then(|shares| shares.first().map(|share| share.manifest().clone())) {
            Some(manifest) => manifest,
            None => {
                remove(&of_model)?;
                note(format_args!("sharing {} in profile {profile}; it is kept for the next time …", entry.name));
                owner::share(&model, entry.name, numerics, &at)?;
                open(PartyId::P1)?.manifest().clone()
            }
        };
        Ok(Self { model, manifest, folders })
    }
}

fn remove(dir: &Path) -> Result<()> {
    match dir.exists() {
        true => fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display())),
        false => Ok(()),
    }
}

/// Names the shares of one state of a model.
fn key(model: &Model, numerics: &ModelNumerics) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(concat!("tercet bench shares ", env!("CARGO_PKG_VERSION")));
    hash.update(model.graph.digest());
    hash.update(serde_json::to_vec(numerics).context("the numbers have no JSON form")?);
    Ok(hex(&hash.finalize()[..8]))
}

/// What a calibration found.
#[derive(Serialize, Deserialize)]
struct Calibration {
    /// Digest of the graph and of the inputs.
    of: String,
    ranges: Ranges,
}

/// The ranges of a model, from the last time or from a calibration.
fn ranges(model: &Model, path: &Path) -> Result<Ranges> {
    let mut hash = Sha256::new();
    hash.update(model.graph.digest());
    for input in calibration_inputs(model) {
        let elements: Vec<u8> = match input {
            OracleInput::Tokens(ids) => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            OracleInput::Patches(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        hash.update((elements.len() as u64).to_le_bytes());
        hash.update(elements);
    }
    let of = hex(&hash.finalize());
    let kept = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Calibration>(&bytes).ok());
    if let Some(kept) = kept.filter(|kept| kept.of == of) {
        return Ok(kept.ranges);
    }
    let ranges = owner::ranges(model, Vec::new())?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let text = serde_json::to_vec(&Calibration { of, ranges: ranges.clone() }).context("ranges have no JSON form")?;
    let written = fs::create_dir_all(parent).and_then(|()| fs::write(path, text));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ranges)
}
