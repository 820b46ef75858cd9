//! What it costs a node to show that its copies of a client's input are those of the others: one
//! digest of the bytes when they come, beside copying them, and one tag for each session, request
//! and pair.
//!
//! `cargo bench -p tercet-benches --bench inputs -- --quick`

use std::hint::black_box;

use criterion::Criterion;
use tercet_benches::limit::{Home, Limit};
use tercet_benches::{Ledger, criterion};
use tercet_engine::Replicas;
use tercet_net::{InputShare, PartyId};
use tercet_ring::{Seed, dpf, pack};

/// P1's part of one input: `rows` of `width` shared values, or of looked-up rows where there are
/// bits of a domain.
fn part(rows: usize, width: usize, domain_bits: Option<u32>) -> InputShare {
    let packed = |len: usize, ring: u32| vec![0x5a; pack::packed_len(len, ring)];
    let keys = vec![0xa5; domain_bits.map_or(0, |bits| rows * dpf::key_len(bits))];
    InputShare {
        batch: 1,
        rows: rows as u32,
        first_seed: Some([1; 32]),
        second_seed: None,
        masked: vec![packed(rows, 20), packed(rows, 32), packed(rows * width, 32)],
        keys: [keys.clone(), keys],
    }
}

fn digests(c: &mut Criterion, ledger: &mut Ledger) {
    for (id, share) in [
        ("a text of 32 tokens", part(32, 2, Some(15))),
        ("a text of 128 tokens", part(128, 2, Some(15))),
        ("an image of 196 patches", part(196, 768, None)),
    ] {
        let bytes = share.masked.iter().map(Vec::len).sum::<usize>() + share.keys[1].len();
        let limit = Limit::Copy { bytes: 2.0 * bytes as f64, home: Home::Cache };
        ledger.bench(c, "digest", id, limit, || {
            black_box(Replicas::of(PartyId::P1, black_box(&share)));
        });
    }
}

fn tags(c: &mut Criterion, ledger: &mut Ledger) {
    let pair = Seed::from_bytes([7; 32]);
    // A tag is of a request's name and a digest: a hundred bytes.
    let limit = Limit::Copy { bytes: 200.0, home: Home::Cache };
    ledger.bench(c, "tag", "of one request and pair", limit, || {
        black_box(pair.derive("tercet input tag v1", black_box(&[3; 96])));
    });
}

fn main() {
    let mut c = criterion();
    let mut ledger = Ledger::default();
    digests(&mut c, &mut ledger);
    tags(&mut c, &mut ledger);
    c.final_summary();
    ledger.print();
}
