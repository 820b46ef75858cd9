//! The share files of a folder.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};

/// Share files in a folder, by name.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "tercet")).collect();
    files.sort();
    Ok(files)
}

/// One share file of each model in a folder, or in the folders p0, p1 and p2 of it: that of the first party there is. Models are
/// told apart by the names of their files.
pub(crate) fn models(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    for folder in ["", "p0", "p1", "p2"].map(|party| folder.join(party)).iter().filter(|folder| folder.is_dir()) {
        for file in files(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let model = [".p0", ".p1", ".p2"].iter().find_map(|party| name.strip_suffix(party)).unwrap_or(&name);
            found.entry(model.to_owned()).or_insert(file);
        }
    }
    Ok(found.into_values().collect())
}

/// What is wrong with a folder where one model is meant and several are there.
pub(crate) fn several(folder: &Path, files: &[PathBuf]) -> Error {
    let listed: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    anyhow!("{} holds shares of several models; give the file of one: {}", folder.display(), listed.join(", "))
}
