//! The suite on shapes alone: what a graph costs on the wire, before it runs.
//!
//! A tensor is its shape and ring; every operation adds the cost that its primitive declares.

use tercet_core::spec::{
    ActivationSpec, AttentionSpec, CausalHeads, CausalSpec, ChoiceSpec, ExpertsSpec, GatedSpec, LinearSpec, LookupSpec,
    NormSpec, Numerics, RouteSpec, ScaleSpec,
};
use tercet_core::{Cost, Error, Geometry, Layout, Result, Suite};

use crate::attention::Heads;
use crate::experts::Mixture;
use crate::{
    activation, argmax, attention, bound, causal, experts, extend, gated, linear, lookup, norm, reentry, route, scale,
    truncate,
};

/// Shape and ring of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Its ring.
    pub ring: u32,
}

/// What is public of a named weight.
pub trait Shapes {
    /// Rows and columns.
    fn shape_of(&self, name: &str) -> Result<(usize, usize)>;

    /// Whether every party holds its values in the clear.
    fn is_public(&self, name: &str) -> Result<bool>;
}

/// A suite that adds up costs.
pub struct Price<'a, S> {
    weights: &'a S,
    request: Request<'a>,
    numerics: Numerics,
    input: Option<usize>,
    places: Option<u32>,
    noisy: bool,
    label: String,
    parts: Vec<(String, Cost)>,
}

/// What is computed on.
enum Request<'a> {
    /// Whole inputs, padded to one length.
    Inputs(Geometry),
    /// The next rows of sequences.
    Step(&'a Layout),
}

impl<'a, S: Shapes> Price<'a, S> {
    /// Nothing spent yet. `input` is the width of the input matrix, or `None` where the input is looked up privately.
    pub fn new(weights: &'a S, geometry: Geometry, numerics: Numerics, input: Option<usize>) -> Price<'a, S> {
        Price::of(weights, Request::Inputs(geometry), numerics, input)
    }

    /// Nothing spent yet on a step of a decoder.
    pub fn step(weights: &'a S, layout: &'a Layout, numerics: Numerics, input: Option<usize>) -> Price<'a, S> {
        Price::of(weights, Request::Step(layout), numerics, input)
    }

    fn of(weights: &'a S, request: Request<'a>, numerics: Numerics, input: Option<usize>) -> Price<'a, S> {
        let (label, parts) = (String::new(), Vec::new());
        Price { weights, request, numerics, input, places: None, noisy: false, label, parts }
    }

    /// Rows of the input.
    fn input_rows(&self) -> usize {
        match self.request {
            Request::Inputs(Geometry { batch, rows }) => batch * rows,
            Request::Step(layout) => layout.rows(),
        }
    }

    fn geometry(&self) -> Result<Geometry> {
        match self.request {
            Request::Inputs(geometry) => Ok(geometry),
            Request::Step(_) => Err(Error::Misuse("an operation on padded inputs in a step of a decoder".into())),
        }
    }

    fn layout(&self) -> Result<&'a Layout> {
        match self.request {
            Request::Step(layout) => Ok(layout),
            Request::Inputs(_) => Err(Error::Misuse("an operation of a decoder's step on padded inputs".into())),
        }
    }

    /// The same where the input is looked up by places of `index_bits` bits.
    pub fn by_places(self, index_bits: u32) -> Price<'a, S> {
        Price { places: Some(index_bits), ..self }
    }

    /// The same where a token is chosen with noise.
    pub fn with_noise(self) -> Price<'a, S> {
        Price { noisy: true, ..self }
    }

    /// What was spent, operation by operation.
    pub fn parts(&self) -> &[(String, Cost)] {
        &self.parts
    }

    /// What was spent in all.
    pub fn total(&self) -> Cost {
        self.parts.iter().fold(Cost::NONE, |sum, (_, cost)| sum.then(*cost))
    }

    fn spend(&mut self, cost: Cost) {
        match self.parts.last_mut().filter(|(label, _)| *label == self.label) {
            Some((_, sum)) => *sum = sum.then(cost),
            None => self.parts.push((self.label.clone(), cost)),
        }
    }
}

impl<S: Shapes> Suite for Price<'_, S> {
    type Tensor = Shape;

    fn set_label(&mut self, label: &str) {
        self.label = label.to_owned();
    }

    fn shape(&self, x: &Shape) -> (usize, usize) {
        (x.rows, x.cols)
    }

    fn input(&mut self) -> Result<Shape> {
        let rows = self.input_rows();
        Ok(Shape { rows, cols: self.input.unwrap_or(0), ring: self.numerics.wide })
    }

    fn lookup(&mut self, table: &str, _: &LookupSpec) -> Result<Shape> {
        let (entries, cols) = self.weights.shape_of(table)?;
        let rows = self.input_rows();
        if let Some(bits) = self.places {
            let public = self.weights.is_public(table)?;
            let (wide, table) = (self.numerics.wide, [entries, cols]);
            self.spend(match wide {
                ..=32 => reentry::cost::<u32>(rows, table, bits, wide, public),
                _ => reentry::cost::<u64>(rows, table, bits, wide, public),
            });
        } else if self.input.is_none() {
            self.spend(lookup::cost(rows, cols, self.numerics.wide));
        }
        Ok(Shape { rows, cols, ring: self.numerics.wide })
    }

    fn widen(&mut self, x: &Shape) -> Result<Shape> {
        self.spend(extend::cost(x.rows * x.cols, x.ring, self.numerics.wide));
        Ok(Shape { ring: self.numerics.wide, ..*x })
    }

    fn linear(&mut self, x: &Shape, weight: &str, _: Option<&str>, spec: &LinearSpec) -> Result<Shape> {
        let (_, cols) = self.weights.shape_of(weight)?;
        linear::check(weight, x.ring, spec)?;
        let len = x.rows * cols;
        let public = self.weights.is_public(weight)?;
        let product = if public { Cost::NONE } else { linear::cost(len, spec.ring + spec.truncate) };
        self.spend(product.and(truncate::cost(len, spec.truncate, spec.ring)));
        Ok(Shape { rows: x.rows, cols, ring: spec.ring })
    }

    fn add_rows(&mut self, x: &Shape, _: &str, _: usize) -> Result<Shape> {
        Ok(*x)
    }

    fn prepend_row(&mut self, x: &Shape, _: &str, _: usize) -> Result<Shape> {
        Ok(Shape { rows: x.rows + self.geometry()?.batch, ..*x })
    }

    fn layer_norm(&mut self, x: &Shape, _: &str, _: &str, spec: &NormSpec) -> Result<Shape> {
        self.spend(norm::cost(x.rows, x.cols, x.ring, spec));
        Ok(Shape { ring: spec.ring, ..*x })
    }

    fn rms_norm(&mut self, x: &Shape, _: &str, spec: &NormSpec) -> Result<Shape> {
        self.spend(norm::cost(x.rows, x.cols, x.ring, spec));
        Ok(Shape { ring: spec.ring, ..*x })
    }

    fn attention(&mut self, qkv: &Shape, rows: usize, heads: usize, spec: &AttentionSpec) -> Result<Shape> {
        let cols = qkv.cols / 3;
        let shape = Heads { batch: self.geometry()?.batch, rows, heads, width: cols / heads };
        self.spend(attention::cost(shape, qkv.ring, self.numerics.frac, spec));
        Ok(Shape { cols, ring: spec.ring, ..*qkv })
    }

    fn causal_attention(&mut self, qkv: &Shape, _: usize, heads: &CausalHeads, spec: &CausalSpec) -> Result<Shape> {
        let width = qkv.cols / (heads.heads + 2 * heads.kv_heads);
        bound::check(spec.attention.score_ring, self.numerics.frac, &spec.bound)?;
        self.spend(causal::cost(self.layout()?, heads, width, qkv.ring, self.numerics.frac, spec));
        Ok(Shape { cols: heads.heads * width, ring: spec.attention.ring, ..*qkv })
    }

    fn add_positions(&mut self, x: &Shape, _: &str) -> Result<Shape> {
        Ok(*x)
    }

    fn activation(&mut self, x: &Shape, spec: &ActivationSpec) -> Result<Shape> {
        activation::check(x.ring, spec)?;
        self.spend(activation::cost(x.rows * x.cols, x.ring, self.numerics.frac, spec));
        Ok(Shape { ring: activation::result_ring(spec), ..*x })
    }

    fn gated(&mut self, x: &Shape, spec: &GatedSpec) -> Result<Shape> {
        let cols = x.cols / 2;
        activation::check(x.ring, &spec.activation)?;
        self.spend(gated::cost(x.rows * cols, x.ring, self.numerics.frac, spec));
        Ok(Shape { cols, ring: spec.ring, ..*x })
    }

    fn route(&mut self, x: &Shape, spec: &RouteSpec) -> Result<Shape> {
        route::check(x.cols, x.ring, self.numerics.frac, spec)?;
        self.spend(route::cost(x.rows, x.cols, self.numerics.frac, spec));
        Ok(Shape { ring: spec.softmax.ring, ..*x })
    }

    fn scale_blocks(&mut self, x: &Shape, _: &Shape, spec: &ScaleSpec) -> Result<Shape> {
        self.spend(scale::cost(x.rows * x.cols, spec));
        Ok(Shape { ring: spec.ring, ..*x })
    }

    fn experts(&mut self, x: &Shape, scores: &Shape, names: &[[&str; 2]], spec: &ExpertsSpec) -> Result<Shape> {
        activation::check(spec.up.ring, &spec.gated.activation)?;
        route::check(scores.cols, scores.ring, self.numerics.frac, &spec.route)?;
        let mut secret = [false; 2];
        for names in names {
            for (secret, name) in secret.iter_mut().zip(names) {
                *secret |= !self.weights.is_public(name)?;
            }
        }
        let inner = names.first().map_or(Ok((0, 0)), |[_, down]| self.weights.shape_of(down))?.0;
        let mixture = Mixture { rows: x.rows, hidden: x.cols, inner, experts: scores.cols, secret };
        self.spend(experts::cost(mixture, self.numerics.frac, spec));
        Ok(Shape { ring: spec.combine.ring, ..*x })
    }

    fn choose(&mut self, x: &Shape, spec: &ChoiceSpec) -> Result<Shape> {
        argmax::check(x.cols, x.ring, self.numerics.frac, spec)?;
        self.spend(argmax::cost(x.rows, x.cols, spec, self.noisy));
        Ok(Shape { cols: 1, ring: spec.index_bits, ..*x })
    }

    fn add(&mut self, x: &Shape, _: &Shape, ring: u32) -> Result<Shape> {
        Ok(Shape { ring, ..*x })
    }

    fn first_row(&mut self, x: &Shape, rows: usize) -> Result<Shape> {
        Ok(Shape { rows: x.rows / rows, ..*x })
    }

    fn last_row(&mut self, x: &Shape) -> Result<Shape> {
        Ok(Shape { rows: self.layout()?.outputs(), ..*x })
    }

    fn sum_rows(&mut self, x: &Shape, rows: usize) -> Result<Shape> {
        let (batch, wide) = (x.rows / rows, self.numerics.wide);
        self.spend(linear::cost(batch * x.cols, wide).and(truncate::cost(batch * x.cols, 0, wide)));
        Ok(Shape { rows: batch, cols: x.cols, ring: wide })
    }
}
