//! The links of one session over QUIC or TCP: a blocking [`Transport`] for a protocol thread, served by tasks.
//!
//! Each peer has one channel. A frame is a header of 16 bytes (tag u64, payload length u32, kind u32, little-endian) and
//! its payload. Sending hands a frame to the writing task of that peer, which joins small ones and passes large ones on
//! without copying. A reading task fills the mailbox. The helper's way out is bounded, and so is its window at the
//! receiver: that is how far it runs ahead.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::channel::{ByteChannel, ByteReceiver, ByteSender, SharedClock};
use crate::mailbox::{Mailbox, clean_reason};
use crate::{Connection, FRAME_HEADER_BYTES, FrameLimits, Meter, NetError, PartyId, Role, Transport, TransportError};

const DATA: u32 = 0;
const ABORT: u32 = 1;

/// Largest abort reason on the wire, in bytes.
const ABORT_BYTES: usize = 4096;

/// Payloads up to this many bytes are copied to share a write with their neighbours.
const COALESCE_BYTES: usize = 8 << 10;

/// Bytes joined into one write.
const BATCH_BYTES: usize = 64 << 10;

/// Bounds of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// How long the helper may keep this party waiting for one frame, or a peer for room for one. An evaluator may take a
    /// quarter longer: where it waits for the helper itself, it is to say so before it is blamed.
    pub round_deadline: Duration,
    /// What may wait unread.
    pub limits: FrameLimits,
}

impl Default for SessionSettings {
    /// 30 s a round, and the default limits.
    fn default() -> Self {
        Self { round_deadline: Duration::from_secs(30), limits: FrameLimits::default() }
    }
}

/// One party's links in one session. Dropping it ends this party's part: what was sent still leaves.
pub struct SessionLinks {
    shared: Arc<Shared>,
    queues: [Option<mpsc::UnboundedSender<Outgoing>>; 3],
    readers: Vec<AbortHandle>,
    meter: Meter,
    settings: SessionSettings,
}

impl std::fmt::Debug for SessionLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionLinks").field("party", &self.shared.me).finish_non_exhaustive()
    }
}

enum Outgoing {
    Frame { tag: u64, payload: Bytes },
    Abort { reason: String },
}

struct Shared {
    me: PartyId,
    mailbox: Arc<Mailbox>,
    outboxes: Mutex<[Outbox; 3]>,
    drained: Condvar,
}

/// What is on its way out to one peer.
#[derive(Default)]
struct Outbox {
    pending_bytes: usize,
    /// The session is over: what has not left yet is not worth sending.
    aborted: bool,
    broken: Option<TransportError>,
}

impl SessionLinks {
    /// Opens the session known to all three by `session`, a number that is used once, over the connections to the two
    /// others. Both ends of each connection call this; it waits for the other end at most the round deadline.
    pub async fn establish(
        me: PartyId,
        connections: [&Connection; 2],
        session: u128,
        settings: SessionSettings,
    ) -> Result<Self, NetError> {
        let [first, second] = connections;
        let parties = connections.map(|connection| connection.peer().role);
        let others = me.others();
        if parties != others.map(Role::Party) && parties != [Role::Party(others[1]), Role::Party(others[0])] {
            return Err(NetError::local(format!("a session of {me} needs connections to the two other parties")));
        }
        let (one, other) = tokio::try_join!(
            first.session_channel(session, settings.round_deadline),
            second.session_channel(session, settings.round_deadline),
        )?;
        let clocks = connections.map(Connection::clock);
        let [one_clock, other_clock] = clocks;
        let [Role::Party(one_party), Role::Party(other_party)] = parties else {
            return Err(NetError::local("sessions run between parties only"));
        };
        Ok(Self::start(me, [(one_party, one, one_clock), (other_party, other, other_clock)], settings))
    }

    fn start(me: PartyId, channels: [(PartyId, ByteChannel, SharedClock); 2], settings: SessionSettings) -> Self {
        let shared = Arc::new(Shared {
            me,
            mailbox: Mailbox::new(me, settings.limits),
            outboxes: Mutex::default(),
            drained: Condvar::new(),
        });
        let mut queues = [const { None }; 3];
        let mut readers = Vec::with_capacity(2);
        for (peer, channel, clock) in channels {
            let (sender, receiver) = channel.split();
            let (queue, frames) = mpsc::unbounded_channel();
            queues[peer.index()] = Some(queue);
            tokio::spawn(write_frames(shared.clone(), peer, frames, sender));
            readers.push(tokio::spawn(read_frames(shared.clone(), peer, receiver, clock)).abort_handle());
        }
        Self { shared, queues, readers, meter: Meter::default(), settings }
    }

    fn queue(&self, to: PartyId) -> Result<&mpsc::UnboundedSender<Outgoing>, TransportError> {
        let misuse = || TransportError::Protocol { party: self.shared.me, what: "sends to itself".into() };
        self.queues[to.index()].as_ref().ok_or_else(misuse)
    }
}

impl Transport for SessionLinks {
    fn party(&self) -> PartyId {
        self.shared.me
    }

    fn send(&mut self, to: PartyId, tag: u64, payload: Bytes) -> Result<(), TransportError> {
        let limits = self.settings.limits;
        if payload.len() > limits.frame_cap {
            let what = format!("a frame of {} bytes, over the limit of {}", payload.len(), limits.frame_cap);
            return Err(TransportError::Protocol { party: self.shared.me, what });
        }
        let bytes = payload.len() + FRAME_HEADER_BYTES;
        let count = payload.len();
        let queue = self.queue(to)?;
        // The helper waits for room. An evaluator does not: a peer that lets so much lie is at fault.
        let helper = self.shared.me == PartyId::P0;
        let bound = if helper { limits.helper_window } else { limits.unread_cap };
        let patience = if helper { self.settings.round_deadline } else { Duration::ZERO };
        self.shared.wait(patience, |outboxes| {
            let outbox = &outboxes[to.index()];
            if let Some(error) = &outbox.broken {
                return Progress::Failed(error.clone());
            }
            if outbox.pending_bytes == 0 || outbox.pending_bytes + bytes <= bound {
                outboxes[to.index()].pending_bytes += bytes;
                return Progress::Done;
            }
            Progress::Waits { party: to, bytes: outbox.pending_bytes }
        })?;
        let lost = |_| TransportError::Lost { party: to, reason: "the session is over".into() };
        queue.send(Outgoing::Frame { tag, payload }).map_err(lost)?;
        self.meter.sent[to.index()].count(count);
        Ok(())
    }

    fn recv(&mut self, from: PartyId, tag: u64) -> Result<Bytes, TransportError> {
        let patience = self.settings.round_deadline;
        let patience = if from == PartyId::P0 { patience } else { patience + patience / 4 };
        let (payload, waited) = self.shared.mailbox.take(from, tag, patience)?;
        self.meter.received[from.index()].count(payload.len());
        self.meter.waiting += waited;
        Ok(payload)
    }

    fn abort(&mut self, reason: &str) {
        let reason = clean_reason(reason);
        self.shared.fail(TransportError::Aborted { party: self.shared.me, reason: reason.clone() });
        for outbox in self.shared.lock().iter_mut() {
            outbox.aborted = true;
        }
        for queue in self.queues.iter().flatten() {
            // A peer that is gone needs no news.
            let _ = queue.send(Outgoing::Abort { reason: reason.clone() });
        }
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        for party in self.shared.me.others() {
            self.shared.wait(self.settings.round_deadline, |outboxes| {
                let outbox = &outboxes[party.index()];
                match &outbox.broken {
                    _ if outbox.pending_bytes == 0 => Progress::Done,
                    Some(error) => Progress::Failed(error.clone()),
                    None => Progress::Waits { party, bytes: outbox.pending_bytes },
                }
            })?;
        }
        Ok(())
    }

    fn meter(&self) -> Meter {
        self.meter
    }
}

impl Drop for SessionLinks {
    fn drop(&mut self) {
        self.shared.mailbox.leave();
        for reader in &self.readers {
            reader.abort();
        }
    }
}

/// Whether a wait for an outbox is over.
enum Progress {
    Done,
    Failed(TransportError),
    Waits { party: PartyId, bytes: usize },
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, [Outbox; 3]> {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `check` is content. The deadline is on progress: a slow link that still takes bytes is not a dead one.
    fn wait(
        &self,
        patience: Duration,
        mut check: impl FnMut(&mut [Outbox; 3]) -> Progress,
    ) -> Result<(), TransportError> {
        let mut outboxes = self.lock();
        let mut quiet_since = Instant::now();
        let mut pending_before = usize::MAX;
        loop {
            if let Some(fatal) = self.mailbox.fatal() {
                return Err(fatal);
            }
            let (party, pending) = match check(&mut outboxes) {
                Progress::Done => return Ok(()),
                Progress::Failed(error) => return Err(error),
                Progress::Waits { party, bytes } => (party, bytes),
            };
            if pending < pending_before {
                quiet_since = Instant::now();
            }
            pending_before = pending;
            let waited = quiet_since.elapsed();
            if waited >= patience {
                return Err(TransportError::Deadline { party, waited_ms: waited.as_millis() as u64 });
            }
            outboxes = self.drained.wait_timeout(outboxes, patience - waited).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the session here, on every lane and in both directions.
    fn fail(&self, error: TransportError) {
        self.mailbox.fail(error);
        self.wake();
    }

    fn wake(&self) {
        // Under the lock, so that a thread between its check and its wait is not missed.
        let _outboxes = self.lock();
        self.drained.notify_all();
    }

    fn sent(&self, to: PartyId, bytes: usize) {
        self.lock()[to.index()].pending_bytes -= bytes;
        self.drained.notify_all();
    }

    fn aborted(&self, to: PartyId) -> bool {
        self.lock()[to.index()].aborted
    }
}

/// Serves the way out to one peer until the session lets go of it.
async fn write_frames(
    shared: Arc<Shared>,
    to: PartyId,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    mut sender: ByteSender,
) {
    let mut batch = BytesMut::new();
    while let Some(first) = queue.recv().await {
        if let Err(error) = write_batch(&shared, to, &mut queue, &mut sender, &mut batch, first).await {
            let error = lost(to, error);
            shared.lock()[to.index()].broken = Some(error.clone());
            shared.mailbox.end(to, error);
            shared.wake();
            return;
        }
    }
    sender.finish();
}

async fn write_batch(
    shared: &Shared,
    to: PartyId,
    queue: &mut mpsc::UnboundedReceiver<Outgoing>,
    sender: &mut ByteSender,
    batch: &mut BytesMut,
    first: Outgoing,
) -> Result<(), NetError> {
    let mut next = Some(first);
    let mut done = 0;
    while let Some(outgoing) = next {
        match outgoing {
            Outgoing::Frame { tag, payload } => {
                done += payload.len() + FRAME_HEADER_BYTES;
                if !shared.aborted(to) {
                    put_header(batch, tag, payload.len(), DATA);
                    if payload.len() <= COALESCE_BYTES {
                        batch.extend_from_slice(&payload);
                    } else {
                        sender.half().write(batch.split().freeze()).await?;
                        sender.half().write(payload).await?;
                    }
                }
            }
            Outgoing::Abort { reason } => {
                put_header(batch, 0, reason.len(), ABORT);
                batch.extend_from_slice(reason.as_bytes());
            }
        }
        if batch.len() >= BATCH_BYTES {
            sender.half().write(batch.split().freeze()).await?;
        }
        if batch.is_empty() {
            shared.sent(to, std::mem::take(&mut done));
        }
        next = queue.try_recv().ok();
    }
    if !batch.is_empty() {
        sender.half().write(batch.split().freeze()).await?;
    }
    shared.sent(to, done);
    Ok(())
}

fn put_header(batch: &mut BytesMut, tag: u64, length: usize, kind: u32) {
    batch.reserve(FRAME_HEADER_BYTES + COALESCE_BYTES);
    batch.put_u64_le(tag);
    batch.put_u32_le(length as u32);
    batch.put_u32_le(kind);
}

/// Serves the way in from one peer until it ends.
async fn read_frames(shared: Arc<Shared>, from: PartyId, mut receiver: ByteReceiver, clock: SharedClock) {
    match read_until_end(&shared, from, &mut receiver, &clock).await {
        Ok(()) => {}
        Err(Ended::Link(error)) => shared.mailbox.end(from, lost(from, error)),
        Err(Ended::Session(error)) => shared.mailbox.fail(error),
    }
    shared.wake();
}

enum Ended {
    Link(NetError),
    Session(TransportError),
}

async fn read_until_end(
    shared: &Shared,
    from: PartyId,
    receiver: &mut ByteReceiver,
    clock: &SharedClock,
) -> Result<(), Ended> {
    let limits = shared.mailbox.limits();
    let broke = |what: String| Ended::Session(TransportError::Protocol { party: from, what });
    loop {
        let header = receiver.reader().take(FRAME_HEADER_BYTES).await.map_err(Ended::Link)?;
        let Some(header) = header else {
            return Err(Ended::Link(NetError::lost("", "it left the session")));
        };
        let (tag, length, kind) = read_header(&header).ok_or_else(|| broke("a header that is none".into()))?;
        let most = match kind {
            DATA => limits.frame_cap,
            ABORT => ABORT_BYTES,
            other => return Err(broke(format!("a frame of unknown kind {other}"))),
        };
        if length > most {
            return Err(broke(format!("a frame of {length} bytes, over the limit of {most}")));
        }
        if kind == DATA && from == PartyId::P0 && !shared.mailbox.room(from, length).await {
            return Ok(());
        }
        let payload = receiver.reader().need(length).await.map_err(Ended::Link)?;
        if kind == ABORT {
            let reason = clean_reason(&String::from_utf8_lossy(&payload));
            return Err(Ended::Session(TransportError::Aborted { party: from, reason }));
        }
        shared.mailbox.deliver(from, tag, payload, clock.as_deref());
        if shared.mailbox.fatal().is_some() {
            return Ok(());
        }
    }
}

fn read_header(header: &[u8]) -> Option<(u64, usize, u32)> {
    let (tag, rest) = header.split_first_chunk::<8>()?;
    let (length, kind) = rest.split_first_chunk::<4>()?;
    Some((u64::from_le_bytes(*tag), u32::from_le_bytes(*length) as usize, u32::from_le_bytes(kind.try_into().ok()?)))
}

/// The end of a link, for the session.
fn lost(party: PartyId, error: NetError) -> TransportError {
    let reason = match error {
        NetError::Lost { reason, .. } => reason,
        other => other.to_string(),
    };
    TransportError::Lost { party, reason }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{Endpoint, EndpointConfig, Identity, LinkKind, PeerAddress};

    /// P1 in a session with a P2 that writes whatever bytes it likes.
    async fn beside_a_liar(kind: LinkKind) -> (SessionLinks, ByteChannel, [Endpoint; 3]) {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let identities = [(); 3].map(|()| Identity::generate().unwrap());
        let keys = [0, 1, 2].map(|index: usize| Some(identities[index].public_key()));
        let mut parties = PartyId::ALL.into_iter();
        let nodes = identities.map(|identity| {
            let party = parties.next().unwrap();
            Endpoint::bind(EndpointConfig::node(identity, party, any, keys)).unwrap()
        });
        let addresses =
            [0, 1, 2].map(|index: usize| Some(PeerAddress::new(kind, nodes[index].local_address().unwrap())));
        for node in &nodes {
            node.keep_parties(addresses.clone()).unwrap();
        }
        let patience = Duration::from_secs(20);
        let link = async |from: usize, to: PartyId| nodes[from].wait_party(to, patience).await.unwrap();
        let settings = SessionSettings { round_deadline: patience, limits: FrameLimits::default() };
        let (honest, liar, _) = {
            let to_p1 = link(2, PartyId::P1).await;
            let (a, b) = (link(1, PartyId::P0).await, link(1, PartyId::P2).await);
            let (c, d) = (link(0, PartyId::P1).await, link(0, PartyId::P2).await);
            tokio::join!(
                SessionLinks::establish(PartyId::P1, [&b, &a], 1, settings),
                to_p1.session_channel(1, patience),
                async {
                    (c.session_channel(1, patience).await.unwrap(), d.session_channel(1, patience).await.unwrap())
                },
            )
        };
        (honest.unwrap(), liar.unwrap(), nodes)
    }

    fn header(tag: u64, length: u32, kind: u32) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &length.to_le_bytes(), &kind.to_le_bytes()].concat()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn frames_that_are_none_end_the_session_and_name_the_liar() {
        for kind in [LinkKind::Quic, LinkKind::Tcp] {
            let lies = [
                header(1, 0, 7),
                header(1, u32::MAX, DATA),
                header(1, 5000, ABORT),
                [header(1, 1, DATA), vec![0], header(1, 1, DATA), vec![0]].concat(),
            ];
            for lie in lies {
                let (mut honest, mut liar, _nodes) = beside_a_liar(kind).await;
                liar.sender.write(lie.clone().into()).await.unwrap();
                let error =
                    tokio::task::spawn_blocking(move || honest.recv(PartyId::P2, 2).unwrap_err()).await.unwrap();
                let named = matches!(error, TransportError::Protocol { party: PartyId::P2, .. });
                assert!(named, "{kind:?} {lie:?}: {error}");
            }
            // Half a frame, then nothing more.
            let (mut honest, mut liar, _nodes) = beside_a_liar(kind).await;
            liar.sender.write([header(2, 100, DATA), vec![0; 99]].concat().into()).await.unwrap();
            liar.finish();
            let error = tokio::task::spawn_blocking(move || honest.recv(PartyId::P2, 2).unwrap_err()).await.unwrap();
            assert!(matches!(error, TransportError::Lost { party: PartyId::P2, .. }), "{kind:?}: {error}");
        }
    }
}
