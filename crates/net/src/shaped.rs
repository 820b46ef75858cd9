//! Links slowed down to a given one-way delay and bandwidth, to measure on one machine what a network would do.
//!
//! The arithmetic is that of a link which sends one thing after another:
//!
//! `arrival = max(now, link free) + size / bandwidth + delay`
//!
//! and depends on nothing but the sizes and the instants at which they were handed over. Over QUIC it acts on each UDP
//! datagram on its way out, acknowledgements and handshakes included ([`egress`](crate::egress)). Over TCP and in memory,
//! where there are no packets to get hold of, the receiver holds each frame or message back until it would have arrived.

use std::str::FromStr;
use std::time::{Duration, Instant};

/// One-way delay and bandwidth of a link, each direction by itself.
///
/// Parsed from `none`, `lan`, `metro`, `wan`, or `<delay>,<bandwidth>` such as `2ms,1gbit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkShape {
    /// Time from the last bit's departure to its arrival.
    pub delay: Duration,
    /// Bits a second; `None` is without bound.
    pub bandwidth: Option<u64>,
}

impl LinkShape {
    /// The link as it is.
    pub const NONE: Self = Self { delay: Duration::ZERO, bandwidth: None };
    /// One building: 0.2 ms, 5 Gbit/s.
    pub const LAN: Self = Self { delay: Duration::from_micros(200), bandwidth: Some(5_000_000_000) };
    /// One city: 2 ms, 1 Gbit/s.
    pub const METRO: Self = Self { delay: Duration::from_millis(2), bandwidth: Some(1_000_000_000) };
    /// One continent: 20 ms, 200 Mbit/s.
    pub const WAN: Self = Self { delay: Duration::from_millis(20), bandwidth: Some(200_000_000) };

    /// Whether anything is held back at all.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// How long the link is busy with this many bytes.
    pub fn busy(&self, bytes: usize) -> Duration {
        match self.bandwidth {
            None => Duration::ZERO,
            Some(bits_per_s) => {
                let nanos = bytes as u128 * 8 * 1_000_000_000 / u128::from(bits_per_s.max(1));
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    /// Time from the last bit's departure to that of the answer's first one, from an other end that takes no time.
    pub(crate) fn round_trip(&self) -> Duration {
        2 * self.delay
    }

    /// Bytes that the link carries within so much time; none where there is no bound.
    pub(crate) fn bytes_within(&self, time: Duration) -> Option<u64> {
        let bytes = u128::from(self.bandwidth?) * time.as_nanos() / 8_000_000_000;
        Some(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// How many datagrams of this size pass within so much time, at least one.
    pub(crate) fn datagrams_within(&self, time: Duration, bytes: usize) -> usize {
        match self.bytes_within(time) {
            None => 1 << 16,
            Some(within) => (within / bytes.max(1) as u64).clamp(1, 1 << 16) as usize,
        }
    }
}

/// Text that names no link shape.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no link shape: write none, lan, metro, wan, or delay and bandwidth like 2ms,1gbit")]
pub struct ShapeError {
    /// What was given.
    pub text: String,
}

impl FromStr for LinkShape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let lower = text.trim().to_ascii_lowercase();
        match lower.as_str() {
            "none" => return Ok(Self::NONE),
            "lan" => return Ok(Self::LAN),
            "metro" => return Ok(Self::METRO),
            "wan" => return Ok(Self::WAN),
            _ => {}
        }
        let parsed = lower.split_once(',').and_then(|(delay, bandwidth)| {
            let nanos = scaled(delay, &[("us", 1e3), ("ms", 1e6), ("s", 1e9)], 60e9)?;
            let bits = scaled(bandwidth, &[("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)], 1e12)?;
            let bandwidth = Some(bits).filter(|bits| *bits >= 1000)?;
            Some(Self { delay: Duration::from_nanos(nanos), bandwidth: Some(bandwidth) })
        });
        parsed.ok_or_else(|| ShapeError { text: text.chars().take(60).collect() })
    }
}

/// `2.5ms` with the first unit that fits, as a whole number of base units, at most `most`.
fn scaled(text: &str, units: &[(&str, f64)], most: f64) -> Option<u64> {
    let text = text.trim();
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let value = number.trim().parse::<f64>().ok()? * factor;
    (value.is_finite() && (0.0..=most).contains(&value)).then(|| value.round() as u64)
}

impl std::fmt::Display for LinkShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.is_none(), self.bandwidth) {
            (true, _) => write!(f, "none"),
            (false, None) => write!(f, "{}us,unbounded", self.delay.as_micros()),
            (false, Some(bits)) if bits % 1_000_000 == 0 => {
                write!(f, "{}us,{}mbit", self.delay.as_micros(), bits / 1_000_000)
            }
            (false, Some(bits)) => write!(f, "{}us,{}kbit", self.delay.as_micros(), bits as f64 / 1e3),
        }
    }
}

/// One direction of a shaped link: when it is free again.
#[derive(Debug)]
pub(crate) struct LinkClock {
    shape: LinkShape,
    free: Option<Instant>,
}

impl LinkClock {
    pub(crate) fn new(shape: LinkShape) -> Self {
        Self { shape, free: None }
    }

    /// When `bytes` handed over `now` arrive.
    pub(crate) fn arrival(&mut self, now: Instant, bytes: usize) -> Instant {
        let sent = self.free.map_or(now, |free| free.max(now)) + self.shape.busy(bytes);
        self.free = Some(sent);
        sent + self.shape.delay
    }

    /// How long the link is busy with what it was handed already.
    pub(crate) fn backlog(&self, now: Instant) -> Duration {
        self.free.map_or(Duration::ZERO, |free| free.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_follow_the_arithmetic() {
        let mut clock = LinkClock::new(LinkShape { delay: Duration::from_millis(2), bandwidth: Some(8_000_000) });
        let t0 = Instant::now();
        let ms = |n: u64| t0 + Duration::from_millis(n);
        assert_eq!(clock.arrival(t0, 1000), ms(3), "1000 bytes take 1 ms, then the delay");
        assert_eq!(clock.arrival(t0, 3000), ms(6), "the second waits for the link");
        assert_eq!(clock.arrival(ms(10), 0), ms(12), "an idle link sends at once");
        assert_eq!(clock.arrival(ms(9), 1000), ms(13), "the link is not free before it was");
    }

    #[test]
    fn no_shape_changes_nothing() {
        let mut clock = LinkClock::new(LinkShape::NONE);
        let t0 = Instant::now();
        assert_eq!(clock.arrival(t0, usize::MAX), t0);
    }

    #[test]
    fn text_becomes_shapes() {
        assert_eq!("none".parse(), Ok(LinkShape::NONE));
        assert_eq!(" WAN ".parse(), Ok(LinkShape::WAN));
        assert_eq!("2ms,1gbit".parse(), Ok(LinkShape::METRO));
        assert_eq!("0.2ms, 5Gbit".parse(), Ok(LinkShape::LAN));
        assert_eq!("200us,5000mbit".parse(), Ok(LinkShape::LAN));
        for shape in [LinkShape::NONE, LinkShape::LAN, LinkShape::METRO, LinkShape::WAN] {
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
        for bad in ["", "2ms", "2ms,", "ms,gbit", "-1ms,1gbit", "2ms,0gbit", "nan ms,1gbit", "9e9s,1gbit", "fast"] {
            assert!(bad.parse::<LinkShape>().is_err(), "{bad:?} was taken");
        }
    }
}
