//! What is asked: inputs of a given number of rows, drawn at random and the same each time.

use anyhow::{Context, Result, bail};
use tercet_model::graph::Input;
use tercet_model::{Model, OracleInput, Tokenizer, Truncate};
use tercet_ring::{Prg, Seed};

/// Words that most tokenizers of English have as one token, and whose tokens stand beside each other as they do alone.
const WORDS: [&str; 24] = [
    "the", "of", "river", "house", "and", "school", "in", "music", "time", "was", "city", "for", "water", "with",
    "night", "on", "game", "world", "by", "history", "over", "garden", "king", "a",
];

/// Some inputs, as a client has them.
pub(crate) enum Asked {
    /// Of exactly as many tokens as was said, special ones included.
    Texts(Vec<String>),
    /// Pixels from 0 to 1.
    Images(Vec<Vec<f32>>),
}

impl Asked {
    /// `batch` inputs of `rows` rows.
    ///
    /// # Errors
    /// No text of `rows` tokens can be made: the model does not take as many, or its tokenizer has other words.
    pub(crate) fn of(model: &Model, batch: usize, rows: usize) -> Result<Self> {
        let mut random = Random { prg: Prg::new(&Seed::from_bytes([0; 32]).derive("tercet bench inputs", &[])), at: 0 };
        match (&model.graph.input, model.tokenizer()) {
            (Input::Tokens { vocab, max_tokens }, Some(tokenizer)) => {
                if rows == 0 || rows > *max_tokens {
                    bail!("the model takes texts of 1 to {max_tokens} tokens, not of {rows}");
                }
                let texts = (0..batch).map(|_| text(tokenizer, *vocab, rows, &mut random));
                Ok(Self::Texts(texts.collect::<Result<_>>()?))
            }
            (Input::Patches { channels, image_size, .. }, _) => {
                let pixels = channels * image_size * image_size;
                Ok(Self::Images((0..batch).map(|_| random.pixels(pixels)).collect()))
            }
            (Input::Tokens { .. }, None) => bail!("the model has no tokenizer"),
        }
    }

    /// The same as the float oracle takes them.
    ///
    /// # Errors
    /// An input is not one that the model takes.
    pub(crate) fn plain(&self, model: &Model) -> Result<Vec<OracleInput>> {
        match self {
            Self::Texts(texts) => {
                let tokenizer = model.tokenizer().context("the model has no tokenizer")?;
                let ids = |text: &String| tokenizer.encode(text, model.graph.max_rows(), Truncate::No);
                texts.iter().map(|text| Ok(OracleInput::Tokens(ids(text)?))).collect()
            }
            Self::Images(images) => {
                images.iter().map(|pixels| Ok(OracleInput::Patches(model.graph.input.patches(pixels)?))).collect()
            }
        }
    }
}

/// Where the tokenizer has a word for each id, random ids; else random words, as many as make `rows` tokens.
fn text(tokenizer: &Tokenizer, vocab: usize, rows: usize, random: &mut Random) -> Result<String> {
    let tokens = |text: &str| tokenizer.encode(text, usize::MAX, Truncate::No).map(|ids| ids.len());
    let numbers = (0..rows).map(|_| random.below(vocab).to_string()).collect::<Vec<_>>();
    let last = vocab.saturating_sub(1);
    if tokenizer.encode(&last.to_string(), usize::MAX, Truncate::No).is_ok_and(|ids| ids == [last as u32]) {
        return Ok(numbers.join(" "));
    }
    let special = tokens(WORDS[0])?.saturating_sub(1);
    let words = (special..rows).map(|_| WORDS[random.below(WORDS.len())]).collect::<Vec<_>>().join(" ");
    match tokens(&words) {
        Ok(found) if found == rows => Ok(words),
        Ok(found) => bail!("this tokenizer makes {found} tokens of a text that should have {rows}"),
        Err(_) => bail!("a text has {special} special tokens, so none has {rows} in all"),
    }
}

struct Random {
    prg: Prg,
    at: u64,
}

impl Random {
    fn word(&mut self) -> u32 {
        let mut word = [0];
        self.prg.fill(0, self.at, &mut word);
        self.at += 1;
        word[0]
    }

    fn below(&mut self, bound: usize) -> usize {
        ((u64::from(self.word()) * bound as u64) >> 32) as usize
    }

    fn pixels(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.word() >> 8) as f32 / (1 << 24) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_tokens_that_were_asked_for() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
        // Its tokenizer knows letters only, so no word is one token: said, not worked around.
        let letters = Model::load(&fixtures.join("bert_encoder")).unwrap();
        let error = Asked::of(&letters, 1, 20).err().unwrap().to_string();
        assert!(error.contains("should have 20"), "{error}");
        assert!(Asked::of(&letters, 1, 41).err().unwrap().to_string().contains("1 to 40"));
        let images = Model::load(&fixtures.join("vit_classifier")).unwrap();
        let asked = Asked::of(&images, 2, 9).unwrap();
        assert_eq!(asked.plain(&images).unwrap().len(), 2);
    }
}
