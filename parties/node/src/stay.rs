//! How long a request, or a step, waits at the desk, and for what.

use std::sync::Arc;
use std::time::Duration;

use tercet_net::{Fault, NodeMessage};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clients::Refusal;
use crate::desk::LEAD;
use crate::held::Answer;
use crate::key::RequestKey;
use crate::lead::{PEER_PATIENCE, give_up};
use crate::plan::PeerMessage;
use crate::shared::Shared;

/// How often a request that waits is looked after.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// How long the lead waits until the others have got their parts, too.
const PART_PATIENCE: Duration = Duration::from_secs(5);

/// How long the others wait until the lead has got its part: longer, as theirs may be much smaller
/// and come first.
const NAME_PATIENCE: Duration = Duration::from_secs(10);

/// Something that is held at the desk.
pub(crate) struct Stay<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) key: RequestKey,
    /// How long it may wait for its session.
    pub(crate) patience: Duration,
    /// When the generation is over of which it is a step, and what is said then.
    pub(crate) until: Option<(Instant, Refusal)>,
}

impl Stay<'_> {
    /// The answer; or how its client left, before there was one. What waits is then withdrawn; in a session it stays, for
    /// the sake of its neighbours.
    pub(crate) async fn answer<L>(
        &self,
        mut answer: oneshot::Receiver<Answer>,
        left: impl Future<Output = L>,
    ) -> Result<Answer, L> {
        let (shared, key) = (self.shared, self.key);
        let arrived = Instant::now();
        let mut look = arrived + self.patience.min(LOOK_PAUSE);
        let mut left = std::pin::pin!(left);
        loop {
            tokio::select! {
                // What has come already is not lost to a client that leaves.
                biased;
                answered = &mut answer => {
                    let lost = || NodeMessage::Refused {
                        fault: Fault::Nodes,
                        reason: "the request was lost in this node: try again".into(),
                    };
                    return Ok(answered.unwrap_or_else(|_| Answer { message: lost(), pages: None }));
                }
                left = &mut left => {
                    tracing::info!(request = %key, "its client left");
                    drop(shared.desk.withdraw(key));
                    shared.tell_lead(PeerMessage::Gone { request: key }).await;
                    return Err(left);
                }
                () = tokio::time::sleep_until(look) => {
                    if let Some(why) = self.overdue(arrived.elapsed())
                        && let Some(held) = shared.desk.withdraw_for(key, Some(&why))
                    {
                        // The answer comes out of the channel at the next turn.
                        if shared.me == LEAD {
                            give_up(shared, vec![held], why.fault, &why.reason).await;
                        } else {
                            held.refuse(why.fault, why.reason);
                            shared.tell_lead(PeerMessage::Gone { request: key }).await;
                        }
                    }
                    look = Instant::now() + LOOK_PAUSE;
                }
            }
        }
    }

    /// Why a request should wait no longer.
    fn overdue(&self, waited: Duration) -> Option<Refusal> {
        let shared = self.shared;
        let because = |reason| Some(Refusal::new(Fault::Nodes, reason));
        if let Some((_, outlived)) = self.until.as_ref().filter(|(until, _)| Instant::now() >= *until) {
            return Some(outlived.clone());
        }
        if waited >= self.patience {
            let ms = self.patience.as_millis();
            return because(format!(
                "no session within {ms} ms: the nodes are busy, or one of them has not got its part"
            ));
        }
        if shared.desk.gives_way(&self.key) {
            return Some(Refusal::gave_way());
        }
        if shared.me != LEAD {
            // Of a later step its generation's client has shown the lead that it is there.
            let unnamed = self.key.step == 0 && waited >= NAME_PATIENCE && shared.desk.is_unnamed(&self.key);
            let seconds = NAME_PATIENCE.as_secs();
            return unnamed
                .then(|| format!("{LEAD} has not got its part of the request within {seconds} s"))
                .and_then(because);
        }
        if waited < PEER_PATIENCE {
            return None;
        }
        let lacking = shared.desk.lacking(self.key);
        if let Some(party) = lacking.iter().find(|party| shared.endpoint.party(**party).is_none()) {
            let trouble = shared.endpoint.party_trouble(*party).map_or(String::new(), |error| format!(": {error}"));
            return because(format!("{party} is not connected to {}{trouble}", shared.me));
        }
        let late = lacking.first().filter(|_| waited >= PART_PATIENCE);
        let seconds = PART_PATIENCE.as_secs();
        late.and_then(|party| because(format!("{party} has not got its part of the request within {seconds} s")))
    }
}
