//! Read-only memory-mapped files: how a node reaches shares of weights that need not fit its memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use crate::Element;

/// A file mapped read-only into memory, for as long as this value lives.
///
/// The file must not be written to or cut while it is mapped: the owner of the file sees to that (a node replaces
/// share files by renaming, never in place).
pub struct Mapped {
    map: memmap2::Mmap,
}

/// The bytes are shares: a debug print shows their number alone.
impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({} bytes)", self.map.len())
    }
}

impl Mapped {
    /// Maps the whole file.
    ///
    /// # Errors
    /// Where the file cannot be mapped.
    pub fn of(file: &File) -> io::Result<Mapped> {
        // SAFETY: nobody changes or cuts the file while it is mapped; this is the contract of `Mapped`, kept by the
        // one process that owns the file.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Mapped { map })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// `len` little-endian lanes from `byte_offset` on; `None` where they reach past the end or are not aligned to the
    /// lane.
    pub fn elements<E: Element>(&self, byte_offset: usize, len: usize) -> Option<&[E]> {
        let end = len.checked_mul(size_of::<E>())?.checked_add(byte_offset)?;
        bytemuck::try_cast_slice(self.map.get(byte_offset..end)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_come_back_within_bounds_and_alignment() {
        let path = std::env::temp_dir().join(format!("tercet-mapped-{}", std::process::id()));
        let values: Vec<u64> = (0..100).map(|i| i * 0x0123_4567_89ab).collect();
        std::fs::write(&path, bytemuck::cast_slice::<u64, u8>(&values)).expect("a temporary file");
        let mapped = Mapped::of(&File::open(&path).expect("opened")).expect("mapped");
        assert_eq!(mapped.bytes().len(), 800);
        assert_eq!(mapped.elements::<u64>(0, 100), Some(&values[..]));
        assert_eq!(mapped.elements::<u64>(16, 3), Some(&values[2..5]));
        assert_eq!(mapped.elements::<u32>(8, 1), Some(&[values[1] as u32][..]));
        assert_eq!(mapped.elements::<u64>(800, 0), Some(&[][..]));
        assert!(mapped.elements::<u64>(0, 101).is_none());
        assert!(mapped.elements::<u64>(4, 1).is_none(), "not aligned");
        assert!(mapped.elements::<u32>(usize::MAX, 1).is_none());
        assert!(mapped.elements::<u64>(0, usize::MAX).is_none());
        assert_eq!(format!("{mapped:?}"), "Mapped(800 bytes)");
        std::fs::remove_file(&path).expect("removed");
    }
}
