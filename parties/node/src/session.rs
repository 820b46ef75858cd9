//! One session at one node: links, seeds, a thread of its own, and an answer to each client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tercet_core::{Cost, Error, PairSeeds, Session, WorkProfile};
use tercet_engine::{Member, Parsed, Sequence, StepInput, execute, execute_step, parse, parse_rows};
use tercet_net::{Connection, Fault, NodeMessage, OutputShare, SessionLinks, Usage};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::desk::Decoding;
use crate::held::{Held, Input, Waiting};
use crate::key::RequestKey;
use crate::models::Model;
use crate::plan::Agreement;
use crate::shape::Shape;
use crate::shared::Shared;

/// What a session runs in.
pub(crate) struct Room {
    pub(crate) model: Arc<Model>,
    /// To the two others.
    pub(crate) connections: [Connection; 2],
    /// Kept until the end.
    pub(crate) place: OwnedSemaphorePermit,
    /// At the lead, where generations decode; kept until all have their answers.
    pub(crate) turn: Option<Decoding>,
}

/// An output, and what its generation goes on with if it is one; none where the client's parts
/// contradict each other.
type Output = Option<(Option<Sequence>, OutputShare)>;

/// What the client of such a request is told.
const CONTRADICTION: &str = "the parts that the client sent contradict each other";

/// How a session went, and what it took.
struct Report {
    result: Result<Vec<Output>, Error>,
    cost: Cost,
    profile: WorkProfile,
    took: Duration,
}

/// Runs an agreed session to its end and answers all requests in it.
pub(crate) async fn run(shared: Arc<Shared>, agreement: Agreement, requests: Vec<Held>, room: Room) {
    let Room { model, connections, place, turn } = room;
    let _running = shared.counters.sessions_running.during();
    let keys: Vec<RequestKey> = requests.iter().map(Held::key).collect();
    shared.desk.settle(&keys);
    let begun = Instant::now();
    let (inputs, waiting): (Vec<Input>, Vec<Waiting>) = requests.into_iter().map(Held::split).unzip();
    let seeds = agreement.seeds(shared.me, &connections);
    let [first, second] = &connections;
    let session = agreement.plan.session;
    let id = format!("{:08x}", session >> 96);
    let links = SessionLinks::establish(shared.me, [first, second], session, shared.settings).await;
    let report = match links {
        Ok(links) => {
            let job = Job { model, shape: agreement.plan.shape.clone(), inputs };
            on_a_thread(&shared, &id, links, seeds, job).await
        }
        Err(error) => Err(error.to_string()),
    };
    drop(place);
    // Before the first of them can be back.
    shared.desk.back(&keys);
    let outcome = report.and_then(|report| {
        for peer in shared.me.others() {
            let (me, peer_index) = (shared.me.index(), peer.index());
            let bytes = report.cost.bytes;
            shared.count_session_bytes(peer, bytes[me][peer_index], bytes[peer_index][me]);
        }
        let outputs = report.result.map_err(|error| error.to_string())?;
        let usage = Usage {
            batched: waiting.len() as u32,
            rounds: report.cost.rounds,
            bytes: report.cost.bytes,
            frames: report.cost.frames,
            session_ms: report.took.as_millis() as u32,
            queued_ms: 0,
            work_us: report.profile.by_kind_ns().map(|ns| ns / 1000),
        };
        Ok((outputs, usage, report.profile))
    });
    match outcome {
        Ok((outputs, usage, profile)) => {
            let (rounds, ms) = (usage.rounds, usage.session_ms);
            tracing::info!(session = id, model = agreement.plan.model, requests = waiting.len(), rounds, ms, "done");
            shared.counters.sessions_done.add();
            for (waiting, output) in waiting.into_iter().zip(outputs) {
                let Some((sequence, share)) = output else {
                    let (fault, reason) = (Fault::Request, CONTRADICTION.into());
                    waiting.answer(NodeMessage::Refused { fault, reason }, None);
                    continue;
                };
                let queued_ms = begun.saturating_duration_since(waiting.arrived).as_millis() as u32;
                let usage = Usage { queued_ms, ..usage };
                let message = if sequence.is_some() {
                    NodeMessage::Step { share, usage }
                } else {
                    let profile = waiting.profile.then(|| profile.clone());
                    NodeMessage::Output { share, usage, profile }
                };
                waiting.answer(message, sequence);
            }
        }
        Err(reason) => {
            tracing::warn!(session = id, model = agreement.plan.model, requests = ?keys, reason, "a session failed");
            shared.counters.sessions_failed.add();
            for waiting in waiting {
                waiting.answer(failed(&reason), None);
            }
        }
    }
    drop(turn);
}

fn failed(reason: &str) -> NodeMessage {
    NodeMessage::Refused { fault: Fault::Nodes, reason: format!("the computation failed, try again: {reason}") }
}

/// What a session computes.
struct Job {
    model: Arc<Model>,
    shape: Shape,
    inputs: Vec<Input>,
}

impl Job {
    fn execute(self, session: &mut Session) -> Result<Vec<Output>, Error> {
        let (mut whole, mut members): (Vec<Parsed>, Vec<Member>) = Default::default();
        let (share, interface) = (&*self.model.share, &self.model.interface);
        let (me, manifest) = (share.party(), share.manifest());
        // What clients sent is expanded here and not before, and as it came it is gone from then
        // on.
        for input in self.inputs {
            match input {
                Input::Whole(sent) => whole.push(parse(me, manifest, interface, &sent.share)?),
                Input::Step { sequence, rows, noise } => {
                    let input = match rows {
                        Some(sent) => StepInput::Rows(parse_rows(me, manifest, interface, &sent.share)?),
                        None => StepInput::Chosen,
                    };
                    members.push(Member { sequence, input, noise });
                }
            }
        }
        match &self.shape {
            Shape::Inputs(_) => {
                let outputs = execute(session, manifest, share, whole)?;
                Ok(outputs.into_iter().map(|output| Some((None, output?))).collect())
            }
            Shape::Step(step) => {
                let outputs = execute_step(session, manifest, share, members, step)?;
                let output = |(sequence, output)| (Some(sequence), output);
                Ok(outputs.into_iter().map(|of| of.map(output)).collect())
            }
        }
    }
}

/// Protocol code blocks, so it has a thread of its own. A panic there ends this session alone.
async fn on_a_thread(
    shared: &Shared,
    id: &str,
    links: SessionLinks,
    seeds: PairSeeds,
    job: Job,
) -> Result<Report, String> {
    let (done, report) = oneshot::channel();
    let pool = shared.pool.clone();
    let thread = std::thread::Builder::new().name(format!("session-{id}")).spawn(move || {
        let begun = Instant::now();
        let session = Session::new(Box::new(links), &seeds, pool);
        drop(seeds);
        let Ok(mut session) = session else { return };
        let result = job.execute(&mut session);
        if let Err(error) = &result {
            session.abort(&error.to_string());
        }
        let (cost, profile) = (session.cost(), session.profile());
        // The node may be gone.
        let _ = done.send(Report { result, cost, profile, took: begun.elapsed() });
    });
    thread.map_err(|error| format!("no thread for a session: {error}"))?;
    // The sender is dropped unused when the thread panics.
    report.await.map_err(|_| "a fault in this node's program".to_owned())
}
