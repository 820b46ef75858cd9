//! P0 and P2 check what P1 proposes, and take part in it when all three have agreed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tercet_net::{Connection, Fault, PartyId};
use tokio::sync::OwnedSemaphorePermit;

use crate::clients::Refusal;
use crate::held::Held;
use crate::key::RequestKey;
use crate::lead::PEER_PATIENCE;
use crate::models::Model;
use crate::plan::{Agreement, BatchPlan, Objection, PeerMessage, fresh};
use crate::session::{self, Room};
use crate::shared::Shared;
use crate::shown::Shown;

/// How long a plan waits for requests that P1 has and this node has not yet.
const STRAGGLER_PATIENCE: Duration = Duration::from_secs(3);

/// How long a plan waits for a place: P1 may see a session end before this node does.
const PLACE_PATIENCE: Duration = Duration::from_secs(10);

/// How long an accepted plan may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Plans under consideration at once.
const PROPOSALS_AT_ONCE: usize = 256;

/// The plans that this node considers or has accepted, by session.
pub(crate) type Proposals = BTreeMap<u128, Proposal>;

/// A plan between its arrival and its start.
pub(crate) struct Proposal {
    from: Connection,
    /// None while it is considered.
    accepted: Option<Accepted>,
}

struct Accepted {
    plan: BatchPlan,
    hash: [u8; 32],
    nonce: [u8; 32],
    model: Arc<Model>,
    requests: Vec<Held>,
    /// To P1 and to the third node: what was shown, and the session's seeds, are those of these
    /// connections.
    connections: [Connection; 2],
    place: OwnedSemaphorePermit,
}

impl Shared {
    fn proposals(&self) -> MutexGuard<'_, Proposals> {
        self.proposals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// P1 proposes a session.
    pub(crate) fn proposed(self: &Arc<Self>, plan: BatchPlan, from: &Connection) {
        let session = plan.session;
        let objection = {
            let mut proposals = self.proposals();
            let full = proposals.len() >= PROPOSALS_AT_ONCE;
            match proposals.entry(session) {
                _ if full => Some(Objection::busy("too many plans at once")),
                Entry::Occupied(_) => Some(Objection::nodes("this session was proposed before")),
                Entry::Vacant(free) => {
                    free.insert(Proposal { from: from.clone(), accepted: None });
                    None
                }
            }
        };
        let (shared, from) = (self.clone(), from.clone());
        self.spawn(async move {
            let answer = match objection {
                Some(objection) => Err(objection),
                None => shared.consider(plan, &from).await,
            };
            let message = match answer {
                Ok(message) => message,
                Err(objection) => {
                    tracing::info!(reason = objection.reason, "refused a plan");
                    PeerMessage::Refuse { session, objection }
                }
            };
            if let Err(error) = from.send_message(&message).await {
                tracing::debug!(%error, "a plan could not be answered");
            }
            if matches!(message, PeerMessage::Accept { .. }) {
                tokio::time::sleep(START_PATIENCE).await;
                shared.cancelled(session);
            }
        });
    }

    /// Checks everything in a plan; it is accepted or forgotten afterwards.
    async fn consider(&self, plan: BatchPlan, from: &Connection) -> Result<PeerMessage, Objection> {
        let session = plan.session;
        let considered = self.accept(plan, from).await;
        let mut proposals = self.proposals();
        match (considered, proposals.get_mut(&session)) {
            (Ok((accepted, shown)), Some(proposal)) => {
                let (plan_hash, nonce) = (accepted.hash, accepted.nonce);
                proposal.accepted = Some(accepted);
                Ok(PeerMessage::Accept { session, plan_hash, nonce, shown })
            }
            (Ok((accepted, _)), None) => {
                drop(proposals);
                self.desk.put_back(accepted.requests);
                Err(Objection::nodes("the plan was cancelled"))
            }
            (Err(objection), _) => {
                proposals.remove(&session);
                Err(objection)
            }
        }
    }

    async fn accept(&self, plan: BatchPlan, from: &Connection) -> Result<(Accepted, Shown), Objection> {
        let model = self.models.get(&plan.model).filter(|model| model.share.digest() == plan.digest).cloned();
        let model = model.ok_or_else(|| Objection::nodes(format!("it does not hold this model {:?}", plan.model)))?;
        let hash = plan.hash().map_err(|error| Objection::nodes(error.to_string()))?;
        if !self.fits(&model, &plan.shape) {
            return Err(Objection::busy(format!("{} are more than it has room for", plan.shape)));
        }
        let third = self.endpoint.wait_party(self.third(), PEER_PATIENCE).await;
        let third = third.map_err(|error| Objection::nodes(error.to_string()))?;
        let place = tokio::time::timeout(PLACE_PATIENCE, self.places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Objection::busy("all its places are taken"));
        };
        let collected = self.desk.collect(&plan.requests, STRAGGLER_PATIENCE).await;
        let requests = collected.map_err(|missing| self.without(missing))?;
        let shapes = requests.iter().map(|held| Some(held.work.shape.clone()));
        let all = shapes.reduce(|sum, more| sum?.with(&more?)).flatten();
        let odd: Vec<RequestKey> = requests
            .iter()
            .enumerate()
            .filter(|(place, held)| !plan.shape.has(*place, &held.work.shape) || !Arc::ptr_eq(&held.work.model, &model))
            .map(|(_, held)| held.key())
            .collect();
        if !odd.is_empty() || requests.len() != plan.requests.len() || all.as_ref() != Some(&plan.shape) {
            self.desk.put_back(requests);
            let reason = "the shapes of its parts are not those of the plan: the client sent parts that do not match";
            return Err(Objection { fault: Fault::Request, reason: reason.into(), missing: odd });
        }
        let replicas: Vec<_> = requests.iter().map(|held| (held.key(), held.work.replicas())).collect();
        let connections = [from.clone(), third];
        let Some(shown) = Shown::of(self.me, &hash, &connections, &replicas) else {
            self.desk.put_back(requests);
            return Err(Objection::nodes("it is connected to no node where one is due"));
        };
        Ok((Accepted { plan, hash, nonce: fresh(), model, requests, connections, place }, shown))
    }

    /// The node beside P1 and this one.
    fn third(&self) -> PartyId {
        if self.me == PartyId::P0 { PartyId::P2 } else { PartyId::P0 }
    }

    /// Requests are missing: of those of which it is known why, only all with one reason are named at a time.
    fn without(&self, mut missing: Vec<RequestKey>) -> Objection {
        let why = |key: &RequestKey| self.desk.why(&key.name);
        let known = missing.first().and_then(why);
        missing.retain(|key| why(key) == known);
        let (fault, reason) = match known {
            Some(why) => (why.fault, why.reason),
            None => (Fault::Nodes, "its part of the request did not come, or the client left it".into()),
        };
        Objection { fault, reason, missing }
    }

    /// All three have agreed: the session begins.
    pub(crate) fn started(self: &Arc<Self>, session: u128, nonces: [[u8; 32]; 3]) {
        let Some(Proposal { accepted: Some(accepted), .. }) = self.proposals().remove(&session) else {
            return tracing::info!("a session was started that was not accepted, or no longer");
        };
        let Accepted { plan, hash, nonce, model, requests, connections, place } = accepted;
        if nonces[self.me.index()] != nonce {
            tracing::error!("P1 did not pass this node's part of a session's seeds on; the session is not run");
            return self.desk.put_back(requests);
        }
        let room = Room { model, connections, place, turn: None };
        self.spawn(session::run(self.clone(), Agreement { plan, hash, nonces }, requests, room));
    }

    /// A session does not take place, if it has not begun: its requests wait on.
    pub(crate) fn cancelled(&self, session: u128) {
        let proposal = self.proposals().remove(&session);
        if let Some(accepted) = proposal.and_then(|proposal| proposal.accepted) {
            self.desk.put_back(accepted.requests);
        }
    }

    /// Nothing proposed over a connection begins once it is over.
    pub(crate) fn forget_proposals(&self, from: &Connection) {
        let sessions: Vec<u128> =
            self.proposals().iter().filter(|(_, proposal)| proposal.from.same(from)).map(|(id, _)| *id).collect();
        for session in sessions {
            self.cancelled(session);
        }
    }

    /// P1 has given requests up, and the generations of which they are steps, wherever these are here.
    pub(crate) fn dropped(&self, requests: Vec<RequestKey>, fault: Fault, reason: &str) {
        for key in requests {
            self.desk.end(key.name, Refusal::new(fault, reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use tercet_core::{Extent, Geometry, Layout};
    use tercet_engine::{Profile, StepShape, choose, split};
    use tercet_examples::digits;
    use tercet_model::{Model, calibrate, calibration_inputs};
    use tercet_net::{
        ByteChannel, ChannelId, ClientMessage, ClientPolicy, Endpoint, EndpointConfig, Identity, InputShare, LinkKind,
        LinkProfile, NodeMessage, PeerAddress,
    };

    use super::*;
    use crate::shape::Shape;
    use crate::{Config, Node, PeerConfig};

    const PATIENCE: Duration = Duration::from_secs(20);
    const ROWS: usize = 16;

    fn inputs(batch: usize, rows: usize) -> Shape {
        Shape::Inputs(Geometry { batch, rows })
    }

    /// P0 with a request that waits, and a P1 that says what it likes.
    struct Scene {
        node: Node,
        lead: Connection,
        digest: [u8; 32],
        request: RequestKey,
        _others: (Endpoint, Endpoint, Endpoint, ByteChannel, tempfile::TempDir),
    }

    async fn scene() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        digits::write_model(&folder.path().join("model")).unwrap();
        let model = Model::load(&folder.path().join("model")).unwrap();
        let ranges = calibrate(&model, &calibration_inputs(&model)).unwrap();
        let numerics = choose(&model.graph, &ranges, Profile::Fast, false).unwrap();
        let shares = split(&model, "digits", numerics, [folder.path(); 3], |_| ()).unwrap();
        let identities = [(); 4].map(|()| Identity::generate().unwrap());
        let [own, p1, p2, client] = identities.each_ref().map(Identity::public_key);
        let keys = [Some(own), Some(p1), Some(p2)];
        let [mine, p1, p2, client_identity] = identities;
        mine.save(&folder.path().join("p0.key")).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let [p1, p2] = [(PartyId::P1, p1), (PartyId::P2, p2)].map(|(party, identity)| {
            let config = EndpointConfig::node(identity, party, any, keys);
            Endpoint::bind(EndpointConfig { profile: LinkProfile::Loopback, ..config }).unwrap()
        });
        let mut config = Config::new(PartyId::P0, any, folder.path().join("p0.key"));
        config.profile = LinkProfile::Loopback;
        config.shares = vec![shares[0].clone()];
        config.clients = ClientPolicy::Listed([client].into());
        config.peers = [None, Some(&p1), Some(&p2)].map(|endpoint| {
            let address = PeerAddress::new(LinkKind::Quic, endpoint?.local_address()?);
            Some(PeerConfig { key: endpoint?.public_key(), address: Some(address) })
        });
        let node = Node::start(config).await.unwrap();
        let digest = node.status().models[0].digest;
        let lead = p1.wait_party(PartyId::P0, PATIENCE).await.unwrap();
        assert!(matches!(lead.recv_message::<PeerMessage>().await.unwrap(), PeerMessage::Models { .. }));

        let client_config = EndpointConfig::client(client_identity, keys);
        let asking = Endpoint::bind(EndpointConfig { profile: LinkProfile::Loopback, ..client_config }).unwrap();
        let address = PeerAddress::new(LinkKind::Quic, node.address());
        let connection = asking.dial(PartyId::P0, &address).await.unwrap();
        let mut channel = connection.open_channel(ChannelId::request(0)).await.unwrap();
        channel.send(&ClientMessage::Manifest { model: "digits".into() }).await.unwrap();
        let manifest = channel.recv(1 << 20, PATIENCE).await.unwrap();
        let NodeMessage::Manifest { start_id, .. } = manifest else { panic!("{manifest:?}") };
        let mut channel = connection.open_channel(ChannelId::request(1)).await.unwrap();
        let seed = Some([7; 32]);
        let (masked, keys) = (Vec::new(), Default::default());
        let share = InputShare { batch: 1, rows: ROWS as u32, first_seed: seed, second_seed: seed, masked, keys };
        let (request_id, model) = ([5; 16], "digits".into());
        let (deadline_ms, profile) = (60_000, false);
        let run = ClientMessage::Run { request_id, start_id, model, digest, deadline_ms, profile, share };
        channel.send(&run).await.unwrap();
        let request = RequestKey::new(&client, request_id);
        let announced = lead.recv_message::<PeerMessage>().await.unwrap();
        assert!(matches!(announced, PeerMessage::Here { requests } if requests == [request]));
        Scene { node, lead, digest, request, _others: (p1, p2, asking, channel, folder) }
    }

    impl Scene {
        fn plan(&self, session: u128) -> BatchPlan {
            let (model, digest, requests) = ("digits".into(), self.digest, vec![self.request]);
            BatchPlan { session, model, digest, shape: inputs(1, ROWS), requests }
        }

        async fn say(&self, message: PeerMessage) {
            self.lead.send_message(&message).await.unwrap();
        }

        async fn propose(&self, plan: &BatchPlan) -> PeerMessage {
            self.say(PeerMessage::Plan(plan.clone())).await;
            self.lead.recv_message().await.unwrap()
        }

        async fn until_it_waits(&self) {
            while self.node.status().waiting != 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lead_that_lies_is_refused_and_loses_nobodys_request() {
        let scene = scene().await;
        let step = |past| {
            let layout = Layout { sequences: vec![Extent { past, rows: 1 }], every_row: false };
            Shape::Step(StepShape { layout, ..Shape::prompt(1) })
        };
        type Lie<'a> = (&'static str, Box<dyn Fn(&mut BatchPlan) + 'a>);
        let lies: [Lie<'_>; 10] = [
            ("another model", Box::new(|plan| plan.model = "other".into())),
            ("another digest", Box::new(|plan| plan.digest = [1; 32])),
            ("two inputs", Box::new(|plan| plan.shape = inputs(2, ROWS))),
            ("no inputs", Box::new(|plan| plan.shape = inputs(0, ROWS))),
            ("other rows", Box::new(|plan| plan.shape = inputs(1, ROWS + 1))),
            ("beyond measure", Box::new(|plan| plan.shape = inputs(usize::MAX, usize::MAX))),
            ("one twice", Box::new(|plan| (plan.shape, plan.requests) = (inputs(2, ROWS), vec![scene.request; 2]))),
            ("a step of no decoder", Box::new(|plan| plan.shape = step(0))),
            ("a step beyond measure", Box::new(|plan| plan.shape = step(usize::MAX))),
            ("nobody", Box::new(|plan| plan.requests = Vec::new())),
        ];
        for (session, (what, lie)) in (10..).zip(lies) {
            let mut plan = scene.plan(session);
            lie(&mut plan);
            let answer = scene.propose(&plan).await;
            assert!(
                matches!(answer, PeerMessage::Refuse { session: named, .. } if named == session),
                "{what}: {answer:?}"
            );
            scene.until_it_waits().await;
        }
        scene.say(PeerMessage::Start { session: 99, nonces: [[0; 32]; 3] }).await;

        let plan = scene.plan(1);
        let accepted = scene.propose(&plan).await;
        assert!(matches!(accepted, PeerMessage::Accept { plan_hash, .. } if plan_hash == plan.hash().unwrap()));
        assert_eq!(scene.node.status().waiting, 0);
        assert!(matches!(scene.propose(&plan).await, PeerMessage::Refuse { .. }), "one session twice");
        // Seeds without this node's part might be old ones.
        scene.say(PeerMessage::Start { session: 1, nonces: [[0; 32]; 3] }).await;
        scene.until_it_waits().await;

        assert!(matches!(scene.propose(&scene.plan(2)).await, PeerMessage::Accept { .. }));
        scene.say(PeerMessage::Cancel { session: 2 }).await;
        scene.until_it_waits().await;
        assert_eq!(scene.node.status().sessions_failed, 0);

        // What only P0 and P2 say to P1.
        let shown = Shown::of_nothing();
        scene.say(PeerMessage::Accept { session: 2, plan_hash: [0; 32], nonce: [0; 32], shown }).await;
        tokio::time::timeout(PATIENCE, scene.lead.closed()).await.expect("was listened to");
    }
}
