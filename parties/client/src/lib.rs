//! parties/client
