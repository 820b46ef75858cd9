//! One port of a node, or one client: listens, dials, greets, and keeps the parties connected.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};

use crate::connection::Watched;
use crate::eyeballs::{interleaved, race};
use crate::greetings::{Greeting, Greetings};
use crate::link::Link;
use crate::places::{ClientPlace, ClientPlaces};
use crate::quic::QuicPort;
use crate::{
    ClientPolicy, Connection, EndpointConfig, LinkKind, LinkProfile, Listen, NetError, PartyId, PeerAddress, PublicKey,
    Role, tcp, tls,
};

/// How long a newcomer over TCP may take until its first byte.
const FIRST_BYTE_PATIENCE: Duration = Duration::from_secs(3);

/// How long a host has to say that nothing listens, before it is asked again.
const ASK_PAUSE: Duration = Duration::from_millis(300);

/// When it has been found out what a path carries.
const PATH_PATIENCE: Duration = Duration::from_secs(10);

/// Greetings under way beyond which a newcomer over UDP must first show that its address is its own.
const GREETINGS_UNASKED: usize = 64;

/// First and longest pause between attempts to reach a party.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// A node's port or a client's. Clones are handles on the same one; it closes with the last of them.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    /// Ends the background tasks with the last handle, which they are not.
    _handle: Arc<Handle>,
}

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop("its endpoint is gone");
    }
}

struct Shared {
    config: EndpointConfig,
    listening: Option<QuicPort>,
    dialling: Mutex<[Option<Arc<QuicPort>>; 2]>,
    address: Option<SocketAddr>,
    /// The newest living connection to each party.
    parties: [watch::Sender<Option<Connection>>; 3],
    /// Why the last attempt to reach each party failed.
    troubles: Mutex<[Option<NetError>; 3]>,
    arrivals: mpsc::UnboundedSender<Connection>,
    arrived: tokio::sync::Mutex<mpsc::UnboundedReceiver<Connection>>,
    /// Over QUIC, and over TCP.
    greetings: [Arc<Greetings>; 2],
    client_places: ClientPlaces,
    /// Why the endpoint stops, once it does.
    stop: watch::Sender<Option<Arc<str>>>,
    /// Connections that are open.
    open: watch::Sender<usize>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} at {:?})", self.shared.config.role, self.shared.address)
    }
}

impl Endpoint {
    /// Opens the port, if the configuration has one, and begins to take connections. Must be called within a tokio
    /// runtime. Fails when the port is in use or the configuration contradicts itself.
    pub fn bind(config: EndpointConfig) -> Result<Self, NetError> {
        config.check()?;
        let ports = match config.listen {
            None => Ports::default(),
            Some(listen) => Ports::open(&config, listen)?,
        };
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            client_places: ClientPlaces::new(config.clients_at_once, config.clients == ClientPolicy::Open),
            config,
            listening: ports.quic,
            dialling: Mutex::default(),
            address: ports.address,
            parties: std::array::from_fn(|_| watch::Sender::new(None)),
            troubles: Mutex::default(),
            arrivals,
            arrived: tokio::sync::Mutex::new(arrived),
            greetings: Default::default(),
            stop: watch::Sender::new(None),
            open: watch::Sender::new(0),
        });
        if shared.listening.is_some() {
            tokio::spawn(shared.clone().accept_quic());
        }
        if let Some((listener, tls)) = ports.tcp {
            tokio::spawn(shared.clone().accept_tcp(listener, tls));
        }
        Ok(Self { _handle: Arc::new(Handle(shared.clone())), shared })
    }

    /// Where this endpoint listens.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.shared.address
    }

    /// In which capacity it speaks.
    pub fn role(&self) -> Role {
        self.shared.config.role
    }

    /// This endpoint's public key.
    pub fn public_key(&self) -> PublicKey {
        self.shared.config.identity.public_key()
    }

    /// Keeps this node connected to the other parties: dials those after it, again and again with growing pauses, and
    /// takes the connections of those before it. The newest connection to a party replaces older ones.
    pub fn keep_parties(&self, addresses: [Option<PeerAddress>; 3]) -> Result<(), NetError> {
        let Role::Party(me) = self.shared.config.role else {
            return Err(NetError::local("a client keeps no parties"));
        };
        for (party, address) in PartyId::ALL.into_iter().zip(addresses) {
            if party > me {
                let address = address.ok_or_else(|| NetError::local(format!("no address for {party}")))?;
                tokio::spawn(self.shared.clone().keep(party, address));
            }
        }
        Ok(())
    }

    /// One attempt to connect to a party; it must have the key pinned for it.
    pub async fn dial(&self, party: PartyId, address: &PeerAddress) -> Result<Connection, NetError> {
        self.shared.dial(party, address).await
    }

    /// The living connection to a party, if there is one.
    pub fn party(&self, party: PartyId) -> Option<Connection> {
        self.shared.parties[party.index()].borrow().clone().filter(|connection| !connection.is_closed())
    }

    /// The living connection to a party, as soon as there is one.
    pub async fn wait_party(&self, party: PartyId, deadline: Duration) -> Result<Connection, NetError> {
        let mut changes = self.shared.parties[party.index()].subscribe();
        let living = |found: &Option<Connection>| found.as_ref().is_some_and(|connection| !connection.is_closed());
        let found = tokio::time::timeout(deadline, changes.wait_for(living)).await;
        let connection = found.ok().and_then(|found| found.ok()?.clone());
        connection.ok_or_else(|| {
            self.party_trouble(party).unwrap_or(NetError::Deadline {
                peer: party.to_string(),
                what: "connecting",
                waited_ms: deadline.as_millis() as u64,
            })
        })
    }

    /// Why the last attempt to reach a party failed, while it is not connected.
    pub fn party_trouble(&self, party: PartyId) -> Option<NetError> {
        self.shared.troubles.lock().unwrap_or_else(PoisonError::into_inner)[party.index()].clone()
    }

    /// Every new connection once, of parties (dialled ones too) and clients, in the order in which they were greeted.
    /// Loses nothing when it is dropped while waiting. Pending for ever once the endpoint is shut down.
    pub async fn accept(&self) -> Connection {
        match self.shared.arrived.lock().await.recv().await {
            Some(connection) => connection,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// Takes no more connections, closes all, and waits a moment until the peers can know.
    pub async fn shutdown(&self, reason: &str) {
        self.shared.stop(reason);
        let mut open = self.shared.open.subscribe();
        let _ = tokio::time::timeout(Duration::from_millis(500), open.wait_for(|open| *open == 0)).await;
        let dialling = self.shared.dialling.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for port in dialling.iter().flatten() {
            port.close(reason).await;
        }
        if let Some(port) = &self.shared.listening {
            port.close(reason).await;
        }
    }
}

/// The listening sockets.
#[derive(Default)]
struct Ports {
    quic: Option<QuicPort>,
    tcp: Option<(TcpListener, Arc<rustls::ServerConfig>)>,
    address: Option<SocketAddr>,
}

impl Ports {
    fn open(config: &EndpointConfig, listen: Listen) -> Result<Self, NetError> {
        // A free UDP port need not be a free TCP port: a few tries find one that is both.
        let tries = if listen.address.port() == 0 { 16 } else { 1 };
        let mut last = NetError::local("neither QUIC nor TCP is switched on");
        for _ in 0..tries {
            match Self::open_once(config, listen) {
                Ok(ports) => return Ok(ports),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn open_once(config: &EndpointConfig, listen: Listen) -> Result<Self, NetError> {
        if !listen.quic && !listen.tcp {
            return Err(NetError::local("neither QUIC nor TCP is switched on"));
        }
        let tls = tls::server_config(&config.identity, config.allowed())?;
        let mut address = listen.address;
        let quic = match listen.quic {
            false => None,
            true => Some(config.quic_port(address, Some(tls.clone()))?),
        };
        if let Some(bound) = quic.as_ref().and_then(QuicPort::local_address) {
            address = bound;
        }
        let tcp = match listen.tcp {
            false => None,
            true => Some(tcp::listen(address)?),
        };
        if let Some(bound) = tcp.as_ref().and_then(|listener| listener.local_addr().ok()) {
            address = bound;
        }
        Ok(Self { quic, tcp: tcp.map(|listener| (listener, Arc::new(tls))), address: Some(address) })
    }
}

impl EndpointConfig {
    fn quic_port(&self, address: SocketAddr, tls: Option<rustls::ServerConfig>) -> Result<QuicPort, NetError> {
        QuicPort::bind(address, tls, self.profile, self.shape, &self.identity.derived(b"tercet stateless reset"))
    }
}

impl Shared {
    /// The first reason stays.
    fn stop(&self, reason: &str) {
        self.stop.send_if_modified(|why| {
            let first = why.is_none();
            why.get_or_insert_with(|| reason.into());
            first
        });
    }

    async fn stopped(&self) {
        // The sender lives in `self`.
        let _ = self.stop.subscribe().wait_for(Option::is_some).await;
    }

    async fn accept_quic(self: Arc<Self>) {
        let Some(port) = &self.listening else { return };
        loop {
            let incoming = tokio::select! {
                incoming = port.accept() => incoming,
                () = self.stopped() => None,
            };
            let Some(incoming) = incoming else { return };
            let [greetings, _] = &self.greetings;
            let asked = incoming.remote_address_validated() || !incoming.may_retry();
            if greetings.of_strangers() > GREETINGS_UNASKED && !asked {
                // It fails only for those that were asked already.
                let _ = incoming.retry();
                continue;
            }
            let greeting = greetings.begin(incoming.remote_address().ip());
            let shared = self.clone();
            tokio::spawn(async move {
                let address = incoming.remote_address().to_string();
                let established = async {
                    let connection = incoming.await.map_err(|error| crate::quic::connection_error(&address, &error))?;
                    shared.config.welcome(Link::quic(connection), &shared.client_places).await
                };
                shared.greet(&address, established, greeting).await;
            });
        }
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stopped() => return,
            };
            let (socket, address): (TcpStream, SocketAddr) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, usually: it passes.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let greeting = self.greetings[1].begin(address.ip());
            let (shared, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                let established = async {
                    let begun = tokio::time::timeout(FIRST_BYTE_PATIENCE, socket.readable()).await;
                    if !matches!(begun, Ok(Ok(()))) {
                        let waited_ms = FIRST_BYTE_PATIENCE.as_millis() as u64;
                        return Err(NetError::Deadline { peer: address.to_string(), what: "greeting", waited_ms });
                    }
                    let alive = shared.config.profile.keep_alive_and_idle();
                    let mux = tcp::establish(socket, address, tls, alive).await?;
                    shared.config.welcome(Link::Tcp(mux), &shared.client_places).await
                };
                shared.greet(&address.to_string(), established, greeting).await;
            });
        }
    }

    /// Bounds a greeting in time and says in the log how it went.
    async fn greet(
        &self,
        address: &str,
        established: impl Future<Output = Result<Connection, NetError>>,
        greeting: Greeting,
    ) {
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(self.config.connect_deadline, established) => greeted,
            () = greeting.ended() => return tracing::debug!(address, "a greeting gave way to a newer one"),
            () = self.stopped() => return,
        };
        drop(greeting);
        match greeted {
            Ok(Ok(connection)) => {
                tracing::info!(peer = %connection.peer().name(), address, software = %connection.peer().software, "connected");
                self.register(connection);
            }
            Ok(Err(error)) => tracing::info!(address, %error, "no connection"),
            Err(_) => tracing::info!(address, "a connection did not greet in time"),
        }
    }

    async fn dial(&self, party: PartyId, address: &PeerAddress) -> Result<Connection, NetError> {
        let name = format!("{party} at {address}");
        let deadline = self.config.connect_deadline;
        let dialled = tokio::time::timeout(deadline, self.dial_any(party, address)).await;
        let late =
            NetError::Deadline { peer: name.clone(), what: "connecting", waited_ms: deadline.as_millis() as u64 };
        let connection = dialled.unwrap_or(Err(late)).map_err(|error| error.about(&name))?;
        if self.config.role != Role::Client {
            self.register(connection.clone());
        }
        Ok(connection)
    }

    /// Tries each address that the name stands for.
    async fn dial_any(&self, party: PartyId, address: &PeerAddress) -> Result<Connection, NetError> {
        let key = self.config.parties[party.index()];
        let key = key.ok_or_else(|| NetError::local(format!("no public key for {party}")))?;
        let unreachable = |reason: String| NetError::Unreachable { peer: address.to_string(), reason };
        let found = tokio::net::lookup_host(&address.host).await.map_err(|error| unreachable(error.to_string()))?;
        let link =
            race(interleaved(found.collect()).into_iter().map(|socket| self.dial_one(address.kind, socket, key)));
        let link = link.await.unwrap_or_else(|| Err(unreachable("the name stands for no address".into())))?;
        self.config.introduce(link, party).await
    }

    /// Tries one address.
    async fn dial_one(&self, kind: LinkKind, socket: SocketAddr, key: PublicKey) -> Result<Link, NetError> {
        let tls = tls::client_config(&self.config.identity, key)?;
        match kind {
            LinkKind::Tcp => tcp::dial(socket, tls, self.config.profile.keep_alive_and_idle()).await.map(Link::Tcp),
            LinkKind::Quic => {
                let port = self.quic_port_for(socket)?;
                tokio::select! {
                    dialled = port.dial(socket, tls) => dialled.map(Link::quic),
                    () = nobody_listens(socket) => {
                        let reason = "nothing listens at this port".into();
                        Err(NetError::Unreachable { peer: socket.to_string(), reason })
                    }
                }
            }
        }
    }

    /// A UDP socket that can reach the address: the node's own port where that is of the same family.
    fn quic_port_for(&self, address: SocketAddr) -> Result<QuicDialler<'_>, NetError> {
        if let Some(port) = &self.listening
            && self.address.is_some_and(|own| own.is_ipv4() == address.is_ipv4())
        {
            return Ok(QuicDialler::Listening(port));
        }
        let mut ports = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut ports[usize::from(address.is_ipv6())];
        if let Some(port) = slot {
            return Ok(QuicDialler::Own(port.clone()));
        }
        let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let port = Arc::new(self.config.quic_port(SocketAddr::new(any, 0), None)?);
        *slot = Some(port.clone());
        Ok(QuicDialler::Own(port))
    }

    /// Makes a connection known. The newest one to a party replaces the one before.
    fn register(&self, connection: Connection) {
        if let Role::Party(party) = connection.peer().role {
            self.troubles.lock().unwrap_or_else(PoisonError::into_inner)[party.index()] = None;
            if let Some(older) = self.parties[party.index()].send_replace(Some(connection.clone())) {
                older.close("replaced by a newer connection");
            }
            if let Ok(address) = connection.peer().address.parse::<SocketAddr>() {
                self.greetings.iter().for_each(|greetings| greetings.know(address.ip()));
            }
        }
        if connection.peer().role.party().is_some() {
            let profile = self.config.profile.shaped(self.config.shape);
            tokio::spawn(judge_path(connection.downgrade(), profile));
        }
        self.open.send_modify(|open| *open += 1);
        tokio::spawn(watch_over(
            connection.downgrade(),
            self.stop.subscribe(),
            self.open.clone(),
            connection.peer().role.party().map(|party| self.parties[party.index()].clone()),
            connection.place(),
        ));
        // The receiver lives in `self`.
        let _ = self.arrivals.send(connection);
    }

    /// Dials a party whenever it is not connected.
    async fn keep(self: Arc<Self>, party: PartyId, address: PeerAddress) {
        let mut pause = BACKOFF.0;
        loop {
            let dialled = tokio::select! {
                dialled = self.dial(party, &address) => dialled,
                () = self.stopped() => return,
            };
            match dialled {
                Ok(connection) => {
                    pause = BACKOFF.0;
                    let link = connection.downgrade();
                    tracing::info!(peer = %party, %address, software = %connection.peer().software, "connected");
                    drop(connection);
                    let reason = tokio::select! {
                        reason = link.closed() => reason,
                        () = self.stopped() => return,
                    };
                    tracing::warn!(%reason, "connection ended; dialling again");
                }
                Err(error) => {
                    let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
                    if troubles[party.index()].as_ref() != Some(&error) {
                        tracing::warn!(%error, "no connection yet; trying on");
                    }
                    troubles[party.index()] = Some(error);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stopped() => return,
            }
            pause = (2 * pause).min(BACKOFF.1);
        }
    }
}

/// Waits until the host at an address says that nothing listens at this UDP port, if it ever does.
/// QUIC itself does not hear it: its socket speaks to many.
async fn nobody_listens(address: SocketAddr) {
    let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let asked = async {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(address).await?;
        loop {
            // One byte that is no QUIC: a node drops it.
            socket.send(&[0]).await?;
            let heard = tokio::time::timeout(ASK_PAUSE, socket.recv(&mut [0; 1])).await;
            if let Ok(Err(error)) = heard {
                return Err(error);
            }
        }
    };
    let asked: std::io::Result<()> = asked.await;
    match asked {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
        _ => std::future::pending().await,
    }
}

/// Says once, some time after a party was met, that datagrams to it stay far below what this kind
/// of network carries.
async fn judge_path(connection: Watched, profile: LinkProfile) {
    tokio::time::sleep(PATH_PATIENCE).await;
    let expected = profile.datagram_bytes();
    if let Some(carried) = connection.datagram_bytes().filter(|carried| *carried < expected) {
        tracing::warn!(
            peer = %connection.name(),
            "the path carries datagrams of {carried} bytes, and profile {profile} expects {expected}: \
             set `profile` to lan1500 or wan on all nodes"
        );
    }
}

/// Follows a connection to its end, or ends it when the endpoint stops; then nobody is offered it any more.
async fn watch_over(
    connection: Watched,
    mut stop: watch::Receiver<Option<Arc<str>>>,
    open: watch::Sender<usize>,
    slot: Option<watch::Sender<Option<Connection>>>,
    place: Option<Arc<ClientPlace>>,
) {
    let stopped = async { stop.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone()) };
    let revoked = async {
        match &place {
            Some(place) => place.revoked().await,
            None => std::future::pending().await,
        }
    };
    let stopped = tokio::select! {
        _ = connection.closed() => None,
        reason = stopped => Some(reason),
        () = revoked => Some(Some("another client needs the place: this one has most connections".into())),
    };
    if let Some(reason) = stopped {
        connection.close(reason.as_deref().unwrap_or("its endpoint is gone"));
        connection.closed().await;
    }
    if let Some(slot) = slot {
        slot.send_if_modified(|current| current.take_if(|found| connection.is_of(found)).is_some());
    }
    open.send_modify(|open| *open -= 1);
}

/// The socket to dial from.
enum QuicDialler<'a> {
    Listening(&'a QuicPort),
    Own(Arc<QuicPort>),
}

impl std::ops::Deref for QuicDialler<'_> {
    type Target = QuicPort;

    fn deref(&self) -> &QuicPort {
        match self {
            Self::Listening(port) => port,
            Self::Own(port) => port,
        }
    }
}
