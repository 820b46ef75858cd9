//! Planar tensors: a shape and one row-major plane of lanes.

use crate::Element;

/// A row-major tensor of ring elements. It does not know its ring: that belongs to the sharing above it.
#[derive(Clone, Default)]
pub struct Tensor<E> {
    shape: Vec<usize>,
    data: Vec<E>,
}

/// Shares pass through here: a debug print shows the shape alone.
impl<E> std::fmt::Debug for Tensor<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape)
    }
}

impl<E: Element> Tensor<E> {
    /// A tensor of the given shape over `data`.
    ///
    /// # Panics
    /// Where the shape does not hold exactly `data.len()` elements: a mistake of the caller, never of a peer.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<E>) -> Tensor<E> {
        let shape = shape.into();
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "shape {shape:?} does not hold {} elements",
            data.len()
        );
        Tensor { shape, data }
    }

    /// All zero.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Tensor<E> {
        let shape = shape.into();
        let len = shape.iter().product();
        Tensor { shape, data: vec![E::ZERO; len] }
    }

    /// The shape, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The last dimension; 1 for a scalar.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All dimensions but the last, multiplied.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// The plane.
    pub fn data(&self) -> &[E] {
        &self.data
    }

    /// The plane, to be written.
    pub fn data_mut(&mut self) -> &mut [E] {
        &mut self.data
    }

    /// The plane itself.
    pub fn into_data(self) -> Vec<E> {
        self.data
    }

    /// The same plane under another shape of as many elements.
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Tensor<E> {
        Tensor::new(shape, self.data)
    }

    /// Applies `f` to every element.
    pub fn map<F: Element>(&self, f: impl Fn(E) -> F) -> Tensor<F> {
        // A loop over slices is compiled for the instruction set; a collected iterator often is not.
        let mut data = vec![F::ZERO; self.data.len()];
        crate::simd::run!(|| data.iter_mut().zip(&self.data).for_each(|(out, &v)| *out = f(v)));
        Tensor { shape: self.shape.clone(), data }
    }

    /// Applies `f` to pairs of elements of equal shapes, in place.
    pub fn zip_assign(&mut self, other: &Tensor<E>, f: impl Fn(E, E) -> E) {
        assert_eq!(self.shape, other.shape, "shapes differ");
        crate::simd::run!(|| self.data.iter_mut().zip(&other.data).for_each(|(a, &b)| *a = f(*a, b)));
    }

    /// Sum of equal shapes.
    #[allow(clippy::should_implement_trait, reason = "an operator would hide that shapes must agree")]
    pub fn add(mut self, other: &Tensor<E>) -> Tensor<E> {
        self.zip_assign(other, E::add);
        self
    }

    /// Difference of equal shapes.
    #[allow(clippy::should_implement_trait, reason = "as above")]
    pub fn sub(mut self, other: &Tensor<E>) -> Tensor<E> {
        self.zip_assign(other, E::sub);
        self
    }

    /// Applies `f` to every element and the element of `row` in its column; `row` is as long as the last dimension.
    pub fn zip_columns(&mut self, row: &[E], f: impl Fn(E, E) -> E) {
        assert_eq!(self.width(), row.len(), "row length");
        let width = row.len().max(1);
        crate::simd::run!(|| {
            for line in self.data.chunks_exact_mut(width) {
                line.iter_mut().zip(row).for_each(|(a, &b)| *a = f(*a, b));
            }
        });
    }

    /// Applies `f` to every element and the element of `column` in its row; `column` is as long as there are rows.
    pub fn zip_rows(&mut self, column: &[E], f: impl Fn(E, E) -> E) {
        assert_eq!(self.rows(), column.len(), "column length");
        let width = self.width().max(1);
        crate::simd::run!(|| {
            for (line, &b) in self.data.chunks_exact_mut(width).zip(column) {
                line.iter_mut().for_each(|a| *a = f(*a, b));
            }
        });
    }

    /// Sums over the last dimension: shape `[.., w]` to `[..]`.
    pub fn sum_rows(&self) -> Tensor<E> {
        let width = self.width().max(1);
        let outer = self.shape[..self.shape.len().saturating_sub(1)].to_vec();
        let data = crate::simd::run!(|| {
            self.data.chunks_exact(width).map(|line| line.iter().fold(E::ZERO, |s, &v| s.add(v))).collect()
        });
        Tensor::new(outer, data)
    }

    /// Columns `[from, to)` of the last dimension.
    pub fn columns(&self, from: usize, to: usize) -> Tensor<E> {
        let width = self.width();
        assert!(from <= to && to <= width, "columns {from}..{to} of {width}");
        let mut data = Vec::with_capacity(self.rows() * (to - from));
        for line in self.data.chunks_exact(width.max(1)) {
            data.extend_from_slice(&line[from..to]);
        }
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("a tensor with columns has a last dimension") = to - from;
        Tensor::new(shape, data)
    }

    /// Parts side by side along the last dimension; all other dimensions agree.
    pub fn join_columns(parts: &[Tensor<E>]) -> Tensor<E> {
        let rows = parts[0].rows();
        let width: usize = parts.iter().map(|p| p.width()).sum();
        let mut data = Vec::with_capacity(rows * width);
        for row in 0..rows {
            for part in parts {
                let w = part.width();
                data.extend_from_slice(&part.data[row * w..(row + 1) * w]);
            }
        }
        let mut shape = parts[0].shape.clone();
        *shape.last_mut().expect("a tensor with columns has a last dimension") = width;
        Tensor::new(shape, data)
    }

    /// Parts one after the other along a new first dimension of flat planes: the result has shape `[total]`.
    pub fn flatten(parts: &[&Tensor<E>]) -> Tensor<E> {
        let mut data = Vec::with_capacity(parts.iter().map(|p| p.len()).sum());
        for part in parts {
            data.extend_from_slice(&part.data);
        }
        Tensor::new([data.len()], data)
    }

    /// Swaps dimensions 1 and 2 of `[a, b, c, d]`: what turns rows of heads into heads of rows.
    pub fn swap_middle(&self) -> Tensor<E> {
        let [a, b, c, d] = self.shape[..] else { panic!("swap_middle takes four dimensions, not {:?}", self.shape) };
        let mut data = Vec::with_capacity(self.len());
        for i in 0..a {
            for k in 0..c {
                for j in 0..b {
                    let at = ((i * b + j) * c + k) * d;
                    data.extend_from_slice(&self.data[at..at + d]);
                }
            }
        }
        Tensor::new([a, c, b, d], data)
    }

    /// Transposes the last two dimensions of `[.., r, c]`.
    pub fn transpose(&self) -> Tensor<E> {
        let mut shape = self.shape.clone();
        let n = shape.len();
        assert!(n >= 2, "transpose takes a matrix");
        let (rows, cols) = (shape[n - 2], shape[n - 1]);
        shape.swap(n - 2, n - 1);
        let mut data = vec![E::ZERO; self.data.len()];
        if rows * cols > 0 {
            const TILE: usize = 16;
            for (from, to) in self.data.chunks_exact(rows * cols).zip(data.chunks_exact_mut(rows * cols)) {
                for r0 in (0..rows).step_by(TILE) {
                    for c0 in (0..cols).step_by(TILE) {
                        for r in r0..rows.min(r0 + TILE) {
                            for c in c0..cols.min(c0 + TILE) {
                                to[c * rows + r] = from[r * cols + c];
                            }
                        }
                    }
                }
            }
        }
        Tensor::new(shape, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Tensor<u32> {
        Tensor::new(shape, (0..shape.iter().product::<usize>() as u32).collect())
    }

    #[test]
    fn shapes_and_arithmetic() {
        let t = counted(&[2, 3, 4]);
        assert_eq!((t.rows(), t.width(), t.len(), t.is_empty()), (6, 4, 24, false));
        assert_eq!(t.clone().add(&t).data()[23], 46);
        assert_eq!(counted(&[3]).sub(&Tensor::new([3], vec![1, 1, 1])).into_data(), [u32::MAX, 0, 1]);
        assert_eq!(t.map(|v| u64::from(v) << 33).data()[1], 1 << 33);
        assert_eq!(counted(&[2, 2]).sum_rows().data(), [1, 5]);
        let mut t = counted(&[2, 2]);
        t.zip_columns(&[10, 20], u32::add);
        assert_eq!(t.data(), [10, 21, 12, 23]);
        t.zip_rows(&[1, 2], u32::mul);
        assert_eq!(t.data(), [10, 21, 24, 46]);
        assert_eq!(format!("{t:?}"), "Tensor[2, 2]", "no value");
        assert_eq!(Tensor::<u64>::zeros([0, 3]).transpose().shape(), [3, 0]);
    }

    #[test]
    fn columns_come_apart_and_together() {
        let t = counted(&[5, 7]);
        let joined = Tensor::join_columns(&[t.columns(0, 3), t.columns(3, 3), t.columns(3, 7)]);
        assert_eq!((joined.shape(), joined.data()), (t.shape(), t.data()));
        assert_eq!(Tensor::flatten(&[&t, &t.columns(6, 7)]).data()[35..], [6, 13, 20, 27, 34]);
    }

    #[test]
    fn transposing_twice_is_nothing() {
        for shape in [&[1, 1][..], &[17, 33], &[3, 16, 40], &[2, 1, 5]] {
            let t = counted(shape);
            let transposed = t.transpose();
            let n = shape.len();
            let (r, c) = (shape[n - 2], shape[n - 1]);
            assert_eq!(transposed.data()[r * (c - 1)..r * c][r - 1], (r * c - 1) as u32);
            assert_eq!(transposed.transpose().data(), t.data());
        }
        assert_eq!(counted(&[2, 3]).transpose().data(), [0, 3, 1, 4, 2, 5]);
        let t = counted(&[2, 3, 4, 5]);
        let swapped = t.swap_middle();
        assert_eq!(swapped.shape(), [2, 4, 3, 5]);
        assert_eq!(swapped.data()[5..10], t.data()[20..25]);
        assert_eq!(swapped.swap_middle().data(), t.data());
    }

    #[test]
    #[should_panic(expected = "does not hold")]
    fn a_shape_of_another_length_is_refused() {
        Tensor::new([2, 2], vec![0u32; 5]);
    }
}
