//! A figure for how uniform received bytes look.

/// Pearson's statistic of the byte histogram, as standard deviations from its mean under uniformity (255 degrees of
/// freedom). Uniform bytes stay below 5 except once in millions of samples; a byte plane with one bit of bias in a thousand
/// leaves that far behind at a megabyte.
pub fn chi_square_sigmas(bytes: &[u8]) -> f64 {
    let mut counts = [0u64; 256];
    bytes.iter().for_each(|&b| counts[b as usize] += 1);
    let expected = bytes.len() as f64 / 256.0;
    let statistic: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
    (statistic - 255.0) / (2.0f64 * 255.0).sqrt()
}

/// Fails where `bytes` are too few to judge or do not look uniform.
pub fn assert_uniform(bytes: &[u8], what: &str) {
    assert!(bytes.len() >= 16_384, "{what}: {} bytes are too few to judge", bytes.len());
    let sigmas = chi_square_sigmas(bytes);
    assert!(sigmas.abs() < 6.0, "{what}: {sigmas:.1} sigmas from uniform over {} bytes", bytes.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    #[test]
    fn tells_uniform_from_biased() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut bytes: Vec<u8> = (0..65_536).map(|_| rng.random()).collect();
        assert_uniform(&bytes, "random");
        bytes.iter_mut().step_by(20).for_each(|b| *b &= 0x7f);
        assert!(chi_square_sigmas(&bytes) > 6.0);
    }
}
