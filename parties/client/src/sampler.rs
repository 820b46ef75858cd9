//! Choosing a token from scores, in the client: in the order of the common library, so that the same options mean the same.

use tercet_model::Generation;
use tercet_ring::{Prg, Seed};
use zeroize::Zeroizing;

use crate::Error;

/// How tokens are chosen from scores. [`Sampling::GREEDY`] takes the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// What scores are divided by before the softmax; 0 takes the likeliest token.
    pub temperature: f64,
    /// Draw from only so many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Draw from only the likeliest tokens that together have this probability: above 0, at most 1.
    pub top_p: f64,
    /// What positive scores of tokens that already stand in the text are divided by, and negative ones multiplied; 1 for
    /// nothing.
    pub repetition_penalty: f64,
    /// The same tokens again for the same scores; otherwise every draw is fresh. Of tokens that the
    /// nodes draw inside, this holds only where the model's owner allows it
    /// ([`tercet_model::Generation::reproducible`]); else P0 adds a seed of its own.
    pub seed: Option<u64>,
}

impl Sampling {
    /// The likeliest token.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: None, top_p: 1.0, repetition_penalty: 1.0, seed: None };

    /// As the makers of a model mean it to be sampled.
    pub fn of(generation: &Generation) -> Sampling {
        Sampling {
            temperature: if generation.sample { generation.temperature } else { 0.0 },
            top_k: generation.top_k,
            top_p: generation.top_p,
            repetition_penalty: generation.repetition_penalty,
            seed: None,
        }
    }

    /// Whether the choice depends on nothing but scores and noise of this temperature, so that nodes can make it.
    pub(crate) fn is_plain(&self) -> bool {
        self.top_k.is_none() && self.top_p == 1.0 && self.repetition_penalty == 1.0
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Misuse(what.into()));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("a temperature is a number from 0 on");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top-p is above 0 and at most 1");
        }
        let largest = f64::from(f32::MAX);
        let penalised = [largest / self.repetition_penalty, largest * self.repetition_penalty];
        if !(self.repetition_penalty > 0.0 && penalised.iter().all(|score| score.is_finite())) {
            return wrong("a repetition penalty is above 0, and leaves every score finite");
        }
        if self.top_k == Some(0) {
            return wrong("top-k is at least 1");
        }
        Ok(())
    }

    /// A seed for this purpose: the caller's, or a fresh one.
    pub(crate) fn seed_for(&self, label: &str, context: &[u8]) -> Seed {
        match self.seed {
            Some(number) => {
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&number.to_le_bytes());
                Seed::from_bytes(bytes).derive(label, context)
            }
            None => Seed::random(),
        }
    }
}

/// Chooses token after token.
pub(crate) struct Sampler {
    sampling: Sampling,
    noise: Prg,
    drawn: u64,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Sampler {
        let noise = Prg::new(&sampling.seed_for("tercet sampler v1", &[]));
        Sampler { sampling, noise, drawn: 0 }
    }

    /// The next token, after those of `text`: penalty, temperature, top-k, top-p, then a draw.
    pub(crate) fn choose(&mut self, scores: &[f32], text: &[u32]) -> u32 {
        let mut scores: Zeroizing<Vec<f64>> = Zeroizing::new(scores.iter().map(|&score| f64::from(score)).collect());
        self.penalise(&mut scores, text);
        if self.sampling.temperature == 0.0 {
            return likeliest(&scores);
        }
        // Below the highest, which no temperature moves: what is far below may become infinitely so.
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|score| *score = (*score - highest) / self.sampling.temperature);
        let mut places: Zeroizing<Vec<u32>> = Zeroizing::new((0..scores.len() as u32).collect());
        places.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
        if let Some(most) = self.sampling.top_k.filter(|most| *most < places.len()) {
            // Equals of the last one stay.
            let least = scores[places[most - 1] as usize];
            let kept = places.iter().take_while(|&&place| scores[place as usize] >= least).count();
            places.truncate(kept);
        }
        let mut weights: Zeroizing<Vec<f64>> =
            Zeroizing::new(places.iter().map(|&place| scores[place as usize].exp()).collect());
        if self.sampling.top_p < 1.0 {
            let enough = self.sampling.top_p * weights.iter().sum::<f64>();
            let before = weights.iter().scan(0.0, |sum, weight| {
                let before = *sum;
                *sum += weight;
                Some(before)
            });
            let kept = before.take_while(|before| *before < enough).count().max(1);
            weights.truncate(kept);
        }
        let mut left = self.draw() * weights.iter().sum::<f64>();
        for (place, weight) in places.iter().zip(weights.iter()) {
            if left < *weight {
                return *place;
            }
            left -= weight;
        }
        // The sum was rounded up: the last one that can come.
        places[weights.len() - 1]
    }

    fn penalise(&self, scores: &mut [f64], text: &[u32]) {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let mut seen = Zeroizing::new(text.to_vec());
        seen.sort_unstable();
        seen.dedup();
        for &token in seen.iter() {
            if let Some(score) = scores.get_mut(token as usize) {
                *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
            }
        }
    }

    /// Uniform in `[0, 1)`.
    fn draw(&mut self) -> f64 {
        let mut word = [0u64];
        self.noise.fill(0, self.drawn, &mut word);
        self.drawn += 1;
        (word[0] >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The place of the largest; of equals the first.
fn likeliest(scores: &[f64]) -> u32 {
    (1..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best }) as u32
}

/// The natural logarithm of a token's share in the softmax of scores.
pub(crate) fn log_probability(scores: &[f32], token: u32) -> f64 {
    let highest = scores.iter().fold(f64::NEG_INFINITY, |most, &score| most.max(score.into()));
    let sum: f64 = scores.iter().map(|&score| (f64::from(score) - highest).exp()).sum();
    f64::from(scores[token as usize]) - highest - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 5] = [1.0, 3.0, -2.0, 2.0, 0.0];

    fn drawn(sampling: &Sampling, text: &[u32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling.clone());
        (0..count).map(|_| sampler.choose(&SCORES, text)).collect()
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, seed: Some(7), ..Sampling::GREEDY }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(drawn(&Sampling::GREEDY, &[], 2), [1, 1]);
        assert_eq!(Sampler::new(Sampling::GREEDY).choose(&[2.0, 5.0, 5.0], &[]), 1);
    }

    #[test]
    fn penalties_hit_what_stands_in_the_text_once() {
        let penal = |penalty| Sampling { repetition_penalty: penalty, ..Sampling::GREEDY };
        assert_eq!(drawn(&penal(1.4), &[1, 1, 1], 1), [1], "3 / 1.4 is above 2");
        assert_eq!(drawn(&penal(1.6), &[1], 1), [3]);
        assert_eq!(drawn(&penal(1.6), &[1, 3, 99], 1), [1], "both are divided; an unknown token is none");
        // A negative score sinks.
        let mut sampler = Sampler::new(penal(3.0));
        assert_eq!(sampler.choose(&[-1.0, -2.0], &[0]), 1);
    }

    #[test]
    fn draws_follow_the_softmax_and_the_seed() {
        const DRAWS: usize = 20_000;
        let all = drawn(&warm(), &[], DRAWS);
        assert_eq!(all, drawn(&warm(), &[], DRAWS));
        assert_ne!(all, drawn(&Sampling { seed: Some(8), ..warm() }, &[], DRAWS));
        let sum: f64 = SCORES.iter().map(|&score| f64::from(score).exp()).sum();
        for (token, &score) in SCORES.iter().enumerate() {
            let expected = f64::from(score).exp() / sum;
            let found = all.iter().filter(|&&t| t as usize == token).count() as f64 / DRAWS as f64;
            // Six standard deviations.
            let bound = 6.0 * (expected * (1.0 - expected) / DRAWS as f64).sqrt();
            assert!((found - expected).abs() < bound, "{token}: {found} for {expected}");
            assert!((log_probability(&SCORES, token as u32) - expected.ln()).abs() < 1e-12);
        }
        let hot = drawn(&Sampling { temperature: 100.0, ..warm() }, &[], 1000);
        assert!((0..5).all(|token| hot.iter().filter(|&&t| t == token).count() > 100));
    }

    #[test]
    fn only_the_likeliest_are_drawn_from() {
        let found = |sampling: Sampling| -> Vec<u32> {
            let mut found = drawn(&sampling, &[], 2000);
            found.sort_unstable();
            found.dedup();
            found
        };
        assert_eq!(found(Sampling { top_k: Some(2), ..warm() }), [1, 3]);
        assert_eq!(found(Sampling { top_k: Some(99), ..warm() }), [0, 1, 2, 3, 4]);
        // Shares of the softmax: 0.64, 0.24, 0.09, 0.03, 0.004.
        assert_eq!(found(Sampling { top_p: 0.5, ..warm() }), [1]);
        assert_eq!(found(Sampling { top_p: 0.7, ..warm() }), [1, 3]);
        assert_eq!(found(Sampling { top_p: 0.9, ..warm() }), [0, 1, 3]);
        // Top-p is taken of what top-k has left: 0.73 and 0.27.
        assert_eq!(found(Sampling { top_k: Some(2), top_p: 0.72, ..warm() }), [1]);
        let mut equal = Sampler::new(Sampling { top_k: Some(1), ..warm() });
        let both: std::collections::BTreeSet<u32> = (0..100).map(|_| equal.choose(&[1.0, 1.0, 0.0], &[])).collect();
        assert_eq!(both.into_iter().collect::<Vec<_>>(), [0, 1], "equals of the last one stay");
    }

    #[test]
    fn the_smallest_temperature_draws_the_likeliest() {
        for temperature in [5e-324, 1e-310, f64::MIN_POSITIVE, 1e-300, 1e-9] {
            for sampling in [
                Sampling { temperature, ..warm() },
                Sampling { temperature, top_k: Some(3), ..warm() },
                Sampling { temperature, top_p: 0.5, repetition_penalty: 1e-200, ..warm() },
            ] {
                assert!(drawn(&sampling, &[2], 20).iter().all(|token| *token == 1), "{sampling:?}");
            }
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        assert!(warm().check().is_ok());
        for bad in [
            Sampling { temperature: -1.0, ..warm() },
            Sampling { temperature: f64::NAN, ..warm() },
            Sampling { top_k: Some(0), ..warm() },
            Sampling { top_p: 0.0, ..warm() },
            Sampling { top_p: 1.1, ..warm() },
            Sampling { repetition_penalty: 0.0, ..warm() },
            Sampling { repetition_penalty: 1e-308, ..warm() },
            Sampling { repetition_penalty: f64::MAX, ..warm() },
            Sampling { repetition_penalty: f64::NAN, ..warm() },
        ] {
            assert!(matches!(bad.check(), Err(Error::Misuse(_))), "{bad:?}");
        }
    }
}
