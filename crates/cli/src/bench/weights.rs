//! A Hugging Face directory of a published shape with random weights.
//!
//! The weights are the same on every machine: each tensor has a stream of the library's own generator, keyed by its name.
//! They are stored in bf16, so the plain model and the shares see exactly the same values at half the space.

use std::f32::consts::TAU;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tercet_ring::{Prg, Seed};

use super::catalogue::{Drawn, Shape, Stored};
use crate::screen::bar;

/// Written last, so that a directory which holds it is whole. Its text changes with what is drawn.
const MARK: (&str, &str) = ("random-weights", "1\n");
/// Elements made at a time; even, as normal numbers come in pairs.
const CHUNK: usize = 1 << 16;

/// The directory of a shape below `folder`, made where it is not there yet or was made otherwise.
///
/// # Errors
/// The file system's own.
pub(crate) fn directory(name: &str, shape: &Shape, folder: &Path) -> Result<PathBuf> {
    let dir = folder.join(name);
    if fs::read_to_string(dir.join(MARK.0)).is_ok_and(|mark| mark == MARK.1) {
        return Ok(dir);
    }
    let written = write(shape, &dir);
    written.with_context(|| format!("cannot write random weights to {}; set TERCET_CACHE elsewhere", dir.display()))?;
    Ok(dir)
}

/// The configuration alone, which has no weights yet.
///
/// # Errors
/// The file system's own.
pub(crate) fn config(shape: &Shape, dir: &Path) -> io::Result<()> {
    fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&shape.config())?)
}

fn write(shape: &Shape, dir: &Path) -> io::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    config(shape, dir)?;
    if shape.vocab() > 0 {
        fs::write(dir.join("tokenizer.json"), serde_json::to_vec(&tokenizer(shape.vocab()))?)?;
    }
    let tensors = shape.tensors();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(dir.join("model.safetensors"))?);
    let header = header(&tensors);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let bar = bar(tensors.len() as u64, "drawing", false);
    for tensor in &tensors {
        draw(tensor, |value| out.write_all(&bf16(value).to_le_bytes()))?;
        bar.inc(1);
    }
    bar.clear();
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::write(dir.join(MARK.0), MARK.1)
}

/// The head of a safetensors file, padded with spaces to a multiple of eight bytes.
fn header(tensors: &[Stored]) -> Vec<u8> {
    let mut entries = Map::new();
    let mut at = 0;
    for tensor in tensors {
        let end = at + 2 * tensor.dims.iter().product::<usize>();
        entries
            .insert(tensor.name.clone(), json!({ "dtype": "BF16", "shape": tensor.dims, "data_offsets": [at, end] }));
        at = end;
    }
    let mut bytes = Value::Object(entries).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    bytes
}

/// A word for each id, its number: the text `17 4` has the ids 17 and 4, and no special ones.
fn tokenizer(vocab: usize) -> Value {
    let words: Map<String, Value> = (0..vocab).map(|id| (id.to_string(), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "0" },
    })
}

/// Hands over every element of a tensor.
fn draw(tensor: &Stored, mut take: impl FnMut(f32) -> io::Result<()>) -> io::Result<()> {
    let mut left = tensor.dims.iter().product::<usize>();
    let Drawn::Normal(deviation) = tensor.drawn else {
        return (0..left).try_for_each(|_| take(1.0));
    };
    let prg = Prg::new(&Seed::from_bytes([0; 32]).derive("tercet bench weights", tensor.name.as_bytes()));
    let mut words = vec![0u32; CHUNK];
    let mut first = 0;
    while left > 0 {
        prg.fill(0, first, &mut words);
        first += CHUNK as u64;
        let normal = words.chunks_exact(2).flat_map(|pair| normal([pair[0], pair[1]]));
        normal.take(left).try_for_each(|value| take(deviation * value))?;
        left = left.saturating_sub(CHUNK);
    }
    Ok(())
}

/// Two independent numbers of the standard normal distribution (Box and Muller 1958).
fn normal([radius, angle]: [u32; 2]) -> [f32; 2] {
    // From above zero to one, so that the logarithm is finite.
    let unit = (radius as f32 + 1.0) / (1u64 << 32) as f32;
    let radius = (-2.0 * unit.min(1.0).ln()).sqrt();
    let (sine, cosine) = (TAU * (angle as f32 / (1u64 << 32) as f32)).sin_cos();
    [radius * cosine, radius * sine]
}

/// The nearest bf16, ties away from zero.
fn bf16(value: f32) -> u16 {
    ((value.to_bits() + (1 << 15)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use tercet_model::{Model, Truncate};

    use super::*;
    use crate::bench::catalogue::{CATALOGUE, Family, Origin};

    #[test]
    fn directories_load_as_the_models_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let small = |family| Shape { layers: 1, hidden: 8, heads: 2, intermediate: 12, family };
        let texts = small(Family::Bert { vocab: 50, positions: 9 });
        let model = Model::load(&directory("texts", &texts, folder.path()).unwrap()).unwrap();
        let ids = model.tokenizer().unwrap().encode("17 4 49", 9, Truncate::No).unwrap();
        assert_eq!(ids, [17, 4, 49]);
        let images = small(Family::Vit { image: 8, patch: 4, labels: 3 });
        let dir = directory("images", &images, folder.path()).unwrap();
        assert_eq!(Model::load(&dir).unwrap().graph.max_rows(), 4);
        // What is whole is left alone, what is not is made anew.
        fs::write(dir.join("config.json"), "{}").unwrap();
        directory("images", &images, folder.path()).unwrap();
        assert_eq!(fs::read(dir.join("config.json")).unwrap(), b"{}");
        fs::remove_file(dir.join(MARK.0)).unwrap();
        directory("images", &images, folder.path()).unwrap();
        assert!(Model::load(&dir).is_ok());
    }

    #[test]
    fn weights_are_normal_and_always_the_same() {
        let tensor = |name: &str| Stored { name: name.into(), dims: vec![300, 501], drawn: Drawn::Normal(0.02) };
        let drawn = |name: &str| {
            let mut all = Vec::new();
            let mut keep = |value| all.push(f64::from(value));
            draw(&tensor(name), |value| {
                keep(value);
                Ok(())
            })
            .unwrap();
            all
        };
        let one = drawn("one");
        assert_eq!(one.len(), 300 * 501);
        assert_eq!(one, drawn("one"));
        assert_ne!(one, drawn("two"));
        let moment = |power: i32| one.iter().map(|v| (v / 0.02).powi(power)).sum::<f64>() / one.len() as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.1);
    }

    #[test]
    fn rounding_is_to_the_nearest() {
        for (value, wanted) in [(1.0, 0x3f80), (-1.0, 0xbf80), (0.0, 0), (1.0 + 1.0 / 256.0, 0x3f81), (1.0039, 0x3f80)]
        {
            assert_eq!(bf16(value), wanted, "{value}");
        }
    }

    #[test]
    fn every_shape_of_the_catalogue_is_listed_without_repetition() {
        for entry in CATALOGUE {
            let Origin::Random(shape) = entry.origin else { continue };
            let mut names: Vec<String> = shape.tensors().into_iter().map(|tensor| tensor.name).collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all, "{}", entry.name);
        }
    }
}
