//! parties/node
