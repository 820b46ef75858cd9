//! TLS 1.3 between pinned keys: which algorithms, and whom to believe.
//!
//! Key exchange is X25519MLKEM768 and nothing else, so a recording made today stays closed to a quantum computer; a peer
//! that cannot do it fails the handshake. A certificate is believed for its key alone: it must be an Ed25519 key, be the
//! pinned one or on the list, and have signed the handshake. Names, dates and issuers are not looked at.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme, version,
};

use crate::{Identity, NetError, PublicKey};

/// The application protocol that both sides must name.
pub(crate) const ALPN: &[u8] = b"tercet/1";

/// Whose certificate passes.
#[derive(Clone, Debug)]
pub(crate) enum Allowed {
    /// This key: the party that was dialled.
    Pinned(PublicKey),
    /// Any of these: the other parties and the listed clients.
    Listed(BTreeSet<PublicKey>),
    /// Every key that signs: clients are let in without a list, because the configuration says so.
    Open,
}

impl Allowed {
    fn passes(&self, key: &PublicKey) -> bool {
        match self {
            Self::Pinned(pinned) => pinned == key,
            Self::Listed(keys) => keys.contains(key),
            Self::Open => true,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    // AES-128-GCM is the fastest here, and QUIC needs it for its first packets.
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn setup(error: &Error) -> NetError {
    NetError::local(format!("TLS setup: {error}"))
}

/// For the side that listens.
pub(crate) fn server_config(identity: &Identity, allowed: Allowed) -> Result<ServerConfig, NetError> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| setup(&error))?
        .with_client_cert_verifier(Arc::new(KeyVerifier { allowed, provider }))
        .with_single_cert(vec![identity.certificate()], identity.private_key())
        .map_err(|error| setup(&error))?;
    config.alpn_protocols = vec![ALPN.into()];
    // Every connection shows its key anew; nothing is resumed and nothing is sent early.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// For the side that dials.
pub(crate) fn client_config(identity: &Identity, pinned: PublicKey) -> Result<ClientConfig, NetError> {
    let provider = provider();
    let verifier = KeyVerifier { allowed: Allowed::Pinned(pinned), provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| setup(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![identity.certificate()], identity.private_key())
        .map_err(|error| setup(&error))?;
    config.alpn_protocols = vec![ALPN.into()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The key of a certificate, if it is an Ed25519 one.
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    PublicKey::from_spki(parsed.subject_public_key_info().as_ref())
}

/// Believes keys, not certificates.
#[derive(Debug)]
struct KeyVerifier {
    allowed: Allowed,
    provider: Arc<CryptoProvider>,
}

impl KeyVerifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let key = key_of(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.allowed.passes(&key) {
            Ok(())
        } else {
            // Becomes the alert `access_denied`, which the other side reads as "stranger".
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConnection, NamedGroup, ServerConnection};

    use super::*;

    fn shake(client: ClientConfig, server: ServerConfig) -> Result<(ClientConnection, ServerConnection), Error> {
        let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("tercet").unwrap())?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        for _ in 0..4 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok((client, server))
    }

    #[test]
    fn pinned_keys_shake_hands_over_the_hybrid_group() {
        let (node, peer) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let server = server_config(&node, Allowed::Listed(BTreeSet::from([peer.public_key()]))).unwrap();
        let client = client_config(&peer, node.public_key()).unwrap();
        let (client, server) = shake(client, server).unwrap();
        assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(server.alpn_protocol(), Some(ALPN));
        assert_eq!(key_of(&server.peer_certificates().unwrap()[0]), Some(peer.public_key()));
        assert_eq!(key_of(&client.peer_certificates().unwrap()[0]), Some(node.public_key()));
    }

    #[test]
    fn a_peer_without_the_hybrid_fails() {
        let (node, peer) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let mut classical = aws_lc_rs::default_provider();
        classical.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        let classical = Arc::new(classical);
        let verifier = KeyVerifier { allowed: Allowed::Open, provider: classical.clone() };
        let mut client = ClientConfig::builder_with_provider(classical)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(vec![peer.certificate()], peer.private_key())
            .unwrap();
        client.alpn_protocols = vec![ALPN.into()];
        assert!(shake(client, server_config(&node, Allowed::Open).unwrap()).is_err());
    }

    #[test]
    fn other_keys_and_other_kinds_of_keys_fail() {
        let [node, peer, other] = [(); 3].map(|()| Identity::generate().unwrap());
        let listed = Allowed::Listed(BTreeSet::from([other.public_key()]));
        let client = client_config(&peer, node.public_key()).unwrap();
        assert!(shake(client, server_config(&node, listed).unwrap()).is_err(), "an unlisted key passed");
        let client = client_config(&peer, other.public_key()).unwrap();
        assert!(
            shake(client, server_config(&node, Allowed::Open).unwrap()).is_err(),
            "another key passed for the pinned"
        );

        let elliptic = rcgen::generate_simple_self_signed(vec!["tercet".into()]).unwrap();
        assert_eq!(key_of(elliptic.cert.der()), None, "an ECDSA key passed for an Ed25519 one");
        for garbage in [&b""[..], b"\x30\x00", &[0xff; 300]] {
            assert_eq!(key_of(&CertificateDer::from(garbage.to_vec())), None);
        }
    }
}
