//! Greetings under way: connections whose other end has not proved who it is.
//!
//! A stranger can begin as many as it likes, so there is a bound, and what is beyond it gives way:
//! the oldest greeting from the address that has most. Whoever greets promptly is never turned away
//! for whoever does not, not even from one address; to push a newcomer out, a stranger would have
//! to begin a whole table of greetings within the moments that a handshake takes. Greetings from
//! where peers are known to be have a table of their own, which no other address reaches.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Greetings of strangers that are under way at once.
const OF_STRANGERS: usize = 1024;
/// And of those from addresses of peers.
const OF_PEERS: usize = 256;
/// Addresses of peers that are remembered.
const PEERS_REMEMBERED: usize = 64;

/// All greetings under way over one transport.
#[derive(Debug, Default)]
pub(crate) struct Greetings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Strangers', then those from addresses of peers; in the order in which they began.
    tables: [BTreeMap<u64, Entry>; 2],
    peers: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Entry {
    from: IpAddr,
    /// Rings when it must give way.
    ended: Arc<Notify>,
}

/// A greeting under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Greeting {
    of: Arc<Greetings>,
    number: u64,
    ended: Arc<Notify>,
}

impl Greetings {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many strangers' are under way.
    pub(crate) fn of_strangers(&self) -> usize {
        self.lock().tables[0].len()
    }

    /// A peer has proved itself from this address, or is known to be there.
    pub(crate) fn know(&self, address: IpAddr) {
        let mut state = self.lock();
        if state.peers.len() < PEERS_REMEMBERED {
            state.peers.insert(network(address));
        }
    }

    /// One more begins; where there is no room for it, another one ends.
    pub(crate) fn begin(self: &Arc<Self>, address: IpAddr) -> Greeting {
        let mut state = self.lock();
        let from = network(address);
        let of_peer = state.peers.contains(&from);
        let limit = if of_peer { OF_PEERS } else { OF_STRANGERS };
        let number = state.next;
        state.next += 1;
        let table = &mut state.tables[usize::from(of_peer)];
        while table.len() >= limit {
            let Some(oldest) = oldest_of_most(table) else { break };
            if let Some(gone) = table.remove(&oldest) {
                gone.ended.notify_one();
            }
        }
        let ended = Arc::new(Notify::new());
        table.insert(number, Entry { from, ended: ended.clone() });
        Greeting { of: self.clone(), number, ended }
    }
}

/// The oldest of the address that has most; of addresses that have as many, that which has the
/// oldest.
fn oldest_of_most(table: &BTreeMap<u64, Entry>) -> Option<u64> {
    let mut counts: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
    for (number, entry) in table {
        counts.entry(entry.from).or_insert((0, *number)).0 += 1;
    }
    counts.into_values().max_by_key(|(count, oldest)| (*count, Reverse(*oldest))).map(|(_, oldest)| oldest)
}

/// What belongs to one owner, most likely: an address, of IPv6 the network of 64 bits.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Greeting {
    /// Waits until this one must give way.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        for table in &mut self.of.lock().tables {
            table.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn is_ended(greeting: &Greeting) -> bool {
        let ended = std::pin::pin!(greeting.ended());
        let waker = std::task::Waker::noop();
        ended.poll(&mut std::task::Context::from_waker(waker)).is_ready()
    }

    #[test]
    fn the_oldest_of_whoever_has_most_gives_way() {
        let greetings = Arc::new(Greetings::default());
        let few: Vec<Greeting> = (0..24).map(|_| greetings.begin(address(1))).collect();
        let many: Vec<Greeting> = (0..OF_STRANGERS - 24).map(|_| greetings.begin(address(2))).collect();
        assert_eq!(greetings.of_strangers(), OF_STRANGERS);
        let newcomers: Vec<Greeting> = (0..10).map(|_| greetings.begin(address(2))).collect();
        assert_eq!(greetings.of_strangers(), OF_STRANGERS);
        assert!(few.iter().chain(&newcomers).chain(&many[10..]).all(|greeting| !is_ended(greeting)));
        assert!(many[..10].iter().all(is_ended));
        drop(many);
        assert_eq!(greetings.of_strangers(), 34);
    }

    #[test]
    fn of_addresses_that_have_as_many_the_newest_stays() {
        let greetings = Arc::new(Greetings::default());
        let of = |at: usize| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + at as u32));
        let strangers: Vec<Greeting> = (0..OF_STRANGERS).map(|at| greetings.begin(of(at))).collect();
        let newcomers = [greetings.begin(of(1 << 20)), greetings.begin(Ipv6Addr::LOCALHOST.into())];
        assert!(!newcomers.iter().any(is_ended));
        assert!(strangers[..2].iter().all(is_ended) && !strangers[2..].iter().any(is_ended));
    }

    #[test]
    fn peers_are_met_whatever_strangers_do() {
        let greetings = Arc::new(Greetings::default());
        greetings.know(address(9));
        let peer = greetings.begin(address(9));
        let strangers: Vec<Greeting> = (0..3 * OF_STRANGERS).map(|_| greetings.begin(address(2))).collect();
        assert!(!is_ended(&peer));
        assert_eq!((greetings.of_strangers(), strangers.iter().filter(|one| is_ended(one)).count()), (1024, 2048));
    }

    #[test]
    fn a_network_of_ipv6_is_one_owner() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
