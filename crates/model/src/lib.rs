//! crates/model
