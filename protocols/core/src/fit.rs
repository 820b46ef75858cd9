//! Approximations by which suites compute nonlinear functions: trigonometric series and lines on geometric segments.
//! They are public and fitted once, in floating point, wherever a plan is made; their *rounded* coefficients are what
//! parties use, and those travel with the model's numerics so that no two parties fit their own.

use serde::{Deserialize, Serialize};

/// `sum_j a_j cos(2 pi j x / period) + b_j sin(2 pi j x / period)`, `j` from 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// log2 of the period.
    pub log2_period: u32,
    /// `a_0, a_1, ..`: even part; empty for an odd function.
    pub cosines: Vec<f64>,
    /// `b_1, ..`: odd part; empty for an even function.
    pub sines: Vec<f64>,
}

impl Series {
    /// Fits an even function on `[-edge, edge]`.
    pub fn fit_even(f: impl Fn(f64) -> f64, edge: f64, log2_period: u32, terms: usize) -> Series {
        let basis = |j: usize, x: f64| (std::f64::consts::TAU * j as f64 * x / f64::from(1u32 << log2_period)).cos();
        let cosines = fit(&f, edge, terms + 1, basis);
        Series { log2_period, cosines, sines: Vec::new() }
    }

    /// Fits an odd function on `[-edge, edge]`.
    pub fn fit_odd(f: impl Fn(f64) -> f64, edge: f64, log2_period: u32, terms: usize) -> Series {
        let period = f64::from(1u32 << log2_period);
        let basis = |j: usize, x: f64| (std::f64::consts::TAU * (j + 1) as f64 * x / period).sin();
        let sines = fit(&f, edge, terms, basis);
        Series { log2_period, cosines: Vec::new(), sines }
    }

    /// Its value in floating point.
    pub fn at(&self, x: f64) -> f64 {
        let turns = x / f64::from(1u32 << self.log2_period);
        let even = self.cosines.iter().enumerate().map(|(j, a)| a * (std::f64::consts::TAU * j as f64 * turns).cos());
        let odd =
            self.sines.iter().enumerate().map(|(j, b)| b * (std::f64::consts::TAU * (j + 1) as f64 * turns).sin());
        even.chain(odd).sum()
    }

    /// Terms beyond the constant.
    pub fn harmonics(&self) -> usize {
        self.cosines.len().saturating_sub(1).max(self.sines.len())
    }
}

/// Reweighted least squares (Lawson's iteration towards the minimax fit), ridge-stabilised.
fn fit(f: &impl Fn(f64) -> f64, edge: f64, terms: usize, basis: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    const POINTS: usize = 2001;
    const ROUNDS: usize = 60;
    const RIDGE: f64 = 1e-7;
    let points: Vec<f64> = (0..POINTS).map(|i| edge * (2.0 * i as f64 / (POINTS - 1) as f64 - 1.0)).collect();
    let rows: Vec<Vec<f64>> = points.iter().map(|&x| (0..terms).map(|j| basis(j, x)).collect()).collect();
    let targets: Vec<f64> = points.iter().map(|&x| f(x)).collect();
    let mut weights = vec![1.0; POINTS];
    let mut coefficients = vec![0.0; terms];
    for _ in 0..ROUNDS {
        let mut normal = vec![vec![0.0; terms + 1]; terms];
        for ((row, &y), &w) in rows.iter().zip(&targets).zip(&weights) {
            for i in 0..terms {
                for j in 0..terms {
                    normal[i][j] += w * row[i] * row[j];
                }
                normal[i][terms] += w * row[i] * y;
            }
        }
        (0..terms).for_each(|i| normal[i][i] += RIDGE);
        coefficients = solve(normal);
        let error =
            |(row, y): (&Vec<f64>, &f64)| (row.iter().zip(&coefficients).map(|(a, b)| a * b).sum::<f64>() - y).abs();
        let errors: Vec<f64> = rows.iter().zip(&targets).map(error).collect();
        let largest = errors.iter().fold(1e-300f64, |a, &b| a.max(b));
        weights.iter_mut().zip(&errors).for_each(|(w, e)| *w *= 0.7 + 0.9 * e / largest);
        let mean = weights.iter().sum::<f64>() / POINTS as f64;
        weights.iter_mut().for_each(|w| *w /= mean);
    }
    coefficients
}

/// Gaussian elimination with partial pivoting on an augmented matrix.
fn solve(mut a: Vec<Vec<f64>>) -> Vec<f64> {
    let n = a.len();
    for col in 0..n {
        let pivot = (col..n).max_by(|&i, &j| a[i][col].abs().total_cmp(&a[j][col].abs())).unwrap_or(col);
        a.swap(col, pivot);
        for row in col + 1..n {
            let factor = a[row][col] / a[col][col];
            let (above, below) = a.split_at_mut(row);
            below[0][col..].iter_mut().zip(&above[col][col..]).for_each(|(v, p)| *v -= factor * p);
        }
    }
    let mut x = vec![0.0; n];
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|j| a[row][j] * x[j]).sum();
        x[row] = (a[row][n] - known) / a[row][row];
    }
    x
}

/// `v^-power` on `[2^low, 2^high)` as lines on geometric segments: `a_0 + b_0 v`, and at every further edge the line changes
/// by `(da, db)`. All of it is scaled by `2^scale` and rounded; the offsets are taken from the *rounded* slopes, so that
/// rounding a slope costs only its effect within one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments {
    /// The inner edges, ascending; the first segment starts at `2^low`.
    pub edges: Vec<i64>,
    /// `(a_0, b_0)`, then `(da, db)` for every edge.
    pub lines: Vec<(i64, i64)>,
    /// Scale of the result.
    pub scale: u32,
}

impl Segments {
    /// Minimax lines, `per_octave` segments to every doubling of `v`.
    pub fn inverse_power(power: f64, low: u32, high: u32, per_octave: u32, scale: u32) -> Segments {
        let count = (high - low) * per_octave;
        let edge = |i: u32| (f64::from(low) + f64::from(i) / f64::from(per_octave)).exp2().round();
        let unit = f64::from(scale).exp2();
        let lines: Vec<(i64, i64)> = (0..count)
            .map(|i| {
                let (p, q) = (edge(i), edge(i + 1));
                let f = |v: f64| v.powf(-power);
                let slope = ((f(q) - f(p)) / (q - p) * unit).round();
                // The tangent parallel to the chord touches here; the line runs half way between the two.
                let touch = (-slope / unit / power).powf(-1.0 / (power + 1.0)).clamp(p, q);
                let chord_gap = f(p) + slope / unit * (touch - p) - f(touch);
                (((f(p) - chord_gap / 2.0) * unit - slope * p).round() as i64, slope as i64)
            })
            .collect();
        let change = |pair: &[(i64, i64)]| (pair[1].0.wrapping_sub(pair[0].0), pair[1].1.wrapping_sub(pair[0].1));
        let lines = lines[..1].iter().copied().chain(lines.windows(2).map(change)).collect();
        Segments { edges: (1..count).map(|i| edge(i) as i64).collect(), lines, scale }
    }

    /// The scaled value at `v`, as the parties compute it.
    pub fn at(&self, v: i64) -> i64 {
        let passed = 1 + self.edges.iter().take_while(|&&e| v >= e).count();
        self.lines[..passed].iter().fold(0i64, |sum, &(a, b)| sum.wrapping_add(a).wrapping_add(b.wrapping_mul(v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_fits_gelu_to_its_stated_error() {
        let even = |x: f64| x / 2.0 * (x / 2.0).tanh();
        let series = Series::fit_even(even, 4.0, 4, 6);
        let worst =
            (-400..=400).map(|i| f64::from(i) / 100.0).map(|x| (series.at(x) - even(x)).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-3, "{worst}");
        let odd = Series::fit_odd(f64::tanh, 4.0, 4, 12);
        let worst =
            (-400..=400).map(|i| f64::from(i) / 100.0).map(|x| (odd.at(x) - x.tanh()).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-3, "{worst}");
    }

    #[test]
    fn segments_follow_the_inverse_root() {
        let segments = Segments::inverse_power(0.5, 12, 34, 5, 60);
        let mut worst = 0.0f64;
        for i in 0..2200 {
            let v = (12.0 + f64::from(i) / 100.0).exp2();
            let got = segments.at(v.round() as i64) as f64 / 60f64.exp2();
            worst = worst.max((got * v.round().sqrt() - 1.0).abs());
        }
        assert!(worst < 1.1e-3, "{worst}");
    }
}
