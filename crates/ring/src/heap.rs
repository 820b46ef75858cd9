//! An allocator that keeps large blocks and hands them out again.
//!
//! A request makes and drops tensors of the same sizes over and over. The system's allocator gives such blocks back and
//! takes fresh pages each time, and a fresh page costs more than the arithmetic on what it holds. [`Heap`] rounds blocks
//! of 32 KiB to 96 MiB up to size classes, eight an octave (at most an eighth is wasted), and keeps what is freed on a
//! shelf for its class, up to a bound on all shelves together. Where the bound is reached, blocks of the class that has
//! gone unused longest go back to the system. All other blocks are the system's.
//!
//! Blocks of a class lie on cache lines, so that vectors of tensors do not straddle them; those of 2 MiB and more on huge
//! pages, where the system has them.
//!
//! *Security*: a shelf keeps what was in a block, shares among it, as freed memory does under any allocator until its
//! next use. It never leaves the process; a block reaches safe code only through writes of its next owner, and
//! [`GlobalAlloc::alloc_zeroed`] clears it. What must not outlive its use (seeds, keys) is wiped by its owner, here as
//! elsewhere. Sizes are public.
#![allow(unsafe_code)]

mod shelf;
mod store;

use std::alloc::{GlobalAlloc, Layout};

use store::Store;

/// The allocator, for `#[global_allocator]`. All values are one and the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

static STORE: Store = Store::new(Heap::RETAINED);

/// What a [`Heap`] has done and holds. Counts are since the start of the process, bytes are whole classes where a block
/// has one, and all is 0 where another allocator is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks handed out, of any size; a block that was moved to grow counts again.
    pub allocations: u64,
    /// Bytes handed out and not freed, of any size.
    pub live_bytes: usize,
    /// Blocks that came off a shelf.
    pub served: u64,
    /// Blocks of a class that came from the system.
    pub fresh: u64,
    /// Their bytes.
    pub fresh_bytes: u64,
    /// Bytes on the shelves.
    pub retained_bytes: usize,
    /// The most bytes of blocks with a class that were held at once, live or on a shelf.
    pub high_water_bytes: usize,
}

impl Heap {
    /// Bytes that are kept at most, unless [`Heap::retain_at_most`] says otherwise.
    pub const RETAINED: usize = 256 << 20;

    /// What the process has done and holds. Exact where no other thread allocates at the moment.
    pub fn statistics() -> Statistics {
        STORE.statistics()
    }

    /// Bounds what is kept from now on; what is beyond goes back to the system at once. Blocks just being freed by other
    /// threads may exceed it for that moment.
    pub fn retain_at_most(bytes: usize) {
        STORE.retain_at_most(bytes);
    }
}

// SAFETY: as `Store`, which upholds the contract for one static store.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { STORE.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { STORE.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { STORE.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { STORE.realloc(block, layout, size) }
    }
}
