//! The fixtures as owners share them, and runs on whatever became of their manifests.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tercet_core::{Error, Geometry, Layout, PairSeeds, Result, Session};
use tercet_engine::{
    Choice, Manifest, Member, Noise, Profile, Sequence, StepInput, StepShape, choose, execute, execute_step, parse,
    parse_rows, plan, plan_step,
};
use tercet_helper::plane::{Masks, Plane};
use tercet_helper::suite::{Stored, Weights};
use tercet_model::{Gate, Interface, Model, RowInput, calibrate, calibration_inputs};
use tercet_net::{InputShare, PartyId, Stream, memory_world};
use tercet_ring::{Element, Pool, Prg, Seed, dpf, pack, sharing};
use tercet_testkit::lookup::Lookup;

/// Memory of a session that is run here; a node has its own bound.
const MOST_BYTES: u64 = 512 << 20;
/// Elements of weights that are drawn for a run.
const MOST_ELEMENTS: usize = 1 << 22;

/// A fixture and the manifest of its owner.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) value: Value,
}

/// What a run came to.
pub(crate) enum Outcome {
    /// Not run: its price says that it takes more memory than a test has.
    TooLarge,
    /// Not run: it has no price.
    Unpriced,
    /// To its end.
    Ran,
    /// Until a party found an error.
    Failed(#[allow(dead_code, reason = "for whoever looks into one")] String),
    /// Until a party panicked, in its own session.
    Panicked,
}

/// Every fixture in both profiles, with secret and with public tensors.
pub(crate) fn subjects() -> Vec<Subject> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let mut names: Vec<String> = std::fs::read_dir(&fixtures)
        .expect("the fixtures")
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().join("config.json").exists()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut subjects = Vec::new();
    for name in names {
        let gates: &[Gate] = if name == "mixtral" { &[Gate::Secret, Gate::Public] } else { &[Gate::Secret] };
        for gate in gates {
            let Ok(model) = Model::load_with(&fixtures.join(&name), *gate) else { continue };
            let inputs = calibration_inputs(&model);
            let ranges = calibrate(&model, &inputs[..inputs.len().min(2)]).expect("inputs of this model");
            for (profile, public) in [(Profile::Fast, false), (Profile::Precise, false), (Profile::Fast, true)] {
                let mut numerics = choose(&model.graph, &ranges, profile, public).expect("a fixture that fits");
                if public {
                    numerics.publish(|name| name.ends_with("weight"));
                }
                let graph = model.graph.clone();
                let (tokenizer, generation, base) = (None, model.generation.clone(), None);
                let manifest =
                    Manifest { name: name.clone(), sharing_id: [7; 32], graph, numerics, tokenizer, generation, base };
                let value = serde_json::to_value(&manifest).expect("numbers");
                let back: Manifest = serde_json::from_value(value.clone()).expect("the same");
                Manifest::from_bytes(&back.to_bytes().expect("a manifest")).expect("what was chosen is accepted");
                subjects.push(Subject { name: format!("{name} {profile} public {public}"), value });
            }
        }
    }
    assert!(subjects.len() > 30, "{} fixtures", subjects.len());
    subjects
}

impl Subject {
    /// Prices a manifest in the shapes that clients ask for, and runs the smallest of them between
    /// three parties.
    pub(crate) fn run(&self, manifest: &Manifest, seed: u64) -> Outcome {
        let Ok(interface) = manifest.interface() else { return Outcome::Unpriced };
        let elements = manifest.graph.tensors.iter().map(|spec| spec.rows.saturating_mul(spec.cols));
        let elements = elements.fold(0usize, usize::saturating_add);
        let most = manifest.graph.max_rows();
        let decoder = interface.decoder.is_some();
        let mut priced = None;
        if decoder {
            for shape in steps(most) {
                let price = plan_step(manifest, &shape).map(|plan| plan.working_bytes + plan.cache_bytes[1]);
                if shape == steps(most)[0] {
                    priced = price.ok();
                }
            }
        } else {
            for (batch, rows) in [(1, most.min(3)), (1, most), (2, most.min(4)), (8, most)] {
                let price = plan(manifest, Geometry { batch, rows }).map(|plan| plan.working_bytes);
                priced = priced.or(price.ok());
            }
        }
        let Some(bytes) = priced else { return Outcome::Unpriced };
        if bytes > MOST_BYTES || elements > MOST_ELEMENTS {
            return Outcome::TooLarge;
        }
        let seeds: [Seed; 3] = [1, 2, 3].map(|of| Seed::from_bytes([of; 32]).derive("run", &seed.to_le_bytes()));
        let batch = if decoder { 1 } else { 2 };
        let inputs = inputs(&interface, batch, most.min(3), decoder, &seeds);
        let results = parties(&seeds, |session| {
            let me = session.party();
            let weights = Drawn::new(manifest, me, &seeds);
            if decoder {
                return generate(session, manifest, &interface, &weights, &inputs[me.index()]);
            }
            let parsed = parse(me, manifest, &interface, &inputs[me.index()])?;
            execute(session, manifest, &weights, vec![parsed]).map(|_| ())
        });
        let mut outcome = Outcome::Ran;
        for result in results {
            match result {
                None => return Outcome::Panicked,
                Some(Err(error)) => outcome = Outcome::Failed(error.to_string()),
                Some(Ok(())) => {}
            }
        }
        outcome
    }
}

/// Shapes of steps: the first is the one that is run.
fn steps(context: usize) -> Vec<StepShape> {
    let step = |layout, choice, reentry, noisy| StepShape { layout, choice, reentry, noisy };
    let every = |rows| Layout { every_row: true, ..Layout::prefill(rows) };
    vec![
        step(Layout::prefill(context.min(3)), Choice::Token, false, true),
        step(Layout::prefill(context), Choice::Scores, false, false),
        step(every(context), Choice::Scores, false, false),
        step(Layout::decode(&[1, context / 2, context - 1]), Choice::Token, true, true),
        step(Layout::decode(&[context - 1]), Choice::Scores, false, false),
    ]
}

/// A prompt whose token is chosen inside, and a step on that token.
fn generate<W: Weights>(
    session: &mut Session,
    manifest: &Manifest,
    interface: &Interface,
    weights: &W,
    input: &InputShare,
) -> Result<()> {
    let me = session.party();
    let noise = || Some(Noise { temperature: 0.5, seed: None });
    let rows = input.rows as usize;
    let parsed = parse_rows(me, manifest, interface, input)?;
    let first = Member { sequence: Sequence::new(manifest, me)?, input: StepInput::Rows(parsed), noise: noise() };
    let shape = &steps(manifest.graph.max_rows())[0];
    let mut done = execute_step(session, manifest, weights, vec![first], shape)?;
    if rows == manifest.graph.max_rows() {
        return Ok(());
    }
    let given = done.pop().flatten();
    let (sequence, _) = given.ok_or_else(|| Error::Misuse("a step gives its sequence back".into()))?;
    let member = Member { sequence, input: StepInput::Chosen, noise: noise() };
    let shape = StepShape { layout: Layout::decode(&[rows]), reentry: true, ..shape.clone() };
    execute_step(session, manifest, weights, vec![member], &shape).map(|_| ())
}

/// Runs `program` at three parties; none where one panicked.
fn parties(seeds: &[Seed; 3], program: impl Fn(&mut Session) -> Result<()> + Sync) -> Vec<Option<Result<()>>> {
    let program = &program;
    std::thread::scope(|scope| {
        let run = |transport| {
            let pair =
                PairSeeds { first: Some(seeds[0].derive("pair", &[])), second: Some(seeds[1].derive("pair", &[])) };
            scope.spawn(move || {
                let run = || {
                    let mut session = Session::new(Box::new(transport), &pair, Pool::default())?;
                    let outcome = program(&mut session);
                    if let Err(error) = &outcome {
                        session.abort(&error.to_string());
                    }
                    outcome
                };
                catch_unwind(AssertUnwindSafe(run)).ok()
            })
        };
        let threads: Vec<_> = memory_world(Duration::from_secs(60)).into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    })
}

/// Inputs as clients send them, of random contents.
fn inputs(interface: &Interface, batch: usize, rows: usize, decoder: bool, seeds: &[Seed; 3]) -> [InputShare; 3] {
    let [first, second, third] = seeds;
    let random = Prg::new(third);
    let count = batch * rows;
    let packed = |stream: u64, len: usize, ring: u32| {
        let mut values = vec![0u64; len];
        random.fill_low(stream, 0, ring, &mut values);
        let mut out = Vec::new();
        pack::pack(&values, ring, &mut out);
        out
    };
    let mut keys: [[Vec<u8>; 2]; 3] = Default::default();
    let rows_masked = match interface.rows {
        RowInput::Matrix { width, .. } => packed(2, count * width, interface.wide),
        RowInput::Lookup { domain_bits, entries } => {
            let mut signs = Vec::new();
            for at in 0..count {
                let own = Lookup::new(domain_bits, at % entries);
                for (keys, key) in keys.iter_mut().flatten().zip(own.keys.iter().flatten()) {
                    keys.extend(key.iter().flat_map(dpf::Key::to_bytes));
                }
                signs.extend(own.signs.map(|sign| sign as u64));
            }
            let masked = sharing::split(&signs, first, second, Stream::Rows as u64);
            let mut out = Vec::new();
            pack::pack(&masked, tercet_helper::lookup::SIGN_RING, &mut out);
            out
        }
    };
    let mut streams = Vec::new();
    if !decoder {
        streams.push(packed(0, count, interface.score_ring));
        streams.push(packed(1, count, interface.wide));
    }
    streams.push(rows_masked);
    let mut keys = keys.into_iter();
    PartyId::ALL.map(|party| InputShare {
        batch: batch as u32,
        rows: rows as u32,
        first_seed: (party != PartyId::P2).then(|| *first.as_bytes()),
        second_seed: (party != PartyId::P1).then(|| *second.as_bytes()),
        masked: if party == PartyId::P0 { Vec::new() } else { streams.clone() },
        keys: keys.next().unwrap_or_default(),
    })
}

/// Weights drawn from seeds, in the formats that a manifest says.
struct Drawn<'a> {
    manifest: &'a Manifest,
    party: PartyId,
    /// Of `l1`, `l2` and `m`.
    streams: [Prg; 3],
    /// What P1 holds of a matrix, `m - l1`.
    differences: BTreeMap<&'a str, Box<dyn Any + Send + Sync>>,
}

impl<'a> Drawn<'a> {
    fn new(manifest: &'a Manifest, party: PartyId, seeds: &[Seed; 3]) -> Drawn<'a> {
        let streams = seeds.each_ref().map(|seed| Prg::new(&seed.derive("weights", &[])));
        let mut drawn = Drawn { manifest, party, streams, differences: BTreeMap::new() };
        if party == PartyId::P1 {
            for (number, spec) in manifest.graph.tensors.iter().enumerate() {
                let len = spec.rows * spec.cols;
                let narrow = manifest.numerics.tensors[&spec.name].lane_bits == 32;
                let of: Box<dyn Any + Send + Sync> = match narrow {
                    true => Box::new(drawn.difference::<u32>(number as u64, len)),
                    false => Box::new(drawn.difference::<u64>(number as u64, len)),
                };
                drawn.differences.insert(&spec.name, of);
            }
        }
        drawn
    }

    fn difference<E: Element>(&self, number: u64, len: usize) -> Vec<E> {
        let mut out = vec![E::ZERO; len];
        self.streams[2].fill(number, 0, &mut out);
        self.streams[0].subtract_from(number, 0, &mut out);
        out
    }
}

impl Weights for Drawn<'_> {
    fn stored<E: Element>(&self, name: &str) -> Result<Stored<'_, E>> {
        let missing = || Error::Misuse(format!("tensor {name} is not there in {} bits", E::BITS));
        let number = self.manifest.graph.tensors.iter().position(|spec| spec.name == name).ok_or_else(missing)?;
        let format = self.manifest.numerics.tensors.get(name).filter(|format| format.lane_bits == E::BITS);
        let format = format.ok_or_else(missing)?;
        let drawn = |which: usize| Plane::Drawn(Masks::new(&self.streams[which], number as u64));
        let planes = match (self.party, format.public, format.matrix) {
            (_, true, _) => [drawn(2), Plane::Held(&[][..])],
            (PartyId::P0, false, true) => [drawn(1), drawn(0)],
            (PartyId::P0, false, false) => [drawn(0), drawn(1)],
            (PartyId::P1, false, true) => {
                let held = self.differences.get(name).and_then(|any| any.downcast_ref::<Vec<E>>());
                [Plane::Held(held.ok_or_else(missing)?), Plane::Held(&[][..])]
            }
            (PartyId::P1, false, false) => [drawn(2), drawn(0)],
            (PartyId::P2, false, true) => [drawn(1), drawn(2)],
            (PartyId::P2, false, false) => [drawn(2), drawn(1)],
        };
        let spec = &self.manifest.graph.tensors[number];
        Ok(Stored { rows: spec.rows, cols: spec.cols, ring: format.ring, planes, public: format.public })
    }
}
