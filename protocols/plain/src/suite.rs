//! The suite as the engine sees it, on plain integers.

use tercet_core::spec::{
    ActivationSpec, AttentionSpec, CausalHeads, CausalSpec, ChoiceSpec, GatedSpec, LinearSpec, LookupSpec, NormSpec,
    Numerics, RouteSpec, ScaleSpec,
};
use tercet_core::{Error, Geometry, Result, Suite};

use crate::value::Value;
use crate::{activation, attention, choice, norm};

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

/// One request on plain integers.
pub struct PlainSuite<'a, W> {
    weights: &'a W,
    input: PlainInput,
    geometry: Geometry,
    numerics: Numerics,
    noise: Option<Vec<i64>>,
}

impl<'a, W: PlainWeights> PlainSuite<'a, W> {
    /// Binds weights and input.
    ///
    /// # Errors
    /// The input does not have the shape of `geometry`.
    pub fn new(weights: &'a W, input: PlainInput, geometry: Geometry, numerics: Numerics) -> Result<PlainSuite<'a, W>> {
        let total = geometry.batch * geometry.rows;
        let rows_fit = match &input.rows {
            PlainRows::Lookup(ids) => ids.len() == total,
            PlainRows::Matrix(data) => total > 0 && data.len() % total == 0,
        };
        if !rows_fit || input.key_bias.len() != total || input.row_weight.len() != total {
            return Err(Error::Misuse(format!(
                "an input of another shape than {} of {}",
                geometry.batch, geometry.rows
            )));
        }
        Ok(PlainSuite { weights, input, geometry, numerics, noise: None })
    }

    /// The same with noise for the scores among which a token is chosen, an element each, at the scale of the comparisons.
    pub fn with_noise(self, noise: Vec<i64>) -> PlainSuite<'a, W> {
        PlainSuite { noise: Some(noise), ..self }
    }

    fn matrix(&self, data: &[i64]) -> Value {
        let total = self.geometry.batch * self.geometry.rows;
        Value::new(total, data.len() / total, self.numerics.wide, data.to_vec())
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
        match &self.input.rows {
            PlainRows::Matrix(data) => Ok(self.matrix(data)),
            PlainRows::Lookup(_) => Err(Error::Misuse("the model reads a matrix, the request brings indices".into())),
        }
    }

    fn lookup(&mut self, table: &str, _: &LookupSpec) -> Result<Value> {
        match &self.input.rows {
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
        self.input.key_bias = prepended(&self.input.key_bias, count, &[0]);
        self.input.row_weight = prepended(&self.input.row_weight, count, &[1]);
        let data = prepended(x.data(), count * x.cols(), row);
        Ok(Value::new(data.len() / x.cols().max(1), x.cols(), x.ring(), data))
    }

    fn layer_norm(&mut self, x: &Value, gain: &str, bias: &str, spec: &NormSpec) -> Result<Value> {
        Ok(norm::layer_norm(x, self.row(gain, x.cols())?, self.row(bias, x.cols())?, spec))
    }

    fn attention(&mut self, qkv: &Value, rows: usize, heads: usize, spec: &AttentionSpec) -> Result<Value> {
        if self.input.key_bias.len() != qkv.rows() {
            return Err(Error::Misuse(format!("{} key biases for {} rows", self.input.key_bias.len(), qkv.rows())));
        }
        Ok(attention::attention(qkv, &self.input.key_bias, rows, heads, self.numerics.frac, spec))
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
        if x.rows() != weights.rows() || weights.cols() == 0 || x.cols() % weights.cols() != 0 {
            let (a, b) = ([x.rows(), x.cols()], [weights.rows(), weights.cols()]);
            return Err(Error::Misuse(format!("{a:?} in blocks by {b:?}")));
        }
        Ok(choice::scale_blocks(x, weights, spec))
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

    fn rms_norm(&mut self, _: &Value, gain: &str, _: &NormSpec) -> Result<Value> {
        Err(Error::Misuse(format!("RMSNorm with {gain}")))
    }

    fn causal_attention(&mut self, _: &Value, layer: usize, _: &CausalHeads, _: &CausalSpec) -> Result<Value> {
        Err(Error::Misuse(format!("causal attention {layer}")))
    }

    fn add_positions(&mut self, _: &Value, rows: &str) -> Result<Value> {
        Err(Error::Misuse(format!("positions of {rows}")))
    }

    fn gated(&mut self, _: &Value, _: &GatedSpec) -> Result<Value> {
        Err(Error::Misuse("a gated function".into()))
    }

    fn last_row(&mut self, _: &Value) -> Result<Value> {
        Err(Error::Misuse("the last row".into()))
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

    fn sum_rows(&mut self, x: &Value, rows: usize) -> Result<Value> {
        let mut data = Vec::with_capacity(x.rows() / rows.max(1) * x.cols());
        for (input, weights) in self.input.row_weight.chunks(rows.max(1)).enumerate() {
            data.extend_from_slice(
                Value::new(1, rows, x.ring(), weights.to_vec())
                    .product(x.block(input * rows, rows, 0, x.cols()).data(), x.cols(), self.numerics.wide)
                    .data(),
            );
        }
        Ok(Value::new(data.len() / x.cols().max(1), x.cols(), self.numerics.wide, data))
    }
}

/// `first` before every `len` elements.
fn prepended(data: &[i64], len: usize, first: &[i64]) -> Vec<i64> {
    data.chunks(len.max(1)).flat_map(|input| first.iter().chain(input)).copied().collect()
}
