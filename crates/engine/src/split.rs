//! Sharing a model: its owner's one act.
//!
//! The masks of every tensor come from two seeds drawn here and forgotten here. A linear weight is stored as its product
//! needs it: P0 `l2, l1 + l2`; P1 `m - l1`; P2 `l2, m`. Everything else is stored as the planes of a masked tensor, and what is
//! public as it is. Tensors are converted and written one at a time, in pieces, once for each plane: what is in memory is a piece,
//! whatever the size of the model.

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
        writers.push(StoreWriter::create(&paths[party.index()], party)?);
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
            writer.begin::<E>(name, [*rows, *cols], ring);
        }
        for plane in 0..2 {
            // Which parties have this plane.
            let holds = |party: usize| plane == 0 || !(public || matrix && party == 1);
            if !(0..3).any(holds) {
                break;
            }
            for writer in writers.iter_mut().enumerate().filter(|(party, _)| holds(*party)).map(|(_, writer)| writer) {
                writer.plane(plane);
            }
            let step = PIECE.div_ceil((*cols).max(1)).max(1);
            for from in (0..*rows).step_by(step) {
                let to = (from + step).min(*rows);
                let planes = self.piece::<E>(from, to, plane)?;
                for (party, writer) in writers.iter_mut().enumerate().filter(|(party, _)| holds(*party)) {
                    writer.lanes(&planes[party])?;
                }
            }
            for (_, writer) in writers.iter_mut().enumerate().filter(|(party, _)| holds(*party)) {
                writer.align()?;
            }
        }
        Ok(())
    }

    /// Rows `from..to` of one plane, for each party; empty where it has none.
    fn piece<E: Element>(&self, from: usize, to: usize, plane: usize) -> Result<[Vec<E>; 3], SplitError> {
        let TensorFormat { ring, frac, factor, matrix, public, .. } = self.format;
        let (first, len) = (from * self.spec.cols, (to - from) * self.spec.cols);
        let mask = |seed| sharing::mask_part::<E>(seed, self.stream, first, len);
        let [l1, l2] = self.seeds.map(mask);
        let values = || -> Result<Vec<E>, SplitError> {
            let values = self.model.tensor_rows(&self.spec.name, from..to)?;
            let scaled: Vec<f64> = values.into_iter().map(|v| f64::from(v) * factor).collect();
            Ok(fixed::encode(&self.spec.name, &scaled, frac, ring)?)
        };
        if public {
            let x = values()?;
            return Ok([x.clone(), x.clone(), x]);
        }
        let sum = |a: &[E], b: &[E]| a.iter().zip(b).map(|(&a, &b)| a.add(b)).collect::<Vec<E>>();
        let both = sum(&l1, &l2);
        Ok(match (matrix, plane) {
            (true, 0) => {
                let x = values()?;
                [l2.clone(), sum(&x, &l2), l2]
            }
            (true, _) => {
                let m = sum(&values()?, &both);
                [both, Vec::new(), m]
            }
            (false, 0) => {
                let m = sum(&values()?, &both);
                [l1, m.clone(), m]
            }
            (false, _) => [l2.clone(), l1, l2],
        })
    }
}
