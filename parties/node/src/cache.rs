//! Memory for the keys and values of generations: promised when one is let in, given back when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tercet_engine::Sequence;

/// What all generations of a node may hold together.
#[derive(Debug)]
pub(crate) struct Cache {
    limit: u64,
    reserved: AtomicU64,
}

impl Cache {
    pub(crate) fn new(limit: u64) -> Arc<Cache> {
        Arc::new(Cache { limit, reserved: AtomicU64::new(0) })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    /// Room for so many bytes, or how many are free.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, u64> {
        let more = |reserved: u64| reserved.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Reservation { cache: self.clone(), bytes }),
            Err(reserved) => Err(self.limit.saturating_sub(reserved)),
        }
    }
}

/// Room that is kept until it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    cache: Arc<Cache>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cache.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// What one generation has here between its steps, and the room for it: the one is dropped before the other is free.
pub(crate) struct Pages {
    pub(crate) sequence: Sequence,
    pub(crate) room: Reservation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_promised_than_there_is() {
        let cache = Cache::new(100);
        let first = cache.reserve(60).unwrap();
        assert_eq!(cache.reserve(41).unwrap_err(), 40);
        let second = cache.reserve(40).unwrap();
        assert_eq!((cache.reserved(), cache.reserve(1).unwrap_err()), (100, 0));
        drop(first);
        assert_eq!(cache.reserved(), 40);
        assert_eq!(cache.reserve(u64::MAX).unwrap_err(), 60);
        drop(second);
        assert_eq!(cache.reserved(), 0);
    }
}
