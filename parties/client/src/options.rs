//! How a request is made.

use std::time::Duration;

/// How a request is made. [`Options::default`] refuses long texts and pads nothing beyond the longest of a batch.
///
/// Two answers to one request differ by a small random error of fixed-point arithmetic. In a model
/// that was shared in profile `precise` it is far smaller than in `fast`. A class changes only
/// where its two best scores are closer than the error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Cut a text that is too long instead of refusing it.
    pub truncate: bool,
    /// How long the whole call may take. The nodes are told what is left of it.
    pub deadline: Duration,
    /// Pad texts to a multiple of this many tokens. Without it the nodes learn the exact number of tokens of the longest
    /// text in each request.
    pub bucket: Option<usize>,
    /// Inputs in one request at most; longer lists become several requests that run side by side.
    pub max_batch: usize,
    /// How often a request that a lost connection or a failing node has ended is made anew, under a
    /// new id and fresh masks. This happens only where all three nodes answer within 300 ms of the
    /// failure; a dead node is an error at once.
    pub retries: u32,
    /// Ask each node where the time of the session went: [`crate::RequestUsage::profiles`]. The nodes measure in any case, so
    /// this costs the bytes of the answer alone, some 200 kB for a model of twelve layers.
    pub profile: bool,
}

impl Default for Options {
    fn default() -> Self {
        let deadline = Duration::from_secs(120);
        Self { truncate: false, deadline, bucket: None, max_batch: 16, retries: 1, profile: false }
    }
}
