//! protocols/core
