//! P1 decides which requests run together: whatever waits when a place is free, the oldest first.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tercet_net::{Connection, Fault, PartyId};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::clients::Refusal;
use crate::desk::Batch;
use crate::held::Held;
use crate::key::RequestKey;
use crate::plan::{Agreement, BatchPlan, Objection, PeerMessage, fresh, fresh_session};
use crate::session::{self, Room};
use crate::shared::Shared;
use crate::shown::{Comparison, Shown, compare};

/// How long requests wait for a node that is not connected: one that is only being connected anew
/// is back by then.
pub(crate) const PEER_PATIENCE: Duration = Duration::from_millis(1500);

/// How long the others may take to answer a plan; longer than they wait for stragglers and for a place.
const VERDICT_PATIENCE: Duration = Duration::from_secs(20);

/// How long nothing begins after a node had no room; long enough for what waits to be looked after ([`crate::stay`]).
const BUSY_PAUSE: Duration = Duration::from_millis(500);

const FOLLOWERS: [PartyId; 2] = [PartyId::P0, PartyId::P2];

/// What a node says to a plan.
#[derive(Debug)]
pub(crate) enum Verdict {
    Accepted { plan_hash: [u8; 32], nonce: [u8; 32], shown: Shown },
    Refused(Objection),
}

/// Over which connection a plan went, and who waits for what is said to it.
pub(crate) type Asked = (Connection, oneshot::Sender<Verdict>);

/// Runs batch after batch, as many at once as there are places.
pub(crate) async fn lead(shared: Arc<Shared>) {
    loop {
        let Ok(place) = shared.places.clone().acquire_owned().await else { return };
        let Some(batch) = shared.desk.next_batch(|model, shape| shared.fits(model, shape)).await else { return };
        shared.spawn(run_batch(shared.clone(), batch, place));
    }
}

async fn run_batch(shared: Arc<Shared>, batch: Batch, place: OwnedSemaphorePermit) {
    let Batch { requests: batch, shape, turn } = batch;
    let [p0, p2] = FOLLOWERS.map(|party| shared.endpoint.wait_party(party, PEER_PATIENCE));
    let connections = match tokio::try_join!(p0, p2) {
        Ok((p0, p2)) => [p0, p2],
        Err(error) => return give_up(&shared, batch, Fault::Nodes, &error.to_string()).await,
    };
    let Some(oldest) = batch.first() else { return };
    let model = oldest.work.model.clone();
    // What was not known when the request came.
    if let Some(reason) = shared.disagreement(&model) {
        return give_up(&shared, batch, Fault::Nodes, &reason).await;
    }
    let plan = BatchPlan {
        session: fresh_session(),
        model: model.name().into(),
        digest: model.share.digest(),
        shape,
        requests: batch.iter().map(Held::key).collect(),
    };
    let session = plan.session;
    let (nonces, hash) = match agree(&shared, &plan, &batch, &connections).await {
        Ok(agreed) => agreed,
        Err(Objection { fault: Fault::Busy, reason, missing }) if missing.is_empty() => {
            tracing::info!(session = format!("{:08x}", session >> 96), reason, "waits on");
            tell(&connections, &PeerMessage::Cancel { session }).await;
            return shared.desk.put_back_for(batch, BUSY_PAUSE);
        }
        Err(Objection { fault, reason, missing }) => {
            tell(&connections, &PeerMessage::Cancel { session }).await;
            let (dropped, others): (Vec<Held>, Vec<Held>) =
                batch.into_iter().partition(|held| missing.is_empty() || missing.contains(&held.key()));
            shared.desk.put_back(others);
            return give_up(&shared, dropped, fault, &reason).await;
        }
    };
    tell(&connections, &PeerMessage::Start { session, nonces }).await;
    let agreement = Agreement { plan, hash, nonces };
    session::run(shared, agreement, batch, Room { model, connections, place, turn }).await;
}

/// What a client hears that sends copies which differ.
const CONTRADICTION: &str = "the parts that the client sent to the three nodes do not belong together";

/// Both others must accept the very same plan, and hold the same as this node of what is held
/// alike. Their nonces, with one of this node, and the hash of the plan.
async fn agree(
    shared: &Shared,
    plan: &BatchPlan,
    batch: &[Held],
    connections: &[Connection; 2],
) -> Result<([[u8; 32]; 3], [u8; 32]), Objection> {
    let hash = plan.hash().map_err(|error| Objection::nodes(error.to_string()))?;
    let [p0, p2] = connections;
    let asked = tokio::join!(ask(shared, plan, p0, PartyId::P0), ask(shared, plan, p2, PartyId::P2));
    let mut nonces = [fresh(); 3];
    let mut shown = Vec::new();
    let mut objection: Option<Objection> = None;
    for (party, verdict) in FOLLOWERS.into_iter().zip([asked.0, asked.1]) {
        match verdict {
            Ok(Verdict::Accepted { plan_hash, nonce, shown: theirs }) if plan_hash == hash => {
                nonces[party.index()] = nonce;
                shown.push(theirs);
            }
            Ok(Verdict::Accepted { .. }) => {
                return Err(Objection::nodes(format!("{party} read a different plan from the one sent")));
            }
            Ok(Verdict::Refused(Objection { fault, reason, missing })) => {
                let reason = format!("{party}: {reason}");
                match &mut objection {
                    // Both lack something: both lists count.
                    Some(first) if !first.missing.is_empty() && !missing.is_empty() => first.missing.extend(missing),
                    Some(first) if first.missing.is_empty() => {}
                    _ => objection = Some(Objection { fault, reason, missing }),
                }
            }
            Err(reason) => objection = Some(Objection::nodes(reason)),
        }
    }
    if let Some(objection) = objection {
        return Err(objection);
    }
    let requests: Vec<_> = batch.iter().map(|held| (held.key(), held.work.replicas())).collect();
    let own = Shown::of(shared.me, &hash, connections, &requests);
    let ([of_p0, of_p2], Some(own)) = (shown.as_slice(), own) else {
        return Err(Objection::nodes("a node shows nothing of what it holds"));
    };
    match compare([of_p0, &own, of_p2], batch.len()) {
        Comparison::Odd(places) if places.is_empty() => Ok((nonces, hash)),
        Comparison::Odd(places) => {
            let missing = places.into_iter().filter_map(|place| plan.requests.get(place).copied()).collect();
            Err(Objection { fault: Fault::Request, reason: CONTRADICTION.into(), missing })
        }
        Comparison::Elsewhere(one, other) => {
            Err(Objection::busy(format!("{one} and {other} have just connected to each other anew")))
        }
    }
}

async fn ask(shared: &Shared, plan: &BatchPlan, to: &Connection, party: PartyId) -> Result<Verdict, String> {
    let name = (plan.session, party);
    let (sender, verdict) = oneshot::channel();
    let verdicts = || shared.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
    verdicts().insert(name, (to.clone(), sender));
    let answer = async {
        to.send_message(&PeerMessage::Plan(plan.clone())).await.map_err(|error| error.to_string())?;
        match tokio::time::timeout(VERDICT_PATIENCE, verdict).await {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(_)) => Err(format!("connection to {party} lost")),
            Err(_) => Err(format!("{party} did not answer a plan within {} s", VERDICT_PATIENCE.as_secs())),
        }
    }
    .await;
    verdicts().remove(&name);
    answer
}

async fn tell(connections: &[Connection], message: &PeerMessage) {
    for connection in connections {
        if let Err(error) = connection.send_message(message).await {
            tracing::debug!(%error, "a node could not be told");
        }
    }
}

/// Refuses requests here and has the others refuse them too.
pub(crate) async fn give_up(shared: &Shared, requests: Vec<Held>, fault: Fault, reason: &str) {
    let keys: Vec<RequestKey> = requests.iter().map(Held::key).collect();
    tracing::warn!(requests = ?keys, reason, "given up");
    shared.desk.settle(&keys);
    for held in requests {
        held.refuse(fault, reason);
    }
    disown(shared, keys, Refusal::new(fault, reason)).await;
}

/// Has the others give these requests up, or the generations of which they are steps.
pub(crate) async fn disown(shared: &Shared, requests: Vec<RequestKey>, why: Refusal) {
    let Refusal { fault, reason } = why;
    let living: Vec<Connection> = FOLLOWERS.into_iter().filter_map(|party| shared.endpoint.party(party)).collect();
    tell(&living, &PeerMessage::Drop { requests, fault, reason }).await;
}
