//! Register tiles: a few rows by a few vectors of the product, held in registers over [`DEPTH`] steps.
//!
//! On AVX-512 the tile is 8 rows by 2 vectors: of 32 registers 16 sum, 2 hold the right operand, 4 broadcast the left, and
//! 8 hold products that go before their sums (see [`vectors`](super::vectors)). On AVX2 it is 6 by 2 for `u32` and 3 by
//! 2 for `u64`, whose sums take two registers each.
//!
//! The first group of rows reads the right operand where it lies and stores it into the packed panel as it goes, so packing
//! costs no pass of its own. Every group fetches a share of the block that comes next: memory is read all the time that
//! the multipliers work, not in bursts that they wait for. Whether one packed beforehand would gain more is not measured.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
use std::cell::RefCell;
use std::ops::Range;

use super::vectors::{BLOCK_ROWS, U32x8, U32x16, U64x4, U64x8, Vector};
use super::{Isa, Part, sealed};
use crate::Element;

/// Rows of the right operand in a panel: a panel of 2 vectors takes 32 KiB.
pub(super) const DEPTH: usize = 256;
/// Panels packed together: while a group of rows of the left operand is in the first cache, it meets them all.
const PANELS: usize = 8;
/// Bytes of the packed panels at their widest: a quarter of a second cache of 1 MiB, as machines with AVX-512 have, beside
/// which the left rows, the output, and the next block have room.
const PACKED: usize = PANELS * DEPTH * 2 * 64;

/// A cache line, so that packed panels are aligned to one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    static PACKED_PANELS: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// What one tile computes: `rows` (a constant of the tile) rows of the product over `depth` steps.
struct Job<L> {
    /// First element of the left rows, and their distance.
    a: *const L,
    a_step: usize,
    /// First element of the right rows, and their distance.
    b: *const L,
    b_step: usize,
    /// Where a packing tile stores the right rows, one after the other.
    packed: *mut L,
    depth: usize,
    /// First element of the output rows, and their distance.
    c: *mut L,
    c_step: usize,
    /// Adds to the output instead of replacing it.
    add: bool,
    /// Rows of the right operand that are wanted soon: the first, their distance, and how many.
    soon: *const L,
    soon_step: usize,
    soon_rows: usize,
}

/// The tiles of an instruction set and a lane.
trait Tiles {
    type Vector: Vector<Lane: Element>;
    /// Rows of the largest tile.
    const ROWS: usize;
    /// Vectors across the widest tile: a power of two.
    const WIDTH: usize;
    /// Runs the tile of `rows` rows and `width` vectors; a packing one (for operands read where they lie) is of full
    /// width.
    ///
    /// # Safety
    /// The machine has the instruction set, and the job's addresses are good for the tile.
    unsafe fn run(rows: usize, width: usize, pack: bool, job: &Job<<Self::Vector as Vector>::Lane>);
}

#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const WIDTH: usize, const PACK: bool>(job: &Job<V::Lane>) {
    // SAFETY: the caller has the instruction set of `V`, and addresses that are good for `ROWS`, `WIDTH` and `depth`.
    unsafe {
        let mut sums = [[V::empty(); WIDTH]; ROWS];
        for r in 0..ROWS {
            for w in 0..WIDTH {
                _mm_prefetch::<_MM_HINT_T0>(job.c.add(r * job.c_step + w * V::LANES).cast());
            }
        }
        let mut b = job.b;
        let mut packed = job.packed;
        let mut soon = job.soon;
        for step in 0..job.depth {
            if step < job.soon_rows {
                for w in 0..WIDTH {
                    _mm_prefetch::<_MM_HINT_T1>(soon.wrapping_add(w * V::LANES).cast());
                }
                soon = soon.wrapping_add(job.soon_step);
            }
            let mut right = [V::load(b).right(); WIDTH];
            for (w, right) in right.iter_mut().enumerate() {
                let vector = V::load(b.add(w * V::LANES));
                if PACK {
                    let next = b.wrapping_add((WIDTH + w) * V::LANES);
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                    vector.store(packed.add(w * V::LANES));
                }
                *right = vector.right();
            }
            let mut a = job.a.add(step);
            let (blocks, rest) = sums.as_chunks_mut::<BLOCK_ROWS>();
            for sums in blocks {
                let mut left = [V::splat(*a); BLOCK_ROWS];
                for left in &mut left {
                    *left = V::splat(*a);
                    a = a.wrapping_add(job.a_step);
                }
                V::multiply_add_block(left, &right, sums);
            }
            for sums in rest {
                let left = V::splat(*a);
                a = a.wrapping_add(job.a_step);
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = left.multiply_add(right, *sum);
                }
            }
            b = b.wrapping_add(job.b_step);
            packed = packed.wrapping_add(WIDTH * V::LANES);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (w, sum) in sums.iter().enumerate() {
                let to = job.c.add(r * job.c_step + w * V::LANES);
                let total = V::total(*sum);
                if job.add { V::load(to).plus(total) } else { total }.store(to);
            }
        }
    }
}

/// The tiles of one instruction set, each a function of its own that enables it.
macro_rules! tiles {
    ($name:ident, $vector:ty, $features:literal, $compiled:ident, $rows_max:literal x $width_max:literal,
     [$($rows:literal)*]) => {
        struct $name;

        #[target_feature(enable = $features)]
        unsafe fn $compiled<const ROWS: usize, const WIDTH: usize, const PACK: bool>(
            job: &Job<<$vector as Vector>::Lane>,
        ) {
            // SAFETY: this function enables what the vector needs; the addresses are the caller's.
            unsafe { tile::<$vector, ROWS, WIDTH, PACK>(job) }
        }

        impl Tiles for $name {
            type Vector = $vector;
            const ROWS: usize = $rows_max;
            const WIDTH: usize = $width_max;

            unsafe fn run(rows: usize, width: usize, pack: bool, job: &Job<<$vector as Vector>::Lane>) {
                // SAFETY: passed on.
                unsafe {
                    match (rows, width, pack) {
                        $(
                            ($rows, 1, _) => $compiled::<$rows, 1, false>(job),
                            ($rows, $width_max, true) => $compiled::<$rows, $width_max, true>(job),
                            ($rows, $width_max, false) => $compiled::<$rows, $width_max, false>(job),
                        )*
                        _ => unreachable!("no tile of {rows} rows"),
                    }
                }
            }
        }
    };
}
tiles!(Avx512U32, U32x16, "avx512f,avx512bw,avx512dq,avx512vl,bmi2", avx512_u32, 8 x 2, [1 2 3 4 5 6 7 8]);
tiles!(Avx512U64, U64x8, "avx512f,avx512bw,avx512dq,avx512vl,bmi2", avx512_u64, 8 x 2, [1 2 3 4 5 6 7 8]);
tiles!(Avx2U32, U32x8, "avx2,bmi2", avx2_u32, 6 x 2, [1 2 3 4 5 6]);
tiles!(Avx2U64, U64x4, "avx2,bmi2", avx2_u64, 3 x 2, [1 2 3]);

macro_rules! lane {
    ($lane:ty, $avx512:ty, $avx2:ty) => {
        impl sealed::Lane for $lane {
            unsafe fn tiles(isa: Isa, part: &Part<$lane>) -> bool {
                // SAFETY: passed on; the machine has `isa`.
                unsafe {
                    match isa {
                        Isa::Avx512 => product::<$avx512>(part),
                        Isa::Avx2 => product::<$avx2>(part),
                        Isa::Portable => return false,
                    }
                }
                true
            }

            fn columns(isa: Isa) -> usize {
                match isa {
                    Isa::Avx512 => columns::<$avx512>(),
                    Isa::Avx2 => columns::<$avx2>(),
                    Isa::Portable => 1,
                }
            }
        }
    };
}
lane!(u32, Avx512U32, Avx2U32);
lane!(u64, Avx512U64, Avx2U64);

/// Columns of the widest tile.
const fn columns<T: Tiles>() -> usize {
    T::WIDTH * T::Vector::LANES
}

/// Computes a part.
///
/// # Safety
/// As [`Part`] says, on a machine with the instruction set of `T`.
unsafe fn product<T: Tiles>(part: &Part<<T::Vector as Vector>::Lane>) {
    if part.k == 0 {
        // SAFETY: these rows and columns of `c` are ours alone.
        return unsafe { empty(part) };
    }
    let mut lines = PACKED_PANELS.take();
    lines.resize(PACKED / size_of::<Line>(), Line([0; 64]));
    let panels: *mut <T::Vector as Vector>::Lane = lines.as_mut_ptr().cast();
    for from in part.columns.clone().step_by(PANELS * columns::<T>()) {
        let to = part.columns.end.min(from + PANELS * columns::<T>());
        for k0 in (0..part.k).step_by(DEPTH) {
            // SAFETY: passed on; `panels` has room for `PANELS` panels of `DEPTH` rows.
            unsafe {
                let steps = k0..part.k.min(k0 + DEPTH);
                // What comes after this block: the steps below, or the strip to the right from the top.
                let (row, column) = if steps.end < part.k { (steps.end, from) } else { (0, to) };
                let next = part.b.wrapping_add(row * part.n + column);
                block::<T>(part, from..to, steps, next, panels);
            }
        }
    }
    PACKED_PANELS.set(lines);
}

/// A strip of columns over some steps: the first group of rows packs, all later ones read the panels. Each group fetches its
/// share of the block after this one, which begins at `next`, so that memory is read all the time.
unsafe fn block<T: Tiles>(
    part: &Part<<T::Vector as Vector>::Lane>,
    columns_here: Range<usize>,
    steps: Range<usize>,
    next: *const <T::Vector as Vector>::Lane,
    panels: *mut <T::Vector as Vector>::Lane,
) {
    let add = part.accumulate || steps.start > 0;
    let groups = part.rows.len().div_ceil(T::ROWS);
    for group in 0..groups {
        // Groups of as equal sizes as can be: 32 rows are 6 + 6 + 5 + 5 + 5 + 5.
        let row = part.rows.start + group * part.rows.len() / groups;
        let rows = part.rows.start + (group + 1) * part.rows.len() / groups - row;
        for (panel, from) in columns_here.clone().step_by(columns::<T>()).enumerate() {
            let width = columns::<T>().min(columns_here.end - from);
            // SAFETY: row and column lie within the operands, the panel within `panels`.
            unsafe {
                let packed = panels.add(panel * DEPTH * columns::<T>());
                let b = part.b.add(steps.start * part.n + from);
                let mut job = Job {
                    a: part.a.add(row * part.k + steps.start),
                    a_step: part.k,
                    b,
                    b_step: part.n,
                    packed,
                    depth: steps.len(),
                    c: part.c.add(row * part.n + from),
                    c_step: part.n,
                    add,
                    soon: next.wrapping_add(group * steps.len() / groups * part.n + panel * columns::<T>()),
                    soon_step: part.n,
                    soon_rows: steps.len() / groups,
                };
                if width < columns::<T>() {
                    let vectors = width.div_ceil(T::Vector::LANES).next_power_of_two();
                    let padded = vectors * T::Vector::LANES;
                    if group == 0 {
                        pack_padded(b, part.n, width, packed, padded, steps.len());
                    }
                    job.b = packed;
                    job.b_step = padded;
                    edge::<T>(rows, vectors, width, job);
                } else if group == 0 {
                    T::run(rows, T::WIDTH, true, &job);
                } else {
                    job.b = packed;
                    job.b_step = columns::<T>();
                    T::run(rows, T::WIDTH, false, &job);
                }
            }
        }
    }
}

/// Copies `depth` rows of `width` elements into rows of `padded`, the rest of which is zero.
unsafe fn pack_padded<L: Element>(b: *const L, b_step: usize, width: usize, to: *mut L, padded: usize, depth: usize) {
    for step in 0..depth {
        // SAFETY: the caller vouches for `depth` rows on both sides.
        unsafe {
            let to = to.add(step * padded);
            std::ptr::copy_nonoverlapping(b.add(step * b_step), to, width);
            std::ptr::write_bytes(to.add(width), 0, padded - width);
        }
    }
}

/// A tile of which only the first `width` columns exist: it goes through a buffer.
unsafe fn edge<T: Tiles>(rows: usize, vectors: usize, width: usize, job: Job<<T::Vector as Vector>::Lane>) {
    // The largest tile: 8 rows of 2 vectors of 64 bytes.
    let mut buffer = [Line([0; 64]); 16];
    let whole: *mut <T::Vector as Vector>::Lane = buffer.as_mut_ptr().cast();
    let step = vectors * T::Vector::LANES;
    let (c, c_step, add) = (job.c, job.c_step, job.add);
    // SAFETY: the buffer holds `rows * vectors` vectors; `width` columns of each output row are ours alone.
    unsafe {
        T::run(rows, vectors, false, &Job { c: whole, c_step: step, add: false, ..job });
        for r in 0..rows {
            let from = std::slice::from_raw_parts(whole.add(r * step), width);
            let to = std::slice::from_raw_parts_mut(c.add(r * c_step), width);
            if add {
                to.iter_mut().zip(from).for_each(|(c, &v)| *c = c.add(v));
            } else {
                to.copy_from_slice(from);
            }
        }
    }
}

/// The product over no steps.
unsafe fn empty<L: Element>(part: &Part<L>) {
    if part.accumulate {
        return;
    }
    for row in part.rows.clone() {
        // SAFETY: these rows and columns of `c` are the caller's alone.
        let c = unsafe { std::slice::from_raw_parts_mut(part.c.add(row * part.n), part.n) };
        c[part.columns.clone()].fill(L::ZERO);
    }
}
