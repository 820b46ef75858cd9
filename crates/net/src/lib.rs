//! Authenticated links between parties: QUIC, TCP with TLS 1.3, memory and shaped, behind one [`Transport`] trait.

mod mailbox;
mod memory;
mod party;
mod shaped;
mod transport;

pub use mailbox::FrameLimits;
pub use memory::{MemoryTransport, memory_world, memory_world_with};
pub use party::PartyId;
pub use shaped::{LinkShape, ShapeError};
pub use transport::{FRAME_HEADER_BYTES, Meter, Traffic, Transport, TransportError};
