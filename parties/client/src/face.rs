//! What the nodes say of a model, checked: they must say the same, and it must be something to work with.

use std::fmt;

use tercet_model::graph::{Input, Output};
use tercet_model::{Interface, RowInput, Tokenizer};
use tercet_net::{NodeMessage, PartyId, codec};
use tercet_ring::Element;

use crate::Error;

/// Columns, rows and labels beyond this are no model's.
const LARGEST_SIDE: usize = 1 << 24;

/// Elements of a public table beyond this are no model's: eight times those of the largest that are
/// known.
const LARGEST_TABLE: usize = 1 << 33;

/// The public face of a model on the nodes.
pub struct ModelFace {
    name: String,
    digest: [u8; 32],
    /// By node, the number of its start: it takes no request that names another.
    start_ids: [[u8; 16]; 3],
    interface: Interface,
    tokenizer: Option<Tokenizer>,
}

impl ModelFace {
    /// Takes what the three nodes answered. They must agree to the byte.
    pub(crate) fn from_answers(name: &str, answers: [NodeMessage; 3]) -> Result<Self, Error> {
        let mut parts = Vec::new();
        let mut start_ids = [[0; 16]; 3];
        for (party, answer) in PartyId::ALL.into_iter().zip(answers) {
            let NodeMessage::Manifest { digest, start_id, interface, tokenizer } = answer else {
                return Err(Error::unexpected(party, "another answer than a manifest"));
            };
            start_ids[party.index()] = start_id;
            parts.push((digest, interface, tokenizer));
        }
        for other in 1..3 {
            if parts[0] != parts[other] {
                let what = if parts[0].0 == parts[other].0 { "the interface" } else { "the digest" };
                return Err(Error::Disagreement {
                    parties: [PartyId::P0, PartyId::ALL[other]],
                    what: format!("{what} of model {name}"),
                });
            }
        }
        let (digest, interface, tokenizer) = parts.swap_remove(0);
        let decoded = codec::decode(&interface, codec::LARGEST_BYTES);
        let interface = decoded.map_err(|error| Error::Unusable { model: name.into(), what: error.to_string() })?;
        Ok(Self::new(name, digest, interface, tokenizer)?.at_starts(start_ids))
    }

    /// A model from its public parts, without nodes: for tools that run all three parties themselves, and for tests.
    ///
    /// # Errors
    /// The parts do not belong together.
    pub fn new(name: &str, digest: [u8; 32], interface: Interface, tokenizer: Option<Vec<u8>>) -> Result<Self, Error> {
        let unusable = |what: String| Error::Unusable { model: name.into(), what };
        let tokenizer = tokenizer.map(Tokenizer::from_bytes).transpose();
        let tokenizer = tokenizer.map_err(|error| unusable(error.to_string()))?;
        let face = Self { name: name.into(), digest, start_ids: [[0; 16]; 3], interface, tokenizer };
        face.check().map_err(|what| unusable(what.into()))?;
        Ok(face)
    }

    /// The same on nodes whose starts have these numbers, in the order of parties.
    pub fn at_starts(self, start_ids: [[u8; 16]; 3]) -> Self {
        Self { start_ids, ..self }
    }

    /// The number of a node's start, which every request to it names.
    pub fn start_id(&self, party: PartyId) -> [u8; 16] {
        self.start_ids[party.index()]
    }

    /// Whether nothing has changed since: the model is the same, and no node has started anew.
    pub(crate) fn is_current(&self, fresh: &ModelFace) -> bool {
        (self.digest, self.start_ids) == (fresh.digest, fresh.start_ids)
    }

    /// The name that clients ask for it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Digest of everything public about it.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Inputs, output, rings.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// The labels of a classifier; empty for a model of embeddings.
    pub fn labels(&self) -> &[String] {
        match &self.interface.output {
            Output::Logits { labels } => labels,
            Output::Embedding { .. } | Output::NextToken { .. } => &[],
        }
    }

    /// The tokenizer of a model of texts.
    pub(crate) fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Everything that the rest of this crate relies on.
    fn check(&self) -> Result<(), &'static str> {
        let Interface { wide, max_rows, score_ring, output_ring, output_width, .. } = self.interface;
        let side = |n: usize| (1..=LARGEST_SIDE).contains(&n);
        if !matches!(wide, 32 | 64) || !(1..=32).contains(&score_ring) || !(1..=64).contains(&output_ring) {
            return Err("a ring that does not exist");
        }
        if self.interface.output_frac > 63 || !side(max_rows) || !side(output_width) {
            return Err("a size that does not exist");
        }
        let shown = match &self.interface.output {
            Output::Logits { labels } => labels.len(),
            Output::Embedding { width, .. } => *width,
            Output::NextToken { vocab } => *vocab,
        };
        if shown != output_width {
            return Err("the output has another width than its description");
        }
        match (&self.interface.decoder, &self.interface.output) {
            (Some(decoder), Output::NextToken { vocab }) => {
                let counted = (1..=32).contains(&decoder.index_bits) && *vocab <= 1 << decoder.index_bits;
                if !counted || !(1..=max_rows).contains(&decoder.context) || decoder.generation.check(*vocab).is_err() {
                    return Err("tokens that are not counted right");
                }
            }
            (None, Output::Embedding { .. } | Output::Logits { .. }) => {}
            _ => return Err("half of what a model of tokens has"),
        }
        let rows_fit = match self.interface.rows {
            RowInput::Lookup { entries, domain_bits } => {
                side(entries) && domain_bits <= 40 && entries <= 1 << domain_bits
            }
            RowInput::Matrix { width, frac } => side(width) && side(width.saturating_mul(max_rows)) && frac <= 63,
        };
        if !rows_fit {
            return Err("rows of a size that does not exist");
        }
        match (&self.interface.input, &self.interface.rows, &self.tokenizer) {
            (Input::Tokens { vocab, .. }, rows, Some(tokenizer)) => {
                let entries = if let RowInput::Lookup { entries, .. } = rows { *entries } else { *vocab };
                if matches!(rows, RowInput::Matrix { width, .. } if vocab.saturating_mul(*width) > LARGEST_TABLE) {
                    return Err("a table of a size that does not exist");
                }
                let known = tokenizer.id_bound() <= entries.min(*vocab);
                if known && side(*vocab) { Ok(()) } else { Err("its tokenizer knows ids that its table does not") }
            }
            (Input::Tokens { .. }, _, None) => Err("a model of texts without a tokenizer"),
            (Input::Patches { channels, image_size, patch_size, mean, std }, RowInput::Matrix { width, .. }, _) => {
                let small = [channels, image_size, patch_size].into_iter().all(|&n| (1..=1 << 16).contains(&n));
                let cut = small && image_size % patch_size == 0 && (image_size / patch_size).pow(2) == max_rows;
                let scaled = mean.len() == *channels && std.len() == *channels && std.iter().all(|v| *v != 0.0);
                let fits = cut && scaled && channels * patch_size * patch_size == *width;
                if fits { Ok(()) } else { Err("its patches do not make an image") }
            }
            (Input::Patches { .. }, RowInput::Lookup { .. }, _) => Err("images that are looked up in a table"),
        }
    }
}

impl fmt::Debug for ModelFace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelFace")
            .field("name", &self.name)
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

/// A public embedding table as the nodes hold it: encoded lanes, row-major.
pub(crate) struct Table<'a> {
    bytes: &'a [u8],
    width: usize,
}

impl<'a> Table<'a> {
    /// Bytes of the public table of a model.
    pub(crate) fn len_bytes(face: &ModelFace) -> Result<usize, Error> {
        match (&face.interface.input, &face.interface.rows) {
            (Input::Tokens { vocab, .. }, RowInput::Matrix { width, .. }) => {
                Ok(vocab.saturating_mul(*width).saturating_mul(face.interface.wide as usize / 8))
            }
            _ => Err(Error::Misuse(format!("model {} has no public table", face.name))),
        }
    }

    /// Checks that the bytes are a table of this model.
    pub(crate) fn new(face: &ModelFace, bytes: &'a [u8]) -> Result<Self, Error> {
        let expected = Self::len_bytes(face)?;
        match face.interface.rows {
            RowInput::Matrix { width, .. } if bytes.len() == expected => Ok(Self { bytes, width }),
            _ => {
                let what = format!("a table of {} bytes where {expected} are due", bytes.len());
                Err(Error::Unusable { model: face.name.clone(), what })
            }
        }
    }

    /// Row `id`, which is below the vocabulary.
    pub(crate) fn row<E: Element>(&self, id: usize) -> impl Iterator<Item = E> + use<'a, E> {
        let lane = E::BITS as usize / 8;
        let row = &self.bytes[id * self.width * lane..(id + 1) * self.width * lane];
        row.chunks_exact(lane).map(|bytes| {
            let word = bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            E::from_u64(word)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn nodes_that_say_different_things_are_named() {
        let words = fixture::words(32);
        let mut answers = [(); 3].map(|()| fixture::answer(&words, 7));
        answers[2] = fixture::answer(&words, 8);
        let error = ModelFace::from_answers("small", answers).unwrap_err();
        assert_eq!(error.to_string(), "P0 and P2 disagree on the digest of model small: one of them is at fault");
        let mut answers = [(); 3].map(|()| fixture::answer(&words, 7));
        answers[1] = fixture::answer(&Interface { padding_bias: 0, ..words }, 7);
        let error = ModelFace::from_answers("small", answers).unwrap_err();
        assert!(matches!(error, Error::Disagreement { parties: [PartyId::P0, PartyId::P1], .. }));
        let answers =
            [fixture::answer(&fixture::images(), 7), NodeMessage::Models(vec![]), NodeMessage::Models(vec![])];
        assert!(matches!(ModelFace::from_answers("small", answers), Err(Error::Node { party: PartyId::P1, .. })));
    }

    #[test]
    fn descriptions_that_make_no_sense_are_refused() {
        let (words, images) = (fixture::words(32), fixture::images());
        assert!(fixture::face(&words).is_ok() && fixture::face(&images).is_ok());
        let bad = [
            Interface { wide: 33, ..words.clone() },
            Interface { score_ring: 33, ..words.clone() },
            Interface { output_ring: 0, ..words.clone() },
            Interface { output_frac: 64, ..words.clone() },
            Interface { output_width: 4, ..words.clone() },
            Interface { max_rows: 0, ..words.clone() },
            Interface { max_rows: usize::MAX, ..words.clone() },
            Interface { rows: RowInput::Lookup { entries: 4, domain_bits: 2 }, ..words.clone() },
            Interface { rows: RowInput::Lookup { entries: 9, domain_bits: 3 }, ..words.clone() },
            Interface { rows: RowInput::Lookup { entries: 5, domain_bits: 64 }, ..words.clone() },
            Interface {
                input: Input::Tokens { vocab: 1 << 24, max_tokens: 8 },
                rows: RowInput::Matrix { width: 1 << 20, frac: 10 },
                ..words
            },
            Interface { rows: RowInput::Matrix { width: 5, frac: 10 }, ..images.clone() },
            Interface { max_rows: 5, ..images.clone() },
            Interface { output: Output::Logits { labels: vec![] }, output_width: 0, ..images.clone() },
            Interface { rows: RowInput::Lookup { entries: 5, domain_bits: 3 }, ..images },
        ];
        for interface in bad {
            assert!(matches!(fixture::face(&interface), Err(Error::Unusable { .. })), "{interface:?}");
        }
    }
}
