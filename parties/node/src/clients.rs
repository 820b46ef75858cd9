//! What clients ask of a node, each question on a channel of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tercet_core::Geometry;
use tercet_engine::parse;
use tercet_net::{
    ByteChannel, ByteSender, ClientMessage, Connection, Fault, InputShare, NetError, NodeMessage, PublicKey, codec,
};
use tokio::sync::oneshot;

use crate::desk::{NotHeld, STOPPING};
use crate::generate;
use crate::held::{Answer, Task, Work};
use crate::key::RequestKey;
use crate::models::Model;
use crate::plan::PeerMessage;
use crate::shape::Shape;
use crate::shared::Shared;
use crate::stay::Stay;

/// How long a client may take to begin what it wants to say.
const QUESTION_PATIENCE: Duration = Duration::from_secs(30);

/// How long a client may take to close a channel whose answer has left.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

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
        Ok(ClientMessage::Generate { request_id, model, digest, deadline_ms, options, noise_seed, share }) => {
            let key = RequestKey::generation(&client, request_id, &options)?;
            let deadline = Duration::from_millis(deadline_ms.into()).min(shared.limits.generation_deadline);
            let opening = generate::Opening { key, model, digest, deadline, options, noise_seed, share };
            match generate::run(shared, opening, &mut channel).await? {
                generate::End::Refused(refusal) => vec![refusal.into()],
                generate::End::Done => Vec::new(),
                generate::End::Left => return Ok(()),
            }
        }
        Ok(ClientMessage::Next { .. } | ClientMessage::Finish) => {
            vec![Refusal::new(Fault::Request, "there is no generation on this channel").into()]
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
        say(&mut channel.sender, &reply).await?;
    }
    channel.finish();
    // What was sent has arrived when the client lets go.
    let _ = tokio::time::timeout(GOODBYE_PATIENCE, channel.receiver.next_bytes(0, GOODBYE_PATIENCE)).await;
    Ok(())
}

/// Sends a reply; a refusal instead of one that is longer than a message may be.
pub(crate) async fn say(sender: &mut ByteSender, reply: &NodeMessage) -> Result<(), NetError> {
    let bytes = codec::encode(reply).or_else(|error| {
        tracing::warn!(%error, "an answer could not be sent");
        let refusal = Refusal::new(Fault::Request, format!("the answer fits no message, ask for less: {error}"));
        codec::encode(&NodeMessage::from(refusal))
    });
    sender.send_bytes(bytes.map_err(|error| NetError::Local { what: error.to_string() })?.into()).await
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    pub(crate) reason: String,
}

impl Refusal {
    pub(crate) fn new(fault: Fault, reason: impl Into<String>) -> Refusal {
        Refusal { fault, reason: reason.into() }
    }
}

impl From<NotHeld> for Refusal {
    fn from(reason: NotHeld) -> Refusal {
        match reason {
            NotHeld::Full => Refusal::new(Fault::Busy, "too many requests wait here: try again later"),
            NotHeld::Replayed => Refusal::new(Fault::Request, "this request's number was used before: draw a new one"),
            NotHeld::Closed => Refusal::new(Fault::Nodes, STOPPING),
            NotHeld::Ended(why) => why,
        }
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

/// The model of this name and digest, if this node can run it now.
pub(crate) fn served(shared: &Shared, name: &str, digest: [u8; 32]) -> Result<Arc<Model>, Refusal> {
    if !shared.is_serving() {
        return Err(Refusal::new(Fault::Nodes, STOPPING));
    }
    let model = shared.models.get(name).ok_or_else(|| unknown_model(shared, name))?.clone();
    if digest != model.share.digest() {
        let reason = format!("model {name:?} was shared anew: fetch its manifest again");
        return Err(Refusal::new(Fault::Request, reason));
    }
    match shared.disagreement(&model) {
        Some(reason) => Err(Refusal::new(Fault::Nodes, reason)),
        None => Ok(model),
    }
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
        let answer = match self.admit(shared, name, digest, share).await {
            Ok(answer) => answer,
            Err(refusal) => return Some(refusal.into()),
        };
        shared.tell_lead(PeerMessage::Here { requests: vec![self.key] }).await;
        let stay = Stay { shared, key: self.key, patience: self.deadline, until: None };
        stay.answer(answer, hung_up(channel)).await.ok().map(|answer| answer.message)
    }

    /// Checks a request and has it wait.
    async fn admit(
        &self,
        shared: &Arc<Shared>,
        name: &str,
        digest: [u8; 32],
        share: InputShare,
    ) -> Result<oneshot::Receiver<Answer>, Refusal> {
        let model = served(shared, name, digest)?;
        let geometry = Geometry { batch: share.batch as usize, rows: share.rows as usize };
        if geometry.batch > shared.limits.max_batch {
            let most = shared.limits.max_batch;
            return Err(Refusal::new(Fault::Request, format!("{} inputs at once, {most} are allowed", geometry.batch)));
        }
        let shape = Shape::Inputs(geometry);
        let input = aside(shared, &model, &shape, move |shared, model| {
            parse(shared.me, model.share.manifest(), &model.interface, &share)
        });
        let task = Task::Inputs { input: input.await?, profile: self.profile };
        Ok(shared.desk.hold(Work { key: self.key, model, shape, task })?)
    }
}

/// Whether the shape has room in a session here, and then what `parse` makes of what the client sent: on a thread where it
/// may take its time.
pub(crate) async fn aside<T: Send + 'static>(
    shared: &Arc<Shared>,
    model: &Arc<Model>,
    shape: &Shape,
    parse: impl FnOnce(&Shared, &Model) -> tercet_core::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let (shared, model, shape) = (shared.clone(), model.clone(), shape.clone());
    let checked = tokio::task::spawn_blocking(move || {
        let theirs = |error: tercet_core::Error| Refusal::new(Fault::Request, error.to_string());
        let frame = shared.settings.limits.frame_cap as u64;
        model.check_room(&shape, shared.limits.session_bytes, frame).map_err(theirs)?;
        parse(&shared, &model).map_err(theirs)
    });
    checked.await.unwrap_or_else(|_| Err(Refusal::new(Fault::Nodes, "a fault in this node's program")))
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
