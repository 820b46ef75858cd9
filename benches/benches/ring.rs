//! The kernels of the ring, each with its throughput: multiplications a second for products (to be held against one
//! 512-bit product and sum a cycle), bytes a second for everything else (against the memory).
//!
//! `cargo bench -p tercet-benches --bench ring`, with `TERCET_SIMD=avx2` or `portable` for the other forms.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tercet_benches::beside;
use tercet_ring::matmul::{batched_matmul, matmul};
use tercet_ring::{Element, Pool, Prg, Seed, dpf, fixed, onehot, pack};

/// Rows of the vocabulary that a private lookup runs over.
const VOCABULARY: usize = 30_522;

fn random<E: Element>(stream: u64, len: usize) -> Vec<E> {
    let mut out = vec![E::ZERO; len];
    Prg::new(&Seed::from_bytes([1; 32])).fill(stream, 0, &mut out);
    out
}

fn products_of<E: Element>(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("matmul/u{}", E::BITS));
    let pool = Pool::new(1);
    for (m, k, n) in [(128, 768, 3072), (32, 384, 1536), (32, 1536, 384), (1, 384, 1536)] {
        let (a, b) = (random::<E>(1, m * k), random::<E>(2, k * n));
        let mut out = vec![E::ZERO; m * n];
        group.throughput(Throughput::Elements((m * k * n) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{m}x{k}x{n}")), |bench| {
            bench.iter(|| matmul(&pool, black_box(&a), black_box(&b), black_box(&mut out), m, k, n, false));
        });
    }
    // Twelve heads of 128 tokens: scores, then the sum over values.
    for (m, k, n) in [(128, 32, 128), (128, 128, 32)] {
        let (a, b) = (random::<E>(1, 12 * m * k), random::<E>(2, 12 * k * n));
        let mut out = vec![E::ZERO; 12 * m * n];
        group.throughput(Throughput::Elements((12 * m * k * n) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("12x{m}x{k}x{n}")), |bench| {
            bench.iter(|| batched_matmul(&pool, 12, black_box(&a), black_box(&b), black_box(&mut out), m, k, n, false));
        });
    }
    group.finish();
}

fn products(c: &mut Criterion) {
    products_of::<u32>(c);
    products_of::<u64>(c);
}

fn masks(c: &mut Criterion) {
    let mut group = c.benchmark_group("prg");
    let prg = Prg::new(&Seed::from_bytes([1; 32]));
    for bytes in [1 << 12, 1 << 16, 1 << 24] {
        let mut out = vec![0u64; bytes / 8];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bench| {
            bench.iter(|| prg.fill(7, 0, black_box(&mut out)));
        });
    }
    group.finish();
}

/// Throughput in packed bytes.
fn packing(c: &mut Criterion) {
    let mut group = c.benchmark_group("pack");
    let values: Vec<u32> = random(3, 1 << 17);
    for k in [1, 5, 16, 20, 31] {
        let mut packed = Vec::new();
        let mut back = vec![0u32; values.len()];
        group.throughput(Throughput::Bytes(pack::packed_len(values.len(), k) as u64));
        group.bench_function(BenchmarkId::new("pack", k), |bench| {
            bench.iter(|| {
                packed.clear();
                pack::pack(black_box(&values), k, &mut packed);
            });
        });
        group.bench_function(BenchmarkId::new("unpack", k), |bench| {
            bench.iter(|| pack::unpack(black_box(&packed), k, &mut back).expect("its own bytes"));
        });
    }
    group.finish();
}

/// Comparison of 15-bit masks with points, and their encoding, beside a copy of the words: in the second cache and beyond
/// the last.
fn one_hots_of<E: Element>() {
    for len in [1 << 15, 1 << 22] {
        let (c, words, bits): (Vec<E>, Vec<u64>, u32) = (random(1, len), random(2, len), 15);
        let planes = onehot::chunks(bits) * len / 64;
        let (mut less, mut equal, mut out) = (vec![0; planes], vec![0; planes], vec![0; len]);
        let mut copy = vec![0u64; len];
        let name = |what: &str| format!("onehot/{what}/u{}/{len}", E::BITS);
        let copied = || black_box(&mut copy[..]).copy_from_slice(black_box(&words));
        beside(&name("compare"), "a memory copy", copied, || {
            onehot::compare(black_box(&words), black_box(&c), 0, bits, &mut less, &mut equal);
            black_box((&mut less, &mut equal));
        });
        let copied = || black_box(&mut copy[..]).copy_from_slice(black_box(&words));
        beside(&name("encode"), "a memory copy", copied, || {
            onehot::encode(black_box(&c), 0, bits, black_box(&mut out));
        });
    }
}

fn one_hots(_: &mut Criterion) {
    one_hots_of::<u32>();
    one_hots_of::<u64>();
}

fn lookup_of<E: Element>(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("dpf/u{}", E::BITS));
    let seed = Seed::from_bytes([5; 32]);
    group.bench_function("generate/15", |bench| {
        bench.iter(|| dpf::generate::<E>(&seed, 15, black_box(12_345), E::BITS));
    });
    let (key, _) = dpf::generate::<E>(&seed, 15, 12_345, E::BITS);
    group.throughput(Throughput::Elements(VOCABULARY as u64));
    group.bench_function(BenchmarkId::new("eval_all", VOCABULARY), |bench| {
        bench.iter(|| key.eval_all::<E>(black_box(VOCABULARY)));
    });
    group.finish();
}

fn lookup(c: &mut Criterion) {
    lookup_of::<u32>(c);
    lookup_of::<u64>(c);
}

fn encoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("fixed");
    let values: Vec<f32> = random::<u32>(4, 1 << 17).iter().map(|&v| v as i32 as f32 / 1e9).collect();
    group.throughput(Throughput::Elements(values.len() as u64));
    group.bench_function("encode", |bench| {
        bench.iter(|| fixed::encode::<u32>("values", black_box(&values), 12, 32).expect("they fit"));
    });
    group.finish();
}

criterion_group!(benches, products, masks, packing, one_hots, lookup, encoding);
criterion_main!(benches);
