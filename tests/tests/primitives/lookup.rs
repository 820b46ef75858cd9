//! Lookups: the rows that are asked for, and nothing else, whatever a client sends.

use tercet_helper::lookup::{self, Found, Keys};
use tercet_ring::{Element, Tensor};
use tercet_testkit::lookup::{DEVIATIONS, Lookup};
use tercet_testkit::sharing::{reveal, share, share_lookups};
use tercet_testkit::uniformity::assert_uniform;
use tercet_testkit::{Run, World};

/// A table of `rows` rows.
fn table(rows: usize, width: usize) -> Vec<i64> {
    (0..rows * width).map(|i| (i as i64 * 7919) % 4001 - 2000).collect()
}

fn domain_bits(rows: usize) -> u32 {
    rows.next_power_of_two().trailing_zeros()
}

fn run<E: Element>([rows, width]: [usize; 2], keys: &[Keys<E>; 3], ring: u32) -> Run<Found<E>> {
    let table = share::<E>(&table(rows, width), &[rows, width], ring, 18);
    let run = World::with_threads(2).run(|s| {
        let me = s.party().index();
        lookup::lookup(s, lookup::planes(&table[me]), [rows, width], &keys[me], ring)
    });
    assert_eq!(run.cost, lookup::cost(keys[0].mask.len(), width, ring));
    assert_eq!(run.cost.rounds, 2);
    assert_eq!(run.outputs[1].refused, run.outputs[2].refused, "the evaluators agree");
    assert!(!run.outputs[0].refused.contains(&true), "the helper does not learn it");
    run
}

fn revealed<E: Element>(run: &Run<Found<E>>) -> Vec<i64> {
    reveal(&run.outputs.each_ref().map(|found| found.rows.clone()))
}

fn find<E: Element>(rows: usize, width: usize, wanted: &[usize], ring: u32) -> Run<Found<E>> {
    let lookups: Vec<Lookup> = wanted.iter().map(|&index| Lookup::new(domain_bits(rows), index)).collect();
    let run = run([rows, width], &share_lookups::<E>(&lookups, &[wanted.len()], 19), ring);
    let values = table(rows, width);
    let expected: Vec<i64> = wanted.iter().flat_map(|&i| values[i * width..(i + 1) * width].to_vec()).collect();
    assert_eq!(revealed(&run), expected, "{wanted:?} of {rows}");
    assert_eq!(run.outputs[1].refused, [false]);
    run
}

#[test]
fn lookup_finds_the_rows() {
    // Signs are drawn anew every time: eight of each pair meet all four cases as good as always.
    for rows in [1, 2, 63, 300] {
        let last = rows - 1;
        find::<u32>(rows, 24, &[0, last, last / 2, last / 2, last, last.min(255), last.min(256), 0], 32);
        find::<u64>(rows, 5, &[0, last, last / 3, 0, last, last.min(64), last.min(127), last.min(128)], 64);
    }
    find::<u64>(77, 9, &[76], 48);
}

/// The same row many times over: whatever the keys, what an evaluator receives does not show it.
#[test]
fn what_a_lookup_sends_is_uniform() {
    // As wide as a table is, and so narrow that most of it is the check.
    for (width, count) in [(48, 256), (1, 2048)] {
        let run = find::<u32>(70, width, &vec![69; count], 32);
        assert!(run.received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&run.received[1], "lookup at P1");
        assert_uniform(&run.received[2], "lookup at P2");
    }
}

/// Of three requests the second, of three rows, deviates in its last: its rows are the combination
/// that it asks for, or nothing.
fn deviate<E: Element>(ring: u32) {
    let (rows, width, requests) = (300, 7, [1, 3, 2]);
    let (bits, values) = (domain_bits(rows), table(rows, width));
    for index in [5, 257, rows - 1] {
        for deviation in &DEVIATIONS {
            let mut lookups: Vec<Lookup> = (0..6).map(|at| Lookup::new(bits, 50 * at)).collect();
            lookups[3] = (deviation.make)(bits, rows, index);
            let coefficients: Vec<_> = lookups.iter().map(|of| of.coefficients(rows)).collect();
            let [value, mask] = &coefficients[3];
            assert_eq!(value == mask, deviation.legal, "{} of {index}", deviation.name);
            let run = run([rows, width], &share_lookups::<E>(&lookups, &requests, 21), ring);
            assert_eq!(run.outputs[1].refused, [false, !deviation.legal, false], "{} of {index}", deviation.name);
            let mut expected = Vec::new();
            for (at, [u, _]) in coefficients.iter().enumerate() {
                let answered = deviation.legal || !(1..4).contains(&at);
                let column = |c: usize| u.iter().zip(values.chunks(width)).map(|(u, row)| u * row[c]).sum::<i64>();
                expected.extend((0..width).map(|c| if answered { column(c) } else { 0 }));
            }
            assert_eq!(revealed(&run), expected, "{} of {index}", deviation.name);
        }
    }
}

#[test]
fn a_client_that_deviates_gets_a_combination_of_rows_or_nothing() {
    deviate::<u32>(32);
    deviate::<u64>(64);
    deviate::<u64>(48);
}

/// Nor does it help to tell the evaluators different things where both should have the same.
fn copies_differ<E: Element>(ring: u32) {
    let (rows, width) = (300, 7);
    let bits = domain_bits(rows);
    type Differ<E> = fn(&mut [Keys<E>; 3], [Vec<tercet_ring::dpf::Key>; 2]);
    let ways: [(&str, Differ<E>); 4] = [
        ("another key into masks", |keys, [another, _]| keys[2].mask[1] = another[0].clone()),
        ("another key into masks at the other", |keys, [another, _]| keys[1].mask[1] = another[0].clone()),
        ("keys into masks of each other's row", |keys, [_, own]| {
            keys[1].mask[1] = own[0].clone();
            keys[2].mask[1] = own[1].clone();
        }),
        ("another sign of the mask pair", |keys, _| {
            let m: &mut Tensor<E> = &mut keys[1].signs.planes_mut()[0];
            let turned = m.data()[3].add(E::ONE);
            m.data_mut()[3] = turned;
        }),
    ];
    for (name, differ) in ways {
        let lookups: Vec<Lookup> = [3, 4, 299].map(|index| Lookup::new(bits, index)).into();
        let mut keys = share_lookups::<E>(&lookups, &[1, 1, 1], 22);
        let others = [4, 299].map(|index| Lookup::new(bits, index).keys[1][1].clone().expect("a key at P1"));
        let [another, own] = others;
        differ(&mut keys, [vec![another.clone()], vec![another, own]]);
        let run = run([rows, width], &keys, ring);
        assert_eq!(run.outputs[1].refused, [false, true, false], "{name}");
        assert_eq!(revealed(&run)[width..2 * width], [0; 7], "{name}");
    }
}

#[test]
fn evaluators_that_are_told_different_things_refuse() {
    copies_differ::<u32>(32);
    copies_differ::<u64>(64);
}
