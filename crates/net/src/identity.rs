//! Who a node or client is: one Ed25519 key, in a PEM file that only its owner reads.
//!
//! There is no certificate authority. A peer is known by its public key, written in a peer list; the certificate that
//! TLS wants is self-signed, made at load time, and carries nothing else.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::secret_file::{self, OpenError};

/// The name in every certificate and every TLS hello: names mean nothing here, keys do.
pub(crate) const TLS_NAME: &str = "tercet";

/// The DER of an Ed25519 SubjectPublicKeyInfo before its 32 key bytes (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Bytes of a key file that are looked at: one of ours has 120.
const KEY_FILE_BYTES: usize = 4096;

/// Bytes of checksum in a written public key.
const CHECKSUM_BYTES: usize = 4;

/// An Ed25519 public key. Written as `tercet:` and 72 lower-case hex digits, the last 8 of which are a checksum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key in a DER SubjectPublicKeyInfo, if that is an Ed25519 key and nothing else.
    pub(crate) fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&SPKI_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    /// The first digits: enough to tell keys apart in a log, not to pin one.
    pub fn short(&self) -> String {
        format!("tercet:{}…", hex(&self.0[..4]))
    }

    fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let digest = Sha256::new().chain_update(b"tercet public key").chain_update(self.0).finalize();
        std::array::from_fn(|at| digest[at])
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tercet:{}{}", hex(&self.0), hex(&self.checksum()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

impl FromStr for PublicKey {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let bad = |why| IdentityError::BadKeyText { why };
        let digits = text.trim().strip_prefix("tercet:").ok_or(bad("it does not start with `tercet:`"))?;
        if digits.len() != 2 * (32 + CHECKSUM_BYTES) {
            return Err(bad("it has not 72 digits after `tercet:`"));
        }
        let mut bytes = [0u8; 32 + CHECKSUM_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |at: u8| match at {
                b'0'..=b'9' => Some(at - b'0'),
                b'a'..=b'f' => Some(at - b'a' + 10),
                _ => None,
            };
            let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or(bad("it holds something other than 0-9a-f"))?;
            *byte = high << 4 | low;
        }
        let key = Self(std::array::from_fn(|at| bytes[at]));
        if key.checksum() != bytes[32..] {
            return Err(bad("its checksum is wrong: a digit was mistyped"));
        }
        Ok(key)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What can be wrong with keys and their files.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The text is no public key.
    #[error("not a public key: {why}")]
    BadKeyText {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The key file cannot be read or written.
    #[error("key file {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Others could read the private key.
    #[error(
        "key file {path} can be read or written by others (mode {mode:o}): run `chmod 600 {path}`, or make a new key"
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no Ed25519 private key.
    #[error("key file {path} holds no Ed25519 private key in PEM form")]
    NoKey {
        /// Which file.
        path: PathBuf,
    },
    /// The key could not be made or used.
    #[error("key generation: {0}")]
    Generation(String),
}

/// A private key and the certificate made from it. Prints its public key only.
pub struct Identity {
    private: Zeroizing<Vec<u8>>,
    certificate: CertificateDer<'static>,
    public: PublicKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish_non_exhaustive()
    }
}

impl Identity {
    /// A fresh key from the operating system's randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let generated = KeyPair::generate_for(&PKCS_ED25519);
        Self::from_pair(&generated.map_err(|error| IdentityError::Generation(error.to_string()))?)
    }

    /// Reads the key file. It must be readable by its owner alone.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let file = |source| IdentityError::File { path: path.into(), source };
        let mut opened = secret_file::open(path).map_err(|error| match error {
            OpenError::Io(source) => file(source),
            OpenError::Exposed { mode } => IdentityError::Exposed { path: path.into(), mode },
        })?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES));
        opened.by_ref().take(KEY_FILE_BYTES as u64).read_to_end(&mut bytes).map_err(file)?;
        let no_key = || IdentityError::NoKey { path: path.into() };
        let text = std::str::from_utf8(&bytes).map_err(|_| no_key())?;
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(text, &PKCS_ED25519).map_err(|_| no_key())?;
        Self::from_pair(&pair)
    }

    /// Writes the key file, readable by its owner alone. An existing file is never overwritten.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let file = |source| IdentityError::File { path: path.into(), source };
        let pair =
            KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(self.private.to_vec()), &PKCS_ED25519)
                .map_err(|error| IdentityError::Generation(error.to_string()))?;
        let text = Zeroizing::new(pair.serialize_pem());
        secret_file::write_new(path, text.as_bytes()).map_err(file)
    }

    /// The public half, by which others know this identity.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.private.to_vec()))
    }

    /// A secret that only this identity can compute again, for one named use.
    pub(crate) fn derived(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(Sha256::new().chain_update(label).chain_update(&*self.private).finalize().into())
    }

    fn from_pair(pair: &KeyPair) -> Result<Self, IdentityError> {
        let failed = |error: rcgen::Error| IdentityError::Generation(error.to_string());
        let mut params = CertificateParams::new(vec![TLS_NAME.into()]).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        let certificate = params.self_signed(pair).map_err(failed)?.der().clone();
        let public = pair.public_key_raw().try_into().map(PublicKey);
        let public = public.map_err(|_| IdentityError::Generation("an Ed25519 key of unusual length".into()))?;
        Ok(Self { private: Zeroizing::new(pair.serialize_der()), certificate, public })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tercet-identity-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_saved_key_comes_back_and_is_private() {
        let folder = scratch("save");
        let path = folder.join("node.key");
        let identity = Identity::generate().unwrap();
        identity.save(&path).unwrap();
        assert_eq!(Identity::load(&path).unwrap().public_key(), identity.public_key());
        assert!(matches!(identity.save(&path), Err(IdentityError::File { .. })), "overwrote a key");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            assert!(matches!(Identity::load(&path), Err(IdentityError::Exposed { mode: 0o644, .. })));
        }
        let text = format!("{identity:?}");
        assert!(text.contains(&identity.public_key().short()) && text.len() < 80, "{text}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn other_files_are_no_keys() {
        let folder = scratch("other");
        let path = folder.join("node.key");
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        for text in ["", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &other] {
            let _ = std::fs::remove_file(&path);
            secret_file::write_new(&path, text.as_bytes()).unwrap();
            assert!(matches!(Identity::load(&path), Err(IdentityError::NoKey { .. })), "{text}");
        }
        assert!(matches!(Identity::load(&folder.join("none")), Err(IdentityError::File { .. })));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn written_keys_are_checked() {
        let key = PublicKey::from_bytes(std::array::from_fn(|at| at as u8 * 7));
        let text = key.to_string();
        assert_eq!(text.parse::<PublicKey>().unwrap(), key);
        assert_eq!(text.len(), 7 + 72);
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'3' { b'4' } else { b'3' };
            assert!(String::from_utf8(wrong).unwrap().parse::<PublicKey>().is_err(), "digit {at}");
        }
        assert!(text.to_uppercase().parse::<PublicKey>().is_err());
        assert!(text[..text.len() - 1].parse::<PublicKey>().is_err());
    }
}
