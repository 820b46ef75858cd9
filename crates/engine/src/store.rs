//! One party's share of a model in one file: versioned, checksummed, read through a memory mapping.
//!
//! ```text
//! magic (8) version (4) party (4) zeros to 64
//! planes, each at a multiple of 64 bytes, little-endian lanes, row-major
//! header (bincode): manifest, seeds, and where each tensor's planes are
//! SHA-256 of all of the above (32) offset of the header (8) magic (8)
//! ```
//!
//! Planes that are masks are not stored: a party that has their seed draws them where it needs them. So P0's share holds two seeds
//! and what is public, and an evaluator's one plane of each tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tercet_core::Error;
use tercet_helper::plane::{Masks, Plane};
use tercet_helper::suite::{Stored, Weights};
use tercet_net::secret_file::{self, OpenError};
use tercet_net::{PartyId, codec};
use tercet_ring::{Element, Mapped, Prg, Seed};

use crate::manifest::{MANIFEST_LIMIT_BYTES, Manifest};

const MAGIC: [u8; 8] = *b"TERCETSH";
const VERSION: u32 = 2;
const ALIGN: u64 = 64;
const FOOTER: usize = 32 + 8 + 8;

/// Why a share file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Others than its owner could read or write the file.
    #[error(
        "share file {path} can be read or written by others (mode {mode:o}): run `chmod 600 {path}`; if somebody else \
         may have read it, share the model again"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file was cut, altered, or is none of ours.
    #[error("{path}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    manifest: Vec<u8>,
    /// Of the masks `l1` and `l2`: those that the party has.
    seeds: [Option<[u8; 32]>; 2],
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    rows: u64,
    cols: u64,
    lane_bits: u32,
    ring: u32,
    /// The stream of its masks.
    stream: u64,
    planes: [PlaneAt; 2],
}

/// Where a plane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PlaneAt {
    /// The party needs none.
    Nowhere,
    /// At this offset of the file.
    File(u64),
    /// The masks `l1`.
    First,
    /// The masks `l2`.
    Second,
}

/// One party's share of a model.
pub struct ModelShare {
    party: PartyId,
    manifest: Manifest,
    digest: [u8; 32],
    entries: BTreeMap<String, Entry>,
    masks: [Option<Prg>; 2],
    file: Mapped,
    /// What lends the tensors that this file does not hold.
    base: Option<Arc<ModelShare>>,
}

impl std::fmt::Debug for ModelShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelShare({} at {})", self.manifest.name, self.party)
    }
}

impl ModelShare {
    /// Opens and checks a share file: one pass over it for the checksum.
    ///
    /// # Errors
    /// Others than its owner may read or write it; it is damaged; the file system's own.
    pub fn open(path: &Path) -> Result<ModelShare, StoreError> {
        let damaged = |what: &str| StoreError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let failed = |source| StoreError::Io { path: path.to_owned(), source };
        let file = secret_file::open(path).map_err(|error| match error {
            OpenError::Io(source) => failed(source),
            OpenError::Exposed { mode } => StoreError::Exposed { path: path.to_owned(), mode },
        })?;
        let file = Mapped::of(&file).map_err(failed)?;
        let bytes = file.bytes();
        let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if bytes.get(..8) != Some(&MAGIC) {
            return Err(damaged("not a share of a model"));
        }
        let version = word(8).unwrap_or(0);
        if version != VERSION {
            return Err(damaged(&format!("container version {version}; this program reads {VERSION}")));
        }
        let party = word(12).and_then(|p| PartyId::from_index(p as usize)).ok_or_else(|| damaged("no such party"))?;
        let footer =
            bytes.len().checked_sub(FOOTER).filter(|&f| f >= ALIGN as usize).ok_or_else(|| damaged("cut short"))?;
        if bytes[footer + 40..] != MAGIC {
            return Err(damaged("cut short: its end is missing"));
        }
        if Sha256::digest(&bytes[..footer])[..] != bytes[footer..footer + 32] {
            return Err(damaged("its checksum does not match: altered or damaged; share the model again"));
        }
        let offset = bytes[footer + 32..footer + 40].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        let header =
            usize::try_from(offset).ok().and_then(|o| bytes.get(o..footer)).ok_or_else(|| damaged("no header"))?;
        let header: Header =
            codec::decode(header, 2 * MANIFEST_LIMIT_BYTES).map_err(|e| damaged(&format!("header: {e}")))?;
        let manifest = Manifest::from_bytes(&header.manifest).map_err(|e| damaged(&e.to_string()))?;
        let digest = Sha256::digest(&header.manifest).into();
        let masks = header.seeds.map(|seed| seed.map(|seed| Prg::new(&Seed::from_bytes(seed))));
        let share = ModelShare { party, digest, manifest, entries: header.entries, masks, file, base: None };
        share.check().map_err(|what| damaged(&what))?;
        Ok(share)
    }

    /// The same beside the share of its base, which lends the tensors that this one does not hold.
    ///
    /// # Errors
    /// It is no adapter, or one of another model, or of another sharing of it.
    pub fn on_base(self, base: Arc<ModelShare>) -> Result<ModelShare, String> {
        self.manifest.check_base(&base.manifest, base.digest)?;
        if self.party != base.party {
            return Err(format!("{} is of {}, its base of {}", self.manifest.name, self.party, base.party));
        }
        Ok(ModelShare { base: Some(base), ..self })
    }

    /// Whose share this is.
    pub fn party(&self) -> PartyId {
        self.party
    }

    /// The public part.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's digest.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Size of the file.
    pub fn len_bytes(&self) -> u64 {
        self.file.bytes().len() as u64
    }

    /// The public embedding table as stored, row-major lanes of the wide ring; `None` where the table is secret.
    pub fn public_table(&self) -> Option<&[u8]> {
        let table = self.manifest.public_table()?;
        if let Some(base) = self.base.as_ref().filter(|_| !self.manifest.holds(&table.name)) {
            return base.public_table();
        }
        let entry = self.entries.get(&table.name)?;
        let len = (entry.rows * entry.cols * u64::from(entry.lane_bits / 8)) as usize;
        let PlaneAt::File(at) = entry.planes[0] else { return None };
        self.file.bytes().get(at as usize..at as usize + len)
    }

    /// Every tensor that the file should hold is there, in its format, with its planes inside the file.
    fn check(&self) -> Result<(), String> {
        for spec in self.manifest.graph.tensors.iter().filter(|spec| self.manifest.holds(&spec.name)) {
            let name = &spec.name;
            let entry = self.entries.get(name).ok_or_else(|| format!("tensor {name} is missing"))?;
            let format =
                self.manifest.numerics.tensors.get(name).ok_or_else(|| format!("tensor {name} has no format"))?;
            let shape = (entry.rows, entry.cols) == (spec.rows as u64, spec.cols as u64);
            if !shape || entry.lane_bits != format.lane_bits || entry.ring != format.ring {
                return Err(format!("tensor {name} is in another format"));
            }
            let at = entry.planes.iter().find_map(|plane| if let PlaneAt::File(at) = plane { Some(*at) } else { None });
            if entry.planes != PlaneAt::of(self.party, format.public, format.matrix, at.unwrap_or(0)) {
                return Err(format!("tensor {name} has other planes than {} should hold", self.party));
            }
            let readable = match entry.lane_bits {
                32 => self.planes::<u32>(entry).is_some(),
                64 => self.planes::<u64>(entry).is_some(),
                _ => false,
            };
            if !readable {
                return Err(format!("tensor {name} lies outside the file"));
            }
        }
        Ok(())
    }

    fn planes<E: Element>(&self, entry: &Entry) -> Option<[Plane<'_, E>; 2]> {
        let len = usize::try_from(entry.rows.checked_mul(entry.cols)?).ok()?;
        let plane = |at: PlaneAt| match at {
            PlaneAt::Nowhere => Some(Plane::Held(&[][..])),
            PlaneAt::File(at) => self.file.elements::<E>(usize::try_from(at).ok()?, len).map(Plane::Held),
            PlaneAt::First => Some(Plane::Drawn(Masks::new(self.masks[0].as_ref()?, entry.stream))),
            PlaneAt::Second => Some(Plane::Drawn(Masks::new(self.masks[1].as_ref()?, entry.stream))),
        };
        Some([plane(entry.planes[0])?, plane(entry.planes[1])?])
    }
}

impl Weights for ModelShare {
    fn stored<E: Element>(&self, name: &str) -> tercet_core::Result<Stored<'_, E>> {
        let missing = || Error::Misuse(format!("tensor {name} is not there in {} bits", E::BITS));
        if !self.manifest.holds(name) {
            return self.base.as_ref().ok_or_else(missing)?.stored(name);
        }
        let entry = self.entries.get(name).filter(|e| e.lane_bits == E::BITS).ok_or_else(missing)?;
        let planes = self.planes::<E>(entry).ok_or_else(missing)?;
        let public = self.manifest.numerics.is_public(name);
        Ok(Stored { rows: entry.rows as usize, cols: entry.cols as usize, ring: entry.ring, planes, public })
    }
}

impl PlaneAt {
    /// Where a party has the planes of a tensor, of which one at most is in its file, at `at`: those of an operand for a matrix, else those
    /// of a masked tensor; or its values.
    fn of(party: PartyId, public: bool, matrix: bool, at: u64) -> [PlaneAt; 2] {
        use PlaneAt::{File, First, Nowhere, Second};
        match (party, public, matrix) {
            (_, true, _) | (PartyId::P1, false, true) => [File(at), Nowhere],
            (PartyId::P0, false, true) => [Second, First],
            (PartyId::P2, false, true) => [Second, File(at)],
            (PartyId::P0, false, false) => [First, Second],
            (PartyId::P1, false, false) => [File(at), First],
            (PartyId::P2, false, false) => [File(at), Second],
        }
    }
}

/// Writes a share file, which its owner alone can read, under a temporary name. This is removed
/// unless the file is completed and published.
pub(crate) struct StoreWriter {
    path: PathBuf,
    temporary: PathBuf,
    party: PartyId,
    out: Option<BufWriter<File>>,
    hash: Sha256,
    written: u64,
    entries: BTreeMap<String, Entry>,
    seeds: [Option<[u8; 32]>; 2],
}

impl StoreWriter {
    /// Begins a file with the seeds of the masks that the party has.
    pub(crate) fn create(path: &Path, party: PartyId, seeds: [Option<&Seed>; 2]) -> Result<StoreWriter, StoreError> {
        let temporary = path.with_extension("partial");
        let failed = |source| StoreError::Io { path: temporary.clone(), source };
        // A process that was killed may have left one.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = secret_file::create_new(&temporary).map_err(failed)?;
        let mut writer = StoreWriter {
            path: path.to_owned(),
            temporary,
            party,
            out: Some(BufWriter::with_capacity(1 << 20, file)),
            hash: Sha256::new(),
            written: 0,
            entries: BTreeMap::new(),
            seeds: seeds.map(|seed| seed.map(|seed| *seed.as_bytes())),
        };
        writer.write(&MAGIC)?;
        writer.write(&VERSION.to_le_bytes())?;
        writer.write(&(party.index() as u32).to_le_bytes())?;
        writer.align()?;
        Ok(writer)
    }

    /// Begins a tensor. Where one of its planes is to be written, its lanes follow, then [`StoreWriter::align`].
    pub(crate) fn begin<E: Element>(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        ring: u32,
        stream: u64,
        [public, matrix]: [bool; 2],
    ) {
        let (rows, cols) = (rows as u64, cols as u64);
        let planes = PlaneAt::of(self.party, public, matrix, self.written);
        let entry = Entry { rows, cols, lane_bits: E::BITS, ring, stream, planes };
        self.entries.insert(name.to_owned(), entry);
    }

    /// Writes lanes of a plane.
    pub(crate) fn lanes<E: Element>(&mut self, plane: &[E]) -> Result<(), StoreError> {
        if cfg!(target_endian = "little") {
            return self.write(bytemuck::cast_slice(plane));
        }
        plane.iter().try_for_each(|v| self.write(&v.to_u64().to_le_bytes()[..E::BITS as usize / 8]))
    }

    /// Writes the rest; the file is complete under its temporary name.
    pub(crate) fn complete(&mut self, manifest: Vec<u8>) -> Result<(), StoreError> {
        let header = Header { manifest, seeds: self.seeds, entries: std::mem::take(&mut self.entries) };
        let offset = self.written;
        let header = codec::encode(&header).map_err(|e| self.io(io::Error::other(e)))?;
        self.write(&header)?;
        let checksum = std::mem::take(&mut self.hash).finalize();
        self.write(&checksum)?;
        self.write(&offset.to_le_bytes())?;
        self.write(&MAGIC)?;
        let out = self.out.take();
        let synced = out.map_or(Ok(()), |out| out.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()));
        synced.map_err(|e| self.io(e))
    }

    /// Gives a complete file its name.
    pub(crate) fn publish(self) -> Result<(), StoreError> {
        std::fs::rename(&self.temporary, &self.path).map_err(|e| self.io(e))
    }

    /// Fills up to the next multiple of 64 bytes.
    pub(crate) fn align(&mut self) -> Result<(), StoreError> {
        let padding = (ALIGN - self.written % ALIGN) % ALIGN;
        self.write(&[0; ALIGN as usize][..padding as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        let written = self.out.as_mut().map_or(Ok(()), |out| out.write_all(bytes));
        written.map_err(|e| self.io(e))
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), source }
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        // Gone after a rename, of no use after a failure.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
