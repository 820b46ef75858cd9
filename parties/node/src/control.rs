//! The conversation with one other node, for as long as a connection lasts.

use std::sync::{Arc, PoisonError};

use tercet_net::{Connection, NetError, PartyId};

use crate::desk::LEAD;
use crate::key::RequestKey;
use crate::lead::Verdict;
use crate::plan::PeerMessage;
use crate::shared::Shared;

/// Requests announced in one message, which must stay below the limit of control messages.
const KEYS_AT_ONCE: usize = 4096;

/// Serves a connection to another node until it ends.
pub(crate) async fn converse(shared: Arc<Shared>, connection: Connection, peer: PartyId) {
    shared.peer_met(peer, &connection);
    let reason = listen(&shared, &connection, peer).await;
    if let NetError::Protocol { .. } = reason {
        tracing::error!(%peer, %reason, "a node of another version, or an impostor; its connection is closed");
        connection.close("it broke the protocol between nodes");
    }
    shared.peer_left(peer, &connection);
    shared.forget_proposals(&connection);
    let mut verdicts = shared.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever waits for an answer over this connection sees its sender gone.
    verdicts.retain(|_, (asked, _)| !asked.same(&connection));
}

async fn listen(shared: &Arc<Shared>, connection: &Connection, peer: PartyId) -> NetError {
    let models = PeerMessage::Models { cards: shared.models.cards(), most: shared.limits.capacity() };
    if let Err(error) = connection.send_message(&models).await {
        return error;
    }
    if peer == LEAD {
        for requests in shared.desk.keys().chunks(KEYS_AT_ONCE) {
            shared.tell_lead(PeerMessage::Here { requests: requests.to_vec() }).await;
        }
    }
    loop {
        let message = match connection.recv_message::<PeerMessage>().await {
            Ok(message) => message,
            Err(error) => return error,
        };
        if let Err(what) = hear(shared, connection, peer, message) {
            return NetError::Protocol { peer: peer.to_string(), what: what.into() };
        }
    }
}

fn hear(
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: PartyId,
    message: PeerMessage,
) -> Result<(), &'static str> {
    let (from_lead, to_lead) = (peer == LEAD, shared.me == LEAD);
    match message {
        PeerMessage::Models { cards, most } => {
            shared.peer_allows(peer, most);
            shared.peer_holds(peer, connection, cards);
        }
        PeerMessage::Here { requests } if to_lead => {
            let here = shared.desk.announced(peer, &requests);
            let first = here.into_iter().filter(|key| key.step == 0).collect();
            shared.spawn(name(connection.clone(), first));
        }
        PeerMessage::Named { requests } if from_lead => shared.desk.named(&requests),
        PeerMessage::Gone { request } if to_lead => shared.desk.renounced(peer, Some(request)),
        PeerMessage::Plan(plan) if from_lead => shared.proposed(plan, connection),
        PeerMessage::Start { session, nonces } if from_lead => shared.started(session, nonces),
        PeerMessage::Cancel { session } if from_lead => shared.cancelled(session),
        PeerMessage::Drop { requests, fault, reason } if from_lead => shared.dropped(requests, fault, &reason),
        PeerMessage::Accept { session, plan_hash, nonce, shown } if to_lead => {
            decide(shared, (session, peer), Verdict::Accepted { plan_hash, nonce, shown });
        }
        PeerMessage::Refuse { session, objection } if to_lead => {
            decide(shared, (session, peer), Verdict::Refused(objection));
        }
        _ => return Err("a message that is not for it to send, or not for this node"),
    }
    Ok(())
}

/// Tells a node which of the requests that it announced are at the lead, too.
pub(crate) async fn name(connection: Connection, requests: Vec<RequestKey>) {
    if requests.is_empty() {
        return;
    }
    if let Err(error) = connection.send_message(&PeerMessage::Named { requests }).await {
        tracing::debug!(%error, "a node could not be told");
    }
}

fn decide(shared: &Shared, name: (u128, PartyId), verdict: Verdict) {
    let waiting = shared.verdicts.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
    if let Some((_, waiting)) = waiting {
        // Nobody waits any more when the plan was given up.
        let _ = waiting.send(verdict);
    }
}
