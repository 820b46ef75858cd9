//! A file that appears under its name only when it is whole and verified.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::screen::Bar;

const CHUNK_BYTES: usize = 1 << 16;

/// A file of a model, whole only at this length and SHA-256.
pub(super) struct Pinned {
    pub(super) path: &'static str,
    pub(super) bytes: u64,
    pub(super) sha256: &'static str,
}

impl Pinned {
    /// Whether the file is there with the pinned contents.
    pub(super) fn is_whole(&self, dir: &Path) -> io::Result<bool> {
        let mut opened = match File::open(dir.join(self.path)) {
            Ok(opened) => opened,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if opened.metadata()?.len() != self.bytes {
            return Ok(false);
        }
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match opened.read(&mut chunk)? {
                0 => return Ok(hex(hash) == self.sha256),
                n => hash.update(&chunk[..n]),
            }
        }
    }
}

/// A file on its way: `NAME.part` until it is whole and verified, `NAME` from then on.
pub(super) struct Partial<'a> {
    file: &'a Pinned,
    path: PathBuf,
    part: PathBuf,
    out: File,
    hash: Sha256,
    have: u64,
}

/// Why a file on its way did not arrive.
#[derive(Debug)]
pub(super) enum Broken {
    /// This machine cannot keep it.
    Write(io::Error),
    /// The source stopped.
    Read(String),
    /// It is not the pinned file.
    Differs(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier run left, if it left anything.
    pub(super) fn open(file: &'a Pinned, dir: &Path) -> io::Result<Self> {
        let path = dir.join(file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let out = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part)?;
        let mut partial = Self { file, path, part, out, hash: Sha256::new(), have: 0 };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match partial.out.read(&mut chunk)? {
                0 => break,
                n => partial.count(&chunk[..n]),
            }
        }
        if partial.have >= file.bytes {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Bytes that are there.
    pub(super) fn have(&self) -> u64 {
        self.have
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.out.set_len(0)?;
        self.out.rewind()?;
        (self.hash, self.have) = (Sha256::new(), 0);
        Ok(())
    }

    /// Appends all of `from`, verifies, and gives the file its name. What does not verify is removed; what broke off
    /// is kept for the next run.
    pub(super) fn fill(mut self, mut from: impl Read, progress: &Bar) -> Result<(), Broken> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Broken::Read(format!("{}: {error}", self.file.path))),
            };
            if self.have + n as u64 > self.file.bytes {
                fs::remove_file(&self.part)?;
                return Err(Broken::Differs(format!("{} is longer than {} bytes", self.file.path, self.file.bytes)));
            }
            self.out.write_all(&chunk[..n])?;
            self.count(&chunk[..n]);
            progress.inc(n as u64);
        }
        if self.have < self.file.bytes {
            let Pinned { path, bytes, .. } = self.file;
            return Err(Broken::Read(format!("{path} ends after {} of {bytes} bytes", self.have)));
        }
        let found = hex(self.hash);
        if found != self.file.sha256 {
            fs::remove_file(&self.part)?;
            let Pinned { path, sha256, .. } = self.file;
            return Err(Broken::Differs(format!("{path} has SHA-256 {found}, not {sha256}")));
        }
        self.out.sync_all()?;
        Ok(fs::rename(&self.part, &self.path)?)
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
