//! Token ids to text, as it becomes printable: a character may need several tokens, and how a token reads depends on those
//! before it.

use tercet_model::Tokenizer;
use zeroize::Zeroizing;

use crate::{Error, ModelFace};

/// Tokens before the new ones that are read with them.
const CONTEXT: usize = 5;

/// What a character shows of which bytes are missing.
const INCOMPLETE: char = '\u{FFFD}';

/// Reads a text token by token.
pub(crate) struct Printer {
    ids: Zeroizing<Vec<u32>>,
    /// Where the tokens begin that are read again.
    from: usize,
    /// How many were printed.
    printed: usize,
}

impl Printer {
    /// A text that goes on after a prompt.
    pub(crate) fn after(prompt: &[u32]) -> Printer {
        let ids = Zeroizing::new(prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec());
        Printer { from: 0, printed: ids.len(), ids }
    }

    /// What the next token makes printable.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let text = self.new_text(tokenizer)?;
        if text.is_empty() || text.ends_with(INCOMPLETE) {
            return Ok(String::new());
        }
        (self.from, self.printed) = (self.printed, self.ids.len());
        Ok(text)
    }

    /// What is left when no token follows, whole or not.
    pub(crate) fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let text = self.new_text(tokenizer)?;
        self.printed = self.ids.len();
        Ok(text)
    }

    fn new_text(&self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let read = |ids: &[u32]| {
            tokenizer.decode(ids).map(Zeroizing::new).map_err(|error| Error::Misuse(error.to_string()))
        };
        let (old, all) = (read(&self.ids[self.from..self.printed])?, read(&self.ids[self.from..])?);
        Ok(all.get(old.len()..).unwrap_or_default().to_owned())
    }
}

/// The tokenizer of a model that generates texts.
pub(crate) fn tokenizer(face: &ModelFace) -> Result<&Tokenizer, Error> {
    face.tokenizer().ok_or_else(|| Error::Misuse(format!("model {} has no tokenizer", face.name())))
}
