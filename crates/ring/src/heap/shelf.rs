//! Size classes, and a shelf of free blocks for each.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A size class: class `i` has blocks of `8 + i % 8` eighths of `2^(15 + i / 8)` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(pub(super) usize);

impl Class {
    /// Logarithm of the smallest block with a class.
    const SMALLEST: usize = 15;
    /// Classes an octave, as a logarithm.
    const STEPS: usize = 3;
    /// Classes up to 96 MiB, about the largest tensor of a request. Larger blocks are rather buffers of which little is ever
    /// touched: those stay the system's, which finds pages for them as they are.
    pub(super) const COUNT: usize = ((26 - Class::SMALLEST) << Class::STEPS) + 5;
    /// Alignment of any block with a class: a cache line.
    const LINE: usize = 64;
    /// A huge page, and the alignment of blocks that are at least as large.
    const HUGE: usize = 2 << 20;

    /// The class of a block, if it has one.
    #[inline]
    pub(super) fn of(layout: Layout) -> Option<Class> {
        let size = layout.size();
        if size < 1 << Class::SMALLEST || layout.align() > Class::LINE {
            return None;
        }
        let octave = size.ilog2() as usize;
        let steps = (size - (1 << octave)).div_ceil(1 << (octave - Class::STEPS));
        let class = ((octave - Class::SMALLEST) << Class::STEPS) + steps;
        (class < Class::COUNT).then_some(Class(class))
    }

    /// Bytes of a block.
    pub(super) fn size(self) -> usize {
        let (octave, step) = (self.0 >> Class::STEPS, self.0 % (1 << Class::STEPS));
        ((1 << Class::STEPS) + step) << (octave + Class::SMALLEST - Class::STEPS)
    }

    /// What the system is asked for.
    pub(super) fn layout(self) -> Layout {
        let align = if self.size() >= Class::HUGE { Class::HUGE } else { Class::LINE };
        Layout::from_size_align(self.size(), align).expect("a class fits the address space")
    }

    /// A block from the system; null where it has none.
    pub(super) fn fresh(self) -> *mut u8 {
        // SAFETY: a class is not empty.
        let block = unsafe { System.alloc(self.layout()) };
        if self.size() >= Class::HUGE && !block.is_null() {
            prefer_huge_pages(block, self.size());
        }
        block
    }
}

/// Free blocks of one class.
pub(super) struct Shelf {
    /// The first; each begins with the address of the next.
    first: Mutex<Option<Free>>,
    /// How many there are.
    pub(super) count: AtomicUsize,
    /// When a block of this class was last asked for.
    pub(super) asked: AtomicU64,
}

/// A block on a shelf, owned by it.
#[derive(Clone, Copy)]
struct Free(NonNull<Option<Free>>);

// SAFETY: a free block belongs to its shelf alone.
unsafe impl Send for Free {}

impl Shelf {
    /// An empty shelf.
    pub(super) const fn new() -> Shelf {
        Shelf { first: Mutex::new(None), count: AtomicUsize::new(0), asked: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Free>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a block.
    ///
    /// # Safety
    /// The block has the size of the class, and nobody uses it.
    pub(super) unsafe fn put(&self, block: NonNull<u8>) {
        let block: NonNull<Option<Free>> = block.cast();
        let mut first = self.lock();
        // SAFETY: a block is larger than an address, lies on a cache line, and is the shelf's now.
        unsafe { block.write(first.take()) };
        *first = Some(Free(block));
        self.count.fetch_add(1, Relaxed);
    }

    /// Takes the block that was added last.
    pub(super) fn take(&self) -> Option<NonNull<u8>> {
        let mut first = self.lock();
        let Free(block) = first.take()?;
        // SAFETY: `put` wrote it, and nobody has touched a block of the shelf since.
        *first = unsafe { block.read() };
        self.count.fetch_sub(1, Relaxed);
        Some(block.cast())
    }
}

#[cfg(target_os = "linux")]
fn prefer_huge_pages(block: *mut u8, bytes: usize) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(address: *mut c_void, bytes: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    // SAFETY: the block is the caller's; the advice changes how it is mapped and nothing in it, and may be declined.
    unsafe { madvise(block.cast(), bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("a layout")
    }

    #[test]
    fn classes_waste_at_most_an_eighth() {
        let mut last = 0;
        for class in (0..Class::COUNT).map(Class) {
            let size = class.size();
            assert!(size > last);
            assert!(
                Class::of(layout(size, 1)) == Some(class) && Class::of(layout(last + 1, 64)) == Some(class)
                    || last == 0
            );
            assert!(last == 0 || size - last <= last / 8);
            last = size;
        }
        assert_eq!(last, 96 << 20);
        assert!(Class::of(layout(last + 1, 1)).is_none() && Class::of(layout(last, 128)).is_none());
        assert!(Class::of(layout((1 << 15) - 1, 1)).is_none() && Class::of(layout(1 << 15, 1)) == Some(Class(0)));
    }
}
