//! The first exchange on a proven connection: roles, versions, refusals, and the seed of two parties.

use std::time::Duration;

use crate::connection::Greeted;
use crate::hello::{Answer, Hello};
use crate::link::{ByteReader, Link};
use crate::places::ClientPlaces;
use crate::{Connection, EndpointConfig, NetError, PROTOCOL_VERSION, PartyId, Peer, Refusal, Role, seed};

impl EndpointConfig {
    /// The listening side of a greeting.
    pub(crate) async fn welcome(&self, link: Link, client_places: &ClientPlaces) -> Result<Connection, NetError> {
        let address = link.address().to_owned();
        let key = link.peer_key().ok_or_else(|| NetError::protocol(&address, "no key"))?;
        let (mut send, recv) = link.accept().await?;
        let mut recv = ByteReader::new(recv);
        let hello = Hello::receive(&mut recv).await?;
        let admitted = match hello.version {
            PROTOCOL_VERSION => self.admit(hello.role, &key),
            theirs => Err(Refusal::Version { ours: theirs, theirs: PROTOCOL_VERSION }),
        };
        let place = match admitted {
            Ok(Role::Client) => match client_places.take(key, &address).await {
                Some(place) => Ok((Role::Client, Some(place))),
                None => Err(Refusal::Busy),
            },
            Ok(role) => Ok((role, None)),
            Err(refusal) => Err(refusal),
        };
        let (role, place) = match place {
            Ok(admitted) => admitted,
            Err(refusal) => {
                Answer::Refused(refusal.clone()).send(&mut send).await?;
                send.finish();
                // The other side hangs up when it has read why.
                let _ = tokio::time::timeout(Duration::from_secs(2), link.closed()).await;
                return Err(NetError::TurnedAway { peer: address, why: refusal.complaint() });
            }
        };
        Answer::Welcome { software: self.software.clone() }.send(&mut send).await?;
        let seed = match (self.role, role) {
            (Role::Party(mine), Role::Party(theirs)) => {
                link.widen();
                Some(seed::agree(&link, &mut send, &mut recv, mine, theirs).await?)
            }
            _ => {
                link.narrow();
                None
            }
        };
        let peer = Peer { role, key, software: hello.software, address };
        let shape = self.shape;
        Ok(Connection::new(Greeted { link, me: self.role, peer, seed, control: (send, recv), shape, place }))
    }

    /// The dialling side of a greeting.
    pub(crate) async fn introduce(&self, link: Link, party: PartyId) -> Result<Connection, NetError> {
        let hello = Hello { version: PROTOCOL_VERSION, role: Some(self.role), software: self.software.clone() };
        self.introduce_with(link, party, hello).await
    }

    async fn introduce_with(&self, link: Link, party: PartyId, hello: Hello) -> Result<Connection, NetError> {
        let address = link.address().to_owned();
        let key = link.peer_key().ok_or_else(|| NetError::protocol(&address, "no key"))?;
        let (mut send, recv) = link.open().await?;
        let mut recv = ByteReader::new(recv);
        hello.send(&mut send).await?;
        let software = match Answer::receive(&mut recv, hello.version).await? {
            Answer::Welcome { software } => software,
            Answer::Refused(refusal) => {
                link.close("understood");
                return Err(NetError::Refused { peer: address, refusal });
            }
        };
        let seed = match self.role {
            Role::Party(mine) => {
                link.widen();
                Some(seed::agree(&link, &mut send, &mut recv, mine, party).await?)
            }
            Role::Client => None,
        };
        let peer = Peer { role: Role::Party(party), key, software, address };
        let shape = self.shape;
        Ok(Connection::new(Greeted { link, me: self.role, peer, seed, control: (send, recv), shape, place: None }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::quic::QuicPort;
    use crate::{ClientPolicy, Endpoint, Identity, LinkProfile, LinkShape, PublicKey, tcp, tls};

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    struct Scene {
        node: Endpoint,
        client: EndpointConfig,
        node_key: PublicKey,
    }

    /// P2, which expects P0 and P1 of other keys, and somebody whom it has on its list of clients.
    fn scene() -> Scene {
        let [p0, p1, p2, somebody] = [(); 4].map(|()| Identity::generate().unwrap());
        let keys = [Some(p0.public_key()), Some(p1.public_key()), Some(p2.public_key())];
        let node_key = p2.public_key();
        let mut config = EndpointConfig::node(p2, PartyId::P2, ANY, keys);
        config.clients = ClientPolicy::Listed(BTreeSet::from([somebody.public_key()]));
        Scene { node: Endpoint::bind(config).unwrap(), client: EndpointConfig::client(somebody, keys), node_key }
    }

    impl Scene {
        async fn refusal(&self, hello: Hello, over_tcp: bool) -> NetError {
            let address = self.node.local_address().unwrap();
            let tls = tls::client_config(&self.client.identity, self.node_key).unwrap();
            let port = QuicPort::bind(ANY, None, LinkProfile::default(), LinkShape::NONE, &[0; 32]).unwrap();
            let link = match over_tcp {
                true => Link::Tcp(tcp::dial(address, tls, LinkProfile::default().keep_alive_and_idle()).await.unwrap()),
                false => Link::quic(port.dial(address, tls).await.unwrap()),
            };
            self.client.introduce_with(link, PartyId::P2, hello).await.expect_err("was let in")
        }
    }

    fn hello(version: u16, role: Option<Role>) -> Hello {
        Hello { version, role, software: "test".into() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_refused_hears_why() {
        let scene = scene();
        for over_tcp in [false, true] {
            let later = PROTOCOL_VERSION + 1;
            let error = scene.refusal(hello(later, Some(Role::Client)), over_tcp).await;
            let version = Refusal::Version { ours: later, theirs: PROTOCOL_VERSION };
            assert!(matches!(&error, NetError::Refused { refusal, .. } if *refusal == version), "{error}");

            // A listed client that claims to be P0, and one that claims to be a role of the future.
            for role in [Some(Role::Party(PartyId::P0)), None] {
                let error = scene.refusal(hello(PROTOCOL_VERSION, role), over_tcp).await;
                let refused = matches!(&error, NetError::Refused { refusal: Refusal::PartyKey { .. }, .. });
                assert!(refused, "{error}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn greetings_that_are_none_are_turned_away() {
        let scene = scene();
        let address = scene.node.local_address().unwrap();
        let tls = tls::client_config(&scene.client.identity, scene.node_key).unwrap();
        let link = Link::Tcp(tcp::dial(address, tls, LinkProfile::default().keep_alive_and_idle()).await.unwrap());
        let (mut send, _recv) = link.open().await.unwrap();
        send.write(bytes::Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")).await.unwrap();
        let reason = link.closed().await;
        assert!(matches!(reason, NetError::Lost { .. }), "{reason}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_party_that_should_wait_is_told_so() {
        let [p0, p1, p2] = [(); 3].map(|()| Identity::generate().unwrap());
        let keys = [Some(p0.public_key()), Some(p1.public_key()), Some(p2.public_key())];
        let p1 = Endpoint::bind(EndpointConfig::node(p1, PartyId::P1, ANY, keys)).unwrap();
        let p2 = Endpoint::bind(EndpointConfig::node(p2, PartyId::P2, ANY, keys)).unwrap();
        let address = crate::PeerAddress::new(crate::LinkKind::Quic, p1.local_address().unwrap());
        let error = p2.dial(PartyId::P1, &address).await.expect_err("was let in");
        assert!(matches!(&error, NetError::Refused { refusal: Refusal::Direction, .. }), "{error}");
    }
}
