//! Inverse powers of one value a row: piecewise linear on geometric segments.
//!
//! All inner edges are thresholds on one dealing of one-hots. After that `a_0 + b_0 v + sum_j flag_j (da_j + db_j v)` is a sum of
//! selections with public coefficients, which is local: P0 deals the mask of each flag and its product with the mask of `v`,
//! and the same dealt mask serves both the constant and the slope.
//!
//! *Error*: that of the lines (1e-3 at 5 segments an octave). *Cost*: three rounds; for rows, not for elements.
//! *Security*: an evaluator receives halves of fresh sharings and the other's halves under uniform masks.

use tercet_core::spec::InverseSpec;
use tercet_core::{Cost, Result, Session};
use tercet_net::PartyId;
use tercet_ring::{Element, simd};

use crate::bits::MaskedBits;
use crate::compare::{self, Comparison, Flags};
use crate::masked::{Additive, Masked};
use crate::select::expand;
use crate::truncate::{self, Truncation};

/// Segment flags after the first of their two exchanges was posted.
#[must_use]
pub struct Inverse(Comparison);

/// Segment flags after the second was posted.
#[must_use]
pub struct InverseFlags(Flags);

/// The wire cost of inverse powers of `rows` values: three rounds.
pub fn cost(rows: usize, spec: &InverseSpec) -> Cost {
    let edges = spec.segments.edges.len();
    compare::cost(rows, 1, compare_ring(spec), edges).then(Cost::deal(2 * edges * rows, spec.ring).and(truncate::cost(
        rows,
        spec.truncate,
        spec.ring_out,
    )))
}

fn compare_ring(spec: &InverseSpec) -> u32 {
    spec.high + 2 - spec.coarsen()
}

/// Starts the comparisons of `v`, of which the low `high + 2` bits matter.
pub fn post<E: Element>(s: &mut Session, v: &Masked<E>, spec: &InverseSpec) -> Result<Inverse> {
    s.scope("inverse", |s| {
        let by = spec.coarsen();
        let coarse: Masked<u32> = v.shift_low(spec.high + 2, by);
        let edges: Vec<i64> =
            spec.segments.edges.iter().map(|&e| (e + if by > 0 { 1 << (by - 1) } else { 0 }) >> by).collect();
        Ok(Inverse(compare::post(s, &coarse, 1, &edges)?))
    })
}

impl Inverse {
    /// Ends the first round and starts the second.
    pub fn next(self, s: &mut Session) -> Result<InverseFlags> {
        s.scope("inverse", |s| Ok(InverseFlags(self.0.next(s)?)))
    }
}

impl InverseFlags {
    /// Ends the second round and starts the third: the sum of selections, truncated. `v` is the same value in the ring of
    /// `spec`.
    pub fn next(self, s: &mut Session, v: &Masked<u64>, spec: &InverseSpec) -> Result<Truncation<u64>> {
        s.scope("inverse", |s| {
            let flags = self.0.finish(s)?;
            let z = lines(s, &flags, v, spec)?;
            truncate::post(s, z, spec.truncate, spec.ring_out)
        })
    }
}

fn lines(s: &mut Session, flags: &[MaskedBits], v: &Masked<u64>, spec: &InverseSpec) -> Result<Additive<u64>> {
    let (rows, count) = (v.len(), flags.len());
    assert_eq!(v.ring(), spec.ring, "ring of the argument");
    let dealt: Vec<u64> = s.deal(2 * count * rows, spec.ring, |_| {
        let lambda = v.lambda();
        let masks: Vec<u64> = flags.iter().flat_map(|f| expand::<u64>(&f.sigma(), rows)).collect();
        let products: Vec<u64> =
            masks.chunks(rows.max(1)).flat_map(|mask| crate::masked::zip(mask, &lambda, u64::mul)).collect();
        [masks, products].concat()
    })?;
    if s.is_helper() {
        return Ok(Additive::new(s.party(), v.shape(), Vec::new()));
    }
    let (masks, products) = dealt.split_at(count * rows);
    let (m, own) = (v.m(), v.own_mask());
    let leads = s.party() == PartyId::P1;
    // What this evaluator holds of v and of 1 when it takes them as additive sharings.
    let held_v: Vec<u64> = (0..rows).map(|i| if leads { m[i].sub(own[i]) } else { 0u64.sub(own[i]) }).collect();
    let held_one = u64::from(leads);
    let (a, b) = spec.segments.lines[0];
    let mut half: Vec<u64> = held_v.iter().map(|&v| (b as u64).mul(v).add((a as u64).mul(held_one))).collect();
    for (j, (flag, &(da, db))) in flags.iter().zip(&spec.segments.lines[1..]).enumerate() {
        let beta = expand::<u64>(flag.beta(), rows);
        let (mask, product) = (&masks[j * rows..], &products[j * rows..]);
        simd::run!(|| {
            for i in 0..rows {
                let sign = 1u64.sub(beta[i].add(beta[i]));
                let bit = beta[i].mul(held_one).add(sign.mul(mask[i]));
                let chosen = beta[i].mul(held_v[i]).add(sign.mul(m[i].mul(mask[i]).sub(product[i])));
                half[i] = half[i].add((da as u64).mul(bit)).add((db as u64).mul(chosen));
            }
        });
    }
    Ok(Additive::new(s.party(), v.shape(), half))
}
