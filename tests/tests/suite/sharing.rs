//! Sharing a model into files, and reading files that something happened to.

use std::fs;
use std::path::PathBuf;

use tercet_engine::{ModelShare, Profile, SplitError, StoreError, choose, share_path, split};
use tercet_model::{calibrate, calibration_inputs};
use tercet_net::PartyId;

use super::models;

fn share_into(dir: &std::path::Path) -> Result<[PathBuf; 3], SplitError> {
    let model = models::load(models::DIGITS);
    let ranges = calibrate(&model, &calibration_inputs(&model)).unwrap();
    let numerics = choose(&model.graph, &ranges, Profile::Fast, false).unwrap();
    split(&model, "digits", numerics, [dir; 3], |_| ())
}

#[test]
fn a_full_disk_leaves_no_file_behind() {
    let dir = tempfile::tempdir().unwrap();
    // A device without room stands where the third party's file is written.
    let partial = share_path(dir.path(), "digits", PartyId::P2).with_extension("partial");
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    match share_into(dir.path()) {
        Err(SplitError::Store(StoreError::Io { path, source })) => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{source}");
            assert!(path.ends_with("digits.p2.tercet"), "{}", path.display());
        }
        other => panic!("{other:?}"),
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?} left behind");
    share_into(dir.path()).unwrap();
}

#[test]
fn a_cut_or_altered_file_is_refused_wherever_it_was_touched() {
    let dir = tempfile::tempdir().unwrap();
    let [path, ..] = share_into(dir.path()).unwrap();
    let good = fs::read(&path).unwrap();
    ModelShare::open(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        let other = dir.path().join("touched.tercet");
        fs::write(&other, bytes).unwrap();
        let error = ModelShare::open(&other).expect_err(what).to_string();
        assert!(error.contains("touched.tercet"), "{what}: {error} does not name the file");
    };
    for len in [0, 1, 7, 8, 63, 64, 100, good.len() / 2, good.len() - 100, good.len() - 1] {
        refused(&good[..len], &format!("cut to {len} bytes"));
    }
    let step = good.len() / 40;
    for at in (0..good.len()).step_by(step).chain(good.len() - 48..good.len()) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        refused(&bytes, &format!("bit of byte {at}"));
    }
    refused(&[&good[..], &[0]].concat(), "a byte more");
}
