//! What a frame costs on each transport over loopback, and what a ping and a bulk transfer see of a shaped link.
//!
//!     cargo bench -p tercet-benches --bench net [-- speed | shapes]
//!
//! `speed`: one round of 64 bytes and a stream of 1 MiB frames between two parties in this process, each kind of link in
//! turn, again and again; medians, beside TCP with TLS 1.3, and the processor time that the process took. Limits on the
//! machine of reference (2 cores, 4.5 GHz): 7 us a round on plain TCP and 11 on a bare QUIC stream; 4.9 GB/s for TLS over
//! TCP and 4.6 for QUIC with 6500-byte datagrams, each end on a core of its own.
//!
//! `shapes`: a round trip of 64 bytes against twice the delay, and payload a second against the bandwidth, for a fresh
//! connection (its window still grows) and a warm one.

#[path = "../../crates/net/tests/support/nodes.rs"]
mod nodes;

use std::time::{Duration, Instant};

use bytes::Bytes;
use nodes::Nodes;
use tercet_net::{LinkKind, LinkProfile, LinkShape, PartyId, SessionSettings, Transport, memory_world};
use tokio::runtime::Runtime;

use PartyId::{P1, P2};

const DEADLINE: Duration = Duration::from_secs(30);
const FRAME_BYTES: usize = 1 << 20;

/// Repetitions of each measurement, its kinds taking turns.
const TURNS: usize = 15;
const ROUNDS: u64 = 1000;
const STREAM_FRAMES: u64 = 256;

fn main() {
    let chosen = |section: &str| {
        let mut sections = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).peekable();
        sections.peek().is_none() || sections.any(|arg| arg == section)
    };
    if chosen("speed") {
        speed();
    }
    if chosen("shapes") {
        shapes();
    }
}

type Pair = (Box<dyn Transport>, Box<dyn Transport>);

struct Network {
    name: String,
    /// None for memory.
    nodes: Option<(Runtime, Nodes)>,
}

impl Network {
    fn new(kind: LinkKind, profile: LinkProfile, shape: LinkShape) -> Self {
        let name = match kind {
            LinkKind::Quic => format!("quic {profile}"),
            LinkKind::Tcp => "tcp".into(),
        };
        let runtime = nodes::runtime();
        let nodes = runtime.block_on(Nodes::start_with(kind, profile, shape));
        Self { name, nodes: Some((runtime, nodes)) }
    }

    fn session(&self) -> Pair {
        let Some((runtime, nodes)) = &self.nodes else {
            let [_, p1, p2] = memory_world(DEADLINE);
            return (Box::new(p1), Box::new(p2));
        };
        let [_, p1, p2] = runtime.block_on(nodes.session([SessionSettings::default(); 3]));
        (Box::new(p1), Box::new(p2))
    }
}

/// How long each of so many rounds took in which each side sends 64 bytes and waits for the other's.
fn rounds((mut p1, mut p2): Pair, rounds: u64) -> Vec<Duration> {
    let other = std::thread::spawn(move || {
        for tag in 0..rounds {
            let frame = p2.recv(P1, tag).expect("a frame");
            p2.send(P1, tag, frame).expect("room");
        }
        p2
    });
    let frame = Bytes::from(vec![1; 64]);
    let mut start = Instant::now();
    let times = (0..rounds).map(|tag| {
        p1.send(P2, tag, frame.clone()).expect("room");
        p1.recv(P2, tag).expect("a frame");
        let end = Instant::now();
        end - std::mem::replace(&mut start, end)
    });
    let times = times.collect();
    other.join().expect("the other side");
    times
}

/// How long so many frames of 1 MiB take from one side to the other, from the arrival of the first to that of the last.
fn stream((mut p1, mut p2): Pair, frames: u64) -> Duration {
    let other = std::thread::spawn(move || {
        let mut first = None;
        for tag in 0..frames {
            p2.recv(P1, tag).expect("a frame");
            first.get_or_insert_with(Instant::now);
        }
        let took = first.expect("a frame").elapsed();
        p2.send(P1, 0, Bytes::new()).expect("room");
        (p2, took)
    });
    let frame = Bytes::from(vec![1; FRAME_BYTES]);
    for tag in 0..frames {
        p1.send(P2, tag, frame.clone()).expect("room");
    }
    p1.recv(P2, 0).expect("the end");
    other.join().expect("the other side").1
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("a number"));
    values[values.len() / 2]
}

/// Processor time of all threads of this process, in seconds, to a hundredth.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// What the turns of one kind of link gave.
#[derive(Default)]
struct Turns {
    round_us: Vec<f64>,
    gb_per_s: Vec<f64>,
    round_cpu: f64,
    stream_cpu: f64,
}

fn speed() {
    let networks = [
        Network { name: "memory".into(), nodes: None },
        Network::new(LinkKind::Tcp, LinkProfile::Loopback, LinkShape::NONE),
        Network::new(LinkKind::Quic, LinkProfile::Loopback, LinkShape::NONE),
        Network::new(LinkKind::Quic, LinkProfile::Lan1500, LinkShape::NONE),
    ];
    let mut all = networks.each_ref().map(|_| Turns::default());
    for _ in 0..TURNS {
        for (network, turns) in networks.iter().zip(&mut all) {
            let session = network.session();
            let before = cpu_seconds();
            turns.round_us.push(median(rounds(session, ROUNDS)).as_secs_f64() * 1e6);
            let between = cpu_seconds();
            let session = network.session();
            let took = stream(session, STREAM_FRAMES).as_secs_f64();
            turns.gb_per_s.push((STREAM_FRAMES - 1) as f64 * FRAME_BYTES as f64 / took / 1e9);
            turns.round_cpu += between - before;
            turns.stream_cpu += cpu_seconds() - between;
        }
    }
    let all = all.map(|turns| {
        let gigabytes = (TURNS as u64 * STREAM_FRAMES) as f64 * FRAME_BYTES as f64 / 1e9;
        let rounds = TURNS as f64 * ROUNDS as f64;
        let cpu = (1e6 * turns.round_cpu / rounds, turns.stream_cpu / gigabytes);
        (median(turns.round_us), median(turns.gb_per_s), cpu)
    });
    let tcp = all[1];
    println!("{:<14} {:>9} {:>9} {:>9}   {:>6} {:>7} {:>8}", "", "a round", "over tcp", "cpu", "bulk", "of tcp", "cpu");
    println!("{:<14} {:>9} {:>9} {:>9}   {:>6} {:>7} {:>8}", "", "us", "us", "us", "GB/s", "", "s a GB");
    for (network, (round, bulk, (round_cpu, bulk_cpu))) in networks.iter().zip(all) {
        println!(
            "{:<14} {round:>9.1} {:>+9.1} {round_cpu:>9.1}   {bulk:>6.2} {:>7.2} {bulk_cpu:>8.3}",
            network.name,
            round - tcp.0,
            bulk / tcp.1,
        );
    }
}

fn shapes() {
    println!(
        "{:<14} {:<14} {:>9} {:>9} {:>6} {:>9}   {:>8} {:>8} {:>8} {:>6}",
        "shape", "link", "ping ms", "nominal", "ratio", "p90 - it", "Mbit/s", "fresh", "warm", "ratio"
    );
    for shape in ["lan", "metro", "wan", "5ms,500mbit"] {
        let nominal = shape.parse::<LinkShape>().expect("a shape");
        let bandwidth = nominal.bandwidth.expect("a bound") as f64;
        // Half a second of the link, and a little for the first frame.
        let frames = 2 + (bandwidth / 8.0 / 2.0 / FRAME_BYTES as f64) as u64;
        for (kind, profile) in [
            (LinkKind::Quic, LinkProfile::Loopback),
            (LinkKind::Quic, LinkProfile::Lan1500),
            (LinkKind::Quic, LinkProfile::Wan),
            (LinkKind::Tcp, LinkProfile::Loopback),
        ] {
            let network = Network::new(kind, profile, nominal);
            let pings = 10 + (Duration::from_millis(500).as_nanos() / (2 * nominal.delay).as_nanos()) as u64;
            let mut seen = rounds(network.session(), pings);
            seen.sort();
            let [ping, slow] = [seen[seen.len() / 2], seen[seen.len() * 9 / 10]].map(|time| 1e3 * time.as_secs_f64());
            let twice = 2e3 * nominal.delay.as_secs_f64();
            let bulk = || {
                let took = stream(network.session(), frames).as_secs_f64();
                8.0 * ((frames - 1) as f64 * FRAME_BYTES as f64) / took
            };
            let [fresh, warm] = [bulk(), median((0..3).map(|_| bulk()).collect())];
            println!(
                "{shape:<14} {:<14} {ping:>9.3} {twice:>9.3} {:>6.3} {:>9.3}   {:>8.0} {:>8.0} {:>8.0} {:>6.3}",
                network.name,
                ping / twice,
                slow - twice,
                bandwidth / 1e6,
                fresh / 1e6,
                warm / 1e6,
                warm / bandwidth,
            );
        }
    }
}
