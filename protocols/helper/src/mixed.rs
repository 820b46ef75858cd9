//! A narrow value times a wide one, without extending the narrow one first.
//!
//! For `|x| < 2^(k-2)` in `Z_2^k`, `A = x + 2^(k-2) = m - lambda + 2^k (1 - msb m) msb lambda` over the integers, with the
//! representatives `m`, `lambda` in `[0, 2^k)` (see [`crate::extend`]); and `lambda = l1 + l2 - 2^k carry`. With `y` in `Z_2^n`,
//!
//! ```text
//! x y = (m - 2^(k-2)) y - lambda my + lambda ly + 2^k (1 - msb m) (msb lambda my - msb lambda ly)
//! ```
//!
//! in which the evaluators know `m`, `my` and hold additive sharings of `y` and of `l1 + l2`. P0 deals what is left: `carry`,
//! `msb lambda` and `msb lambda ly` modulo `2^(n-k)`, and `lambda ly` modulo `2^n`.
//!
//! *Error*: none. *Cost*: no round, nothing online, `n + 3 (n - k)` bits dealt: a round and `n - k` bits each way fewer than an
//! extension and a product, for as many dealt bits more. *Security*: an evaluator receives halves of fresh sharings.

use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::masked::{Additive, Masked};

/// The wire cost of `len` products of values in `Z_2^narrow` with values in `Z_2^wide`.
pub fn cost(len: usize, narrow: u32, wide: u32) -> Cost {
    Cost::deal(3 * len, wide - narrow).and(Cost::deal(len, wide))
}

/// Every row of `x`, which is in the smaller ring, times its element of `y`; in the ring of `y`.
pub fn scale_rows(s: &mut Session, x: &Masked<u64>, y: &Masked<u64>) -> Result<Additive<u64>> {
    let (narrow, wide, len) = (x.ring(), y.ring(), x.len());
    assert!(narrow < wide, "a ring of {narrow} bits is not narrower than {wide}");
    assert_eq!(x.planes()[0].rows(), y.len(), "one factor a row");
    let width = x.planes()[0].width().max(1);
    let (first, second) = (x.planes()[0].data(), x.planes()[1].data());
    s.scope("mixed", |s| {
        let sum = |i: usize| first[i].low(narrow) + second[i].low(narrow);
        let tops = s.deal(3 * len, wide - narrow, |_| {
            let factors = y.lambda();
            let carry = (0..len).map(|i| sum(i) >> narrow);
            let top = (0..len).map(|i| sum(i) >> (narrow - 1) & 1);
            let product = (0..len).map(|i| (sum(i) >> (narrow - 1) & 1).mul(factors[i / width]));
            carry.chain(top).chain(product).collect::<Vec<u64>>()
        })?;
        let products = s.deal(len, wide, |_| {
            let factors = y.lambda();
            (0..len).map(|i| sum(i).low(narrow).mul(factors[i / width])).collect::<Vec<u64>>()
        })?;
        if s.is_helper() {
            return Ok(Additive::new(s.party(), x.shape(), Vec::new()));
        }
        let (carry, rest) = tops.split_at(len);
        let (top, top_product) = rest.split_at(len);
        let offset = 1u64 << (narrow - 2);
        let leads = s.party() == PartyId::P1;
        let mut half = Vec::with_capacity(len);
        tercet_ring::simd::run!(|| {
            for (row, (&my, &own)) in y.m().iter().zip(y.own_mask()).enumerate() {
                let held = if leads { my.sub(own) } else { 0u64.sub(own) };
                for i in row * width..(row + 1) * width {
                    let m = first[i].add(offset).low(narrow);
                    let lambda = second[i].low(narrow).sub(carry[i] << narrow);
                    let lower_half = 1u64.sub(m >> (narrow - 1));
                    let wrap = lower_half.mul(my.mul(top[i]).sub(top_product[i])) << narrow;
                    half.push(m.sub(offset).mul(held).sub(my.mul(lambda)).add(products[i]).add(wrap));
                }
            }
        });
        Ok(Additive::new(s.party(), x.shape(), half))
    })
}
