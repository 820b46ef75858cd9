//! Why a directory of a model or of an adapter is refused: all problems at once, each with the name of what to mend.

use std::fmt;

use crate::validate::GraphError;

/// Everything that is wrong with a directory of a model or of an adapter. Whoever made the directory, or chose it, is at fault.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadError {
    /// The problems, in the order in which they were met; never empty.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a directory of a model or of an adapter.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// A file that every such model has is not there.
    #[error("{file} is missing: {mend}")]
    MissingFile {
        /// Its path in the directory.
        file: String,
        /// What to do about it.
        mend: String,
    },
    /// A file is there and cannot be read, or was cut or altered.
    #[error("{file} cannot be used: {cause}")]
    BrokenFile {
        /// Its path in the directory.
        file: String,
        /// Why.
        cause: String,
    },
    /// An entry of a configuration file is missing or has no usable value.
    #[error("{file}: {key}: {what}")]
    BadEntry {
        /// The file.
        file: String,
        /// The entry.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// The architecture is not one that can be run.
    #[error("architecture {name} is not supported; supported are {supported}")]
    UnknownArchitecture {
        /// Its name in config.json.
        name: String,
        /// Those that are.
        supported: String,
    },
    /// An option has a value that would change the result in a way that is not implemented.
    #[error("{file}: {key} = {value} is not supported; supported: {supported}")]
    UnsupportedOption {
        /// The file.
        file: String,
        /// The option.
        key: String,
        /// Its value.
        value: String,
        /// What is.
        supported: String,
    },
    /// A tensor is not in the weight files.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name, without the prefix of its family.
        name: String,
    },
    /// A tensor belongs to a layer or embedding that config.json does not describe.
    #[error("tensor {name} has no place in the model that config.json describes")]
    UnexpectedTensor {
        /// Its name in the file.
        name: String,
    },
    /// A tensor has another shape than config.json says.
    #[error("tensor {name} has shape {found:?}, but config.json asks for {expected:?}")]
    WrongShape {
        /// Its name in the file.
        name: String,
        /// The shape that config.json implies.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor has elements of a type other than f32, f16 and bf16.
    #[error("tensor {name} has elements of type {found}; f32, f16 and bf16 are supported")]
    WrongType {
        /// Its name in the file.
        name: String,
        /// The type.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {name} has {count} elements that are not finite, the first at {position:?}: {value}")]
    NotFinite {
        /// Its name in the file.
        name: String,
        /// Index of the first one.
        position: Vec<usize>,
        /// The first one.
        value: f32,
        /// How many there are.
        count: usize,
    },
    /// A part of an adapter does not go with the rest of it, or with the base: it is one of another base or rank.
    #[error("{name}: {what}")]
    Misfit {
        /// The tensor, or the layer of the base.
        name: String,
        /// Why.
        what: String,
    },
    /// The parts do not make a well-formed graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl std::error::Error for LoadError {}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 40;
        if let [only] = self.problems.as_slice() {
            return write!(f, "the directory cannot be used: {only}");
        }
        write!(f, "the directory cannot be used, {} problems:", self.problems.len())?;
        for problem in self.problems.iter().take(SHOWN) {
            write!(f, "\n  {problem}")?;
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}
