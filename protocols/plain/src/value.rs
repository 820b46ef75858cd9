//! Matrices of plain integers, each in a ring: where the ring wraps, they wrap.

use tercet_ring::{Element, Pool, matmul};

/// A matrix over `Z_2^ring`, its elements as the representatives in `[-2^(ring-1), 2^(ring-1))`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    rows: usize,
    cols: usize,
    ring: u32,
    data: Vec<i64>,
}

/// The representative of `v` in `[-2^(ring-1), 2^(ring-1))`; `1 <= ring <= 64`.
#[inline(always)]
pub(crate) fn wrap(v: i64, ring: u32) -> i64 {
    (v as u64).signed(ring)
}

/// `v / 2^by`, to nearest, in `Z_2^ring`. Only the low `ring + by <= 64` bits of `v` matter.
#[inline(always)]
pub(crate) fn truncate(v: i64, by: u32, ring: u32) -> i64 {
    let half = if by == 0 { 0 } else { 1i64 << (by - 1) };
    wrap(v.wrapping_add(half) >> by, ring)
}

impl Value {
    /// A matrix of integers, reduced to the ring.
    ///
    /// # Panics
    /// Where `data` does not hold `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, ring: u32, mut data: Vec<i64>) -> Value {
        assert_eq!(data.len(), rows * cols, "a matrix [{rows}, {cols}]");
        data.iter_mut().for_each(|v| *v = wrap(*v, ring));
        Value { rows, cols, ring, data }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The `k` of `Z_2^k`.
    pub fn ring(&self) -> u32 {
        self.ring
    }

    /// The elements, row-major.
    pub fn data(&self) -> &[i64] {
        &self.data
    }

    /// A row.
    pub(crate) fn row(&self, at: usize) -> &[i64] {
        &self.data[at * self.cols..(at + 1) * self.cols]
    }

    /// `f` of every element, in another ring.
    pub(crate) fn map(&self, ring: u32, f: impl Fn(i64) -> i64) -> Value {
        Value::new(self.rows, self.cols, ring, self.data.iter().map(|&v| f(v)).collect())
    }

    /// `f` of every element and the one in its column of `row`.
    pub(crate) fn with_row(&self, row: &[i64], f: impl Fn(i64, i64) -> i64) -> Value {
        assert_eq!(row.len(), self.cols, "row length");
        let data = self.data.chunks(self.cols.max(1)).flat_map(|line| line.iter().zip(row).map(|(&v, &r)| f(v, r)));
        Value::new(self.rows, self.cols, self.ring, data.collect())
    }

    /// Sum of equal shapes in one ring.
    pub(crate) fn add(&self, other: &Value) -> Value {
        assert_eq!((self.rows, self.cols, self.ring), (other.rows, other.cols, other.ring), "sum of unlike values");
        let data = self.data.iter().zip(&other.data).map(|(a, b)| a.wrapping_add(*b)).collect();
        Value::new(self.rows, self.cols, self.ring, data)
    }

    /// The same integers in a ring at least as wide; free where it is the same.
    pub(crate) fn widen(&self, ring: u32) -> Value {
        Value { ring, ..self.map(ring, |v| v) }
    }

    /// `x / 2^by` to nearest, in `Z_2^ring`.
    pub(crate) fn truncate(&self, by: u32, ring: u32) -> Value {
        self.map(ring, |v| truncate(v, by, ring))
    }

    /// `x y` in `Z_2^ring`, with `y: [self.cols, cols]` row-major.
    pub(crate) fn product(&self, y: &[i64], cols: usize, ring: u32) -> Value {
        let mut out = vec![0i64; self.rows * cols];
        let (a, b) = (bytemuck::cast_slice::<i64, u64>(&self.data), bytemuck::cast_slice::<i64, u64>(y));
        let c = bytemuck::cast_slice_mut::<i64, u64>(&mut out);
        matmul::matmul(&Pool::default(), a, b, c, self.rows, self.cols, cols, false);
        Value::new(self.rows, cols, ring, out)
    }

    /// Columns `[from, from + count)` of rows `[top, top + rows)`.
    pub(crate) fn block(&self, top: usize, rows: usize, from: usize, count: usize) -> Value {
        let data = (top..top + rows).flat_map(|r| self.row(r)[from..from + count].iter().copied()).collect();
        Value { rows, cols: count, ring: self.ring, data }
    }

    /// Rows and columns exchanged.
    pub(crate) fn transpose(&self) -> Value {
        let data = (0..self.cols).flat_map(|c| (0..self.rows).map(move |r| self.data[r * self.cols + c])).collect();
        Value { rows: self.cols, cols: self.rows, ring: self.ring, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_where_the_ring_does() {
        assert_eq!(Value::new(1, 4, 8, vec![127, 128, -129, 256]).data(), [127, -128, 127, 0]);
        assert_eq!(wrap(i64::MIN, 64), i64::MIN);
        assert_eq!(wrap(1 << 40, 40), 0);
        let x = Value::new(1, 2, 64, vec![i64::MAX, 2]);
        assert_eq!(x.product(&[2, 3], 1, 64).data(), [4], "2 (2^63 - 1) + 6, modulo 2^64");
        assert_eq!(x.product(&[1, 1], 1, 8).data(), [1]);
    }

    #[test]
    fn truncation_rounds_to_nearest() {
        for (v, by, expected) in
            [(7, 2, 2), (6, 2, 2), (5, 2, 1), (-5, 2, -1), (-7, 2, -2), (9, 0, 9), (1 << 20, 12, 256)]
        {
            assert_eq!(truncate(v, by, 20), expected, "{v} by {by}");
        }
        assert_eq!(truncate(1 << 31, 12, 20), -(1 << 19), "the wrap of 32 bits is the wrap of 20");
        assert_eq!(truncate(i64::MAX, 10, 54), i64::MIN >> 10, "rounding up at the end of 64 bits");
    }

    #[test]
    fn blocks_and_transposes() {
        let x = Value::new(3, 4, 32, (0..12).collect());
        assert_eq!(x.block(1, 2, 1, 2).data(), [5, 6, 9, 10]);
        assert_eq!(x.block(0, 2, 0, 2).transpose().data(), [0, 4, 1, 5]);
    }
}
