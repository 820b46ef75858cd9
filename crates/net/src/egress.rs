//! The way out of a UDP socket, held to the shape of a link: QUIC's own packets, delayed and spaced.
//!
//! Each address that is sent to has a link of its own, which serialises one datagram after another at its bandwidth and
//! delivers each a delay after its last bit has left ([`LinkClock`]). A batch that the kernel would split (GSO) is
//! split here wherever its parts lie more than [`BURST`] apart. A thread of the socket hands every datagram to the
//! kernel at the instant of its arrival; whoever receives it needs to know nothing. Both directions of a link are
//! shaped because both ends shape what they send.
//!
//! The link's queue is that of the sender's own interface: behind [`QUEUE`] of serialisation the sender waits for room,
//! as it would for a full socket buffer, so a shaped link loses nothing and its queue adds at most so much delay. Links
//! to other addresses go on meanwhile.
//!
//! A datagram is never early. It is late by what the scheduler takes to wake a thread, some 25 us where that was
//! measured; on a link that was idle, as each round of a protocol finds it, the thread wakes ahead of time and spins the
//! last [`SPIN`]. Sizes are those of UDP payloads, as in [`WireBytes`](crate::WireBytes). The cost is one copy a datagram
//! and one wake-up a burst.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::LinkShape;
use crate::shaped::LinkClock;

/// Serialisation that may wait before a link before its sender has to.
const QUEUE: Duration = Duration::from_millis(4);

/// Datagrams of one batch that arrive within this time arrive together, as a network card would report them.
const BURST: Duration = Duration::from_micros(250);

/// How long the thread spins before a datagram that somebody is likely to wait for.
const SPIN: Duration = Duration::from_micros(40);

/// How long a datagram may find the socket's own buffer full before it is dropped.
const FULL_SOCKET: Duration = Duration::from_millis(20);

thread_local! {
    /// Where the last datagram that found no room on this thread was bound for. quinn tells a socket's poller neither the
    /// connection nor the address, but asks it right after the refusal and on the same thread.
    static REFUSED: Cell<Option<SocketAddr>> = const { Cell::new(None) };
}

/// A UDP socket whose datagrams leave as if through a link of some shape.
pub(crate) struct ShapedSocket {
    line: Arc<Line>,
}

/// What the socket shares with its thread.
struct Line {
    shape: LinkShape,
    socket: Arc<dyn AsyncUdpSocket>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    links: BTreeMap<SocketAddr, Link>,
    /// What is queued or under way, by arrival, then by order of sending.
    flight: BTreeMap<(Instant, u64), Burst>,
    sent: u64,
    /// The socket is gone; what it had sent still arrives.
    closed: bool,
}

/// The way to one address. One that is idle need not be remembered.
struct Link {
    clock: LinkClock,
    waiting: Vec<Waker>,
}

/// Datagrams that arrive together.
struct Burst {
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    /// Size of each but the last, where there are several.
    segment: Option<usize>,
    bytes: Vec<u8>,
    /// Whether its link was idle when it came.
    prompt: bool,
}

impl ShapedSocket {
    /// Starts the thread that `socket` sends from.
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, shape: LinkShape) -> io::Result<Self> {
        let line = Arc::new(Line { shape, socket, state: Mutex::default(), changed: Condvar::new() });
        let thread = line.clone();
        std::thread::Builder::new().name("shaped-link".into()).spawn(move || thread.deliver())?;
        Ok(Self { line })
    }
}

impl fmt::Debug for ShapedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShapedSocket({}, {:?})", self.line.shape, self.line.socket)
    }
}

impl Drop for ShapedSocket {
    fn drop(&mut self) {
        self.line.lock().closed = true;
        self.line.changed.notify_all();
    }
}

impl AsyncUdpSocket for ShapedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { line: self.line.clone(), waits_for: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // The clock is read under the lock: what enters later must not arrive sooner.
        self.line.enter(self.line.lock(), transmit, Instant::now())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.line.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.line.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.line.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.line.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.line.socket.may_fragment()
    }
}

/// Waits for room on the link whose queue was full.
struct Room {
    line: Arc<Line>,
    waits_for: Option<SocketAddr>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({:?})", self.waits_for)
    }
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(refused) = REFUSED.take() {
            self.waits_for = Some(refused);
        }
        if let Some(address) = self.waits_for
            && self.line.waits(address, cx.waker(), Instant::now())
        {
            return Poll::Pending;
        }
        self.waits_for = None;
        Poll::Ready(Ok(()))
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch of datagrams onto its link, whole, or refuses it because the link's queue is full.
    fn enter(&self, mut state: MutexGuard<'_, State>, transmit: &Transmit<'_>, now: Instant) -> io::Result<()> {
        let State { links, flight, sent, .. } = &mut *state;
        let link = links
            .entry(transmit.destination)
            .or_insert_with(|| Link { clock: LinkClock::new(self.shape), waiting: Vec::new() });
        let backlog = link.clock.backlog(now);
        if backlog > QUEUE {
            REFUSED.set(Some(transmit.destination));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let next_before = flight.first_key_value().map(|(key, _)| *key);
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for part in transmit.contents.chunks(segment * self.shape.datagrams_within(BURST, segment)) {
            let burst = Burst {
                destination: transmit.destination,
                src_ip: transmit.src_ip,
                ecn: transmit.ecn,
                segment: (part.len() > segment).then_some(segment),
                bytes: part.to_vec(),
                prompt: backlog.is_zero(),
            };
            flight.insert((link.clock.arrival(now, part.len()), *sent), burst);
            *sent += 1;
        }
        let sooner = flight.first_key_value().map(|(key, _)| *key) != next_before;
        drop(state);
        if sooner {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Whether a sender to this address has to wait; if so, it will be woken.
    fn waits(&self, address: SocketAddr, waker: &Waker, now: Instant) -> bool {
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&address) else { return false };
        if link.clock.backlog(now) <= QUEUE / 2 {
            return false;
        }
        if !link.waiting.iter().any(|other| other.will_wake(waker)) {
            link.waiting.push(waker.clone());
            drop(state);
            self.changed.notify_one();
        }
        true
    }

    /// The thread: sends what arrives now and wakes who may send again, until the socket is gone and all has arrived.
    fn deliver(&self) {
        wake_punctually();
        let mut arrived = Vec::new();
        let mut woken = Vec::new();
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            while let Some(first) = state.flight.first_entry()
                && first.key().0 <= now
            {
                arrived.push(first.remove());
            }
            for link in state.links.values_mut().filter(|link| link.clock.backlog(now) <= QUEUE / 2) {
                woken.append(&mut link.waiting);
            }
            if !arrived.is_empty() || !woken.is_empty() {
                for burst in &arrived {
                    let idle = |link: &mut Link| link.clock.backlog(now).is_zero() && link.waiting.is_empty();
                    if state.links.get_mut(&burst.destination).is_some_and(idle) {
                        state.links.remove(&burst.destination);
                    }
                }
                drop(state);
                woken.drain(..).for_each(Waker::wake);
                arrived.drain(..).for_each(|burst| self.send(&burst));
                state = self.lock();
                continue;
            }
            let room = state.links.values().filter(|link| !link.waiting.is_empty());
            let room = room.map(|link| now + link.clock.backlog(now).saturating_sub(QUEUE / 2)).min();
            let first = state.flight.first_key_value().map(|(key, burst)| (key.0, burst.prompt));
            let pause = match (room, first) {
                (None, None) if state.closed => return,
                (None, None) => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                (None, Some((due, true))) if due <= now + SPIN => {
                    drop(state);
                    while Instant::now() < due {
                        std::hint::spin_loop();
                    }
                    state = self.lock();
                    continue;
                }
                (None, Some((due, prompt))) => (due - now) - if prompt { SPIN } else { Duration::ZERO },
                (Some(room), first) => first.map_or(room, |(due, _)| due.min(room)) - now,
            };
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn send(&self, burst: &Burst) {
        let transmit = Transmit {
            destination: burst.destination,
            ecn: burst.ecn,
            contents: &burst.bytes,
            segment_size: burst.segment,
            src_ip: burst.src_ip,
        };
        let mut full_since = None;
        while let Err(error) = self.socket.try_send(&transmit) {
            let since = *full_since.get_or_insert_with(Instant::now);
            if error.kind() != io::ErrorKind::WouldBlock || since.elapsed() > FULL_SOCKET {
                tracing::debug!(%error, to = %burst.destination, "datagrams were lost at the socket");
                return;
            }
            std::thread::sleep(BURST);
        }
    }
}

/// Asks the kernel to wake this thread when it is due, not up to 50 us later so as to join wake-ups. Where the kernel does
/// not offer it, datagrams are that much later.
fn wake_punctually() {
    let Ok(thread) = std::fs::read_link("/proc/thread-self") else { return };
    if let Some(id) = thread.file_name() {
        let _ = std::fs::write(std::path::Path::new("/proc").join(id).join("timerslack_ns"), "1");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// When something was sent, where to, how many bytes, and in segments of how many.
    type Sent = (Instant, SocketAddr, usize, Option<usize>);

    /// Takes whatever is sent, and remembers it.
    #[derive(Debug, Default)]
    struct Sink {
        took: Mutex<Vec<Sent>>,
        /// So many sends find the buffer full first.
        full: AtomicUsize,
    }

    impl AsyncUdpSocket for Sink {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("the shaped socket has its own")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            if self.full.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |full| full.checked_sub(1)).is_ok() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let entry = (Instant::now(), transmit.destination, transmit.contents.len(), transmit.segment_size);
            self.took.lock().unwrap().push(entry);
            Ok(())
        }

        fn poll_recv(
            &self,
            _cx: &mut Context<'_>,
            _bufs: &mut [IoSliceMut<'_>],
            _meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(to(0))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn batch(port: u16, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit { destination: to(port), ecn: None, contents, segment_size, src_ip: None }
    }

    /// A line without its thread. 8 Mbit/s: a byte takes a microsecond.
    fn line(delay: Duration) -> Line {
        let shape = LinkShape { delay, bandwidth: Some(8_000_000) };
        Line { shape, socket: Arc::<Sink>::default(), state: Mutex::default(), changed: Condvar::new() }
    }

    fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn batches_arrive_in_the_parts_that_the_link_makes_of_them() {
        let line = line(us(5000));
        let t0 = Instant::now();
        // Five datagrams of 100 us and one of 50: two of them fit a burst.
        line.enter(line.lock(), &batch(1, &[0; 550], Some(100)), t0).unwrap();
        // Another link is free, and a datagram longer than a burst stays whole.
        line.enter(line.lock(), &batch(2, &[0; 1000], None), t0).unwrap();
        // The first link is still busy for 450 us.
        line.enter(line.lock(), &batch(1, &[0; 10], None), t0 + us(100)).unwrap();
        let state = line.lock();
        let seen = state.flight.iter().map(|((due, _), burst)| {
            (*due - t0, burst.destination.port(), burst.bytes.len(), burst.segment, burst.prompt)
        });
        let expected = [
            (us(5200), 1, 200, Some(100), true),
            (us(5400), 1, 200, Some(100), true),
            (us(5550), 1, 150, Some(100), true),
            (us(5560), 1, 10, None, false),
            (us(6000), 2, 1000, None, true),
        ];
        assert_eq!(seen.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_full_queue_makes_its_own_senders_wait() {
        let line = Arc::new(line(us(0)));
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(woken.clone());
        let mut room = Room { line: line.clone(), waits_for: None };
        let mut writable = |now_full: bool| {
            let ready = Pin::new(&mut room).poll_writable(&mut Context::from_waker(&waker)).is_ready();
            assert_eq!(ready, !now_full);
        };
        // The clock of this test is ahead, so that what is queued stays queued.
        let t0 = Instant::now() + Duration::from_secs(1000);
        writable(false);
        line.enter(line.lock(), &batch(1, &[0; 4000], None), t0).unwrap();
        line.enter(line.lock(), &batch(1, &[0; 4000], None), t0).unwrap();
        let full = line.enter(line.lock(), &batch(1, &[0; 1], None), t0).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        writable(true);
        writable(true);
        assert_eq!(line.lock().links[&to(1)].waiting.len(), 1, "a sender waits once");
        line.enter(line.lock(), &batch(2, &[0; 1], None), t0).unwrap();
        // Half a queue later there is room; with no thread to wake it, the sender asks.
        assert!(line.waits(to(1), &waker, t0 + us(5999)));
        assert!(!line.waits(to(1), &waker, t0 + us(6000)));
        line.enter(line.lock(), &batch(1, &[0; 1], None), t0 + us(4000)).unwrap();
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_thread_delivers_no_sooner_than_the_link_and_everything() {
        let sink = Arc::<Sink>::default();
        sink.full.store(3, Ordering::SeqCst);
        let shape = LinkShape { delay: us(3000), bandwidth: Some(8_000_000) };
        let socket = Arc::new(ShapedSocket::new(sink.clone(), shape).unwrap());
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(woken.clone());
        let mut room = socket.clone().create_io_poller();
        let start = Instant::now();
        let (mut sent, mut refused) = (0, 0);
        while sent < 20 {
            if room.as_mut().poll_writable(&mut Context::from_waker(&waker)).is_pending() {
                std::thread::yield_now();
                continue;
            }
            match socket.try_send(&batch(1, &[0; 1200], Some(600))) {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    refused += 1;
                }
            }
        }
        let line = Arc::downgrade(&socket.line);
        drop((room, socket));
        // The thread goes when all has arrived.
        while line.strong_count() > 0 {
            std::thread::sleep(us(500));
        }
        let took = sink.took.lock().unwrap();
        assert_eq!(took.len(), 40, "600 bytes are longer than a burst");
        for (index, (at, address, bytes, segment)) in took.iter().enumerate() {
            assert_eq!((*address, *bytes, *segment), (to(1), 600, None));
            assert!(*at >= start + us(3000 + 600 * (index as u64 + 1)), "datagram {index} was early");
        }
        assert!(refused > 0 && woken.0.load(Ordering::SeqCst) > 0, "24 ms of datagrams do not fit a queue of 4");
    }
}
