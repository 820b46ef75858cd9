//! The product as sums of rows: plain loops that the compiler vectorises, bound by memory for few rows.

use super::Part;
use crate::Element;

/// Rows of `b` added at a time: the sum is then read and written once for four products.
const GROUP: usize = 4;
/// Rows of `b` in a block.
const DEPTH: usize = 64;
/// Bytes of a row's piece when many rows share a block of `b`: the block (64 KiB) stays in the second cache.
const NARROW: usize = 1024;
/// Bytes of a row's piece when few rows do: long pieces please the prefetcher.
const WIDE: usize = 16 * 1024;

/// Computes a part.
///
/// # Safety
/// As [`Part`] says.
#[inline(always)]
pub(super) unsafe fn multiply<E: Element>(part: &Part<E>) {
    if part.n == 1 {
        // SAFETY: passed on.
        return unsafe { column(part) };
    }
    let bytes = if part.rows.len() <= 2 * GROUP { WIDE } else { NARROW };
    let step = bytes / size_of::<E>();
    for from in part.columns.clone().step_by(step) {
        let width = step.min(part.columns.end - from);
        // SAFETY: `r < k` rows of `n` elements lie behind `b`, and `from + width <= n`.
        let piece = |r: usize| unsafe { std::slice::from_raw_parts(part.b.add(r * part.n + from), width) };
        for k0 in (0..part.k.max(1)).step_by(DEPTH) {
            let depth = DEPTH.min(part.k - k0);
            for i in part.rows.clone() {
                // SAFETY: row `i` of `a` holds `k` elements; this piece of row `i` of `c` is ours alone.
                let (a, c) = unsafe {
                    let a = std::slice::from_raw_parts(part.a.add(i * part.k + k0), depth);
                    (a, std::slice::from_raw_parts_mut(part.c.add(i * part.n + from), width))
                };
                if k0 == 0 && !part.accumulate {
                    c.fill(E::ZERO);
                }
                let (groups, rest) = a.as_chunks::<GROUP>();
                for (g, a) in groups.iter().enumerate() {
                    add_group(c, a, [0, 1, 2, 3].map(|r| piece(k0 + g * GROUP + r)));
                }
                for (r, a) in rest.iter().enumerate() {
                    let b = piece(k0 + groups.len() * GROUP + r);
                    c.iter_mut().zip(b).for_each(|(c, &b)| *c = c.add(a.mul(b)));
                }
            }
        }
    }
}

#[inline(always)]
fn add_group<E: Element>(c: &mut [E], a: &[E; GROUP], b: [&[E]; GROUP]) {
    let b = b.map(|row| &row[..c.len()]);
    for j in 0..c.len() {
        let low = a[0].mul(b[0][j]).add(a[1].mul(b[1][j]));
        let high = a[2].mul(b[2][j]).add(a[3].mul(b[3][j]));
        c[j] = c[j].add(low.add(high));
    }
}

/// The product with a single column: one dot product a row.
///
/// # Safety
/// As [`Part`] says, with `n` of 1.
#[inline(always)]
unsafe fn column<E: Element>(part: &Part<E>) {
    // SAFETY: `b` holds `k` elements, row `i` of `a` too, and element `i` of `c` is ours alone.
    unsafe {
        let b = std::slice::from_raw_parts(part.b, part.k);
        for i in part.rows.clone() {
            let a = std::slice::from_raw_parts(part.a.add(i * part.k), part.k);
            let dot = a.iter().zip(b).fold(E::ZERO, |sum, (&x, &y)| sum.add(x.mul(y)));
            let c = &mut *part.c.add(i);
            *c = if part.accumulate { c.add(dot) } else { dot };
        }
    }
}
