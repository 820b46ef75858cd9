//! Extension to a wider ring: `Z_2^k` to `Z_2^n` for `|x| < 2^(k-2)`.
//!
//! After adding `2^(k-2)` the value is in the lower half of the ring, so `m - lambda` wraps exactly where the top bit of `m` is
//! 0 and that of `lambda` is 1. P0 deals that bit of `lambda` and the carry of `l1 + l2`; the evaluators re-mask the sum of both in
//! the top `n - k` bits. Only the new bits travel.
//!
//! *Error*: none. *Cost*: one round, `n - k` bits each way, `2 (n - k)` bits dealt. *Security*: an evaluator receives halves
//! of fresh sharings and the other's half under a uniform mask.

use tercet_core::{Cost, Posted, Result, Session};
use tercet_net::PartyId;
use tercet_ring::{Element, Tensor};

use crate::masked::Masked;

/// An extension whose exchange is on the way; or none, where the ring was wide enough.
#[must_use]
pub struct Extension<F> {
    posted: Option<Posted>,
    from: u32,
    to: u32,
    low: Masked<F>,
    /// Evaluators: what was sent, and the own mask. Helper: both masks.
    held: [Vec<F>; 2],
}

/// The wire cost of extending `len` elements.
pub fn cost(len: usize, from: u32, to: u32) -> Cost {
    if to <= from {
        return Cost::NONE;
    }
    Cost::deal(2 * len, to - from).then(Cost::exchange(len, to - from))
}

/// Starts an extension to `Z_2^to`. Where `to` is no wider than the present ring this is a free reduction.
pub fn post<E: Element, F: Element>(s: &mut Session, x: &Masked<E>, to: u32) -> Result<Extension<F>> {
    let from = x.ring();
    if to <= from {
        return Ok(Extension { posted: None, from, to, low: x.low(to), held: [Vec::new(), Vec::new()] });
    }
    s.scope("extend", |s| {
        let offset = if s.is_helper() { E::ZERO } else { E::from_i64(1 << (from - 2)) };
        let [first, second] = x.planes();
        let low = Masked::new(
            s.party(),
            from,
            [
                first.map(|v| F::from_u64(v.add(offset).low(from).to_u64())),
                second.map(|v| F::from_u64(v.low(from).to_u64())),
            ],
        );
        let (len, new) = (low.len(), to - from);
        let dealt: Vec<F> = s.deal(2 * len, new, |_| {
            let mut values = vec![F::ZERO; 2 * len];
            let (tops, carries) = values.split_at_mut(len);
            let (l1, l2) = (low.planes()[0].data(), low.planes()[1].data());
            tercet_ring::simd::run!(|| {
                for ((top, carry), (a, b)) in tops.iter_mut().zip(carries).zip(l1.iter().zip(l2)) {
                    // A ring narrower than its target leaves room for the carry in the target's lane.
                    let sum = a.add(*b);
                    *top = (sum >> (from - 1)) & F::ONE;
                    *carry = (sum >> from) & F::ONE;
                }
            });
            values
        })?;
        let masks = s.draw::<F>(len);
        let (mask, other) = match s.party() {
            PartyId::P0 => (masks.first, masks.second),
            PartyId::P1 => (masks.first, Vec::new()),
            PartyId::P2 => (masks.second, Vec::new()),
        };
        if s.is_helper() {
            let posted = s.post::<F>(&[], new)?;
            return Ok(Extension { posted: Some(posted), from, to, low, held: [mask, other] });
        }
        let (top, carry) = dealt.split_at(len);
        let mut sent = mask.clone();
        tercet_ring::simd::run!(|| {
            let dealt = top.iter().zip(carry);
            for ((sent, &m), (&top, &carry)) in sent.iter_mut().zip(low.m()).zip(dealt) {
                let lower_half = F::ONE.sub(m >> (from - 1));
                *sent = sent.add(lower_half.mul(top)).add(carry);
            }
        });
        let posted = s.post(&sent, new)?;
        Ok(Extension { posted: Some(posted), from, to, low, held: [sent, mask] })
    })
}

impl<F: Element> Extension<F> {
    /// Ends it.
    pub fn finish(self, s: &mut Session) -> Result<Masked<F>> {
        let Extension { posted, from, to, low, held: [first, second] } = self;
        let Some(posted) = posted else { return Ok(low) };
        let theirs: Vec<F> = s.wait(posted, first.len(), to - from)?;
        let mut low = low;
        let [a, b] = low.planes_mut().each_mut().map(Tensor::data_mut);
        let helper = s.is_helper();
        let offset = F::from_i64(1 << (from - 2));
        tercet_ring::simd::run!(|| {
            if helper {
                a.iter_mut().zip(&first).for_each(|(v, &t)| *v = v.add(t << from));
            } else {
                let tops = first.iter().zip(&theirs);
                a.iter_mut().zip(tops).for_each(|(v, (&x, &y))| *v = v.add(x.add(y) << from).sub(offset));
            }
            b.iter_mut().zip(&second).for_each(|(v, &t)| *v = v.add(t << from));
        });
        Ok(low.in_ring(to))
    }
}

/// `x` in `Z_2^to`, in one go.
pub fn extend<E: Element, F: Element>(s: &mut Session, x: &Masked<E>, to: u32) -> Result<Masked<F>> {
    post(s, x, to)?.finish(s)
}
