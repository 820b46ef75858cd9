//! A resource that many owners share: places, bytes, memory, connections.
//!
//! Whatever an owner occupies is a [`Lease`] in a [`Ledger`], taken before anything is read, parsed
//! or reserved. While there is room, one owner may have all of it, up to a cap if there is one.
//! Once there is none, an owner that asks for more than is left gets it from whoever holds most, if
//! that one would still hold no less than the newcomer: the newest lease of that owner is revoked,
//! and its holder gives it back within moments. So one owner fills a node only as long as nobody
//! else comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a newcomer waits for what was revoked in its favour.
const GIVE_WAY_PATIENCE: Duration = Duration::from_secs(2);

/// What all owners hold of one resource.
#[derive(Debug)]
pub struct Ledger<O> {
    limit: u64,
    /// The most that one owner may hold, however much is free.
    each: u64,
    state: Mutex<State<O>>,
    /// Rings when a lease was given back.
    freed: Notify,
}

#[derive(Debug)]
struct State<O> {
    leases: BTreeMap<u64, Entry<O>>,
    held: u64,
    /// The part of `held` that is on its way back.
    revoked: u64,
    next: u64,
}

#[derive(Debug)]
struct Entry<O> {
    owner: O,
    amount: u64,
    /// Rings when it is revoked.
    revoked: Arc<Notify>,
    is_revoked: bool,
}

/// A resource that has no room: how much of it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// What is left of it, or of the owner's cap.
    pub free: u64,
}

/// A part of a resource, until it is dropped.
#[derive(Debug)]
pub struct Lease<O: Ord + Copy> {
    ledger: Arc<Ledger<O>>,
    number: u64,
    revoked: Arc<Notify>,
}

impl<O: Ord + Copy> Ledger<O> {
    /// A resource of which one owner may hold all.
    pub fn new(limit: u64) -> Arc<Ledger<O>> {
        Ledger::with_cap(limit, limit)
    }

    /// A resource of which one owner may hold `each` at most.
    pub fn with_cap(limit: u64, each: u64) -> Arc<Ledger<O>> {
        Arc::new(Ledger {
            limit,
            each,
            state: Mutex::new(State { leases: BTreeMap::new(), held: 0, revoked: 0, next: 0 }),
            freed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much there is.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What is held of it.
    pub fn held(&self) -> u64 {
        self.lock().held
    }

    /// A lease of `amount` for an owner. It waits for moments where others give way for it.
    ///
    /// # Errors
    /// There is no room, or the owner has reached its cap.
    pub async fn take(self: &Arc<Self>, owner: O, amount: u64) -> Result<Lease<O>, Full> {
        let deadline = Instant::now() + GIVE_WAY_PATIENCE;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            match self.try_take(owner, amount) {
                Ok(lease) => return Ok(lease),
                Err(Tried::Full(full)) => return Err(full),
                Err(Tried::Later) => {}
            }
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                let free = self.limit.saturating_sub(self.held());
                return Err(Full { free });
            }
        }
    }

    fn try_take(self: &Arc<Self>, owner: O, amount: u64) -> Result<Lease<O>, Tried> {
        let mut state = self.lock();
        let free = self.limit.saturating_sub(state.held);
        if self.each < self.limit {
            let of_owner = state.leases.values().filter(|entry| entry.owner == owner);
            let left = self.each.saturating_sub(of_owner.map(|entry| entry.amount).sum());
            if amount > left {
                return Err(Tried::Full(Full { free: left.min(free) }));
            }
        }
        if amount <= free {
            let (number, revoked) = (state.next, Arc::new(Notify::new()));
            state.next += 1;
            state.held += amount;
            let entry = Entry { owner, amount, revoked: revoked.clone(), is_revoked: false };
            state.leases.insert(number, entry);
            return Ok(Lease { ledger: self.clone(), number, revoked });
        }
        // What is coming back already counts as free, so that nobody gives way twice for one
        // newcomer.
        while amount > free + state.revoked {
            let Some(number) = state.gives_way(&owner, amount) else { return Err(Tried::Full(Full { free })) };
            let Some(entry) = state.leases.get_mut(&number) else { return Err(Tried::Full(Full { free })) };
            entry.is_revoked = true;
            entry.revoked.notify_waiters();
            state.revoked += entry.amount;
        }
        Err(Tried::Later)
    }
}

/// Why there is no lease now.
enum Tried {
    Full(Full),
    /// Others give way.
    Later,
}

impl<O: Ord + Copy> State<O> {
    /// The newest lease of whoever holds most, if its owner would hold no less without it than
    /// `owner` with `amount` more.
    fn gives_way(&self, owner: &O, amount: u64) -> Option<u64> {
        let mut held: BTreeMap<&O, u64> = BTreeMap::new();
        for entry in self.leases.values().filter(|entry| !entry.is_revoked) {
            *held.entry(&entry.owner).or_default() += entry.amount;
        }
        let mine = held.remove(owner).unwrap_or(0) + amount;
        let (most, all) = held.into_iter().max_by_key(|(_, amount)| *amount)?;
        let newest = |(_, entry): &(&u64, &Entry<O>)| entry.owner == *most && !entry.is_revoked;
        let (number, entry) = self.leases.iter().rev().find(newest)?;
        (all - entry.amount >= mine).then_some(*number)
    }
}

impl<O: Ord + Copy> Lease<O> {
    /// Whether it must be given back.
    pub fn is_revoked(&self) -> bool {
        self.ledger.lock().leases.get(&self.number).is_none_or(|entry| entry.is_revoked)
    }

    /// Waits until it must be given back.
    pub async fn revoked(&self) {
        loop {
            let rung = self.revoked.notified();
            tokio::pin!(rung);
            rung.as_mut().enable();
            if self.is_revoked() {
                return;
            }
            rung.await;
        }
    }
}

impl<O: Ord + Copy> Drop for Lease<O> {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        if let Some(entry) = state.leases.remove(&self.number) {
            state.held -= entry.amount;
            if entry.is_revoked {
                state.revoked -= entry.amount;
            }
        }
        drop(state);
        self.ledger.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PublicKey;

    fn client(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32])
    }

    #[tokio::test]
    async fn one_client_has_all_until_another_comes() {
        let ledger = Ledger::new(10);
        let mut mine = Vec::new();
        for _ in 0..10 {
            mine.push(ledger.take(client(1), 1).await.unwrap());
        }
        assert_eq!(ledger.take(client(1), 1).await.unwrap_err(), Full { free: 0 });
        assert_eq!(ledger.take(client(2), 11).await.unwrap_err(), Full { free: 0 });
        assert!(mine.iter().all(|lease| !lease.is_revoked()), "nobody gives way to what never fits");
        // Another one comes for three, and the newest three give way.
        let (other, ()) = tokio::join!(ledger.take(client(2), 3), async {
            mine[9].revoked().await;
            let revoked: Vec<bool> = mine.iter().map(Lease::is_revoked).collect();
            assert_eq!(revoked, [[false; 7].as_slice(), &[true; 3]].concat());
            mine.truncate(7);
        });
        let other = other.unwrap();
        assert_eq!(ledger.held(), 10);
        // Six more would leave the first with less than the newcomer.
        assert_eq!(ledger.take(client(2), 6).await.unwrap_err(), Full { free: 0 });
        drop(other);
        assert_eq!((ledger.held(), ledger.take(client(3), 4).await.unwrap_err()), (7, Full { free: 3 }));
    }

    #[tokio::test]
    async fn a_cap_holds_whatever_is_free() {
        let ledger = Ledger::with_cap(3, 1);
        let first = ledger.take(client(1), 1).await.unwrap();
        assert_eq!(ledger.take(client(1), 1).await.unwrap_err(), Full { free: 0 });
        let _second = ledger.take(client(2), 1).await.unwrap();
        drop(first);
        ledger.take(client(1), 1).await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_give_back_makes_nobody_wait_long_and_gives_way_once() {
        let ledger = Ledger::new(4);
        let kept = [ledger.take(client(1), 2).await.unwrap(), ledger.take(client(1), 2).await.unwrap()];
        let begun = Instant::now();
        let (a, b) = tokio::join!(ledger.take(client(2), 2), ledger.take(client(3), 2));
        assert_eq!((a.unwrap_err(), b.unwrap_err()), (Full { free: 0 }, Full { free: 0 }));
        assert!(begun.elapsed() >= GIVE_WAY_PATIENCE);
        assert_eq!(kept.each_ref().map(Lease::is_revoked), [false, true]);
    }
}
