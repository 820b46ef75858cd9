//! What clients ask of a node, each question on a channel of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tercet_core::Geometry;
use tercet_engine::{Replicas, check};
use tercet_net::{
    ByteChannel, ByteReceiver, ByteSender, ClientMessage, Connection, Fault, Full, InputShare, NetError, NodeMessage,
    PublicKey, codec,
};
use tokio::sync::oneshot;

use crate::desk::{NotHeld, STOPPING};
use crate::generate;
use crate::held::{Answer, Sent, Task, Work};
use crate::key::RequestKey;
use crate::models::Model;
use crate::quota::Lease;
use crate::shape::Shape;
use crate::shared::Shared;
use crate::stay::Stay;

/// How long a client may take to begin what it wants to say.
const QUESTION_PATIENCE: Duration = Duration::from_secs(30);

/// How long a client may take to close a channel whose answer has left.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

/// A public table travels in pieces of at most this many bytes, one message each, in order. A piece
/// is made when the one before it has left.
const TABLE_PIECE_BYTES: usize = 1 << 20;

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
    let heard = receive(shared, client, &mut channel.receiver, QUESTION_PATIENCE).await;
    shared.open_requests.send_modify(|open| *open += 1);
    let _open = OpenRequest(shared.clone());
    let reply = match heard {
        Ok((message, room)) => reply(shared, client, message, room, &mut channel).await?,
        Err(Unheard::Refused(refusal)) => Reply::Message(refusal.into()),
        Err(Unheard::Lost(error)) => return Err(error),
        Err(Unheard::Ended) => return Ok(()),
    };
    match reply {
        Reply::Message(message) => {
            match &message {
                NodeMessage::Output { .. } => shared.counters.answered.add(),
                NodeMessage::Refused { fault, reason } => {
                    tracing::info!(client = client.short(), ?fault, reason, "refused");
                    shared.counters.refused.add();
                }
                _ => {}
            }
            say(&mut channel.sender, &message).await?;
        }
        Reply::Encoded(bytes) => channel.send_bytes(bytes).await?,
        Reply::Said => {}
        Reply::Left => return Ok(()),
    }
    channel.finish();
    // What was sent has arrived when the client lets go.
    let _ = tokio::time::timeout(GOODBYE_PATIENCE, channel.receiver.next_bytes(0, GOODBYE_PATIENCE)).await;
    Ok(())
}

/// What is left to be said at the end of a channel.
// One lives for each channel, for a moment.
#[allow(clippy::large_enum_variant)]
enum Reply {
    Message(NodeMessage),
    /// A message that was encoded once for all who ask.
    Encoded(Bytes),
    /// Nothing: all was said.
    Said,
    /// Nothing: the client left.
    Left,
}

/// What a client is told that asks this.
async fn reply(
    shared: &Arc<Shared>,
    client: PublicKey,
    message: ClientMessage,
    room: Lease,
    channel: &mut ByteChannel,
) -> Result<Reply, NetError> {
    let message = match message {
        ClientMessage::Models => NodeMessage::Models(shared.models.cards()),
        ClientMessage::Status => NodeMessage::Status(shared.status()),
        ClientMessage::Manifest { model } => match shared.models.get(&model) {
            None => unknown_model(shared, &model).into(),
            Some(model) => match model.face(shared.start_id) {
                Ok(encoded) => return Ok(Reply::Encoded(encoded)),
                Err(error) => Refusal::new(Fault::Nodes, error.to_string()).into(),
            },
        },
        ClientMessage::Table { model } => match table(shared, client, &model, &mut channel.sender).await? {
            None => return Ok(Reply::Said),
            Some(refusal) => refusal.into(),
        },
        ClientMessage::Run { request_id, start_id, model, digest, deadline_ms, profile, share } => {
            let request = Request {
                client,
                key: RequestKey::new(&client, request_id),
                deadline: Duration::from_millis(deadline_ms.into()).min(shared.limits.request_deadline),
                profile,
            };
            let asked = Asked { model, digest, start_id };
            return Ok(request.run(shared, &asked, share, room, channel).await.map_or(Reply::Left, Reply::Message));
        }
        ClientMessage::Generate { request_id, start_id, model, digest, deadline_ms, options, noise_seed, share } => {
            let key = RequestKey::generation(&client, request_id, &options)?;
            let deadline = Duration::from_millis(deadline_ms.into()).min(shared.limits.generation_deadline);
            let asked = Asked { model, digest, start_id };
            let opening = generate::Opening { client, key, asked, deadline, options, noise_seed, share, room };
            match generate::run(shared, opening, channel).await? {
                generate::End::Refused(refusal) => refusal.into(),
                generate::End::Done => return Ok(Reply::Said),
                generate::End::Left => return Ok(Reply::Left),
            }
        }
        ClientMessage::Next { .. } | ClientMessage::Finish => {
            Refusal::new(Fault::Request, "there is no generation on this channel").into()
        }
    };
    Ok(Reply::Message(message))
}

/// Why a client's message was not heard.
pub(crate) enum Unheard {
    /// Nothing more follows.
    Ended,
    Lost(NetError),
    Refused(Refusal),
}

/// The next message of a client, and the room that its bytes take here: it is taken when the client
/// has declared how many there are, before any of them is read.
pub(crate) async fn receive(
    shared: &Shared,
    client: PublicKey,
    receiver: &mut ByteReceiver,
    patience: Duration,
) -> Result<(ClientMessage, Lease), Unheard> {
    let none = |what: String| {
        Unheard::Refused(Refusal::new(Fault::Request, format!("not a message of this protocol: {what}")))
    };
    let lost = |error| match error {
        NetError::Protocol { what, .. } => none(what),
        error => Unheard::Lost(error),
    };
    let limit = shared.models.request_limit_bytes();
    let length = receiver.next_length(limit, patience).await.map_err(lost)?.ok_or(Unheard::Ended)?;
    let room = shared.quotas.bytes.take(client, length as u64).await;
    let room = room.map_err(|full| Unheard::Refused(Refusal::no_memory(length, full)))?;
    let bytes = tokio::select! {
        bytes = receiver.next_bytes(limit, patience) => bytes.map_err(lost)?.ok_or(Unheard::Ended)?,
        () = room.revoked() => return Err(Unheard::Refused(Refusal::gave_way())),
    };
    let message = codec::decode::<ClientMessage>(&bytes, bytes.len()).map_err(|error| none(error.to_string()))?;
    Ok((message, room))
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

    /// A client that holds most made room for another.
    pub(crate) fn gave_way() -> Refusal {
        Refusal::new(
            Fault::Busy,
            "this client held most of what this node has room for, and another needed it: try again later",
        )
    }

    /// There is no place for one more.
    pub(crate) fn no_place(_: Full) -> Refusal {
        Refusal::new(Fault::Busy, "too many requests wait here: try again later")
    }

    fn no_memory(length: usize, Full { free }: Full) -> Refusal {
        let reason = format!("this request takes {length} bytes, and what waits here leaves {free}: try again later");
        Refusal::new(Fault::Busy, reason)
    }
}

impl From<NotHeld> for Refusal {
    fn from(reason: NotHeld) -> Refusal {
        match reason {
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

/// Which model a client asks, and the start of this node that it speaks to.
pub(crate) struct Asked {
    pub(crate) model: String,
    pub(crate) digest: [u8; 32],
    pub(crate) start_id: [u8; 16],
}

/// The model of this name and digest, if this node can run it now.
pub(crate) fn served(shared: &Shared, asked: &Asked) -> Result<Arc<Model>, Refusal> {
    let Asked { model: name, digest, start_id } = asked;
    if !shared.is_serving() {
        return Err(Refusal::new(Fault::Nodes, STOPPING));
    }
    if *start_id != shared.start_id {
        let reason = format!("{} has started anew since: fetch the manifest of {name:?} again", shared.me);
        return Err(Refusal::new(Fault::Request, reason));
    }
    let model = shared.models.get(name).ok_or_else(|| unknown_model(shared, name))?.clone();
    if *digest != model.share.digest() {
        let reason = format!("model {name:?} was shared anew: fetch its manifest again");
        return Err(Refusal::new(Fault::Request, reason));
    }
    match shared.disagreement(&model) {
        Some(reason) => Err(Refusal::new(Fault::Nodes, reason)),
        None => Ok(model),
    }
}

/// Sends a public table piece by piece, each as soon as the one before has left; or says why not.
async fn table(
    shared: &Shared,
    client: PublicKey,
    name: &str,
    sender: &mut ByteSender,
) -> Result<Option<Refusal>, NetError> {
    let Some(model) = shared.models.get(name) else { return Ok(Some(unknown_model(shared, name))) };
    let Some(table) = model.share.public_table() else {
        let reason = format!("the embedding table of {name:?} is secret: ask without it");
        return Ok(Some(Refusal::new(Fault::Request, reason)));
    };
    let Ok(under_way) = shared.quotas.tables.take(client, 1).await else {
        let reason = "a table is on its way to this client already, or to many others: try again later";
        return Ok(Some(Refusal::new(Fault::Busy, reason)));
    };
    for piece in table.chunks(TABLE_PIECE_BYTES) {
        let message = NodeMessage::Table(piece.to_vec());
        tokio::select! {
            said = say(sender, &message) => said?,
            () = under_way.revoked() => return Ok(Some(Refusal::gave_way())),
        }
    }
    Ok(None)
}

/// One request to run a model.
struct Request {
    client: PublicKey,
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
        asked: &Asked,
        share: InputShare,
        room: Lease,
        channel: &mut ByteChannel,
    ) -> Option<NodeMessage> {
        let answer = match self.admit(shared, asked, share, room).await {
            Ok(answer) => answer,
            Err(refusal) => return Some(refusal.into()),
        };
        shared.came(self.key).await;
        let stay = Stay { shared, key: self.key, patience: self.deadline, until: None };
        stay.answer(answer, hung_up(channel)).await.ok().map(|answer| answer.message)
    }

    /// Checks a request and has it wait.
    async fn admit(
        &self,
        shared: &Arc<Shared>,
        asked: &Asked,
        share: InputShare,
        room: Lease,
    ) -> Result<oneshot::Receiver<Answer>, Refusal> {
        let model = served(shared, asked)?;
        let geometry = Geometry { batch: share.batch as usize, rows: share.rows as usize };
        if geometry.batch > shared.limits.max_batch {
            let most = shared.limits.max_batch;
            return Err(Refusal::new(Fault::Request, format!("{} inputs at once, {most} are allowed", geometry.batch)));
        }
        let place = Some(shared.quotas.places.take(self.client, 1).await.map_err(Refusal::no_place)?);
        let shape = Shape::Inputs(geometry);
        let sent = aside(shared, &model, &shape, move |shared, model| {
            check(shared.me, model.share.manifest(), &model.interface, &share)?;
            Ok(Sent { replicas: Replicas::of(shared.me, &share), share, room })
        });
        let task = Task::Inputs { sent: sent.await?, profile: self.profile };
        Ok(shared.desk.hold(Work { key: self.key, model, shape, task, place })?)
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
    checked.await.unwrap_or_else(|_| Err(Refusal::new(Fault::Nodes, "internal error in this node")))
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
