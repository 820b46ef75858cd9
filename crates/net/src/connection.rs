//! An established connection: who is at the other end, control messages, and channels.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::channel::{ByteReceiver, ByteSender, SharedClock};
use crate::link::{ByteReader, Link, RecvHalf, SendHalf};
use crate::places::ClientPlace;
use crate::shaped::LinkClock;
use crate::{ByteChannel, ChannelId, ChannelKind, LinkShape, NetError, PairSeed, PublicKey, Role, WireBytes, codec};

/// Largest control message, in bytes.
pub const CONTROL_LIMIT_BYTES: usize = 1 << 20;

/// How long the rest of a control message, or the name of a channel, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Session channels that may wait to be asked for; beyond them the oldest is given up.
const UNCLAIMED_SESSIONS: usize = 64;

/// Who is at the other end, as proved by its key and said in its greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// In which capacity it speaks.
    pub role: Role,
    /// The key it proved to hold.
    pub key: PublicKey,
    /// Name and version of its program, as it says.
    pub software: String,
    /// Its network address.
    pub address: String,
}

impl Peer {
    /// The party, or the client with the beginning of its key.
    pub fn name(&self) -> String {
        match self.role {
            Role::Party(party) => party.to_string(),
            Role::Client => format!("client {}", self.key.short()),
        }
    }
}

/// A connection. Clones are handles on the same one; when the last is gone, channels included, it closes.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    link: Arc<Link>,
    me: Role,
    peer: Peer,
    name: Arc<str>,
    seed: Option<PairSeed>,
    clock: SharedClock,
    control_out: tokio::sync::Mutex<ByteSender>,
    control_in: tokio::sync::Mutex<ByteReceiver>,
    requests: tokio::sync::Mutex<mpsc::UnboundedReceiver<(ChannelId, ByteChannel)>>,
    sessions: Arc<Mutex<Sessions>>,
    /// Counts this connection among the clients.
    place: Option<Arc<ClientPlace>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({} at {})", self.0.name, self.0.peer.address)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.link.close("it needs the connection no more");
    }
}

/// What a greeting has settled, to make a [`Connection`] of.
pub(crate) struct Greeted {
    pub(crate) link: Link,
    pub(crate) me: Role,
    pub(crate) peer: Peer,
    pub(crate) seed: Option<PairSeed>,
    pub(crate) control: (SendHalf, ByteReader),
    pub(crate) shape: LinkShape,
    pub(crate) place: Option<ClientPlace>,
}

impl Connection {
    pub(crate) fn new(greeted: Greeted) -> Self {
        let Greeted { link, me, peer, seed, control: (send, recv), shape, place } = greeted;
        let link = Arc::new(link);
        let name: Arc<str> = peer.name().into();
        // QUIC's packets are shaped already.
        let clock =
            (!shape.is_none() && matches!(*link, Link::Tcp(_))).then(|| Arc::new(Mutex::new(LinkClock::new(shape))));
        let (control_out, control_in) = ByteChannel::new(send, recv, name.clone(), clock.clone()).split();
        let (found, requests) = mpsc::unbounded_channel();
        let sessions = Arc::<Mutex<Sessions>>::default();
        let acceptor = Acceptor {
            link: link.clone(),
            name: name.clone(),
            clock: clock.clone(),
            parties: me.party().is_some() && peer.role.party().is_some(),
            found,
            sessions: sessions.clone(),
        };
        tokio::spawn(Arc::new(acceptor).run());
        Self(Arc::new(Inner {
            link,
            me,
            peer,
            name,
            seed,
            clock,
            control_out: tokio::sync::Mutex::new(control_out),
            control_in: tokio::sync::Mutex::new(control_in),
            requests: tokio::sync::Mutex::new(requests),
            sessions,
            place: place.map(Arc::new),
        }))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// The seed shared with a peer that is a party, if this side is one too; fresh for this connection.
    pub fn pair_seed(&self) -> Option<&PairSeed> {
        self.0.seed.as_ref()
    }

    /// A client's place among the connections of clients, which is free again when the connection
    /// is over.
    pub(crate) fn place(&self) -> Option<Arc<ClientPlace>> {
        self.0.place.clone()
    }

    /// Bytes of the largest datagrams that the path is known to carry by now; none over TCP.
    pub fn datagram_bytes(&self) -> Option<u16> {
        self.0.link.datagram_bytes()
    }

    /// Whether two handles are on the same connection.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Sends a control message of at most [`CONTROL_LIMIT_BYTES`]; messages keep their order.
    pub async fn send_message<T: Serialize>(&self, message: &T) -> Result<(), NetError> {
        let bytes = codec::encode(message).map_err(|error| NetError::local(error.to_string()))?;
        if bytes.len() > CONTROL_LIMIT_BYTES {
            return Err(NetError::local(format!("a control message of {} bytes is too large", bytes.len())));
        }
        self.0.control_out.lock().await.send_bytes(bytes.into()).await
    }

    /// The next control message, whenever it comes. Loses nothing when it is dropped while waiting.
    pub async fn recv_message<T: DeserializeOwned>(&self) -> Result<T, NetError> {
        let next = self.0.control_in.lock().await.next(CONTROL_LIMIT_BYTES, None, PATIENCE).await?;
        let bytes = next.ok_or_else(|| NetError::lost(&self.0.name, "it said goodbye"))?;
        codec::decode(&bytes, CONTROL_LIMIT_BYTES).map_err(|error| NetError::protocol(&self.0.name, error.to_string()))
    }

    /// Opens a channel under a name that the peer will see.
    pub async fn open_channel(&self, id: ChannelId) -> Result<ByteChannel, NetError> {
        let opened = self.0.link.open().await.map_err(|error| error.about(&self.0.name))?;
        let mut channel = ByteChannel::from_halves(opened.0, opened.1, self.0.name.clone(), self.0.clock.clone());
        channel.sender.write(id.to_bytes()).await?;
        Ok(channel.kept_by(self))
    }

    /// The next request channel that the peer opens; an error when the connection is over.
    pub async fn accept_channel(&self) -> Result<(ChannelId, ByteChannel), NetError> {
        match self.0.requests.lock().await.recv().await {
            Some((id, channel)) => Ok((id, channel.kept_by(self))),
            None => Err(self.closed().await),
        }
    }

    /// The channel of a session that both parties know by `session`: the lower party opens it, the other waits for it.
    pub async fn session_channel(&self, session: u128, deadline: Duration) -> Result<ByteChannel, NetError> {
        let (Some(me), Some(peer)) = (self.0.me.party(), self.0.peer.role.party()) else {
            return Err(NetError::local("sessions run between parties only"));
        };
        if me < peer {
            return self.open_channel(ChannelId::session(session)).await;
        }
        let waiting = self.0.lock_sessions().claim(session);
        let channel = match waiting {
            Ok(channel) => channel,
            Err(arrival) => tokio::select! {
                arrived = tokio::time::timeout(deadline, arrival) => match arrived {
                    Ok(Ok(channel)) => channel,
                    Ok(Err(_)) => return Err(NetError::local("this session is waited for twice")),
                    Err(_) => {
                        self.0.lock_sessions().waiting.remove(&session);
                        return Err(NetError::Deadline {
                            peer: self.0.name.to_string(),
                            what: "opening the session",
                            waited_ms: deadline.as_millis() as u64,
                        });
                    }
                },
                reason = self.closed() => return Err(reason),
            },
        };
        Ok(channel.kept_by(self))
    }

    /// Waits for the end of the connection, and says why it came.
    pub async fn closed(&self) -> NetError {
        self.0.link.closed().await.about(&self.0.name)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.0.link.is_closed()
    }

    /// Ends the connection with all its channels, and tells the peer why.
    pub fn close(&self, reason: &str) {
        self.0.link.close(reason);
    }

    /// Bytes that this connection has moved, as the operating system sees them.
    pub fn wire_bytes(&self) -> WireBytes {
        self.0.link.wire_bytes()
    }

    pub(crate) fn clock(&self) -> SharedClock {
        self.0.clock.clone()
    }

    /// To watch the connection without keeping it open.
    pub(crate) fn downgrade(&self) -> Watched {
        Watched { link: self.0.link.clone(), name: self.0.name.clone() }
    }
}

/// A connection that is watched, not held.
pub(crate) struct Watched {
    link: Arc<Link>,
    name: Arc<str>,
}

impl Watched {
    pub(crate) async fn closed(&self) -> NetError {
        self.link.closed().await.about(&self.name)
    }

    pub(crate) fn close(&self, reason: &str) {
        self.link.close(reason);
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn datagram_bytes(&self) -> Option<u16> {
        self.link.datagram_bytes()
    }

    pub(crate) fn is_of(&self, connection: &Connection) -> bool {
        Arc::ptr_eq(&self.link, &connection.0.link)
    }
}

impl Inner {
    fn lock_sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Session channels, by session: those that are waited for, and those that came first.
#[derive(Default)]
struct Sessions {
    waiting: BTreeMap<u128, oneshot::Sender<ByteChannel>>,
    arrived: VecDeque<(u128, ByteChannel)>,
}

impl Sessions {
    fn claim(&mut self, session: u128) -> Result<ByteChannel, oneshot::Receiver<ByteChannel>> {
        if let Some(at) = self.arrived.iter().position(|(id, _)| *id == session)
            && let Some((_, channel)) = self.arrived.remove(at)
        {
            return Ok(channel);
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(session, sender);
        Err(receiver)
    }

    fn arrive(&mut self, session: u128, channel: ByteChannel) {
        let unclaimed = match self.waiting.remove(&session) {
            Some(waiting) => waiting.send(channel).err(),
            None => Some(channel),
        };
        if let Some(channel) = unclaimed {
            self.arrived.push_back((session, channel));
            if self.arrived.len() > UNCLAIMED_SESSIONS {
                self.arrived.pop_front();
            }
        }
    }
}

/// Takes in the channels that the peer opens.
struct Acceptor {
    link: Arc<Link>,
    name: Arc<str>,
    clock: SharedClock,
    /// Whether both ends are parties: clients have no sessions.
    parties: bool,
    found: mpsc::UnboundedSender<(ChannelId, ByteChannel)>,
    sessions: Arc<Mutex<Sessions>>,
}

impl Acceptor {
    async fn run(self: Arc<Self>) {
        while let Ok((send, recv)) = self.link.accept().await {
            let acceptor = self.clone();
            // Each on its own: a channel whose name does not come holds up no other.
            tokio::spawn(async move { acceptor.name_channel(send, recv).await });
        }
    }

    async fn name_channel(&self, send: SendHalf, recv: RecvHalf) {
        let mut reader = ByteReader::new(recv);
        let Ok(Ok(name)) = tokio::time::timeout(PATIENCE, reader.need(ChannelId::BYTES)).await else {
            tracing::debug!(peer = %self.name, "a channel without a name");
            return;
        };
        let channel = ByteChannel::new(send, reader, self.name.clone(), self.clock.clone());
        match ChannelId::from_bytes(&name) {
            Some(id) if id.kind == ChannelKind::Request => {
                // Nobody takes it when the connection's handles are gone.
                let _ = self.found.send((id, channel));
            }
            Some(id) if self.parties => {
                self.sessions.lock().unwrap_or_else(PoisonError::into_inner).arrive(id.id, channel);
            }
            _ => tracing::debug!(peer = %self.name, "a channel of a kind that it may not open"),
        }
    }
}
