//! crates/engine
