//! Shares of known values, made and put together again by the test.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tercet_helper::bits::{self, MaskedBits};
use tercet_helper::lookup::{Keys, PAIRS, SIGN_RING};
use tercet_helper::{Additive, Masked};
use tercet_net::PartyId;
use tercet_ring::{Element, Tensor};

use crate::lookup::Lookup;

/// Shares signed integers in `Z_2^ring` under fresh masks from `seed`: one view a party. Bits above the ring are filled with
/// noise, which no primitive may notice.
pub fn share<E: Element>(values: &[i64], shape: &[usize], ring: u32, seed: u64) -> [Masked<E>; 3] {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut noise = || -> Vec<E> { values.iter().map(|_| E::from_u64(rng.random())).collect() };
    let (l1, l2, high) = (noise(), noise(), noise());
    let m = |i: usize| {
        let low = E::from_i64(values[i]).add(l1[i]).add(l2[i]).low(ring);
        low | (high[i] & !E::mask(ring))
    };
    let m: Vec<E> = (0..values.len()).map(m).collect();
    let view = |party: PartyId, a: &[E], b: &[E]| {
        Masked::new(party, ring, [a, b].map(|plane| Tensor::new(shape, plane.to_vec())))
    };
    [view(PartyId::P0, &l1, &l2), view(PartyId::P1, &m, &l1), view(PartyId::P2, &m, &l2)]
}

/// What the three parties get of the lookups of some requests, of as many rows as `requests` says.
pub fn share_lookups<E: Element>(lookups: &[Lookup], requests: &[usize], seed: u64) -> [Keys<E>; 3] {
    let signs: Vec<i64> = lookups.iter().flat_map(|of| of.signs).collect();
    let signs = share(&signs, &[lookups.len(), PAIRS], SIGN_RING, seed);
    let mut parties = signs.into_iter().enumerate();
    [(); 3].map(|()| {
        let (party, signs) = parties.next().expect("one view a party");
        let keys = |pair: usize| lookups.iter().filter_map(|of| of.keys[party][pair].clone()).collect();
        Keys { value: keys(0), mask: keys(1), signs, requests: requests.to_vec() }
    })
}

/// The values of a sharing. Checks that the doubled copies agree.
pub fn reveal<E: Element>(views: &[Masked<E>; 3]) -> Vec<i64> {
    let [helper, first, second] = views;
    let ring = helper.ring();
    let same = |a: &[E], b: &[E], what: &str| {
        let differs = a.iter().zip(b).position(|(a, b)| a.low(ring) != b.low(ring));
        assert_eq!(differs, None, "the two copies of {what} differ");
    };
    same(first.m(), second.m(), "m");
    same(helper.planes()[0].data(), first.own_mask(), "l1");
    same(helper.planes()[1].data(), second.own_mask(), "l2");
    let mask = helper.lambda();
    first.m().iter().zip(&mask).map(|(&m, &l)| m.sub(l).signed(ring)).collect()
}

/// The values of an additive sharing in `Z_2^ring`.
pub fn reveal_additive<E: Element>(views: &[Additive<E>; 3], ring: u32) -> Vec<i64> {
    views[1].half().iter().zip(views[2].half()).map(|(&a, &b)| a.add(b).signed(ring)).collect()
}

/// The values of masked bits. Checks that the doubled copies agree.
pub fn reveal_bits(views: &[MaskedBits; 3]) -> Vec<bool> {
    let len = views[0].len();
    let at = |view: usize, plane: usize, i: usize| bits::bit(&views[view].planes()[plane], i);
    (0..len)
        .map(|i| {
            assert_eq!(at(1, 0, i), at(2, 0, i), "the two copies of beta differ at {i}");
            assert_eq!(at(0, 0, i), at(1, 1, i), "the two copies of s1 differ at {i}");
            assert_eq!(at(0, 1, i), at(2, 1, i), "the two copies of s2 differ at {i}");
            at(1, 0, i) ^ at(0, 0, i) ^ at(0, 1, i) == 1
        })
        .collect()
}
