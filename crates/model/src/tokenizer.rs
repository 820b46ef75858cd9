//! Texts to token ids, as `tokenizer.json` says, without padding and without silent truncation; and ids to texts again, all at
//! once or as they come.

use std::fmt;
use std::path::Path;

use tokenizers::{PostProcessor, TruncationDirection};

/// Ids of which a character that is not complete can have been made, and more than decoding looks back.
const LOOK_BACK: usize = 8;

/// The file of a model directory that holds a tokenizer.
pub(crate) const FILE: &str = "tokenizer.json";

/// A tokenizer and the bytes that it was read from.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    id_bound: usize,
}

/// What to do with a text that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncate {
    /// Refuse it.
    #[default]
    No,
    /// Keep its beginning and all special tokens.
    Yes,
}

/// Why a text has no token ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The tokenizer file cannot be read: its owner is at fault.
    #[error("the tokenizer cannot be read: {0}")]
    Unreadable(String),
    /// The text has no tokens of its own: the caller is at fault.
    #[error("the text is empty: it has no tokens")]
    Empty,
    /// The text is too long: the caller is at fault.
    #[error("the text has {count} tokens, the model takes at most {limit}; shorten it, or ask for truncation")]
    TooLong {
        /// Tokens of the text, special ones included.
        count: usize,
        /// The most that are possible.
        limit: usize,
    },
    /// The tokenizer failed on this text.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`. Truncation and padding that it asks for are switched off.
    ///
    /// # Errors
    /// The bytes are not a tokenizer.
    pub fn from_bytes(json: Vec<u8>) -> Result<Self, TokenizerError> {
        let unreadable = |e: tokenizers::Error| TokenizerError::Unreadable(e.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(unreadable)?;
        inner.with_truncation(None).map_err(unreadable)?;
        inner.with_padding(None);
        let id_bound = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { inner, json, id_bound })
    }

    /// Reads `tokenizer.json` in a directory.
    ///
    /// # Errors
    /// The file is missing or is not a tokenizer.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let json = std::fs::read(dir.join(FILE)).map_err(|e| TokenizerError::Unreadable(format!("{FILE}: {e}")))?;
        Self::from_bytes(json)
    }

    /// The ids of a text with special tokens, from 1 to `limit` of them.
    ///
    /// # Errors
    /// The text is empty; it has more than `limit` tokens and truncation was not asked for.
    pub fn encode(&self, text: &str, limit: usize, truncate: Truncate) -> Result<Vec<u32>, TokenizerError> {
        let failed = |e: tokenizers::Error| TokenizerError::Failed(e.to_string());
        let mut encoding = self.inner.encode(text, false).map_err(failed)?;
        if encoding.is_empty() {
            return Err(TokenizerError::Empty);
        }
        let special = self.specials();
        let count = encoding.len() + special;
        if count > limit {
            if truncate == Truncate::No || limit <= special {
                return Err(TokenizerError::TooLong { count, limit });
            }
            encoding.truncate(limit - special, 0, TruncationDirection::Right);
            encoding.take_overflowing();
        }
        let encoding = self.inner.post_process(encoding, None, true).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// How many special tokens [`Self::encode`] adds to a text: the beginning of a text for LLaMA, none for GPT-2.
    pub fn specials(&self) -> usize {
        self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false))
    }

    /// The text of ids, without special tokens. Ids that do not exist have none; bytes that are no text come as U+FFFD.
    ///
    /// # Errors
    /// The tokenizer failed on these ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, true).map_err(|e| TokenizerError::Failed(e.to_string()))
    }

    /// The id of a token as the vocabulary writes it: `<|endoftext|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id.
    pub fn id_bound(&self) -> usize {
        self.id_bound
    }

    /// The bytes that it was read from, to hand it to clients.
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("ids", &self.id_bound)
            .field("bytes", &self.json.len())
            .finish_non_exhaustive()
    }
}

/// The text of ids that come one by one. What it gives out, put together, is what [`Tokenizer::decode`] makes of all ids, except
/// where bytes that once made a text are taken back by a later one that makes none of them.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The ids since the last piece of text before the one that was given out last: as much as decoding looks back.
    ids: Vec<u32>,
    /// How many of them have been given out.
    given: usize,
}

impl TextStream {
    /// A text from its beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that goes on after these ids, whose own text is not given out.
    ///
    /// # Errors
    /// The tokenizer failed on these ids.
    pub fn after(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Self, TokenizerError> {
        // No decoder looks farther back than one token; a few more make sure that one of them has a text.
        let mut start = ids.len().saturating_sub(LOOK_BACK);
        // A run of bytes that begins within a character has no text, nor has anything that goes on with it.
        while start > 0 && tokenizer.decode(&ids[start..=start])?.starts_with('\u{FFFD}') {
            start -= 1;
        }
        let ids = ids[start..].to_vec();
        Ok(Self { given: ids.len(), ids })
    }

    /// One more id: the text that is certain now, empty while a character is not complete.
    ///
    /// # Errors
    /// The tokenizer failed on these ids.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.rest(tokenizer)?;
        // Bytes of a character that is not complete; no character has more than four, so more of them are none.
        if text.ends_with('\u{FFFD}') && self.ids.len() - self.given < LOOK_BACK {
            return Ok(String::new());
        }
        if !text.is_empty() {
            self.ids.drain(..self.given.min(self.ids.len() - 1));
            self.given = self.ids.len();
        }
        Ok(text)
    }

    /// What was held back, once no further id comes.
    ///
    /// # Errors
    /// The tokenizer failed on these ids.
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        self.rest(tokenizer)
    }

    /// The text of the ids that were not given out, in its place after those that were.
    fn rest(&self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let before = tokenizer.decode(&self.ids[..self.given])?;
        let whole = tokenizer.decode(&self.ids)?;
        let common = before.chars().zip(whole.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        Ok(whole[common..].to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert_encoder");
        Tokenizer::from_dir(&dir).unwrap()
    }

    #[test]
    fn neither_pads_nor_truncates_although_the_file_asks_for_it() {
        let json: serde_json::Value = serde_json::from_slice(tokenizer().json()).unwrap();
        assert!(json["truncation"].is_object() && json["padding"].is_object());
        assert_eq!(tokenizer().encode("a", 40, Truncate::No).unwrap().len(), 3);
        assert_eq!(tokenizer().encode("abcdefghijklmnop", 40, Truncate::No).unwrap().len(), 18);
        assert_eq!(tokenizer().id_bound(), 57);
    }

    #[test]
    fn empty_texts_are_refused() {
        for text in ["", " ", "\n\t "] {
            assert_eq!(tokenizer().encode(text, 40, Truncate::Yes), Err(TokenizerError::Empty), "{text:?}");
        }
    }

    #[test]
    fn long_texts_are_refused_unless_truncation_is_asked_for() {
        let tokenizer = tokenizer();
        let text = "abcdefgh";
        let whole = tokenizer.encode(text, 10, Truncate::No).unwrap();
        assert_eq!(whole.len(), 10);
        assert_eq!(tokenizer.encode(text, 9, Truncate::No), Err(TokenizerError::TooLong { count: 10, limit: 9 }));
        let cut = tokenizer.encode(text, 5, Truncate::Yes).unwrap();
        assert_eq!((cut.len(), &cut[..4], cut[4]), (5, &whole[..4], whole[9]));
        assert_eq!(tokenizer.encode(text, 2, Truncate::Yes), Err(TokenizerError::TooLong { count: 10, limit: 2 }));
        assert_eq!(tokenizer.encode(text, 0, Truncate::Yes), Err(TokenizerError::TooLong { count: 10, limit: 0 }));
    }

    /// Every id is a byte, or an ordinary token from 256 on.
    fn bytes() -> Tokenizer {
        let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte));
        let vocab: serde_json::Map<_, _> =
            bytes.chain([("word".into(), 256)]).map(|(token, id)| (token, id.into())).collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, { "type": "Fuse" }] },
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "word" },
        });
        Tokenizer::from_bytes(json.to_string().into_bytes()).unwrap()
    }

    #[test]
    fn a_text_goes_on_after_bytes_of_any_number() {
        let tokenizer = bytes();
        for text in ["ありがとうございます", "🦀é🦀→a🦀🦀é🦀b→→", "\u{FFFD}🦀🦀\u{FFFD}→→→🦀\u{FFFD}\u{FFFD}é"]
        {
            for (at, _) in text.char_indices() {
                let (prompt, rest) = text.split_at(at);
                let prompt: Vec<u32> = prompt.bytes().map(u32::from).collect();
                let mut stream = TextStream::after(&tokenizer, &prompt).unwrap();
                let ids = rest.bytes().map(u32::from).chain([256]);
                let pieces: Vec<String> = ids.map(|id| stream.push(&tokenizer, id).unwrap()).collect();
                assert_eq!(pieces.concat(), format!("{rest}word"), "{text} from {at}");
                // Characters come one by one, but for those that look like none.
                let first = rest.chars().next().unwrap();
                let come = pieces.iter().find(|piece| !piece.is_empty()).unwrap();
                assert!(first == '\u{FFFD}' || *come == first.to_string(), "{text} from {at}: {come}");
            }
        }
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b""[..], b"{}", b"not json", b"\xff\xfe"] {
            assert!(matches!(Tokenizer::from_bytes(bytes.to_vec()), Err(TokenizerError::Unreadable(_))));
        }
    }
}
