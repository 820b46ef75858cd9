//! Approximations by which suites compute nonlinear functions: trigonometric series and lines on geometric segments.
//! They are public and fitted once, in floating point, wherever a plan is made; their *rounded* coefficients are what
//! parties use, and those travel with the model's numerics so that no two parties fit their own.

use serde::{Deserialize, Serialize};

/// `a_0 + sum_i a_i cos(2 pi h_i x / period) + b_i sin(2 pi h_i x / period)` over harmonics `h_i = 1 + step (i - 1)`, `i` from 1.
///
/// A step of two takes the odd harmonics alone. They are antisymmetric about a quarter of the period (up to the constant), so they
/// suit a function that goes on in a straight line there, as GELU's even part does, with far smaller coefficients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// log2 of the period.
    pub log2_period: u32,
    /// Distance of the harmonics: 1 or 2.
    pub step: u32,
    /// `a_0, a_1, ..`: even part; empty for an odd function.
    pub cosines: Vec<f64>,
    /// `b_1, ..`: odd part; empty for an even function.
    pub sines: Vec<f64>,
}

impl Series {
    /// Fits an even function on `[-edge, edge]`.
    pub fn fit_even(f: impl Fn(f64) -> f64, edge: f64, log2_period: u32, step: u32, terms: usize) -> Series {
        let shape = Series { log2_period, step, cosines: Vec::new(), sines: Vec::new() };
        let basis = |i: usize, x: f64| if i == 0 { 1.0 } else { (shape.frequency(i - 1) * x).cos() };
        Series { cosines: fit(&f, edge, terms + 1, basis), ..shape }
    }

    /// Fits an odd function on `[-edge, edge]`.
    pub fn fit_odd(f: impl Fn(f64) -> f64, edge: f64, log2_period: u32, step: u32, terms: usize) -> Series {
        let shape = Series { log2_period, step, cosines: Vec::new(), sines: Vec::new() };
        let sines = fit(&f, edge, terms, |i, x| (shape.frequency(i) * x).sin());
        Series { sines, ..shape }
    }

    /// Angle that a harmonic (counted from 0) turns by from 0 to 1.
    fn frequency(&self, harmonic: usize) -> f64 {
        std::f64::consts::TAU * self.multiple(harmonic) as f64 / f64::from(1u32 << self.log2_period)
    }

    /// How many times a harmonic (counted from 0) turns in a period.
    pub fn multiple(&self, harmonic: usize) -> usize {
        1 + self.step as usize * harmonic
    }

    /// The constant.
    pub fn constant(&self) -> f64 {
        self.cosines.first().copied().unwrap_or(0.0)
    }

    /// Coefficients of cosine and sine of a harmonic (counted from 0).
    pub fn coefficients(&self, harmonic: usize) -> (f64, f64) {
        let of = |list: &[f64], at: usize| list.get(at).copied().unwrap_or(0.0);
        (of(&self.cosines, harmonic + 1), of(&self.sines, harmonic))
    }

    /// The larger of the two, without sign.
    pub fn size(&self, harmonic: usize) -> f64 {
        let (a, b) = self.coefficients(harmonic);
        a.abs().max(b.abs())
    }

    /// Its value in floating point.
    pub fn at(&self, x: f64) -> f64 {
        let harmonic = |j: usize| {
            let ((a, b), angle) = (self.coefficients(j), self.frequency(j) * x);
            a * angle.cos() + b * angle.sin()
        };
        self.constant() + (0..self.harmonics()).map(harmonic).sum::<f64>()
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
        let worst = |series: &Series, f: &dyn Fn(f64) -> f64, edge: i32| {
            let points = (-100 * edge..=100 * edge).map(|i| f64::from(i) / 100.0);
            points.map(|x| (series.at(x) - f(x)).abs()).fold(0.0, f64::max)
        };
        let even = |x: f64| x / 2.0 * ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh();
        for (step, terms, bound) in [(1, 6, 4e-4), (2, 4, 6e-4), (2, 5, 1.2e-4)] {
            let series = Series::fit_even(even, 4.25, 4, step, terms);
            let error = worst(&series, &even, 4);
            assert!(error < bound, "{terms} terms with step {step}: {error}");
        }
        let odd = Series::fit_odd(f64::tanh, 4.0, 4, 1, 12);
        let error = worst(&odd, &f64::tanh, 4);
        assert!(error < 2e-3, "{error}");
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
