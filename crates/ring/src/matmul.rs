//! Matrix products over the lanes, modulo their width.

use crate::simd::Isa;
use crate::{Element, Pool};

/// The kernels of a lane. Sealed: `u32` and `u64` alone.
pub trait Kernel: Sized + sealed::Lane {}
impl Kernel for u32 {}
impl Kernel for u64 {}

mod sealed {
    pub trait Lane {}
    impl Lane for u32 {}
    impl Lane for u64 {}
}

/// `c (+)= a * b`, row-major, `a` of shape `[m, k]`, `b` `[k, n]`, `c` `[m, n]`; added to `c` where `accumulate`.
///
/// # Panics
/// Where a slice does not have the length of its shape.
pub fn matmul<E: Element>(pool: &Pool, a: &[E], b: &[E], c: &mut [E], m: usize, k: usize, n: usize, accumulate: bool) {
    batched_matmul(pool, 1, a, b, c, m, k, n, accumulate);
}

/// `batch` products of [`matmul`]: `a` of shape `[batch, m, k]`, `b` `[batch, k, n]`, `c` `[batch, m, n]`.
///
/// # Panics
/// Where a slice does not have the length of its shape.
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
    assert_eq!(a.len(), batch * m * k, "left operand");
    assert_eq!(b.len(), batch * k * n, "right operand");
    assert_eq!(c.len(), batch * m * n, "product");
    if n == 0 {
        return;
    }
    pool.chunks(c, n, |first, row| {
        let i = first / n;
        let b = &b[i / m * k * n..(i / m + 1) * k * n];
        Isa::current().run(|| {
            if !accumulate {
                row.fill(E::ZERO);
            }
            for (x, line) in a[i * k..(i + 1) * k].iter().zip(b.chunks_exact(n)) {
                row.iter_mut().zip(line).for_each(|(s, &y)| *s = s.add(x.mul(y)));
            }
        });
    });
}
