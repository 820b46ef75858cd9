//! The weight files of a directory: opened once, and read tensor by tensor, or some rows of one, when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::Problem;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest header that is read; the format allows no longer one.
const MAX_HEADER: u64 = 100_000_000;
/// Elements that are read and converted at a time.
pub(crate) const PIECE: usize = 1 << 18;

/// Names under which older or wrapped checkpoints store the same tensors.
const OLD_ENDINGS: [(&str, &str); 2] = [(".gamma", ".weight"), (".beta", ".bias")];

/// The tensors of one or more safetensors files, by name without the family's prefix. No element stays in memory.
pub(crate) struct Weights {
    files: Vec<(String, File)>,
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
    /// Offset of its first byte.
    start: u64,
}

impl Entry {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Weights {
    /// Opens `model.safetensors`, or all shards that `model.safetensors.index.json` names, and reads their headers. `prefix`
    /// (`bert.`) is taken off the names that carry it.
    pub(crate) fn open(dir: &Path, prefix: &str, problems: &mut Vec<Problem>) -> Self {
        let mut weights = Self::empty();
        for name in file_names(dir, problems) {
            weights.read_file(
                dir,
                name,
                prefix,
                &format!("{INDEX} names it, so bring it from where the directory came"),
                problems,
            );
        }
        weights
    }

    /// Opens one file of a directory; `mend` says where it comes from.
    pub(crate) fn open_file(dir: &Path, name: &str, prefix: &str, mend: &str, problems: &mut Vec<Problem>) -> Self {
        let mut weights = Self::empty();
        weights.read_file(dir, name.into(), prefix, mend, problems);
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
        match element_size(entry.dtype) {
            Some(_) => Ok(()),
            None => Err(Problem::WrongType { name: entry.stored_name.clone(), found: format!("{:?}", entry.dtype) }),
        }
    }

    /// Whether all elements are finite. Nothing is said of elements of other types.
    pub(crate) fn check_finite(&self, entry: &Entry) -> Result<(), Problem> {
        if element_size(entry.dtype).is_none() {
            return Ok(());
        }
        let (mut first, mut count) = (None, 0);
        let mut piece = vec![0.0; PIECE.min(entry.elements())];
        for from in (0..entry.elements()).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(entry.elements() - from)];
            self.read_elements(entry, from, piece).map_err(|e| Problem::BrokenFile {
                file: self.files[entry.file].0.clone(),
                cause: format!("{}: {e}", entry.stored_name),
            })?;
            let bad = piece.iter().filter(|v| !v.is_finite()).count();
            if bad != 0 && first.is_none() {
                first = piece.iter().position(|v| !v.is_finite()).map(|at| (from + at, piece[at]));
            }
            count += bad;
        }
        let Some((mut at, value)) = first else { return Ok(()) };
        let mut position = vec![0; entry.shape.len()];
        for (place, size) in position.iter_mut().zip(&entry.shape).rev() {
            (*place, at) = (at % size, at / size);
        }
        Err(Problem::NotFinite { name: entry.stored_name.clone(), position, value, count })
    }

    /// Elements of a tensor whose type was checked, row-major, from element `from` on.
    ///
    /// # Errors
    /// The file cannot be read, or has been cut since it was opened; the tensor is shorter or of another type.
    pub(crate) fn read_elements(&self, entry: &Entry, from: usize, to: &mut [f32]) -> io::Result<()> {
        let size = element_size(entry.dtype).ok_or(io::ErrorKind::InvalidData)?;
        if from.checked_add(to.len()).is_none_or(|end| end > entry.elements()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = vec![0; size * PIECE.min(to.len())];
        for (piece, values) in to.chunks_mut(PIECE).enumerate() {
            let bytes = &mut bytes[..size * values.len()];
            let offset = entry.start + (size * (from + piece * PIECE)) as u64;
            self.files[entry.file].1.read_exact_at(bytes, offset)?;
            decode(entry.dtype, bytes, values);
        }
        Ok(())
    }

    /// Rows `rows`, in each the columns `cols`, of a tensor read as a matrix of `width` columns. `whole` asks to read the
    /// rows from end to end, in one go, rather than the columns alone; the columns are the same.
    ///
    /// # Errors
    /// As for [`Self::read_elements`].
    pub(crate) fn read_block(
        &self,
        entry: &Entry,
        width: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        whole: bool,
    ) -> io::Result<Vec<f32>> {
        let mut block = vec![0.0; rows.len() * cols.len()];
        if cols == (0..width) {
            self.read_elements(entry, rows.start * width, &mut block)?;
        } else if whole {
            let mut all = vec![0.0; rows.len() * width];
            self.read_elements(entry, rows.start * width, &mut all)?;
            for (to, from) in block.chunks_exact_mut(cols.len().max(1)).zip(all.chunks_exact(width.max(1))) {
                to.copy_from_slice(from.get(cols.clone()).ok_or(io::ErrorKind::InvalidInput)?);
            }
        } else {
            for (to, row) in block.chunks_exact_mut(cols.len().max(1)).zip(rows) {
                self.read_elements(entry, row * width + cols.start, to)?;
            }
        }
        Ok(block)
    }

    fn read_file(&mut self, dir: &Path, name: String, prefix: &str, mend: &str, problems: &mut Vec<Problem>) {
        match File::open(dir.join(&name)) {
            Ok(file) => match read_header(&file) {
                Ok((start, header)) => self.add(name, file, start, &header, prefix, problems),
                Err(cause) => problems.push(Problem::BrokenFile { file: name, cause }),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                problems.push(Problem::MissingFile { file: name, mend: mend.into() });
            }
            Err(e) => problems.push(Problem::BrokenFile { file: name, cause: e.to_string() }),
        }
    }

    fn add(
        &mut self,
        file_name: String,
        file: File,
        start: u64,
        header: &Metadata,
        prefix: &str,
        problems: &mut Vec<Problem>,
    ) {
        for stored_name in header.offset_keys() {
            let Some(info) = header.info(&stored_name) else { continue };
            let entry = Entry {
                shape: info.shape.clone(),
                dtype: info.dtype,
                file: self.files.len(),
                start: start + info.data_offsets.0 as u64,
                stored_name,
            };
            let name = canonical(&entry.stored_name, prefix);
            if let Some(other) = self.entries.get(&name) {
                let what = format!("the tensor is also there as {}", other.stored_name);
                problems.push(Problem::BadEntry { file: file_name.clone(), key: entry.stored_name, what });
            } else {
                self.entries.insert(name, entry);
            }
        }
        self.files.push((file_name, file));
    }
}

/// The offset of the first tensor, and the header, which describes the file to its last byte.
fn read_header(file: &File) -> Result<(u64, Metadata), String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let cut = |what: String| format!("{what} ({length} bytes; was it cut, or is it a pointer to the real file?)");
    let mut size = [0; size_of::<u64>()];
    file.read_exact_at(&mut size, 0).map_err(|e| cut(e.to_string()))?;
    let (start, size) = (size.len() as u64, u64::from_le_bytes(size));
    if size > MAX_HEADER || start + size > length {
        return Err(cut(format!("its header would have {size} bytes")));
    }
    let mut header = vec![0; size as usize];
    file.read_exact_at(&mut header, start).map_err(|e| cut(e.to_string()))?;
    // Offsets, shapes and types are held to each other as the header is parsed.
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| cut(e.to_string()))?;
    if start + size + header.data_len() as u64 != length {
        return Err(cut(format!("its tensors have {} bytes", header.data_len())));
    }
    Ok((start + size, header))
}

fn element_size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

fn decode(dtype: Dtype, bytes: &[u8], to: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            to.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }
        Dtype::F16 => {
            // Converted by the slice: the processor does eight at once.
            let mut halves = [f16::ZERO; 256];
            for (to, bytes) in to.chunks_mut(256).zip(bytes.chunks(512)) {
                halves.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(v, b)| *v = f16::from_le_bytes(*b));
                halves[..to.len()].convert_to_f32_slice(to);
            }
        }
        _ => {
            to.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(v, b)| *v = bf16::from_le_bytes(*b).to_f32());
        }
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
