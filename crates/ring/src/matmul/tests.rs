use proptest::prelude::*;

use super::*;
use crate::{Prg, Seed};

/// The definition.
fn naive<E: Element>(batch: usize, a: &[E], b: &[E], c: &mut [E], m: usize, k: usize, n: usize) {
    for item in 0..batch {
        for i in 0..m {
            for j in 0..n {
                let at = (item * m + i) * n + j;
                for s in 0..k {
                    c[at] = c[at].add(a[(item * m + i) * k + s].mul(b[(item * k + s) * n + j]));
                }
            }
        }
    }
}

fn random<E: Element>(stream: u64, len: usize) -> Vec<E> {
    let mut out = vec![E::ZERO; len];
    Prg::new(&Seed::from_bytes([9; 32])).fill(stream, 0, &mut out);
    out
}

fn check<E: Element>(threads: usize, batch: usize, m: usize, k: usize, n: usize) {
    let (a, b) = (random::<E>(1, batch * m * k), random::<E>(2, batch * k * n));
    let before = random::<E>(3, batch * m * n);
    let pool = Pool::new(threads);
    let mut sum = before.clone();
    naive(batch, &a, &b, &mut sum, m, k, n);
    let mut product = vec![E::ZERO; before.len()];
    naive(batch, &a, &b, &mut product, m, k, n);
    for isa in Isa::available() {
        let mut c = before.clone();
        matmul_with(isa, &pool, batch, &a, &b, &mut c, m, k, n, true);
        assert!(c == sum, "sum of u{} {isa:?} {threads} threads [{batch}, {m}, {k}, {n}]", E::BITS);
        let mut c = before.clone();
        matmul_with(isa, &pool, batch, &a, &b, &mut c, m, k, n, false);
        assert!(c == product, "product of u{} {isa:?} {threads} threads [{batch}, {m}, {k}, {n}]", E::BITS);
    }
}

#[test]
fn every_form_agrees_on_edge_sizes() {
    let sizes = [0, 1, 5, 63, 64, 65];
    for m in sizes {
        for k in sizes {
            for n in sizes {
                check::<u32>(1, 1, m, k, n);
                check::<u64>(1, 1, m, k, n);
            }
        }
    }
}

#[test]
fn a_right_operand_that_is_made_on_the_way_gives_the_same() {
    for threads in [1, 3] {
        let pool = Pool::new(threads);
        for [m, k, n] in [[1, 1, 1], [0, 3, 5], [1, 700, 900], [3, 5, 4_100], [9, 300, 700], [17, 1_000, 65], [2, 0, 3]]
        {
            let (a, b) = (random::<u32>(1, m * k), random::<u32>(2, k * n));
            let mut exact = random::<u32>(3, m * n);
            let mut got = exact.clone();
            matmul(&pool, &a, &b, &mut exact, m, k, n, true);
            let make = |row: usize, column: usize, out: &mut [u32]| {
                out.copy_from_slice(&b[row * n + column..row * n + column + out.len()]);
            };
            matmul_generated(&pool, &a, make, &mut got, [m, k, n], true);
            assert!(got == exact, "[{m}, {k}, {n}] on {threads}");
            matmul(&pool, &a, &b, &mut exact, m, k, n, false);
            matmul_generated(&pool, &a, make, &mut got, [m, k, n], false);
            assert!(got == exact, "[{m}, {k}, {n}] on {threads}");
        }
    }
}

#[test]
fn every_form_agrees_over_several_blocks_and_strips() {
    for (m, k, n) in [(7, 257, 300), (13, 600, 33), (1, 515, 4100), (40, 256, 256), (12, 512, 2), (100, 300, 1)] {
        check::<u32>(1, 1, m, k, n);
        check::<u64>(1, 1, m, k, n);
    }
}

#[test]
fn every_form_agrees_on_several_threads() {
    for (batch, m, k, n) in [(1, 64, 80, 200), (1, 700, 64, 9), (1, 1, 600, 700), (5, 33, 64, 65), (3, 1000, 200, 1)] {
        check::<u32>(3, batch, m, k, n);
        check::<u64>(3, batch, m, k, n);
    }
}

#[test]
fn an_empty_batch_and_an_empty_sum() {
    check::<u32>(2, 0, 3, 4, 5);
    check::<u64>(2, 4, 3, 0, 5);
}

#[test]
#[should_panic(expected = "right operand")]
fn a_wrong_length_is_refused() {
    matmul(&Pool::default(), &[0u32; 6], &[0; 5], &mut [0; 4], 2, 3, 2, false);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_form_agrees(threads in 1usize..4, batch in 1usize..4, m in 0usize..50, k in 0usize..90, n in 0usize..150) {
        check::<u32>(threads, batch, m, k, n);
        check::<u64>(threads, batch, m, k, n);
    }
}

#[test]
fn parts_cover_the_output_once() {
    for (batch, m, n, threads) in
        [(1, 128, 3072, 2), (12, 32, 32, 4), (1, 1, 5000, 8), (2, 999, 1, 3), (1, 70, 130, 16)]
    {
        let grid = Grid::new(batch, m, n, usize::MAX, 32, threads);
        let mut seen = vec![0u8; batch * m * n];
        for index in 0..grid.parts() {
            let (item, rows, columns) = grid.part(index);
            for row in rows {
                columns.clone().for_each(|column| seen[(item * m + row) * n + column] += 1);
            }
        }
        assert!(seen.iter().all(|&times| times == 1));
    }
}
