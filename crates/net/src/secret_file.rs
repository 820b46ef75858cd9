//! Files that their owner alone may read: keys, shares of models, and what lies beside them.
//!
//! A file gets its mode when it is created, never afterwards, so that nobody can open it in
//! between. Where the system knows no modes, files get those of their folder.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Why a secret file is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Others than its owner may read or write it.
    #[error("others can read or write it (mode {mode:o})")]
    Exposed {
        /// Its permission bits.
        mode: u32,
    },
}

/// Creates a file that its owner alone may read and write (mode 0600). It never opens a file that
/// is there already.
///
/// # Errors
/// A file of this name exists; the operating system's own.
pub fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Creates such a file with this content, on the disk when the call returns.
///
/// # Errors
/// As [`create_new`].
pub fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Creates a folder that its owner alone may enter (mode 0700), and so its parents where they are
/// missing. A folder that exists stays as it is.
///
/// # Errors
/// The operating system's own.
pub fn create_folder(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Opens a file for reading, if nobody but its owner may read or write it.
///
/// # Errors
/// The file is exposed; the operating system's own.
pub fn open(path: &Path) -> Result<File, OpenError> {
    let file = File::open(path)?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata()?.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            return Err(OpenError::Exposed { mode });
        }
    }
    Ok(file)
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tercet-secret-{}-{name}", std::process::id()));
        create_folder(&folder).unwrap();
        folder
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_and_new_folders_are_their_owners_alone() {
        let outer = scratch("modes");
        fs::set_permissions(&outer, Permissions::from_mode(0o755)).unwrap();
        let inner = outer.join("one/two");
        create_folder(&inner).unwrap();
        create_folder(&inner).unwrap();
        assert_eq!([&outer, &outer.join("one"), &inner].map(|path| mode(path)), [0o755, 0o700, 0o700]);
        let path = inner.join("file");
        write_new(&path, b"secret").unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, b"secret".to_vec()));
        fs::remove_dir_all(outer).unwrap();
    }

    #[test]
    fn nothing_that_is_there_is_written_to() {
        let folder = scratch("there");
        let (path, link) = (folder.join("file"), folder.join("link"));
        fs::write(&path, b"old").unwrap();
        symlink(&path, &link).unwrap();
        symlink(folder.join("nowhere"), folder.join("dangling")).unwrap();
        for taken in [&path, &link, &folder.join("dangling")] {
            assert_eq!(write_new(taken, b"new").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read(&path).unwrap(), b"old");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_exposed_file_is_not_opened() {
        let folder = scratch("exposed");
        let path = folder.join("file");
        write_new(&path, b"secret").unwrap();
        for (bits, exposed) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o620, true)] {
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            match open(&path) {
                Ok(_) => assert!(!exposed, "{bits:o}"),
                Err(OpenError::Exposed { mode }) => assert!(exposed && mode == bits, "{bits:o}"),
                Err(OpenError::Io(error)) => panic!("{bits:o}: {error}"),
            }
        }
        assert!(matches!(open(&folder.join("absent")), Err(OpenError::Io(_))));
        fs::remove_dir_all(folder).unwrap();
    }
}
