//! A request, or a step of a generation, that waits; and what comes out of it.

use std::sync::Arc;
use std::time::Instant;

use tercet_engine::{Noise, Replicas, Sequence};
use tercet_net::{Fault, InputShare, NodeMessage};
use tokio::sync::oneshot;

use crate::key::RequestKey;
use crate::models::Model;
use crate::quota::Lease;
use crate::shape::Shape;
use crate::turns::Kind;

/// What a client sent, as it came: checked, and expanded in its session alone.
pub(crate) struct Sent {
    pub(crate) share: InputShare,
    /// What the nodes compare of it.
    pub(crate) replicas: Replicas,
    /// The bytes that it takes here.
    pub(crate) room: Lease,
}

/// What one generation has here between its steps, and the room for it: the one is dropped before
/// the other is free.
pub(crate) struct Pages {
    pub(crate) sequence: Sequence,
    pub(crate) room: Room,
}

/// What a generation occupies from its beginning to its end: the memory of its pages, and a place
/// among generations.
pub(crate) struct Room {
    pub(crate) bytes: Lease,
    pub(crate) place: Lease,
}

impl Room {
    pub(crate) fn is_revoked(&self) -> bool {
        self.bytes.is_revoked() || self.place.is_revoked()
    }

    /// Waits until it must be given back.
    pub(crate) async fn revoked(&self) {
        tokio::select! {
            () = self.bytes.revoked() => {}
            () = self.place.revoked() => {}
        }
    }
}

/// What is computed for one client.
// A task moves from hand to hand a few times in its life.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Task {
    /// Inputs, from their beginning to their output.
    Inputs {
        sent: Sent,
        /// Whether its client asked where the time goes.
        profile: bool,
    },
    /// A step of a generation.
    Step {
        pages: Pages,
        /// The rows that it reads; none where it reads the token that the last step chose.
        rows: Option<Sent>,
        noise: Option<Noise>,
    },
}

/// What is to be held.
pub(crate) struct Work {
    pub(crate) key: RequestKey,
    pub(crate) model: Arc<Model>,
    pub(crate) shape: Shape,
    pub(crate) task: Task,
    /// Its place among all that wait; a further step of a generation waits in that of its
    /// generation.
    pub(crate) place: Option<Lease>,
}

impl Work {
    /// Whether every node goes on with this by itself: all three have it as soon as the step before has ended.
    pub(crate) fn comes_by_itself(&self) -> bool {
        matches!(&self.task, Task::Step { rows: None, .. })
    }

    /// What the nodes compare of it.
    pub(crate) fn replicas(&self) -> Replicas {
        match &self.task {
            Task::Inputs { sent, .. } | Task::Step { rows: Some(sent), .. } => sent.replicas.clone(),
            Task::Step { rows: None, .. } => Replicas::nothing(),
        }
    }

    /// Whether it must make room for another client's.
    pub(crate) fn gives_way(&self) -> bool {
        let (sent, pages) = match &self.task {
            Task::Inputs { sent, .. } => (Some(sent), None),
            Task::Step { rows, pages, .. } => (rows.as_ref(), Some(pages)),
        };
        let mut leases = self.place.iter().chain(sent.map(|sent| &sent.room));
        leases.any(Lease::is_revoked) || pages.is_some_and(|pages| pages.room.is_revoked())
    }

    /// What this may decode with, where it is a further step of a generation.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match &self.shape {
            Shape::Step(step) if self.shape.decodes() => {
                Some(Kind { model: self.model.name().into(), choice: step.choice, reentry: step.reentry })
            }
            _ => None,
        }
    }
}

/// Work that waits.
pub(crate) struct Held {
    pub(crate) work: Work,
    pub(crate) arrived: Instant,
    /// Elsewhere than at the lead: whether the lead has its part, too.
    pub(crate) named: bool,
    reply: oneshot::Sender<Answer>,
}

/// What a client is told, and what its generation goes on with.
pub(crate) struct Answer {
    pub(crate) message: NodeMessage,
    /// After a step that ended well.
    pub(crate) pages: Option<Pages>,
}

impl Held {
    pub(crate) fn new(work: Work) -> (Held, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Held { work, arrived: Instant::now(), named: false, reply }, answer)
    }

    pub(crate) fn key(&self) -> RequestKey {
        self.work.key
    }

    pub(crate) fn is_left(&self) -> bool {
        self.reply.is_closed()
    }

    /// Its pages, if it has any, are freed.
    pub(crate) fn refuse(self, fault: Fault, reason: impl Into<String>) {
        let message = NodeMessage::Refused { fault, reason: reason.into() };
        // The client may have left.
        let _ = self.reply.send(Answer { message, pages: None });
    }

    /// The task, and the rest. Its place is free for another.
    pub(crate) fn split(self) -> (Input, Waiting) {
        let (input, profile, room) = match self.work.task {
            Task::Inputs { sent, profile } => (Input::Whole(sent), profile, None),
            Task::Step { pages: Pages { sequence, room }, rows, noise } => {
                (Input::Step { sequence, rows, noise }, false, Some(room))
            }
        };
        (input, Waiting { arrived: self.arrived, profile, room, reply: self.reply })
    }
}

/// What goes into a session.
pub(crate) enum Input {
    Whole(Sent),
    Step { sequence: Sequence, rows: Option<Sent>, noise: Option<Noise> },
}

/// Work whose input is in a session: what is left is to answer it.
pub(crate) struct Waiting {
    pub(crate) arrived: Instant,
    /// Whether its client asked where the time goes.
    pub(crate) profile: bool,
    /// Kept while the session has the pages.
    pub(crate) room: Option<Room>,
    reply: oneshot::Sender<Answer>,
}

impl Waiting {
    /// Where the client has left, its pages are freed.
    pub(crate) fn answer(self, message: NodeMessage, sequence: Option<Sequence>) {
        let pages = sequence.zip(self.room).map(|(sequence, room)| Pages { sequence, room });
        let _ = self.reply.send(Answer { message, pages });
    }
}
