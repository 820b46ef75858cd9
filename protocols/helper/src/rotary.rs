//! Rotary positions: each pair of columns `(i, i + width / 2)` of a head turned by an angle that grows with the row's position.
//!
//! A turn is a linear map with public coefficients, so that it is local: the same at all parties, on both planes. Sines and cosines
//! are rounded at `2^rotary_frac` to the same integers everywhere ([`tercet_core::functions`]), and the sum of two products is
//! shifted back by as much.
//!
//! *Error*: half a unit of `2^-rotary_frac` of an element from each coefficient, and the three dropped carries of the shift: within
//! 1.5 units, zero mean. *Cost*: none. *Security*: nothing travels.

use tercet_core::functions::rotation;
use tercet_ring::{Element, Tensor, simd};

use crate::masked::Masked;

/// Rows of heads of `2 * rates.len()` columns, row `i` turned as `positions` says. The result is in a ring smaller by `frac` bits.
pub fn turn<F: Element>(
    x: &Masked<u64>,
    positions: impl Iterator<Item = usize>,
    rates: &[f64],
    frac: u32,
) -> Masked<F> {
    let table: Vec<Vec<(i64, i64)>> = positions.map(|position| rotation(rates, position, frac)).collect();
    assert_eq!(x.planes()[0].rows(), table.len(), "a position a row");
    let (half, width) = (rates.len(), x.planes()[0].width());
    assert_eq!(width % (2 * half), 0, "whole heads");
    let turned = x.each(x.ring(), |plane| {
        let mut data = vec![0u64; plane.len()];
        simd::run!(|| {
            let rows = plane.data().chunks_exact(width).zip(data.chunks_exact_mut(width));
            for ((row, out), table) in rows.zip(&table) {
                for (head, out) in row.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
                    let ((a, b), (out_a, out_b)) = (head.split_at(half), out.split_at_mut(half));
                    for (i, &(c, s)) in table.iter().enumerate() {
                        let (c, s) = (c as u64, s as u64);
                        out_a[i] = a[i].mul(c).sub(b[i].mul(s));
                        out_b[i] = b[i].mul(c).add(a[i].mul(s));
                    }
                }
            }
        });
        Tensor::new(plane.shape(), data)
    });
    // The dropped parts of two masks outweigh that of the masked value by half a unit in the mean.
    let centre = if frac == 0 { 0 } else { 1 << (frac - 1) };
    turned.plus(-centre).shift(frac)
}
