//! A request, or a step of a generation, that waits; and what comes out of it.

use std::sync::Arc;
use std::time::Instant;

use tercet_engine::{Member, Parsed, StepInput};
use tercet_net::{Fault, NodeMessage};
use tokio::sync::oneshot;

use crate::cache::{Pages, Reservation};
use crate::key::RequestKey;
use crate::models::Model;
use crate::shape::Shape;
use crate::turns::Kind;

/// What is computed for one client.
// A task moves from hand to hand a few times in its life.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Task {
    /// Inputs, from their beginning to their output.
    Inputs {
        input: Parsed,
        /// Whether its client asked where the time goes.
        profile: bool,
    },
    /// A step of a generation.
    Step {
        member: Member,
        /// Where the generation's pages go back to.
        room: Reservation,
    },
}

/// What is to be held.
pub(crate) struct Work {
    pub(crate) key: RequestKey,
    pub(crate) model: Arc<Model>,
    pub(crate) shape: Shape,
    pub(crate) task: Task,
}

impl Work {
    /// Whether every node goes on with this by itself: all three have it as soon as the step before has ended.
    pub(crate) fn comes_by_itself(&self) -> bool {
        matches!(&self.task, Task::Step { member, .. } if matches!(member.input, StepInput::Chosen))
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
        (Held { work, arrived: Instant::now(), reply }, answer)
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

    /// The task, and the rest.
    pub(crate) fn split(self) -> (Input, Waiting) {
        let (input, profile, room) = match self.work.task {
            Task::Inputs { input, profile } => (Input::Whole(input), profile, None),
            Task::Step { member, room } => (Input::Step(member), false, Some(room)),
        };
        (input, Waiting { arrived: self.arrived, profile, room, reply: self.reply })
    }
}

/// What goes into a session.
pub(crate) enum Input {
    Whole(Parsed),
    Step(Member),
}

/// Work whose input is in a session: what is left is to answer it.
pub(crate) struct Waiting {
    pub(crate) arrived: Instant,
    /// Whether its client asked where the time goes.
    pub(crate) profile: bool,
    /// Kept while the session has the pages.
    pub(crate) room: Option<Reservation>,
    reply: oneshot::Sender<Answer>,
}

impl Waiting {
    /// Where the client has left, its pages are freed.
    pub(crate) fn answer(self, message: NodeMessage, sequence: Option<tercet_engine::Sequence>) {
        let pages = sequence.zip(self.room).map(|(sequence, room)| Pages { sequence, room });
        let _ = self.reply.send(Answer { message, pages });
    }
}
