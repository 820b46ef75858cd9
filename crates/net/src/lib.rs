//! Authenticated links between parties: QUIC, TCP with TLS 1.3, memory and shaped, behind one [`Transport`] trait.
//!
//! From the outside in: an [`Endpoint`] is one port of a node (or a client without one). It yields [`Connection`]s to
//! peers whose keys are pinned. A connection carries control messages and opens [`ByteChannel`]s for requests. Two
//! connections make the [`SessionLinks`] of one session, which protocol code uses as a blocking [`Transport`]; in tests
//! and oracles [`memory_world`] takes their place.

mod address;
mod channel;
pub mod codec;
mod config;
mod connection;
mod egress;
mod endpoint;
mod error;
mod eyeballs;
mod greeting;
mod greetings;
mod hello;
mod identity;
mod ledger;
mod link;
mod mailbox;
mod memory;
mod mux;
mod party;
mod places;
mod profile;
mod quic;
mod request;
pub mod secret_file;
mod seed;
mod session;
mod shaped;
mod tcp;
mod tls;
mod transport;

pub use address::{AddressError, LinkKind, PeerAddress};
pub use channel::{ByteChannel, ByteReceiver, ByteSender, ChannelId, ChannelKind};
pub use config::{ClientPolicy, EndpointConfig, Listen};
pub use connection::{CONTROL_LIMIT_BYTES, Connection, Peer};
pub use endpoint::Endpoint;
pub use error::{NetError, Refusal};
pub use hello::{PROTOCOL_VERSION, Role};
pub use identity::{Identity, IdentityError, PublicKey};
pub use ledger::{Full, Lease, Ledger};
pub use link::WireBytes;
pub use mailbox::FrameLimits;
pub use memory::{MemoryTransport, memory_world, memory_world_with};
pub use party::PartyId;
pub use profile::{Work, WorkEntry, WorkProfile};
pub use quic::{CLIENT_CHANNELS, LinkProfile, ProfileError};
pub use request::{
    ClientMessage, Fault, GenerationOptions, InputShare, ModelCard, NodeMessage, NodeStatus, NoiseSeed, OutputShare,
    PeerStatus, Stream, TokenChoice, Usage,
};
pub use seed::PairSeed;
pub use session::{SessionLinks, SessionSettings};
pub use shaped::{LinkShape, ShapeError};
pub use transport::{FRAME_HEADER_BYTES, Meter, Traffic, Transport, TransportError};
