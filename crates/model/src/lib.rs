//! From a Hugging Face directory of an encoder or a decoder to what the engine runs: a public [`Graph`](graph::Graph), its
//! secret tensors and a tokenizer. Beside it the float oracle, which runs the same graph in plaintext, and the calibration
//! that finds how large every value gets.
//!
//! This crate knows nothing of sharing. A [`Model`] is what the owner of a model has in the clear; a graph and a
//! tokenizer are what everybody may have.

mod adapter;
mod attention;
mod builder;
mod calibration;
mod config;
mod decoder_builder;
mod decoder_config;
mod encoder_builder;
mod encoder_config;
mod error;
mod evaluation;
mod fields;
mod gate;
mod generation;
pub mod graph;
mod image;
mod interface;
mod model;
mod oracle;
mod pooling;
mod recipe;
mod rotary;
mod shape;
mod stats;
mod tokenizer;
mod tokenizer_config;
pub mod validate;
mod weights;

pub use adapter::Adapter;
pub use calibration::{Ranges, calibrate, calibrate_with, calibration_inputs, text_inputs};
pub use error::{LoadError, Problem};
pub use gate::Gate;
pub use generation::Generation;
pub use image::ImageError;
pub use interface::{Decoder, Interface, RowInput};
pub use model::{Model, TensorError};
pub use oracle::{Matrix, Oracle, OracleError, OracleInput, Precision, Trace};
pub use stats::{AttentionStats, ExpertsStats, GatedStats, NodeStats, NormStats, RouteStats, Span};
pub use tokenizer::{TextStream, Tokenizer, TokenizerError, Truncate};
pub use validate::GraphError;
