//! What a client gets.

use std::time::Duration;

use tercet_net::{Work, WorkProfile};

/// One vector for each text.
#[derive(Clone, PartialEq)]
pub struct Embeddings {
    /// In the order of the texts.
    pub vectors: Vec<Vec<f32>>,
    /// What each request cost; several where the list was longer than one request takes.
    pub usage: Vec<RequestUsage>,
}

/// The class of each input.
#[derive(Clone, PartialEq)]
pub struct Classifications {
    /// In the order of the inputs.
    pub classes: Vec<Classification>,
    /// What each request cost.
    pub usage: Vec<RequestUsage>,
}

/// What a classifier says of one input.
#[derive(Clone, PartialEq)]
pub struct Classification {
    /// The label with the highest score.
    pub label: String,
    /// Its place among the labels.
    pub index: usize,
    /// One score (logit) for each label, in the order of [`crate::ModelFace::labels`].
    pub scores: Vec<f32>,
}

/// Answers are the client's secret: a debug print shows how many there are.
macro_rules! shape_only {
    ($type:ident, $field:ident) => {
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($type), "[{}]"), self.$field.len())
            }
        }
    };
}
shape_only!(Embeddings, vectors);
shape_only!(Classifications, classes);
shape_only!(Classification, scores);

/// What one request cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestUsage {
    /// Inputs in it.
    pub batch: usize,
    /// Rows (tokens, patches) of each, padding included.
    pub rows: usize,
    /// Requests that the nodes ran together with this one, itself included.
    pub batched: u32,
    /// Rounds of the nodes' session.
    pub rounds: u64,
    /// Session bytes `[from][to]` between the nodes, frame headers included, of all requests that ran together.
    pub bytes: [[u64; 3]; 3],
    /// Session frames `[from][to]`, likewise.
    pub frames: [[u64; 3]; 3],
    /// Bytes that the client sent to each node.
    pub sent: [u64; 3],
    /// Bytes that each node sent back.
    pub received: [u64; 3],
    /// Time of the session at the slowest node.
    pub session: Duration,
    /// Time that the request waited before its session, at the node where it waited longest.
    pub queued: Duration,
    /// Time from the client's first byte to the opened answer.
    pub elapsed: Duration,
    /// Microseconds of the session at each node by kind of work, in the order of [`Work::ALL`].
    pub work_us: [[u64; Work::COUNT]; 3],
    /// Where the time of the session went at P0, P1 and P2, as each says itself, if [`crate::Options::profile`] asked.
    pub profiles: Option<[WorkProfile; 3]>,
}

impl RequestUsage {
    /// Session bytes on all links between the nodes.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().flatten().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}
