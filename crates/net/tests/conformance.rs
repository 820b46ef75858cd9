//! One suite for every transport: memory, QUIC and TCP must behave alike.

#[path = "support/nodes.rs"]
mod nodes;

use std::time::Duration;

use bytes::Bytes;
use nodes::Nodes;
use tercet_net::{
    FRAME_HEADER_BYTES, FrameLimits, LinkKind, LinkShape, PartyId, SessionSettings, Transport, TransportError,
    memory_world_with,
};
use tokio::runtime::Runtime;

use PartyId::{P0, P1, P2};

type Trio = [Box<dyn Transport>; 3];

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// Makes fresh sessions of one kind.
trait World {
    fn session(&self, deadline: Duration, limits: FrameLimits) -> Trio;
}

struct Memory;

impl World for Memory {
    fn session(&self, deadline: Duration, limits: FrameLimits) -> Trio {
        memory_world_with(deadline, limits, LinkShape::NONE).map(|transport| Box::new(transport) as Box<dyn Transport>)
    }
}

struct Network {
    runtime: Runtime,
    nodes: Nodes,
}

impl Network {
    fn new(kind: LinkKind) -> Self {
        let runtime = nodes::runtime();
        let nodes = runtime.block_on(Nodes::start(kind));
        Self { runtime, nodes }
    }
}

impl World for Network {
    fn session(&self, deadline: Duration, limits: FrameLimits) -> Trio {
        let settings = SessionSettings { round_deadline: deadline, limits };
        let links = self.runtime.block_on(self.nodes.session([settings; 3]));
        links.map(|links| Box::new(links) as Box<dyn Transport>)
    }
}

#[test]
fn memory_conforms() {
    conforms(&Memory);
}

#[test]
fn quic_conforms() {
    conforms(&Network::new(LinkKind::Quic));
}

#[test]
fn tcp_conforms() {
    conforms(&Network::new(LinkKind::Tcp));
}

fn conforms(world: &dyn World) {
    frames_arrive_whole_and_in_turn(world);
    meters_are_exact(world);
    large_frames_cross(world);
    a_second_frame_with_one_tag_is_refused(world);
    frames_over_the_cap_do_not_leave(world);
    unread_frames_have_a_cap(world);
    silence_meets_the_deadline(world);
    an_abort_reaches_everyone(world);
    what_was_sent_arrives_before_the_loss(world);
    the_helper_is_bounded(world);
    misuse_is_an_error(world);
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn frames_arrive_whole_and_in_turn(world: &dyn World) {
    let [mut p0, mut p1, mut p2] = world.session(LONG, FrameLimits::default());
    p0.send(P1, 1, text("from p0")).unwrap();
    p2.send(P1, 1, text("from p2")).unwrap();
    p2.send(P1, 2, Bytes::new()).unwrap();
    p2.send(P1, 3, text("overtakes")).unwrap();
    assert_eq!(p1.recv(P2, 3).unwrap(), "overtakes");
    assert_eq!(p1.recv(P0, 1).unwrap(), "from p0");
    assert_eq!(p1.recv(P2, 2).unwrap(), "");
    assert_eq!(p1.recv(P2, 1).unwrap(), "from p2");
    // Both directions at once, each step waiting for the other's.
    let steps = 200u64;
    let other = std::thread::spawn(move || {
        for step in 10..10 + steps {
            p2.send(P1, step, Bytes::copy_from_slice(&step.to_le_bytes())).unwrap();
            assert_eq!(p2.recv(P1, step).unwrap()[..], (2 * step).to_le_bytes());
        }
        p2
    });
    for step in 10..10 + steps {
        p1.send(P2, step, Bytes::copy_from_slice(&(2 * step).to_le_bytes())).unwrap();
        assert_eq!(p1.recv(P2, step).unwrap()[..], step.to_le_bytes());
    }
    other.join().unwrap();
}

fn meters_are_exact(world: &dyn World) {
    let [mut p0, mut p1, mut p2] = world.session(LONG, FrameLimits::default());
    let sizes = [0usize, 1, 63, 64, 65, 8191, 8192, 8193, 65536, 100_000];
    for (tag, size) in sizes.into_iter().enumerate() {
        p0.send(P2, tag as u64, Bytes::from(vec![tag as u8; size])).unwrap();
        p1.send(P2, tag as u64, Bytes::from(vec![tag as u8; size])).unwrap();
    }
    for (tag, size) in sizes.into_iter().enumerate() {
        for from in [P0, P1] {
            assert_eq!(p2.recv(from, tag as u64).unwrap(), vec![tag as u8; size]);
        }
    }
    let bytes = sizes.iter().map(|size| (size + FRAME_HEADER_BYTES) as u64).sum::<u64>();
    for (meter, peer) in [(p0.meter(), P2), (p1.meter(), P2)] {
        assert_eq!((meter.sent[peer.index()].frames, meter.sent[peer.index()].bytes), (10, bytes));
        assert!(meter.received.iter().all(|traffic| traffic.bytes == 0));
    }
    let meter = p2.meter();
    assert!(meter.sent.iter().all(|traffic| traffic.frames == 0));
    assert_eq!(meter.received[0], p0.meter().sent[2]);
    assert_eq!(meter.received[1], p1.meter().sent[2]);
    assert_eq!(meter.received[2].frames, 0);
}

fn large_frames_cross(world: &dyn World) {
    let [_p0, mut p1, mut p2] = world.session(LONG, FrameLimits::default());
    let pattern = |seed: u32| (0..20_000_000u32).map(|at| (at.wrapping_mul(seed) >> 16) as u8).collect::<Vec<u8>>();
    let (one, other) = (Bytes::from(pattern(2_654_435_761)), Bytes::from(pattern(40_503)));
    let (sent_one, sent_other) = (one.clone(), other.clone());
    let thread = std::thread::spawn(move || {
        p2.send(P1, 7, sent_other).unwrap();
        p2.flush().unwrap();
        assert!(p2.recv(P1, 7).unwrap() == one, "a large frame was changed");
        p2
    });
    p1.send(P2, 7, sent_one).unwrap();
    p1.flush().unwrap();
    assert!(p1.recv(P2, 7).unwrap() == other, "a large frame was changed");
    thread.join().unwrap();
}

fn a_second_frame_with_one_tag_is_refused(world: &dyn World) {
    for read_between in [false, true] {
        let [_p0, mut p1, mut p2] = world.session(LONG, FrameLimits::default());
        p1.send(P2, 5, text("once")).unwrap();
        if read_between {
            assert_eq!(p2.recv(P1, 5).unwrap(), "once");
        }
        p1.send(P2, 5, text("again")).unwrap();
        let error = p2.recv(P1, 6).unwrap_err();
        assert!(matches!(error, TransportError::Protocol { party: P1, .. }), "{error}");
    }
}

fn frames_over_the_cap_do_not_leave(world: &dyn World) {
    let limits = FrameLimits { frame_cap: 1000, ..FrameLimits::default() };
    let [_p0, mut p1, _p2] = world.session(LONG, limits);
    p1.send(P2, 1, Bytes::from(vec![0; 1000])).unwrap();
    let error = p1.send(P2, 2, Bytes::from(vec![0; 1001])).unwrap_err();
    assert!(matches!(error, TransportError::Protocol { party: P1, .. }), "{error}");
}

fn unread_frames_have_a_cap(world: &dyn World) {
    let limits = FrameLimits { unread_cap: 20_000, ..FrameLimits::default() };
    let [_p0, mut p1, mut p2] = world.session(LONG, limits);
    for tag in 0..30 {
        // Beyond the cap the sender may learn of it first: its peer leaves the session.
        if p1.send(P2, tag, Bytes::from(vec![0; 1000])).is_err() {
            break;
        }
    }
    let error = p2.recv(P1, 99).unwrap_err();
    assert!(matches!(error, TransportError::Protocol { party: P1, .. }), "{error}");
}

fn silence_meets_the_deadline(world: &dyn World) {
    let [_p0, mut p1, _p2] = world.session(SHORT, FrameLimits::default());
    let error = p1.recv(P0, 1).unwrap_err();
    assert!(matches!(error, TransportError::Deadline { party: P0, waited_ms } if waited_ms >= 300), "{error}");
    let error = p1.recv(P2, 1).unwrap_err();
    assert!(matches!(error, TransportError::Deadline { party: P2, .. }), "{error}");
}

fn an_abort_reaches_everyone(world: &dyn World) {
    let [mut p0, mut p1, mut p2] = world.session(LONG, FrameLimits::default());
    // P1 waits for P0, which is silent: the news comes from P2.
    let waiting = std::thread::spawn(move || (p1.recv(P0, 1).unwrap_err(), p1));
    p2.abort("the plan\u{7} does not fit");
    let (at_p1, mut p1) = waiting.join().unwrap();
    let told = TransportError::Aborted { party: P2, reason: "the plan does not fit".into() };
    assert_eq!(at_p1, told);
    assert_eq!(p0.recv(P1, 1).unwrap_err(), told);
    assert_eq!(p2.recv(P1, 1).unwrap_err(), told);
    assert_eq!(p1.send(P2, 1, Bytes::new()).unwrap_err(), told);
}

fn what_was_sent_arrives_before_the_loss(world: &dyn World) {
    let [mut p0, mut p1, _p2] = world.session(LONG, FrameLimits::default());
    for tag in 0..50 {
        p0.send(P1, tag, Bytes::from(vec![tag as u8; 50_000])).unwrap();
    }
    drop(p0);
    for tag in 0..50 {
        assert_eq!(p1.recv(P0, tag).unwrap(), vec![tag as u8; 50_000]);
    }
    let error = p1.recv(P0, 50).unwrap_err();
    assert!(matches!(error, TransportError::Lost { party: P0, .. }), "{error}");
}

fn the_helper_is_bounded(world: &dyn World) {
    let limits = FrameLimits { helper_window: 2 << 20, ..FrameLimits::default() };
    let [mut p0, mut p1, _p2] = world.session(SHORT, limits);
    let block = Bytes::from(vec![3; 1 << 20]);
    // Two windows, and what a network link may hold in between, are far below this.
    let refused = (0..200).find_map(|tag| p0.send(P1, tag, block.clone()).err().map(|error| (tag, error)));
    let (sent, error) = refused.expect("the helper ran ahead without bound");
    assert!(matches!(error, TransportError::Deadline { party: P1, .. }), "{error}");
    for tag in (0..sent).rev() {
        assert_eq!(p1.recv(P0, tag).unwrap().len(), block.len(), "frame {tag}");
    }
    p0.send(P1, 1000, text("there is room again")).unwrap();
    assert_eq!(p1.recv(P0, 1000).unwrap(), "there is room again");
}

fn misuse_is_an_error(world: &dyn World) {
    let [mut p0, ..] = world.session(LONG, FrameLimits::default());
    assert!(matches!(p0.send(P0, 1, Bytes::new()), Err(TransportError::Protocol { party: P0, .. })));
    assert!(matches!(p0.recv(P0, 1), Err(TransportError::Protocol { party: P0, .. })));
    assert_eq!(p0.party(), P0);
}
