//! A node from its start to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tercet_net::{
    ClientPolicy, Endpoint, EndpointConfig, Fault, FrameLimits, Identity, IdentityError, Listen, NetError, NodeStatus,
    PartyId, PublicKey, Role, SessionSettings,
};
use tercet_ring::Pool;

use crate::config::Config;
use crate::desk::{Desk, LEAD, STOPPING};
use crate::models::{ModelError, Models};
use crate::quota::Quotas;
use crate::shared::{Limits, Phase, Shared};
use crate::{clients, control, lead};

/// Once all answers have been handed to the links: until they have left.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key file is missing, unreadable, or readable by others.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The shares of models cannot be used.
    #[error(transparent)]
    Models(#[from] ModelError),
    /// The port is taken, most likely by a node that runs already.
    #[error("{source}; stop what uses this port, or set another with `listen`")]
    Port {
        /// What the system said.
        source: NetError,
    },
    /// The network side of the configuration contradicts itself.
    #[error(transparent)]
    Net(NetError),
}

/// A running node. Dropped without [`Node::shutdown`], it ends at once, as if it had crashed.
pub struct Node {
    shared: Arc<Shared>,
    address: SocketAddr,
    grace: Duration,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({} at {})", self.shared.me, self.address)
    }
}

impl Node {
    /// Starts a node: key, models, port, then the others in whatever order they come. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// Whatever keeps it from serving, by the name of the file or address at fault.
    pub async fn start(config: Config) -> Result<Node, StartError> {
        let Config { party: me, shares, max_batch, .. } = &config;
        let identity = Identity::load(&config.identity)?;
        let (me, shares, max_batch) = (*me, shares.clone(), *max_batch);
        let models = tokio::task::spawn_blocking(move || Models::open(&shares, me, max_batch)).await;
        let models =
            models.map_err(|_| StartError::Net(NetError::Local { what: "reading shares failed".into() }))??;
        if models.cards().is_empty() {
            tracing::warn!("this node holds no models: name share files under `shares`");
        }
        match &config.clients {
            ClientPolicy::Open => tracing::warn!("ANYONE may be a client of this node: `clients` says so"),
            ClientPolicy::Listed(keys) if keys.is_empty() => {
                tracing::warn!("no clients are let in: list their keys under `clients`");
            }
            ClientPolicy::Listed(_) => {}
        }
        let key = identity.public_key();
        let endpoint = Endpoint::bind(endpoint_config(&config, identity)).map_err(|source| match source {
            NetError::Bind { .. } => StartError::Port { source },
            other => StartError::Net(other),
        })?;
        let nowhere = || StartError::Net(NetError::Local { what: "the port has no address".into() });
        let address = endpoint.local_address().ok_or_else(nowhere)?;
        endpoint.keep_parties(addresses(&config)).map_err(StartError::Net)?;
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let max_sessions = config.max_sessions.max(1);
        let limits = Limits {
            max_batch: config.max_batch,
            max_sessions,
            session_bytes: config.memory_bytes / max_sessions as u64,
            request_deadline: config.request_deadline,
            generation_deadline: config.generation_deadline,
            idle_deadline: config.idle_deadline,
        };
        let settings = SessionSettings { round_deadline: config.round_deadline, limits: FrameLimits::default() };
        let quotas = Quotas::new(config.max_queue, config.queue_bytes, config.cache_bytes);
        let shared = Shared::new(me, endpoint, models, Desk::new(), quotas, Pool::new(threads), settings, limits);
        shared.spawn(welcome(shared.clone()));
        if me == LEAD {
            shared.spawn(lead::lead(shared.clone()));
        }
        tracing::info!(party = %me, %address, %key, threads, "serving");
        Ok(Node { shared, address, grace: config.grace })
    }

    /// Where it listens, for QUIC and for TLS over TCP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which party it is.
    pub fn party(&self) -> PartyId {
        self.shared.me
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        self.shared.endpoint.public_key()
    }

    /// How it is doing.
    pub fn status(&self) -> NodeStatus {
        self.shared.status()
    }

    /// Serves until `stop`, then shuts down within the configured grace.
    pub async fn run_until(self, stop: impl Future<Output = ()>) {
        stop.await;
        let grace = self.grace;
        self.shutdown(grace).await;
    }

    /// Refuses what comes, gives requests and generations that were let in `grace` to end and their
    /// answers to leave, refuses what has not ended, then closes every connection.
    pub async fn shutdown(&self, grace: Duration) {
        let shared = &self.shared;
        shared.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            *phase = (*phase).max(Phase::Stopping);
            serving
        });
        let status = shared.status();
        let (sessions, generations) = (status.sessions_running, status.generations);
        tracing::info!(party = %shared.me, sessions, generations, waiting = status.waiting, "stopping");
        let mut open = shared.open_requests.subscribe();
        if tokio::time::timeout(grace, open.wait_for(|open| *open == 0)).await.is_err() {
            tracing::warn!("not all requests and generations ended within the grace");
        }
        shared.phase.send_modify(|phase| *phase = (*phase).max(Phase::Closing));
        for held in shared.desk.close() {
            held.refuse(Fault::Nodes, STOPPING);
        }
        tokio::time::sleep(LAST_WORDS).await;
        shared.endpoint.shutdown("the node is being stopped").await;
        shared.phase.send_replace(Phase::Stopped);
        tracing::info!(party = %shared.me, "stopped");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.phase.send_replace(Phase::Stopped);
    }
}

/// Takes connections in.
async fn welcome(shared: Arc<Shared>) {
    loop {
        let connection = shared.endpoint.accept().await;
        match connection.peer().role {
            Role::Party(peer) => shared.spawn(control::converse(shared.clone(), connection, peer)),
            Role::Client => shared.spawn(clients::serve(shared.clone(), connection)),
        }
    }
}

fn endpoint_config(config: &Config, identity: Identity) -> EndpointConfig {
    let keys = [0, 1, 2].map(|index: usize| config.peers[index].as_ref().map(|peer| peer.key));
    EndpointConfig {
        listen: Some(Listen { address: config.listen, quic: true, tcp: true }),
        clients: config.clients.clone(),
        clients_at_once: config.max_clients,
        profile: config.profile,
        shape: config.shape,
        connect_deadline: config.connect_deadline,
        ..EndpointConfig::node(identity, config.party, config.listen, keys)
    }
}

fn addresses(config: &Config) -> [Option<tercet_net::PeerAddress>; 3] {
    [0, 1, 2].map(|index: usize| config.peers[index].as_ref().and_then(|peer| peer.address.clone()))
}
