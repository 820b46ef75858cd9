//! What a session's profile costs: a scope and a timed stretch, each with two changes of its cursor, as a ratio to their
//! limit, two looks at the clock.
//!
//! `cargo bench -p tercet-benches --bench profile`. Medians of alternating runs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tercet_core::{PairSeeds, Session, Work};
use tercet_net::memory_world;
use tercet_ring::{Pool, Seed};

const CALLS: u32 = 100_000;
const RUNS: usize = 31;

/// Nanoseconds a call, over many.
fn per_call(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..CALLS).for_each(|_| call());
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let [transport, ..] = memory_world(Duration::from_secs(1));
    let seed = || Some(Seed::from_bytes([1; 32]));
    let seeds = PairSeeds { first: seed(), second: seed() };
    let mut session = Session::new(Box::new(transport), &seeds, Pool::new(1)).expect("both seeds are there");
    // As deep as primitives stand, beside a few siblings.
    session.set_label("layer0/attention");
    let mut times: [Vec<f64>; 3] = Default::default();
    let all = session.scope("attention", |s| {
        for name in ["truncate", "extend", "product", "max", "exp"] {
            s.scope(name, |_| Ok(()))?;
        }
        for _ in 0..RUNS {
            times[0].push(per_call(|| _ = black_box((Instant::now(), Instant::now()))));
            times[1].push(per_call(|| s.timed(Work::Packing, |_| _ = black_box(0))));
            times[2].push(per_call(|| s.scope("truncate", |_| Ok(_ = black_box(0))).expect("nothing can fail")));
        }
        Ok(())
    });
    all.expect("nothing can fail");
    let [clock, timed, scope] = times.map(median);
    println!("two looks at the clock  {clock:6.1} ns");
    for (name, time) in [("a timed stretch", timed), ("a scope", scope)] {
        println!("{name:<22}  {time:6.1} ns, {:.2} times that", time / clock);
    }
}
