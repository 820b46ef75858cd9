//! Sharing a model: its owner's one act.
//!
//! The masks of every tensor are streams of two seeds drawn here, of which P0 gets both, P1 and P2 one each: no mask is written. A
//! linear weight is held as its product needs it: P0 `l2, l1`; P1 `m - l1`; P2 `l2, m`. Everything else is held as the planes of a
//! masked tensor, and what is public as it is. Tensors are converted and written one at a time, in pieces: what is in memory is a
//! piece, whatever the size of the model.

use std::path::{Path, PathBuf};

use tercet_model::graph::TensorSpec;
use tercet_model::{Model, TensorError};
use tercet_net::PartyId;
use tercet_ring::fixed::{self, EncodeError};
use tercet_ring::{Element, Seed, sharing};

use crate::manifest::{Base, Manifest};
use crate::numerics::{ModelNumerics, TensorFormat};
use crate::store::{StoreError, StoreWriter};

/// Why a model could not be shared.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// A weight does not fit its ring.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A share file could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model has no such tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The name or the numbers are unusable.
    #[error(transparent)]
    Manifest(#[from] tercet_core::Error),
}

/// The file of a party's share in a directory.
pub fn share_path(dir: &Path, name: &str, party: PartyId) -> PathBuf {
    dir.join(format!("{name}.p{}.tercet", party.index()))
}

/// Shares `model` under `name`: one file for each party in `dirs`. `progress` is told of every tensor.
pub fn split(
    model: &Model,
    name: &str,
    numerics: ModelNumerics,
    dirs: [&Path; 3],
    progress: impl FnMut(&str),
) -> Result<[PathBuf; 3], SplitError> {
    split_on(model, name, numerics, None, dirs, progress)
}

/// As [`split`], but for the tensors that `base` lends: what is written are an adapter's own.
pub fn split_on(
    model: &Model,
    name: &str,
    numerics: ModelNumerics,
    base: Option<Base>,
    dirs: [&Path; 3],
    mut progress: impl FnMut(&str),
) -> Result<[PathBuf; 3], SplitError> {
    let manifest = Manifest {
        name: name.to_owned(),
        sharing_id: *Seed::random().as_bytes(),
        graph: model.graph.clone(),
        numerics,
        tokenizer: model.tokenizer().map(|t| t.json().to_vec()),
        generation: model.generation.clone(),
        base,
    };
    let manifest_bytes = manifest.to_bytes()?;
    let manifest = Manifest::from_bytes(&manifest_bytes)?;
    let paths = PartyId::ALL.map(|party| share_path(dirs[party.index()], name, party));
    let (first, second) = (Seed::random(), Seed::random());
    let mut writers = Vec::new();
    for party in PartyId::ALL {
        let seeds = [(PartyId::P2, &first), (PartyId::P1, &second)];
        let seeds = seeds.map(|(without, seed)| (party != without).then_some(seed));
        writers.push(StoreWriter::create(&paths[party.index()], party, seeds)?);
    }
    let held = manifest.graph.tensors.iter().filter(|spec| manifest.holds(&spec.name));
    for (stream, spec) in held.enumerate() {
        progress(&spec.name);
        let missing = || TensorError::Unknown(spec.name.clone());
        let format = *manifest.numerics.tensors.get(&spec.name).ok_or_else(missing)?;
        let tensor = TensorToWrite { model, spec, format, seeds: [&first, &second], stream: stream as u64 };
        match format.lane_bits {
            32 => tensor.write::<u32>(&mut writers)?,
            _ => tensor.write::<u64>(&mut writers)?,
        }
    }
    // All three or none: files of two sharings do not mix.
    writers.iter_mut().try_for_each(|writer| writer.complete(manifest_bytes.clone()))?;
    writers.into_iter().try_for_each(StoreWriter::publish)?;
    Ok(paths)
}

/// Elements of a piece, about.
const PIECE: usize = 1 << 22;

struct TensorToWrite<'a> {
    model: &'a Model,
    spec: &'a TensorSpec,
    format: TensorFormat,
    seeds: [&'a Seed; 2],
    /// The stream of its masks.
    stream: u64,
}

impl TensorToWrite<'_> {
    fn write<E: Element>(&self, writers: &mut [StoreWriter]) -> Result<(), SplitError> {
        let TensorSpec { name, rows, cols } = self.spec;
        let TensorFormat { ring, matrix, public, .. } = self.format;
        for writer in &mut *writers {
            writer.begin::<E>(name, [*rows, *cols], ring, self.stream, [public, matrix]);
        }
        let step = PIECE.div_ceil((*cols).max(1)).max(1);
        for from in (0..*rows).step_by(step) {
            let pieces = self.piece::<E>(from, (from + step).min(*rows))?;
            writers.iter_mut().zip(&pieces).try_for_each(|(writer, piece)| writer.lanes(piece))?;
        }
        writers.iter_mut().try_for_each(StoreWriter::align)?;
        Ok(())
    }

    /// Rows `from..to` of what each party's file holds.
    fn piece<E: Element>(&self, from: usize, to: usize) -> Result<[Vec<E>; 3], SplitError> {
        let TensorFormat { ring, frac, factor, matrix, public, .. } = self.format;
        let values = self.model.tensor_rows(&self.spec.name, from..to)?;
        let scaled: Vec<f64> = values.into_iter().map(|v| f64::from(v) * factor).collect();
        let x: Vec<E> = fixed::encode(&self.spec.name, &scaled, frac, ring)?;
        if public {
            return Ok([x.clone(), x.clone(), x]);
        }
        let (first, len) = (from * self.spec.cols, x.len());
        let [l1, l2] = self.seeds.map(|seed| sharing::mask_part::<E>(seed, self.stream, first, len));
        let sum = |a: &[E], b: &[E]| a.iter().zip(b).map(|(&a, &b)| a.add(b)).collect::<Vec<E>>();
        let second = sum(&x, &l2);
        let m = sum(&second, &l1);
        Ok([Vec::new(), if matrix { second } else { m.clone() }, m])
    }
}
