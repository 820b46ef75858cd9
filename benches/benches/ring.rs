//! The kernels of the ring, each beside its limit: products beside multiply-adds in registers, masks beside AES in
//! registers, packing and encoding beside memory copy (lanes read or written plus packed bytes, against bytes copied
//! from plus bytes copied to).
//!
//! `cargo bench -p tercet-benches --bench ring`, with `TERCET_SIMD=avx2` or `portable` for the other forms, with `--
//! --quick` for less time and precision, with `-- pack` for a part of it.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use tercet_benches::limit::{Home, Limit};
use tercet_benches::{Ledger, criterion};
use tercet_ring::matmul::batched_matmul;
use tercet_ring::{Element, Pool, Prg, Seed, dpf, fixed, onehot, pack, subset};

/// Rows of the vocabulary that a private lookup runs over.
const VOCABULARY: usize = 30_522;
/// Values of a packing whose lanes and bytes stay in the second cache, and of one from and to memory.
const PACKED: [(Home, usize); 2] = [(Home::Cache, 1 << 15), (Home::Memory, 1 << 23)];

fn random<E: Element>(stream: u64, len: usize) -> Vec<E> {
    let mut out = vec![E::ZERO; len];
    Prg::new(&Seed::from_bytes([1; 32])).fill(stream, 0, &mut out);
    out
}

fn products<E: Element>(c: &mut Criterion, ledger: &mut Ledger) {
    let pool = Pool::new(1);
    let group = format!("matmul/u{}", E::BITS);
    // Linear layers of two models and two lengths, one row, and twelve heads of 128 tokens: scores, then the sum over
    // values.
    for (batch, m, k, n) in [
        (1, 128, 768, 3072),
        (1, 128, 3072, 768),
        (1, 32, 384, 1536),
        (1, 32, 1536, 384),
        (1, 1, 384, 1536),
        (12, 128, 32, 128),
        (12, 128, 128, 32),
    ] {
        let (a, b) = (random::<E>(1, batch * m * k), random::<E>(2, batch * k * n));
        let mut out = vec![E::ZERO; batch * m * n];
        let limit = Limit::MultiplyAdds { bits: E::BITS, count: (batch * m * k * n) as f64 };
        let id = if batch == 1 { format!("{m}x{k}x{n}") } else { format!("{batch}x{m}x{k}x{n}") };
        ledger.bench(c, &group, &id, limit, || {
            batched_matmul(&pool, batch, black_box(&a), black_box(&b), black_box(&mut out), m, k, n, false);
        });
    }
}

fn masks(c: &mut Criterion, ledger: &mut Ledger) {
    let prg = Prg::new(&Seed::from_bytes([1; 32]));
    for bytes in [1 << 12, 1 << 16, 1 << 24] {
        let mut out = vec![0u64; bytes / 8];
        ledger.bench(c, "prg", &bytes.to_string(), Limit::Aes { bytes: bytes as f64 }, || {
            prg.fill(7, 0, black_box(&mut out));
        });
    }
}

fn packing<E: Element>(c: &mut Criterion, ledger: &mut Ledger, widths: &[u32]) {
    for (home, lanes) in PACKED {
        let values: Vec<E> = random(3, lanes * size_of::<u32>() / size_of::<E>());
        let mut back = vec![E::ZERO; values.len()];
        let place = if home == Home::Cache { "" } else { " memory" };
        for &k in widths {
            let len = pack::packed_len(values.len(), k);
            let mut packed = Vec::with_capacity(len + 64);
            let limit = Limit::Copy { bytes: (len + size_of_val(&values[..])) as f64, home };
            let id = format!("u{} {k}{place}", E::BITS);
            ledger.bench(c, "pack", &id, limit, || {
                packed.clear();
                pack::pack(black_box(&values), k, black_box(&mut packed));
            });
            packed.clear();
            pack::pack(&values, k, &mut packed);
            ledger.bench(c, "unpack", &id, limit, || {
                pack::unpack(black_box(&packed), k, black_box(&mut back)).expect("its own bytes");
            });
        }
    }
}

/// Comparison of 15-bit masks with points, and their encoding, beside a copy of the words.
fn one_hots<E: Element>(c: &mut Criterion, ledger: &mut Ledger) {
    const BITS: u32 = 15;
    for (home, len) in [(Home::Cache, 1 << 14), (Home::Memory, 1 << 22)] {
        let (points, words): (Vec<E>, Vec<u64>) = (random(1, len), random(2, len));
        let planes = onehot::chunks(BITS) * len / 64;
        let (mut less, mut equal, mut out) = (vec![0; planes], vec![0; planes], vec![0; len]);
        let limit = Limit::Copy { bytes: 2.0 * size_of_val(&words[..]) as f64, home };
        let place = if home == Home::Cache { "" } else { " memory" };
        ledger.bench(c, "onehot/compare", &format!("u{}{place}", E::BITS), limit, || {
            onehot::compare(black_box(&words), black_box(&points), 0, BITS, &mut less, &mut equal);
            black_box((&mut less, &mut equal));
        });
        ledger.bench(c, "onehot/encode", &format!("u{}{place}", E::BITS), limit, || {
            onehot::encode(black_box(&points), 0, BITS, black_box(&mut out));
        });
    }
}

fn keys(c: &mut Criterion) {
    let mut group = c.benchmark_group("dpf");
    let seed = Seed::from_bytes([5; 32]);
    group.bench_function("generate/15", |bench| bench.iter(|| dpf::generate(&seed, 15, black_box(12_345))));
    let key = dpf::generate(&seed, 15, 12_345).first;
    let mut words = vec![0; VOCABULARY.div_ceil(64)];
    group.throughput(Throughput::Elements(VOCABULARY as u64));
    group.bench_function(BenchmarkId::new("expand", VOCABULARY), |bench| {
        bench.iter(|| key.expand(black_box(VOCABULARY), &mut words));
    });
    group.finish();
}

/// Sums of random subsets of a table of MiniLM's size, held against one read of the table; a product of the same shape stands
/// beside them.
fn subsets<E: Element>(c: &mut Criterion, ledger: &mut Ledger) {
    const WIDTH: usize = 384;
    let pool = Pool::new(1);
    let table = random::<E>(1, VOCABULARY * WIDTH);
    let limit = Limit::Copy { bytes: size_of_val(&table[..]) as f64, home: Home::Memory };
    for count in [1, 8, 32, 128] {
        let subsets = random::<u64>(2, count * VOCABULARY.div_ceil(64));
        let mut out = vec![E::ZERO; count * WIDTH];
        let (shape, id) = ([count, VOCABULARY, WIDTH], format!("u{} {count}", E::BITS));
        ledger.bench(c, "subset/sums", &id, limit, || {
            subset::sums(&pool, black_box(&subsets), black_box(&table), black_box(&mut out), shape, false);
        });
        let lanes = random::<E>(3, count * VOCABULARY);
        ledger.bench(c, "subset/product", &id, limit, || {
            let [m, k, n] = shape;
            let (lanes, table) = (black_box(&lanes), black_box(&table));
            batched_matmul(&pool, 1, lanes, table, black_box(&mut out), m, k, n, false);
        });
    }
}

fn encoding(c: &mut Criterion, ledger: &mut Ledger) {
    let values: Vec<f32> = random::<u32>(4, 1 << 15).iter().map(|&v| v as i32 as f32 / 1e9).collect();
    let limit = Limit::Copy { bytes: 2.0 * size_of_val(&values[..]) as f64, home: Home::Cache };
    ledger.bench(c, "fixed", "encode", limit, || {
        black_box(fixed::encode::<u32>("values", black_box(&values), 12, 32).expect("they fit"));
    });
}

fn main() {
    let (mut c, mut ledger) = (criterion(), Ledger::default());
    products::<u32>(&mut c, &mut ledger);
    products::<u64>(&mut c, &mut ledger);
    masks(&mut c, &mut ledger);
    packing::<u32>(&mut c, &mut ledger, &[1, 2, 3, 5, 10, 16, 20, 24, 27, 28, 29, 31, 32]);
    packing::<u64>(&mut c, &mut ledger, &[1, 7, 16, 20, 33, 44, 48, 56, 57, 58, 63]);
    one_hots::<u32>(&mut c, &mut ledger);
    one_hots::<u64>(&mut c, &mut ledger);
    keys(&mut c);
    subsets::<u32>(&mut c, &mut ledger);
    subsets::<u64>(&mut c, &mut ledger);
    encoding(&mut c, &mut ledger);
    c.final_summary();
    ledger.print();
}
