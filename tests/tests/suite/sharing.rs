//! Sharing a model into files, and reading files that something happened to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tercet_engine::{ModelShare, Profile, SplitError, StoreError, choose, share_path, split};
use tercet_model::{calibrate, calibration_inputs};
use tercet_net::{PartyId, secret_file};

use super::models;

fn share_into(dir: &std::path::Path) -> Result<[PathBuf; 3], SplitError> {
    let model = models::load(models::DIGITS);
    let ranges = calibrate(&model, &calibration_inputs(&model)).unwrap();
    let numerics = choose(&model.graph, &ranges, Profile::Fast, false).unwrap();
    split(&model, "digits", numerics, [dir; 3], |_| ())
}

#[test]
fn a_failure_at_one_file_leaves_none_behind() {
    let dir = tempfile::tempdir().unwrap();
    let partial = share_path(dir.path(), "digits", PartyId::P2).with_extension("partial");
    // What stands where the third party's file is written cannot be removed as a file.
    fs::create_dir(&partial).unwrap();
    match share_into(dir.path()) {
        Err(SplitError::Store(StoreError::Io { path, .. })) => assert_eq!(path, partial),
        other => panic!("{other:?}"),
    }
    fs::remove_dir(&partial).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?} left behind");
    share_into(dir.path()).unwrap();
}

#[test]
fn a_share_is_its_owners_alone_and_is_not_opened_where_others_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    // What a killed process left behind is not written into.
    let remains = dir.path().join("digits.p1.partial");
    fs::write(&remains, b"old").unwrap();
    let paths = share_into(dir.path()).unwrap();
    for path in &paths {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        for bits in [0o640, 0o604, 0o622] {
            fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
            match ModelShare::open(path) {
                Err(StoreError::Exposed { path: named, mode }) => assert_eq!((&named, mode), (path, bits)),
                other => panic!("{other:?}"),
            }
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
        ModelShare::open(path).unwrap();
    }
    assert!(!remains.exists());
}

#[test]
fn a_cut_or_altered_file_is_refused_wherever_it_was_touched() {
    let dir = tempfile::tempdir().unwrap();
    let [path, ..] = share_into(dir.path()).unwrap();
    let good = fs::read(&path).unwrap();
    ModelShare::open(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        let other = dir.path().join("touched.tercet");
        let _ = fs::remove_file(&other);
        secret_file::write_new(&other, bytes).unwrap();
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
