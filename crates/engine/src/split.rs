//! Sharing a model: its owner's one act.
//!
//! The masks of every tensor come from two seeds drawn here and forgotten here. A linear weight is stored as its product
//! needs it: P0 `l2, l1 + l2`; P1 `m - l1`; P2 `l2, m`. Everything else is stored as the planes of a masked tensor. Tensors
//! are converted and written one at a time.

use std::path::{Path, PathBuf};

use tercet_model::{Model, TensorError};
use tercet_net::PartyId;
use tercet_ring::fixed::{self, EncodeError};
use tercet_ring::{Element, Seed, sharing};

use crate::manifest::Manifest;
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
    mut progress: impl FnMut(&str),
) -> Result<[PathBuf; 3], SplitError> {
    let manifest = Manifest {
        name: name.to_owned(),
        sharing_id: *Seed::random().as_bytes(),
        graph: model.graph.clone(),
        numerics,
        tokenizer: model.tokenizer().map(|t| t.json().to_vec()),
    };
    let manifest_bytes = manifest.to_bytes()?;
    let manifest = Manifest::from_bytes(&manifest_bytes)?;
    let paths = PartyId::ALL.map(|party| share_path(dirs[party.index()], name, party));
    let (first, second) = (Seed::random(), Seed::random());
    let mut writers = Vec::new();
    for party in PartyId::ALL {
        writers.push(StoreWriter::create(&paths[party.index()], party)?);
    }
    let public = manifest.public_table().map(|t| t.name.clone());
    for (stream, spec) in manifest.graph.tensors.iter().enumerate() {
        progress(&spec.name);
        let missing = || TensorError::Unknown(spec.name.clone());
        let format = *manifest.numerics.tensors.get(&spec.name).ok_or_else(missing)?;
        let scaled = |v: f32| f64::from(v) * format.factor;
        let values: Vec<f64> = model.tensor(&spec.name)?.into_iter().map(scaled).collect();
        let shape = [spec.rows, spec.cols];
        let tensor = TensorToWrite { name: &spec.name, shape, format, public: public.as_ref() == Some(&spec.name) };
        match format.lane_bits {
            32 => tensor.write::<u32>(&mut writers, &values, [&first, &second], stream as u64)?,
            _ => tensor.write::<u64>(&mut writers, &values, [&first, &second], stream as u64)?,
        }
    }
    // All three or none: files of two sharings do not mix.
    writers.iter_mut().try_for_each(|writer| writer.complete(manifest_bytes.clone()))?;
    writers.into_iter().try_for_each(StoreWriter::publish)?;
    Ok(paths)
}

struct TensorToWrite<'a> {
    name: &'a str,
    shape: [usize; 2],
    format: TensorFormat,
    public: bool,
}

impl TensorToWrite<'_> {
    fn write<E: Element>(
        &self,
        writers: &mut [StoreWriter],
        values: &[f64],
        seeds: [&Seed; 2],
        stream: u64,
    ) -> Result<(), SplitError> {
        let TensorFormat { ring, frac, matrix, .. } = self.format;
        let x: Vec<E> = fixed::encode(self.name, values, frac, ring)?;
        if self.public {
            writers.iter_mut().try_for_each(|w| w.tensor(self.name, self.shape, ring, [&x, &[]]))?;
            return Ok(());
        }
        let l1 = sharing::mask::<E>(seeds[0], stream, x.len());
        let l2 = sharing::mask::<E>(seeds[1], stream, x.len());
        let m: Vec<E> = (0..x.len()).map(|i| x[i].add(l1[i]).add(l2[i])).collect();
        let planes: [[&[E]; 2]; 3];
        let (both, v): (Vec<E>, Vec<E>);
        if matrix {
            both = l1.iter().zip(&l2).map(|(&a, &b)| a.add(b)).collect();
            v = m.iter().zip(&l1).map(|(&m, &l)| m.sub(l)).collect();
            planes = [[&l2, &both], [&v, &[]], [&l2, &m]];
        } else {
            planes = [[&l1, &l2], [&m, &l1], [&m, &l2]];
        }
        for (writer, planes) in writers.iter_mut().zip(planes) {
            writer.tensor(self.name, self.shape, ring, planes)?;
        }
        Ok(())
    }
}
