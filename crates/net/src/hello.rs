//! The first words on a connection: who speaks, in which version, and whether the other side will have it.
//!
//! Their layout never changes, so that two versions can still tell each other why they part:
//! magic (6 bytes), version (u16), role or verdict (u8), text length (u8), text. All little-endian.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::link::{ByteReader, SendHalf};
use crate::mailbox::clean_reason;
use crate::{NetError, PartyId, Refusal};

/// Version of everything that travels between endpoints.
pub const PROTOCOL_VERSION: u16 = 3;

const MAGIC: [u8; 6] = *b"TERCET";
const HEAD_BYTES: usize = MAGIC.len() + 4;
const CLIENT: u8 = 0xc1;
const WELCOME: u8 = 0;

/// In which capacity an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// One of the three nodes.
    Party(PartyId),
    /// Somebody who asks the nodes for answers.
    Client,
}

impl Role {
    /// The party, if it is one.
    pub fn party(self) -> Option<PartyId> {
        match self {
            Self::Party(party) => Some(party),
            Self::Client => None,
        }
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Party(party) => party.index() as u8,
            Self::Client => CLIENT,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        if byte == CLIENT { Some(Self::Client) } else { PartyId::from_index(usize::from(byte)).map(Self::Party) }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Party(party) => party.fmt(f),
            Self::Client => f.write_str("client"),
        }
    }
}

/// What the dialling side says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version: u16,
    /// None for a byte that no version of ours sends, or that a later one added.
    pub(crate) role: Option<Role>,
    /// Name and version of its program, for logs.
    pub(crate) software: String,
}

impl Hello {
    pub(crate) async fn send(&self, send: &mut SendHalf) -> Result<(), NetError> {
        let role = self.role.map_or(u8::MAX, Role::to_byte);
        send.write(words(self.version, role, &self.software)).await
    }

    pub(crate) async fn receive(recv: &mut ByteReader) -> Result<Self, NetError> {
        let (version, role, software) = receive_words(recv).await?;
        Ok(Self { version, role: Role::from_byte(role), software })
    }
}

/// The answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Come in; the name and version of the answering program.
    Welcome { software: String },
    /// Stay out.
    Refused(Refusal),
}

impl Answer {
    pub(crate) async fn send(&self, send: &mut SendHalf) -> Result<(), NetError> {
        let (verdict, text) = match self {
            Self::Welcome { software } => (WELCOME, software.as_str()),
            Self::Refused(Refusal::Version { .. }) => (1, ""),
            Self::Refused(Refusal::PartyKey { claimed }) => (2, claimed.as_str()),
            Self::Refused(Refusal::Stranger) => (3, ""),
            Self::Refused(Refusal::Direction) => (4, ""),
            Self::Refused(Refusal::Busy) => (5, ""),
        };
        send.write(words(PROTOCOL_VERSION, verdict, text)).await
    }

    /// `ours` is the version that this side spoke.
    pub(crate) async fn receive(recv: &mut ByteReader, ours: u16) -> Result<Self, NetError> {
        let (theirs, verdict, text) = receive_words(recv).await?;
        Ok(match verdict {
            WELCOME => Self::Welcome { software: text },
            1 => Self::Refused(Refusal::Version { ours, theirs }),
            2 => Self::Refused(Refusal::PartyKey { claimed: text }),
            3 => Self::Refused(Refusal::Stranger),
            4 => Self::Refused(Refusal::Direction),
            5 => Self::Refused(Refusal::Busy),
            other => return Err(NetError::protocol(recv.peer(), format!("an answer of unknown kind {other}"))),
        })
    }
}

fn words(version: u16, byte: u8, text: &str) -> Bytes {
    let mut end = text.len().min(usize::from(u8::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut words = BytesMut::with_capacity(HEAD_BYTES + end);
    words.put_slice(&MAGIC);
    words.put_u16_le(version);
    words.put_u8(byte);
    words.put_u8(end as u8);
    words.put_slice(&text.as_bytes()[..end]);
    words.freeze()
}

async fn receive_words(recv: &mut ByteReader) -> Result<(u16, u8, String), NetError> {
    let head = recv.need(HEAD_BYTES).await?;
    if head[..MAGIC.len()] != MAGIC {
        return Err(NetError::protocol(recv.peer(), "a greeting that is none"));
    }
    let version = u16::from_le_bytes([head[6], head[7]]);
    let text = recv.need(usize::from(head[9])).await?;
    Ok((version, head[8], clean_reason(&String::from_utf8_lossy(&text))))
}
