//! What a client and a node say to each other about one request: opaque bytes with public shapes.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{PartyId, Work, WorkProfile};

/// One party's part of a client's input. Its seeds and keys are wiped when it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputShare {
    /// Inputs side by side.
    pub batch: u32,
    /// Rows of each, padding included.
    pub rows: u32,
    /// Seed of the mask half of P0 and P1; absent at P2.
    pub first_seed: Option<[u8; 32]>,
    /// Seed of the mask half of P0 and P2; absent at P1.
    pub second_seed: Option<[u8; 32]>,
    /// Masked values, packed, of the streams of [`Stream`] in order; empty at P0.
    pub masked: Vec<Vec<u8>>,
    /// Lookup keys, end to end: those of the pairs into the table's masked values (none at P0), then those of the pairs into
    /// its masks. Empty where rows are shared instead.
    pub keys: [Vec<u8>; 2],
}

impl Zeroize for InputShare {
    fn zeroize(&mut self) {
        self.first_seed.zeroize();
        self.second_seed.zeroize();
        self.keys.zeroize();
    }
}

impl Drop for InputShare {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl ZeroizeOnDrop for InputShare {}

/// The tensors of an input, by the stream of the seeds that masks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// `[batch, rows]` in the score ring: zero, or the padding score where a row is padding.
    KeyBias,
    /// `[batch, rows]` in the wide ring: one, or zero where a row is padding.
    RowWeight,
    /// In the wide ring `[batch * rows, width]`, the rows themselves; or, where they are looked up,
    /// `[batch * rows, 2]` bits, the signs of the keys of each row.
    Rows,
}

/// One party's part of an output: its two planes, packed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputShare {
    /// At P0 `l1, l2`; at P1 `m, l1`; at P2 `m, l2`.
    pub planes: [Vec<u8>; 2],
}

impl std::fmt::Debug for InputShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InputShare[{} x {}]", self.batch, self.rows)
    }
}

impl std::fmt::Debug for OutputShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutputShare[{} bytes]", self.planes[0].len())
    }
}

/// How a generation is run. Public to the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationOptions {
    /// Rows that may come in altogether, those of the prompt and one for every further step: what the nodes hold room for.
    pub max_positions: u32,
    /// What the client gets of every step.
    pub choice: TokenChoice,
    /// Whether the first step gives an output for every row of the prompt, or for the last alone.
    pub every_row: bool,
}

/// What the client gets of a step of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum TokenChoice {
    /// The scores of all tokens; it chooses by itself, and brings the next row.
    Scores,
    /// The number of a token that was chosen inside the computation, and nothing of the scores.
    Token {
        /// None takes the token with the highest score; else tokens come up by the softmax of their scores over this.
        temperature: Option<f64>,
        /// Whether the token goes back in at once, as a secret, until the client has enough. Else the client brings the next row.
        reenter: bool,
    },
}

/// Where the noise of sampled choices grows from: P0's alone to know, beside the client. It is
/// wiped when it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoiseSeed(pub [u8; 32]);

impl ZeroizeOnDrop for NoiseSeed {}

impl Drop for NoiseSeed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for NoiseSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoiseSeed")
    }
}

/// What a client asks of a node: one question on each request channel, and in a generation what follows from it.
// A message lives once, between the codec and its use.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClientMessage {
    /// Which models are there.
    Models,
    /// What a client must know of a model: the digest of its manifest, its interface and its tokenizer.
    Manifest {
        /// Its name.
        model: String,
    },
    /// The public embedding table of a model that has one.
    Table {
        /// Its name.
        model: String,
    },
    /// This party's part of a request. All three nodes get one with the same id.
    Run {
        /// Drawn at random by the client; never used again.
        request_id: [u8; 16],
        /// The number of the node's start, as it came with the manifest.
        start_id: [u8; 16],
        /// The model's name.
        model: String,
        /// Digest of the manifest that the client shared its input for.
        digest: [u8; 32],
        /// How long the client waits.
        deadline_ms: u32,
        /// Whether it wants to know where the nodes' time went.
        profile: bool,
        /// The input.
        share: InputShare,
    },
    /// How the node is doing.
    Status,
    /// This party's part of a generation's prompt. All three nodes get one with the same id. What is said in answer, and what
    /// follows, stays on this channel.
    Generate {
        /// Drawn at random by the client; never used again.
        request_id: [u8; 16],
        /// The number of the node's start, as it came with the manifest.
        start_id: [u8; 16],
        /// The model's name.
        model: String,
        /// Digest of the manifest that the client shared its prompt for.
        digest: [u8; 32],
        /// How long the whole generation may take.
        deadline_ms: u32,
        /// How it is run: the same at all three nodes.
        options: GenerationOptions,
        /// Where the noise of choices grows from; at P0, where tokens are sampled inside the computation, and nowhere else.
        noise_seed: Option<NoiseSeed>,
        /// The prompt: one input, of whose tensors there is [`Stream::Rows`] alone.
        share: InputShare,
    },
    /// The row of a generation's next step, after an answer to the one before.
    Next {
        /// One input of one row, as the prompt's.
        share: InputShare,
    },
    /// The client has enough of a generation; so it has when it gives the channel up.
    Finish,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// The models that this node serves.
    Models(Vec<ModelCard>),
    /// What stands for a manifest, and the interface (bincode of the model crate's type).
    Manifest {
        /// Digest of the manifest.
        digest: [u8; 32],
        /// Drawn by the node at its start: requests to it name this number.
        start_id: [u8; 16],
        /// The encoded interface.
        interface: Vec<u8>,
        /// Tokenizer JSON, for models of texts.
        tokenizer: Option<Vec<u8>>,
    },
    /// The public table: little-endian lanes, row-major.
    Table(Vec<u8>),
    /// This party's part of the output.
    Output {
        /// The output.
        share: OutputShare,
        /// What the run cost, as this node saw it.
        usage: Usage,
        /// Where this node's time went, if the client asked.
        profile: Option<WorkProfile>,
    },
    /// This party's part of the output of a generation's step. After the last one that there is room for, the channel ends.
    Step {
        /// The scores of a row, or the number of a token.
        share: OutputShare,
        /// What the step cost, as this node saw it.
        usage: Usage,
    },
    /// The request was not served, or the generation ends before its end.
    Refused {
        /// Whose fault it is.
        fault: Fault,
        /// One line: the cause, and what would mend it.
        reason: String,
    },
    /// How the node is doing.
    Status(NodeStatus),
}

/// How a node is doing: counters since its start, all of them public.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which party it is.
    pub party: PartyId,
    /// Name and version of its program.
    pub software: String,
    /// Time since its start.
    pub uptime_s: u64,
    /// Whether it finishes what runs and takes nothing new.
    pub stopping: bool,
    /// The models that it serves.
    pub models: Vec<ModelCard>,
    /// The two other nodes.
    pub peers: [PeerStatus; 2],
    /// Clients connected now.
    pub clients: u32,
    /// Requests waiting now.
    pub waiting: u32,
    /// Sessions running now.
    pub sessions_running: u32,
    /// Sessions that ended well.
    pub sessions_done: u64,
    /// Sessions that failed.
    pub sessions_failed: u64,
    /// Requests answered with an output.
    pub answered: u64,
    /// Requests refused.
    pub refused: u64,
    /// Generations alive now.
    pub generations: u32,
    /// Steps of generations that were answered.
    pub steps_done: u64,
    /// Bytes of what clients have sent that come or wait now.
    pub queue_bytes: u64,
    /// How many there may be.
    pub queue_limit_bytes: u64,
    /// Memory reserved for the keys and values of generations, in bytes.
    pub cache_bytes: u64,
    /// How much of it there is.
    pub cache_limit_bytes: u64,
    /// The most memory that the process has had resident, in bytes; zero where the system does not say.
    pub peak_rss_bytes: u64,
    /// Bytes of large blocks that its allocator has taken fresh from the system; zero where another allocator is in use.
    pub fresh_bytes: u64,
}

/// A node as another one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Which party it is.
    pub party: PartyId,
    /// Whether it is connected now.
    pub connected: bool,
    /// Its address while connected, else why the last attempt to reach it failed.
    pub place: String,
    /// Bytes of sessions sent to it, frame headers included.
    pub session_sent: u64,
    /// Bytes of sessions received from it.
    pub session_received: u64,
    /// Bytes sent to it as the operating system sees them, over all connections.
    pub wire_sent: u64,
    /// Bytes received from it, likewise.
    pub wire_received: u64,
}

/// A model that a node serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Its name.
    pub name: String,
    /// Digest of its manifest.
    pub digest: [u8; 32],
    /// `fast` or `precise`.
    pub profile: String,
}

/// What a run cost, as one node saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Requests that ran together with this one, itself included.
    pub batched: u32,
    /// Rounds of the session.
    pub rounds: u64,
    /// Session bytes `[from][to]` on the links of this node (zero elsewhere), frame headers included.
    pub bytes: [[u64; 3]; 3],
    /// Session frames `[from][to]`, likewise.
    pub frames: [[u64; 3]; 3],
    /// Time from the start of the session to its end at this node.
    pub session_ms: u32,
    /// Time that the request waited before.
    pub queued_ms: u32,
    /// Microseconds by kind of work, in the order of [`Work::ALL`].
    pub work_us: [u64; Work::COUNT],
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The request itself: sending it again will not help.
    Request,
    /// The nodes, or the links between them: try again.
    Nodes,
    /// Too much is waiting already: try again later.
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_keys_are_wiped() {
        fn on_drop(_: &impl ZeroizeOnDrop) {}
        let keys = [vec![3; 40], vec![4; 40]];
        let mut share = InputShare {
            batch: 1,
            rows: 2,
            first_seed: Some([1; 32]),
            second_seed: Some([2; 32]),
            masked: vec![vec![5]],
            keys,
        };
        on_drop(&share);
        on_drop(&NoiseSeed([6; 32]));
        share.zeroize();
        assert_eq!((share.first_seed, share.second_seed), (None, None));
        assert!(share.keys.iter().all(Vec::is_empty));
    }
}
