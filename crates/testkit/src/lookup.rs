//! What a client sends of one index of a lookup: as it should, or in one of the ways in which it
//! should not.

use tercet_helper::lookup::PAIRS;
use tercet_ring::Seed;
use tercet_ring::dpf::{self, Key};

/// The keys and signs of one index.
#[derive(Clone)]
pub struct Lookup {
    /// By party, the keys into masked values and into masks.
    pub keys: [[Option<Key>; PAIRS]; 3],
    /// Whether the sign of the value pair is negative, and whether that of the mask pair is
    /// positive: 0 or 1.
    pub signs: [i64; PAIRS],
}

/// Which pair of keys.
const VALUE: usize = 0;
const MASK: usize = 1;
/// Parties that hold keys of a pair.
const HOLDERS: [&[usize]; PAIRS] = [&[1, 2], &[0, 1, 2]];

impl Lookup {
    /// As an honest client makes it.
    pub fn new(domain_bits: u32, index: usize) -> Lookup {
        Lookup::of(domain_bits, [index; PAIRS])
    }

    /// With a pair into masked values at one index, and into masks at another.
    fn of(domain_bits: u32, [value, mask]: [usize; PAIRS]) -> Lookup {
        let [value, mask] = [value, mask].map(|index| dpf::generate(&Seed::random(), domain_bits, index));
        let keys = [
            [None, Some(mask.first)],
            [Some(value.first), Some(mask.second.clone())],
            [Some(value.second), Some(mask.second)],
        ];
        Lookup { keys, signs: [i64::from(value.sign < 0), i64::from(mask.sign > 0)] }
    }

    /// What multiplies each of `rows` rows of masked values, and of masks: equal where it is a
    /// combination of rows.
    ///
    /// # Panics
    /// Where the evaluators have different keys into masks.
    pub fn coefficients(&self, rows: usize) -> [Vec<i64>; PAIRS] {
        let bits = |party: usize, pair: usize| -> Vec<i64> {
            let mut words = vec![0u64; rows.div_ceil(64)];
            self.keys[party][pair].as_ref().expect("a key").expand(rows, &mut words);
            (0..rows).map(|row| (words[row / 64] >> (row % 64) & 1) as i64).collect()
        };
        assert_eq!(bits(1, MASK), bits(2, MASK), "the evaluators' keys into masks");
        let difference = |sign: i64, first: Vec<i64>, second: Vec<i64>| {
            first.iter().zip(second).map(|(a, b)| (1 - 2 * sign) * (a - b)).collect()
        };
        let value = difference(self.signs[VALUE], bits(1, VALUE), bits(2, VALUE));
        [value, difference(1 - self.signs[MASK], bits(0, MASK), bits(1, MASK))]
    }

    /// Changes the bytes of the keys of a pair at these parties alike, but for their first, which
    /// says whose they are.
    fn change(&mut self, domain_bits: u32, pair: usize, parties: &[usize], change: impl Fn(&mut [u8])) {
        for &party in parties {
            let key = self.keys[party][pair].as_ref().expect("a key");
            let (mut bytes, side) = (key.to_bytes(), key.side());
            change(&mut bytes);
            self.keys[party][pair] = Some(Key::from_bytes(&bytes, domain_bits, side).expect("a key of this form"));
        }
    }

    /// Has the keys of a pair differ at a position in the leaf of its index where they do not, or
    /// agree where they differ.
    fn turn(&mut self, domain_bits: u32, pair: usize, position: usize) {
        let byte = |bytes: &[u8]| bytes.len() - 16 + position % 128 / 8;
        self.change(domain_bits, pair, HOLDERS[pair], |bytes| bytes[byte(bytes)] ^= 1 << (position % 8));
    }
}

/// A way in which a client deviates.
pub struct Deviation {
    /// In words.
    pub name: &'static str,
    /// Whether what it asks for is a combination of rows all the same, which is answered.
    pub legal: bool,
    /// What it sends for a table of `2^bits` positions, of which `entries` are rows, in place of an
    /// index.
    pub make: fn(bits: u32, entries: usize, index: usize) -> Lookup,
}

/// A row in the leaf of `index`, and another one.
fn beside(entries: usize, index: usize) -> usize {
    let leaf = index / 128 * 128;
    let end = entries.min(leaf + 128);
    leaf + (index - leaf + 1) % (end - leaf)
}

/// With keys of these pairs that expand to the same bits: they are at no row.
fn nowhere(bits: u32, index: usize, pairs: &[usize]) -> Lookup {
    let mut lookup = Lookup::new(bits, index);
    pairs.iter().for_each(|&pair| lookup.turn(bits, pair, index));
    lookup
}

/// Both pairs at two rows each, the signs of which agree or not.
fn two_rows(bits: u32, entries: usize, index: usize, agree: bool) -> Lookup {
    loop {
        let mut lookup = Lookup::new(bits, index);
        let other = beside(entries, index);
        (0..PAIRS).for_each(|pair| lookup.turn(bits, pair, other));
        let [value, mask] = lookup.coefficients(entries);
        assert!(value[index] != 0 && value[other] != 0 && value[index] == mask[index], "two rows");
        if (value == mask) == agree {
            return lookup;
        }
    }
}

/// Every way that the tests try, for tables of which every leaf has two rows and more.
pub const DEVIATIONS: [Deviation; 12] = [
    Deviation {
        name: "both pairs at another row",
        legal: true,
        make: |bits, entries, index| Lookup::new(bits, beside(entries, index)),
    },
    Deviation {
        name: "both pairs at no row",
        legal: true,
        make: |bits, _, index| nowhere(bits, index, &[VALUE, MASK]),
    },
    Deviation {
        name: "both signs turned",
        legal: true,
        make: |bits, _, index| {
            let honest = Lookup::new(bits, index);
            Lookup { signs: honest.signs.map(|sign| 1 - sign), ..honest }
        },
    },
    Deviation { name: "two rows", legal: true, make: |bits, entries, index| two_rows(bits, entries, index, true) },
    Deviation {
        name: "two rows of mixed signs",
        legal: false,
        make: |bits, entries, index| two_rows(bits, entries, index, false),
    },
    Deviation {
        name: "a mask pair at another row",
        legal: false,
        make: |bits, entries, index| Lookup::of(bits, [index, beside(entries, index)]),
    },
    Deviation { name: "a value pair at no row", legal: false, make: |bits, _, index| nowhere(bits, index, &[VALUE]) },
    Deviation { name: "a mask pair at no row", legal: false, make: |bits, _, index| nowhere(bits, index, &[MASK]) },
    Deviation {
        name: "the value pair's sign turned",
        legal: false,
        make: |bits, _, index| {
            let Lookup { keys, signs: [value, mask] } = Lookup::new(bits, index);
            Lookup { keys, signs: [1 - value, mask] }
        },
    },
    Deviation {
        name: "the mask pair's sign turned",
        legal: false,
        make: |bits, _, index| {
            let Lookup { keys, signs: [value, mask] } = Lookup::new(bits, index);
            Lookup { keys, signs: [value, 1 - mask] }
        },
    },
    Deviation {
        name: "a value pair with another correction of the leaf",
        legal: false,
        make: |bits, _, index| {
            let mut lookup = Lookup::new(bits, index);
            lookup.change(bits, VALUE, &[1, 2], |bytes| bytes.iter_mut().rev().take(16).for_each(|byte| *byte ^= 0x5a));
            lookup
        },
    },
    Deviation {
        name: "mask keys of random bytes",
        legal: false,
        make: |bits, _, index| {
            let mut lookup = Lookup::new(bits, index);
            lookup.change(bits, MASK, &[1, 2], |bytes| bytes[1..16].iter_mut().for_each(|byte| *byte ^= 0x33));
            lookup
        },
    },
];
