//! The suite as the engine sees it: one party's side of every tensor operation.

use tercet_core::spec::{
    ActivationSpec, AttentionSpec, CausalHeads, CausalSpec, ChoiceSpec, GatedSpec, LinearSpec, LookupSpec, NormSpec,
    Numerics, RouteSpec, ScaleSpec,
};
use tercet_core::{Error, Geometry, Result, Session, Suite};
use tercet_ring::{Element, Tensor};

use crate::attention::Heads;
use crate::linear::{Operand, Prepared, matrix_product, public_product};
use crate::lookup::{Keys, lookup};
use crate::noise::Noise;
use crate::reentry::{Table, rows_at};
use crate::{Masked, activation, argmax, attention, extend, norm, route, scale, truncate};

/// This party's part of a named weight.
pub struct Stored<'a, E> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Its ring.
    pub ring: u32,
    /// Whether every party holds it in the clear.
    pub public: bool,
    /// For a matrix the planes of [`Operand`]; for all else those of [`Masked`]. Of a public tensor its values, and nothing.
    pub planes: [&'a [E]; 2],
}

/// Where a party keeps its part of a model.
pub trait Weights {
    /// A tensor by name, in lanes `E`; an error where it is absent or in other lanes.
    fn stored<E: Element>(&self, name: &str) -> Result<Stored<'_, E>>;
}

/// This party's part of a request's input, in the wide lanes `E`.
pub struct Input<E> {
    /// What is looked up, or the rows themselves.
    pub rows: InputRows<E>,
    /// `[batch, rows]` in the score ring: zero for a row that counts, the padding bias for padding.
    pub key_bias: Masked<u32>,
    /// `[batch, rows]` in the wide ring: one for a row that counts, zero for padding.
    pub row_weight: Masked<E>,
}

/// The rows of an input.
pub enum InputRows<E> {
    /// Keys into the table.
    Lookup(Keys<E>),
    /// `[batch * rows, 1]`: places in the table, as they were chosen.
    Places(Masked<E>),
    /// A matrix `[batch * rows, width]`, wide.
    Matrix(Masked<E>),
}

/// One party's side of one request. `E` are the lanes of the wide ring: `u32` for 32 bits, `u64` for 64.
pub struct HelperSuite<'a, E, W> {
    session: &'a mut Session,
    weights: &'a W,
    input: Input<E>,
    geometry: Geometry,
    numerics: Numerics,
    noise: Vec<Option<Noise>>,
}

impl<'a, E: Element, W: Weights> HelperSuite<'a, E, W> {
    /// Binds a session to weights and input.
    pub fn new(
        session: &'a mut Session,
        weights: &'a W,
        input: Input<E>,
        geometry: Geometry,
        numerics: Numerics,
    ) -> HelperSuite<'a, E, W> {
        HelperSuite { session, weights, input, geometry, numerics, noise: Vec::new() }
    }

    /// The same with noise for the rows that the choice of a token meets, in their order.
    pub fn with_noise(self, noise: Vec<Option<Noise>>) -> HelperSuite<'a, E, W> {
        HelperSuite { noise, ..self }
    }

    fn masked<F: Element>(&self, name: &str) -> Result<Masked<F>> {
        let Stored { rows, cols, ring, public, planes } = self.weights.stored::<F>(name)?;
        let tensor = |plane: &[F]| Tensor::new([rows, cols], plane.to_vec());
        let party = self.session.party();
        Ok(if public {
            Masked::public(party, ring, tensor(planes[0]))
        } else {
            Masked::new(party, ring, planes.map(tensor))
        })
    }
}

impl<E: Element, W: Weights> Suite for HelperSuite<'_, E, W> {
    type Tensor = Masked<E>;

    fn set_label(&mut self, label: &str) {
        self.session.set_label(label);
    }

    fn shape(&self, x: &Masked<E>) -> (usize, usize) {
        (x.planes()[0].rows(), x.planes()[0].width())
    }

    fn input(&mut self) -> Result<Masked<E>> {
        match &self.input.rows {
            InputRows::Matrix(matrix) => Ok(matrix.clone()),
            _ => Err(Error::Misuse("the model reads a matrix, the request brings none".into())),
        }
    }

    fn lookup(&mut self, table: &str, _: &LookupSpec) -> Result<Masked<E>> {
        match &self.input.rows {
            // A public table: the client has looked up by itself.
            InputRows::Matrix(matrix) => Ok(matrix.clone()),
            InputRows::Lookup(keys) => {
                let stored = self.weights.stored::<E>(table)?;
                if stored.public {
                    return Err(Error::Misuse(format!("{table} is public, the request brings keys into it")));
                }
                lookup(self.session, stored.planes, [stored.rows, stored.cols], keys, self.numerics.wide)
            }
            InputRows::Places(places) => {
                let Stored { rows, cols, public, planes, .. } = self.weights.stored::<E>(table)?;
                let table = if public { Table::Public(planes[0]) } else { Table::Secret(planes) };
                rows_at(self.session, places, table, [rows, cols], self.numerics.wide)
            }
        }
    }

    fn widen(&mut self, x: &Masked<E>) -> Result<Masked<E>> {
        extend::extend(self.session, x, self.numerics.wide)
    }

    fn linear(&mut self, x: &Masked<E>, weight: &str, bias: Option<&str>, spec: &LinearSpec) -> Result<Masked<E>> {
        let ring = spec.ring + spec.truncate;
        if x.ring() < ring {
            return Err(Error::Misuse(format!("{weight} reads a ring of {ring} bits, not of {}", x.ring())));
        }
        let Stored { rows: inner, cols, public, planes, .. } = self.weights.stored::<E>(weight)?;
        let bias = bias.map(|bias| self.masked::<E>(bias)).transpose()?;
        let (rows, width) = self.shape(x);
        if width != inner {
            return Err(Error::Misuse(format!("{weight} takes {inner} columns, not {width}")));
        }
        let mut z = if public {
            public_product(self.session, &x.to_additive(), planes[0], [rows, inner, cols])?
        } else {
            matrix_product(self.session, x, Operand { planes }, [1, rows, inner, cols], ring)?.reshape([rows, cols])
        };
        if let Some(bias) = bias {
            z = z.add_columns(&bias);
        }
        truncate::truncate(self.session, z, spec.truncate, spec.ring)
    }

    fn add_rows(&mut self, x: &Masked<E>, rows: &str, count: usize) -> Result<Masked<E>> {
        let table = self.masked::<E>(rows)?;
        let (available, cols) = self.shape(&table);
        let (total, width) = self.shape(x);
        if count > available || cols != width || table.ring() < x.ring() {
            return Err(Error::Misuse(format!("{rows} has {available} rows of {cols} for {count} of {width}")));
        }
        let times = total / count.max(1);
        let repeated = |p: &Tensor<E>| Tensor::new([total, cols], p.data()[..count * cols].repeat(times));
        Ok(x.clone().add(&table.each(x.ring(), repeated)))
    }

    fn prepend_row(&mut self, x: &Masked<E>, row: &str, count: usize) -> Result<Masked<E>> {
        let row = self.masked::<E>(row)?;
        let (_, width) = self.shape(x);
        let planes = [0, 1].map(|i| {
            let (row, body) = (row.planes()[i].data(), x.planes()[i].data());
            let data: Vec<E> = body.chunks(count * width).flat_map(|input| row.iter().chain(input)).copied().collect();
            Tensor::new([data.len() / width.max(1), width], data)
        });
        // The new row counts like any other: no bias, and a weight of one.
        let (party, column) = (self.session.party(), [self.geometry.batch, 1]);
        let Input { key_bias, row_weight, .. } = &mut self.input;
        let no_bias = Masked::public(party, key_bias.ring(), Tensor::zeros(column));
        *key_bias = Masked::join_columns(&[no_bias, key_bias.clone()]);
        let ones = Masked::public(party, row_weight.ring(), Tensor::zeros(column).map(|_: E| E::ONE));
        *row_weight = Masked::join_columns(&[ones, row_weight.clone()]);
        Ok(Masked::new(party, x.ring(), planes))
    }

    fn layer_norm(&mut self, x: &Masked<E>, gain: &str, bias: &str, spec: &NormSpec) -> Result<Masked<E>> {
        let (gain, bias) = (self.masked::<u64>(gain)?, self.masked::<u64>(bias)?);
        norm::layer_norm(self.session, x, &gain, &bias, spec)
    }

    fn attention(&mut self, qkv: &Masked<E>, rows: usize, heads: usize, spec: &AttentionSpec) -> Result<Masked<E>> {
        let width = self.shape(qkv).1 / 3 / heads;
        let heads = Heads { batch: self.geometry.batch, rows, heads, width };
        let key_bias = self.input.key_bias.low(spec.score_ring);
        attention::attention(self.session, qkv, &key_bias, heads, self.numerics.frac, spec)
    }

    fn activation(&mut self, x: &Masked<E>, spec: &ActivationSpec) -> Result<Masked<E>> {
        activation::activation(self.session, x, self.numerics.frac, spec)
    }

    fn route(&mut self, x: &Masked<E>, spec: &RouteSpec) -> Result<Masked<E>> {
        route::route(self.session, x, self.numerics.frac, spec)
    }

    fn scale_blocks(&mut self, x: &Masked<E>, weights: &Masked<E>, spec: &ScaleSpec) -> Result<Masked<E>> {
        scale::scale_blocks(self.session, x, weights, spec)
    }

    fn choose(&mut self, x: &Masked<E>, spec: &ChoiceSpec) -> Result<Masked<E>> {
        argmax::choose(self.session, x, self.numerics.frac, spec, &self.noise)
    }

    fn rms_norm(&mut self, _: &Masked<E>, gain: &str, _: &NormSpec) -> Result<Masked<E>> {
        Err(Error::Misuse(format!("RMSNorm with {gain}")))
    }

    fn causal_attention(&mut self, _: &Masked<E>, layer: usize, _: &CausalHeads, _: &CausalSpec) -> Result<Masked<E>> {
        Err(Error::Misuse(format!("causal attention {layer}")))
    }

    fn add_positions(&mut self, _: &Masked<E>, rows: &str) -> Result<Masked<E>> {
        Err(Error::Misuse(format!("positions of {rows}")))
    }

    fn gated(&mut self, _: &Masked<E>, _: &GatedSpec) -> Result<Masked<E>> {
        Err(Error::Misuse("a gated function".into()))
    }

    fn last_row(&mut self, _: &Masked<E>) -> Result<Masked<E>> {
        Err(Error::Misuse("the last row".into()))
    }

    fn add(&mut self, x: &Masked<E>, y: &Masked<E>, ring: u32) -> Result<Masked<E>> {
        if x.ring().min(y.ring()) < ring {
            return Err(Error::Misuse(format!("a sum in {ring} bits of rings of {} and {}", x.ring(), y.ring())));
        }
        Ok(x.low::<E>(ring).add(&y.low(ring)))
    }

    fn first_row(&mut self, x: &Masked<E>, rows: usize) -> Result<Masked<E>> {
        let (_, width) = self.shape(x);
        Ok(x.each(x.ring(), |plane| {
            let data: Vec<E> = plane.data().chunks(rows * width).flat_map(|input| &input[..width]).copied().collect();
            Tensor::new([data.len() / width.max(1), width], data)
        }))
    }

    fn sum_rows(&mut self, x: &Masked<E>, rows: usize) -> Result<Masked<E>> {
        let (batch, width, ring) = (self.geometry.batch, self.shape(x).1, self.numerics.wide);
        let weights = self.input.row_weight.clone().reshape([batch, 1, rows]);
        let x = Prepared::new(x);
        let z = matrix_product(self.session, &weights, x.operand(), [batch, 1, rows, width], ring)?;
        truncate::remask(self.session, z.reshape([batch, width]), ring)
    }
}
