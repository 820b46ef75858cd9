//! The shelves of all classes, what is kept on them, and the counts.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::Statistics;
use super::shelf::{Class, Shelf};

/// Counts of blocks without a class. A block is counted where its address says, so that its end finds its beginning;
/// threads seldom share a page, and so seldom a line of these.
#[repr(align(64))]
struct Tally {
    allocations: AtomicU64,
    /// Modulo the word: a block may be counted as freed before it is counted as handed out.
    live: AtomicUsize,
}

const TALLIES: usize = 32;

/// Shelves and counts: a [`Heap`], of which tests may have several.
pub(super) struct Store {
    shelves: [Shelf; Class::COUNT],
    tallies: [Tally; TALLIES],
    limit: AtomicUsize,
    retained: AtomicUsize,
    /// Bytes of blocks with a class: live or on a shelf.
    held: AtomicUsize,
    high_water: AtomicUsize,
    served: AtomicU64,
    fresh: AtomicU64,
    fresh_bytes: AtomicU64,
}

impl Store {
    pub(super) const fn new(limit: usize) -> Store {
        Store {
            shelves: [const { Shelf::new() }; Class::COUNT],
            tallies: [const { Tally { allocations: AtomicU64::new(0), live: AtomicUsize::new(0) } }; TALLIES],
            limit: AtomicUsize::new(limit),
            retained: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            high_water: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            fresh: AtomicU64::new(0),
            fresh_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn statistics(&self) -> Statistics {
        let (served, fresh) = (self.served.load(Relaxed), self.fresh.load(Relaxed));
        let (retained, held) = (self.retained.load(Relaxed), self.held.load(Relaxed));
        let live = |sum: usize, tally: &Tally| sum.wrapping_add(tally.live.load(Relaxed));
        let small: u64 = self.tallies.iter().map(|tally| tally.allocations.load(Relaxed)).sum();
        Statistics {
            allocations: small + served + fresh,
            live_bytes: self.tallies.iter().fold(held.wrapping_sub(retained), live),
            served,
            fresh,
            fresh_bytes: self.fresh_bytes.load(Relaxed),
            retained_bytes: retained,
            high_water_bytes: self.high_water.load(Relaxed),
        }
    }

    pub(super) fn retain_at_most(&self, bytes: usize) {
        self.limit.store(bytes, Relaxed);
        self.shrink(bytes);
    }

    /// # Safety
    /// As [`GlobalAlloc::alloc`].
    #[inline]
    pub(super) unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Class::of(layout) {
            Some(class) => self.take(class),
            // SAFETY: the caller's contract.
            None => self.counted(layout.size(), unsafe { System.alloc(layout) }),
        }
    }

    /// # Safety
    /// As [`GlobalAlloc::alloc_zeroed`].
    #[inline]
    pub(super) unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = Class::of(layout) else {
            // SAFETY: the caller's contract.
            return self.counted(layout.size(), unsafe { System.alloc_zeroed(layout) });
        };
        let block = self.take(class);
        if !block.is_null() {
            // SAFETY: a block of the class is at least as large as the layout.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    /// # Safety
    /// As [`GlobalAlloc::dealloc`].
    #[inline]
    pub(super) unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match (Class::of(layout), NonNull::new(block)) {
            // SAFETY: the caller gives up a block of this class.
            (Some(class), Some(block)) => unsafe { self.put(class, block) },
            _ => {
                self.uncounted(layout.size(), block);
                // SAFETY: blocks without a class are the system's own.
                unsafe { System.dealloc(block, layout) }
            }
        }
    }

    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    pub(super) unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        let target = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (Class::of(layout), Class::of(target)) {
            (Some(old), Some(new)) if old == new => block,
            (None, None) => {
                // SAFETY: the caller's contract, for a block of the system's.
                let moved = unsafe { System.realloc(block, layout, size) };
                if !moved.is_null() {
                    self.uncounted(layout.size(), block);
                    self.counted(size, moved);
                }
                moved
            }
            _ => {
                // SAFETY: the caller's contract: `size` is not 0.
                let moved = unsafe { self.alloc(target) };
                if !moved.is_null() {
                    // SAFETY: either block has as many bytes, and they are two.
                    unsafe { moved.copy_from_nonoverlapping(block, layout.size().min(size)) };
                    // SAFETY: the caller gives up the old block.
                    unsafe { self.dealloc(block, layout) };
                }
                moved
            }
        }
    }

    /// Counts a block without a class that the system gave, if it did.
    #[inline]
    fn counted(&self, size: usize, block: *mut u8) -> *mut u8 {
        if !block.is_null() {
            let tally = self.tally(block);
            tally.allocations.fetch_add(1, Relaxed);
            tally.live.fetch_add(size, Relaxed);
        }
        block
    }

    #[inline]
    fn uncounted(&self, size: usize, block: *mut u8) {
        self.tally(block).live.fetch_sub(size, Relaxed);
    }

    #[inline]
    fn tally(&self, block: *mut u8) -> &Tally {
        &self.tallies[(block.addr() >> 12) % TALLIES]
    }

    /// A block off its shelf, or a fresh one.
    fn take(&self, class: Class) -> *mut u8 {
        let shelf = &self.shelves[class.0];
        // Every block asked for moves one of these counts, which so serve as a clock.
        let now = self.served.load(Relaxed) + self.fresh.load(Relaxed) + 1;
        shelf.asked.store(now, Relaxed);
        if let Some(block) = shelf.take() {
            self.retained.fetch_sub(class.size(), Relaxed);
            self.served.fetch_add(1, Relaxed);
            return block.as_ptr();
        }
        let mut block = class.fresh();
        if block.is_null() {
            self.shrink(0);
            block = class.fresh();
        }
        if !block.is_null() {
            self.fresh.fetch_add(1, Relaxed);
            self.fresh_bytes.fetch_add(class.size() as u64, Relaxed);
            let held = self.held.fetch_add(class.size(), Relaxed) + class.size();
            self.high_water.fetch_max(held, Relaxed);
        }
        block
    }

    /// Keeps a block, or gives it back.
    ///
    /// # Safety
    /// It came from [`Store::take`] for this class, and nobody uses it.
    unsafe fn put(&self, class: Class, block: NonNull<u8>) {
        let limit = self.limit.load(Relaxed);
        if class.size() > limit {
            // SAFETY: the caller's contract.
            return unsafe { self.release(class, block) };
        }
        // Counted first, so that the count is never less than what the shelves hold.
        let retained = self.retained.fetch_add(class.size(), Relaxed) + class.size();
        // SAFETY: the caller's contract.
        unsafe { self.shelves[class.0].put(block) };
        if retained > limit {
            self.shrink(limit);
        }
    }

    /// Gives blocks back, those of the class that has gone unused longest first, until no more than `limit` bytes are kept.
    fn shrink(&self, limit: usize) {
        while self.retained.load(Relaxed) > limit {
            let full = (0..Class::COUNT).filter(|&class| self.shelves[class].count.load(Relaxed) > 0);
            let Some(class) = full.min_by_key(|&class| self.shelves[class].asked.load(Relaxed)) else { return };
            if let Some(block) = self.shelves[class].take() {
                self.retained.fetch_sub(Class(class).size(), Relaxed);
                // SAFETY: a block off the shelf of its class, which came from `take`.
                unsafe { self.release(Class(class), block) };
            }
        }
    }

    /// Gives a block back to the system.
    ///
    /// # Safety
    /// As [`Store::put`].
    unsafe fn release(&self, class: Class, block: NonNull<u8>) {
        self.held.fetch_sub(class.size(), Relaxed);
        // SAFETY: `Class::fresh` asked the system for this layout.
        unsafe { System.dealloc(block.as_ptr(), class.layout()) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("a layout")
    }

    /// A live block of a store, filled with one byte, which is checked before every change and at the end.
    struct Block<'a> {
        store: &'a Store,
        at: *mut u8,
        layout: Layout,
        byte: u8,
    }

    impl<'a> Block<'a> {
        fn new(store: &'a Store, layout: Layout, byte: u8, zeroed: bool) -> Block<'a> {
            // SAFETY: no layout of these tests is empty.
            let at = unsafe { if zeroed { store.alloc_zeroed(layout) } else { store.alloc(layout) } };
            assert!(!at.is_null() && at.addr().is_multiple_of(layout.align()));
            let block = Block { store, at, layout, byte };
            assert!(!zeroed || block.bytes().iter().all(|&b| b == 0), "zeroed");
            block.fill();
            block
        }

        fn bytes(&self) -> &[u8] {
            // SAFETY: the block is live, as long as its layout, and written by now or zeroed.
            unsafe { std::slice::from_raw_parts(self.at, self.layout.size()) }
        }

        fn fill(&self) {
            // SAFETY: the block is live and as long as its layout.
            unsafe { self.at.write_bytes(self.byte, self.layout.size()) };
        }

        fn check(&self) {
            assert!(self.bytes().iter().all(|&b| b == self.byte), "a block changed");
        }

        fn resize(&mut self, size: usize) {
            self.check();
            let kept = self.layout.size().min(size);
            // SAFETY: a live block with its layout.
            self.at = unsafe { self.store.realloc(self.at, self.layout, size) };
            assert!(!self.at.is_null() && self.at.addr().is_multiple_of(self.layout.align()));
            self.layout = layout(size, self.layout.align());
            // SAFETY: as many bytes as either size has, written before the move.
            let moved = unsafe { std::slice::from_raw_parts(self.at, kept) };
            assert!(moved.iter().all(|&b| b == self.byte), "what was there moves along");
            self.fill();
        }
    }

    impl Drop for Block<'_> {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                self.check();
            }
            // SAFETY: a live block with its layout, used no more.
            unsafe { self.store.dealloc(self.at, self.layout) };
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Make { size: usize, align: u32, zeroed: bool },
        Drop(usize),
        Resize(usize, usize),
    }

    fn size() -> impl Strategy<Value = usize> {
        prop_oneof![1usize..5000, 30_000usize..200_000, 30_000usize..200_000, 1_900_000usize..4_500_000]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (size(), 0u32..10, any::<bool>()).prop_map(|(size, align, zeroed)| Step::Make { size, align, zeroed }),
            any::<usize>().prop_map(Step::Drop),
            (any::<usize>(), size()).prop_map(|(at, size)| Step::Resize(at, size)),
        ]
    }

    /// Runs steps on a store and drops what is left.
    fn act(store: &Store, steps: &[Step]) {
        let mut blocks: Vec<Block> = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            match *step {
                Step::Make { size, align, zeroed } => {
                    blocks.push(Block::new(store, layout(size, 1 << align), i as u8 | 1, zeroed));
                }
                Step::Drop(at) if !blocks.is_empty() => drop(blocks.swap_remove(at % blocks.len())),
                Step::Resize(at, size) if !blocks.is_empty() => {
                    let at = at % blocks.len();
                    blocks[at].resize(size);
                }
                _ => (),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn blocks_keep_their_contents_and_alignment(steps in prop::collection::vec(step(), 1..60), limit in 0usize..20_000_000) {
            let store = Store::new(limit);
            act(&store, &steps);
            let after = store.statistics();
            prop_assert_eq!(after.live_bytes, 0);
            prop_assert!(after.retained_bytes <= limit);
            store.retain_at_most(0);
            prop_assert_eq!(store.statistics().retained_bytes, 0);
            prop_assert_eq!(store.held.load(Relaxed), 0);
        }
    }

    #[test]
    fn threads_share_the_shelves() {
        let limit = 16 << 20;
        let store = Store::new(limit);
        std::thread::scope(|scope| {
            for seed in 0..4u64 {
                let store = &store;
                scope.spawn(move || {
                    let mut state = seed;
                    let mut next = || {
                        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                        (state >> 33) as usize
                    };
                    let mut steps = Vec::new();
                    for _ in 0..600 {
                        let size = [500, 40_000, 41_000, 70_000, 300_000, 2_100_000][next() % 6] + next() % 999;
                        steps.push(match next() % 5 {
                            0 | 1 => Step::Make { size, align: 3, zeroed: next() % 2 == 0 },
                            2 | 3 => Step::Drop(next()),
                            _ => Step::Resize(next(), size),
                        });
                    }
                    act(store, &steps);
                });
            }
        });
        let after = store.statistics();
        assert_eq!(after.live_bytes, 0);
        assert!(after.retained_bytes <= limit && after.served > 100, "{after:?}");
        let on_shelves = |class: usize| store.shelves[class].count.load(Relaxed) * Class(class).size();
        assert_eq!((0..Class::COUNT).map(on_shelves).sum::<usize>(), after.retained_bytes);
        store.retain_at_most(0);
        assert_eq!(store.held.load(Relaxed), 0);
    }

    #[test]
    fn what_is_freed_is_used_again_and_counted() {
        let store = Store::new(1 << 20);
        let make = |size| Block::new(&store, layout(size, 4), 7, false);
        drop(make(100_000));
        let first = store.statistics();
        assert_eq!((first.served, first.fresh, first.fresh_bytes), (0, 1, 102_400 + 4096));
        assert_eq!((first.live_bytes, first.retained_bytes, first.high_water_bytes), (0, 106_496, 106_496));
        // Another size of the same class, zeroed though the shelf's block is not, and grown in place.
        let mut block = Block::new(&store, layout(99_000, 4), 8, true);
        let at = block.at;
        block.resize(106_496);
        assert_eq!(block.at, at);
        let second = store.statistics();
        assert_eq!((second.allocations, second.served, second.fresh), (2, 1, 1));
        assert_eq!((second.live_bytes, second.retained_bytes), (106_496, 0));
        block.resize(100);
        assert_eq!(store.statistics().live_bytes, 100);
    }

    #[test]
    fn the_class_longest_unused_goes_first() {
        let store = Store::new(300 << 10);
        let make = |kib: usize| Block::new(&store, layout(kib << 10, 4), 7, false);
        drop(make(128));
        drop(make(64));
        drop(make(128));
        // 192 KiB are kept; with these, 320 would be: the 64 are older than the 128.
        drop(make(112));
        assert_eq!(store.statistics().retained_bytes, 240 << 10);
        let fresh = store.statistics().fresh;
        drop((make(128), make(112)));
        assert_eq!(store.statistics().fresh, fresh);
        drop(make(64));
        assert_eq!(store.statistics().fresh, fresh + 1);
        // A block beyond the bound is never kept.
        drop(make(512));
        assert!(store.statistics().retained_bytes <= 300 << 10);
    }
}
