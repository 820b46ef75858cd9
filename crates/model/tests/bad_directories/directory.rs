//! Directories to spoil.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tempfile::TempDir;
use tercet_model::{Model, Problem};

/// A copy of a fixture that a test spoils.
pub(crate) struct Directory(pub(crate) TempDir);

impl Directory {
    pub(crate) fn copy_of(fixture: &str) -> Self {
        let to = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture), to.path());
        Self(to)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub(crate) fn remove(&self, file: &str) -> &Self {
        fs::remove_file(self.path(file)).unwrap();
        self
    }

    pub(crate) fn set(&self, file: &str, key: &str, value: Value) -> &Self {
        let mut object: Value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        object[key] = value;
        fs::write(self.path(file), object.to_string()).unwrap();
        self
    }

    pub(crate) fn config(&self, key: &str, value: Value) -> &Self {
        self.set("config.json", key, value)
    }

    /// Rewrites the weights: the header as JSON, and the bytes after it.
    pub(crate) fn weights(&self, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) -> &Self {
        self.weights_of("model.safetensors", change)
    }

    /// The same of another file.
    pub(crate) fn weights_of(&self, file: &str, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) -> &Self {
        let bytes = fs::read(self.path(file)).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let mut data = bytes[8 + header_len..].to_vec();
        change(&mut header, &mut data);
        let header = serde_json::to_vec(&header).unwrap();
        let parts = [&(header.len() as u64).to_le_bytes()[..], &header, &data];
        fs::write(self.path(file), parts.concat()).unwrap();
        self
    }

    pub(crate) fn set_f32(&self, tensor: &str, index: usize, value: f32) -> &Self {
        self.set_f32_of("model.safetensors", tensor, index, value)
    }

    pub(crate) fn set_f32_of(&self, file: &str, tensor: &str, index: usize, value: f32) -> &Self {
        self.weights_of(file, |header, data| {
            let at = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 4 * index;
            data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        })
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let error = Model::load(self.0.path()).expect_err("the directory is spoilt");
        let shown = error.to_string();
        assert!(error.problems.iter().take(40).all(|p| shown.contains(&p.to_string())));
        error.problems
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
