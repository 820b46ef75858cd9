//! Texts and images as the model reads them, and how a list is cut into requests.

use tercet_model::Truncate;
use tercet_model::graph::Input;
use zeroize::Zeroizing;

use crate::{Error, ModelFace, Options};

/// What is to be classified.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// Texts, for models of texts.
    Texts(&'a [&'a str]),
    /// Images `[channels, side, side]`, row-major, pixels from 0 to 1.
    Images(&'a [&'a [f32]]),
}

impl Inputs<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Images(images) => images.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Inputs are the client's secret: a debug print shows how many there are.
impl std::fmt::Debug for Inputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inputs[{}]", self.len())
    }
}

/// One input, ready to be shared; wiped when dropped.
pub(crate) enum Encoded {
    /// Token ids.
    Tokens(Zeroizing<Vec<u32>>),
    /// Normalised patches, row-major.
    Patches(Zeroizing<Vec<f32>>),
}

/// The inputs of one request.
pub(crate) struct Batch {
    /// Which of the caller's inputs these are.
    pub(crate) places: Vec<usize>,
    pub(crate) inputs: Vec<Encoded>,
    /// Rows of each, padding included.
    pub(crate) rows: usize,
}

impl Batch {
    /// Rows of each input that are not padding.
    pub(crate) fn real_rows(&self) -> Vec<usize> {
        self.inputs.iter().map(|input| input.rows(self.rows)).collect()
    }
}

impl Encoded {
    /// Rows that count; images fill all.
    pub(crate) fn rows(&self, all: usize) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::Patches(_) => all,
        }
    }
}

/// Encodes all inputs and cuts them into requests. Texts of similar length go together, so that little is padded.
pub(crate) fn batches(face: &ModelFace, inputs: Inputs<'_>, options: &Options) -> Result<Vec<Batch>, Error> {
    let most = face.interface().max_rows;
    if options.max_batch == 0 || options.bucket == Some(0) {
        return Err(Error::Misuse("a batch or a bucket of 0".into()));
    }
    let mut encoded: Vec<(usize, Encoded)> = encode(face, inputs, options)?.into_iter().enumerate().collect();
    encoded.sort_by_key(|(place, input)| (input.rows(most), *place));
    let mut batches = Vec::new();
    while !encoded.is_empty() {
        let rest = encoded.split_off(encoded.len().min(options.max_batch));
        let longest = encoded.iter().map(|(_, input)| input.rows(most)).max().unwrap_or(most);
        let rows = longest.next_multiple_of(options.bucket.unwrap_or(1)).min(most);
        let (places, inputs) = std::mem::replace(&mut encoded, rest).into_iter().unzip();
        batches.push(Batch { places, inputs, rows });
    }
    Ok(batches)
}

fn encode(face: &ModelFace, inputs: Inputs<'_>, options: &Options) -> Result<Vec<Encoded>, Error> {
    let interface = face.interface();
    match (inputs, &interface.input, face.tokenizer()) {
        (Inputs::Texts(texts), Input::Tokens { .. }, Some(tokenizer)) => {
            let truncate = if options.truncate { Truncate::Yes } else { Truncate::No };
            let encode = |(index, text): (usize, &&str)| {
                let ids = tokenizer.encode(text, interface.max_rows, truncate);
                ids.map(|ids| Encoded::Tokens(Zeroizing::new(ids))).map_err(|error| Error::input(index, error))
            };
            texts.iter().enumerate().map(encode).collect()
        }
        (Inputs::Images(images), Input::Patches { .. }, _) => {
            let encode = |(index, pixels): (usize, &&[f32])| {
                let patches = interface.input.patches(pixels).map_err(|error| Error::input(index, error))?;
                Ok(Encoded::Patches(Zeroizing::new(patches)))
            };
            images.iter().enumerate().map(encode).collect()
        }
        (Inputs::Texts(_), ..) => Err(Error::Misuse(format!("model {} takes images, not texts", face.name()))),
        (Inputs::Images(_), ..) => Err(Error::Misuse(format!("model {} takes texts, not images", face.name()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn cut(texts: &[&str], options: Options) -> Result<Vec<(Vec<usize>, usize)>, Error> {
        let face = fixture::face(&fixture::words(32)).unwrap();
        let batches = batches(&face, Inputs::Texts(texts), &options)?;
        Ok(batches.into_iter().map(|batch| (batch.places, batch.rows)).collect())
    }

    #[test]
    fn texts_of_similar_length_go_together() {
        let texts = ["one two three", "one", "one two", "two"];
        let options = Options { max_batch: 2, ..Options::default() };
        assert_eq!(cut(&texts, options.clone()).unwrap(), [(vec![1, 3], 1), (vec![2, 0], 3)]);
        let bucketed = Options { bucket: Some(2), ..options.clone() };
        assert_eq!(cut(&texts, bucketed).unwrap(), [(vec![1, 3], 2), (vec![2, 0], 4)]);
        let wide = Options { bucket: Some(100), ..options };
        assert_eq!(cut(&texts[..1], wide).unwrap(), [(vec![0], 8)], "never beyond what the model takes");
        assert_eq!(cut(&[], Options::default()).unwrap(), []);
    }

    #[test]
    fn bad_texts_are_named_by_their_place() {
        let long = "one two three four one two three four one";
        for (text, said) in [("", "empty"), ("  ", "empty"), (long, "9 tokens")] {
            let error = cut(&["one", text], Options::default()).unwrap_err();
            assert!(matches!(error, Error::Input { index: 1, .. }));
            assert!(error.to_string().starts_with("input 2: ") && error.to_string().contains(said), "{error}");
        }
        let truncate = Options { truncate: true, ..Options::default() };
        assert_eq!(cut(&[long], truncate).unwrap(), [(vec![0], 8)]);
        assert!(matches!(cut(&["one"], Options { max_batch: 0, ..Options::default() }), Err(Error::Misuse(_))));
    }

    #[test]
    fn texts_and_images_are_not_mixed_up() {
        let (words, images) = (fixture::face(&fixture::words(32)).unwrap(), fixture::face(&fixture::images()).unwrap());
        let default = Options::default();
        assert!(matches!(batches(&images, Inputs::Texts(&["one"]), &default), Err(Error::Misuse(_))));
        assert!(matches!(batches(&words, Inputs::Images(&[&[0.0; 16]]), &default), Err(Error::Misuse(_))));
        let short = batches(&images, Inputs::Images(&[&[0.5; 16], &[0.5; 15]]), &default).err();
        assert!(matches!(short, Some(Error::Input { index: 1, .. })));
    }
}
