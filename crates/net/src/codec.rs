//! The one place that turns control messages into bytes and back.
//!
//! Fixed-width little-endian integers; the length is checked against a limit before anything is read, and no length
//! inside a message can make the reader allocate more than [`LARGEST_BYTES`]. Tensors never pass through here.

use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Largest message of any kind, in bytes.
pub const LARGEST_BYTES: usize = 64 << 20;

/// Why bytes are no message, or a message no bytes.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// The message does not fit. The sender's fault.
    #[error("a message of {bytes} bytes, over the limit of {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What was allowed.
        limit: usize,
    },
    /// The bytes are not such a message. The sender's fault.
    #[error("bytes that are no such message: {0}")]
    Malformed(String),
    /// The message holds something that has no encoding. This side's fault.
    #[error("a message that cannot be encoded: {0}")]
    Unencodable(String),
}

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<LARGEST_BYTES>()
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, configuration())
        .map_err(|error| CodecError::Unencodable(error.to_string()))?;
    if bytes.len() > LARGEST_BYTES {
        return Err(CodecError::TooLarge { bytes: bytes.len(), limit: LARGEST_BYTES });
    }
    Ok(bytes)
}

/// The bytes of a message that holds seeds or keys: wiped when they are dropped, and so is what
/// they outgrew on the way.
pub fn encode_secret<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, CodecError> {
    let mut out = Wiped::default();
    bincode::serde::encode_into_writer(message, &mut out, configuration())
        .map_err(|error| CodecError::Unencodable(error.to_string()))?;
    if out.0.len() > LARGEST_BYTES {
        return Err(CodecError::TooLarge { bytes: out.0.len(), limit: LARGEST_BYTES });
    }
    Ok(out.0)
}

/// Bytes that leave no copy of themselves where they grow.
#[derive(Default)]
struct Wiped(Zeroizing<Vec<u8>>);

impl Writer for Wiped {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two().max(1 << 10)));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// The message in these bytes, all of them, of which there may be `limit`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    let limit = limit.min(LARGEST_BYTES);
    if bytes.len() > limit {
        return Err(CodecError::TooLarge { bytes: bytes.len(), limit });
    }
    let (message, used) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|error| CodecError::Malformed(error.to_string().chars().take(200).collect()))?;
    if used != bytes.len() {
        return Err(CodecError::Malformed(format!("{} bytes beyond its end", bytes.len() - used)));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_nothing_else_does() {
        let message = (7u32, String::from("plan"), vec![1u64, 2, 3], Some(true));
        let bytes = encode(&message).unwrap();
        assert_eq!(decode::<(u32, String, Vec<u64>, Option<bool>)>(&bytes, 1000).unwrap(), message);
        for cut in 0..bytes.len() {
            assert!(decode::<(u32, String, Vec<u64>, Option<bool>)>(&bytes[..cut], 1000).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode::<(u32, String, Vec<u64>, Option<bool>)>(&longer, 1000).is_err());
        let over = decode::<Vec<u8>>(&bytes, 5);
        assert_eq!(over, Err(CodecError::TooLarge { bytes: bytes.len(), limit: 5 }));
    }

    #[test]
    fn secret_messages_have_the_same_bytes() {
        for len in [0, 1, 1000, 1 << 10, (1 << 16) + 3] {
            let message = (vec![7u8; len], Some([3u8; 32]), "a name", vec![u64::MAX; len / 8]);
            assert_eq!(*encode_secret(&message).unwrap(), encode(&message).unwrap());
        }
        let over = vec![0u64; LARGEST_BYTES / 8];
        assert!(matches!(encode_secret(&over), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn a_huge_length_inside_is_refused_before_it_is_believed() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.extend([0; 16]);
        assert!(matches!(decode::<Vec<u8>>(&bytes, 1000), Err(CodecError::Malformed(_))));
        assert!(matches!(decode::<String>(&bytes, 1000), Err(CodecError::Malformed(_))));
    }
}
