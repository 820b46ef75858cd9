//! Matrix products over the lanes, modulo their width.
//!
//! Large products run in register tiles (`tile`): the right operand is packed, a strip of columns and 256 rows at
//! a time, into panels that stay in the second cache; the left operand is read where it lies. Products of few rows are
//! bound by memory and stream the right operand once, unpacked (`stream`); so does the portable form. Arithmetic
//! modulo a power of two has no rounding: every form gives the same bits.
#![allow(unsafe_code)]

mod generated;
mod stream;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod vectors;

use std::ops::Range;

pub use generated::matmul_generated;

use crate::simd::Isa;
use crate::{Element, Pool, simd};

/// Products below this many multiplications are not worth waking a worker for (about 10 µs).
const SERIAL: usize = 1 << 18;
/// Tasks a worker, so that an uneven machine still finishes together.
const TASKS_PER_THREAD: usize = 3;
/// Up to this many rows, a right operand of more than [`STREAMED_BYTES`] is streamed: memory is the bound.
const STREAMED_ROWS: usize = 4;
/// About what a second cache holds.
const STREAMED_BYTES: usize = 1 << 20;
/// Fewest rows worth a part of their own, since each part packs its columns.
const PART_ROWS: usize = 16;

/// The kernels of a lane. Sealed: `u32` and `u64` alone.
pub trait Kernel: sealed::Lane {}
impl Kernel for u32 {}
impl Kernel for u64 {}

mod sealed {
    use std::ops::Range;

    use crate::simd::Isa;

    /// Chooses the tile of an instruction set.
    pub trait Lane: Sized {
        /// Computes one part of a product, by tiles if there are any for `isa`.
        ///
        /// # Safety
        /// The operands of `part` are as [`Part`] says, and the machine has `isa`.
        unsafe fn tiles(isa: Isa, part: &Part<Self>) -> bool;
        /// Columns of a tile, 1 where there is none.
        fn columns(isa: Isa) -> usize;
    }

    /// A part of one product: some rows and some columns of `c`.
    ///
    /// `a` points to `[m, k]` elements, `b` to `[k, n]`, `c` to `[m, n]`, with `rows` within `m` and `columns` within
    /// `n`; nobody else touches these rows and columns of `c`, and nobody writes to `a` and `b`, while the part is
    /// computed.
    pub struct Part<E> {
        pub(super) a: *const E,
        pub(super) b: *const E,
        pub(super) c: *mut E,
        pub(super) k: usize,
        pub(super) n: usize,
        pub(super) rows: Range<usize>,
        pub(super) columns: Range<usize>,
        pub(super) accumulate: bool,
    }
}
use sealed::Part;

/// `c (+)= a * b`, row-major: `a` of shape `[m, k]`, `b` `[k, n]`, `c` `[m, n]`; added to `c` where `accumulate`.
///
/// # Panics
/// Where a slice does not have the length of its shape.
#[allow(clippy::too_many_arguments)]
pub fn matmul<E: Element>(pool: &Pool, a: &[E], b: &[E], c: &mut [E], m: usize, k: usize, n: usize, accumulate: bool) {
    matmul_with(Isa::current(), pool, 1, a, b, c, m, k, n, accumulate);
}

/// `batch` products of [`matmul`]: `a` of shape `[batch, m, k]`, `b` `[batch, k, n]`, `c` `[batch, m, n]`.
///
/// # Panics
/// Where a slice does not have the length of its shape.
#[allow(clippy::too_many_arguments)]
pub fn batched_matmul<E: Element>(
    pool: &Pool,
    batch: usize,
    a: &[E],
    b: &[E],
    c: &mut [E],
    m: usize,
    k: usize,
    n: usize,
    accumulate: bool,
) {
    matmul_with(Isa::current(), pool, batch, a, b, c, m, k, n, accumulate);
}

/// [`batched_matmul`] on a given instruction set, or on the best one below it that the machine has.
///
/// # Panics
/// Where a slice does not have the length of its shape.
#[allow(clippy::too_many_arguments)]
pub fn matmul_with<E: Element>(
    isa: Isa,
    pool: &Pool,
    batch: usize,
    a: &[E],
    b: &[E],
    c: &mut [E],
    m: usize,
    k: usize,
    n: usize,
    accumulate: bool,
) {
    let volume = |x: usize, y: usize| batch.checked_mul(x).and_then(|v| v.checked_mul(y));
    assert_eq!(volume(m, k), Some(a.len()), "left operand of [{batch}, {m}, {k}]");
    assert_eq!(volume(k, n), Some(b.len()), "right operand of [{batch}, {k}, {n}]");
    assert_eq!(volume(m, n), Some(c.len()), "product of [{batch}, {m}, {n}]");
    if c.is_empty() {
        return;
    }
    let isa = isa.min(Isa::detect());
    let streamed = n == 1 || (m <= STREAMED_ROWS && k.saturating_mul(n) > STREAMED_BYTES / size_of::<E>());
    let grid = Grid::new(batch, m, n, a.len().saturating_mul(n), E::columns(isa), pool.threads());
    let c = Shared(c.as_mut_ptr());
    // The parts carry no data of their own: what is split is the output behind `c`.
    pool.chunks(&mut vec![(); grid.parts()], 1, |index, _| {
        let (item, rows, columns) = grid.part(index);
        // SAFETY: the lengths were checked above, so that item `item` of each operand lies within its slice.
        let part = unsafe {
            Part {
                a: a.as_ptr().add(item * m * k),
                b: b.as_ptr().add(item * k * n),
                c: c.get().add(item * m * n),
                k,
                n,
                rows,
                columns,
                accumulate,
            }
        };
        // SAFETY: `Grid` cuts the output into disjoint parts, `c` is borrowed mutably until all of them are done, and
        // `isa` is at most what the machine has.
        unsafe {
            if streamed || !E::tiles(isa, &part) {
                simd::run!(isa, || stream::multiply(&part));
            }
        }
    });
}

/// The output, written by several threads at disjoint places.
#[derive(Clone, Copy)]
struct Shared<E>(*mut E);
// SAFETY: it is an address; whoever writes through it answers for disjointness.
unsafe impl<E> Send for Shared<E> {}
// SAFETY: as above.
unsafe impl<E> Sync for Shared<E> {}

impl<E> Shared<E> {
    fn get(self) -> *mut E {
        self.0
    }
}

/// How a batch of outputs is cut into disjoint parts: whole items first, then columns (each part packs its own), then
/// rows (which pack the same columns again).
struct Grid {
    m: usize,
    n: usize,
    batch: usize,
    row_step: usize,
    column_step: usize,
}

impl Grid {
    fn new(batch: usize, m: usize, n: usize, work: usize, unit: usize, threads: usize) -> Grid {
        let wanted = if threads <= 1 || work < SERIAL { 1 } else { threads * TASKS_PER_THREAD };
        let columns = wanted.div_ceil(batch).min(n.div_ceil(unit));
        let column_step = n.div_ceil(columns).next_multiple_of(unit);
        let rows = wanted.div_ceil(batch * n.div_ceil(column_step)).min(m.div_ceil(PART_ROWS));
        Grid { m, n, batch, row_step: m.div_ceil(rows), column_step }
    }

    fn parts(&self) -> usize {
        self.batch * self.m.div_ceil(self.row_step) * self.n.div_ceil(self.column_step)
    }

    /// Item, rows and columns of a part.
    fn part(&self, index: usize) -> (usize, Range<usize>, Range<usize>) {
        let across = self.n.div_ceil(self.column_step);
        let down = self.m.div_ceil(self.row_step);
        let row = index / across % down * self.row_step;
        let column = index % across * self.column_step;
        let rows = row..self.m.min(row + self.row_step);
        (index / across / down, rows, column..self.n.min(column + self.column_step))
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod untiled {
    use super::{Isa, Part, sealed};

    macro_rules! untiled {
        ($t:ty) => {
            impl sealed::Lane for $t {
                unsafe fn tiles(_: Isa, _: &Part<Self>) -> bool {
                    false
                }
                fn columns(_: Isa) -> usize {
                    1
                }
            }
        };
    }
    untiled!(u32);
    untiled!(u64);
}

#[cfg(test)]
mod tests;
