//! Authenticated links between parties: QUIC, TCP with TLS 1.3, memory and shaped, behind one [`Transport`] trait.

mod party;
mod transport;

pub use party::PartyId;
pub use transport::{FRAME_HEADER_BYTES, Meter, Traffic, Transport, TransportError};
