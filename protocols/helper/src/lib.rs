//! protocols/helper
