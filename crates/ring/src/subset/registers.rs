//! The sums on AVX-512, with the tables of the four Russians in registers.
//!
//! A lane is a subset. The sums of four rows of a column, over their sixteen subsets, are made by additions under constant
//! masks and lie in one register (two for `u64`); a permutation by the next four bits of each lane's subset picks from them.
//! A tile holds the running sums of some vectors of subsets by some columns over a block of rows that stays in the second
//! cache; more columns where there are few subsets, since memory is then the bound and a row is read in whole lines.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Job;
use crate::Element;

/// Rows of a table in registers.
const GROUP: usize = 4;
/// For each row of a group the subsets that it is in.
const MEMBERS: [u16; GROUP] = [0xaaaa, 0xcccc, 0xf0f0, 0xff00];
/// Bytes of a block of the table: a quarter of the second cache of machines with AVX-512.
const BLOCK: usize = 256 << 10;

/// Sixteen subset sums, and the lanes that pick from them.
///
/// # Safety
/// Every method needs AVX-512 F.
trait Vector {
    /// The lane.
    type Lane: Element;
    /// Sums of the subsets of [`GROUP`] rows in one column.
    type Table: Copy;
    /// Lanes in a vector.
    const LANES: usize;

    /// The subset sums of four elements, `step` apart; the sum of subset `i` is at place `i`. `members` are [`MEMBERS`].
    unsafe fn table(first: *const Self::Lane, step: usize, members: [u16; GROUP]) -> Self::Table;
    /// The sums that the low four bits of each lane name.
    unsafe fn pick(table: Self::Table, subsets: __m512i) -> __m512i;
    /// `subsets` without the bits of the groups before.
    unsafe fn group(subsets: __m512i, group: usize) -> __m512i;
    /// Sum modulo the lane.
    unsafe fn plus(a: __m512i, b: __m512i) -> __m512i;
}

struct U32;
struct U64;

impl Vector for U32 {
    type Lane = u32;
    type Table = __m512i;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn table(first: *const u32, step: usize, members: [u16; GROUP]) -> __m512i {
        // SAFETY: the caller vouches for the four addresses and the instruction set; likewise below.
        unsafe {
            let row = |i: usize| _mm512_set1_epi32(*first.add(i * step) as i32);
            let one = _mm512_maskz_mov_epi32(members[0], row(0));
            let two = _mm512_mask_add_epi32(one, members[1], one, row(1));
            let three = _mm512_mask_add_epi32(two, members[2], two, row(2));
            _mm512_mask_add_epi32(three, members[3], three, row(3))
        }
    }
    #[inline(always)]
    unsafe fn pick(table: __m512i, subsets: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_permutexvar_epi32(subsets, table) }
    }
    #[inline(always)]
    unsafe fn group(subsets: __m512i, group: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srlv_epi32(subsets, _mm512_set1_epi32((GROUP * group) as i32)) }
    }
    #[inline(always)]
    unsafe fn plus(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }
}

impl Vector for U64 {
    type Lane = u64;
    type Table = [__m512i; 2];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn table(first: *const u64, step: usize, members: [u16; GROUP]) -> [__m512i; 2] {
        // SAFETY: the caller vouches for the four addresses and the instruction set; likewise below.
        unsafe {
            let row = |i: usize| _mm512_set1_epi64(*first.add(i * step) as i64);
            let one = _mm512_maskz_mov_epi64(members[0] as u8, row(0));
            let two = _mm512_mask_add_epi64(one, members[1] as u8, one, row(1));
            let three = _mm512_mask_add_epi64(two, members[2] as u8, two, row(2));
            [three, _mm512_add_epi64(three, row(3))]
        }
    }
    #[inline(always)]
    unsafe fn pick(table: [__m512i; 2], subsets: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_permutex2var_epi64(table[0], subsets, table[1]) }
    }
    #[inline(always)]
    unsafe fn group(subsets: __m512i, group: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srlv_epi64(subsets, _mm512_set1_epi64((GROUP * group) as i64)) }
    }
    #[inline(always)]
    unsafe fn plus(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi64(a, b) }
    }
}

/// Adds the sums of some columns to `out`, `[columns, count]`.
pub(super) fn sums<E: Element>(job: &Job<'_, E>, columns: Range<usize>, out: &mut [E]) {
    // Both casts are of a type to itself.
    if E::BITS == 32 {
        let job = Job { table: bytemuck::cast_slice(job.table), ..plain(job) };
        // SAFETY: this form is chosen where the machine has AVX-512.
        unsafe { compiled::<U32>(&job, columns, bytemuck::cast_slice_mut(out)) }
    } else {
        let job = Job { table: bytemuck::cast_slice(job.table), ..plain(job) };
        // SAFETY: as above.
        unsafe { compiled::<U64>(&job, columns, bytemuck::cast_slice_mut(out)) }
    }
}

/// The job without its table.
fn plain<'a, E, F>(job: &Job<'a, E>) -> Job<'a, F> {
    Job { isa: job.isa, subsets: job.subsets, table: &[], count: job.count, rows: job.rows, width: job.width }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2,avx2")]
unsafe fn compiled<V: Vector>(job: &Job<'_, V::Lane>, columns: Range<usize>, out: &mut [V::Lane]) {
    let Job { table, count, rows, width, .. } = *job;
    let (bits, padded) = (V::Lane::BITS as usize, count.next_multiple_of(V::LANES));
    let lanes = turned(job.subsets, count, rows.div_ceil(64), padded);
    let mut sums = vec![V::Lane::ZERO; columns.len() * padded];
    let words_at_once = (BLOCK / (columns.len() * size_of::<V::Lane>() * bits)).max(1);
    let words = rows / GROUP * GROUP;
    for from in (0..words.div_ceil(bits)).step_by(words_at_once) {
        let to = words.min((from + words_at_once) * bits);
        let block = Block {
            table: &table[from * bits * width + columns.start..],
            width,
            rows: to - from * bits,
            subsets: &lanes[from * padded..],
            padded,
            columns: columns.len(),
        };
        let mut at = 0;
        while at < padded {
            let left = (padded - at) / V::LANES;
            // SAFETY: the block lies in the table, and `at` is at least as many vectors before the last subset.
            at += V::LANES
                * unsafe {
                    match left {
                        8.. if V::LANES == 16 => block.run::<V, 8, 3>(at, &mut sums),
                        8.. => block.run::<V, 8, 2>(at, &mut sums),
                        4.. if V::LANES == 16 => block.run::<V, 4, 6>(at, &mut sums),
                        4.. => block.run::<V, 4, 4>(at, &mut sums),
                        2.. if V::LANES == 16 => block.run::<V, 2, 12>(at, &mut sums),
                        2.. => block.run::<V, 2, 6>(at, &mut sums),
                        _ if V::LANES == 16 => block.run::<V, 1, 16>(at, &mut sums),
                        _ => block.run::<V, 1, 8>(at, &mut sums),
                    }
                };
        }
    }
    for ((column, sums), out) in sums.chunks_exact(padded).enumerate().zip(out.chunks_exact_mut(count)) {
        out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = out.add(sum));
        // Rows that fill no group.
        for row in words..rows {
            let value = table[row * width + columns.start + column];
            for (out, &subsets) in out.iter_mut().zip(&lanes[row / bits * padded..]) {
                let mask = V::Lane::ZERO.sub((subsets >> (row % bits) as u32) & V::Lane::ONE);
                *out = out.add(value & mask);
            }
        }
    }
}

/// Subsets lane by lane: `[count, words]` in words of 64 bits as `[words of a lane, padded]`.
fn turned<E: Element>(subsets: &[u64], count: usize, words: usize, padded: usize) -> Vec<E> {
    let subsets: &[E] = bytemuck::cast_slice(subsets);
    let each = words * 8 / size_of::<E>();
    let mut out = vec![E::ZERO; each * padded];
    for (subset, words) in subsets.chunks_exact(each).take(count).enumerate() {
        out[subset..].iter_mut().step_by(padded).zip(words).for_each(|(out, &word)| *out = word);
    }
    out
}

/// Some rows and columns of the table, in reach of the second cache.
struct Block<'a, E> {
    /// From its first element on.
    table: &'a [E],
    width: usize,
    /// A multiple of [`GROUP`].
    rows: usize,
    /// From its first word on: `[words, padded]`.
    subsets: &'a [E],
    padded: usize,
    columns: usize,
}

impl<E: Element> Block<'_, E> {
    /// Adds to `sums` (`[columns, padded]`) of `VECTORS` vectors of subsets from `at` on, `COLUMNS` columns at a time.
    /// Returns `VECTORS`.
    ///
    /// # Safety
    /// The machine has AVX-512; the block lies within the table, and `VECTORS` vectors from `at` on within `padded`.
    #[inline(always)]
    unsafe fn run<V: Vector<Lane = E>, const VECTORS: usize, const COLUMNS: usize>(
        &self,
        at: usize,
        sums: &mut [E],
    ) -> usize {
        assert!(self.columns * self.padded <= sums.len() && at + VECTORS * V::LANES <= self.padded);
        assert!(self.rows == 0 || (self.rows - 1) * self.width + self.columns <= self.table.len());
        assert!(self.rows.div_ceil(E::BITS as usize) * self.padded <= self.subsets.len());
        let whole = self.columns / COLUMNS * COLUMNS;
        // SAFETY: the assertions above.
        unsafe {
            for column in (0..whole).step_by(COLUMNS) {
                self.tile::<V, VECTORS, COLUMNS>(at, column, sums);
            }
            for column in whole..self.columns {
                self.tile::<V, VECTORS, 1>(at, column, sums);
            }
        }
        VECTORS
    }

    /// One tile over all rows of the block.
    ///
    /// # Safety
    /// As [`Block::run`] asserts, with `column + COLUMNS` within the columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2,avx2")]
    unsafe fn tile<V: Vector<Lane = E>, const VECTORS: usize, const COLUMNS: usize>(
        &self,
        at: usize,
        column: usize,
        sums: &mut [E],
    ) {
        // SAFETY: the caller's assertions: rows of the block, words of its rows and sums of its columns are there. What is
        // only fetched ahead may lie anywhere.
        unsafe {
            let place = |vector: usize, j: usize| (column + j) * self.padded + at + vector * V::LANES;
            let mut held = [[_mm512_setzero_si512(); COLUMNS]; VECTORS];
            for (vector, held) in held.iter_mut().enumerate() {
                for (j, held) in held.iter_mut().enumerate() {
                    *held = _mm512_loadu_si512(sums.as_ptr().add(place(vector, j)).cast());
                }
            }
            let groups = E::BITS as usize / GROUP;
            // The compiler would otherwise make blends of the additions under masks, in the unit that permutes.
            let members = std::hint::black_box(MEMBERS);
            let mut rows = self.table.as_ptr().add(column);
            let mut words = self.subsets.as_ptr().add(at);
            let ahead = self.rows * self.width;
            for group in 0..self.rows / GROUP {
                let mut tables = [V::table(rows, self.width, members); COLUMNS];
                for (j, table) in tables.iter_mut().enumerate().skip(1) {
                    *table = V::table(rows.add(j), self.width, members);
                }
                for row in 0..GROUP {
                    _mm_prefetch::<_MM_HINT_T1>(rows.wrapping_add(row * self.width + ahead).cast());
                }
                for (vector, held) in held.iter_mut().enumerate() {
                    let word = _mm512_loadu_si512(words.add(vector * V::LANES).cast());
                    let subsets = V::group(word, group % groups);
                    for (held, table) in held.iter_mut().zip(tables) {
                        *held = V::plus(*held, V::pick(table, subsets));
                    }
                }
                rows = rows.wrapping_add(GROUP * self.width);
                if group % groups == groups - 1 {
                    words = words.wrapping_add(self.padded);
                }
            }
            for (vector, held) in held.iter().enumerate() {
                for (j, &held) in held.iter().enumerate() {
                    _mm512_storeu_si512(sums.as_mut_ptr().add(place(vector, j)).cast(), held);
                }
            }
        }
    }
}
