//! Masked and additive sharings: what each party holds of a secret tensor, and what it may do alone.
//!
//! ```text
//! masked    x = m - l1 - l2  mod 2^k     m: P1, P2     l1: P0, P1     l2: P0, P2
//! additive  z = z1 + z2      mod 2^k     z1: P1        z2: P2
//! ```
//!
//! Each party holds two planes of a masked tensor, so a linear map with public coefficients is the same code at all
//! three: it acts on both planes. Lanes carry unspecified bits above `k` (see [`tercet_ring::Element`]).

use tercet_net::PartyId;
use tercet_ring::{Element, Tensor};

/// A masked sharing of a tensor in `Z_2^ring`, as one party sees it.
#[derive(Clone, Debug)]
pub struct Masked<E> {
    party: PartyId,
    ring: u32,
    /// P0: `l1, l2`. P1: `m, l1`. P2: `m, l2`.
    planes: [Tensor<E>; 2],
}

impl<E: Element> Masked<E> {
    /// A sharing from this party's two planes: at P0 `l1, l2`; at P1 `m, l1`; at P2 `m, l2`.
    pub fn new(party: PartyId, ring: u32, planes: [Tensor<E>; 2]) -> Masked<E> {
        assert_eq!(planes[0].shape(), planes[1].shape(), "planes differ in shape");
        debug_assert!(ring >= 1 && ring <= E::BITS);
        Masked { party, ring, planes }
    }

    /// A sharing of a public tensor.
    pub fn public(party: PartyId, ring: u32, values: Tensor<E>) -> Masked<E> {
        let zeros = Tensor::zeros(values.shape());
        let first = if party == PartyId::P0 { zeros.clone() } else { values };
        Masked::new(party, ring, [first, zeros])
    }

    /// Whose view this is.
    pub fn party(&self) -> PartyId {
        self.party
    }

    /// The `k` of `Z_2^k`.
    pub fn ring(&self) -> u32 {
        self.ring
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        self.planes[0].shape()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.planes[0].len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.planes[0].is_empty()
    }

    /// Both planes, for what is done to both alike.
    pub fn planes(&self) -> &[Tensor<E>; 2] {
        &self.planes
    }

    /// Both planes, to be changed by the same linear map.
    pub fn planes_mut(&mut self) -> &mut [Tensor<E>; 2] {
        &mut self.planes
    }

    /// The masked value; evaluators only.
    pub fn m(&self) -> &[E] {
        debug_assert_ne!(self.party, PartyId::P0, "the helper holds no masked value");
        self.planes[0].data()
    }

    /// The mask half of this evaluator: `l1` at P1, `l2` at P2.
    pub fn own_mask(&self) -> &[E] {
        debug_assert_ne!(self.party, PartyId::P0, "the helper holds both halves");
        self.planes[1].data()
    }

    /// The mask `l1 + l2`, reduced to the ring; helper only.
    pub fn lambda(&self) -> Vec<E> {
        debug_assert_eq!(self.party, PartyId::P0, "only the helper knows a mask");
        let (first, second, ring) = (self.planes[0].data(), self.planes[1].data(), self.ring);
        zip(first, second, |a, b| a.add(b).low(ring))
    }

    /// The same linear map on both planes.
    pub fn each<F: Element>(&self, ring: u32, map: impl Fn(&Tensor<E>) -> Tensor<F>) -> Masked<F> {
        Masked::new(self.party, ring, [map(&self.planes[0]), map(&self.planes[1])])
    }

    /// The same elements under another shape.
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Masked<E> {
        let (shape, [a, b]) = (shape.into(), self.planes);
        Masked { party: self.party, ring: self.ring, planes: [a.reshape(shape.clone()), b.reshape(shape)] }
    }

    /// Sum with a sharing of the same shape in the same ring.
    pub fn add(mut self, other: &Masked<E>) -> Masked<E> {
        assert_eq!(self.ring, other.ring, "rings differ");
        self.planes.iter_mut().zip(&other.planes).for_each(|(a, b)| a.zip_assign(b, E::add));
        self
    }

    /// Difference with a sharing of the same shape in the same ring.
    pub fn sub(mut self, other: &Masked<E>) -> Masked<E> {
        assert_eq!(self.ring, other.ring, "rings differ");
        self.planes.iter_mut().zip(&other.planes).for_each(|(a, b)| a.zip_assign(b, E::sub));
        self
    }

    /// Adds a public constant to every element.
    pub fn plus(mut self, constant: i64) -> Masked<E> {
        if self.party != PartyId::P0 {
            let constant = E::from_i64(constant);
            let plane = self.planes[0].data_mut();
            tercet_ring::simd::run!(|| plane.iter_mut().for_each(|v| *v = v.add(constant)));
        }
        self
    }

    /// Multiplies every element by a public integer.
    pub fn times(&self, factor: i64) -> Masked<E> {
        let factor = E::from_i64(factor);
        self.each(self.ring, |plane| plane.map(|v| v.mul(factor)))
    }

    /// Adds the element of `row` in its column to every element; `row` is as long as the last dimension.
    pub fn add_columns(mut self, row: &Masked<E>) -> Masked<E> {
        assert!(row.ring >= self.ring, "a row in a smaller ring");
        self.planes.iter_mut().zip(&row.planes).for_each(|(a, b)| a.zip_columns(b.data(), E::add));
        self
    }

    /// Sums over the last dimension.
    pub fn sum_rows(&self) -> Masked<E> {
        self.each(self.ring, Tensor::sum_rows)
    }

    /// Modulo `2^ring`, `ring` being at most the present one, in any lane that holds it. Free and exact.
    pub fn low<F: Element>(&self, ring: u32) -> Masked<F> {
        assert!(ring <= self.ring, "low({ring}) of a ring of {}", self.ring);
        self.each(ring, |plane| plane.map(|v| F::from_u64(v.to_u64())))
    }

    /// The same planes, which hold a sharing in another ring by now.
    pub(crate) fn in_ring(self, ring: u32) -> Masked<E> {
        debug_assert!(ring <= E::BITS);
        Masked { ring, ..self }
    }

    /// As [`Masked::low`] in the same lanes, without a copy.
    pub fn into_low(self, ring: u32) -> Masked<E> {
        assert!(ring <= self.ring, "low({ring}) of a ring of {}", self.ring);
        Masked { ring, ..self }
    }

    /// Divides by `2^by` and leaves a ring smaller by as many bits. Free; the result is off by at most one unit, because
    /// the carries of the three dropped parts are dropped too.
    pub fn shift<F: Element>(&self, by: u32) -> Masked<F> {
        self.shift_low(self.ring, by)
    }

    /// As [`Masked::shift`] of what [`Masked::low`] gives, in one pass.
    pub fn shift_low<F: Element>(&self, ring: u32, by: u32) -> Masked<F> {
        assert!(ring <= self.ring, "low({ring}) of a ring of {}", self.ring);
        self.each(ring - by, |plane| plane.map(|v| F::from_u64((v.low(ring) >> by).to_u64())))
    }

    /// As [`Masked::shift`], but with an error of zero mean, within a unit and a half: the parts dropped from two masks outweigh
    /// that of the masked value by half a unit in the mean.
    pub fn shift_nearest<F: Element>(&self, by: u32) -> Masked<F> {
        let half = if by == 0 || self.party == PartyId::P0 { E::ZERO } else { E::ONE << (by - 1) };
        let (ring, [first, second]) = (self.ring, &self.planes);
        let down = |v: E| F::from_u64((v.low(ring) >> by).to_u64());
        Masked::new(self.party, ring - by, [first.map(|v| down(v.sub(half))), second.map(down)])
    }

    /// Multiplies by `2^by` and leaves a ring wider by as many bits. Free and exact.
    pub fn scale_up(&self, by: u32) -> Masked<E> {
        debug_assert!(self.ring + by <= E::BITS);
        self.each(self.ring + by, |plane| plane.map(|v| v << by))
    }

    /// Columns `[from, to)` of the last dimension.
    pub fn columns(&self, from: usize, to: usize) -> Masked<E> {
        self.each(self.ring, |plane| plane.columns(from, to))
    }

    /// These rows, in this order.
    pub fn rows_at(&self, rows: &[usize]) -> Masked<E> {
        self.each(self.ring, |plane| {
            let width = plane.width();
            let data = rows.iter().flat_map(|row| &plane.data()[row * width..][..width]).copied().collect();
            Tensor::new([rows.len(), width], data)
        })
    }

    /// Parts side by side along the last dimension.
    pub fn join_columns(parts: &[Masked<E>]) -> Masked<E> {
        Masked::join(parts, Tensor::join_columns)
    }

    /// Parts one after the other, as one flat tensor.
    pub fn flatten(parts: &[Masked<E>]) -> Masked<E> {
        Masked::join(parts, |planes| Tensor::flatten(&planes.iter().collect::<Vec<_>>()))
    }

    fn join(parts: &[Masked<E>], join: impl Fn(&[Tensor<E>]) -> Tensor<E>) -> Masked<E> {
        let plane = |i: usize| join(&parts.iter().map(|p| p.planes[i].clone()).collect::<Vec<_>>());
        Masked::new(parts[0].party, parts[0].ring, [plane(0), plane(1)])
    }

    /// The additive sharing that this masked one is.
    pub fn to_additive(&self) -> Additive<E> {
        let half = match self.party {
            PartyId::P0 => Vec::new(),
            PartyId::P1 => zip(self.m(), self.own_mask(), E::sub),
            PartyId::P2 => self.planes[1].map(|l| E::ZERO.sub(l)).into_data(),
        };
        Additive::new(self.party, self.shape(), half)
    }
}

/// An additive sharing of a tensor between the evaluators; the helper holds nothing of it.
#[derive(Clone)]
pub struct Additive<E> {
    shape: Vec<usize>,
    half: Vec<E>,
}

impl<E> std::fmt::Debug for Additive<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Additive{:?}", self.shape)
    }
}

impl<E: Element> Additive<E> {
    /// A sharing from this evaluator's half; the helper passes an empty one.
    pub fn new(party: PartyId, shape: impl Into<Vec<usize>>, half: Vec<E>) -> Additive<E> {
        let shape = shape.into();
        let held = if party == PartyId::P0 { 0 } else { shape.iter().product() };
        assert_eq!(half.len(), held, "half of {shape:?}");
        Additive { shape, half }
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This evaluator's half; empty at the helper.
    pub fn half(&self) -> &[E] {
        &self.half
    }

    /// This evaluator's half itself.
    pub fn into_half(self) -> Vec<E> {
        self.half
    }

    /// Sum of equal shapes.
    pub fn add(mut self, other: &Additive<E>) -> Additive<E> {
        assert_eq!(self.shape, other.shape, "shapes differ");
        let half = &mut self.half;
        tercet_ring::simd::run!(|| half.iter_mut().zip(&other.half).for_each(|(a, &b)| *a = a.add(b)));
        self
    }

    /// Adds a masked row to every row; `row` is as long as the last dimension.
    pub fn add_columns(mut self, row: &Masked<E>) -> Additive<E> {
        let row = row.to_additive();
        let width = row.len().max(1);
        if !self.half.is_empty() {
            let half = &mut self.half;
            tercet_ring::simd::run!(|| {
                for line in half.chunks_exact_mut(width) {
                    line.iter_mut().zip(&row.half).for_each(|(a, &b)| *a = a.add(b));
                }
            });
        }
        self
    }

    /// The same elements under another shape.
    pub fn reshape(mut self, shape: impl Into<Vec<usize>>) -> Additive<E> {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), self.len(), "reshape");
        self.shape = shape;
        self
    }
}

/// `f` of pairs.
pub(crate) fn zip<E: Element>(a: &[E], b: &[E], f: impl Fn(E, E) -> E) -> Vec<E> {
    debug_assert_eq!(a.len(), b.len());
    let mut out = vec![E::ZERO; a.len()];
    tercet_ring::simd::run!(|| out.iter_mut().zip(a).zip(b).for_each(|((out, &a), &b)| *out = f(a, b)));
    out
}
