//! The steady state: after the first requests, no request takes memory from the system that the heap could keep, and none
//! leaves any behind.

#[path = "suite/models.rs"]
#[allow(dead_code)]
mod models;
mod steady {
    pub(crate) mod turns;
}

use std::sync::{Arc, Barrier};

use steady::turns::{Part, Turns};
use tercet_core::{PairSeeds, Session};
use tercet_engine::{Profile, execute, parse};
use tercet_net::{InputShare, PartyId};
use tercet_ring::heap::Statistics;
use tercet_ring::{Heap, Pool, Seed};
use tercet_testkit::encoder::Encoder;

#[global_allocator]
static HEAP: Heap = Heap;

/// Requests that fill the shelves.
const FIRST: usize = 2;
/// Requests after those.
const REQUESTS: usize = 1000;

/// One party answers one request. Whatever it makes it drops before its turn ends.
fn answer(turns: &Arc<Turns>, encoder: &Encoder, inputs: &[InputShare; 3], me: PartyId, seeds: &PairSeeds) {
    let part = Part::begin(turns, me);
    let mut session = Session::new(Box::new(part.links()), seeds, Pool::new(1)).expect("complete seeds");
    let (share, manifest) = (encoder.share(me), encoder.manifest());
    let interface = manifest.interface().expect("a model with an interface");
    let parsed = parse(me, manifest, &interface, &inputs[me.index()]).expect("an input of this model");
    let output = execute(&mut session, manifest, share, vec![parsed]).expect("a party that runs");
    assert_eq!(output.len(), 1, "an output for a request");
}

/// What changed from one moment to a later one: allocations, blocks off a shelf, fresh blocks and their bytes.
fn between(before: Statistics, after: Statistics) -> (u64, u64, u64, u64) {
    (
        after.allocations - before.allocations,
        after.served - before.served,
        after.fresh - before.fresh,
        after.fresh_bytes - before.fresh_bytes,
    )
}

/// A thousand requests take nothing fresh and leave nothing behind. There is no harness, whose own thread allocates while
/// it waits for a test; and the parties' threads stay, because what a thread keeps for itself is freed after its last turn.
fn main() {
    // A party that panics would leave the others waiting for it.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::exit(101);
    }));
    let encoder = models::encoder(models::DIGITS, Profile::Fast);
    let inputs = encoder.input_shares(&models::request(encoder.model(), 2, 1));
    let (turns, edge) = (Arc::new(Turns::default()), Barrier::new(4));
    let secrets = [Seed::random(), Seed::random()];
    let mut moments = Vec::with_capacity(FIRST + REQUESTS);
    std::thread::scope(|scope| {
        for me in PartyId::ALL {
            let (turns, edge, encoder, inputs, secrets) = (&turns, &edge, &encoder, &inputs, &secrets);
            scope.spawn(move || {
                for request in 0..FIRST + REQUESTS {
                    let seed = |i: usize| Some(secrets[i].derive("request", &request.to_le_bytes()));
                    let seeds = PairSeeds { first: seed(0), second: seed(1) };
                    edge.wait();
                    answer(turns, encoder, inputs, me, &seeds);
                    edge.wait();
                    // Nobody goes on, or ends, while the counts are read.
                    edge.wait();
                }
            });
        }
        for _ in 0..FIRST + REQUESTS {
            turns.reset();
            edge.wait();
            edge.wait();
            moments.push(Heap::statistics());
            edge.wait();
        }
    });
    let (before, one, after) = (moments[FIRST - 1], moments[FIRST], moments[FIRST + REQUESTS - 1]);
    let (allocations, served, fresh, _) = between(before, one);
    assert!(served > 100, "{served} blocks of a request come off the shelves: too few to show anything");
    assert_eq!(fresh, 0);
    let times = REQUESTS as u64;
    assert_eq!(between(before, after), (times * allocations, times * served, 0, 0), "a request is like another");
    assert_eq!(after.live_bytes, before.live_bytes, "what a request made, it dropped");
    assert_eq!(after.retained_bytes, before.retained_bytes);
    assert_eq!(after.high_water_bytes, before.high_water_bytes);
    println!("{REQUESTS} requests: {served} blocks each off the shelves, none fresh, nothing left behind");
}
