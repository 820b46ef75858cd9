//! What bounds a piece of work on this machine, measured whenever it is asked for: about a millisecond of nothing but
//! copying, multiplying, or enciphering. Other work on the machine slows a limit as it slows what is held against it,
//! as long as the two are measured side by side.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use tercet_ring::ceiling;

use crate::{Clock, median};

/// Where the data of a copy lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In the second cache: 192 KiB to 192 KiB.
    Cache,
    /// In the last cache: 4 MiB to 4 MiB.
    Last,
    /// In memory: pieces of 8 MiB of 128 MiB to others, none of them touched lately.
    Memory,
}

/// A bound on a piece of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// As memory copy: bytes read plus bytes written.
    Copy {
        /// Bytes that must be read or written.
        bytes: f64,
        /// Where.
        home: Home,
    },
    /// As multiply-adds in registers, one instruction to multiply and one to add.
    MultiplyAdds {
        /// Of the lane: 32 or 64.
        bits: u32,
        /// How many.
        count: f64,
    },
    /// As AES-128 in registers.
    Aes {
        /// Bytes that are enciphered.
        bytes: f64,
    },
    /// As plain TCP over loopback, one thread at either end.
    Loopback {
        /// Bytes that travel.
        bytes: f64,
    },
}

impl Limit {
    /// What counts: bytes or multiply-adds.
    pub fn amount(&self) -> f64 {
        match *self {
            Limit::Copy { bytes, .. } | Limit::Aes { bytes } | Limit::Loopback { bytes } => bytes,
            Limit::MultiplyAdds { count, .. } => count,
        }
    }

    /// The unit of [`Limit::amount`] a nanosecond.
    pub fn unit(&self) -> &'static str {
        match self {
            Limit::MultiplyAdds { .. } => "GMAC/s",
            _ => "GB/s",
        }
    }

    /// What the limit is, in two words.
    pub fn name(&self) -> &'static str {
        match self {
            Limit::Copy { home: Home::Cache, .. } => "copy in cache",
            Limit::Copy { home: Home::Last, .. } => "copy in last cache",
            Limit::Copy { home: Home::Memory, .. } => "copy in memory",
            Limit::MultiplyAdds { bits: 32, .. } => "u32 registers",
            Limit::MultiplyAdds { .. } => "u64 registers",
            Limit::Aes { .. } => "AES registers",
            Limit::Loopback { .. } => "TCP loopback",
        }
    }

    /// The limit that takes longer, as measured now.
    pub fn or(self, other: Limit) -> Limit {
        if other.seconds() > self.seconds() { other } else { self }
    }

    /// Seconds that this much takes at the limit, measured now; none where this machine has no such instructions.
    pub fn seconds(&self) -> Option<f64> {
        let rate = match *self {
            Limit::Copy { home, .. } => copy(home),
            Limit::MultiplyAdds { bits, .. } => rate(|| ceiling::multiply_adds(bits, 10_000))?,
            Limit::Aes { .. } => rate(|| ceiling::aes_bytes(20_000))?,
            Limit::Loopback { .. } => loopback(),
        };
        Some(self.amount() / rate)
    }
}

/// How much a second: the best of a few tries, since what comes between can only slow a limit down.
fn rate(mut work: impl FnMut() -> Option<usize>) -> Option<f64> {
    let mut best = 0.0f64;
    for _ in 0..4 {
        let start = Clock::start();
        let amount = work()?;
        best = best.max(amount as f64 / start.elapsed().as_secs_f64());
    }
    Some(best)
}

/// Bytes read plus bytes written a second.
fn copy(home: Home) -> f64 {
    const SMALL: usize = 192 << 10;
    const MIDDLE: usize = 4 << 20;
    const PIECE: usize = 8 << 20;
    const PIECES: usize = 16;
    thread_local! {
        static CACHED: RefCell<([Vec<u8>; 2], Vec<f64>)> = RefCell::new(([vec![1; SMALL], vec![2; SMALL]], vec![]));
        static SHARED: RefCell<[Vec<u8>; 2]> = RefCell::new([vec![1; MIDDLE], vec![2; MIDDLE]]);
        static LARGE: RefCell<(Vec<u8>, usize)> = RefCell::new((vec![3; PIECE * PIECES], 0));
    }
    let rate = match home {
        Home::Cache => CACHED.with_borrow_mut(|([from, to], seen)| {
            let now = rate(|| {
                for _ in 0..16 {
                    to.copy_from_slice(black_box(from));
                    black_box(&mut *to);
                }
                Some(16 * 2 * SMALL)
            });
            // The cache is this core's own, and what disturbs it does not last: the median of all that was seen.
            seen.push(now?);
            Some(median(seen.clone()))
        }),
        Home::Last => SHARED.with_borrow_mut(|[from, to]| {
            rate(|| {
                to.copy_from_slice(black_box(from));
                black_box(&mut *to);
                Some(2 * MIDDLE)
            })
        }),
        Home::Memory => LARGE.with_borrow_mut(|(all, turn)| {
            rate(|| {
                // Pieces in turn, so that each has left the caches when it comes up again.
                *turn = (*turn + 1) % (PIECES / 2);
                let (from, to) = all.split_at_mut(PIECE * PIECES / 2);
                let piece = *turn * PIECE..(*turn + 1) * PIECE;
                to[piece.clone()].copy_from_slice(black_box(&from[piece]));
                black_box(&mut *to);
                Some(2 * PIECE)
            })
        }),
    };
    rate.unwrap_or(f64::NAN)
}

/// Bytes a second from one end of a loopback connection to the other.
fn loopback() -> f64 {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 64;
    let stream = || -> std::io::Result<f64> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut sender = TcpStream::connect(listener.local_addr()?)?;
        let (mut receiver, _) = listener.accept()?;
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            (0..CHUNKS).try_for_each(|_| receiver.read_exact(&mut buffer))
        });
        let start = Instant::now();
        let buffer = vec![1; CHUNK];
        (0..CHUNKS).try_for_each(|_| sender.write_all(&buffer))?;
        reader.join().expect("the reader does not panic")?;
        Ok((CHUNK * CHUNKS) as f64 / start.elapsed().as_secs_f64())
    };
    stream().expect("a loopback connection")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_time_in_proportion() {
        for home in [Home::Cache, Home::Last, Home::Memory] {
            let seconds = Limit::Copy { bytes: 1e9, home }.seconds().expect("any machine copies");
            assert!(seconds.is_finite() && seconds > 0.0, "{home:?}: {seconds}");
            assert_eq!(Limit::Copy { bytes: 0.0, home }.seconds(), Some(0.0));
        }
        assert!(Limit::Loopback { bytes: 1e9 }.seconds().is_some_and(f64::is_finite));
    }
}
