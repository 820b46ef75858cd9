//! A generation: one channel of a client, step after step, each of which is a session of the three nodes.
//!
//! Between steps this node keeps its part of the sequence here; while a step waits or runs, the sequence is with it. So
//! whatever ends a generation (its client, its deadline, a step that fails) frees its pages with it, at the latest when the
//! session that has them is over, and leaves those that ran beside it alone.

use std::sync::Arc;
use std::time::Duration;

use tercet_core::{Extent, Layout};
use tercet_engine::{Choice, Noise, Replicas, Sequence, StepShape, cache_bytes, check_rows};
use tercet_net::{
    ByteChannel, ByteReceiver, ByteSender, ClientMessage, Fault, GenerationOptions, InputShare, NetError, NodeMessage,
    NoiseSeed, PartyId, PublicKey, TokenChoice, codec,
};
use tercet_ring::Seed;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::clients::{Asked, Refusal, Unheard, aside, receive, say, served};
use crate::desk::{Alive, LEAD, STOPPING};
use crate::held::{Answer, Pages, Room, Sent, Task, Work};
use crate::key::RequestKey;
use crate::lead::disown;
use crate::models::Model;
use crate::quota::Lease;
use crate::shape::Shape;
use crate::shared::{Phase, Shared};
use crate::stay::Stay;
use crate::turns::Kind;

/// What makes the noise of a step unlike that of any other.
const NOISE_LABEL: &str = "tercet choice noise v1";

/// What makes P0's own seed, mixed with a client's, unlike any other.
const MIX_LABEL: &str = "tercet choice noise of P0 v1";

/// How a client asks for a generation.
pub(crate) struct Opening {
    pub(crate) client: PublicKey,
    pub(crate) key: RequestKey,
    pub(crate) asked: Asked,
    pub(crate) deadline: Duration,
    pub(crate) options: GenerationOptions,
    pub(crate) noise_seed: Option<NoiseSeed>,
    pub(crate) share: InputShare,
    /// The bytes that the share takes here.
    pub(crate) room: Lease,
}

/// How a generation ends.
pub(crate) enum End {
    /// All that there is room for was given, or the client has enough.
    Done,
    /// The client gave its channel up.
    Left,
    Refused(Refusal),
}

/// Runs a generation to its end. All that it gives but a refusal has been sent by then.
///
/// Answers leave beside the steps: a client that reads slowly at one node holds nobody up who decodes with it.
pub(crate) async fn run(shared: &Arc<Shared>, opening: Opening, channel: &mut ByteChannel) -> Result<End, NetError> {
    let key = opening.key;
    let (generation, first) = match Generation::admit(shared, opening).await {
        Ok(admitted) => admitted,
        Err(refusal) => return Ok(End::Refused(refusal)),
    };
    let (post, letters) = mpsc::unbounded_channel();
    let ByteChannel { sender, receiver } = channel;
    let steps = async {
        let end = generation.steps(key, first, receiver, post).await;
        generation.leave(key, &end).await;
        end
    };
    let (end, delivered) = tokio::join!(steps, deliver(sender, letters));
    delivered.map(|()| end)
}

/// An answer, and whom to tell when it has left. Where steps come by themselves, as many may wait as a generation has
/// positions, a few hundred bytes each.
type Letter = (NodeMessage, oneshot::Sender<()>);

/// Sends what is posted until nothing more is; nothing more can be once this has failed.
async fn deliver(sender: &mut ByteSender, mut letters: mpsc::UnboundedReceiver<Letter>) -> Result<(), NetError> {
    while let Some((message, sent)) = letters.recv().await {
        say(sender, &message).await?;
        // It may go on without.
        let _ = sent.send(());
    }
    Ok(())
}

/// What all steps of a generation have in common.
struct Generation<'a> {
    shared: &'a Arc<Shared>,
    client: PublicKey,
    model: Arc<Model>,
    options: GenerationOptions,
    deadline: Duration,
    until: Instant,
    noise: Option<(f64, Option<Seed>)>,
    alive: Alive,
}

/// A step that is to be held.
struct Step {
    pages: Pages,
    /// Rows that the client sent; none where the step reads the token that the last one chose.
    sent: Option<Sent>,
    /// How many these are.
    rows: usize,
    /// The place of the first step among all that wait.
    place: Option<Lease>,
}

impl<'a> Generation<'a> {
    /// Checks everything about a generation, and reserves its memory.
    async fn admit(shared: &'a Arc<Shared>, opening: Opening) -> Result<(Self, Step), Refusal> {
        let Opening { client, key, asked, deadline, options, noise_seed, share, room: bytes_sent } = opening;
        let theirs = |reason: String| Refusal::new(Fault::Request, reason);
        let model = served(shared, &asked)?;
        let decoder = model.decoder().map_err(|error| theirs(error.to_string()))?;
        let context = decoder.context;
        let (rows, positions) = (share.rows as usize, options.max_positions as usize);
        if share.batch != 1 {
            return Err(theirs(format!("{} prompts where one is due", share.batch)));
        }
        if rows == 0 || rows > context {
            return Err(theirs(format!("the prompt has {rows} tokens, the model takes 1 to {context}")));
        }
        if positions < rows || positions > context {
            let asked = format!("room for {positions} tokens is asked for");
            return Err(theirs(format!("{asked}: the prompt has {rows}, and the model takes at most {context}")));
        }
        let own = (!decoder.generation.reproducible).then(Seed::random);
        let noise = noise(shared.me, &options, noise_seed, own.as_ref(), model.hottest())?;
        let place = shared.quotas.generations.take(client, 1).await;
        let place =
            place.map_err(|_| Refusal::new(Fault::Busy, "too many generations are under way: try again later"))?;
        let manifest = model.share.manifest();
        let bytes = cache_bytes(manifest, shared.me, positions);
        let pages = &shared.quotas.pages;
        let bytes = pages.take(client, bytes).await.map_err(|full| {
            let (needed, limit) = (mib(bytes), mib(pages.limit()));
            let reason = format!(
                "{positions} positions take {needed} MiB of the memory for generations, and {} of {limit} are free: try again \
                 later, or ask for fewer",
                mib(full.free)
            );
            Refusal::new(Fault::Busy, reason)
        })?;
        let room = Room { bytes, place };
        let reentry = matches!(options.choice, TokenChoice::Token { reenter: true, .. });
        let kind = Kind { model: model.name().into(), choice: choice(&options), reentry };
        let alive = shared.desk.join(key.name, kind)?;
        let until = Instant::now() + deadline;
        let sequence = Sequence::new(manifest, shared.me).map_err(|error| theirs(error.to_string()))?;
        let step = self::shape(Extent { past: 0, rows }, &options, false);
        let shape = Shape::Step(step.clone());
        let place = Some(shared.quotas.places.take(client, 1).await.map_err(Refusal::no_place)?);
        let sent = aside(shared, &model, &shape, move |shared, model| {
            model.check_answer(&step)?;
            check_rows(shared.me, model.share.manifest(), &model.interface, &share)?;
            Ok(Sent { replicas: Replicas::of(shared.me, &share), share, room: bytes_sent })
        });
        let first = Step { pages: Pages { sequence, room }, sent: Some(sent.await?), rows, place };
        Ok((Generation { shared, client, model, options, deadline, until, noise, alive }, first))
    }

    /// Takes step after step. What is held is looked after until it is answered or withdrawn.
    async fn steps(
        &self,
        mut key: RequestKey,
        first: Step,
        receiver: &mut ByteReceiver,
        post: mpsc::UnboundedSender<Letter>,
    ) -> End {
        let mut held = self.hold(key, first).await;
        loop {
            let answer = match held {
                Ok(answer) => answer,
                Err(refusal) => return End::Refused(refusal),
            };
            let (patience, until) = (self.shared.limits.request_deadline, Some((self.until, self.outlived())));
            let stay = Stay { shared: self.shared, key, patience, until };
            let left = async {
                tokio::select! {
                    end = ended(receiver) => end,
                    () = post.closed() => End::Left,
                }
            };
            let Answer { message, pages } = match stay.answer(answer, left).await {
                Ok(answer) => answer,
                Err(end) => return end,
            };
            let pages = match (&message, pages) {
                (NodeMessage::Step { .. }, Some(pages)) => pages,
                (NodeMessage::Refused { fault, reason }, _) => return End::Refused(Refusal::new(*fault, reason)),
                _ => return End::Refused(Refusal::new(Fault::Nodes, "a step without a result")),
            };
            self.shared.counters.steps_done.add();
            let (letter, sent) = oneshot::channel();
            if post.send((message, letter)).is_err() {
                return End::Left;
            }
            if pages.sequence.len() >= self.options.max_positions as usize {
                return End::Done;
            }
            if self.is_over() {
                return End::Refused(self.outlived());
            }
            if pages.room.is_revoked() {
                return End::Refused(Refusal::gave_way());
            }
            key = key.next();
            // A step that comes by itself need not wait for the client to read the one before.
            let sent = if self.reenters() {
                None
            } else if sent.await.is_err() {
                return End::Left;
            } else {
                match self.next_row(receiver, &pages.room).await {
                    Ok(sent) => Some(sent),
                    Err(end) => return end,
                }
            };
            held = self.hold(key, Step { pages, sent, rows: 1, place: None }).await;
        }
    }

    /// What the end of this means to the other nodes: the lead has them give up what it has begun with them.
    async fn leave(self, key: RequestKey, end: &End) {
        let why = match end {
            End::Done => return,
            End::Left => Refusal::new(Fault::Nodes, format!("{} has lost the client", self.shared.me)),
            End::Refused(refusal) => refusal.clone(),
        };
        self.alive.end(why.clone());
        if self.shared.me == LEAD {
            disown(self.shared, vec![key], why).await;
        }
    }

    fn reenters(&self) -> bool {
        matches!(self.options.choice, TokenChoice::Token { reenter: true, .. })
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn outlived(&self) -> Refusal {
        let whose = if self.deadline < self.shared.limits.generation_deadline {
            "the deadline that its client set"
        } else {
            "the longest that this node lets one last"
        };
        let ms = self.deadline.as_millis();
        Refusal::new(Fault::Request, format!("the generation has not ended within {ms} ms, {whose}"))
    }

    /// Has a step wait for its session.
    async fn hold(&self, key: RequestKey, step: Step) -> Result<oneshot::Receiver<Answer>, Refusal> {
        let Step { pages, sent, rows, place } = step;
        let by_itself = sent.is_none();
        let past = pages.sequence.len();
        let shape = Shape::Step(self::shape(Extent { past, rows }, &self.options, by_itself));
        let noise = self.noise.as_ref().map(|(temperature, seed)| Noise {
            temperature: *temperature,
            seed: seed.as_ref().map(|seed| seed.derive(NOISE_LABEL, &key.step.to_le_bytes())),
        });
        let task = Task::Step { pages, rows: sent, noise };
        let answer = self.shared.desk.hold(Work { key, model: self.model.clone(), shape, task, place })?;
        if !by_itself {
            self.shared.came(key).await;
        }
        Ok(answer)
    }

    /// The row that the client brings for the next step.
    async fn next_row(&self, receiver: &mut ByteReceiver, held: &Room) -> Result<Sent, End> {
        let refuse = |fault, reason: String| End::Refused(Refusal::new(fault, reason));
        let shared = self.shared;
        let idle = shared.limits.idle_deadline;
        let mut phase = shared.phase.subscribe();
        let heard = tokio::select! {
            heard = receive(shared, self.client, receiver, idle) => heard,
            () = tokio::time::sleep_until(self.until) => return Err(End::Refused(self.outlived())),
            why = self.alive.ended() => return Err(End::Refused(why)),
            () = held.revoked() => return Err(End::Refused(Refusal::gave_way())),
            _ = phase.wait_for(|phase| *phase >= Phase::Closing) => return Err(refuse(Fault::Nodes, STOPPING.into())),
        };
        let (share, room) = match heard {
            Ok((ClientMessage::Next { share }, room)) => (share, room),
            Ok((ClientMessage::Finish, _)) | Err(Unheard::Ended) => return Err(End::Done),
            Ok(_) => return Err(refuse(Fault::Request, "another message than the next row of a generation".into())),
            Err(Unheard::Lost(NetError::Deadline { .. })) => {
                let ms = idle.as_millis();
                return Err(refuse(Fault::Request, format!("no next row within {ms} ms: the generation is given up")));
            }
            Err(Unheard::Lost(_)) => return Err(End::Left),
            Err(Unheard::Refused(refusal)) => return Err(End::Refused(refusal)),
        };
        if (share.batch, share.rows) != (1, 1) {
            return Err(refuse(Fault::Request, format!("{share:?} where one row is due")));
        }
        let checked = check_rows(shared.me, self.model.share.manifest(), &self.model.interface, &share);
        checked.map_err(|error| refuse(Fault::Request, error.to_string()))?;
        Ok(Sent { replicas: Replicas::of(shared.me, &share), share, room })
    }
}

/// Waits until the client has enough, gives its channel up, or says what is not to be said while a step runs.
async fn ended(receiver: &mut ByteReceiver) -> End {
    /// Longer than anything lives.
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    /// A message that says `Finish`.
    const SHORT_BYTES: usize = 64;
    let wrong =
        || End::Refused(Refusal::new(Fault::Request, "a message where none is due: a step of the generation runs"));
    match receiver.next_bytes(SHORT_BYTES, FOREVER).await {
        Ok(Some(bytes)) => match codec::decode(&bytes, bytes.len()) {
            Ok(ClientMessage::Finish) => End::Done,
            _ => wrong(),
        },
        // Nothing more follows; it may wait still.
        Ok(None) => std::future::pending().await,
        Err(NetError::Protocol { .. }) => wrong(),
        Err(_) => End::Left,
    }
}

fn choice(options: &GenerationOptions) -> Choice {
    match options.choice {
        TokenChoice::Scores => Choice::Scores,
        TokenChoice::Token { .. } => Choice::Token,
    }
}

/// The shape of a step of one generation.
fn shape(extent: Extent, options: &GenerationOptions, reentry: bool) -> StepShape {
    let every_row = options.every_row && extent.past == 0;
    StepShape {
        layout: Layout { sequences: vec![extent], every_row },
        choice: choice(options),
        reentry,
        noisy: matches!(options.choice, TokenChoice::Token { temperature: Some(_), .. }),
    }
}

/// How noisy choices are, and where the noise grows from at P0; none where there is none. The
/// client's seed counts alone where P0 has no `own`: one that can repeat a draw under noise of its
/// choice reads scores out of many.
fn noise(
    me: PartyId,
    options: &GenerationOptions,
    seed: Option<NoiseSeed>,
    own: Option<&Seed>,
    hottest: f64,
) -> Result<Option<(f64, Option<Seed>)>, Refusal> {
    let theirs = |reason: &str| Err(Refusal::new(Fault::Request, reason));
    let unfit = |temperature: f64| !(temperature > 0.0 && temperature < hottest);
    let temperature = match options.choice {
        TokenChoice::Token { temperature, .. } => temperature,
        TokenChoice::Scores => None,
    };
    if options.every_row && options.choice != TokenChoice::Scores {
        return theirs("the scores of every row are asked for together with a choice of tokens");
    }
    match (temperature, seed, me) {
        (None, None, _) => Ok(None),
        (None, Some(_), _) => theirs("a seed of noise for choices without any"),
        (Some(temperature), ..) if unfit(temperature) => {
            theirs(&format!("temperature {temperature}, where above 0 and below {hottest:.1} is possible"))
        }
        (Some(temperature), Some(NoiseSeed(seed)), PartyId::P0) => {
            let mixed = own.map(|own| own.derive(MIX_LABEL, &seed));
            Ok(Some((temperature, Some(mixed.unwrap_or_else(|| Seed::from_bytes(seed))))))
        }
        (Some(_), None, PartyId::P0) => theirs("no seed for the noise of choices"),
        (Some(temperature), None, _) => Ok(Some((temperature, None))),
        (Some(_), Some(_), _) => theirs("a seed of noise that is for P0 alone to know"),
    }
}

/// In the unit of the configuration, to a tenth.
fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_grows_at_the_helper_alone() {
        let options = |choice| GenerationOptions { max_positions: 9, choice, every_row: false };
        let token = |temperature| options(TokenChoice::Token { temperature, reenter: true });
        let seed = || Some(NoiseSeed([7; 32]));
        let none = noise(PartyId::P0, &token(None), None, None, 9.0).unwrap();
        assert!(none.is_none());
        let there = noise(PartyId::P0, &token(Some(0.5)), seed(), None, 9.0).unwrap().unwrap();
        assert_eq!((there.0, there.1.is_some()), (0.5, true));
        let elsewhere = noise(PartyId::P2, &token(Some(0.5)), None, None, 9.0).unwrap().unwrap();
        assert_eq!((elsewhere.0, elsewhere.1.is_some()), (0.5, false));
        // The client's seed alone, and the same beside two of P0's own.
        let of = |own: Option<[u8; 32]>| {
            let own = own.map(Seed::from_bytes);
            let (_, seed) = noise(PartyId::P0, &token(Some(0.5)), seed(), own.as_ref(), 9.0).unwrap().unwrap();
            *seed.unwrap().as_bytes()
        };
        assert_eq!((of(None), of(None)), ([7; 32], [7; 32]));
        assert_eq!(of(Some([1; 32])), of(Some([1; 32])));
        assert!(of(Some([1; 32])) != of(Some([2; 32])) && of(Some([1; 32])) != [7; 32]);
        for (me, options, seed) in [
            (PartyId::P1, token(Some(0.5)), seed()),
            (PartyId::P0, token(Some(0.5)), None),
            (PartyId::P0, token(Some(0.0)), seed()),
            (PartyId::P0, token(Some(f64::NAN)), seed()),
            (PartyId::P1, token(Some(-1.0)), None),
            (PartyId::P2, token(Some(9.0)), None),
            (PartyId::P0, token(None), seed()),
            (PartyId::P0, options(TokenChoice::Scores), seed()),
            (PartyId::P1, GenerationOptions { every_row: true, ..token(None) }, None),
        ] {
            assert!(noise(me, &options, seed, None, 9.0).is_err(), "{me} {options:?}");
        }
    }
}
