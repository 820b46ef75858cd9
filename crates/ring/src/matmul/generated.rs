//! Products whose right operand is not in memory: it is made block by block where it is needed, as masks that come from a seed
//! can be. A generator in the cache is about as fast as memory is, and there are several cores to one memory.

use super::matmul;
use crate::{Element, Pool};

/// Bytes of a block of the right operand: with what else the product touches it stays in the second cache.
const BLOCK_BYTES: usize = 256 * 1024;
/// Columns of a block for few rows on the left, where a long row is made in one go, and for many, whose tiles want it deep.
const WIDE: usize = 4096;
const NARROW: usize = 512;
/// Fewest rows on the left that make a product be bound by its multiplications.
const MANY: usize = 8;

/// `c (+)= a b`, row-major: `a` of shape `[m, k]`, `b` `[k, n]`, `c` `[m, n]`, where `make(row, column, out)` writes elements of `b` from
/// that place on. Each element of `b` is made once.
///
/// # Panics
/// Where a slice does not have the length of its shape.
pub fn matmul_generated<E: Element>(
    pool: &Pool,
    a: &[E],
    make: impl Fn(usize, usize, &mut [E]) + Sync,
    c: &mut [E],
    [m, k, n]: [usize; 3],
    accumulate: bool,
) {
    assert_eq!((a.len(), c.len()), (m * k, m * n), "operands of [{m}, {k}] by [{k}, {n}]");
    let widest = if m < MANY { WIDE } else { NARROW };
    let width = n.div_ceil(pool.threads()).next_multiple_of(64).clamp(1, widest).min(n.max(1));
    let depth = (BLOCK_BYTES / size_of::<E>() / width).clamp(1, k.max(1));
    let mut stripes: Vec<Vec<E>> = (0..n).step_by(width).map(|_| Vec::new()).collect();
    pool.chunks(&mut stripes, 1, |index, stripe| {
        let from = index * width;
        let width = width.min(n - from);
        let mut out = vec![E::ZERO; m * width];
        let mut block = vec![E::ZERO; depth * width];
        let mut left = vec![E::ZERO; m * depth];
        for first in (0..k).step_by(depth) {
            let depth = depth.min(k - first);
            let (block, left) = (&mut block[..depth * width], &mut left[..m * depth]);
            for (row, out) in block.chunks_exact_mut(width).enumerate() {
                make(first + row, from, out);
            }
            for (row, left) in left.chunks_exact_mut(depth).enumerate() {
                left.copy_from_slice(&a[row * k + first..row * k + first + depth]);
            }
            matmul(&Pool::default(), left, block, &mut out, m, depth, width, true);
        }
        stripe[0] = out;
    });
    for (index, stripe) in stripes.iter().enumerate() {
        let from = index * width;
        let width = width.min(n - from);
        for (row, values) in stripe.chunks_exact(width).enumerate() {
            let out = &mut c[row * n + from..row * n + from + width];
            if accumulate {
                out.iter_mut().zip(values).for_each(|(out, &v)| *out = out.add(v));
            } else {
                out.copy_from_slice(values);
            }
        }
    }
}
