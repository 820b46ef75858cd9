//! Sums of subsets of a table that is not in memory: its rows are made block by block, as masks that come from a seed can be.

use super::sums;
use crate::{Element, Pool};

/// Bytes of a block of rows, about: with the sums it stays in the second cache.
const BLOCK_BYTES: usize = 256 * 1024;

/// As [`sums`], where `make(row, out)` writes whole rows of the table from that one on. Each row is made once.
///
/// # Panics
/// Where a slice does not have the length of its shape.
pub fn sums_generated<E: Element>(
    pool: &Pool,
    subsets: &[u64],
    make: impl Fn(usize, &mut [E]) + Sync,
    out: &mut [E],
    [count, rows, width]: [usize; 3],
    accumulate: bool,
) {
    let words = rows.div_ceil(64);
    assert_eq!((count * words, count * width), (subsets.len(), out.len()), "{count} subsets of [{rows}, {width}]");
    if !accumulate {
        out.fill(E::ZERO);
    }
    let step = (BLOCK_BYTES / size_of::<E>() / 64 / width.max(1)).max(1);
    // A part for each thread: some words of every subset, which are 64 rows each.
    let share = words.div_ceil(pool.threads()).next_multiple_of(step).max(1);
    let mut parts: Vec<Vec<E>> = (0..words).step_by(share).map(|_| Vec::new()).collect();
    pool.chunks(&mut parts, 1, |index, part| {
        let mut sum = vec![E::ZERO; count * width];
        let mut block = vec![E::ZERO; step * 64 * width];
        for first in (index * share..words.min((index + 1) * share)).step_by(step) {
            let last = (first + step).min(words).min((index + 1) * share);
            let rows = (last * 64).min(rows) - first * 64;
            let block = &mut block[..rows * width];
            make(first * 64, block);
            let some: Vec<u64> = subsets.chunks_exact(words).flat_map(|subset| &subset[first..last]).copied().collect();
            sums(&Pool::default(), &some, block, &mut sum, [count, rows, width], true);
        }
        part[0] = sum;
    });
    for sum in &parts {
        out.iter_mut().zip(sum).for_each(|(out, &v)| *out = out.add(v));
    }
}
