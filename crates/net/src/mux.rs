//! Many two-way byte streams over one TLS connection, each with its own credit, for links without QUIC.
//!
//! A frame is a header of 8 bytes (stream u32, kind u8, length u24, little-endian) and at most 64 KiB. A receiver grants
//! each stream a window of credit and renews it as it reads, so a stream that nobody reads holds up no other. The side
//! that dialled opens streams with odd numbers, the other with even ones, each in rising order.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use zeroize::Zeroizing;

use crate::link::{WireBytes, unwelcome};
use crate::mailbox::clean_reason;
use crate::quic::{CLIENT_UNREAD_BYTES, PARTY_STREAMS_AT_ONCE, STREAM_WINDOW_BYTES, STREAMS_AT_ONCE};
use crate::tcp::Counters;
use crate::{NetError, PublicKey};

const HEADER_BYTES: usize = 8;
const CHUNK_BYTES: usize = 64 << 10;
const WINDOW_BYTES: usize = STREAM_WINDOW_BYTES as usize;

/// Bytes of all streams that may wait for the socket.
const QUEUE_BYTES: usize = 4 << 20;

/// Frames without bytes of a stream that may wait for the socket before the peer is read no
/// further: it causes them.
const CONTROL_FRAMES: usize = 4096;

/// Pieces that have arrived and wait to be read, however short they are.
const UNREAD_PIECES: usize = 1 << 14;

/// How long a peer may take nothing of what is written to it.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Payloads up to this many bytes share a write with their neighbours.
const COALESCE_BYTES: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bytes of a stream; the first of a new number, which is empty, opens it.
    Data = 0,
    /// The sender of this stream has finished.
    Finish = 1,
    /// The sender of this stream has given up.
    Reset = 2,
    /// The receiver of this stream reads no more.
    Stop = 3,
    /// The receiver of this stream grants so many more bytes (u32).
    Credit = 4,
    /// Shows that this side lives.
    Ping = 5,
    /// The connection is over, for this reason.
    Close = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Data, Self::Finish, Self::Reset, Self::Stop, Self::Credit, Self::Ping, Self::Close]
            .get(usize::from(byte))
            .copied()
    }
}

struct Frame {
    stream: u32,
    kind: Kind,
    payload: Bytes,
}

/// What the TLS session below a mux has established.
pub(crate) struct Below {
    pub(crate) address: String,
    pub(crate) peer_key: PublicKey,
    pub(crate) counters: Arc<Counters>,
    /// What the TLS session exports for the pair seed.
    pub(crate) exported: Zeroizing<[u8; 32]>,
}

/// One end of the connection.
pub(crate) struct Mux {
    shared: Arc<Shared>,
    below: Below,
    opened_by_peer: tokio::sync::Mutex<mpsc::UnboundedReceiver<(MuxSend, MuxRecv)>>,
}

struct Shared {
    peer: String,
    out: mpsc::UnboundedSender<Frame>,
    /// Room, in bytes, between the streams and the socket.
    room: Semaphore,
    streams: Mutex<Streams>,
    /// Some of what had arrived was read, or written of what waited.
    read: Notify,
    /// Frames without bytes of a stream that wait for the socket.
    control: AtomicUsize,
    ended: watch::Sender<Option<NetError>>,
}

struct Streams {
    open: BTreeMap<u32, Stream>,
    next_own: u32,
    last_theirs: u32,
    /// Whether the peer has proved to be a party.
    wide: bool,
    /// Bytes that have arrived and are not read.
    unread: usize,
    /// Pieces in which they came.
    unread_pieces: usize,
}

impl Streams {
    /// Whether as much waits unread as may.
    fn is_full(&self) -> bool {
        !self.wide && (self.unread > CLIENT_UNREAD_BYTES as usize || self.unread_pieces > UNREAD_PIECES)
    }

    fn at_once(&self) -> usize {
        if self.wide { PARTY_STREAMS_AT_ONCE as usize } else { STREAMS_AT_ONCE as usize }
    }
}

struct Stream {
    credit: Arc<Semaphore>,
    /// Where arriving bytes go, while somebody wants them and the peer has not finished.
    inbox: Option<mpsc::UnboundedSender<Arrived>>,
    /// Bytes the peer may still send.
    granted: usize,
    sending: bool,
}

enum Arrived {
    Data(Bytes),
    Finish,
    Reset,
}

impl Mux {
    /// Takes over a connection. `alive` is how often to show life and after how much silence the peer is dead.
    pub(crate) fn start<S>(socket: S, below: Below, dialled: bool, alive: (Duration, Duration)) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (out, queue) = mpsc::unbounded_channel();
        let (accepts, opened_by_peer) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            peer: below.address.clone(),
            out,
            room: Semaphore::new(QUEUE_BYTES),
            streams: Mutex::new(Streams {
                open: BTreeMap::new(),
                next_own: if dialled { 1 } else { 2 },
                last_theirs: 0,
                wide: false,
                unread: 0,
                unread_pieces: 0,
            }),
            read: Notify::new(),
            control: AtomicUsize::new(0),
            ended: watch::Sender::new(None),
        });
        let (reading, writing) = tokio::io::split(socket);
        tokio::spawn(read_loop(reading, shared.clone(), accepts, alive.1));
        tokio::spawn(write_loop(writing, shared.clone(), queue, alive.0));
        Self { shared, below, opened_by_peer: tokio::sync::Mutex::new(opened_by_peer) }
    }

    pub(crate) fn address(&self) -> &str {
        &self.below.address
    }

    pub(crate) fn peer_key(&self) -> PublicKey {
        self.below.peer_key
    }

    pub(crate) fn exported(&self) -> Zeroizing<[u8; 32]> {
        self.below.exported.clone()
    }

    pub(crate) fn wire_bytes(&self) -> WireBytes {
        self.below.counters.read()
    }

    pub(crate) fn open(&self) -> Result<(MuxSend, MuxRecv), NetError> {
        let mut streams = self.shared.lock();
        if let Some(error) = self.shared.ended.borrow().clone() {
            return Err(error);
        }
        if streams.open.len() >= streams.at_once() {
            return Err(NetError::local(format!("too many channels at once to {}", self.shared.peer)));
        }
        let id = streams.next_own;
        streams.next_own += 2;
        // Still under the lock: numbers must reach the peer in rising order, whichever stream speaks first.
        self.shared.post(id, Kind::Data, Bytes::new());
        Ok(self.shared.add(&mut streams, id))
    }

    pub(crate) async fn accept(&self) -> Result<(MuxSend, MuxRecv), NetError> {
        match self.opened_by_peer.lock().await.recv().await {
            Some(stream) => Ok(stream),
            None => Err(self.closed().await),
        }
    }

    pub(crate) fn widen(&self) {
        self.shared.lock().wide = true;
        self.shared.read.notify_one();
    }

    pub(crate) async fn closed(&self) -> NetError {
        self.shared.over().await;
        self.shared.why()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.ended.borrow().is_some()
    }

    pub(crate) fn close(&self, reason: &str) {
        self.shared.post(0, Kind::Close, Bytes::copy_from_slice(clean_reason(reason).as_bytes()));
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.close("it let the connection go");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, stream: u32, kind: Kind, payload: Bytes) {
        if kind != Kind::Data {
            self.control.fetch_add(1, Ordering::AcqRel);
        }
        // The queue is gone only when the connection has ended.
        let _ = self.out.send(Frame { stream, kind, payload });
    }

    /// A frame has left the queue.
    fn written(&self, frame: &Frame) {
        if frame.kind == Kind::Data {
            self.room.add_permits(frame.payload.len());
        } else if self.control.fetch_sub(1, Ordering::AcqRel) > CONTROL_FRAMES {
            self.read.notify_one();
        }
    }

    fn add(self: &Arc<Self>, streams: &mut Streams, id: u32) -> (MuxSend, MuxRecv) {
        let (inbox, arrivals) = mpsc::unbounded_channel();
        let credit = Arc::new(Semaphore::new(WINDOW_BYTES));
        let stream = Stream { credit: credit.clone(), inbox: Some(inbox), granted: WINDOW_BYTES, sending: true };
        streams.open.insert(id, stream);
        let send = MuxSend { id, shared: self.clone(), credit, over: false };
        let recv = MuxRecv { id, shared: self.clone(), arrivals, rest: Bytes::new(), read: 0, over: false };
        (send, recv)
    }

    /// The connection is over: every stream learns it. The first reason stays.
    fn end(&self, error: NetError) {
        self.ended.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert(error);
            first
        });
        let mut streams = self.lock();
        for stream in std::mem::take(&mut streams.open).into_values() {
            stream.credit.close();
        }
        self.room.close();
    }

    /// So many bytes, and pieces, that had arrived wait no longer.
    fn take_in(&self, bytes: usize, pieces: usize) {
        let mut streams = self.lock();
        let full = streams.is_full();
        streams.unread = streams.unread.saturating_sub(bytes);
        streams.unread_pieces = streams.unread_pieces.saturating_sub(pieces);
        if full {
            self.read.notify_one();
        }
    }

    /// Waits until more may arrive.
    async fn room_to_read(&self) {
        loop {
            if self.control.load(Ordering::Acquire) <= CONTROL_FRAMES && !self.lock().is_full() {
                return;
            }
            // `notify_one` leaves a permit when it comes between the check and this line.
            self.read.notified().await;
        }
    }

    /// Waits until the connection has ended.
    async fn over(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
    }

    fn why(&self) -> NetError {
        self.ended.borrow().clone().unwrap_or_else(|| NetError::lost(&self.peer, "it reads no more"))
    }
}

impl Streams {
    /// Forgets a stream that is over in both directions.
    fn settle(&mut self, id: u32) {
        if self.open.get(&id).is_some_and(|stream| stream.inbox.is_none() && !stream.sending) {
            self.open.remove(&id);
        }
    }
}

/// The sending half of a stream.
pub(crate) struct MuxSend {
    id: u32,
    shared: Arc<Shared>,
    credit: Arc<Semaphore>,
    over: bool,
}

impl MuxSend {
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<(), NetError> {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(CHUNK_BYTES));
            let count = part.len() as u32;
            self.credit.acquire_many(count).await.map_err(|_| self.shared.why())?.forget();
            self.shared.room.acquire_many(count).await.map_err(|_| self.shared.why())?.forget();
            self.shared.post(self.id, Kind::Data, part);
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self) {
        self.leave(Kind::Finish);
    }

    pub(crate) fn reset(&mut self) {
        self.leave(Kind::Reset);
    }

    fn leave(&mut self, kind: Kind) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        self.shared.post(self.id, kind, Bytes::new());
        let mut streams = self.shared.lock();
        if let Some(stream) = streams.open.get_mut(&self.id) {
            stream.sending = false;
        }
        streams.settle(self.id);
    }
}

impl Drop for MuxSend {
    fn drop(&mut self) {
        self.leave(Kind::Reset);
    }
}

/// The receiving half of a stream.
pub(crate) struct MuxRecv {
    id: u32,
    shared: Arc<Shared>,
    arrivals: mpsc::UnboundedReceiver<Arrived>,
    rest: Bytes,
    /// Bytes read since credit was last granted.
    read: usize,
    over: bool,
}

impl MuxRecv {
    pub(crate) async fn read(&mut self, most: usize) -> Result<Option<Bytes>, NetError> {
        while self.rest.is_empty() {
            if self.over {
                return Ok(None);
            }
            match self.arrivals.recv().await {
                Some(Arrived::Data(bytes)) => {
                    self.shared.take_in(0, 1);
                    self.rest = bytes;
                }
                Some(Arrived::Finish) => self.over = true,
                Some(Arrived::Reset) => return Err(NetError::lost(&self.shared.peer, "it gave up in the middle")),
                None => return Err(self.shared.why()),
            }
        }
        let part = self.rest.split_to(self.rest.len().min(most));
        self.shared.take_in(part.len(), 0);
        self.read += part.len();
        if self.read >= WINDOW_BYTES / 4 {
            let grant = std::mem::take(&mut self.read);
            if let Some(stream) = self.shared.lock().open.get_mut(&self.id) {
                stream.granted += grant;
            }
            self.shared.post(self.id, Kind::Credit, Bytes::copy_from_slice(&(grant as u32).to_le_bytes()));
        }
        Ok(Some(part))
    }

    pub(crate) fn peer(&self) -> &str {
        &self.shared.peer
    }
}

impl Drop for MuxRecv {
    fn drop(&mut self) {
        let mut streams = self.shared.lock();
        let unfinished = streams.open.get_mut(&self.id).is_some_and(|stream| stream.inbox.take().is_some());
        streams.settle(self.id);
        drop(streams);
        // Nothing more comes in now; what has come is not read any more.
        let (mut unread, mut pieces) = (self.rest.len(), 0);
        while let Ok(arrived) = self.arrivals.try_recv() {
            if let Arrived::Data(bytes) = arrived {
                unread += bytes.len();
                pieces += 1;
            }
        }
        self.shared.take_in(unread, pieces);
        if unfinished {
            self.shared.post(self.id, Kind::Stop, Bytes::new());
        }
    }
}

async fn write_loop(
    mut socket: impl AsyncWrite + Unpin,
    shared: Arc<Shared>,
    mut queue: mpsc::UnboundedReceiver<Frame>,
    show_life: Duration,
) {
    let mut buffer = BytesMut::with_capacity(2 * CHUNK_BYTES);
    loop {
        let first = tokio::select! {
            frame = queue.recv() => frame,
            _ = tokio::time::sleep(show_life) => {
                shared.post(0, Kind::Ping, Bytes::new());
                continue;
            }
            () = shared.over() => None,
        };
        let Some(first) = first else { break };
        let batch = write_batch(&mut socket, &shared, &mut queue, &mut buffer, first, WRITE_PATIENCE);
        let written = tokio::select! {
            written = batch => written,
            () = shared.over() => break,
        };
        let closing = match written {
            Ok(closing) => closing,
            Err(error) => {
                // The reader usually finds the better reason (the peer's last words); give it a moment.
                if tokio::time::timeout(Duration::from_secs(1), shared.over()).await.is_err() {
                    shared.end(io_error(&shared.peer, &error));
                }
                return;
            }
        };
        if closing {
            shared.end(NetError::lost(&shared.peer, "closed by this side"));
            break;
        }
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), socket.shutdown()).await;
}

/// Writes this frame and all that wait behind it; true after a frame that closes the connection.
async fn write_batch(
    socket: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    queue: &mut mpsc::UnboundedReceiver<Frame>,
    buffer: &mut BytesMut,
    first: Frame,
    patience: Duration,
) -> io::Result<bool> {
    let mut next = Some(first);
    let mut closing = false;
    while let Some(frame) = next {
        buffer.put_u32_le(frame.stream);
        buffer.put_u32_le(u32::from(frame.kind as u8) | (frame.payload.len() as u32) << 8);
        let alone = frame.payload.len() > COALESCE_BYTES;
        if !alone {
            buffer.extend_from_slice(&frame.payload);
        }
        if alone || buffer.len() >= CHUNK_BYTES {
            put(socket, buffer, patience).await?;
            buffer.clear();
        }
        if alone {
            put(socket, &frame.payload, patience).await?;
        }
        shared.written(&frame);
        closing |= frame.kind == Kind::Close;
        next = if closing { None } else { queue.try_recv().ok() };
    }
    put(socket, buffer, patience).await?;
    buffer.clear();
    tokio::time::timeout(patience, socket.flush()).await??;
    Ok(closing)
}

/// Writes at most a few chunks; a peer that takes none of them for so long is dead.
async fn put(socket: &mut (impl AsyncWrite + Unpin), bytes: &[u8], patience: Duration) -> io::Result<()> {
    tokio::time::timeout(patience, socket.write_all(bytes)).await?
}

async fn read_loop(
    mut socket: impl AsyncRead + Unpin,
    shared: Arc<Shared>,
    accepts: mpsc::UnboundedSender<(MuxSend, MuxRecv)>,
    silence: Duration,
) {
    let mut buffer = BytesMut::new();
    let reason = loop {
        match take_frame(&mut buffer) {
            Ok(Some(frame)) if frame.kind == Kind::Close => {
                break NetError::lost(&shared.peer, clean_reason(&String::from_utf8_lossy(&frame.payload)));
            }
            Ok(Some(frame)) => match shared.handle(frame, &accepts) {
                Ok(()) => continue,
                Err(what) => break NetError::protocol(&shared.peer, what),
            },
            Ok(None) => {}
            Err(what) => break NetError::protocol(&shared.peer, what),
        }
        buffer.reserve(2 * CHUNK_BYTES);
        tokio::select! {
            () = shared.room_to_read() => {}
            () = shared.over() => break NetError::lost(&shared.peer, "closed by this side"),
        }
        let read = tokio::select! {
            read = tokio::time::timeout(silence, socket.read_buf(&mut buffer)) => read,
            () = shared.over() => break NetError::lost(&shared.peer, "closed by this side"),
        };
        match read {
            Err(_) => break NetError::lost(&shared.peer, "it fell silent"),
            Ok(Ok(0)) => break NetError::lost(&shared.peer, "it hung up"),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => break io_error(&shared.peer, &error),
        }
    };
    shared.end(reason);
}

fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, &'static str> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [s0, s1, s2, s3, kind, l0, l1, l2] = *header;
    let stream = u32::from_le_bytes([s0, s1, s2, s3]);
    let length = u32::from_le_bytes([l0, l1, l2, 0]) as usize;
    let kind = Kind::from_byte(kind).ok_or("a frame of unknown kind")?;
    if length > CHUNK_BYTES {
        return Err("a frame beyond 64 KiB");
    }
    if buffer.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    Ok(Some(Frame { stream, kind, payload: buffer.split_to(length).freeze() }))
}

impl Shared {
    fn handle(
        self: &Arc<Self>,
        frame: Frame,
        accepts: &mpsc::UnboundedSender<(MuxSend, MuxRecv)>,
    ) -> Result<(), &'static str> {
        let id = frame.stream;
        // Declared before the lock, so dropped after it: the halves of a stream take the lock when they are dropped.
        let mut fresh = None;
        let mut streams = self.lock();
        if frame.kind == Kind::Data && !streams.open.contains_key(&id) {
            let theirs = id % 2 != streams.next_own % 2;
            if theirs && id > streams.last_theirs {
                // Twice: the peer learns a little later that a stream is over.
                if streams.open.len() >= 2 * streams.at_once() {
                    return Err("too many streams at once");
                }
                streams.last_theirs = id;
                fresh = Some(self.add(&mut streams, id));
            }
        }
        // Frames for a stream that is over here crossed with the news of it.
        if let Some(stream) = streams.open.get_mut(&id) {
            match frame.kind {
                Kind::Data => {
                    stream.granted =
                        stream.granted.checked_sub(frame.payload.len()).ok_or("bytes beyond the credit")?;
                    // An empty frame opens a stream and has no credit to be bounded by: it is not kept.
                    if let Some(inbox) = stream.inbox.as_ref().filter(|_| !frame.payload.is_empty()) {
                        let bytes = frame.payload.len();
                        if inbox.send(Arrived::Data(frame.payload)).is_ok() {
                            streams.unread += bytes;
                            streams.unread_pieces += 1;
                        }
                    }
                }
                Kind::Finish | Kind::Reset => {
                    if let Some(inbox) = stream.inbox.take() {
                        let last = if frame.kind == Kind::Finish { Arrived::Finish } else { Arrived::Reset };
                        let _ = inbox.send(last);
                    }
                    streams.settle(id);
                }
                Kind::Stop => stream.credit.close(),
                Kind::Credit => {
                    let grant = <[u8; 4]>::try_from(&frame.payload[..]).map_err(|_| "credit of a wrong length")?;
                    let grant = u32::from_le_bytes(grant) as usize;
                    if stream.credit.available_permits() + grant > WINDOW_BYTES {
                        return Err("more credit than a window");
                    }
                    stream.credit.add_permits(grant);
                }
                Kind::Ping | Kind::Close => {}
            }
        }
        drop(streams);
        if let Some(stream) = fresh {
            let _ = accepts.send(stream);
        }
        Ok(())
    }
}

/// What a failed read or write on TLS over TCP means here.
pub(crate) fn io_error(peer: &str, error: &io::Error) -> NetError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => unwelcome(peer, *alert),
        Some(other) => NetError::Untrusted { peer: peer.into(), reason: other.to_string() },
        None => NetError::lost(peer, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u32, kind: Kind, payload: &[u8]) -> Vec<u8> {
        let head = u32::from(kind as u8) | (payload.len() as u32) << 8;
        [&stream.to_le_bytes(), &head.to_le_bytes(), payload].concat()
    }

    /// A connection to a peer that speaks frames by hand, and reads nothing.
    fn beside_a_peer() -> (Arc<Mux>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let below = Below {
            address: "peer".into(),
            peer_key: PublicKey::from_bytes([1; 32]),
            counters: Arc::default(),
            exported: Zeroizing::new([0; 32]),
        };
        let alive = (Duration::from_secs(60), Duration::from_secs(60));
        (Arc::new(Mux::start(ours, below, false, alive)), theirs)
    }

    /// How many of the `frames` the other side takes before it reads no more.
    async fn taken(peer: &mut tokio::io::DuplexStream, frames: impl Iterator<Item = Vec<u8>>) -> usize {
        let mut count = 0;
        for frame in frames {
            if tokio::time::timeout(Duration::from_millis(500), peer.write_all(&frame)).await.is_err() {
                break;
            }
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn a_peer_that_reads_no_control_frames_is_read_no_further() {
        let (mux, mut peer) = beside_a_peer();
        // Every stream that is let go causes two frames.
        let letting_go = tokio::spawn({
            let mux = mux.clone();
            async move {
                while let Ok(stream) = mux.accept().await {
                    drop(stream)
                }
            }
        });
        let streams = (0..50_000u32).map(|at| {
            let id = 2 * at + 1;
            [frame(id, Kind::Data, &[]), frame(id, Kind::Finish, &[])].concat()
        });
        let opened = taken(&mut peer, streams).await;
        assert!(opened < 2 * CONTROL_FRAMES, "{opened} streams");
        assert!(mux.shared.control.load(Ordering::Acquire) < 2 * CONTROL_FRAMES);
        letting_go.abort();
    }

    #[tokio::test]
    async fn short_pieces_that_nobody_reads_are_bounded_in_number() {
        let (mux, mut peer) = beside_a_peer();
        peer.write_all(&frame(1, Kind::Data, &[])).await.unwrap();
        let (_send, mut recv) = mux.accept().await.unwrap();
        let pieces = taken(&mut peer, (0..100_000).map(|_| frame(1, Kind::Data, &[7]))).await;
        assert!((UNREAD_PIECES..UNREAD_PIECES + 4096).contains(&pieces), "{pieces} pieces");
        // Once they are read, it goes on.
        for _ in 0..pieces / 2 {
            assert_eq!(recv.read(1).await.unwrap().unwrap(), Bytes::from_static(&[7]));
        }
        assert!(taken(&mut peer, (0..1000).map(|_| frame(1, Kind::Data, &[7]))).await > 900);
    }
}
