//! The text: what is learned and what is held out, its tokens, and the windows of it that training sees.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use flate2::read::GzDecoder;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::network::CONTEXT;

/// Ends every chapter; its id is 0.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";
pub(crate) const END_OF_TEXT_ID: u32 = 0;
pub(crate) const VOCABULARY: usize = 2048;

/// Every twentieth chapter, from the tenth on, is held out.
const HELD_OUT: (usize, usize) = (20, 10);

/// A paragraph a line, an empty line between chapters, ASCII.
const TEXT: &[u8] = include_bytes!("../../../gpt/text.gz");

pub(crate) struct Corpus {
    pub(crate) tokenizer: Tokenizer,
    text: String,
    /// Where a sentence begins in `text` and a whole window follows.
    starts: Vec<usize>,
    /// The held-out chapters' tokens in windows `[1, at most CONTEXT + 1]` that overlap by one token.
    pub(crate) held_out: Vec<Tensor>,
    pub(crate) held_out_bytes: usize,
}

impl Corpus {
    /// Unpacks the text, sets chapters aside and trains the tokenizer on the others.
    pub(crate) fn load() -> Result<Self> {
        let mut all = String::with_capacity(1 << 21);
        GzDecoder::new(TEXT).read_to_string(&mut all)?;
        ensure!(all.is_ascii(), "the text is not ASCII");
        let (mut text, mut held_out) = (String::with_capacity(all.len()), Vec::new());
        for (i, chapter) in all.trim_end().split("\n\n").enumerate() {
            let chapter = format!("{chapter}\n{END_OF_TEXT}");
            if i % HELD_OUT.0 == HELD_OUT.1 { held_out.push(chapter) } else { text.push_str(&chapter) }
        }
        let tokenizer = train_tokenizer(&text)?;
        let held_out_bytes = held_out.iter().map(String::len).sum();
        let mut windows = Vec::new();
        for chapter in held_out {
            let ids = encode(&tokenizer, &chapter)?;
            for at in (0..ids.len() - 1).step_by(CONTEXT) {
                let window = &ids[at..(at + CONTEXT + 1).min(ids.len())];
                windows.push(Tensor::new(window, &Device::Cpu)?.unsqueeze(0)?);
            }
        }
        let starts = sentence_starts(&text);
        Ok(Self { tokenizer, text, starts, held_out: windows, held_out_bytes })
    }

    /// Bytes to learn from.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Random windows `[count, rows + 1]`, each from the beginning of a sentence on: as prompts begin.
    pub(crate) fn windows(&self, count: usize, rows: usize, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(count * (rows + 1));
        for _ in 0..count {
            let start = self.starts[rng.random_range(0..self.starts.len())];
            let window = encode(&self.tokenizer, &self.text[start..start + most_bytes(rows)])?;
            ids.extend_from_slice(window.get(..=rows).context("a window of text has too few tokens")?);
        }
        Ok(Tensor::from_vec(ids, (count, rows + 1), &Device::Cpu)?)
    }
}

/// More bytes than `rows + 1` tokens of running text ever have.
const fn most_bytes(rows: usize) -> usize {
    6 * (rows + 1)
}

pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode_fast(text, false).map_err(anyhow::Error::from_boxed)?.get_ids().to_vec())
}

/// Where a line or a chapter begins, and where a capital or a quotation mark follows a stop and a space.
fn sentence_starts(text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let begins = |&at: &usize| match bytes[..at] {
        [] | [.., b'\n' | b'>'] => true,
        [.., b'.' | b'!' | b'?' | b'"', b' '] => bytes[at].is_ascii_uppercase() || bytes[at] == b'"',
        _ => false,
    };
    (0..text.len().saturating_sub(most_bytes(CONTEXT))).filter(begins).collect()
}

/// Byte-level BPE as GPT-2 has it.
fn train_tokenizer(text: &str) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_post_processor(Some(ByteLevel::new(true, false, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(true, true, true)));
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    tokenizer.train(&mut trainer, text.split(END_OF_TEXT)).map_err(anyhow::Error::from_boxed)?;
    ensure!(tokenizer.get_vocab_size(true) == VOCABULARY, "the tokenizer has another number of tokens");
    Ok(tokenizer)
}
