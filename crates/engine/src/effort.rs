//! What a run computes, counted before it runs: the quantities that its time grows with.
//!
//! A run is a walk over tensors whose shapes are public, so everything is counted from the graph and from the price: products
//! by their multiply-adds, a private lookup by the elements of the table that it passes over, and all other work by the bytes
//! that it sends, because every primitive draws, packs, sends and combines a fixed amount an element. How much that is
//! differs by kind of operation, hence a term for each.

use tercet_core::{Cost, Geometry, Result};
use tercet_helper::price::{Shape, Shapes};
use tercet_model::graph::{Node, Op};

use crate::manifest::Manifest;

/// Quantities that the time of a run grows with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// The run itself, once.
    Request,
    /// Dependent exchanges between the evaluators.
    Round,
    /// Multiply-adds of linear layers and of attention's two products, each product counted once.
    MultiplyAdd,
    /// Elements of the weights of linear layers, which are read once a run however many rows there are.
    Weight,
    /// Rows looked up times the elements of the table.
    LookedUp,
    /// Bytes on all links that belong to linear layers, and to what is in no other kind.
    LinearByte,
    /// Bytes of attention.
    AttentionByte,
    /// Bytes of elementwise functions.
    ActivationByte,
    /// Bytes of LayerNorms.
    NormByte,
}

impl Term {
    /// How many there are.
    pub const COUNT: usize = 9;
    /// All of them, in the order of their numbers.
    pub const ALL: [Term; Term::COUNT] = [
        Term::Request,
        Term::Round,
        Term::MultiplyAdd,
        Term::Weight,
        Term::LookedUp,
        Term::LinearByte,
        Term::AttentionByte,
        Term::ActivationByte,
        Term::NormByte,
    ];

    /// One of it, in words.
    pub fn name(self) -> &'static str {
        match self {
            Term::Request => "request",
            Term::Round => "round",
            Term::MultiplyAdd => "multiply-add",
            Term::Weight => "weight",
            Term::LookedUp => "looked-up element",
            Term::LinearByte => "byte of linear layers",
            Term::AttentionByte => "byte of attention",
            Term::ActivationByte => "byte of activations",
            Term::NormByte => "byte of norms",
        }
    }

    /// Where the bytes of an operation are counted.
    fn of(op: &Op) -> Term {
        match op {
            Op::Attention { .. } | Op::CausalAttention { .. } => Term::AttentionByte,
            Op::Activation(_) | Op::Gated(_) => Term::ActivationByte,
            Op::LayerNorm { .. } | Op::RmsNorm { .. } => Term::NormByte,
            _ => Term::LinearByte,
        }
    }
}

/// How much of each term a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort([u64; Term::COUNT]);

impl Effort {
    /// One request that does nothing yet.
    pub fn request() -> Effort {
        Effort([0; Term::COUNT]).with(Term::Request, 1)
    }

    /// So much more of one term.
    #[must_use]
    pub fn with(mut self, term: Term, count: u64) -> Effort {
        self.0[term as usize] += count;
        self
    }

    /// How much of one term.
    pub fn count(&self, term: Term) -> u64 {
        self.0[term as usize]
    }

    /// Adds what an operation multiplies, reads and looks up; `made` is its result.
    pub(crate) fn compute(self, manifest: &Manifest, op: &Op, made: &Shape, geometry: Geometry) -> Result<Effort> {
        Ok(match op {
            Op::Linear { weight, .. } => {
                let (inner, cols) = manifest.shape_of(weight)?;
                let products = self.with(Term::MultiplyAdd, product([made.rows, inner, cols]));
                products.with(Term::Weight, product([inner, cols]))
            }
            Op::Experts { top, experts, .. } => {
                let Some(first) = experts.first() else { return Ok(self) };
                let (inner, cols) = manifest.shape_of(&first.down)?;
                let taken = (*top * made.rows).min(experts.len());
                let products = self.with(Term::MultiplyAdd, 3 * product([*top, made.rows, inner, cols]));
                products.with(Term::Weight, 3 * product([taken, inner, cols]))
            }
            // Queries by keys, and weights by values: `width` multiply-adds over all heads for each pair of rows.
            Op::Attention { .. } => {
                let rows = made.rows / geometry.batch;
                self.with(Term::MultiplyAdd, 2 * product([made.rows, rows, made.cols]))
            }
            Op::Lookup { table } if manifest.looks_up() => {
                let (rows, cols) = manifest.shape_of(table)?;
                self.with(Term::LookedUp, product([made.rows, rows, cols]))
            }
            _ => self,
        })
    }

    /// Adds what the operations send, by their names.
    pub(crate) fn send(self, nodes: &[Node], parts: &[(String, Cost)]) -> Effort {
        // Parts come in the order of the nodes, without those that cost nothing.
        let mut nodes = nodes.iter();
        parts.iter().fold(self, |effort, (name, cost)| {
            let term = nodes.find(|node| node.name == *name).map_or(Term::LinearByte, |node| Term::of(&node.op));
            effort.with(Term::Round, cost.rounds).with(term, cost.total_bytes())
        })
    }
}

fn product<const N: usize>(factors: [usize; N]) -> u64 {
    factors.into_iter().map(|factor| factor as u64).product()
}
