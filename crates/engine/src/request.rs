//! A client's input, parsed once at the door, and its output.

use tercet_core::{Error, Geometry, Result, Session};
use tercet_helper::lookup::{Keys, PAIRS, SIGN_RING};
use tercet_helper::suite::{HelperSuite, Input, InputRows, Weights};
use tercet_helper::{Masked, open};
use tercet_model::{Interface, RowInput};
use tercet_net::{InputShare, OutputShare, PartyId, Stream};
use tercet_ring::{Element, Seed, Tensor, dpf, pack, sharing};

use crate::manifest::Manifest;
use crate::sequence::Place;
use crate::walk::{Rows, walk};

/// One party's parsed input of one request, in the lanes of the model's wide ring.
pub enum Parsed {
    /// 32-bit lanes.
    Narrow(Input<u32>),
    /// 64-bit lanes.
    Wide(Input<u64>),
}

/// Whether what a client sent to `party` fits the model: every part that is due and no other, each
/// of its length. Nothing of it is expanded. What passes here parses.
///
/// # Errors The part that does not fit, for that client alone.
pub fn check(party: PartyId, manifest: &Manifest, interface: &Interface, share: &InputShare) -> Result<()> {
    whole(party, manifest, interface, share).map(drop)
}

/// The reader of whole inputs, checked.
fn whole<'a>(
    party: PartyId,
    manifest: &Manifest,
    interface: &'a Interface,
    share: &'a InputShare,
) -> Result<Reader<'a>> {
    let geometry = Geometry { batch: share.batch as usize, rows: share.rows as usize };
    manifest.check_geometry(geometry)?;
    let reader = Reader { party, interface, share, geometry };
    reader.check(&[Stream::KeyBias, Stream::RowWeight, Stream::Rows]).map(|()| reader)
}

/// As [`check`], for the next rows of a sequence.
///
/// # Errors
/// The part that does not fit, for that client alone.
pub fn check_rows(party: PartyId, manifest: &Manifest, interface: &Interface, share: &InputShare) -> Result<()> {
    sequence(party, manifest, interface, share).map(drop)
}

/// The reader of one sequence, as long as the model takes, checked.
fn sequence<'a>(
    party: PartyId,
    manifest: &Manifest,
    interface: &'a Interface,
    share: &'a InputShare,
) -> Result<Reader<'a>> {
    let geometry = Geometry { batch: share.batch as usize, rows: share.rows as usize };
    let context = manifest.graph.max_rows();
    if geometry.batch != 1 || geometry.rows == 0 || geometry.rows > context {
        let Geometry { batch, rows } = geometry;
        return Err(bad(format!("{batch} sequences of {rows} tokens; one of 1 to {context} is due")));
    }
    let reader = Reader { party, interface, share, geometry };
    reader.check(&[Stream::Rows]).map(|()| reader)
}

/// Parses what a client sent to `party`. Everything that does not fit the model is an error for
/// that client alone.
pub fn parse(party: PartyId, manifest: &Manifest, interface: &Interface, share: &InputShare) -> Result<Parsed> {
    let reader = whole(party, manifest, interface, share)?;
    if interface.wide == 32 { reader.read().map(Parsed::Narrow) } else { reader.read().map(Parsed::Wide) }
}

/// Parses the next rows of a sequence that a client sent to `party`: rows alone, since there is no
/// padding among them.
pub fn parse_rows(party: PartyId, manifest: &Manifest, interface: &Interface, share: &InputShare) -> Result<Parsed> {
    let reader = sequence(party, manifest, interface, share)?;
    if interface.wide == 32 { reader.sequence().map(Parsed::Narrow) } else { reader.sequence().map(Parsed::Wide) }
}

/// Reads what was sent for a geometry that the model takes.
struct Reader<'a> {
    party: PartyId,
    interface: &'a Interface,
    share: &'a InputShare,
    geometry: Geometry,
}

impl Reader<'_> {
    /// Everything about an input of these tensors but its values.
    fn check(&self, streams: &[Stream]) -> Result<()> {
        let InputShare { first_seed, second_seed, masked, keys, .. } = self.share;
        for (seed, which, absent) in [(first_seed, "first", PartyId::P2), (second_seed, "second", PartyId::P1)] {
            match (seed, self.party == absent) {
                (None, false) => return Err(bad(format!("no {which} seed"))),
                (Some(_), true) => return Err(bad(format!("the {which} seed, which is not for {absent}"))),
                _ => {}
            }
        }
        let expected = if self.party == PartyId::P0 { 0 } else { streams.len() };
        if masked.len() != expected {
            return Err(bad(format!("{} masked tensors where {expected} are due", masked.len())));
        }
        for (&stream, masked) in streams.iter().zip(masked) {
            let (len, ring) = self.extent(stream);
            let expected = pack::packed_len(len, ring);
            if masked.len() != expected {
                return Err(bad(format!("{stream:?}: {} bytes where {expected} are due", masked.len())));
            }
        }
        match self.interface.rows {
            RowInput::Matrix { .. } if keys.iter().all(Vec::is_empty) => Ok(()),
            RowInput::Matrix { .. } => Err(bad("lookup keys, but the rows of this model are shared".into())),
            RowInput::Lookup { domain_bits, .. } => {
                let sides = [Keys::<u32>::value_side(self.party), Some(Keys::<u32>::mask_side(self.party))];
                keys.iter().zip(sides).try_for_each(|(bytes, side)| self.each_key(bytes, domain_bits, side, drop))
            }
        }
    }

    /// Elements of a tensor of the input, and its ring.
    fn extent(&self, stream: Stream) -> (usize, u32) {
        let rows = self.geometry.batch * self.geometry.rows;
        match (stream, &self.interface.rows) {
            (Stream::KeyBias, _) => (rows, self.interface.score_ring),
            (Stream::RowWeight, _) => (rows, self.interface.wide),
            (Stream::Rows, RowInput::Matrix { width, .. }) => (rows * width, self.interface.wide),
            (Stream::Rows, RowInput::Lookup { .. }) => (rows * PAIRS, SIGN_RING),
        }
    }

    /// Every key in `bytes`, of which there is one a row, or none where this party holds none.
    fn each_key(
        &self,
        bytes: &[u8],
        domain_bits: u32,
        side: Option<dpf::Side>,
        mut take: impl FnMut(dpf::Key),
    ) -> Result<()> {
        let len = dpf::key_len(domain_bits);
        let expected = side.map_or(0, |_| self.geometry.batch * self.geometry.rows * len);
        if bytes.len() != expected {
            return Err(bad(format!("{} bytes of lookup keys where {expected} are due", bytes.len())));
        }
        let Some(side) = side else { return Ok(()) };
        bytes.chunks(len).try_for_each(|bytes| {
            take(dpf::Key::from_bytes(bytes, domain_bits, side).map_err(|error| bad(error.to_string()))?);
            Ok(())
        })
    }

    fn read<E: Element>(&self) -> Result<Input<E>> {
        let Geometry { batch, rows } = self.geometry;
        let key_bias = self.masked::<u32>(Stream::KeyBias, &[batch, rows], self.interface.score_ring)?;
        let row_weight = self.masked::<E>(Stream::RowWeight, &[batch, rows], self.interface.wide)?;
        Ok(Input { rows: self.input_rows(Stream::Rows as usize)?, key_bias, row_weight })
    }

    /// The rows of a sequence, which nothing is said of beside what they are.
    fn sequence<E: Element>(&self) -> Result<Input<E>> {
        let nothing = |ring| Masked::public(self.party, ring, Tensor::zeros([0, 0]));
        let (key_bias, ring) = (Masked::public(self.party, 1, Tensor::zeros([0, 0])), self.interface.wide);
        Ok(Input { rows: self.input_rows(0)?, key_bias, row_weight: nothing(ring) })
    }

    /// The rows, whose masked values are the `at`th that came.
    fn input_rows<E: Element>(&self, at: usize) -> Result<InputRows<E>> {
        let Geometry { batch, rows } = self.geometry;
        Ok(match self.interface.rows {
            RowInput::Matrix { width, .. } => {
                InputRows::Matrix(self.masked_at::<E>(at, Stream::Rows, &[batch * rows, width], self.interface.wide)?)
            }
            RowInput::Lookup { domain_bits, .. } => InputRows::Lookup(self.keys::<E>(at, domain_bits)?),
        })
    }

    fn masked<E: Element>(&self, stream: Stream, shape: &[usize], ring: u32) -> Result<Masked<E>> {
        self.masked_at(stream as usize, stream, shape, ring)
    }

    /// A tensor whose masked values are the `at`th that came.
    fn masked_at<E: Element>(&self, at: usize, stream: Stream, shape: &[usize], ring: u32) -> Result<Masked<E>> {
        let len = shape.iter().product();
        let number = stream as usize;
        let mask = |seed: &Option<[u8; 32]>, which: &str| {
            let seed = seed.ok_or_else(|| bad(format!("no {which} seed")))?;
            Ok(sharing::mask::<E>(&Seed::from_bytes(seed), number as u64, len))
        };
        let mut m = vec![E::ZERO; len];
        if self.party != PartyId::P0 {
            let packed = &self.share.masked[at];
            pack::unpack(packed, ring, &mut m).map_err(|e| bad(format!("{stream:?}: {e}")))?;
        }
        let planes = match self.party {
            PartyId::P0 => [mask(&self.share.first_seed, "first")?, mask(&self.share.second_seed, "second")?],
            PartyId::P1 => [m, mask(&self.share.first_seed, "first")?],
            PartyId::P2 => [m, mask(&self.share.second_seed, "second")?],
        };
        Ok(Masked::new(self.party, ring, planes.map(|plane| Tensor::new(shape, plane))))
    }

    fn keys<E: Element>(&self, at: usize, domain_bits: u32) -> Result<Keys<E>> {
        let count = self.geometry.batch * self.geometry.rows;
        let keys = |bytes: &[u8], side: Option<dpf::Side>| {
            let mut keys = Vec::with_capacity(count);
            self.each_key(bytes, domain_bits, side, |key| keys.push(key)).map(|()| keys)
        };
        let [value, mask] = &self.share.keys;
        Ok(Keys {
            value: keys(value, Keys::<E>::value_side(self.party))?,
            mask: keys(mask, Some(Keys::<E>::mask_side(self.party)))?,
            signs: self.masked_at::<E>(at, Stream::Rows, &[count, PAIRS], SIGN_RING)?,
            requests: vec![count],
        })
    }
}

fn bad(what: String) -> Error {
    Error::Misuse(format!("input share: {what}"))
}

/// Runs requests of equal rows side by side and returns one output share for each, in order; none
/// at an evaluator for a request whose parts contradict each other, which did not touch the others.
/// The helper does not learn of it.
pub fn execute<W: Weights>(
    session: &mut Session,
    manifest: &Manifest,
    weights: &W,
    requests: Vec<Parsed>,
) -> Result<Vec<Option<OutputShare>>> {
    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    for request in requests {
        match request {
            Parsed::Narrow(input) => narrow.push(input),
            Parsed::Wide(input) => wide.push(input),
        }
    }
    if manifest.numerics.formats.wide == 32 {
        execute_in(session, manifest, weights, narrow)
    } else {
        execute_in(session, manifest, weights, wide)
    }
}

fn execute_in<E: Element, W: Weights>(
    session: &mut Session,
    manifest: &Manifest,
    weights: &W,
    inputs: Vec<Input<E>>,
) -> Result<Vec<Option<OutputShare>>> {
    let shapes: Vec<(usize, usize)> = inputs.iter().map(|i| (i.key_bias.shape()[0], i.key_bias.shape()[1])).collect();
    let rows = shapes.first().map_or(0, |s| s.1);
    if shapes.iter().any(|s| s.1 != rows) {
        return Err(Error::Misuse("a batch of inputs of different lengths".into()));
    }
    let geometry = Geometry { batch: shapes.iter().map(|s| s.0).sum(), rows };
    manifest.check_geometry(geometry)?;
    let input = join(inputs).ok_or_else(|| Error::Misuse("a batch of nothing".into()))?;
    let (output, refused) = {
        let mut suite = HelperSuite::new(session, weights, input, geometry, manifest.numerics.formats);
        let rows = Rows::Inputs(geometry.rows);
        let output = walk(&mut suite, &manifest.graph, &manifest.numerics, rows, |_, _| ())?;
        (output, suite.refused().to_vec())
    };
    session.finish()?;
    let width = output.planes()[0].width();
    let mut at = 0;
    Ok(shapes
        .iter()
        .zip(answered(&refused))
        .map(|(&(batch, _), answered)| {
            let (from, to) = (at * width, (at + batch) * width);
            at += batch;
            answered.then(|| open::to_client(&output, from..to))
        })
        .collect())
}

/// Whether each request has an answer, given which are refused, if that was asked.
pub(crate) fn answered(refused: &[bool]) -> impl Iterator<Item = bool> + '_ {
    refused.iter().map(|refused| !refused).chain(std::iter::repeat(true))
}

/// Inputs of one length as one.
fn join<E: Element>(mut inputs: Vec<Input<E>>) -> Option<Input<E>> {
    if inputs.len() < 2 {
        return inputs.pop();
    }
    let rows = inputs[0].key_bias.shape()[1];
    let biases: Vec<Masked<u32>> = inputs.iter().map(|i| i.key_bias.clone()).collect();
    let key_bias = Masked::flatten(&biases);
    let batch = key_bias.len() / rows.max(1);
    let weights: Vec<Masked<E>> = inputs.iter().map(|i| i.row_weight.clone()).collect();
    let row_weight = stack(&weights, rows);
    let rows_of = join_rows(inputs.into_iter().map(|input| input.rows).collect())?;
    Some(Input { rows: rows_of, key_bias: key_bias.reshape([batch, rows]), row_weight })
}

/// Rows of several requests, one after the other; none where there is none, or where they are not of one kind.
pub(crate) fn join_rows<E: Element>(mut inputs: Vec<InputRows<E>>) -> Option<InputRows<E>> {
    if inputs.len() < 2 {
        return inputs.pop();
    }
    let count = inputs.len();
    let (mut value, mut mask, mut signs, mut requests) = (vec![], vec![], vec![], vec![]);
    let (mut matrices, mut places) = (vec![], vec![]);
    for rows in inputs {
        match rows {
            InputRows::Lookup(keys) => {
                value.extend(keys.value);
                mask.extend(keys.mask);
                signs.push(keys.signs);
                requests.extend(keys.requests);
            }
            InputRows::Places(place) => places.push(place),
            InputRows::Matrix(matrix) => matrices.push(matrix),
        }
    }
    if signs.len() == count {
        return Some(InputRows::Lookup(Keys { value, mask, signs: stack(&signs, PAIRS), requests }));
    }
    if places.len() == count {
        return Some(InputRows::Places(stack(&places, 1)));
    }
    let width = matrices.first().filter(|_| matrices.len() == count)?.shape()[1];
    Some(InputRows::Matrix(stack(&matrices, width)))
}

fn stack<E: Element>(parts: &[Masked<E>], width: usize) -> Masked<E> {
    let all = Masked::flatten(parts);
    let rows = all.len() / width.max(1);
    all.reshape([rows, width])
}

/// The lanes of a model's wide ring.
pub(crate) trait Lanes: Element {
    /// The rows of an input in these lanes.
    fn rows(parsed: Parsed) -> Result<InputRows<Self>>;
    /// A chosen token in these lanes.
    fn place(place: Place) -> Result<Masked<Self>>;
    /// A token that was chosen in these lanes.
    fn chosen(place: Masked<Self>) -> Place;
}

macro_rules! lanes {
    ($lane:ty, $variant:ident) => {
        impl Lanes for $lane {
            fn rows(parsed: Parsed) -> Result<InputRows<Self>> {
                match parsed {
                    Parsed::$variant(input) => Ok(input.rows),
                    _ => Err(bad("lanes of another model".into())),
                }
            }
            fn place(place: Place) -> Result<Masked<Self>> {
                match place {
                    Place::$variant(place) => Ok(place),
                    _ => Err(bad("lanes of another model".into())),
                }
            }
            fn chosen(place: Masked<Self>) -> Place {
                Place::$variant(place)
            }
        }
    };
}
lanes!(u32, Narrow);
lanes!(u64, Wide);
