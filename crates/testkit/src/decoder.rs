//! A decoder in three forms: shared between three parties, as the fixed-point twin, and in floating point; step by step.

use tercet_core::{Cost, Extent, Layout, Result, Suite};
use tercet_engine::{
    Base, Choice, Manifest, Member, ModelNumerics, ModelShare, Noise, Rows, Sequence, SplitError, StepInput, StepShape,
    cache_bytes, execute_step, parse_rows, walk,
};
use tercet_model::graph::Op;
use tercet_model::{Matrix, Model, OracleInput, Trace};
use tercet_net::{InputShare, OutputShare, PartyId};
use tercet_plain::{PlainCache, PlainSuite, Value};
use tercet_ring::{Element, Seed, pack, sharing};

use crate::World;
use crate::encoder::Encoder;
use crate::lookup::Lookup;

/// What one sequence reads in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// These tokens.
    Tokens(Vec<u32>),
    /// The token that its last step chose.
    Chosen,
}

/// One step: which sequences, by number, read what.
pub type Step = Vec<(usize, Read)>;

/// How steps are run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What comes out of each.
    pub choice: Choice,
    /// Whether every row gives scores.
    pub every_row: bool,
    /// The temperature of the choice, if it is made with noise.
    pub temperature: Option<f64>,
}

impl Plan {
    /// One sequence, cut into steps of these lengths; scores of every position.
    pub fn scores(ids: &[u32], lengths: &[usize]) -> Plan {
        let mut rest = ids;
        let step = |&len: &usize| {
            let (first, others) = rest.split_at(len);
            rest = others;
            vec![(0, Read::Tokens(first.to_vec()))]
        };
        Plan { steps: lengths.iter().map(step).collect(), choice: Choice::Scores, every_row: true, temperature: None }
    }

    /// The public shape of every step.
    pub fn shapes(&self) -> Vec<StepShape> {
        let mut lengths = vec![0; self.sequences()];
        let shape = |step: &Step| {
            let extent = |(sequence, read): &(usize, Read)| {
                let rows = if let Read::Tokens(ids) = read { ids.len() } else { 1 };
                let past = lengths[*sequence];
                lengths[*sequence] += rows;
                Extent { past, rows }
            };
            StepShape {
                layout: Layout { sequences: step.iter().map(extent).collect(), every_row: self.every_row },
                choice: self.choice,
                reentry: step.iter().all(|(_, read)| *read == Read::Chosen),
                noisy: self.temperature.is_some(),
            }
        };
        self.steps.iter().map(shape).collect()
    }

    fn sequences(&self) -> usize {
        self.steps.iter().flatten().map(|(sequence, _)| sequence + 1).max().unwrap_or(0)
    }
}

/// What a run gave: by step, by sequence in it, the rows of scores in real numbers, or the chosen token as the only element.
pub type Outputs = Vec<Vec<Vec<f64>>>;

/// What a run between three parties gave.
pub struct PrivateSteps {
    /// What clients open.
    pub outputs: Outputs,
    /// The cost of all steps.
    pub cost: Cost,
    /// Every payload byte that each party received.
    pub received: [Vec<u8>; 3],
}

/// A decoder, shared.
pub struct Decoder(Encoder);

impl Decoder {
    /// Shares a model between three parties, into files that live as long as this.
    ///
    /// # Errors
    /// A tensor does not fit its ring, or no file can be written.
    pub fn new(model: Model, numerics: ModelNumerics) -> std::result::Result<Decoder, SplitError> {
        Encoder::new(model, numerics).map(Decoder)
    }

    /// Shares an adapted model, of which this one lends what its numbers say, into files with the rest.
    ///
    /// # Errors
    /// A tensor does not fit its ring, or no file can be written.
    pub fn adapted(&self, model: Model, numbers: (ModelNumerics, Base)) -> std::result::Result<Decoder, SplitError> {
        self.0.adapted(model, numbers).map(Decoder)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.0.model()
    }

    /// The public part.
    pub fn manifest(&self) -> &Manifest {
        self.0.manifest()
    }

    /// A party's share.
    pub fn share(&self, party: PartyId) -> &ModelShare {
        self.0.share(party)
    }

    /// The float oracle (double precision): the scores of every position.
    ///
    /// # Panics
    /// Where the model does not take these tokens.
    pub fn exact(&self, ids: &[u32]) -> Matrix {
        self.0.oracle.scores(ids).expect("tokens of this model")
    }

    /// Every value of the float oracle, of scores those after the last token.
    ///
    /// # Panics
    /// Where the model does not take these tokens.
    pub fn trace(&self, ids: &[u32]) -> Trace {
        self.0.oracle.run(&OracleInput::Tokens(ids.to_vec())).expect("tokens of this model")
    }

    /// How far apart the last expert that has a say and the first that has none are where they are nearest, over all routers and
    /// positions: whatever is off by more than that gives another answer. Infinite without routers.
    ///
    /// # Panics
    /// Where the model does not take these tokens.
    pub fn routing_gap(&self, ids: &[u32]) -> f64 {
        let trace = self.trace(ids);
        let routers = self.manifest().graph.nodes.iter().filter_map(|node| match node.op {
            Op::Route { top } => Some((top, trace.value(node.inputs[0])?)),
            Op::Experts { top, .. } => Some((top, trace.value(node.inputs[1])?)),
            _ => None,
        });
        let gap = |(top, scores): (usize, &Matrix)| {
            let rows = scores.data.chunks_exact(scores.width).map(|row| {
                let mut row = row.to_vec();
                row.sort_by(|a, b| b.total_cmp(a));
                row.get(top).map_or(f64::INFINITY, |next| f64::from(row[top - 1] - next))
            });
            rows.fold(f64::INFINITY, f64::min)
        };
        routers.map(gap).fold(f64::INFINITY, f64::min)
    }

    /// Runs steps between three parties.
    ///
    /// # Panics
    /// Where a party fails, or the doubled copies of an output differ.
    pub fn private(&self, world: &World, plan: &Plan) -> PrivateSteps {
        self.private_with(world, plan, &|_, domain_bits, id| Lookup::new(domain_bits, id))
    }

    /// The same where the keys and signs of a token are what `make` says, given the sequence, the
    /// bits of the domain and the token. A sequence that is refused has no output and must not go
    /// on.
    ///
    /// # Panics
    /// As [`Decoder::private`]; or where the evaluators do not refuse the same.
    pub fn private_with(&self, world: &World, plan: &Plan, make: &dyn Fn(usize, u32, usize) -> Lookup) -> PrivateSteps {
        let inputs: Vec<Vec<Option<[InputShare; 3]>>> = plan.steps.iter().map(|step| self.inputs(step, make)).collect();
        let shapes = plan.shapes();
        let run = world.run(|s| {
            let (me, share) = (s.party(), self.share(s.party()));
            let mut sequences: Vec<Option<Sequence>> = (0..plan.sequences()).map(|_| None).collect();
            let mut outputs: Vec<Vec<Option<OutputShare>>> = Vec::new();
            for ((step, inputs), shape) in plan.steps.iter().zip(&inputs).zip(&shapes) {
                let mut members = Vec::new();
                for ((number, _), input) in step.iter().zip(inputs) {
                    let sequence = sequences[*number].take();
                    let sequence = sequence.map_or_else(|| Sequence::new(share.manifest(), me), Ok)?;
                    let input = match input {
                        Some(input) => {
                            let input = &input[me.index()];
                            StepInput::Rows(parse_rows(me, share.manifest(), &self.0.interface, input)?)
                        }
                        None => StepInput::Chosen,
                    };
                    let noise = plan.temperature.map(|temperature| Noise { temperature, seed: None });
                    members.push(Member { sequence, input, noise });
                }
                let done = execute_step(s, share.manifest(), share, members, shape)?;
                let (back, shares): (Vec<Option<Sequence>>, Vec<_>) = done.into_iter().map(Option::unzip).unzip();
                for ((number, _), sequence) in step.iter().zip(back) {
                    let Some(sequence) = sequence else { continue };
                    let most = cache_bytes(share.manifest(), me, sequence.len());
                    assert!(sequence.bytes() as u64 <= most, "{} bytes of at most {most}", sequence.bytes());
                    sequences[*number] = Some(sequence);
                }
                outputs.push(shares);
            }
            Ok(outputs)
        });
        let [helper, first, second] = &run.outputs;
        let outputs = shapes.iter().enumerate().map(|(step, shape)| {
            let of = |(member, extent): (usize, &Extent)| {
                let rows = if shape.layout.every_row { extent.rows } else { 1 };
                let shares = [helper, first, second].map(|outputs| outputs[step][member].as_ref());
                match shares {
                    [Some(helper), Some(first), Some(second)] => self.open(shape.choice, rows, [helper, first, second]),
                    [Some(_), None, None] => Vec::new(),
                    _ => panic!("the evaluators refuse other sequences of step {step}"),
                }
            };
            shape.layout.sequences.iter().enumerate().map(of).collect()
        });
        PrivateSteps { outputs: outputs.collect(), cost: run.cost, received: run.received }
    }

    /// Runs steps on the twin, without noise.
    ///
    /// # Errors
    /// The steps do not fit the model.
    pub fn plain(&self, plan: &Plan) -> Result<Outputs> {
        let Manifest { graph, numerics, .. } = self.manifest();
        let mut caches = vec![PlainCache::new(graph.attentions()); plan.sequences()];
        let mut chosen = vec![0; plan.sequences()];
        let mut outputs = Vec::new();
        for (step, shape) in plan.steps.iter().zip(plan.shapes()) {
            let ids = |(number, read): &(usize, Read)| match read {
                Read::Tokens(ids) => ids.clone(),
                Read::Chosen => vec![chosen[*number]],
            };
            let rows = self.0.token_rows(&step.iter().flat_map(ids).collect::<Vec<u32>>());
            let mut taken: Vec<PlainCache> = step.iter().map(|(number, _)| caches[*number].clone()).collect();
            let mut suite =
                PlainSuite::step(&self.0.encoded, rows, &shape.layout, taken.iter_mut().collect(), numerics.formats)?;
            let scores = walk(&mut suite, graph, numerics, Rows::Step, |_, _| ())?;
            let unit = f64::from(numerics.formats.frac).exp2();
            let reals = |value: &Value, unit: f64| value.data().iter().map(|&v| v as f64 / unit).collect::<Vec<f64>>();
            let (values, width) = match shape.choice {
                Choice::Scores => (reals(&scores, unit), scores.cols()),
                Choice::Token => {
                    let places = suite.choose(&scores, &numerics.choice(scores.cols(), scores.ring()))?;
                    let mask = (1i64 << places.ring()) - 1;
                    (places.data().iter().map(|v| (v & mask) as f64).collect(), 1)
                }
            };
            let mut at = 0;
            let mut of_step = Vec::new();
            for (extent, ((number, _), cache)) in shape.layout.sequences.iter().zip(step.iter().zip(taken)) {
                let rows = if shape.layout.every_row { extent.rows } else { 1 };
                let part = values[at * width..(at + rows) * width].to_vec();
                at += rows;
                if shape.choice == Choice::Token {
                    chosen[*number] = part[0] as u32;
                }
                caches[*number] = cache;
                of_step.push(part);
            }
            outputs.push(of_step);
        }
        Ok(outputs)
    }

    /// What the clients of a step send to each party; nothing where a chosen token is read.
    fn inputs(&self, step: &Step, make: &dyn Fn(usize, u32, usize) -> Lookup) -> Vec<Option<[InputShare; 3]>> {
        let of = |(number, read): &(usize, Read)| match read {
            Read::Tokens(ids) => {
                let make = |domain_bits, id| make(*number, domain_bits, id);
                let wide = self.0.interface.wide;
                Some(if wide == 32 { self.input::<u32>(ids, &make) } else { self.input::<u64>(ids, &make) })
            }
            Read::Chosen => None,
        };
        step.iter().map(of).collect()
    }

    fn input<E: Element>(&self, ids: &[u32], make: &dyn Fn(u32, usize) -> Lookup) -> [InputShare; 3] {
        let (first, second) = (Seed::random(), Seed::random());
        let (packed, keys) = self.0.share_rows::<E>(self.0.token_rows(ids), [&first, &second], make);
        let mut keys = keys.into_iter();
        PartyId::ALL.map(|party| InputShare {
            batch: 1,
            rows: ids.len() as u32,
            first_seed: (party != PartyId::P2).then(|| *first.as_bytes()),
            second_seed: (party != PartyId::P1).then(|| *second.as_bytes()),
            masked: if party == PartyId::P0 { Vec::new() } else { vec![packed.clone()] },
            keys: keys.next().unwrap_or_default(),
        })
    }

    /// What a client makes of its three output shares.
    fn open(&self, choice: Choice, rows: usize, shares: [&OutputShare; 3]) -> Vec<f64> {
        let interface = &self.0.interface;
        let (ring, len) = match choice {
            Choice::Scores => (interface.output_ring, rows * interface.output_width),
            Choice::Token => (self.manifest().index_bits(), 1),
        };
        let [helper, first, second] = shares.map(|share| &share.planes);
        assert!(first[0] == second[0] && helper[0] == first[1] && helper[1] == second[1], "doubled copies differ");
        let plane = |bytes: &[u8]| {
            let mut out = vec![0u64; len];
            pack::unpack(bytes, ring, &mut out).expect("as many elements as were packed");
            out
        };
        let joined = sharing::join(&plane(&first[0]), &plane(&helper[0]), &plane(&helper[1]), ring);
        match choice {
            Choice::Scores => {
                let unit = f64::from(interface.output_frac).exp2();
                joined.iter().map(|v| v.signed(ring) as f64 / unit).collect()
            }
            Choice::Token => joined.iter().map(|&v| v as f64).collect(),
        }
    }
}
