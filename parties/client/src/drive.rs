//! Generates: shares of a prompt out, then step after step an answer in and the next row out, on one channel to each node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tercet_model::{Decoder, TextStream, Tokenizer, TokenizerError};
use tercet_net::{
    ByteChannel, ChannelId, ClientMessage, Fault, GenerationOptions, InputShare, NetError, NodeMessage, NoiseSeed,
    OutputShare, PartyId, TokenChoice, Usage, codec,
};
use tokio::sync::mpsc::{self, UnboundedSender};
use zeroize::Zeroizing;

use crate::client::after;
use crate::face::Table;
use crate::generation::SharedUsage;
use crate::links::{Place, clean, encoded, fresh_id};
use crate::sampler::{Sampler, log_probability};
use crate::stops::{Cut, Stops};
use crate::trio::{self, Failure, GRACE};
use crate::{
    Client, Error, Finish, GenerateOptions, Generation, GenerationUsage, ModelFace, Score, Token, open, share,
};

/// Between the tries to begin a generation: twice as long each time, until it is the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A text under way.
struct Drive {
    client: Client,
    face: Arc<ModelFace>,
    table: Option<Arc<Vec<u8>>>,
    options: GenerateOptions,
    started: Instant,
    /// The prompt and what was generated.
    text: Zeroizing<Vec<u32>>,
    /// Tokens of both at most.
    limit: usize,
    sampler: Sampler,
    readable: TextStream,
    stops: Stops,
    usage: SharedUsage,
    out: UnboundedSender<Result<Token, Error>>,
}

impl Client {
    /// Generates a text that goes on after a prompt. Returns at once with a stream of tokens; what the nodes say against it comes
    /// as its first item.
    ///
    /// A client, its clones included, has up to 24 generations and requests under way at once. Further ones wait for their
    /// turn, within their deadline.
    ///
    /// The nodes learn the number of tokens of the prompt, how many more were asked for at most and how many came, and the
    /// temperature where they choose; never a token.
    ///
    /// # Errors
    /// The model generates nothing; the prompt is empty or longer than the context; an option is out of range.
    pub async fn generate(&self, model: &str, prompt: &str, options: &GenerateOptions) -> Result<Generation, Error> {
        options.check()?;
        let started = Instant::now();
        let face = self.model(model).await?;
        let context = agreed(self, &face)?.context;
        let text = encode(&face, prompt)?;
        let table = self.table_of(&face).await?;
        let prompt_tokens = text.len();
        let usage = SharedUsage::default();
        usage.change(|usage| usage.prompt_tokens = prompt_tokens);
        let (out, tokens) = mpsc::unbounded_channel();
        // The last token need not go in again.
        let limit = prompt_tokens.saturating_add(options.max_new_tokens).min(context + 1);
        let readable = TextStream::after(tokenizer(&face)?, &text).map_err(undecoded)?;
        let drive = Drive {
            client: self.clone(),
            face,
            table,
            sampler: Sampler::new(options.sampling.clone()),
            readable,
            stops: Stops::new(options.stop.clone()),
            options: options.clone(),
            started,
            text,
            limit,
            usage: usage.clone(),
            out,
        };
        Ok(Generation::new(tokens, tokio::spawn(drive.run()), usage))
    }

    /// How likely each token of a text is after those before it.
    ///
    /// # Errors
    /// As [`Client::generate`]; a node fails or refuses; two copies of the answer differ.
    pub async fn score(&self, model: &str, text: &str, deadline: Duration) -> Result<Score, Error> {
        let started = Instant::now();
        let face = self.model(model).await?;
        agreed(self, &face)?;
        let ids = encode(&face, text)?;
        let table = self.table_of(&face).await?;
        let public =
            GenerationOptions { max_positions: ids.len() as u32, choice: TokenChoice::Scores, every_row: true };
        let mut usage = GenerationUsage { prompt_tokens: ids.len(), ..Default::default() };
        let until = after(started, deadline);
        let shares = shares(&face, ids.clone(), table.as_ref()).await?;
        let opened = Channels::open(self, &face, public, [None, None, None], shares, until, &mut usage).await;
        let mut channels = opened.map_err(|failure| failure.error)?;
        let answer = channels.step(None, until, &mut usage).await.map_err(|failure| failure.error)?;
        let scores = open::open_scores(face.interface(), ids.len(), &answer)?;
        usage.first_token = started.elapsed();
        let rows = scores.chunks_exact(face.interface().output_width);
        let log_probabilities = rows.zip(&ids[1..]).map(|(row, &next)| log_probability(row, next)).collect();
        Ok(Score { ids: ids.to_vec(), log_probabilities, usage })
    }
}

impl Drive {
    async fn run(mut self) {
        let until = after(self.started, self.options.deadline);
        let (mut tries, mut failures, mut pause) = (0, 0, FIRST_PAUSE);
        let error = loop {
            let Failure { error, again } = match self.attempt(tries, until).await {
                Ok(finish) => {
                    self.usage.change(|usage| usage.finish = Some(finish));
                    return;
                }
                Err(failure) => failure,
            };
            tries += 1;
            // What is taken may be what a try before this one still holds.
            let held = failures > 0 && matches!(error, Error::Refused { fault: Fault::Busy, .. });
            if !held {
                failures += 1;
            }
            let again = held || (again || self.has_started_anew(&error).await) && failures <= self.options.retries;
            // With a token out, it is the caller's to say whether the text is worth another prompt.
            if !again || self.usage().new_tokens > 0 || Instant::now() + pause >= until {
                break error;
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
            tracing::debug!(%error, "a generation is begun anew");
            self.usage.change(|usage| usage.retried = failures);
        };
        // Perhaps the model was shared anew under its name.
        self.client.forget(self.face.name());
        // The caller may have left.
        let _ = self.out.send(Err(error));
    }

    /// Whether a node refused only because it has started anew, with the same model; then the next
    /// try speaks to that start.
    async fn has_started_anew(&mut self, error: &Error) -> bool {
        let Error::Refused { fault: Fault::Request, .. } = error else { return false };
        self.client.forget(self.face.name());
        let Ok(fresh) = self.client.model(self.face.name()).await else { return false };
        let anew = fresh.digest() == self.face.digest() && !self.face.is_current(&fresh);
        self.face = fresh;
        anew
    }

    /// From the prompt to the end.
    async fn attempt(&mut self, attempt: u32, until: Instant) -> Result<Finish, Failure> {
        let shares = shares(&self.face, self.text.clone(), self.table.as_ref()).await?;
        let (inside, sampling) = (self.options.inside, &self.options.sampling);
        let noisy = inside && sampling.temperature > 0.0;
        let temperature = noisy.then_some(sampling.temperature);
        let choice = match inside {
            true => TokenChoice::Token { temperature, reenter: true },
            false => TokenChoice::Scores,
        };
        // Every try has noise of its own, also where the caller chose the seed.
        let seed = || NoiseSeed(*sampling.seed_for("tercet noise v1", &attempt.to_le_bytes()).as_bytes());
        let noise = [noisy.then(seed), None, None];
        let public = GenerationOptions { max_positions: self.limit as u32 - 1, choice, every_row: false };
        let mut usage = self.usage();
        let opened = Channels::open(&self.client, &self.face, public, noise, shares, until, &mut usage).await;
        self.put(usage);
        let (mut channels, mut row) = (opened?, None);
        loop {
            let mut usage = self.usage();
            let answer = channels.step(row.take(), until, &mut usage).await;
            self.put(usage);
            let answer = answer?;
            let (id, log_probability) = if inside {
                (open::open_token(&self.face, &answer)?, None)
            } else {
                let scores = open::open_scores(self.face.interface(), 1, &answer)?;
                let id = self.sampler.choose(&scores, &self.text);
                (id, Some(log_probability(&scores, id)))
            };
            if let Some(finish) = self.take(id, log_probability)? {
                channels.finish().await;
                return Ok(finish);
            }
            if !inside {
                row = Some(share::rows(&self.face, Zeroizing::new(vec![id]), self.table()?.as_ref())?);
            }
        }
    }

    /// A token has come: it is given out, as far as its text is sure. Why nothing follows, if so.
    fn take(&mut self, id: u32, log_probability: Option<f64>) -> Result<Option<Finish>, Error> {
        let elapsed = self.started.elapsed();
        self.text.push(id);
        let tokenizer = tokenizer(&self.face)?;
        let eos = !self.options.ignore_eos && decoder(&self.face)?.generation.eos.contains(&id);
        let Cut { mut text, stopped } = self.stops.push(&self.readable.push(tokenizer, id).map_err(undecoded)?);
        let full = self.text.len() >= self.limit;
        let finish = match (stopped, eos, full) {
            (true, ..) => Some(Finish::Stop),
            (_, true, _) => Some(Finish::Eos),
            (.., true) => Some(Finish::Length),
            _ => None,
        };
        let mut finish = finish;
        if finish.is_some() && !stopped {
            // What was incomplete stays so, and may still be what to stop at.
            let cut = self.stops.push(&std::mem::take(&mut self.readable).finish(tokenizer).map_err(undecoded)?);
            text += &cut.text;
            if cut.stopped {
                finish = Some(Finish::Stop);
            } else {
                text += &self.stops.flush();
            }
        }
        self.usage.change(|usage| {
            usage.new_tokens += 1;
            if usage.new_tokens == 1 {
                usage.first_token = elapsed;
            }
            usage.further_tokens = elapsed.saturating_sub(usage.first_token);
            // Before the last token can be read.
            usage.finish = finish;
        });
        // The caller may have left; then this task ends soon.
        let _ = self.out.send(Ok(Token { id, text, log_probability }));
        Ok(finish)
    }

    fn table(&self) -> Result<Option<Table<'_>>, Error> {
        self.table.as_ref().map(|bytes| Table::new(&self.face, bytes)).transpose()
    }

    fn usage(&self) -> GenerationUsage {
        self.usage.get()
    }

    fn put(&self, now: GenerationUsage) {
        self.usage.change(|usage| *usage = now);
    }
}

/// What is special to a model that generates.
pub(crate) fn decoder(face: &ModelFace) -> Result<&Decoder, Error> {
    let none = || Error::Misuse(format!("model {} gives no tokens: it generates nothing", face.name()));
    face.interface().decoder.as_ref().ok_or_else(none)
}

/// The same, where this client agrees to what its nodes learn.
fn agreed<'a>(client: &Client, face: &'a ModelFace) -> Result<&'a Decoder, Error> {
    let decoder = decoder(face)?;
    if decoder.public_gate && !client.takes_public_gate() {
        let opened = "lets its nodes learn which experts each token goes to, which says something of the text";
        let mend = "where that may be, set public_gate in the client's configuration";
        return Err(Error::Misuse(format!("model {} {opened}; {mend}", face.name())));
    }
    Ok(decoder)
}

/// The tokenizer of a model of texts.
fn tokenizer(face: &ModelFace) -> Result<&Tokenizer, Error> {
    face.tokenizer().ok_or_else(|| Error::Misuse(format!("model {} has no tokenizer", face.name())))
}

/// The tokenizer made no text of ids.
fn undecoded(error: TokenizerError) -> Error {
    Error::Misuse(error.to_string())
}

fn encode(face: &ModelFace, text: &str) -> Result<Zeroizing<Vec<u32>>, Error> {
    let ids = tokenizer(face)?.encode(text, decoder(face)?.context, tercet_model::Truncate::No);
    ids.map(Zeroizing::new).map_err(|error| Error::input(0, error))
}

/// The shares of some rows, made on a thread where it may take its time.
async fn shares(
    face: &Arc<ModelFace>,
    ids: Zeroizing<Vec<u32>>,
    table: Option<&Arc<Vec<u8>>>,
) -> Result<[InputShare; 3], Error> {
    let (face, table) = (face.clone(), table.cloned());
    let sharing = tokio::task::spawn_blocking(move || {
        let table = table.as_ref().map(|bytes| Table::new(&face, bytes)).transpose()?;
        share::rows(&face, ids, table.as_ref())
    });
    sharing.await.map_err(|error| Error::Misuse(format!("sharing the prompt stopped: {error}")))?
}

/// The channels of one generation to the three nodes. Dropped, they show the nodes that the client has left.
struct Channels {
    client: Client,
    to: [ByteChannel; 3],
    /// The longest answer to a step, in bytes.
    limit: usize,
    _place: Place,
}

impl Channels {
    /// Asks all three for a generation.
    async fn open(
        client: &Client,
        face: &ModelFace,
        options: GenerationOptions,
        noise: [Option<NoiseSeed>; 3],
        shares: [InputShare; 3],
        until: Instant,
        usage: &mut GenerationUsage,
    ) -> Result<Channels, Failure> {
        let place = client.turn(until).await?;
        let request_id = fresh_id();
        let left = until.saturating_duration_since(Instant::now());
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let [(s0, n0), (s1, n1), (s2, n2)] = {
            let ([s0, s1, s2], [n0, n1, n2]) = (shares, noise);
            [(s0, n0), (s1, n1), (s2, n2)]
        };
        let message = |party, share, noise_seed| {
            let (start_id, model, digest) = (face.start_id(party), face.name().into(), face.digest());
            encoded(&ClientMessage::Generate {
                request_id,
                start_id,
                model,
                digest,
                deadline_ms,
                options,
                noise_seed,
                share,
            })
        };
        let limit = match options.choice {
            TokenChoice::Token { .. } => open::limit_bytes(1, decoder(face)?.index_bits, false),
            TokenChoice::Scores => {
                let rows = if options.every_row { s0.rows as usize } else { 1 };
                open::limit_bytes(rows * face.interface().output_width, face.interface().output_ring, false)
            }
        };
        let messages = [message(PartyId::P0, s0, n0)?, message(PartyId::P1, s1, n1)?, message(PartyId::P2, s2, n2)?];
        usage.sent.iter_mut().zip(&messages).for_each(|(sent, message)| *sent += message.len() as u64);
        let ask = |party: PartyId, message: Bytes| async move {
            let opened = async {
                let connection = client.connection(party).await?;
                let id = ChannelId::request(u128::from_le_bytes(request_id));
                let node = |error| Error::node(party, error);
                let mut channel = connection.open_channel(id).await.map_err(node)?;
                channel.send_bytes(message).await.map_err(node)?;
                Ok(channel)
            };
            let late = Err(Error::Deadline { waited_ms: left.as_millis() as u64 });
            tokio::time::timeout(left, opened).await.unwrap_or(late)
        };
        let to = client.all_three(trio::each(messages, ask)).await?;
        Ok(Channels { client: client.clone(), to, limit, _place: place })
    }

    /// The three shares of the next answer, after the row that leads to it, where the nodes wait
    /// for one.
    async fn step(
        &mut self,
        row: Option<[InputShare; 3]>,
        until: Instant,
        usage: &mut GenerationUsage,
    ) -> Result<[OutputShare; 3], Failure> {
        let messages = match row {
            None => [None, None, None],
            Some([p0, p1, p2]) => {
                let message = |share| encoded(&ClientMessage::Next { share }).map(Some);
                [message(p0)?, message(p1)?, message(p2)?]
            }
        };
        let lengths = messages.iter().map(|message| message.as_ref().map_or(0, |bytes| bytes.len() as u64));
        usage.sent.iter_mut().zip(lengths).for_each(|(sent, length)| *sent += length);
        let [m0, m1, m2] = messages;
        let limit = self.limit;
        let [c0, c1, c2] = &mut self.to;
        let parts = trio::each([(c0, m0), (c1, m1), (c2, m2)], |party, (channel, message)| async move {
            let left = until.saturating_duration_since(Instant::now());
            let late = Err(Error::Deadline { waited_ms: left.as_millis() as u64 });
            tokio::time::timeout(left, exchange(party, channel, message, limit, left)).await.unwrap_or(late)
        });
        let heard = self.client.all_three(parts).await?;
        let mut bytes = [[0; 3]; 3];
        let mut rounds = 0;
        for ((_, node, received), of_node) in heard.iter().zip(&mut usage.received) {
            *of_node += received;
            usage.batched = usage.batched.max(node.batched);
            rounds = rounds.max(node.rounds);
            let both = bytes.iter_mut().flatten().zip(node.bytes.iter().flatten());
            both.for_each(|(all, seen)| *all = (*all).max(*seen));
        }
        usage.rounds = usage.rounds.saturating_add(rounds);
        let both = usage.bytes.iter_mut().flatten().zip(bytes.iter().flatten());
        both.for_each(|(all, step)| *all = all.saturating_add(*step));
        Ok(heard.map(|(share, ..)| share))
    }

    /// Says that nothing more is wanted.
    async fn finish(&mut self) {
        for channel in &mut self.to {
            // A node that has given all it can has closed its end already.
            let _ = channel.send(&ClientMessage::Finish).await;
            channel.finish();
        }
    }
}

/// Sends one node its row, if there is one, and waits for its part of the answer.
async fn exchange(
    party: PartyId,
    channel: &mut ByteChannel,
    message: Option<Bytes>,
    limit: usize,
    left: Duration,
) -> Result<(OutputShare, Usage, u64), Error> {
    let Some(message) = message else { return receive(party, channel, limit, left).await };
    match channel.send_bytes(message).await {
        Ok(()) => receive(party, channel, limit, left).await,
        // A node that has hung up may have said why.
        Err(error) => match tokio::time::timeout(GRACE, receive(party, channel, limit, GRACE)).await {
            Ok(Err(refused @ Error::Refused { .. })) => Err(refused),
            _ => Err(Error::node(party, error)),
        },
    }
}

/// One node's part of an answer, with what the step cost and how long the message was.
async fn receive(
    party: PartyId,
    channel: &mut ByteChannel,
    limit: usize,
    left: Duration,
) -> Result<(OutputShare, Usage, u64), Error> {
    let bytes = channel.recv_bytes(limit, left).await.map_err(|error| match error {
        NetError::Deadline { .. } => Error::Deadline { waited_ms: left.as_millis() as u64 },
        error => Error::node(party, error),
    })?;
    let message = codec::decode(&bytes, limit).map_err(|error| Error::unexpected(party, &error.to_string()))?;
    match message {
        NodeMessage::Step { share, usage } => Ok((share, usage, bytes.len() as u64)),
        NodeMessage::Refused { fault, reason } => Err(Error::Refused { party, fault, reason: clean(&reason) }),
        _ => Err(Error::unexpected(party, "another answer than a step of a generation")),
    }
}
