//! The weight files of a directory: read once into memory, converted tensor by tensor when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::error::Problem;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Names under which older or wrapped checkpoints store the same tensors.
const OLD_ENDINGS: [(&str, &str); 2] = [(".gamma", ".weight"), (".beta", ".bias")];

/// The tensors of one or more safetensors files, by name without the family's prefix.
pub(crate) struct Weights {
    files: Vec<Vec<u8>>,
    entries: BTreeMap<String, Entry>,
}

/// Where a tensor lies.
pub(crate) struct Entry {
    /// Its name in the file.
    pub(crate) stored_name: String,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    dtype: Dtype,
    file: usize,
    bytes: Range<usize>,
}

impl Weights {
    /// Reads `model.safetensors`, or all shards that `model.safetensors.index.json` names. `prefix` (`bert.`) is taken
    /// off the names that carry it.
    pub(crate) fn read(dir: &Path, prefix: &str, problems: &mut Vec<Problem>) -> Self {
        let mut weights = Self::empty();
        for file in file_names(dir, problems) {
            match std::fs::read(dir.join(&file)) {
                Ok(bytes) => weights.add(&file, bytes, prefix, problems),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => problems.push(Problem::MissingFile {
                    file,
                    mend: format!("{INDEX} names it, so bring it from where the directory came"),
                }),
                Err(e) => problems.push(Problem::BrokenFile { file, cause: e.to_string() }),
            }
        }
        weights
    }

    /// No tensors.
    pub(crate) fn empty() -> Self {
        Self { files: Vec::new(), entries: BTreeMap::new() }
    }

    /// All tensors, in the order of their names.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The tensor of this name.
    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Whether a tensor has elements of a type that can be read.
    pub(crate) fn check_type(&self, entry: &Entry) -> Result<(), Problem> {
        match entry.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            other => Err(Problem::WrongType { name: entry.stored_name.clone(), found: format!("{other:?}") }),
        }
    }

    /// Whether all elements are finite.
    pub(crate) fn check_finite(&self, entry: &Entry) -> Result<(), Problem> {
        let bad = |values: &mut dyn Iterator<Item = f32>| {
            let mut bad = values.enumerate().filter(|(_, v)| !v.is_finite());
            bad.next().map(|(at, value)| (at, value, 1 + bad.count()))
        };
        let Some((mut at, value, count)) = bad(&mut self.values(entry)) else { return Ok(()) };
        let mut position = vec![0; entry.shape.len()];
        for (place, size) in position.iter_mut().zip(&entry.shape).rev() {
            (*place, at) = (at % size, at / size);
        }
        Err(Problem::NotFinite { name: entry.stored_name.clone(), position, value, count })
    }

    /// The elements of a tensor whose type was checked, row-major. Nothing for other types.
    pub(crate) fn values<'a>(&'a self, entry: &Entry) -> Box<dyn Iterator<Item = f32> + 'a> {
        let bytes = &self.files[entry.file][entry.bytes.clone()];
        match entry.dtype {
            Dtype::F32 => Box::new(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::F16 => Box::new(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Dtype::BF16 => Box::new(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            _ => Box::new(std::iter::empty()),
        }
    }

    fn add(&mut self, file: &str, bytes: Vec<u8>, prefix: &str, problems: &mut Vec<Problem>) {
        let (header, metadata) = match SafeTensors::read_metadata(&bytes) {
            Ok(parts) => parts,
            Err(e) => {
                let cause = format!("{e} ({} bytes; was it cut, or is it a pointer to the real file?)", bytes.len());
                return problems.push(Problem::BrokenFile { file: file.into(), cause });
            }
        };
        let start = header + size_of::<u64>();
        for stored_name in metadata.offset_keys() {
            let Some(info) = metadata.info(&stored_name) else { continue };
            let entry = Entry {
                shape: info.shape.clone(),
                dtype: info.dtype,
                file: self.files.len(),
                bytes: start + info.data_offsets.0..start + info.data_offsets.1,
                stored_name,
            };
            let name = canonical(&entry.stored_name, prefix);
            if let Some(other) = self.entries.get(&name) {
                let what = format!("the tensor is also there as {}", other.stored_name);
                problems.push(Problem::BadEntry { file: file.into(), key: entry.stored_name, what });
            } else {
                self.entries.insert(name, entry);
            }
        }
        self.files.push(bytes);
    }
}

fn canonical(stored: &str, prefix: &str) -> String {
    let name = stored.strip_prefix(prefix).unwrap_or(stored);
    for (old, new) in OLD_ENDINGS {
        if let Some(start) = name.strip_suffix(old) {
            return format!("{start}{new}");
        }
    }
    name.to_string()
}

/// The weight files that the directory should hold.
fn file_names(dir: &Path, problems: &mut Vec<Problem>) -> Vec<String> {
    if dir.join(SINGLE).exists() {
        return vec![SINGLE.to_string()];
    }
    let broken = |cause: String| Problem::BrokenFile { file: INDEX.into(), cause };
    let text = match std::fs::read_to_string(dir.join(INDEX)) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mend = match dir.join("pytorch_model.bin").exists() {
                true => "only pytorch_model.bin is there; save the model again with safe_serialization=True",
                false => "the weights must be there in safetensors form, in one file or in shards with an index",
            };
            problems.push(Problem::MissingFile { file: SINGLE.into(), mend: mend.into() });
            return Vec::new();
        }
        Err(e) => {
            problems.push(broken(e.to_string()));
            return Vec::new();
        }
    };
    let index: serde_json::Value = match serde_json::from_str(&text) {
        Ok(index) => index,
        Err(e) => {
            problems.push(broken(e.to_string()));
            return Vec::new();
        }
    };
    let Some(map) = index.get("weight_map").and_then(|m| m.as_object()) else {
        problems.push(broken("it has no weight_map".into()));
        return Vec::new();
    };
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(file) if is_plain(file) => {
                files.insert(file.to_string());
            }
            _ => problems.push(Problem::BadEntry {
                file: INDEX.into(),
                key: tensor.clone(),
                what: format!("{file} is not the name of a file in the directory"),
            }),
        }
    }
    files.into_iter().collect()
}

fn is_plain(file: &str) -> bool {
    !file.is_empty() && file != ".." && !file.contains(['/', '\\', '\0'])
}
