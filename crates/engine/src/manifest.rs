//! The public part of a shared model: what all three nodes must agree on, and what a client is told.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tercet_core::{Error, Geometry, Result};
use tercet_helper::price::{Price, Shapes};
use tercet_model::graph::{Graph, Op, Output, TensorSpec};
use tercet_model::{Generation, Interface};
use tercet_net::codec;

use crate::numerics::{ModelNumerics, NodeSpec};
use crate::soundness;
use crate::walk::{Rows, walk};

/// Longest manifest that is read from outside.
pub const MANIFEST_LIMIT_BYTES: usize = 64 << 20;

/// Most rows that one run takes, over all its inputs: what a request can make a node allocate is bounded by it.
pub const MAX_ROWS_AT_ONCE: usize = 1 << 16;

/// Everything public about a shared model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name that the owner gave it, by which clients ask for it.
    pub name: String,
    /// Drawn at random when the model was shared: parts of two sharings do not mix.
    pub sharing_id: [u8; 32],
    /// What is computed.
    pub graph: Graph,
    /// On which numbers.
    pub numerics: ModelNumerics,
    /// The tokenizer as JSON, for models of texts.
    pub tokenizer: Option<Vec<u8>>,
    /// How its makers generate with it, for models of tokens.
    pub generation: Option<Generation>,
    /// For a model that another one lends most of its tensors.
    pub base: Option<Base>,
}

/// What an adapter stands on: its share file holds its own tensors alone, and works beside that of its base only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The name of the model that it was made for, to tell people.
    pub name: String,
    /// Digest of the manifest of the model that it was made for.
    pub digest: [u8; 32],
    /// The tensors that are lent.
    pub tensors: BTreeSet<String>,
}

impl Manifest {
    /// The bytes that travel and are stored.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        codec::encode(self).map_err(|e| Error::Misuse(format!("model manifest: {e}")))
    }

    /// From bytes of outside origin: everything is checked, nothing panics later.
    pub fn from_bytes(bytes: &[u8]) -> Result<Manifest> {
        let bad = |what: String| Error::Misuse(format!("model manifest: {what}"));
        let manifest: Manifest = codec::decode(bytes, MANIFEST_LIMIT_BYTES).map_err(|e| bad(e.to_string()))?;
        manifest.graph.validate().map_err(|e| bad(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// SHA-256 of [`Manifest::to_bytes`]: parties that agree on it agree on everything public.
    pub fn digest(&self) -> Result<[u8; 32]> {
        Ok(Sha256::digest(self.to_bytes()?).into())
    }

    /// What a client must know.
    pub fn interface(&self) -> Result<Interface> {
        if let Output::NextToken { .. } = self.graph.output {
            let Some(NodeSpec::Linear(scores)) = self.numerics.nodes.last() else {
                return Err(Error::Misuse("a decoder whose last operation is no linear layer".into()));
            };
            let mut interface = self.numerics.interface(&self.graph, scores.ring);
            if let (Some(decoder), Some(generation)) = (&mut interface.decoder, &self.generation) {
                decoder.generation = generation.clone();
            }
            return Ok(interface);
        }
        let probe = Geometry { batch: 1, rows: 1.max(self.graph.max_rows().min(2)) };
        Ok(self.numerics.interface(&self.graph, self.output_ring(probe)?))
    }

    /// The embedding table, where it is public.
    pub fn public_table(&self) -> Option<&TensorSpec> {
        match &self.graph.nodes.first()?.op {
            Op::Lookup { table } if self.numerics.is_public(table) => self.graph.tensor_spec(table),
            _ => None,
        }
    }

    /// Whether this model's share file holds a tensor, rather than that of its base.
    pub fn holds(&self, tensor: &str) -> bool {
        self.base.as_ref().is_none_or(|base| !base.tensors.contains(tensor))
    }

    /// Why `base`, with its digest, cannot lend this model its tensors.
    pub fn check_base(&self, base: &Manifest, digest: [u8; 32]) -> std::result::Result<(), String> {
        let Some(wanted) = &self.base else { return Err(format!("{} is no adapter", self.name)) };
        if wanted.digest != digest {
            return Err(format!(
                "{} stands on model {:?}, and this {:?} is another model, or another sharing of it",
                self.name, wanted.name, base.name
            ));
        }
        for name in &wanted.tensors {
            let (ours, theirs) = (self.graph.tensor_spec(name), base.graph.tensor_spec(name));
            let formats = (self.numerics.tensors.get(name), base.numerics.tensors.get(name));
            if ours.is_none() || ours != theirs || formats.0 != formats.1 {
                return Err(format!(
                    "{} wants {name} of {} in another shape or format than it has",
                    self.name, base.name
                ));
            }
        }
        Ok(())
    }

    /// Whether the input is looked up privately in a secret table.
    pub fn looks_up(&self) -> bool {
        matches!(self.numerics.nodes.first(), Some(NodeSpec::Lookup(_))) && self.public_table().is_none()
    }

    /// Refuses shapes that the model does not take.
    pub fn check_geometry(&self, geometry: Geometry) -> Result<()> {
        let most = self.graph.max_rows();
        let exact = !self.graph.nodes.is_empty() && !matches!(self.numerics.nodes[0], NodeSpec::Lookup(_));
        if geometry.batch == 0 || geometry.rows == 0 || geometry.rows > most || (exact && geometry.rows != most) {
            let takes = if exact { format!("{most}") } else { format!("1 to {most}") };
            return Err(Error::Misuse(format!(
                "{} takes inputs of {takes} rows, not {} of {}",
                self.name, geometry.batch, geometry.rows
            )));
        }
        if geometry.batch.saturating_mul(geometry.rows) > MAX_ROWS_AT_ONCE {
            return Err(Error::Misuse(format!(
                "{} inputs of {} rows are more than {MAX_ROWS_AT_ONCE} rows at once; send fewer",
                geometry.batch, geometry.rows
            )));
        }
        Ok(())
    }

    /// The ring of the output.
    pub fn output_ring(&self, geometry: Geometry) -> Result<u32> {
        let mut price = self.price(geometry);
        let last = walk(&mut price, &self.graph, &self.numerics, Rows::Inputs(geometry.rows), |_, _| ())?;
        Ok(last.ring)
    }

    /// A price list for runs of this shape.
    pub fn price(&self, geometry: Geometry) -> Price<'_, Manifest> {
        let width = if self.looks_up() { None } else { Some(self.input_width()) };
        Price::new(self, geometry, self.numerics.formats, width)
    }

    /// Columns of an input matrix.
    pub fn input_width(&self) -> usize {
        let looked_up = matches!(self.numerics.nodes.first(), Some(NodeSpec::Lookup(_)));
        self.graph.width(if looked_up { 1 } else { 0 })
    }

    /// Numbers that do not belong to this graph, or that no party could have chosen.
    fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::Misuse(format!("model manifest: {what}")));
        let formats = self.numerics.formats;
        if !matches!((formats.wide, formats.frac), (32, 10) | (64, 16) | (64, 18 | 20)) {
            return bad("unknown formats");
        }
        if self.numerics.nodes.len() != self.graph.nodes.len() {
            return bad("numerics of another graph");
        }
        let lanes_fit = |t: &crate::TensorFormat| matches!(t.lane_bits, 32 | 64) && (1..=t.lane_bits).contains(&t.ring);
        if !self.graph.tensors.iter().all(|t| self.numerics.tensors.get(&t.name).is_some_and(lanes_fit)) {
            return bad("a tensor without a format");
        }
        if let (Some(generation), Output::NextToken { vocab }) = (&self.generation, &self.graph.output) {
            generation.check(*vocab).map_err(|what| Error::Misuse(format!("model manifest: generation: {what}")))?;
        }
        if self.name.is_empty() || self.name.len() > 200 || self.name.chars().any(char::is_control) {
            return bad("no usable name");
        }
        soundness::check(self).map_err(|error| Error::Misuse(format!("model manifest: {error}")))
    }
}

impl Shapes for Manifest {
    fn shape_of(&self, name: &str) -> Result<(usize, usize)> {
        let spec = self.graph.tensor_spec(name);
        spec.map(|t| (t.rows, t.cols)).ok_or_else(|| Error::Misuse(format!("no tensor {name}")))
    }

    fn is_public(&self, name: &str) -> Result<bool> {
        Ok(self.numerics.is_public(name))
    }
}
