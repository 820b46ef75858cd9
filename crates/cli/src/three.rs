//! All three parties in this process, over links in memory: for comparing what they compute with the oracle.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Result, anyhow};
use tercet_client::{ModelFace, Prepared};
use tercet_core::{Cost, Geometry, PairSeeds, Session};
use tercet_engine::{Manifest, ModelShare, Parsed, Rows, parse, walk};
use tercet_helper::suite::{HelperSuite, Input};
use tercet_helper::{Masked, open};
use tercet_net::{OutputShare, PartyId, memory_world};
use tercet_ring::{Element, Pool, Seed};

/// How long a party waits for another.
const DEADLINE: Duration = Duration::from_secs(120);
/// Values that a party may be ahead of whoever looks at them.
const AHEAD: usize = 2;

/// What an evaluator holds of one value, reduced to its ring.
struct View {
    ring: u32,
    rows: usize,
    cols: usize,
    /// `m - l1` at P1, `l2` at P2.
    part: Vec<u64>,
}

/// A value of the graph, put together from the parties' views.
pub(crate) struct Value {
    /// Rows of all inputs together.
    pub(crate) rows: usize,
    /// Columns.
    pub(crate) cols: usize,
    /// Signed integers of its ring.
    pub(crate) integers: Vec<i64>,
}

/// What a run gave.
pub(crate) struct Outcome {
    /// One vector for each input.
    pub(crate) output: Vec<Vec<f32>>,
    /// What travelled.
    pub(crate) cost: Cost,
}

/// Runs a request at three parties; `seen` gets every value as it is made (0 is the result of node 0).
pub(crate) fn run(
    shares: &[ModelShare; 3],
    face: &ModelFace,
    request: &Prepared,
    mut seen: impl FnMut(usize, Value),
) -> Result<Outcome> {
    let (first, second) = (Seed::random(), Seed::random());
    let copy = |seed: &Seed| Some(Seed::from_bytes(*seed.as_bytes()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::new(threads);
    let (to_first, from_first) = sync_channel(AHEAD);
    let (to_second, from_second) = sync_channel(AHEAD);
    let ends = [None, Some(to_first), Some(to_second)];
    let finished = std::thread::scope(|scope| {
        let running = memory_world(DEADLINE).into_iter().zip(shares).zip(request.shares()).zip(ends);
        let running = running.map(|(((transport, share), input), views)| {
            let seeds = PairSeeds { first: copy(&first), second: copy(&second) };
            let pool = pool.clone();
            scope.spawn(move || {
                let mut session = Session::new(Box::new(transport), &seeds, pool)?;
                let manifest = share.manifest();
                let outcome = match parse(share.party(), manifest, face.interface(), input)? {
                    Parsed::Narrow(input) => party(&mut session, manifest, share, input, views),
                    Parsed::Wide(input) => party(&mut session, manifest, share, input, views),
                };
                if let Err(error) = &outcome {
                    session.abort(&error.to_string());
                }
                outcome.map(|output| (output, session.cost()))
            })
        });
        let running: Vec<_> = running.collect();
        collect(&from_first, &from_second, &mut seen);
        // A party that is still sending views must not wait for a reader that left.
        drop((from_first, from_second));
        let joined = running.into_iter().map(|thread| match thread.join() {
            Ok(outcome) => outcome.map_err(anyhow::Error::from),
            Err(_) => Err(anyhow!("a party panicked")),
        });
        joined.collect::<Result<Vec<_>>>()
    })?;
    let mut cost = Cost { rounds: finished[1].1.rounds, ..Cost::NONE };
    for (_, of_party) in &finished {
        for (all, seen) in cost.bytes.iter_mut().flatten().zip(of_party.bytes.iter().flatten()) {
            *all = (*all).max(*seen);
        }
    }
    let outputs: Vec<OutputShare> = finished.into_iter().map(|(output, _)| output).collect();
    let outputs: [OutputShare; 3] = outputs.try_into().map_err(|_| anyhow!("a party is missing"))?;
    Ok(Outcome { output: face.open(request, &outputs)?, cost })
}

fn party<E: Element>(
    session: &mut Session,
    manifest: &Manifest,
    weights: &ModelShare,
    input: Input<E>,
    views: Option<SyncSender<View>>,
) -> tercet_core::Result<OutputShare> {
    let shape = input.key_bias.shape();
    let geometry = Geometry { batch: shape[0], rows: shape[1] };
    let output = {
        let mut suite = HelperSuite::new(session, weights, input, geometry, manifest.numerics.formats);
        let rows = Rows::Inputs(geometry.rows);
        walk(&mut suite, &manifest.graph, &manifest.numerics, rows, |_, value| {
            if let Some(views) = &views {
                // Nobody looks any more where another party has failed.
                let _ = views.send(view(value));
            }
        })?
    };
    session.finish()?;
    Ok(open::to_client(&output, 0..output.len()))
}

fn view<E: Element>(value: &Masked<E>) -> View {
    let [first, second] = value.planes();
    let lanes = |plane: &tercet_ring::Tensor<E>| plane.data().to_vec();
    let (one, own) = (lanes(first), lanes(second));
    let part = match value.party() {
        PartyId::P1 => one.iter().zip(own).map(|(&m, l1)| m.sub(l1).to_u64()).collect(),
        _ => own.iter().map(|l2| l2.to_u64()).collect(),
    };
    View { ring: value.ring(), rows: first.rows(), cols: first.width(), part }
}

/// Puts the views of both evaluators together, value by value, until one of them ends.
fn collect(first: &Receiver<View>, second: &Receiver<View>, seen: &mut impl FnMut(usize, Value)) {
    let mut index = 0;
    while let (Ok(one), Ok(other)) = (first.recv(), second.recv()) {
        let View { ring, rows, cols, part } = one;
        let joined = part.iter().zip(&other.part).map(|(a, b)| a.wrapping_sub(*b).signed(ring));
        seen(index, Value { rows, cols, integers: joined.collect() });
        index += 1;
    }
}
