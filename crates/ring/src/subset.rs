//! Sums of subsets of a table's rows, for many subsets of bits at once: a matrix product whose left operand is bits.
//!
//! Four rows have sixteen subsets, and the sixteen sums of one column fit a register (`registers`): a permutation then
//! answers one subset a lane, so that four rows of one column cost a vector of subsets one permutation and one addition.
//! That is the method of the four Russians with its tables in registers: *no address and no branch depends on a bit*, which a
//! table in memory could not say. Where the machine has no such permutation, rows are added under masks, as free of
//! addresses. Arithmetic modulo a power of two has no rounding: every form gives the same bits.
#![allow(unsafe_code)]

mod generated;
#[cfg(target_arch = "x86_64")]
mod registers;

use std::ops::Range;

pub use generated::sums_generated;

use crate::simd::Isa;
use crate::{Element, Pool, simd};

/// Parts a worker, so that an uneven machine still finishes together.
const PARTS_PER_THREAD: usize = 2;
/// Sums below this many row elements are not worth waking a worker for.
const SERIAL: usize = 1 << 18;
/// Up to so many subsets are summed row by row, which memory bounds.
const FEW: usize = 2;
/// Columns that a part's width is a multiple of: whole cache lines, and a multiple of every tile's columns.
const PART_COLUMNS: usize = 48;

/// `out (+)= subsets * table`: for each of `count` subsets (`[count, rows / 64]` words, rounded up; bit `i % 64` of word
/// `i / 64` is row `i`) the sum of the rows of `table` (`[rows, width]`) that are in it, into `out` (`[count, width]`); added to
/// it where `accumulate`. Bits beyond the last row are ignored.
///
/// # Panics
/// Where a slice does not have the length of its shape.
pub fn sums<E: Element>(
    pool: &Pool,
    subsets: &[u64],
    table: &[E],
    out: &mut [E],
    [count, rows, width]: [usize; 3],
    accumulate: bool,
) {
    sums_with(Isa::current(), pool, subsets, table, out, [count, rows, width], accumulate);
}

/// [`sums`] on a given instruction set, or on the best one below it that the machine has.
///
/// # Panics
/// Where a slice does not have the length of its shape.
pub fn sums_with<E: Element>(
    isa: Isa,
    pool: &Pool,
    subsets: &[u64],
    table: &[E],
    out: &mut [E],
    [count, rows, width]: [usize; 3],
    accumulate: bool,
) {
    assert_eq!(count.checked_mul(rows.div_ceil(64)), Some(subsets.len()), "{count} subsets of {rows} rows");
    assert_eq!(rows.checked_mul(width), Some(table.len()), "table of [{rows}, {width}]");
    assert_eq!(count.checked_mul(width), Some(out.len()), "sums of [{count}, {width}]");
    if !accumulate {
        out.fill(E::ZERO);
    }
    if out.is_empty() || rows == 0 {
        return;
    }
    let isa = isa.usable();
    let wanted = if table.len() < SERIAL { 1 } else { pool.threads().min(width) * PARTS_PER_THREAD };
    let wanted = if pool.threads() == 1 { 1 } else { wanted };
    let step = width.div_ceil(wanted).next_multiple_of(PART_COLUMNS);
    let mut parts: Vec<Part<E>> = (0..width)
        .step_by(step)
        .map(|from| from..width.min(from + step))
        .map(|columns| Part { sums: vec![E::ZERO; columns.len() * count], columns })
        .collect();
    let job = Job { isa, subsets, table, count, rows, width };
    pool.chunks(&mut parts, 1, |_, parts| parts.iter_mut().for_each(|part| job.run(part)));
    for Part { columns, sums } in &parts {
        // Column by column in what was computed, row by row in what is wanted.
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let out = &mut out[columns.clone()];
            out.iter_mut().zip(sums[row..].iter().step_by(count)).for_each(|(out, &sum)| *out = out.add(sum));
        }
    }
}

/// Some columns of the sums.
struct Part<E> {
    columns: Range<usize>,
    /// `[columns, count]`.
    sums: Vec<E>,
}

#[derive(Clone, Copy)]
struct Job<'a, E> {
    isa: Isa,
    subsets: &'a [u64],
    table: &'a [E],
    count: usize,
    rows: usize,
    width: usize,
}

impl<E: Element> Job<'_, E> {
    fn run(&self, Part { columns, sums }: &mut Part<E>) {
        if self.count <= FEW {
            return simd::run!(self.isa, || self.few(columns.clone(), sums));
        }
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512 {
            return registers::sums(self, columns.clone(), sums);
        }
        simd::run!(self.isa, || self.masked(columns.clone(), sums));
    }

    /// Four rows at a time under masks, over all columns: the table is read once and in order, the sums stay in the first cache.
    #[inline(always)]
    fn few(&self, columns: Range<usize>, sums: &mut [E]) {
        const GROUP: usize = 4;
        let Job { subsets, table, count, rows, width, .. } = *self;
        let words = rows.div_ceil(64);
        let mut held = vec![E::ZERO; count * columns.len()];
        let row = |row: usize| &table[row * width + columns.start..row * width + columns.end];
        let mask =
            |subset: usize, row: usize| E::ZERO.sub(E::from_u64(subsets[subset * words + row / 64] >> (row % 64) & 1));
        for first in (0..rows).step_by(GROUP) {
            for (subset, sum) in held.chunks_exact_mut(columns.len()).enumerate() {
                if first + GROUP <= rows {
                    let at: [usize; GROUP] = std::array::from_fn(|i| first + i);
                    let [a, b, c, d] = at.map(|at| &row(at)[..sum.len()]);
                    let [p, q, r, s] = at.map(|at| mask(subset, at));
                    for j in 0..sum.len() {
                        sum[j] = sum[j].add((a[j] & p).add(b[j] & q)).add((c[j] & r).add(d[j] & s));
                    }
                } else {
                    for at in first..rows {
                        let mask = mask(subset, at);
                        sum.iter_mut().zip(row(at)).for_each(|(sum, &v)| *sum = sum.add(v & mask));
                    }
                }
            }
        }
        for (subset, sum) in held.chunks_exact(columns.len()).enumerate() {
            sums.iter_mut().skip(subset).step_by(count).zip(sum).for_each(|(out, &sum)| *out = out.add(sum));
        }
    }

    /// Row by row under masks: what every machine can do.
    #[inline(always)]
    fn masked(&self, columns: Range<usize>, sums: &mut [E]) {
        /// Columns whose sums are held while 64 rows are added.
        const HELD: usize = 64;
        let Job { subsets, table, count, rows, width, .. } = *self;
        let words = rows.div_ceil(64);
        for from in columns.clone().step_by(HELD) {
            let held = HELD.min(columns.end - from);
            for word in 0..words {
                let block = 64 * word..rows.min(64 * word + 64);
                for subset in 0..count {
                    let bits = subsets[subset * words + word];
                    let mut sum = [E::ZERO; HELD];
                    for (place, row) in block.clone().enumerate() {
                        let mask = E::ZERO.sub(E::from_u64(bits >> place & 1));
                        let row = &table[row * width + from..][..held];
                        sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum = sum.add(v & mask));
                    }
                    let out = sums[(from - columns.start) * count + subset..].iter_mut().step_by(count);
                    out.zip(&sum[..held]).for_each(|(out, &sum)| *out = out.add(sum));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Prg, Seed};

    fn random<E: Element>(stream: u64, len: usize) -> Vec<E> {
        let mut out = vec![E::ZERO; len];
        Prg::new(&Seed::from_bytes([8; 32])).fill(stream, 0, &mut out);
        out
    }

    fn check<E: Element>(threads: usize, count: usize, rows: usize, width: usize) {
        let words = rows.div_ceil(64);
        // Bits beyond the last row are set too: nobody may look at them.
        let (subsets, table) = (random::<u64>(1, count * words), random::<E>(2, rows * width));
        let before = random::<E>(3, count * width);
        let mut expected = vec![E::ZERO; count * width];
        for subset in 0..count {
            for row in (0..rows).filter(|row| subsets[subset * words + row / 64] >> (row % 64) & 1 == 1) {
                for column in 0..width {
                    let sum = &mut expected[subset * width + column];
                    *sum = sum.add(table[row * width + column]);
                }
            }
        }
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            let what = format!("u{} {isa:?} {threads} threads [{count}, {rows}, {width}]", E::BITS);
            let mut out = before.clone();
            sums_with(isa, &pool, &subsets, &table, &mut out, [count, rows, width], false);
            assert!(out == expected, "{what}");
            out.clone_from(&before);
            sums_with(isa, &pool, &subsets, &table, &mut out, [count, rows, width], true);
            let added = out.iter().zip(&before).zip(&expected).all(|((out, &before), &sum)| *out == before.add(sum));
            assert!(added, "added, {what}");
        }
    }

    #[test]
    fn sums_of_a_table_that_is_made_on_the_way_are_the_same() {
        for threads in [1, 3] {
            for [count, rows, width] in
                [[1usize, 1usize, 1usize], [2, 63, 5], [3, 64, 7], [1, 65, 800], [2, 1_000, 300], [4, 130, 1]]
            {
                let table: Vec<u32> = (0..rows * width).map(|i| (i as u32).wrapping_mul(2_654_435_761)).collect();
                let subsets: Vec<u64> = (0..count * rows.div_ceil(64))
                    .map(|i| (i as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .collect();
                let mut exact = vec![5; count * width];
                sums(&Pool::default(), &subsets, &table, &mut exact, [count, rows, width], true);
                let mut got = vec![5; count * width];
                let make =
                    |row: usize, out: &mut [u32]| out.copy_from_slice(&table[row * width..row * width + out.len()]);
                sums_generated(&Pool::new(threads), &subsets, make, &mut got, [count, rows, width], true);
                assert_eq!(got, exact, "[{count}, {rows}, {width}] on {threads}");
            }
        }
    }

    #[test]
    fn every_form_agrees_on_edge_sizes() {
        for count in [0, 1, 7, 8, 9, 16, 17, 33, 64, 130] {
            for rows in [0, 1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 131] {
                for width in [0, 1, 2, 3, 5, 16, 17, 25] {
                    check::<u32>(1, count, rows, width);
                    check::<u64>(1, count, rows, width);
                }
            }
        }
    }

    #[test]
    fn every_form_agrees_over_several_blocks_and_threads() {
        for (count, rows, width) in [(5, 3_000, 100), (130, 700, 49), (1, 2_050, 400), (300, 130, 8)] {
            for threads in [1, 3] {
                check::<u32>(threads, count, rows, width);
                check::<u64>(threads, count, rows, width);
            }
        }
    }

    #[test]
    #[should_panic(expected = "subsets of 65 rows")]
    fn a_wrong_length_is_refused() {
        sums(&Pool::default(), &[0; 3], &[0u32; 130], &mut [0; 4], [2, 65, 2], false);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_form_agrees(threads in 1usize..4, count in 0usize..80, rows in 0usize..400, width in 0usize..120) {
            check::<u32>(threads, count, rows, width);
            check::<u64>(threads, count, rows, width);
        }
    }
}
