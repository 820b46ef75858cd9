//! The models that a node serves: opened and checked at start, mapped, never changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use moka::sync::Cache;
use tercet_core::{Error, Geometry};
use tercet_engine::{MAX_ROWS_AT_ONCE, ModelShare, StepShape, StoreError, plan, plan_step};
use tercet_model::{Decoder, Interface};
use tercet_net::{ModelCard, NodeMessage, PartyId, codec};

use crate::shape::Shape;

/// What share files end in.
const SHARE_EXTENSION: &str = "tercet";

/// Prices of shapes that are remembered.
const PRICES_KEPT: u64 = 4096;

/// Names, seeds, lengths, costs: what a message holds beside its tensors, at most.
const ENVELOPE_BYTES: u64 = 4096;

/// Why the models could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A share file is missing, cut, altered or none of ours.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory of shares cannot be read.
    #[error("shares {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The share belongs to another node.
    #[error("{path} is the share of {owner}, and this node is {me}: never give one node two shares of a model")]
    OtherParty {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: PartyId,
        /// Who this is.
        me: PartyId,
    },
    /// Two files hold models of one name.
    #[error("two models are called {name:?}: {first} and {second}; share one of them again under another name")]
    OneName {
        /// The name.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// An adapter's file is there without the share of its base, or with that of another sharing of it.
    #[error("{path}: {what}")]
    NoBase {
        /// The file.
        path: PathBuf,
        /// Which base it wants, and what is there.
        what: String,
    },
    /// A file's public part contradicts itself.
    #[error("{path}: {what}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Needs {
    /// An error, for who asks for it, where it is more than is allowed.
    fn within(self, session: u64, frame: u64) -> tercet_core::Result<()> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let found = if self.working > session {
            let (needed, room) = (mib(self.working), session >> 20);
            format!("this input takes {needed} MiB of working memory, {room} are allowed: send fewer at once")
        } else if self.frame > frame {
            let (needed, room) = (mib(self.frame), frame >> 20);
            format!("this input sends {needed} MiB at once, {room} are allowed: send fewer inputs")
        } else {
            return Ok(());
        };
        Err(Error::Misuse(found))
    }
}

/// One model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) share: Arc<ModelShare>,
    pub(crate) interface: Interface,
    path: PathBuf,
    prices: Cache<Shape, Needs>,
    /// What clients are told of it, encoded for the first that asks.
    face: OnceLock<Bytes>,
}

/// What a run of a shape needs.
#[derive(Clone, Copy, Debug)]
struct Needs {
    /// Bytes of working memory.
    working: u64,
    /// Bytes of the largest frame.
    frame: u64,
}

impl Model {
    /// A model whose share was opened, beside that of its base where it has one.
    fn new(path: &Path, share: Arc<ModelShare>) -> Result<Model, ModelError> {
        let interface = share.manifest().interface();
        let interface =
            interface.map_err(|error| ModelError::Unusable { path: path.into(), what: error.to_string() })?;
        Ok(Model { share, interface, path: path.into(), prices: Cache::new(PRICES_KEPT), face: OnceLock::new() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.share.manifest().name
    }

    pub(crate) fn card(&self) -> ModelCard {
        let profile = if self.interface.wide == 32 { "fast" } else { "precise" };
        ModelCard { name: self.name().into(), digest: self.share.digest(), profile: profile.into() }
    }

    /// The message in which clients are told of it: one copy for all that ask.
    pub(crate) fn face(&self, start_id: [u8; 16]) -> Result<Bytes, codec::CodecError> {
        if let Some(encoded) = self.face.get() {
            return Ok(encoded.clone());
        }
        let message = NodeMessage::Manifest {
            digest: self.share.digest(),
            start_id,
            interface: codec::encode(&self.interface)?,
            tokenizer: self.share.manifest().tokenizer.clone(),
        };
        let encoded = Bytes::from(codec::encode(&message)?);
        Ok(self.face.get_or_init(|| encoded).clone())
    }

    /// What is special to a model of tokens; an error, for who asks for them, where it is none.
    pub(crate) fn decoder(&self) -> tercet_core::Result<&Decoder> {
        let none = || Error::Misuse(format!("model {:?} gives no tokens: it generates nothing", self.name()));
        self.interface.decoder.as_ref().ok_or_else(none)
    }

    /// What temperatures of choices inside the computation must be below, or a step fails for all
    /// that run together.
    pub(crate) fn hottest(&self) -> f64 {
        self.share.manifest().numerics.hottest(self.interface.output_width, self.interface.output_ring)
    }

    /// Refuses shapes that the model does not take, and those that need more working memory than
    /// `session` bytes, or a frame of more than `frame` bytes.
    pub(crate) fn check_room(&self, shape: &Shape, session: u64, frame: u64) -> tercet_core::Result<()> {
        self.needs(shape)?.within(session, frame)
    }

    /// What a run of this shape needs, from above; an error for shapes that the model does not
    /// take.
    fn needs(&self, shape: &Shape) -> tercet_core::Result<Needs> {
        let rounded = match (shape, &self.interface.decoder) {
            (Shape::Inputs(_), None) => shape.clone(),
            (Shape::Inputs(_), Some(_)) => {
                return Err(Error::Misuse(format!("model {:?} gives tokens: ask it to generate", self.name())));
            }
            (Shape::Step(step), _) => {
                // Before anything grows with what may come from outside.
                self.share.manifest().check_step(step)?;
                shape.rounded(self.decoder()?.context)
            }
        };
        if let Some(known) = self.prices.get(&rounded) {
            return Ok(known);
        }
        let manifest = self.share.manifest();
        let (working, total) = match &rounded {
            Shape::Inputs(geometry) => plan(manifest, *geometry).map(|plan| (plan.working_bytes, plan.total))?,
            Shape::Step(step) => plan_step(manifest, step).map(|plan| (plan.working_bytes, plan.total))?,
        };
        let needs = Needs { working, frame: total.largest_frame };
        self.prices.insert(rounded, needs);
        Ok(needs)
    }

    /// Whether the scores of every row, where a step gives them, go into one message; an error says how many would.
    pub(crate) fn check_answer(&self, step: &StepShape) -> tercet_core::Result<()> {
        if !step.layout.every_row {
            return Ok(());
        }
        let [_, answers] = plan_step(self.share.manifest(), step)?.client_bytes;
        let (rows, bytes) = (step.layout.rows() as u64, answers.into_iter().max().unwrap_or(0));
        match most_rows(rows, bytes) {
            None => Ok(()),
            Some(most) => {
                let reason = format!("the scores of {rows} rows do not fit one message: ask for at most {most}");
                Err(Error::Misuse(reason))
            }
        }
    }

    /// The longest message with a request of `batch` inputs for this model, in bytes.
    fn request_bytes(&self, batch: usize) -> u64 {
        let manifest = self.share.manifest();
        let sent = match &self.interface.decoder {
            Some(decoder) => {
                // One prompt.
                let longest = Shape::prompt(decoder.context.min(MAX_ROWS_AT_ONCE));
                plan_step(manifest, &longest).map(|plan| plan.client_bytes[0])
            }
            None => {
                let geometry = Geometry { batch, rows: manifest.graph.max_rows() };
                plan(manifest, geometry).map(|plan| plan.client_bytes[0])
            }
        };
        sent.map_or(0, |bytes| bytes.into_iter().max().unwrap_or(0))
    }
}

/// How many rows one message can answer, where `rows` of `bytes` are too many.
fn most_rows(rows: u64, bytes: u64) -> Option<u64> {
    let room = codec::LARGEST_BYTES as u64 - ENVELOPE_BYTES;
    (bytes > room).then(|| rows * room / bytes)
}

/// The models of a node, by name.
#[derive(Debug)]
pub(crate) struct Models {
    by_name: BTreeMap<String, Arc<Model>>,
    request_limit_bytes: usize,
}

impl Models {
    /// Opens every share in `paths`, files or directories of them; requests bring at most `max_batch` inputs.
    pub(crate) fn open(paths: &[PathBuf], me: PartyId, max_batch: usize) -> Result<Models, ModelError> {
        let mut by_name = BTreeMap::<String, Arc<Model>>::new();
        for (path, share) in with_bases(open_all(paths, me)?)? {
            let model = Model::new(&path, share)?;
            tracing::info!(model = model.name(), path = %path.display(), bytes = model.share.len_bytes(), "model");
            if let Some(other) = by_name.get(model.name()) {
                let (name, first) = (model.name().into(), other.path.clone());
                return Err(ModelError::OneName { name, first, second: path });
            }
            by_name.insert(model.name().into(), Arc::new(model));
        }
        let largest = by_name.values().map(|model| model.request_bytes(max_batch)).max().unwrap_or(0);
        let request_limit_bytes = (largest + ENVELOPE_BYTES).min(codec::LARGEST_BYTES as u64) as usize;
        Ok(Models { by_name, request_limit_bytes })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Model>> {
        self.by_name.get(name)
    }

    pub(crate) fn cards(&self) -> Vec<ModelCard> {
        self.by_name.values().map(|model| model.card()).collect()
    }

    /// The longest message that a client can have reason to send.
    pub(crate) fn request_limit_bytes(&self) -> usize {
        self.request_limit_bytes
    }
}

/// Every share file in `paths`, opened, and of this party.
fn open_all(paths: &[PathBuf], me: PartyId) -> Result<Vec<(PathBuf, ModelShare)>, ModelError> {
    let open = |path: PathBuf| {
        let share = ModelShare::open(&path)?;
        match share.party() {
            owner if owner == me => Ok((path, share)),
            owner => Err(ModelError::OtherParty { path, owner, me }),
        }
    };
    files(paths)?.into_iter().map(open).collect()
}

/// Puts every adapter beside its base, wherever among the files that is.
fn with_bases(opened: Vec<(PathBuf, ModelShare)>) -> Result<Vec<(PathBuf, Arc<ModelShare>)>, ModelError> {
    let (adapters, whole): (Vec<_>, Vec<_>) =
        opened.into_iter().partition(|(_, share)| share.manifest().base.is_some());
    let mut ready: Vec<(PathBuf, Arc<ModelShare>)> =
        whole.into_iter().map(|(path, share)| (path, Arc::new(share))).collect();
    let bases = ready.len();
    for (path, share) in adapters {
        let Some(wanted) = share.manifest().base.clone() else { continue };
        // By its digest, or by its name to say that it is another one.
        let found = ready[..bases].iter().find(|(_, base)| base.digest() == wanted.digest);
        let found = found.or_else(|| ready[..bases].iter().find(|(_, base)| base.manifest().name == wanted.name));
        let Some((_, base)) = found else {
            let (name, base) = (&share.manifest().name, &wanted.name);
            let what =
                format!("adapter {name:?} stands on model {base:?}, which is not here; serve its share beside it");
            return Err(ModelError::NoBase { path, what });
        };
        let share = share.on_base(Arc::clone(base)).map_err(|what| ModelError::NoBase { path: path.clone(), what })?;
        ready.push((path, Arc::new(share)));
    }
    Ok(ready)
}

/// The share files, those of a directory in order of name; a file named twice counts once.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ModelError> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let failed = |source| ModelError::Directory { path: path.clone(), source };
        let entries = std::fs::read_dir(path).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        let mut entries: Vec<PathBuf> = entries.map_err(failed)?.into_iter().map(|entry| entry.path()).collect();
        entries.retain(|path| path.extension().is_some_and(|extension| extension == SHARE_EXTENSION));
        entries.sort();
        found.extend(entries);
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use tercet_net::{OutputShare, Usage};

    use super::*;

    #[test]
    fn what_sends_too_much_at_once_is_refused() {
        let refused = |working: u64, frame: u64| {
            let within = Needs { working: working << 20, frame: frame << 20 }.within(2048 << 20, 512 << 20);
            within.err().map(|error| error.to_string())
        };
        assert_eq!(refused(2048, 512), None);
        let found = refused(100, 513).expect("a frame too large");
        assert_eq!(found, "this input sends 513 MiB at once, 512 are allowed: send fewer inputs");
        assert!(refused(2049, 513).is_some_and(|found| found.contains("2049 MiB of working memory")));
    }

    #[test]
    fn answers_go_into_one_message() {
        // Two planes of a vocabulary of 50257 in a ring of 40 bits.
        let bytes = |rows: u64| 2 * (rows * 50257 * 40).div_ceil(8);
        assert_eq!((most_rows(100, bytes(100)), most_rows(1024, bytes(1024))), (None, Some(133)));
        assert_eq!((most_rows(133, bytes(133)), most_rows(134, bytes(134))), (None, Some(133)));
        // The longest that is let through has an encoding.
        let room = codec::LARGEST_BYTES as u64 - ENVELOPE_BYTES;
        assert_eq!(most_rows(7, room), None);
        let share = OutputShare { planes: [(); 2].map(|()| vec![0; room as usize / 2]) };
        codec::encode(&NodeMessage::Step { share, usage: Usage::default() }).unwrap();
    }
}
