//! Small models for the tests of this crate.

use tercet_model::graph::{Input, Output};
use tercet_model::{Decoder, Generation, Interface, RowInput};
use tercet_net::{NodeMessage, codec};

use crate::{Error, ModelFace};

const WORDS: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
    "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
    "model":{"type":"WordLevel","vocab":{"zero":0,"one":1,"two":2,"three":3,"four":4},"unk_token":"zero"}}"#;

/// A model of texts of up to eight words out of five, with a secret table.
pub(crate) fn words(wide: u32) -> Interface {
    Interface {
        input: Input::Tokens { vocab: 5, max_tokens: 8 },
        output: Output::Embedding { width: 3, normalize: false },
        max_rows: 8,
        wide,
        rows: RowInput::Lookup { entries: 5, domain_bits: 3 },
        score_ring: 20,
        padding_bias: -(100 << 10),
        output_ring: wide,
        output_frac: 10,
        output_is_sum: true,
        output_width: 3,
        decoder: None,
    }
}

/// A model of the same words that gives the next one, of a text of up to eight; the word 0 ends it.
pub(crate) fn decoder(wide: u32) -> Interface {
    let generation = Generation { eos: vec![0], ..Generation::default() };
    Interface {
        output: Output::NextToken { vocab: 5 },
        output_is_sum: false,
        output_width: 5,
        decoder: Some(Decoder { context: 8, index_bits: 3, generation, public_gate: false }),
        ..words(wide)
    }
}

/// The same with a public table of two columns.
pub(crate) fn public_words(wide: u32) -> Interface {
    Interface { rows: RowInput::Matrix { width: 2, frac: 10 }, ..words(wide) }
}

/// A classifier of images of one channel, 4 x 4 pixels in patches of 2 x 2.
pub(crate) fn images() -> Interface {
    Interface {
        input: Input::Patches { channels: 1, image_size: 4, patch_size: 2, mean: vec![0.5], std: vec![0.5] },
        output: Output::Logits { labels: vec!["cat".into(), "dog".into()] },
        max_rows: 4,
        wide: 32,
        rows: RowInput::Matrix { width: 4, frac: 10 },
        score_ring: 20,
        padding_bias: -(100 << 10),
        output_ring: 20,
        output_frac: 10,
        output_is_sum: false,
        output_width: 2,
        decoder: None,
    }
}

pub(crate) fn answer(interface: &Interface, digest: u8) -> NodeMessage {
    let texts = matches!(interface.input, Input::Tokens { .. });
    NodeMessage::Manifest {
        digest: [digest; 32],
        start_id: [digest; 16],
        interface: codec::encode(interface).unwrap(),
        tokenizer: texts.then(|| WORDS.as_bytes().to_vec()),
    }
}

pub(crate) fn face(interface: &Interface) -> Result<ModelFace, Error> {
    ModelFace::from_answers("small", [(); 3].map(|()| answer(interface, 7)))
}
