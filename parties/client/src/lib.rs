//! The client SDK: the only holder of plaintext.
//!
//! A [`Client`] is connected to the three nodes. It turns texts and images into shares, one for each node, of which no
//! single one says anything about the input, and puts the three shares of the answer together. Every component of an
//! answer arrives twice, from two nodes; where two copies differ the answer is refused.
//!
//! ```no_run
//! use tercet_client::{Client, ClientConfig, Options};
//!
//! # async fn run(config: ClientConfig) -> Result<(), tercet_client::Error> {
//! let client = Client::connect(config).await?;
//! let found = client.embed("minilm", &["a secret sentence"], &Options::default()).await?;
//! println!("{} numbers", found.vectors[0].len());
//! # Ok(())
//! # }
//! ```
//!
//! A model of texts to come is asked to generate:
//!
//! ```no_run
//! # use tercet_client::{Client, Error, GenerateOptions};
//! # async fn run(client: Client) -> Result<(), Error> {
//! let options = GenerateOptions { max_new_tokens: 64, stop: vec!["\n".into()], ..Default::default() };
//! let mut generation = client.generate("gpt", "A secret beginning", &options).await?;
//! while let Some(token) = generation.next().await {
//!     print!("{}", token?.text);
//! }
//! println!(" ({} tokens)", generation.usage().new_tokens);
//! # Ok(())
//! # }
//! ```
//!
//! What the nodes learn of a request: the model, the number of inputs and their padded length (the exact number of tokens
//! of the longest, unless [`Options::bucket`] rounds it up), and when it came.

mod answer;
mod client;
mod drive;
mod error;
mod face;
#[cfg(test)]
mod fixture;
mod generation;
mod input;
mod links;
mod open;
mod options;
mod prepared;
mod sampler;
mod share;
mod stops;
mod trio;

pub use answer::{Classification, Classifications, Embeddings, RequestUsage};
pub use client::{Client, ClientConfig, NodeAddress};
pub use error::Error;
pub use face::ModelFace;
pub use generation::{Finish, GenerateOptions, Generation, GenerationUsage, Score, Token};
pub use input::Inputs;
pub use options::Options;
pub use prepared::Prepared;
pub use sampler::Sampling;
pub use tercet_model::Interface;
pub use tercet_net::{
    Fault, Identity, LinkProfile, ModelCard, NodeStatus, PartyId, PeerAddress, PublicKey, Work, WorkEntry, WorkProfile,
};
