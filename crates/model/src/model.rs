//! A loaded model: public graph, secret tensors, tokenizer.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::builder::build;
use crate::config::{Config, Family};
use crate::encoder_config::{EncoderConfig, Head};
use crate::error::{LoadError, Problem};
use crate::gate::Gate;
use crate::generation::Generation;
use crate::graph::{Graph, Input};
use crate::pooling::{Pool, Pooling};
use crate::recipe::Recipe;
use crate::tokenizer::{FILE as TOKENIZER, Tokenizer};
use crate::tokenizer_config;
use crate::weights::Weights;

/// Bytes of a piece of a tensor that is hashed, over four.
const DIGEST_PIECE: usize = 1 << 22;

/// A model in plaintext, as its owner has it.
pub struct Model {
    /// What is computed. It passes [`Graph::validate`].
    pub graph: Graph,
    /// What was assumed because the directory does not say it, or is done otherwise than it says, one sentence each.
    pub notes: Vec<String>,
    /// How to generate with it: for decoders from a directory.
    pub generation: Option<Generation>,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// What may stand before the names of stored tensors.
    pub(crate) prefix: &'static str,
    pub(crate) weights: Arc<Weights>,
    pub(crate) recipes: BTreeMap<String, Recipe>,
}

/// Why a tensor cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The graph has no tensor of this name: a mistake of the caller.
    #[error("the model has no tensor {0}")]
    Unknown(String),
    /// The elements given for a tensor are not as many as its shape says, or are not finite, or rows are asked for that it does
    /// not have: a mistake of the caller.
    #[error("tensor {name}: {what}")]
    Unusable {
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A file of weights can no longer be read, or was altered since the model was loaded.
    #[error("tensor {name} can no longer be read: {cause}")]
    Unreadable {
        /// The tensor.
        name: String,
        /// Why.
        cause: String,
    },
    /// The graph itself breaks a rule.
    #[error(transparent)]
    Graph(#[from] crate::validate::GraphError),
}

impl Model {
    /// Loads an unmodified Hugging Face directory: `config.json`, `model.safetensors` (or shards with their index) in f32,
    /// f16 or bf16, `tokenizer.json` for texts (with a note where `tokenizer_config.json` says otherwise), and if they are there
    /// `modules.json` with its pooling (sentence-transformers) and `preprocessor_config.json` (images).
    ///
    /// BERT, RoBERTa, DistilBERT and what shares their tensors (MiniLM, XLM-RoBERTa), as encoders of sentences or with a
    /// classifier for sequences, and ViT with its classifier; GPT-2, LLaMA, Mistral, Qwen2 and Mixtral as decoders, with
    /// `generation_config.json` if it is there.
    ///
    /// Every weight is looked at once; none stays in memory, so the files must stay where they are.
    ///
    /// # Errors
    /// Everything that is wrong with the directory, at once.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        Self::load_with(dir, Gate::Secret)
    }

    /// The same with a gate of its mixtures of experts, if it has any.
    ///
    /// # Errors
    /// Everything that is wrong with the directory, at once.
    pub fn load_with(dir: &Path, gate: Gate) -> Result<Self, LoadError> {
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let (family, config) = Config::read(dir, &mut problems, &mut notes);
        let weights = Weights::open(dir, family.map_or("", Family::prefix), &mut problems);
        let reads_texts = family.is_some_and(Family::reads_texts);
        let tokenizer = if reads_texts { read_tokenizer(dir, &mut problems) } else { None };
        if let (Some(family), Some(tokenizer)) = (family, &tokenizer) {
            tokenizer_config::compare(dir, family, tokenizer, &mut problems, &mut notes);
        }
        let pooling = match &config {
            None if reads_texts => Pooling::read(dir, None, &mut problems, &mut notes),
            config => pooling(dir, config.as_ref(), &mut problems, &mut notes),
        };
        let Some(config) = config else {
            // Without a plan every tensor is looked at, so that this does not come to light only on the next try.
            problems.extend(weights.entries().filter_map(|(_, entry)| weights.check_finite(entry).err()));
            return Err(LoadError { problems });
        };
        let has_files = weights.entries().next().is_some();
        let mut of_tensors = Vec::new();
        let (graph, recipes) = build(&config, pooling, gate, &weights, &mut of_tensors);
        if has_files {
            problems.append(&mut of_tensors);
        }
        if let (Some(tokenizer), Input::Tokens { vocab, .. }) = (&tokenizer, &graph.input)
            && tokenizer.id_bound() > *vocab
        {
            let what = format!("it gives ids up to {}, but the model has {vocab}", tokenizer.id_bound() - 1);
            problems.push(Problem::BadEntry { file: TOKENIZER.into(), key: "vocab".into(), what });
        }
        let generation = match config {
            Config::Decoder(config) => Some(config.generation),
            Config::Encoder(_) => None,
        };
        if problems.is_empty() {
            problems.extend(graph.validate().err().map(Problem::Graph));
        }
        if !problems.is_empty() {
            return Err(LoadError { problems });
        }
        let recipes = graph.tensors.iter().map(|spec| spec.name.clone()).zip(recipes).collect();
        let prefix = family.map_or("", Family::prefix);
        Ok(Self { graph, notes, tokenizer, generation, prefix, weights: Arc::new(weights), recipes })
    }

    /// The graph of a Hugging Face directory whose weights need not be there: `config.json`, and `modules.json` if it is there,
    /// are all that is read. Good for saying what a model would cost.
    ///
    /// # Errors
    /// Everything that is wrong with these files, at once.
    pub fn graph_of(dir: &Path, gate: Gate) -> Result<Graph, LoadError> {
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let (_, config) = Config::read(dir, &mut problems, &mut notes);
        let Some(config) = config else { return Err(LoadError { problems }) };
        let pooling = pooling(dir, Some(&config), &mut problems, &mut notes);
        // All that can be wrong with tensors is that they are missing, which they may be.
        let (graph, _) = build(&config, pooling, gate, &Weights::empty(), &mut Vec::new());
        if problems.is_empty() {
            problems.extend(graph.validate().err().map(Problem::Graph));
        }
        if problems.is_empty() { Ok(graph) } else { Err(LoadError { problems }) }
    }

    /// A model from a graph and its tensors, each `[rows, cols]` row-major as the graph lists it.
    ///
    /// # Errors
    /// The graph breaks a rule, or a tensor is missing, of another size or not finite.
    pub fn from_tensors(
        graph: Graph,
        mut tensors: BTreeMap<String, Vec<f32>>,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Self, TensorError> {
        graph.validate()?;
        let mut recipes = BTreeMap::new();
        for spec in &graph.tensors {
            let values = tensors.remove(&spec.name).ok_or_else(|| TensorError::Unknown(spec.name.clone()))?;
            let unusable = |what: String| TensorError::Unusable { name: spec.name.clone(), what };
            if values.len() != spec.rows * spec.cols {
                return Err(unusable(format!("{} elements for [{}, {}]", values.len(), spec.rows, spec.cols)));
            }
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(unusable(format!("element [{}, {}] is not finite", at / spec.cols, at % spec.cols)));
            }
            recipes.insert(spec.name.clone(), Recipe::Given(values.into()));
        }
        let (notes, weights) = (Vec::new(), Arc::new(Weights::empty()));
        Ok(Self { graph, notes, tokenizer, generation: None, prefix: "", weights, recipes })
    }

    /// A tensor of the graph, `[rows, cols]` row-major, after all folding: linear weights `[in, out]`, queries scaled,
    /// token types inside positions. Read from the files and converted at each call, in memory for the result alone.
    ///
    /// # Errors
    /// The graph has no tensor of this name; the files are no longer what they were when the model was loaded.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let rows = self.graph.tensor_spec(name).map_or(0, |spec| spec.rows);
        self.tensor_rows(name, 0..rows)
    }

    /// Some rows of a tensor, equal to the same rows of [`Self::tensor`], in memory for these rows and a few MB. Taken one
    /// after the other, pieces of 256 rows and more cost about as much as the whole tensor.
    ///
    /// # Errors
    /// As for [`Self::tensor`]; the tensor does not have these rows.
    pub fn tensor_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, TensorError> {
        let unknown = || TensorError::Unknown(name.into());
        let spec = self.graph.tensor_spec(name).ok_or_else(unknown)?;
        if rows.start > rows.end || rows.end > spec.rows {
            let what = format!("rows {} to {} of {}", rows.start, rows.end, spec.rows);
            return Err(TensorError::Unusable { name: name.into(), what });
        }
        let recipe = self.recipes.get(name).ok_or_else(unknown)?;
        let unreadable = |cause: String| TensorError::Unreadable { name: name.into(), cause };
        recipe.make(&self.weights, rows, spec.cols).map_err(unreadable)
    }

    /// The tokenizer, for models of texts.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// SHA-256 over the graph and all tensors in their order: equal for equal models, however they were stored.
    ///
    /// # Errors
    /// The files are no longer what they were when the model was loaded.
    pub fn digest(&self) -> Result<[u8; 32], TensorError> {
        let mut hash = Sha256::new();
        hash.update(b"tercet model 1\0");
        hash.update(self.graph.digest());
        for spec in &self.graph.tensors {
            // Enough rows for a transposed tensor to be read in few passes.
            let step = (DIGEST_PIECE / spec.cols).max(1);
            for from in (0..spec.rows).step_by(step) {
                let values = self.tensor_rows(&spec.name, from..(from + step).min(spec.rows))?;
                for chunk in values.chunks(1 << 14) {
                    let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
                    hash.update(&bytes);
                }
            }
        }
        Ok(hash.finalize().into())
    }
}

/// Shapes only: the weights are secret.
impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("graph", &self.graph).field("notes", &self.notes).finish_non_exhaustive()
    }
}

/// How a model makes one vector of those of its rows, if it does.
fn pooling(dir: &Path, config: Option<&Config>, problems: &mut Vec<Problem>, notes: &mut Vec<String>) -> Pooling {
    match config {
        Some(Config::Encoder(EncoderConfig { head: Head::Embedding, hidden, .. })) => {
            Pooling::read(dir, Some(*hidden), problems, notes)
        }
        _ => Pooling { pool: Pool::First, normalize: false },
    }
}

fn read_tokenizer(dir: &Path, problems: &mut Vec<Problem>) -> Option<Tokenizer> {
    let broken = |cause: String| Problem::BrokenFile { file: TOKENIZER.into(), cause };
    match std::fs::read(dir.join(TOKENIZER)) {
        Ok(bytes) => match Tokenizer::from_bytes(bytes) {
            Ok(tokenizer) => return Some(tokenizer),
            Err(e) => problems.push(broken(e.to_string())),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => problems.push(Problem::MissingFile {
            file: TOKENIZER.into(),
            mend: "it turns texts into ids; AutoTokenizer.from_pretrained(..).save_pretrained(..) writes it".into(),
        }),
        Err(e) => problems.push(broken(e.to_string())),
    }
    None
}
