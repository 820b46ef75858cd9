//! The suite as the engine sees it, on plain integers.

use tercet_core::spec::{
    ActivationSpec, AttentionSpec, CausalHeads, CausalSpec, ChoiceSpec, ExpertsSpec, GatedSpec, LinearSpec, LookupSpec,
    NormSpec, Numerics, RouteSpec, ScaleSpec,
};
use tercet_core::{Error, Geometry, Layout, Result, Suite};

use crate::causal::PlainCache;
use crate::value::Value;
use crate::{activation, attention, causal, choice, norm};

/// A named weight, encoded: `round(v * factor * 2^frac)`.
#[derive(Clone, Debug)]
pub struct PlainWeight {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row-major.
    pub values: Vec<i64>,
}

/// Where the weights come from.
pub trait PlainWeights {
    /// A tensor by name; an error where it is absent.
    fn weight(&self, name: &str) -> Result<&PlainWeight>;
}

/// A request's input.
#[derive(Clone, Debug)]
pub struct PlainInput {
    /// What is looked up, or the rows themselves.
    pub rows: PlainRows,
    /// `[batch, rows]` at the scale of activations: zero for a row that counts, the padding bias for padding.
    pub key_bias: Vec<i64>,
    /// `[batch, rows]`: one for a row that counts, zero for padding.
    pub row_weight: Vec<i64>,
}

/// The rows of an input.
#[derive(Clone, Debug)]
pub enum PlainRows {
    /// `[batch * rows]` indices into the table.
    Lookup(Vec<usize>),
    /// A matrix `[batch * rows, width]`, row-major, encoded.
    Matrix(Vec<i64>),
}

/// One request, or one step of several, on plain integers.
pub struct PlainSuite<'a, W> {
    weights: &'a W,
    request: Request<'a>,
    numerics: Numerics,
    noise: Option<Vec<i64>>,
}

/// What is computed on.
enum Request<'a> {
    /// Whole inputs, padded to one length.
    Inputs(PlainInput, Geometry),
    /// The next rows of sequences, and a cache for each of these.
    Step { rows: PlainRows, layout: &'a Layout, caches: Vec<&'a mut PlainCache> },
}

impl Request<'_> {
    fn rows(&self) -> &PlainRows {
        match self {
            Request::Inputs(input, _) => &input.rows,
            Request::Step { rows, .. } => rows,
        }
    }

    /// Rows of the input.
    fn total(&self) -> usize {
        match self {
            Request::Inputs(_, Geometry { batch, rows }) => batch * rows,
            Request::Step { layout, .. } => layout.rows(),
        }
    }
}

impl PlainRows {
    /// Whether these are so many rows.
    fn are(&self, total: usize) -> bool {
        match self {
            PlainRows::Lookup(ids) => ids.len() == total,
            PlainRows::Matrix(data) => total > 0 && data.len() % total == 0,
        }
    }
}

impl<'a, W: PlainWeights> PlainSuite<'a, W> {
    /// Binds weights and input.
    ///
    /// # Errors
    /// The input does not have the shape of `geometry`.
    pub fn new(weights: &'a W, input: PlainInput, geometry: Geometry, numerics: Numerics) -> Result<PlainSuite<'a, W>> {
        let total = geometry.batch * geometry.rows;
        if !input.rows.are(total) || input.key_bias.len() != total || input.row_weight.len() != total {
            return Err(Error::Misuse(format!(
                "an input of another shape than {} of {}",
                geometry.batch, geometry.rows
            )));
        }
        Ok(PlainSuite { weights, request: Request::Inputs(input, geometry), numerics, noise: None })
    }

    /// Binds weights and a step: what its rows are made of, in the order of `layout`, and the cache of each sequence.
    ///
    /// # Errors
    /// Rows or caches are not those of the layout, or a sequence has no row.
    pub fn step(
        weights: &'a W,
        rows: PlainRows,
        layout: &'a Layout,
        caches: Vec<&'a mut PlainCache>,
        numerics: Numerics,
    ) -> Result<PlainSuite<'a, W>> {
        let held: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
        let pasts = layout.sequences.iter().map(|extent| extent.past);
        let fit = pasts.eq(held.iter().copied()) && layout.sequences.iter().all(|extent| extent.rows > 0);
        if !fit || !rows.are(layout.rows()) {
            return Err(Error::Misuse(format!("caches of {held:?} positions for {:?}", layout.sequences)));
        }
        Ok(PlainSuite { weights, request: Request::Step { rows, layout, caches }, numerics, noise: None })
    }

    /// The same with noise for the scores among which a token is chosen, an element each, at the scale of the comparisons.
    pub fn with_noise(self, noise: Vec<i64>) -> PlainSuite<'a, W> {
        PlainSuite { noise: Some(noise), ..self }
    }

    fn matrix(&self, data: &[i64]) -> Value {
        let total = self.request.total();
        Value::new(total, data.len() / total, self.numerics.wide, data.to_vec())
    }

    /// The padded inputs; an error in a step.
    fn inputs(&mut self) -> Result<&mut PlainInput> {
        match &mut self.request {
            Request::Inputs(input, _) => Ok(input),
            Request::Step { .. } => Err(Error::Misuse("an operation on padded inputs in a step of a decoder".into())),
        }
    }

    /// The layout of a step; an error on padded inputs.
    fn layout(&self) -> Result<&'a Layout> {
        match self.request {
            Request::Step { layout, .. } => Ok(layout),
            Request::Inputs(..) => Err(not_a_step()),
        }
    }

    /// A weight of one row, as long as `cols`.
    fn row(&self, name: &str, cols: usize) -> Result<&'a [i64]> {
        let weight = self.weights.weight(name)?;
        if (weight.rows, weight.cols) != (1, cols) {
            return Err(Error::Misuse(format!("{name} is [{}, {}], not [1, {cols}]", weight.rows, weight.cols)));
        }
        Ok(&weight.values)
    }
}

impl<W: PlainWeights> Suite for PlainSuite<'_, W> {
    type Tensor = Value;

    fn set_label(&mut self, _: &str) {}

    fn shape(&self, x: &Value) -> (usize, usize) {
        (x.rows(), x.cols())
    }

    fn input(&mut self) -> Result<Value> {
        match self.request.rows() {
            PlainRows::Matrix(data) => Ok(self.matrix(data)),
            PlainRows::Lookup(_) => Err(Error::Misuse("the model reads a matrix, the request brings indices".into())),
        }
    }

    fn lookup(&mut self, table: &str, _: &LookupSpec) -> Result<Value> {
        match self.request.rows() {
            PlainRows::Matrix(data) => Ok(self.matrix(data)),
            PlainRows::Lookup(ids) => {
                let PlainWeight { rows, cols, values } = self.weights.weight(table)?;
                if let Some(id) = ids.iter().find(|&id| id >= rows) {
                    return Err(Error::Misuse(format!("{table} has no row {id}")));
                }
                let data = ids.iter().flat_map(|id| &values[id * cols..(id + 1) * cols]).copied().collect();
                Ok(Value::new(ids.len(), *cols, self.numerics.wide, data))
            }
        }
    }

    fn widen(&mut self, x: &Value) -> Result<Value> {
        Ok(x.widen(self.numerics.wide))
    }

    fn linear(&mut self, x: &Value, weight: &str, bias: Option<&str>, spec: &LinearSpec) -> Result<Value> {
        let ring = spec.ring + spec.truncate;
        if x.ring() < ring {
            return Err(Error::Misuse(format!("{weight} reads a ring of {ring} bits, not of {}", x.ring())));
        }
        let PlainWeight { rows, cols, values } = self.weights.weight(weight)?;
        if x.cols() != *rows {
            return Err(Error::Misuse(format!("{weight} takes {rows} columns, not {}", x.cols())));
        }
        let mut z = x.product(values, *cols, ring);
        if let Some(bias) = bias {
            z = z.with_row(self.row(bias, *cols)?, i64::wrapping_add);
        }
        Ok(z.truncate(spec.truncate, spec.ring))
    }

    fn add_rows(&mut self, x: &Value, rows: &str, count: usize) -> Result<Value> {
        let PlainWeight { rows: available, cols, values } = self.weights.weight(rows)?;
        if count > *available || *cols != x.cols() {
            let found = format!("{rows} has {available} rows of {cols} for {count} of {}", x.cols());
            return Err(Error::Misuse(found));
        }
        let repeated = values[..count * cols].repeat(x.rows() / count.max(1));
        Ok(x.add(&Value::new(x.rows(), *cols, x.ring(), repeated)))
    }

    fn prepend_row(&mut self, x: &Value, row: &str, count: usize) -> Result<Value> {
        let row = self.row(row, x.cols())?;
        // The new row counts like any other.
        let input = self.inputs()?;
        input.key_bias = prepended(&input.key_bias, count, &[0]);
        input.row_weight = prepended(&input.row_weight, count, &[1]);
        let data = prepended(x.data(), count * x.cols(), row);
        Ok(Value::new(data.len() / x.cols().max(1), x.cols(), x.ring(), data))
    }

    fn layer_norm(&mut self, x: &Value, gain: &str, bias: &str, spec: &NormSpec) -> Result<Value> {
        if !spec.centred {
            return Err(Error::Misuse(format!("{gain} is of a LayerNorm, its numbers of an RMSNorm")));
        }
        Ok(norm::normalized(x, self.row(gain, x.cols())?, Some(self.row(bias, x.cols())?), spec))
    }

    fn rms_norm(&mut self, x: &Value, gain: &str, spec: &NormSpec) -> Result<Value> {
        if spec.centred {
            return Err(Error::Misuse(format!("{gain} is of an RMSNorm, its numbers of a LayerNorm")));
        }
        Ok(norm::normalized(x, self.row(gain, x.cols())?, None, spec))
    }

    fn attention(&mut self, qkv: &Value, rows: usize, heads: usize, spec: &AttentionSpec) -> Result<Value> {
        let frac = self.numerics.frac;
        let PlainInput { key_bias, .. } = self.inputs()?;
        if key_bias.len() != qkv.rows() {
            return Err(Error::Misuse(format!("{} key biases for {} rows", key_bias.len(), qkv.rows())));
        }
        Ok(attention::attention(qkv, key_bias, rows, heads, frac, spec))
    }

    fn causal_attention(&mut self, qkv: &Value, layer: usize, heads: &CausalHeads, spec: &CausalSpec) -> Result<Value> {
        let Request::Step { layout, caches, .. } = &mut self.request else { return Err(not_a_step()) };
        causal::attention(qkv, layout, caches, layer, heads, self.numerics.frac, spec)
    }

    fn add_positions(&mut self, x: &Value, rows: &str) -> Result<Value> {
        let layout = self.layout()?;
        let PlainWeight { rows: available, cols, values } = self.weights.weight(rows)?;
        let last = layout.positions().max().unwrap_or(0);
        if (x.rows(), x.cols()) != (layout.rows(), *cols) || last >= *available {
            let of = format!("{rows} has {available} rows of {cols}");
            return Err(Error::Misuse(format!("{of} for {} of {}, up to position {last}", x.rows(), x.cols())));
        }
        let picked = layout.positions().flat_map(|at| &values[at * cols..][..*cols]).copied().collect();
        Ok(x.add(&Value::new(x.rows(), *cols, x.ring(), picked)))
    }

    fn activation(&mut self, x: &Value, spec: &ActivationSpec) -> Result<Value> {
        Ok(activation::activation(x, self.numerics.frac, spec))
    }

    fn route(&mut self, x: &Value, spec: &RouteSpec) -> Result<Value> {
        if x.ring() < spec.softmax.score_ring || spec.softmax.inverse.frac_out < self.numerics.frac {
            return Err(Error::Misuse(format!("scores of {} bits in a ring of {}", x.ring(), spec.softmax.score_ring)));
        }
        Ok(choice::route(x, self.numerics.frac, spec))
    }

    fn scale_blocks(&mut self, x: &Value, weights: &Value, spec: &ScaleSpec) -> Result<Value> {
        if x.rows() != weights.rows() || weights.cols() == 0 || !x.cols().is_multiple_of(weights.cols()) {
            let (a, b) = ([x.rows(), x.cols()], [weights.rows(), weights.cols()]);
            return Err(Error::Misuse(format!("{a:?} in blocks by {b:?}")));
        }
        Ok(choice::scale_blocks(x, weights, spec))
    }

    fn experts(&mut self, x: &Value, scores: &Value, experts: &[[&str; 2]], spec: &ExpertsSpec) -> Result<Value> {
        let ExpertsSpec { route, up, gated, down, combine } = spec;
        if scores.cols() != experts.len() || scores.rows() != x.rows() {
            return Err(Error::Misuse(format!("{} scores for {} experts", scores.cols(), experts.len())));
        }
        let weights = self.route(scores, route)?;
        let chosen = choice::chosen(scores, route);
        let mut sums = vec![0i64; x.rows() * x.cols()];
        for (number, [into, out]) in experts.iter().enumerate() {
            let rows: Vec<usize> = (0..x.rows()).filter(|row| chosen[*row].contains(&number)).collect();
            let picked = rows.iter().flat_map(|&row| x.row(row)).copied().collect();
            let y = self.linear(&Value::new(rows.len(), x.cols(), x.ring(), picked), into, None, up)?;
            let y = self.gated(&y, gated)?.widen(down.ring + down.truncate);
            let y = self.linear(&y, out, None, down)?;
            for (at, &row) in rows.iter().enumerate() {
                let weight = weights.row(row)[number];
                let sums = sums[row * x.cols()..].iter_mut().zip(y.row(at));
                sums.for_each(|(sum, v)| *sum = sum.wrapping_add(v.wrapping_mul(weight)));
            }
        }
        let sums = Value::new(x.rows(), x.cols(), combine.ring + combine.truncate, sums);
        Ok(sums.truncate(combine.truncate, combine.ring))
    }

    fn choose(&mut self, x: &Value, spec: &ChoiceSpec) -> Result<Value> {
        if x.cols() == 0 || (x.cols() - 1) >> spec.index_bits != 0 {
            return Err(Error::Misuse(format!("a place among {} in {} bits", x.cols(), spec.index_bits)));
        }
        if self.noise.as_ref().is_some_and(|noise| noise.len() != x.data().len()) {
            return Err(Error::Misuse(format!("noise for another shape than [{}, {}]", x.rows(), x.cols())));
        }
        Ok(choice::choose(x, self.numerics.frac, spec, self.noise.as_deref()))
    }

    fn gated(&mut self, x: &Value, spec: &GatedSpec) -> Result<Value> {
        let (width, ring) = (x.cols() / 2, spec.ring + spec.truncate);
        let (a, b) = (x.block(0, x.rows(), 0, width), x.block(0, x.rows(), width, width));
        let gate = activation::activation(&a, self.numerics.frac, &spec.activation);
        if gate.ring() < ring || !x.cols().is_multiple_of(2) {
            let left = gate.ring();
            return Err(Error::Misuse(format!(
                "a gate of {} columns in {left} bits for a product in {ring}",
                x.cols()
            )));
        }
        let product = gate.data().iter().zip(b.data()).map(|(a, b)| a.wrapping_mul(*b)).collect();
        Ok(Value::new(x.rows(), width, ring, product).truncate(spec.truncate, spec.ring))
    }

    fn add(&mut self, x: &Value, y: &Value, ring: u32) -> Result<Value> {
        if x.ring().min(y.ring()) < ring {
            return Err(Error::Misuse(format!("a sum in {ring} bits of rings of {} and {}", x.ring(), y.ring())));
        }
        Ok(x.widen(ring).add(&y.widen(ring)))
    }

    fn first_row(&mut self, x: &Value, rows: usize) -> Result<Value> {
        let data: Vec<i64> = (0..x.rows()).step_by(rows.max(1)).flat_map(|r| x.row(r)).copied().collect();
        Ok(Value::new(data.len() / x.cols().max(1), x.cols(), x.ring(), data))
    }

    fn last_row(&mut self, x: &Value) -> Result<Value> {
        let layout = self.layout()?;
        if x.rows() != layout.rows() {
            return Err(Error::Misuse(format!("{} rows for a layout of {}", x.rows(), layout.rows())));
        }
        if layout.every_row {
            return Ok(x.clone());
        }
        let ends = layout.sequences.iter().scan(0, |end, extent| {
            *end += extent.rows;
            Some(*end)
        });
        let data: Vec<i64> = ends.flat_map(|end| x.row(end - 1)).copied().collect();
        Ok(Value::new(layout.sequences.len(), x.cols(), x.ring(), data))
    }

    fn sum_rows(&mut self, x: &Value, rows: usize) -> Result<Value> {
        let wide = self.numerics.wide;
        let PlainInput { row_weight, .. } = self.inputs()?;
        let mut data = Vec::with_capacity(x.rows() / rows.max(1) * x.cols());
        for (input, weights) in row_weight.chunks(rows.max(1)).enumerate() {
            data.extend_from_slice(
                Value::new(1, rows, x.ring(), weights.to_vec())
                    .product(x.block(input * rows, rows, 0, x.cols()).data(), x.cols(), wide)
                    .data(),
            );
        }
        Ok(Value::new(data.len() / x.cols().max(1), x.cols(), wide, data))
    }
}

/// `first` before every `len` elements.
fn prepended(data: &[i64], len: usize, first: &[i64]) -> Vec<i64> {
    data.chunks(len.max(1)).flat_map(|input| first.iter().chain(input)).copied().collect()
}

fn not_a_step() -> Error {
    Error::Misuse("an operation of a decoder's step on padded inputs".into())
}
