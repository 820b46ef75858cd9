//! Three nodes on loopback, as the tests here want them.
#![allow(dead_code, reason = "each test program uses a part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tercet_net::{
    ClientPolicy, Connection, Endpoint, EndpointConfig, Identity, LinkKind, LinkProfile, LinkShape, PartyId,
    PeerAddress, PublicKey, SessionLinks, SessionSettings,
};
use tokio::runtime::Runtime;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Three keys in PEM files' stead, so that a node can come back with the key it had.
pub(crate) struct Keys {
    folder: std::path::PathBuf,
    pub(crate) public: [Option<PublicKey>; 3],
}

impl Keys {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("tercet-net-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let public = PartyId::ALL.map(|party| {
            let identity = Identity::generate().unwrap();
            identity.save(&folder.join(format!("{party}.key"))).unwrap();
            Some(identity.public_key())
        });
        Self { folder, public }
    }

    pub(crate) fn identity(&self, party: PartyId) -> Identity {
        Identity::load(&self.folder.join(format!("{party}.key"))).unwrap()
    }

    pub(crate) fn config(&self, party: PartyId, address: SocketAddr) -> EndpointConfig {
        let mut config = EndpointConfig::node(self.identity(party), party, address, self.public);
        config.profile = LinkProfile::Loopback;
        config
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Three connected nodes in one runtime.
pub(crate) struct Nodes {
    pub(crate) keys: Keys,
    pub(crate) endpoints: [Endpoint; 3],
    pub(crate) kind: LinkKind,
    next_session: AtomicU64,
}

impl Nodes {
    pub(crate) async fn start(kind: LinkKind) -> Self {
        Self::start_with(kind, LinkProfile::Loopback, LinkShape::NONE).await
    }

    pub(crate) async fn start_with(kind: LinkKind, profile: LinkProfile, shape: LinkShape) -> Self {
        let keys = Keys::new();
        let endpoints = PartyId::ALL.map(|party| {
            let mut config = keys.config(party, any_port());
            config.clients = ClientPolicy::Open;
            config.profile = profile;
            config.shape = shape;
            Endpoint::bind(config).unwrap()
        });
        let nodes = Self { keys, endpoints, kind, next_session: AtomicU64::new(1) };
        for endpoint in &nodes.endpoints {
            endpoint.keep_parties(nodes.addresses()).unwrap();
        }
        for party in PartyId::ALL {
            nodes.connections(party).await;
        }
        nodes
    }

    pub(crate) fn address(&self, party: PartyId) -> PeerAddress {
        PeerAddress::new(self.kind, self.endpoints[party.index()].local_address().unwrap())
    }

    pub(crate) fn addresses(&self) -> [Option<PeerAddress>; 3] {
        PartyId::ALL.map(|party| Some(self.address(party)))
    }

    pub(crate) async fn connections(&self, party: PartyId) -> [Connection; 2] {
        let [one, other] = party.others();
        let endpoint = &self.endpoints[party.index()];
        [endpoint.wait_party(one, PATIENCE).await.unwrap(), endpoint.wait_party(other, PATIENCE).await.unwrap()]
    }

    pub(crate) async fn session(&self, settings: [SessionSettings; 3]) -> [SessionLinks; 3] {
        let id = u128::from(self.next_session.fetch_add(1, Ordering::Relaxed));
        let open = async |party: PartyId| {
            let [one, other] = self.connections(party).await;
            SessionLinks::establish(party, [&one, &other], id, settings[party.index()]).await.unwrap()
        };
        let (p0, p1, p2) = tokio::join!(open(PartyId::P0), open(PartyId::P1), open(PartyId::P2));
        [p0, p1, p2]
    }

    /// Somebody, who lets themselves be let in because these nodes are open.
    pub(crate) fn client(&self) -> Endpoint {
        let mut config = EndpointConfig::client(Identity::generate().unwrap(), self.keys.public);
        config.profile = LinkProfile::Loopback;
        Endpoint::bind(config).unwrap()
    }
}
