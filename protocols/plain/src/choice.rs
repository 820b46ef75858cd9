//! The choice of a token, and that of experts.

use tercet_core::spec::{ChoiceSpec, RouteSpec, ScaleSpec};

use crate::attention::exponential;
use crate::norm::inverse;
use crate::value::{Value, truncate, wrap};

/// The place of the largest of each row at the scale of the comparisons, of equals the first; `noise`, an element each, at that scale.
pub(crate) fn choose(x: &Value, frac: u32, spec: &ChoiceSpec, noise: Option<&[i64]>) -> Value {
    let coarse = x.truncate(frac.saturating_sub(spec.compare_frac), spec.compare_ring);
    let mut places = Vec::with_capacity(x.rows());
    for (number, row) in coarse.data().chunks(x.cols().max(1)).enumerate() {
        let noise = |at: usize| noise.map_or(0, |noise| noise[number * x.cols() + at]);
        let score = |at: usize| wrap(row[at].wrapping_add(noise(at)), spec.compare_ring);
        let best = (1..row.len()).fold(0, |best, at| if score(at) > score(best) { at } else { best });
        places.push(best as i64);
    }
    Value::new(x.rows(), 1, spec.index_bits, places)
}

/// The softmax over the `top` largest of each row, zero for all others.
pub(crate) fn route(x: &Value, frac: u32, of: &RouteSpec) -> Value {
    let spec = &of.softmax;
    let by = spec.inverse.frac_out - frac;
    let scores = x.map(spec.score_ring, |v| v);
    let mut weights = Vec::with_capacity(x.data().len());
    for (row, chosen) in scores.data().chunks(x.cols().max(1)).zip(chosen(x, of)) {
        let largest = row.iter().copied().max().unwrap_or(0);
        let weight = |at: usize| if chosen.contains(&at) { exponential(largest - row[at], frac, spec) } else { 0 };
        let row: Vec<i64> = (0..row.len()).map(weight).collect();
        let inverse = inverse(row.iter().sum(), &spec.inverse);
        weights.extend(row.iter().map(|&w| truncate(w.wrapping_mul(inverse), by, spec.ring)));
    }
    Value::new(x.rows(), x.cols(), spec.ring, weights)
}

/// The places of the `top` largest of each row, ascending; of equals the first.
pub(crate) fn chosen(x: &Value, spec: &RouteSpec) -> Vec<Vec<usize>> {
    let scores = x.map(spec.softmax.score_ring, |v| v);
    let of_row = |row: &[i64]| -> Vec<usize> {
        let ahead = |at: usize| (0..row.len()).filter(|&j| row[j] > row[at] || (row[j] == row[at] && j < at)).count();
        (0..row.len()).filter(|&at| ahead(at) < spec.top).collect()
    };
    scores.data().chunks(x.cols().max(1)).map(of_row).collect()
}

/// Blocks of columns times a column each.
pub(crate) fn scale_blocks(x: &Value, weights: &Value, spec: &ScaleSpec) -> Value {
    let width = (x.cols() / weights.cols().max(1)).max(1);
    let blocks = x.data().chunks(width).zip(weights.data());
    let products = blocks.flat_map(|(block, &weight)| block.iter().map(move |&v| v.wrapping_mul(weight)));
    Value::new(x.rows(), x.cols(), spec.ring + spec.truncate, products.collect()).truncate(spec.truncate, spec.ring)
}

#[cfg(test)]
mod tests {
    use tercet_core::spec::{AttentionSpec, InverseSpec};

    use super::*;

    #[test]
    fn the_first_of_the_largest_is_chosen_and_noise_counts() {
        let spec = ChoiceSpec { compare_frac: 5, compare_ring: 15, index_bits: 3 };
        let x = Value::new(2, 5, 20, vec![-1000, 5000, 300, 5000, 4999, -70, -9, -5000, -41, -42]);
        assert_eq!(choose(&x, 10, &spec, None).data(), [1, 1]);
        let mut noise = vec![0; 10];
        (noise[4], noise[7]) = (1, 200);
        assert_eq!(choose(&x, 10, &spec, Some(&noise)).data(), [4 - 8, 2], "4 in three bits, signed");
    }

    #[test]
    fn experts_beyond_the_top_weigh_nothing() {
        let softmax = AttentionSpec {
            score_ring: 20,
            exp_frac: 12,
            exp_top_bits: 5,
            exp_guard: (11, 25),
            exp_ring: 32,
            value_ring: 32,
            inverse: InverseSpec::new(1.0, 11, 14, 24, 64, 52, 32),
            normalize_ring: 52,
            ring: 20,
        };
        let x = Value::new(1, 4, 20, vec![1024, 3072, 2048, 3072]);
        let weights = |top: usize| {
            let got = route(&x, 10, &RouteSpec { top, softmax: softmax.clone() });
            got.data().iter().map(|&w| w as f64 / 1024.0).collect::<Vec<_>>()
        };
        let close = |got: &[f64], exact: [f64; 4]| got.iter().zip(exact).all(|(g, e)| (g - e).abs() < 2e-3);
        assert!(close(&weights(1), [0.0, 1.0, 0.0, 0.0]), "{:?}", weights(1));
        assert!(close(&weights(2), [0.0, 0.5, 0.0, 0.5]));
        assert!(close(&weights(3), [0.0, 0.4, 0.2, 0.4]));
        assert!(close(&weights(9), [1.0 / 11.0, 4.0 / 11.0, 2.0 / 11.0, 4.0 / 11.0]));
        let scaled = scale_blocks(
            &Value::new(1, 4, 48, vec![100, 200, 300, 400]),
            &Value::new(1, 2, 32, vec![1024, -512]),
            &ScaleSpec { truncate: 10, ring: 20 },
        );
        assert_eq!(scaled.data(), [100, 200, -150, -200]);
    }
}
