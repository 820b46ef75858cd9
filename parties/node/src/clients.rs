//! What clients ask of a node, each question on a channel of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tercet_core::Geometry;
use tercet_engine::{Parsed, parse};
use tercet_net::{ByteChannel, ClientMessage, Connection, Fault, InputShare, NetError, NodeMessage, PublicKey, codec};
use tokio::sync::oneshot;

use crate::desk::{LEAD, NotHeld, RequestKey, STOPPING};
use crate::lead::give_up;
use crate::models::Model;
use crate::plan::PeerMessage;
use crate::shared::Shared;

/// How long a client may take to begin what it wants to say.
const QUESTION_PATIENCE: Duration = Duration::from_secs(30);

/// How long a client may take to close a channel whose answer has left.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

/// How often a request that waits is looked after.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// How long requests wait for a node that is not connected.
const PEER_PATIENCE: Duration = Duration::from_secs(3);

/// How long the lead waits until the others have got their parts, too.
const PART_PATIENCE: Duration = Duration::from_secs(5);

/// A public table travels in pieces of at most this many bytes, one message each, in order.
const TABLE_PIECE_BYTES: usize = 48 << 20;

/// Serves a client's connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let _connected = shared.counters.clients.during();
    let client = connection.peer().key;
    while let Ok((_, channel)) = connection.accept_channel().await {
        let asked = shared.clone();
        shared.spawn(async move {
            if let Err(error) = answer(&asked, client, channel).await {
                tracing::debug!(client = client.short(), %error, "a request ended early");
            }
        });
    }
}

/// Counts a request as open until it is dropped.
struct OpenRequest(Arc<Shared>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open_requests.send_modify(|open| *open -= 1);
    }
}

async fn answer(shared: &Arc<Shared>, client: PublicKey, mut channel: ByteChannel) -> Result<(), NetError> {
    let question = channel.recv_bytes(shared.models.request_limit_bytes(), QUESTION_PATIENCE).await;
    let question = match question {
        Ok(bytes) => codec::decode::<ClientMessage>(&bytes, bytes.len()).map_err(|error| error.to_string()),
        Err(NetError::Protocol { what, .. }) => Err(what),
        Err(error) => return Err(error),
    };
    shared.open_requests.send_modify(|open| *open += 1);
    let _open = OpenRequest(shared.clone());
    let replies = match question {
        Ok(ClientMessage::Models) => vec![NodeMessage::Models(shared.models.cards())],
        Ok(ClientMessage::Status) => vec![NodeMessage::Status(shared.status())],
        Ok(ClientMessage::Manifest { model }) => vec![with_model(shared, &model, manifest)],
        Ok(ClientMessage::Table { model }) => table(shared, &model),
        Ok(ClientMessage::Run { request_id, model, digest, deadline_ms, profile, share }) => {
            let request = Request {
                key: RequestKey::new(&client, request_id),
                deadline: Duration::from_millis(deadline_ms.into()).min(shared.limits.request_deadline),
                profile,
            };
            match request.run(shared, &model, digest, share, &mut channel).await {
                Some(reply) => vec![reply],
                None => return Ok(()),
            }
        }
        Err(what) => vec![Refusal::new(Fault::Request, format!("no message of this protocol: {what}")).into()],
    };
    for reply in replies {
        match &reply {
            NodeMessage::Output { .. } => shared.counters.answered.add(),
            NodeMessage::Refused { fault, reason } => {
                tracing::info!(client = client.short(), ?fault, reason, "refused");
                shared.counters.refused.add();
            }
            _ => {}
        }
        channel.send(&reply).await?;
    }
    channel.finish();
    // What was sent has arrived when the client lets go.
    let _ = tokio::time::timeout(GOODBYE_PATIENCE, channel.receiver.next_bytes(0, GOODBYE_PATIENCE)).await;
    Ok(())
}

/// Why a request is not served.
struct Refusal {
    fault: Fault,
    reason: String,
}

impl Refusal {
    fn new(fault: Fault, reason: impl Into<String>) -> Refusal {
        Refusal { fault, reason: reason.into() }
    }
}

impl From<Refusal> for NodeMessage {
    fn from(Refusal { fault, reason }: Refusal) -> NodeMessage {
        NodeMessage::Refused { fault, reason }
    }
}

fn unknown_model(shared: &Shared, name: &str) -> Refusal {
    let name: String = name.chars().take(80).collect();
    let known: Vec<String> = shared.models.cards().into_iter().map(|card| card.name).collect();
    Refusal::new(Fault::Request, format!("{} holds no model {name:?}; it holds: {}", shared.me, known.join(", ")))
}

fn with_model(shared: &Shared, name: &str, reply: impl Fn(&Model) -> NodeMessage) -> NodeMessage {
    shared.models.get(name).map_or_else(|| unknown_model(shared, name).into(), |model| reply(model))
}

fn manifest(model: &Model) -> NodeMessage {
    match codec::encode(&model.interface) {
        Ok(interface) => NodeMessage::Manifest {
            digest: model.share.digest(),
            interface,
            tokenizer: model.share.manifest().tokenizer.clone(),
        },
        Err(error) => Refusal::new(Fault::Nodes, error.to_string()).into(),
    }
}

fn table(shared: &Shared, name: &str) -> Vec<NodeMessage> {
    let Some(model) = shared.models.get(name) else { return vec![unknown_model(shared, name).into()] };
    match model.share.public_table() {
        Some(table) => table.chunks(TABLE_PIECE_BYTES).map(|piece| NodeMessage::Table(piece.to_vec())).collect(),
        None => vec![
            Refusal::new(Fault::Request, format!("the embedding table of {name:?} is secret: ask without it")).into(),
        ],
    }
}

/// One request to run a model.
struct Request {
    key: RequestKey,
    deadline: Duration,
    /// Whether the client wants to know where the time goes.
    profile: bool,
}

impl Request {
    /// The answer, or none for a client that left.
    async fn run(
        self,
        shared: &Arc<Shared>,
        name: &str,
        digest: [u8; 32],
        share: InputShare,
        channel: &mut ByteChannel,
    ) -> Option<NodeMessage> {
        let held = self.admit(shared, name, digest, share).await;
        let mut answer = match held {
            Ok(answer) => answer,
            Err(refusal) => return Some(refusal.into()),
        };
        shared.tell_lead(PeerMessage::Here { requests: vec![self.key] }).await;
        let arrived = tokio::time::Instant::now();
        let mut look = arrived + self.deadline.min(LOOK_PAUSE);
        let mut left = std::pin::pin!(hung_up(channel));
        loop {
            tokio::select! {
                answered = &mut answer => {
                    let lost = || Refusal::new(Fault::Nodes, "the request was lost in this node: try again");
                    return Some(answered.unwrap_or_else(|_| lost().into()));
                }
                () = &mut left => {
                    tracing::info!(request = %self.key, "its client left");
                    // In a session it stays, for the sake of its neighbours.
                    drop(shared.desk.withdraw(self.key));
                    shared.tell_lead(PeerMessage::Gone { request: self.key }).await;
                    return None;
                }
                () = tokio::time::sleep_until(look) => {
                    if let Some(reason) = self.overdue(shared, arrived.elapsed())
                        && let Some(held) = shared.desk.withdraw(self.key)
                    {
                        // The answer comes out of the channel at the next turn.
                        if shared.me == LEAD {
                            give_up(shared, vec![held], Fault::Nodes, &reason).await;
                        } else {
                            held.refuse(Fault::Nodes, reason);
                            shared.tell_lead(PeerMessage::Gone { request: self.key }).await;
                        }
                    }
                    look = tokio::time::Instant::now() + LOOK_PAUSE;
                }
            }
        }
    }

    /// Why a request should wait no longer.
    fn overdue(&self, shared: &Shared, waited: Duration) -> Option<String> {
        if waited >= self.deadline {
            let ms = self.deadline.as_millis();
            return Some(format!("no session within {ms} ms: the nodes are busy, or one of them has not got its part"));
        }
        if shared.me != LEAD || waited < PEER_PATIENCE {
            return None;
        }
        let lacking = shared.desk.lacking(self.key);
        if let Some(party) = lacking.iter().find(|party| shared.endpoint.party(**party).is_none()) {
            let trouble = shared.endpoint.party_trouble(*party).map_or(String::new(), |error| format!(": {error}"));
            return Some(format!("{party} is not connected to {}{trouble}", shared.me));
        }
        let late = lacking.first().filter(|_| waited >= PART_PATIENCE);
        late.map(|party| format!("{party} has not got its part of the request within {} s", PART_PATIENCE.as_secs()))
    }

    /// Checks a request and has it wait.
    async fn admit(
        &self,
        shared: &Arc<Shared>,
        name: &str,
        digest: [u8; 32],
        share: InputShare,
    ) -> Result<oneshot::Receiver<NodeMessage>, Refusal> {
        if !shared.is_serving() {
            return Err(Refusal::new(Fault::Nodes, STOPPING));
        }
        let model = shared.models.get(name).ok_or_else(|| unknown_model(shared, name))?.clone();
        if digest != model.share.digest() {
            let reason = format!("model {name:?} was shared anew: fetch its manifest again");
            return Err(Refusal::new(Fault::Request, reason));
        }
        if let Some(reason) = shared.disagreement(&model) {
            return Err(Refusal::new(Fault::Nodes, reason));
        }
        let geometry = Geometry { batch: share.batch as usize, rows: share.rows as usize };
        if geometry.batch > shared.limits.max_batch {
            let most = shared.limits.max_batch;
            return Err(Refusal::new(Fault::Request, format!("{} inputs at once, {most} are allowed", geometry.batch)));
        }
        let input = {
            let (shared, model) = (shared.clone(), model.clone());
            tokio::task::spawn_blocking(move || check(&shared, &model, geometry, &share)).await
        };
        let input = input.unwrap_or_else(|_| Err(Refusal::new(Fault::Nodes, "a fault in this node's program")))?;
        shared.desk.hold(self.key, model, geometry, input, self.profile).map_err(|reason| match reason {
            NotHeld::Full => Refusal::new(Fault::Busy, "too many requests wait here: try again later"),
            NotHeld::Replayed => Refusal::new(Fault::Request, "this request's number was used before: draw a new one"),
            NotHeld::Closed => Refusal::new(Fault::Nodes, STOPPING),
        })
    }
}

/// Whether the shape has room here, and what the client sent fits the model.
fn check(shared: &Shared, model: &Model, geometry: Geometry, share: &InputShare) -> Result<Parsed, Refusal> {
    let ours = |error: tercet_core::Error| Refusal::new(Fault::Request, error.to_string());
    let bytes = model.working_bytes(geometry).map_err(ours)?;
    if bytes > shared.limits.session_bytes {
        let (needed, room) = (bytes >> 20, shared.limits.session_bytes >> 20);
        let reason = format!("this input takes {needed} MiB of working memory, {room} are allowed: send fewer at once");
        return Err(Refusal::new(Fault::Request, reason));
    }
    parse(shared.me, model.share.manifest(), &model.interface, share).map_err(ours)
}

/// Waits until the client gives the channel up. One that has only said that nothing more follows still waits.
async fn hung_up(channel: &mut ByteChannel) {
    /// Longer than anything lives.
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    let next: Result<Option<Bytes>, NetError> = channel.receiver.next_bytes(0, FOREVER).await;
    if let Ok(None) = next {
        std::future::pending().await
    }
}
