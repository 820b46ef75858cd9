//! The addresses of a host tried side by side (RFC 8305): families in turn, the next attempt a
//! moment after the one before or as soon as that has failed. The first that succeeds wins, and the
//! others are dropped.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// How long an attempt has for itself before the next begins.
const STAGGER: Duration = Duration::from_millis(250);

/// The addresses as they are tried: the family of the first in every other place, as long as there
/// are two.
pub(crate) fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (same, other): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut found = Vec::new();
    loop {
        let (one, another) = (same.next(), other.next());
        if one.is_none() && another.is_none() {
            return found;
        }
        found.extend(one.into_iter().chain(another));
    }
}

/// The first of `attempts` that succeeds; if all fail, the error of the first that was made. None
/// where there is none.
pub(crate) async fn race<T, E, F: Future<Output = Result<T, E>>>(
    attempts: impl IntoIterator<Item = F>,
) -> Option<Result<T, E>> {
    let mut attempts = attempts.into_iter();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    let mut failed: Option<(usize, E)> = None;
    for number in 0.. {
        let more = attempts.next();
        let last = more.is_none();
        running.extend(more.map(|attempt| (number, Box::pin(attempt))));
        if running.is_empty() {
            break;
        }
        // The next begins after a moment, or as soon as one has failed.
        let next = async {
            match last {
                true => std::future::pending().await,
                false => tokio::time::sleep(STAGGER).await,
            }
        };
        let mut next = std::pin::pin!(next);
        let won = poll_fn(|context| {
            let mut ended = false;
            let mut at = 0;
            while at < running.len() {
                match running[at].1.as_mut().poll(context) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(won)) => return Poll::Ready(Some(won)),
                    Poll::Ready(Err(error)) => {
                        let (number, _) = running.swap_remove(at);
                        if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                            failed = Some((number, error));
                        }
                        ended = true;
                    }
                }
            }
            if (ended && !last) || running.is_empty() {
                Poll::Ready(None)
            } else {
                next.as_mut().poll(context).map(|()| None)
            }
        })
        .await;
        if let Some(won) = won {
            return Some(Ok(won));
        }
        if last && running.is_empty() {
            break;
        }
    }
    failed.map(|(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Ends after so many milliseconds, well or not.
    async fn attempt(ms: u64, well: bool) -> Result<u64, u64> {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        if well { Ok(ms) } else { Err(ms) }
    }

    #[tokio::test]
    async fn the_first_that_succeeds_wins() {
        let never = 3_600_000;
        let attempts = |all: &[(u64, bool)]| all.iter().map(|&(ms, well)| attempt(ms, well)).collect::<Vec<_>>();
        assert_eq!(race(attempts(&[])).await, None);
        assert_eq!(race(attempts(&[(1, true), (0, true)])).await, Some(Ok(1)));
        // A black hole first: the second is tried all the same.
        assert_eq!(race(attempts(&[(never, true), (1, true)])).await, Some(Ok(1)));
        // A failure: the next begins at once.
        let begun = Instant::now();
        let all =
            [(0, false), (0, false), (0, false), (0, false), (0, false), (0, false), (0, false), (0, false), (2, true)];
        assert_eq!(race(attempts(&all)).await, Some(Ok(2)));
        assert!(begun.elapsed() < 4 * STAGGER);
        assert_eq!(race(attempts(&[(20, false), (10, false)])).await, Some(Err(20)));
    }

    #[test]
    fn families_take_turns() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let all = of(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(interleaved(all), of(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]));
        assert_eq!(interleaved(Vec::new()), []);
    }
}
