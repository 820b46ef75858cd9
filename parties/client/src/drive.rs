//! Generates: shares of a prompt out, then step after step an answer in and the next row out, on one channel to each node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tercet_model::{Decoder, TextStream, Tokenizer, TokenizerError};
use tercet_net::{
    ByteChannel, ChannelId, ClientMessage, Fault, GenerationOptions, InputShare, NetError, NodeMessage, NoiseSeed,
    OutputShare, PartyId, TokenChoice, Usage, codec,
};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::client::{GRACE, after};
use crate::face::Table;
use crate::generation::SharedUsage;
use crate::links::{Place, clean, fresh_id};
use crate::sampler::{Sampler, log_probability};
use crate::stops::{Cut, Stops};
use crate::{
    Client, Error, Finish, GenerateOptions, Generation, GenerationUsage, ModelFace, Score, Token, open, share,
};

/// Between the tries to take a generation up: twice as long each time, until it is the longest.
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
        let mut channels = Channels::open(self, &face, public, [None, None, None], shares, until, &mut usage).await?;
        let answer = channels.step(until, &mut usage).await?;
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
            let error = match self.attempt(tries, until).await {
                Ok(finish) => {
                    self.usage.change(|usage| usage.finish = Some(finish));
                    return;
                }
                Err(error) => error,
            };
            tries += 1;
            // What is taken may be what a try before this one still holds.
            let held = failures > 0 && matches!(error, Error::Refused { fault: Fault::Busy, .. });
            if !held {
                failures += 1;
            }
            let transient = error.is_transient()
                || self.usage().new_tokens > 0 && is_absence(&error)
                || self.has_started_anew(&error).await;
            let again = held || transient && failures <= self.options.retries;
            if !again || Instant::now() + pause >= until {
                break error;
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
            tracing::debug!(%error, "a generation is taken up again");
            self.usage.change(|usage| usage.retried = failures);
        };
        // Perhaps the model was shared anew under its name.
        self.client.forget(self.face.name());
        // The caller may have left.
        let _ = self.out.send(Err(error));
    }

    /// Whether a node refused only because it has started anew, with the same model; then the next try speaks to that start.
    async fn has_started_anew(&mut self, error: &Error) -> bool {
        let Error::Refused { fault: Fault::Request, .. } = error else { return false };
        self.client.forget(self.face.name());
        let Ok(fresh) = self.client.model(self.face.name()).await else { return false };
        let anew = fresh.digest() == self.face.digest() && !self.face.is_current(&fresh);
        self.face = fresh;
        anew
    }

    /// From the tokens that there are to the end.
    async fn attempt(&mut self, attempt: u32, until: Instant) -> Result<Finish, Error> {
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
        let mut channels = opened?;
        loop {
            let mut usage = self.usage();
            let answer = channels.step(until, &mut usage).await;
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
                let row = share::rows(&self.face, Zeroizing::new(vec![id]), self.table()?.as_ref())?;
                let mut usage = self.usage();
                let sent = channels.next(row, &mut usage).await;
                self.put(usage);
                sent?;
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

/// Whether a node that was there is not, and may come back.
fn is_absence(error: &Error) -> bool {
    matches!(error, Error::Node { error: NetError::Unreachable { .. } | NetError::Deadline { .. }, .. })
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
    to: [ByteChannel; 3],
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
    ) -> Result<Channels, Error> {
        let place = client.turn(until).await?;
        let request_id = fresh_id();
        let left = until.saturating_duration_since(Instant::now());
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let mut messages = Vec::new();
        for (party, (share, noise_seed)) in PartyId::ALL.into_iter().zip(shares.into_iter().zip(noise)) {
            let (start_id, model, digest) = (face.start_id(party), face.name().into(), face.digest());
            let message = ClientMessage::Generate {
                request_id,
                start_id,
                model,
                digest,
                deadline_ms,
                options,
                noise_seed,
                share,
            };
            messages.push(encoded(&message)?);
        }
        usage.sent.iter_mut().zip(&messages).for_each(|(sent, message)| *sent += message.len() as u64);
        let mut messages = messages.into_iter();
        let mut ask = |party: PartyId| {
            let message = messages.next().unwrap_or_default();
            async move {
                let connection = client.connection(party).await?;
                let id = ChannelId::request(u128::from_le_bytes(request_id));
                let node = |error| Error::Node { party, error };
                let mut channel = connection.open_channel(id).await.map_err(node)?;
                channel.send_bytes(message.into()).await.map_err(node)?;
                Ok(channel)
            }
        };
        let (p0, p1, p2) = (ask(PartyId::P0), ask(PartyId::P1), ask(PartyId::P2));
        let opened = async { tokio::try_join!(p0, p1, p2) };
        let late = Err(Error::Deadline { waited_ms: left.as_millis() as u64 });
        let (p0, p1, p2) = tokio::time::timeout(left, opened).await.unwrap_or(late)?;
        Ok(Channels { to: [p0, p1, p2], _place: place })
    }

    /// The three shares of the next answer. When one node fails, the others are given a moment to say more about the cause.
    async fn step(&mut self, until: Instant, usage: &mut GenerationUsage) -> Result<[OutputShare; 3], Error> {
        let (alarm, _) = watch::channel(false);
        let hear = |party: PartyId, channel| {
            let (alarm, mut alarmed) = (&alarm, alarm.subscribe());
            async move {
                let given_up = async {
                    let _ = alarmed.wait_for(|failed| *failed).await;
                    tokio::time::sleep(GRACE).await;
                };
                let heard = tokio::select! {
                    heard = receive(party, channel, until) => heard,
                    () = given_up => return None,
                };
                if heard.is_err() {
                    alarm.send_replace(true);
                }
                Some(heard)
            }
        };
        let [c0, c1, c2] = &mut self.to;
        let heard = tokio::join!(hear(PartyId::P0, c0), hear(PartyId::P1, c1), hear(PartyId::P2, c2));
        let mut worst: Option<Error> = None;
        let mut shares = Vec::new();
        let mut bytes = [[0; 3]; 3];
        let mut rounds = 0;
        for (party, heard) in PartyId::ALL.into_iter().zip([heard.0, heard.1, heard.2]) {
            match heard {
                Some(Ok((share, node, received))) => {
                    usage.received[party.index()] += received;
                    usage.batched = usage.batched.max(node.batched);
                    rounds = rounds.max(node.rounds);
                    let both = bytes.iter_mut().flatten().zip(node.bytes.iter().flatten());
                    both.for_each(|(all, seen)| *all = (*all).max(*seen));
                    shares.push(share);
                }
                Some(Err(error)) if worst.as_ref().is_none_or(|worst| worst.weight() < error.weight()) => {
                    worst = Some(error);
                }
                _ => {}
            }
        }
        usage.rounds = usage.rounds.saturating_add(rounds);
        let both = usage.bytes.iter_mut().flatten().zip(bytes.iter().flatten());
        both.for_each(|(all, step)| *all = all.saturating_add(*step));
        let none = || worst.unwrap_or_else(|| Error::Misuse("no answer and no error".into()));
        shares.try_into().map_err(|_| none())
    }

    /// Sends all three the row of the next step.
    async fn next(&mut self, shares: [InputShare; 3], usage: &mut GenerationUsage) -> Result<(), Error> {
        for (party, share) in PartyId::ALL.into_iter().zip(shares) {
            let message = encoded(&ClientMessage::Next { share })?;
            usage.sent[party.index()] += message.len() as u64;
            let sent = self.to[party.index()].send_bytes(message.into()).await;
            sent.map_err(|error| Error::Node { party, error })?;
        }
        Ok(())
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

fn encoded(message: &ClientMessage) -> Result<Vec<u8>, Error> {
    codec::encode(message).map_err(|error| Error::Misuse(error.to_string()))
}

/// One node's part of an answer, with what the step cost and how long the message was.
async fn receive(
    party: PartyId,
    channel: &mut ByteChannel,
    until: Instant,
) -> Result<(OutputShare, Usage, u64), Error> {
    let left = until.saturating_duration_since(Instant::now());
    let late = || Error::Deadline { waited_ms: left.as_millis() as u64 };
    let received = tokio::time::timeout(left, channel.recv_bytes(codec::LARGEST_BYTES, left)).await;
    let bytes = received.map_err(|_| late())?.map_err(|error| match error {
        NetError::Deadline { .. } => late(),
        error => Error::Node { party, error },
    })?;
    let message =
        codec::decode(&bytes, codec::LARGEST_BYTES).map_err(|error| Error::unexpected(party, &error.to_string()))?;
    match message {
        NodeMessage::Step { share, usage } => Ok((share, usage, bytes.len() as u64)),
        NodeMessage::Refused { fault, reason } => Err(Error::Refused { party, fault, reason: clean(&reason) }),
        _ => Err(Error::unexpected(party, "another answer than a step of a generation")),
    }
}
