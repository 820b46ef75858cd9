//! A loaded model: public graph, secret tensors, tokenizer.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::builder::build;
use crate::config::{Config, Family, Head};
use crate::error::{LoadError, Problem};
use crate::graph::{Graph, Input};
use crate::pooling::{Pool, Pooling};
use crate::recipe::Recipe;
use crate::tokenizer::{FILE as TOKENIZER, Tokenizer};
use crate::weights::Weights;

/// A model in plaintext, as its owner has it.
pub struct Model {
    /// What is computed. It passes [`Graph::validate`].
    pub graph: Graph,
    /// What was assumed because the directory does not say it, or is done otherwise than it says, one sentence each.
    pub notes: Vec<String>,
    tokenizer: Option<Tokenizer>,
    weights: Weights,
    recipes: BTreeMap<String, Recipe>,
}

/// Why a tensor cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The graph has no tensor of this name: a mistake of the caller.
    #[error("the model has no tensor {0}")]
    Unknown(String),
    /// The elements given for a tensor are not as many as its shape says, or are not finite: a mistake of the caller.
    #[error("tensor {name}: {what}")]
    Unusable {
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The graph itself breaks a rule.
    #[error(transparent)]
    Graph(#[from] crate::validate::GraphError),
}

impl Model {
    /// Loads an unmodified Hugging Face directory: `config.json`, `model.safetensors` (or shards with their index) in f32,
    /// f16 or bf16, `tokenizer.json` for texts, and if they are there `modules.json` with its pooling (sentence-transformers)
    /// and `preprocessor_config.json` (images).
    ///
    /// BERT, RoBERTa, DistilBERT and what shares their tensors (MiniLM, XLM-RoBERTa), as encoders of sentences or with a
    /// classifier for sequences, and ViT with its classifier.
    ///
    /// # Errors
    /// Everything that is wrong with the directory, at once.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let (family, config) = Config::read(dir, &mut problems, &mut notes);
        let weights = Weights::read(dir, family.map_or("", Family::prefix), &mut problems);
        let tokenizer = match family {
            None | Some(Family::Vit) => None,
            Some(_) => read_tokenizer(dir, &mut problems),
        };
        let hidden = config.as_ref().map(|c| c.hidden);
        let pooling = match config.as_ref().map(|c| &c.head) {
            Some(Head::Classifier(_)) => Pooling { pool: Pool::First, normalize: false },
            _ if family == Some(Family::Vit) => Pooling { pool: Pool::First, normalize: false },
            _ => Pooling::read(dir, hidden, &mut problems, &mut notes),
        };
        let Some(config) = config else {
            // Without a plan every tensor is looked at, so that this does not come to light only on the next try.
            problems.extend(weights.entries().filter_map(|(_, entry)| weights.check_finite(entry).err()));
            return Err(LoadError { problems });
        };
        let has_files = weights.entries().next().is_some();
        let mut of_tensors = Vec::new();
        let (graph, recipes) = build(&config, pooling, &weights, &mut of_tensors);
        if has_files {
            problems.append(&mut of_tensors);
        }
        if let (Some(tokenizer), Input::Tokens { vocab, .. }) = (&tokenizer, &graph.input)
            && tokenizer.id_bound() > *vocab
        {
            let what = format!("it gives ids up to {}, but the model has {vocab}", tokenizer.id_bound() - 1);
            problems.push(Problem::BadEntry { file: TOKENIZER.into(), key: "vocab".into(), what });
        }
        if problems.is_empty() {
            problems.extend(graph.validate().err().map(Problem::Graph));
        }
        if !problems.is_empty() {
            return Err(LoadError { problems });
        }
        let recipes = graph.tensors.iter().map(|spec| spec.name.clone()).zip(recipes).collect();
        Ok(Self { graph, notes, tokenizer, weights, recipes })
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
            recipes.insert(spec.name.clone(), Recipe::Given(values));
        }
        Ok(Self { graph, notes: Vec::new(), tokenizer, weights: Weights::empty(), recipes })
    }

    /// A tensor of the graph, `[rows, cols]` row-major, after all folding: linear weights `[in, out]`, queries scaled,
    /// token types inside positions. Converted from the stored weights at each call.
    ///
    /// # Errors
    /// The graph has no tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let unknown = || TensorError::Unknown(name.into());
        let spec = self.graph.tensor_spec(name).ok_or_else(unknown)?;
        self.recipes.get(name).and_then(|recipe| recipe.make(&self.weights, spec.rows, spec.cols)).ok_or_else(unknown)
    }

    /// The tokenizer, for models of texts.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// SHA-256 over the graph and all tensors in their order: equal for equal models, however they were stored.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"tercet model 1\0");
        hash.update(self.graph.digest());
        for spec in &self.graph.tensors {
            let values = self.tensor(&spec.name).unwrap_or_default();
            for chunk in values.chunks(1 << 14) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
                hash.update(&bytes);
            }
        }
        hash.finalize().into()
    }
}

/// Shapes only: the weights are secret.
impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("graph", &self.graph).field("notes", &self.notes).finish_non_exhaustive()
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
