//! A whole model in three forms: shared between three parties, as the fixed-point twin, and in floating point.

use std::collections::BTreeMap;
use std::sync::Arc;

use tempfile::TempDir;
use tercet_core::{Error, Geometry, Result, Session};
use tercet_engine::Rows as WalkRows;
use tercet_engine::{Base, Manifest, ModelNumerics, ModelShare, Parsed, SplitError, execute, parse, split_on, walk};
use tercet_helper::Masked;
use tercet_helper::lookup::SIGN_RING;
use tercet_helper::suite::{HelperSuite, Input};
use tercet_model::graph::{Graph, Op, TensorSpec};
use tercet_model::{Interface, Model, Oracle, OracleInput, Precision, RowInput};
use tercet_net::{InputShare, OutputShare, PartyId, Stream};
use tercet_plain::{PlainInput, PlainRows, PlainSuite, PlainWeight, PlainWeights, Value};
use tercet_ring::{Element, Seed, dpf, fixed, pack, sharing};

use crate::World;
use crate::lookup::Lookup;
use crate::sharing::reveal;

/// The tensors of a model, encoded as its owner shares them: the weights of the twin.
pub struct EncodedModel(BTreeMap<String, PlainWeight>);

impl EncodedModel {
    /// Encodes every tensor.
    ///
    /// # Errors
    /// A tensor is absent or does not fit its ring.
    pub fn new(model: &Model, numerics: &ModelNumerics) -> std::result::Result<EncodedModel, SplitError> {
        let encode = |spec: &TensorSpec| {
            let missing = || tercet_model::TensorError::Unknown(spec.name.clone());
            let format = numerics.tensors.get(&spec.name).ok_or_else(missing)?;
            let values = model.tensor(&spec.name)?;
            let values: Vec<f64> = values.into_iter().map(|v| f64::from(v) * format.factor).collect();
            let lanes: Vec<u64> = fixed::encode(&spec.name, &values, format.frac, format.ring)?;
            let values = lanes.iter().map(|v| v.signed(format.ring)).collect();
            Ok((spec.name.clone(), PlainWeight { rows: spec.rows, cols: spec.cols, values }))
        };
        Ok(EncodedModel(model.graph.tensors.iter().map(encode).collect::<std::result::Result<_, SplitError>>()?))
    }
}

impl PlainWeights for EncodedModel {
    fn weight(&self, name: &str) -> Result<&PlainWeight> {
        self.0.get(name).ok_or_else(|| Error::Misuse(format!("no tensor {name}")))
    }
}

/// Inputs that run side by side, each padded to the same number of rows.
#[derive(Clone, Debug)]
pub struct Request {
    inputs: Vec<OracleInput>,
    rows: usize,
}

impl Request {
    /// Inputs, padded to the longest of them.
    pub fn new(graph: &Graph, inputs: &[OracleInput]) -> Request {
        let rows = inputs.iter().map(|input| input_rows(input, graph)).max().unwrap_or(0);
        Request { inputs: inputs.to_vec(), rows }
    }

    /// The same inputs, padded to `rows`, which is at least the longest.
    pub fn padded(mut self, rows: usize) -> Request {
        assert!(rows >= self.rows, "{rows} rows are fewer than {}", self.rows);
        self.rows = rows;
        self
    }

    /// One of the inputs alone, without padding.
    pub fn only(&self, at: usize, graph: &Graph) -> Request {
        Request::new(graph, &self.inputs[at..=at])
    }

    /// Its public shape.
    pub fn geometry(&self) -> Geometry {
        Geometry { batch: self.inputs.len(), rows: self.rows }
    }
}

fn input_rows(input: &OracleInput, graph: &Graph) -> usize {
    match input {
        OracleInput::Tokens(ids) => ids.len(),
        OracleInput::Patches(_) => graph.max_rows(),
    }
}

/// Every value of a run in real numbers: by node of the graph, by input, `rows * width` elements without padding. A mean over rows
/// is divided as the client would.
pub type Trace = Vec<Vec<Vec<f64>>>;

/// What a run between three parties gave.
pub struct PrivateRun {
    /// Every value, put together from its shares, in integers: by node.
    pub values: Vec<Value>,
    /// The cost that was measured.
    pub cost: tercet_core::Cost,
    /// Every payload byte that each party received.
    pub received: [Vec<u8>; 3],
    /// Each party's output share, one for each request; none at an evaluator where it was refused.
    pub outputs: [Vec<Option<OutputShare>>; 3],
}

/// A model, shared.
pub struct Encoder {
    model: Model,
    pub(crate) interface: Interface,
    shares: [Arc<ModelShare>; 3],
    pub(crate) encoded: EncodedModel,
    pub(crate) oracle: Oracle,
    _dir: TempDir,
}

impl Encoder {
    /// Shares a model between three parties, into files that live as long as this.
    ///
    /// # Errors
    /// A tensor does not fit its ring, or no file can be written.
    ///
    /// # Panics
    /// Where there is no temporary directory, or candle fails on the model.
    pub fn new(model: Model, numerics: ModelNumerics) -> std::result::Result<Encoder, SplitError> {
        Encoder::shared(model, numerics, None)
    }

    /// Shares an adapted model, of which this one lends what its numbers say, into files with the rest.
    ///
    /// # Errors
    /// A tensor does not fit its ring, or no file can be written.
    ///
    /// # Panics
    /// Where this one cannot lend it.
    pub fn adapted(
        &self,
        model: Model,
        (numerics, base): (ModelNumerics, Base),
    ) -> std::result::Result<Encoder, SplitError> {
        Encoder::shared(model, numerics, Some((base, &self.shares)))
    }

    fn shared(
        model: Model,
        numerics: ModelNumerics,
        base: Option<(Base, &[Arc<ModelShare>; 3])>,
    ) -> std::result::Result<Encoder, SplitError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let encoded = EncodedModel::new(&model, &numerics)?;
        let (base, lenders) = base.unzip();
        let paths = split_on(&model, "model", numerics, base, [dir.path(); 3], |_| ())?;
        let [a, b, c] = paths.map(|path| ModelShare::open(&path));
        let shares = [a?, b?, c?].map(|share| {
            let lender = lenders.map(|lenders| Arc::clone(&lenders[share.party().index()]));
            let share = match lender {
                Some(lender) => share.on_base(lender).expect("a base that lends its tensors"),
                None => share,
            };
            Arc::new(share)
        });
        let interface = shares[0].manifest().interface()?;
        let oracle = Oracle::with_precision(&model, Precision::F64).expect("candle takes the model");
        Ok(Encoder { model, interface, shares, encoded, oracle, _dir: dir })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// A party's share.
    pub fn share(&self, party: PartyId) -> &ModelShare {
        &self.shares[party.index()]
    }

    /// The public part.
    pub fn manifest(&self) -> &Manifest {
        self.shares[0].manifest()
    }

    /// Runs inputs on the twin: every value, by node.
    ///
    /// # Errors
    /// The request does not fit the model.
    pub fn plain(&self, request: &Request) -> Result<Vec<Value>> {
        let Manifest { graph, numerics, .. } = self.manifest();
        let (geometry, input) = (request.geometry(), self.plain_input(request));
        let mut suite = PlainSuite::new(&self.encoded, input, geometry, numerics.formats)?;
        let mut values = Vec::new();
        walk(&mut suite, graph, numerics, WalkRows::Inputs(geometry.rows), |_, value| values.push(value.clone()))?;
        Ok(values)
    }

    /// Runs inputs between three parties.
    ///
    /// # Panics
    /// Where a party fails, or the doubled copies of a value differ.
    pub fn private(&self, world: &World, request: &Request) -> PrivateRun {
        self.private_on(world, request, &self.input_shares(request))
    }

    /// The same on input shares that are there already.
    ///
    /// # Panics
    /// As [`Encoder::private`].
    pub fn private_on(&self, world: &World, request: &Request, inputs: &[InputShare; 3]) -> PrivateRun {
        let run = world.run(|s| {
            let share = self.share(s.party());
            match parse(s.party(), share.manifest(), &self.interface, &inputs[s.party().index()])? {
                Parsed::Narrow(input) => traced(s, share, input, request.geometry()),
                Parsed::Wide(input) => traced(s, share, input, request.geometry()),
            }
        });
        let [first, second, third] = &run.outputs;
        let value = |((a, b), c): ((&Masked<u64>, &Masked<u64>), &Masked<u64>)| {
            let (rows, cols) = (a.planes()[0].rows(), a.planes()[0].width());
            Value::new(rows, cols, a.ring(), reveal(&[a.clone(), b.clone(), c.clone()]))
        };
        let values = first.iter().zip(second).zip(third).map(value).collect();
        PrivateRun { values, cost: run.cost, received: run.received, outputs: Default::default() }
    }

    /// Runs requests of equal rows in one session, as nodes do; values stay within the parties, outputs come back.
    ///
    /// # Panics
    /// Where a party fails.
    pub fn execute(&self, world: &World, requests: &[Request]) -> PrivateRun {
        self.execute_on(world, &requests.iter().map(|r| self.input_shares(r)).collect::<Vec<_>>())
    }

    /// The same on input shares that are there already.
    ///
    /// # Panics
    /// As [`Encoder::execute`].
    pub fn execute_on(&self, world: &World, inputs: &[[InputShare; 3]]) -> PrivateRun {
        let run = world.run(|s| {
            let (me, share) = (s.party(), self.share(s.party()));
            let parsed = inputs.iter().map(|i| parse(me, share.manifest(), &self.interface, &i[me.index()]));
            execute(s, share.manifest(), share, parsed.collect::<Result<_>>()?)
        });
        PrivateRun { values: Vec::new(), cost: run.cost, received: run.received, outputs: run.outputs }
    }

    /// Opens what [`Encoder::execute`] gave for one request, as its client does: the rows of the output, as integers.
    ///
    /// # Panics
    /// Where the doubled copies differ, or there is no answer.
    pub fn open(&self, run: &PrivateRun, request: usize) -> Vec<i64> {
        let Interface { output_ring: ring, output_width: width, .. } = self.interface;
        let [helper, first, second] = run.outputs.each_ref().map(|outputs| {
            let output = outputs[request].as_ref();
            &output.expect("an answer from every party").planes
        });
        assert!(first[0] == second[0] && helper[0] == first[1] && helper[1] == second[1], "doubled copies differ");
        let len = first[0].len() * 8 / ring as usize / width * width;
        let plane = |bytes: &[u8]| {
            let mut out = vec![0u64; len];
            pack::unpack(bytes, ring, &mut out).expect("as many elements as were packed");
            out
        };
        let joined = sharing::join(&plane(&first[0]), &plane(&helper[0]), &plane(&helper[1]), ring);
        joined.iter().map(|v| v.signed(ring)).collect()
    }

    /// The float oracle (double precision) on the same inputs.
    ///
    /// # Panics
    /// Where the model does not take an input.
    pub fn exact(&self, request: &Request) -> Trace {
        let run = |input: &OracleInput| self.oracle.run(input).expect("an input of this model");
        let traces: Vec<_> = request.inputs.iter().map(run).collect();
        let of_node =
            |node: usize| traces.iter().map(|t| t.values[node].data.iter().map(|&v| f64::from(v)).collect()).collect();
        (0..self.model.graph.nodes.len()).map(of_node).collect()
    }

    /// Values in integers as real numbers, without their padding.
    pub fn decode(&self, request: &Request, values: &[Value]) -> Trace {
        let batch = request.geometry().batch;
        let one_node = |(node, value): (usize, &Value)| {
            let unit = f64::from(self.frac(node + 1)).exp2();
            let each = value.rows() / batch;
            let is_sum = matches!(self.model.graph.nodes[node].op, Op::MeanRows);
            let one_input = |(at, input): (usize, &OracleInput)| {
                let real = input_rows(input, &self.model.graph);
                let (kept, _) = self.model.graph.shape(node + 1, real);
                let divisor = if is_sum { real as f64 } else { 1.0 };
                let from = at * each * value.cols();
                let part = &value.data()[from..from + kept * value.cols()];
                part.iter().map(|&v| v as f64 / unit / divisor).collect()
            };
            request.inputs.iter().enumerate().map(one_input).collect()
        };
        values.iter().enumerate().map(one_node).collect()
    }

    /// Fractional bits of a value of the graph.
    pub fn frac(&self, value: usize) -> u32 {
        let numerics = &self.manifest().numerics;
        let Some(at) = value.checked_sub(1) else { return numerics.formats.frac };
        let node = &self.model.graph.nodes[at];
        match (&node.op, &numerics.nodes[at]) {
            (_, tercet_engine::NodeSpec::Lookup(spec)) => spec.frac,
            (Op::AddRows { .. } | Op::PrependRow { .. } | Op::Add | Op::FirstRow | Op::MeanRows, _) => {
                self.frac(node.inputs[0])
            }
            _ => numerics.formats.frac,
        }
    }

    /// What the client of a request sends to each party.
    pub fn input_shares(&self, request: &Request) -> [InputShare; 3] {
        self.input_shares_with(request, &Lookup::new)
    }

    /// The same of a client whose keys and signs of a token are what `make` says, given the bits of
    /// the domain and the token.
    pub fn input_shares_with(&self, request: &Request, make: &dyn Fn(u32, usize) -> Lookup) -> [InputShare; 3] {
        match self.interface.wide {
            32 => self.share_input::<u32>(request, make),
            _ => self.share_input::<u64>(request, make),
        }
    }

    fn plain_input(&self, request: &Request) -> PlainInput {
        let (counts, padded) = (self.counts(request), self.padded_rows(request));
        let rows = match &padded {
            Rows::Ids(ids) => PlainRows::Lookup(ids.clone()),
            Rows::Matrix(values) => PlainRows::Matrix(self.encode_rows(values)),
        };
        let bias = |&counts: &bool| if counts { 0 } else { self.interface.padding_bias };
        PlainInput {
            rows,
            key_bias: counts.iter().map(bias).collect(),
            row_weight: counts.iter().map(|&c| i64::from(c)).collect(),
        }
    }

    fn share_input<E: Element>(&self, request: &Request, make: &dyn Fn(u32, usize) -> Lookup) -> [InputShare; 3] {
        let PlainInput { rows, key_bias, row_weight } = self.plain_input(request);
        let (first, second) = (Seed::random(), Seed::random());
        let wide = self.interface.wide;
        let mut streams = vec![
            masked::<u32>(&key_bias, [&first, &second], Stream::KeyBias, self.interface.score_ring),
            masked::<E>(&row_weight, [&first, &second], Stream::RowWeight, wide),
        ];
        let (rows, keys) = self.share_rows::<E>(rows, [&first, &second], make);
        streams.push(rows);
        let Geometry { batch, rows } = request.geometry();
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

    /// What is masked of the rows of an input, packed, and each party's lookup keys.
    pub(crate) fn share_rows<E: Element>(
        &self,
        rows: PlainRows,
        seeds: [&Seed; 2],
        make: &dyn Fn(u32, usize) -> Lookup,
    ) -> (Vec<u8>, [[Vec<u8>; 2]; 3]) {
        let mut keys: [[Vec<u8>; 2]; 3] = Default::default();
        let (rows, ring) = match (rows, &self.interface.rows) {
            (PlainRows::Lookup(ids), RowInput::Lookup { domain_bits, .. }) => {
                let lookups: Vec<Lookup> = ids.into_iter().map(|id| make(*domain_bits, id)).collect();
                for of in &lookups {
                    for (keys, key) in keys.iter_mut().flatten().zip(of.keys.iter().flatten()) {
                        keys.extend(key.iter().flat_map(dpf::Key::to_bytes));
                    }
                }
                (lookups.iter().flat_map(|of| of.signs).collect(), SIGN_RING)
            }
            (PlainRows::Matrix(values), RowInput::Matrix { .. }) => (values, self.interface.wide),
            _ => unreachable!("ids are looked up where the table is secret"),
        };
        (masked::<E>(&rows, seeds, Stream::Rows, ring), keys)
    }

    /// The rows of tokens: ids, or encoded rows of the public table.
    pub(crate) fn token_rows(&self, ids: &[u32]) -> PlainRows {
        match (&self.interface.rows, self.manifest().public_table()) {
            (RowInput::Matrix { width, .. }, Some(table)) => {
                let table = self.model.tensor(&table.name).expect("the table of this model");
                let row = |&id: &u32| table[id as usize * width..][..*width].iter().map(|&v| f64::from(v));
                PlainRows::Matrix(self.encode_rows(&ids.iter().flat_map(row).collect::<Vec<_>>()))
            }
            _ => PlainRows::Lookup(ids.iter().map(|&id| id as usize).collect()),
        }
    }

    /// Whether each row counts.
    fn counts(&self, request: &Request) -> Vec<bool> {
        let real = |input: &OracleInput| input_rows(input, &self.model.graph);
        request.inputs.iter().flat_map(|i| (0..request.rows).map(move |r| (i, r))).map(|(i, r)| r < real(i)).collect()
    }

    /// The rows of all inputs, padded: ids with id 0, matrices with zeros.
    fn padded_rows(&self, request: &Request) -> Rows {
        let total = request.inputs.len() * request.rows;
        let public = match (&self.interface.rows, self.manifest().public_table()) {
            (RowInput::Matrix { width, .. }, Some(table)) => {
                Some((*width, self.model.tensor(&table.name).expect("the table of this model")))
            }
            _ => None,
        };
        let (mut ids, mut matrix) = (Vec::with_capacity(total), Vec::new());
        for input in &request.inputs {
            match input {
                OracleInput::Tokens(tokens) => {
                    ids.extend(tokens.iter().map(|&id| id as usize));
                    ids.resize(ids.len() + request.rows - tokens.len(), 0);
                }
                OracleInput::Patches(patches) => matrix.extend(patches.iter().map(|&v| f64::from(v))),
            }
        }
        match public {
            Some((width, table)) => {
                let row = |&id: &usize| table[id * width..(id + 1) * width].iter().map(|&v| f64::from(v));
                Rows::Matrix(ids.iter().flat_map(row).collect())
            }
            None if ids.is_empty() => Rows::Matrix(matrix),
            None => Rows::Ids(ids),
        }
    }

    fn encode_rows(&self, values: &[f64]) -> Vec<i64> {
        let RowInput::Matrix { frac, .. } = self.interface.rows else { unreachable!("rows are shared as a matrix") };
        let lanes: Vec<u64> =
            fixed::encode("the input", values, frac, self.interface.wide).expect("an input that fits");
        lanes.iter().map(|v| v.signed(self.interface.wide)).collect()
    }
}

/// The rows of an input, padded.
enum Rows {
    Ids(Vec<usize>),
    Matrix(Vec<f64>),
}

/// The masked values of a stream, packed.
fn masked<E: Element>(values: &[i64], [first, second]: [&Seed; 2], stream: Stream, ring: u32) -> Vec<u8> {
    let values: Vec<E> = values.iter().map(|&v| E::from_i64(v)).collect();
    let mut packed = Vec::new();
    pack::pack(&sharing::split(&values, first, second, stream as u64), ring, &mut packed);
    packed
}

/// One party's walk, with every value on the way.
fn traced<E: Element>(
    s: &mut Session,
    share: &ModelShare,
    input: Input<E>,
    geometry: Geometry,
) -> Result<Vec<Masked<u64>>> {
    let Manifest { graph, numerics, .. } = share.manifest();
    let mut suite = HelperSuite::new(s, share, input, geometry, numerics.formats);
    let mut values = Vec::new();
    let rows = WalkRows::Inputs(geometry.rows);
    walk(&mut suite, graph, numerics, rows, |_, value| values.push(value.low::<u64>(value.ring())))?;
    Ok(values)
}
