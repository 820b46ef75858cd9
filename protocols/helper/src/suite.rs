//! The suite as the engine sees it: one party's side of every tensor operation.

use tercet_core::spec::{
    ActivationSpec, AttentionSpec, CausalHeads, CausalSpec, ChoiceSpec, ExpertsSpec, GatedSpec, LinearSpec, LookupSpec,
    NormSpec, Numerics, RouteSpec, ScaleSpec,
};
use tercet_core::{Error, Geometry, Layout, Result, Session, Suite};
use tercet_ring::{Element, Tensor};

use crate::attention::Heads;
use crate::cache::Cache;
use crate::experts::Matrices;
use crate::linear::{self, Operand, Prepared, matrix_product, public_product};
use crate::lookup::{Found, Keys, lookup};
use crate::noise::Noise;
use crate::plane::Plane;
use crate::reentry::{Table, rows_at};
use crate::{Masked, activation, argmax, attention, causal, experts, extend, gated, norm, route, scale, truncate};

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
    pub planes: [Plane<'a, E>; 2],
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

/// One party's side of one request, or of one step of several. `E` are the lanes of the wide ring: `u32` for 32 bits, `u64` for 64.
pub struct HelperSuite<'a, E, W> {
    session: &'a mut Session,
    weights: &'a W,
    request: Request<'a, E>,
    numerics: Numerics,
    noise: Vec<Option<Noise>>,
    refused: Vec<bool>,
}

/// What is computed on.
enum Request<'a, E> {
    /// Whole inputs, padded to one length.
    Inputs(Input<E>, Geometry),
    /// The next rows of sequences, and a cache for each of these.
    Step { rows: InputRows<E>, layout: &'a Layout, caches: Vec<&'a mut Cache> },
}

impl<E> Request<'_, E> {
    fn rows(&self) -> &InputRows<E> {
        match self {
            Request::Inputs(input, _) => &input.rows,
            Request::Step { rows, .. } => rows,
        }
    }
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
        HelperSuite::of(session, weights, Request::Inputs(input, geometry), numerics)
    }

    fn of(
        session: &'a mut Session,
        weights: &'a W,
        request: Request<'a, E>,
        numerics: Numerics,
    ) -> HelperSuite<'a, E, W> {
        HelperSuite { session, weights, request, numerics, noise: Vec::new(), refused: Vec::new() }
    }

    /// Binds a session to weights and a step: what its rows are made of, in the order of `layout`, and the cache of each sequence,
    /// which holds as many positions as the layout says and takes up those of this step. `caches` of a step that failed are of no
    /// more use.
    ///
    /// # Errors
    /// The caches are not those of the layout, or a sequence has no row.
    pub fn step(
        session: &'a mut Session,
        weights: &'a W,
        rows: InputRows<E>,
        layout: &'a Layout,
        caches: Vec<&'a mut Cache>,
        numerics: Numerics,
    ) -> Result<HelperSuite<'a, E, W>> {
        let held: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
        let pasts = layout.sequences.iter().map(|extent| extent.past);
        if !pasts.eq(held.iter().copied()) || layout.sequences.iter().any(|extent| extent.rows == 0) {
            return Err(Error::Misuse(format!("caches of {held:?} positions for {:?}", layout.sequences)));
        }
        Ok(HelperSuite::of(session, weights, Request::Step { rows, layout, caches }, numerics))
    }

    /// For each request whether its lookup is refused ([`Found::refused`]); nothing before one, or
    /// without.
    pub fn refused(&self) -> &[bool] {
        &self.refused
    }

    /// The padded inputs; an error in a step.
    fn inputs(&mut self) -> Result<(&mut Input<E>, Geometry)> {
        match &mut self.request {
            Request::Inputs(input, geometry) => Ok((input, *geometry)),
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

    /// The same with noise for the rows that the choice of a token meets, in their order.
    pub fn with_noise(self, noise: Vec<Option<Noise>>) -> HelperSuite<'a, E, W> {
        HelperSuite { noise, ..self }
    }

    fn masked<F: Element>(&self, name: &str) -> Result<Masked<F>> {
        let Stored { rows, cols, ring, public, planes } = self.weights.stored::<F>(name)?;
        let tensor = |plane: Plane<'_, F>| Tensor::new([rows, cols], plane.part(0, rows * cols).into_owned());
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
        match self.request.rows() {
            InputRows::Matrix(matrix) => Ok(matrix.clone()),
            _ => Err(Error::Misuse("the model reads a matrix, the request brings none".into())),
        }
    }

    fn lookup(&mut self, table: &str, _: &LookupSpec) -> Result<Masked<E>> {
        match self.request.rows() {
            // A public table: the client has looked up by itself.
            InputRows::Matrix(matrix) => Ok(matrix.clone()),
            InputRows::Lookup(keys) => {
                let stored = self.weights.stored::<E>(table)?;
                if stored.public {
                    return Err(Error::Misuse(format!("{table} is public, the request brings keys into it")));
                }
                let table = [stored.rows, stored.cols];
                let Found { rows, refused } = lookup(self.session, stored.planes, table, keys, self.numerics.wide)?;
                self.refused = refused;
                Ok(rows)
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
        let ring = linear::check(weight, x.ring(), spec)?;
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
        let party = self.session.party();
        let (Input { key_bias, row_weight, .. }, geometry) = self.inputs()?;
        let column = [geometry.batch, 1];
        let no_bias = Masked::public(party, key_bias.ring(), Tensor::zeros(column));
        *key_bias = Masked::join_columns(&[no_bias, key_bias.clone()]);
        let ones = Masked::public(party, row_weight.ring(), Tensor::zeros(column).map(|_: E| E::ONE));
        *row_weight = Masked::join_columns(&[ones, row_weight.clone()]);
        Ok(Masked::new(party, x.ring(), planes))
    }

    fn layer_norm(&mut self, x: &Masked<E>, gain: &str, bias: &str, spec: &NormSpec) -> Result<Masked<E>> {
        if !spec.centred {
            return Err(Error::Misuse(format!("{gain} is of a LayerNorm, its numbers of an RMSNorm")));
        }
        let (gain, bias) = (self.masked::<u64>(gain)?, self.masked::<u64>(bias)?);
        norm::layer_norm(self.session, x, &gain, &bias, spec)
    }

    fn rms_norm(&mut self, x: &Masked<E>, gain: &str, spec: &NormSpec) -> Result<Masked<E>> {
        if spec.centred {
            return Err(Error::Misuse(format!("{gain} is of an RMSNorm, its numbers of a LayerNorm")));
        }
        let gain = self.masked::<u64>(gain)?;
        norm::rms_norm(self.session, x, &gain, spec)
    }

    fn attention(&mut self, qkv: &Masked<E>, rows: usize, heads: usize, spec: &AttentionSpec) -> Result<Masked<E>> {
        let width = self.shape(qkv).1 / 3 / heads;
        let (Input { key_bias, .. }, Geometry { batch, .. }) = self.inputs()?;
        let (key_bias, heads) = (key_bias.low(spec.score_ring), Heads { batch, rows, heads, width });
        attention::attention(self.session, qkv, &key_bias, heads, self.numerics.frac, spec)
    }

    fn causal_attention(
        &mut self,
        qkv: &Masked<E>,
        layer: usize,
        heads: &CausalHeads,
        spec: &CausalSpec,
    ) -> Result<Masked<E>> {
        let Request::Step { layout, caches, .. } = &mut self.request else { return Err(not_a_step()) };
        causal::attention(self.session, qkv, layout, caches, layer, heads, self.numerics.frac, spec)
    }

    fn add_positions(&mut self, x: &Masked<E>, rows: &str) -> Result<Masked<E>> {
        let layout = self.layout()?;
        let Stored { rows: available, cols, ring, planes, public } = self.weights.stored::<E>(rows)?;
        let last = layout.positions().max().unwrap_or(0);
        if self.shape(x) != (layout.rows(), cols) || last >= available || ring < x.ring() {
            let (total, width) = self.shape(x);
            let what = format!("{rows} has {available} rows of {cols} for {total} of {width}, up to position {last}");
            return Err(Error::Misuse(what));
        }
        let pick = |plane: Plane<'_, E>| {
            let data: Vec<E> = layout.positions().flat_map(|at| plane.part(at * cols, cols).into_owned()).collect();
            Tensor::new([layout.rows(), cols], data)
        };
        let (party, ring) = (self.session.party(), x.ring());
        let picked = if public {
            Masked::public(party, ring, pick(planes[0]))
        } else {
            Masked::new(party, ring, planes.map(pick))
        };
        Ok(x.clone().add(&picked))
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

    fn experts(
        &mut self,
        x: &Masked<E>,
        scores: &Masked<E>,
        experts: &[[&str; 2]],
        spec: &ExpertsSpec,
    ) -> Result<Masked<E>> {
        let stored: Vec<[Stored<'_, E>; 2]> = experts
            .iter()
            .map(|[up, down]| Ok([self.weights.stored::<E>(up)?, self.weights.stored::<E>(down)?]))
            .collect::<Result<_>>()?;
        let party = self.session.party();
        let matrices = |which: usize| {
            let all = stored.iter().map(|of| &of[which]);
            let operands = all.clone().map(|of| match of.public {
                true => Operand::public(party, of.planes[0]),
                false => Operand { planes: of.planes },
            });
            Matrices {
                shape: all.clone().next().map_or([0, 0], |of| [of.rows, of.cols]),
                secret: all.clone().any(|of| !of.public),
                operands: operands.collect(),
            }
        };
        let (up, down) = (matrices(0), matrices(1));
        if stored.iter().any(|[a, b]| [a.rows, a.cols] != up.shape || [b.rows, b.cols] != down.shape) {
            return Err(Error::Misuse("experts of different shapes".into()));
        }
        experts::experts(self.session, x, scores, [up, down], self.numerics.frac, spec)
    }

    fn choose(&mut self, x: &Masked<E>, spec: &ChoiceSpec) -> Result<Masked<E>> {
        argmax::choose(self.session, x, self.numerics.frac, spec, &self.noise)
    }

    fn gated(&mut self, x: &Masked<E>, spec: &GatedSpec) -> Result<Masked<E>> {
        gated::gated(self.session, x, self.numerics.frac, spec)
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

    fn last_row(&mut self, x: &Masked<E>) -> Result<Masked<E>> {
        let (layout, (rows, _)) = (self.layout()?, self.shape(x));
        if rows != layout.rows() {
            return Err(Error::Misuse(format!("{rows} rows for a layout of {}", layout.rows())));
        }
        if layout.every_row {
            return Ok(x.clone());
        }
        let ends = layout.sequences.iter().scan(0, |end, extent| {
            *end += extent.rows;
            Some(*end)
        });
        let lasts: Vec<usize> = ends.map(|end| end - 1).collect();
        Ok(x.rows_at(&lasts))
    }

    fn sum_rows(&mut self, x: &Masked<E>, rows: usize) -> Result<Masked<E>> {
        let (width, ring) = (self.shape(x).1, self.numerics.wide);
        let (Input { row_weight, .. }, Geometry { batch, .. }) = self.inputs()?;
        let weights = row_weight.clone().reshape([batch, 1, rows]);
        let x = Prepared::new(x);
        let z = matrix_product(self.session, &weights, x.operand(), [batch, 1, rows, width], ring)?;
        truncate::remask(self.session, z.reshape([batch, width]), ring)
    }
}

fn not_a_step() -> Error {
    Error::Misuse("an operation of a decoder's step on padded inputs".into())
}
