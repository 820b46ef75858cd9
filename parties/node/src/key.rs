//! What requests are called at all three nodes.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tercet_net::{GenerationOptions, NetError, PublicKey, codec};

/// A request or a generation: whose it is, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Name {
    /// The client's public key, so that no client can meddle with another's request.
    client: [u8; 32],
    id: [u8; 16],
}

#[cfg(test)]
impl Name {
    pub(crate) fn for_tests(number: u8) -> Name {
        Name { client: [1; 32], id: [number; 16] }
    }
}

/// What one session computes for one client: a request, or a step of a generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct RequestKey {
    pub(crate) name: Name,
    /// What all three must have been told alike about a generation, in short; zero for other requests.
    terms: [u8; 8],
    /// Steps of a generation before this one.
    pub(crate) step: u32,
}

impl RequestKey {
    pub(crate) fn new(client: &PublicKey, id: [u8; 16]) -> RequestKey {
        RequestKey { name: Name { client: *client.as_bytes(), id }, terms: [0; 8], step: 0 }
    }

    /// The first step of a generation. Nodes that were told different things know it by different keys, so it never runs.
    pub(crate) fn generation(
        client: &PublicKey,
        id: [u8; 16],
        options: &GenerationOptions,
    ) -> Result<RequestKey, NetError> {
        let told = codec::encode(options).map_err(|error| NetError::Local { what: error.to_string() })?;
        let hash = Sha256::new().chain_update(b"tercet generation terms v1").chain_update(told).finalize();
        let terms = std::array::from_fn(|at| hash[at]);
        Ok(RequestKey { terms, ..RequestKey::new(client, id) })
    }

    /// All keys under one name.
    pub(crate) fn all_of(name: Name) -> RangeInclusive<RequestKey> {
        RequestKey { name, terms: [0; 8], step: 0 }..=RequestKey { name, terms: [u8::MAX; 8], step: u32::MAX }
    }

    /// The step after this one.
    pub(crate) fn next(self) -> RequestKey {
        RequestKey { step: self.step + 1, ..self }
    }
}

impl std::fmt::Display for RequestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.name.id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        if self.step > 0 { write!(f, "+{}", self.step) } else { Ok(()) }
    }
}

impl std::fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}
