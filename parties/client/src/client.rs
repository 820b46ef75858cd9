//! The client's handle: models, embeddings, classes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tercet_model::RowInput;
use tercet_model::graph::Input;
use tercet_net::{
    ClientMessage, Connection, EndpointConfig, Fault, Identity, LinkProfile, ModelCard, NodeMessage, NodeStatus,
    OutputShare, PartyId, PeerAddress, PublicKey, Usage, WorkProfile, codec,
};
use tokio::task::JoinSet;

use crate::face::Table;
use crate::input::{self, Batch};
use crate::links::{Answer, Links, Place, QUESTION_BYTES, QUESTION_DEADLINE, encoded, fresh_id};
use crate::trio::{self, Failure};
use crate::{
    Classification, Classifications, Embeddings, Error, Inputs, ModelFace, Options, Prepared, RequestUsage, open,
};

/// The farthest deadline: clocks do not reach much farther.
const FARTHEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Models whose description is kept.
const FACES_KEPT: u64 = 64;
/// Public tables that are kept; each may take hundreds of megabytes.
const TABLES_KEPT: u64 = 2;

/// Where a node is and how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its public key.
    pub key: PublicKey,
    /// `quic://host:port` or `tcp://host:port`.
    pub address: PeerAddress,
}

/// How a client is set up.
#[derive(Debug)]
pub struct ClientConfig {
    /// The client's key, which the nodes must have on their lists (unless they are open to all).
    pub identity: Identity,
    /// P0 (the helper), P1 and P2.
    pub nodes: [NodeAddress; 3],
    /// The kind of network to the nodes.
    pub profile: LinkProfile,
    /// How long a connection may take to be established, and so how long a dead node goes unnoticed
    /// while it is dialled. A new configuration has 1.5 s; more suits links with round trips beyond
    /// 200 ms.
    pub connect_deadline: Duration,
    /// Whether models with a public gate may be asked: mixtures of experts whose **nodes learn, in every layer, which experts each
    /// token goes to**, which says something of the text. Their owner decides that they are such models, and this client whether to
    /// ask them all the same.
    pub public_gate: bool,
}

impl ClientConfig {
    /// A client of these nodes over any network, that asks no model with a public gate.
    pub fn new(identity: Identity, nodes: [NodeAddress; 3]) -> Self {
        let (profile, connect_deadline) = (LinkProfile::default(), Duration::from_millis(1500));
        Self { identity, nodes, profile, connect_deadline, public_gate: false }
    }
}

/// A connected client. Clones are handles on the same connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    links: Links,
    public_gate: bool,
    /// By name; dropped when a node refuses a request, as the model may have been shared anew.
    faces: Cache<String, Arc<ModelFace>>,
    /// By digest.
    tables: Cache<[u8; 32], Arc<Vec<u8>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// Connects to all three nodes. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A node cannot be reached, is not who it should be, or does not know this client; the first of them is named.
    pub async fn connect(config: ClientConfig) -> Result<Self, Error> {
        let ClientConfig { identity, nodes, profile, connect_deadline, public_gate } = config;
        let keys = nodes.each_ref().map(|node| Some(node.key));
        let endpoint = EndpointConfig { profile, connect_deadline, ..EndpointConfig::client(identity, keys) };
        let links = Links::new(endpoint, nodes.map(|node| node.address))?;
        let faces = Cache::new(FACES_KEPT);
        let client = Self(Arc::new(Inner { links, public_gate, faces, tables: Cache::new(TABLES_KEPT) }));
        let [p0, p1, p2] = PartyId::ALL.map(|party| client.0.links.connection(party));
        tokio::try_join!(p0, p1, p2)?;
        Ok(client)
    }

    /// The models that all three nodes serve under the same name and digest, in the order of their names.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn models(&self) -> Result<Vec<ModelCard>, Error> {
        let answers = self.question_all(|_| ClientMessage::Models, QUESTION_BYTES).await?;
        let mut cards: Vec<Vec<ModelCard>> = Vec::new();
        for (party, answer) in PartyId::ALL.into_iter().zip(answers) {
            match answer.message {
                NodeMessage::Models(of_node) => cards.push(of_node),
                _ => return Err(Error::unexpected(party, "another answer than a list of models")),
            }
        }
        let others = cards.split_off(1);
        let everywhere = |card: &ModelCard| others.iter().all(|of_node| of_node.contains(card));
        let mut common: Vec<ModelCard> = cards.swap_remove(0).into_iter().filter(everywhere).collect();
        common.sort_by(|a, b| a.name.cmp(&b.name));
        common.dedup();
        Ok(common)
    }

    /// How one node is doing, as it says itself.
    ///
    /// # Errors
    /// The node cannot be reached or does not answer.
    pub async fn status(&self, party: PartyId) -> Result<NodeStatus, Error> {
        let message = encoded(&ClientMessage::Status)?;
        let channel = u128::from_le_bytes(fresh_id());
        let _place = self.0.links.question().await?;
        match self.0.links.ask(party, channel, message, QUESTION_BYTES, QUESTION_DEADLINE).await?.message {
            NodeMessage::Status(status) => Ok(status),
            _ => Err(Error::unexpected(party, "another answer than its status")),
        }
    }

    /// What a model takes and gives, as all three nodes say alike. Kept for later calls.
    ///
    /// # Errors
    /// A node does not answer or does not have the model; two nodes disagree.
    pub async fn model(&self, name: &str) -> Result<Arc<ModelFace>, Error> {
        if let Some(face) = self.0.faces.get(name) {
            return Ok(face);
        }
        let answers =
            self.question_all(|_| ClientMessage::Manifest { model: name.into() }, codec::LARGEST_BYTES).await?;
        let face = Arc::new(ModelFace::from_answers(name, answers.map(|answer| answer.message))?);
        self.0.faces.insert(name.into(), face.clone());
        Ok(face)
    }

    /// One vector for each text.
    ///
    /// # Errors
    /// A text is empty or too long; the model gives no embeddings; a node fails or refuses; two copies of the answer
    /// differ.
    pub async fn embed(&self, model: &str, texts: &[&str], options: &Options) -> Result<Embeddings, Error> {
        let face = self.model(model).await?;
        if !face.labels().is_empty() {
            return Err(Error::Misuse(format!("model {model} classifies: it gives no embeddings")));
        }
        let (_, vectors, usage) = self.run(face, Inputs::Texts(texts), options).await?;
        Ok(Embeddings { vectors, usage })
    }

    /// The class of each text or image.
    ///
    /// # Errors
    /// An input is not one that the model takes; the model gives no classes; a node fails or refuses; two copies of the
    /// answer differ.
    pub async fn classify(&self, model: &str, inputs: Inputs<'_>, options: &Options) -> Result<Classifications, Error> {
        let face = self.model(model).await?;
        if face.labels().is_empty() {
            return Err(Error::Misuse(format!("model {model} gives embeddings, no classes")));
        }
        let (face, outputs, usage) = self.run(face, inputs, options).await?;
        let labels = face.labels();
        let classes = outputs.into_iter().map(|scores| {
            let best = (1..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best });
            Classification { label: labels.get(best).cloned().unwrap_or_default(), index: best, scores }
        });
        Ok(Classifications { classes: classes.collect(), usage })
    }

    /// Closes the connections, and waits a moment until the nodes can know.
    pub async fn close(self) {
        self.0.links.shutdown().await;
    }

    async fn run(
        &self,
        mut face: Arc<ModelFace>,
        inputs: Inputs<'_>,
        options: &Options,
    ) -> Result<(Arc<ModelFace>, Vec<Vec<f32>>, Vec<RequestUsage>), Error> {
        if face.interface().decoder.is_some() {
            return Err(Error::Misuse(format!("model {} gives tokens: ask it to generate", face.name())));
        }
        let until = after(Instant::now(), options.deadline);
        let mut failures = 0;
        loop {
            let Failure { error, again } = match self.run_once(&face, inputs, options, until).await {
                Ok((outputs, usage)) => return Ok((face, outputs, usage)),
                Err(failure) => failure,
            };
            if let Error::Refused { fault: Fault::Request, .. } = &error {
                // Perhaps the model was shared anew under its name, or a node has started anew.
                self.forget(face.name());
                let fresh = self.model(face.name()).await?;
                if face.is_current(&fresh) {
                    return Err(error);
                }
                face = fresh;
            } else if !again {
                return Err(error);
            }
            failures += 1;
            if failures > options.retries || Instant::now() >= until {
                return Err(error);
            }
            tracing::debug!(%error, "asking anew");
        }
    }

    async fn run_once(
        &self,
        face: &Arc<ModelFace>,
        inputs: Inputs<'_>,
        options: &Options,
        until: Instant,
    ) -> Result<(Vec<Vec<f32>>, Vec<RequestUsage>), Failure> {
        let batches = input::batches(face, inputs, options)?;
        let table = self.table_of(face).await?;
        let count = batches.len();
        let mut running = JoinSet::new();
        for (number, batch) in batches.into_iter().enumerate() {
            let (client, face, table) = (self.clone(), face.clone(), table.clone());
            let profile = options.profile;
            running.spawn(async move { (number, client.request(face, batch, table, profile, until).await) });
        }
        let mut outputs = vec![Vec::new(); inputs.len()];
        let mut usage = vec![RequestUsage::default(); count];
        while let Some(finished) = running.join_next().await {
            let (number, answered) = finished.map_err(|error| Error::Misuse(format!("a request ended: {error}")))?;
            let (places, rows, used) = answered?;
            places.into_iter().zip(rows).for_each(|(place, row)| outputs[place] = row);
            usage[number] = used;
        }
        Ok((outputs, usage))
    }

    /// The public table of a model that has one.
    pub(crate) async fn table_of(&self, face: &ModelFace) -> Result<Option<Arc<Vec<u8>>>, Error> {
        match (&face.interface().input, &face.interface().rows) {
            (Input::Tokens { .. }, RowInput::Matrix { .. }) => Ok(Some(self.table(face).await?)),
            _ => Ok(None),
        }
    }

    /// The living connection to a node.
    pub(crate) async fn connection(&self, party: PartyId) -> Result<Connection, Error> {
        self.0.links.connection(party).await
    }

    /// Waits for its turn to generate.
    pub(crate) async fn turn(&self, until: Instant) -> Result<Place, Error> {
        self.0.links.work(until).await
    }

    /// Whether models with a public gate may be asked.
    pub(crate) fn takes_public_gate(&self) -> bool {
        self.0.public_gate
    }

    /// Drops what is known of a model: the next call asks the nodes again.
    pub(crate) fn forget(&self, model: &str) {
        self.0.faces.invalidate(model);
    }

    /// The public table of a model, fetched once and the same at all nodes.
    async fn table(&self, face: &ModelFace) -> Result<Arc<Vec<u8>>, Error> {
        if let Some(table) = self.0.tables.get(&face.digest()) {
            return Ok(table);
        }
        let message = encoded(&ClientMessage::Table { model: face.name().into() })?;
        let expected = Table::len_bytes(face)?;
        let _place = self.0.links.question().await?;
        let fetch = |party| self.0.links.table(party, message.clone(), expected, QUESTION_DEADLINE);
        let mut tables = self.all_three(PartyId::ALL.map(fetch)).await.map_err(|failure| failure.error)?;
        for other in 1..3 {
            if tables[other] != tables[0] {
                let what = format!("the public table of model {}", face.name());
                return Err(Error::Disagreement { parties: [PartyId::P0, PartyId::ALL[other]], what });
            }
        }
        let table = Arc::new(std::mem::take(&mut tables[0]));
        self.0.tables.insert(face.digest(), table.clone());
        Ok(table)
    }

    /// One request: shares out, shares back, opened. A request is made once; another try draws everything anew.
    async fn request(
        &self,
        face: Arc<ModelFace>,
        batch: Batch,
        table: Option<Arc<Vec<u8>>>,
        profile: bool,
        until: Instant,
    ) -> Result<(Vec<usize>, Vec<Vec<f32>>, RequestUsage), Failure> {
        let place = self.0.links.work(until).await?;
        let start = Instant::now();
        let left = until.saturating_duration_since(start);
        let sharing = tokio::task::spawn_blocking(move || {
            let prepared = Prepared::new(&face, batch, table.as_ref().map(|table| table.as_slice()))?;
            Ok::<_, Error>((face, prepared))
        });
        let stopped = |error| Error::Misuse(format!("sharing the input stopped: {error}"));
        let (face, prepared) = sharing.await.map_err(stopped)??;
        let request_id = fresh_id();
        let values = prepared.len() * face.interface().output_width;
        let limit = open::limit_bytes(values, face.interface().output_ring, profile);
        let run = |party: PartyId| ClientMessage::Run {
            request_id,
            start_id: face.start_id(party),
            model: face.name().into(),
            digest: face.digest(),
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            profile,
            share: prepared.shares()[party.index()].clone(),
        };
        let answers = self.ask_all(place, u128::from_le_bytes(request_id), run, limit, left).await?;
        let mut usage = RequestUsage { batch: prepared.len(), rows: prepared.rows(), ..RequestUsage::default() };
        let mut profiles = Vec::new();
        let mut outputs: [OutputShare; 3] = std::array::from_fn(|_| OutputShare { planes: Default::default() });
        for (party, answer) in PartyId::ALL.into_iter().zip(answers) {
            let at = party.index();
            (usage.sent[at], usage.received[at]) = (answer.sent, answer.received);
            let NodeMessage::Output { share, usage: of_node, profile: of_time } = answer.message else {
                return Err(Error::unexpected(party, "another answer than an output").into());
            };
            outputs[at] = share;
            usage.take(party, &of_node);
            profiles.extend(checked(party, profile, of_time)?);
        }
        usage.profiles = profiles.try_into().ok();
        let rows = face.open(&prepared, &outputs)?;
        usage.elapsed = start.elapsed();
        Ok((prepared.places().to_vec(), rows, usage))
    }

    /// Asks all three nodes something else than a request.
    async fn question_all(
        &self,
        message: impl Fn(PartyId) -> ClientMessage,
        limit: usize,
    ) -> Result<[Answer; 3], Error> {
        let place = self.0.links.question().await?;
        let asked = self.ask_all(place, u128::from_le_bytes(fresh_id()), message, limit, QUESTION_DEADLINE).await;
        asked.map_err(|failure| failure.error)
    }

    /// Asks all three nodes at once.
    async fn ask_all(
        &self,
        _place: Place,
        channel: u128,
        message: impl Fn(PartyId) -> ClientMessage,
        limit: usize,
        deadline: Duration,
    ) -> Result<[Answer; 3], Failure> {
        let [p0, p1, p2] = PartyId::ALL.map(|party| encoded(&message(party)));
        let ask = |party, message| self.0.links.ask(party, channel, message, limit, deadline);
        self.all_three(trio::each([p0?, p1?, p2?], ask)).await
    }

    /// What comes of work at all three nodes; see [`trio::all`].
    pub(crate) async fn all_three<T>(
        &self,
        parts: [impl Future<Output = Result<T, Error>>; 3],
    ) -> Result<[T; 3], Failure> {
        trio::all(&self.0.links, parts).await
    }
}

/// When a deadline is over, however far a caller sets it.
pub(crate) fn after(start: Instant, deadline: Duration) -> Instant {
    start + deadline.min(FARTHEST)
}

/// A node's profile, which is there if and only if it was asked for, and makes sense.
fn checked(party: PartyId, asked: bool, profile: Option<WorkProfile>) -> Result<Option<WorkProfile>, Error> {
    match (&profile, asked) {
        (Some(_), false) => Err(Error::unexpected(party, "a profile that nobody asked for")),
        (None, true) => Err(Error::unexpected(party, "no profile, which was asked for")),
        (Some(given), true) => {
            given.check().map_err(|what| Error::unexpected(party, &format!("a profile with {what}")))?;
            Ok(profile)
        }
        (None, false) => Ok(None),
    }
}

impl RequestUsage {
    /// Adds what one node saw: each reports the links that it has an end of.
    fn take(&mut self, party: PartyId, node: &Usage) {
        self.batched = self.batched.max(node.batched);
        self.rounds = self.rounds.max(node.rounds);
        let counted = [(&mut self.bytes, &node.bytes), (&mut self.frames, &node.frames)];
        for (all, seen) in
            counted.into_iter().flat_map(|(all, seen)| all.iter_mut().flatten().zip(seen.iter().flatten()))
        {
            *all = (*all).max(*seen);
        }
        self.session = self.session.max(Duration::from_millis(node.session_ms.into()));
        self.queued = self.queued.max(Duration::from_millis(node.queued_ms.into()));
        self.work_us[party.index()] = node.work_us;
    }
}

#[cfg(test)]
mod tests;
