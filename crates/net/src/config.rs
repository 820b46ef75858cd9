//! How an endpoint is set up, and whom it lets in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::tls::Allowed;
use crate::{Identity, LinkProfile, LinkShape, NetError, PartyId, PublicKey, Refusal, Role};

/// The port of a node: the same number for UDP and TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Whether to listen for QUIC.
    pub quic: bool,
    /// Whether to listen for TLS over TCP.
    pub tcp: bool,
}

/// Which clients are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientPolicy {
    /// Those whose keys are listed.
    Listed(BTreeSet<PublicKey>),
    /// Everyone with any key.
    Open,
}

/// How an endpoint is set up.
#[derive(Debug)]
pub struct EndpointConfig {
    /// Its key.
    pub identity: Identity,
    /// In which capacity it speaks.
    pub role: Role,
    /// Its port; clients have none.
    pub listen: Option<Listen>,
    /// The pinned keys of the parties, by index; a node's own entry is not needed.
    pub parties: [Option<PublicKey>; 3],
    /// Who may be a client here.
    pub clients: ClientPolicy,
    /// How many clients may be connected at once.
    pub clients_at_once: usize,
    /// The kind of network.
    pub profile: LinkProfile,
    /// A shape to hold links to, for measurements: over QUIC the packets that leave here, over TCP the messages that
    /// arrive. Both ends of a link set it.
    pub shape: LinkShape,
    /// Name and version of the program, for the peers' logs.
    pub software: String,
    /// How long a connection may take to be established.
    pub connect_deadline: Duration,
}

impl EndpointConfig {
    /// A node that listens on both transports and lets no client in.
    pub fn node(identity: Identity, party: PartyId, address: SocketAddr, parties: [Option<PublicKey>; 3]) -> Self {
        Self {
            role: Role::Party(party),
            listen: Some(Listen { address, quic: true, tcp: true }),
            ..Self::client(identity, parties)
        }
    }

    /// A client of these nodes.
    pub fn client(identity: Identity, parties: [Option<PublicKey>; 3]) -> Self {
        Self {
            identity,
            role: Role::Client,
            listen: None,
            parties,
            clients: ClientPolicy::Listed(BTreeSet::new()),
            clients_at_once: 256,
            profile: LinkProfile::default(),
            shape: LinkShape::NONE,
            software: concat!("tercet/", env!("CARGO_PKG_VERSION")).into(),
            connect_deadline: Duration::from_secs(10),
        }
    }
}

impl EndpointConfig {
    pub(crate) fn check(&self) -> Result<(), NetError> {
        let Role::Party(me) = self.role else { return Ok(()) };
        let mut keys = BTreeSet::from([self.identity.public_key()]);
        for party in me.others() {
            let key = self.parties[party.index()];
            let key = key.ok_or_else(|| NetError::local(format!("no public key for {party}")))?;
            if !keys.insert(key) {
                return Err(NetError::local(format!("the key of {party} is that of another party too")));
            }
        }
        match self.parties[me.index()] {
            Some(key) if key != self.identity.public_key() => {
                Err(NetError::local(format!("the key listed for {me} is not the one in its key file")))
            }
            _ => Ok(()),
        }
    }

    /// Whose key passes the TLS handshake at the port.
    pub(crate) fn allowed(&self) -> Allowed {
        match &self.clients {
            ClientPolicy::Open => Allowed::Open,
            ClientPolicy::Listed(clients) => {
                let mut keys = clients.clone();
                keys.extend(self.parties.iter().flatten());
                Allowed::Listed(keys)
            }
        }
    }

    /// Whether a key may speak in a role here.
    pub(crate) fn admit(&self, role: Option<Role>, key: &PublicKey) -> Result<Role, Refusal> {
        let role = role.ok_or_else(|| Refusal::PartyKey { claimed: "that role".into() })?;
        match (role, self.role) {
            (Role::Party(party), _) if self.parties[party.index()] != Some(*key) => {
                Err(Refusal::PartyKey { claimed: party.to_string() })
            }
            (Role::Party(party), Role::Party(me)) if party >= me => Err(Refusal::Direction),
            (Role::Client, _) => match &self.clients {
                ClientPolicy::Listed(keys) if !keys.contains(key) => Err(Refusal::Stranger),
                _ => Ok(role),
            },
            _ => Ok(role),
        }
    }
}
