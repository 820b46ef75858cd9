//! protocols/plain
