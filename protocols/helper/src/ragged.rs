//! Rows of different lengths, one after the other in a flat tensor: what attention has of scores, each query of which sees as
//! many keys as came before it. Whatever is done to elements alike is done to all of them at once, and nothing is padded.

use tercet_ring::{Element, Tensor, simd};

use crate::masked::Masked;

/// The lengths of the rows. Public.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ragged {
    lengths: Vec<usize>,
}

impl Ragged {
    /// Rows of these lengths.
    pub fn new(lengths: Vec<usize>) -> Ragged {
        Ragged { lengths }
    }

    /// The lengths, row by row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of each row: `[rows]`.
    pub fn sums<E: Element>(&self, x: &Masked<E>) -> Masked<E> {
        assert_eq!(x.len(), self.len(), "rows of these lengths");
        x.each(x.ring(), |plane| {
            let mut out = Vec::with_capacity(self.rows());
            simd::run!(|| {
                let mut rest = plane.data();
                for &length in &self.lengths {
                    let row = rest.split_off(..length).unwrap_or_default();
                    out.push(row.iter().fold(E::ZERO, |sum, &v| sum.add(v)));
                }
            });
            Tensor::new([self.rows()], out)
        })
    }

    /// The element of `column` of a row, less each of the row.
    pub fn below<E: Element>(&self, column: &Masked<E>, mut x: Masked<E>) -> Masked<E> {
        assert_eq!((x.len(), column.len()), (self.len(), self.rows()), "rows of these lengths");
        assert_eq!(x.ring(), column.ring(), "rings differ");
        for (plane, column) in x.planes_mut().iter_mut().zip(column.planes()) {
            simd::run!(|| {
                let mut rest = plane.data_mut();
                for (&length, &top) in self.lengths.iter().zip(column.data()) {
                    let row = rest.split_off_mut(..length).unwrap_or_default();
                    row.iter_mut().for_each(|v| *v = top.sub(*v));
                }
            });
        }
        x
    }
}
