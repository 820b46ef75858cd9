//! The daemon of one party: holds its shares of models, meets the two others, and runs sessions for clients.
//!
//! A client sends its three parts to the three nodes under one number. P1 leads: when a place is free it takes the oldest
//! request and all that may run beside it, and proposes that batch to P0 and P2 by its public metadata. Each checks that it
//! holds the same model and all parts, and accepts the plan by its hash. Then every node runs the session on a thread of
//! its own and sends its part of the outputs to the clients, who alone can put them together.
//!
//! A generation lives on its client's channel: between its steps, each of which is a session like any other, a node keeps its
//! part of the keys and values. Generations decode together whatever their positions, and join and leave between steps.
//!
//! Whatever fails, fails for those who took part in it: a session ends with an error to its clients, a client that sends
//! nonsense hears so, a node that dies is dialled until it is back.

mod clients;
mod config;
mod control;
mod counters;
mod daemon;
mod desk;
mod follow;
mod generate;
mod held;
mod key;
mod lead;
mod models;
mod plan;
mod quota;
mod reader;
mod session;
mod shape;
mod shared;
mod shown;
mod stay;
mod turns;

pub use config::{Config, ConfigError, KEYS, Loaded, PeerConfig, Problem, Setting};
pub use daemon::{Node, StartError};
pub use models::ModelError;
