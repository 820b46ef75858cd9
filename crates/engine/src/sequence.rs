//! One party's side of a step of a decoder, and what it keeps of a sequence between steps.

use tercet_core::{Error, Result, Session, Suite};
use tercet_helper::cache::Cache;
use tercet_helper::noise::Noise;
use tercet_helper::suite::{HelperSuite, InputRows, Weights};
use tercet_helper::{Masked, open};
use tercet_model::graph::Output;
use tercet_net::{OutputShare, PartyId};
use tercet_ring::Element;

use crate::Rows;
use crate::manifest::Manifest;
use crate::request::{Lanes, Parsed, answered, join_rows};
use crate::step::{Choice, StepShape};
use crate::walk::walk;

/// What a party keeps of a sequence: keys and values on shares, and the token that was chosen last, if it was chosen inside.
pub struct Sequence {
    cache: Cache,
    place: Option<Place>,
}

/// A chosen token on shares, in the lanes of the model's wide ring.
pub enum Place {
    /// 32-bit lanes.
    Narrow(Masked<u32>),
    /// 64-bit lanes.
    Wide(Masked<u64>),
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sequence[{}]", self.len())
    }
}

impl Sequence {
    /// An empty sequence of a decoder.
    ///
    /// # Errors
    /// The model is none.
    pub fn new(manifest: &Manifest, party: PartyId) -> Result<Sequence> {
        match manifest.graph.output {
            Output::NextToken { .. } => {
                Ok(Sequence { cache: Cache::new(party, manifest.graph.attentions()), place: None })
            }
            _ => Err(Error::Misuse(format!("{} gives no next token", manifest.name))),
        }
    }

    /// Positions that it holds.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }
}

/// What a sequence reads in a step.
// One lives as long as it waits for its step.
#[allow(clippy::large_enum_variant)]
pub enum StepInput {
    /// Rows that its client sent.
    Rows(Parsed),
    /// The token that its last step chose.
    Chosen,
}

/// A sequence in a step.
pub struct Member {
    /// It.
    pub sequence: Sequence,
    /// What it reads.
    pub input: StepInput,
    /// What its choice is made with, if with noise.
    pub noise: Option<Noise>,
}

/// Runs a step, and gives each sequence back, in order, with its share of what its client gets.
/// Where a step fails, so do all its sequences. An evaluator gives nothing of a sequence whose
/// client sent parts that contradict each other; it has ended, without touching the others. The
/// helper does not learn of it.
///
/// # Errors
/// A session's; or members that are not as the shape says.
pub fn execute_step<W: Weights>(
    session: &mut Session,
    manifest: &Manifest,
    weights: &W,
    members: Vec<Member>,
    shape: &StepShape,
) -> Result<Vec<Option<(Sequence, OutputShare)>>> {
    manifest.check_step(shape)?;
    let noisy = members.iter().any(|member| member.noise.is_some());
    if members.len() != shape.layout.sequences.len() || noisy != shape.noisy {
        return Err(Error::Misuse("other members than the step's shape says".into()));
    }
    if manifest.numerics.formats.wide == 32 {
        execute_in::<u32, W>(session, manifest, weights, members, shape)
    } else {
        execute_in::<u64, W>(session, manifest, weights, members, shape)
    }
}

fn execute_in<E: Lanes, W: Weights>(
    session: &mut Session,
    manifest: &Manifest,
    weights: &W,
    members: Vec<Member>,
    shape: &StepShape,
) -> Result<Vec<Option<(Sequence, OutputShare)>>> {
    let (mut sequences, mut inputs, mut noise) = (Vec::new(), Vec::new(), Vec::new());
    for Member { mut sequence, input, noise: of } in members {
        inputs.push(match (input, sequence.place.take()) {
            (StepInput::Rows(parsed), _) if !shape.reentry => E::rows(parsed)?,
            (StepInput::Chosen, Some(place)) if shape.reentry => InputRows::Places(E::place(place)?),
            _ => return Err(Error::Misuse("a row that is not what the step's shape says".into())),
        });
        sequences.push(sequence);
        noise.push(of);
    }
    let rows = join_rows(inputs).ok_or_else(|| Error::Misuse("a step of nothing".into()))?;
    let numerics = &manifest.numerics;
    let (output, refused) = {
        let caches = sequences.iter_mut().map(|sequence| &mut sequence.cache).collect();
        let suite = HelperSuite::step(session, weights, rows, &shape.layout, caches, numerics.formats)?;
        let mut suite = if shape.noisy { suite.with_noise(noise) } else { suite };
        let scores = walk(&mut suite, &manifest.graph, numerics, Rows::Step, |_, _| ())?;
        let output = match shape.choice {
            Choice::Scores => scores,
            Choice::Token => {
                suite.set_label("head/choice");
                let (_, vocab) = suite.shape(&scores);
                suite.choose(&scores, &numerics.choice(vocab, scores.ring()))?
            }
        };
        (output, suite.refused().to_vec())
    };
    session.finish()?;
    let width = output.planes()[0].width();
    let mut at = 0;
    Ok(sequences
        .into_iter()
        .zip(&shape.layout.sequences)
        .zip(answered(&refused))
        .map(|((sequence, extent), answered)| {
            let rows = if shape.layout.every_row { extent.rows } else { 1 };
            let range = at * width..(at + rows) * width;
            let place = (shape.choice == Choice::Token).then(|| E::chosen(part(&output, at)));
            at += rows;
            answered.then(|| (Sequence { place, ..sequence }, open::to_client(&output, range)))
        })
        .collect())
}

/// One row of a column.
fn part<E: Element>(column: &Masked<E>, row: usize) -> Masked<E> {
    column.each(column.ring(), |plane| tercet_ring::Tensor::new([1, 1], vec![plane.data()[row]]))
}
