//! What this machine's vector units do at most: loops over registers alone, which benches and predictions hold the
//! kernels against. A clock and a count of units would not tell: clocks move, and some machines run a 512-bit
//! instruction in two halves.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use crate::simd::Isa;

/// Performs about `steps` times as many multiply-adds modulo the lane (`bits`: 32 or 64) as a register file holds, each
/// one instruction to multiply and one to add, in the instruction set in use. Says how many it performed, or none where
/// that set does not multiply the lane.
pub fn multiply_adds(bits: u32, steps: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the machine has the instruction set in use.
    return unsafe {
        match (Isa::current(), bits) {
            (Isa::Avx512, 32) => Some(x86::avx512_u32(steps)),
            (Isa::Avx512, 64) => Some(x86::avx512_u64(steps)),
            (Isa::Avx2, 32) => Some(x86::avx2_u32(steps)),
            _ => None,
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (bits, steps);
        None
    }
}

/// Performs the rounds of AES-128 on blocks in registers, on 512-bit vectors. Says how many bytes' worth, or none where
/// the machine has no such instruction.
pub fn aes_bytes(steps: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if Isa::current() == Isa::Avx512 && is_x86_feature_detected!("vaes") {
        // SAFETY: the machine has the instructions.
        return Some(unsafe { x86::aes(steps) });
    }
    let _ = steps;
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent chains of products and sums.
    const CHAINS: usize = 16;
    /// Rounds of AES-128 a block.
    const ROUNDS: usize = 10;

    macro_rules! chains {
        ($name:ident, $features:literal, $register:ident, $chains:expr, $block:literal, [$($i:literal)*], $lane:ty,
         $splat:ident, $multiply:ident, $add:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(steps: usize) -> usize {
                let (factor, term) = ($splat(black_box(0x2545_f491)), $splat(black_box(0x1357)));
                let mut sums: [_; $chains] = std::array::from_fn(|i| $splat(black_box(i as $lane)));
                for _ in 0..steps {
                    for block in sums.as_chunks_mut::<$block>().0 {
                        // All products, then all sums: machines that run a 512-bit instruction in two halves lose a
                        // third of their rate where the two kinds take turns. The compiler would mix them.
                        let mut products = block.map(|sum| $multiply(sum, factor));
                        // SAFETY: no instruction.
                        unsafe {
                            asm!(
                                concat!("/*", $(" {", $i, "}",)* " */"),
                                $(inout($register) products[$i],)*
                                options(pure, nomem, nostack, preserves_flags)
                            )
                        };
                        block.iter_mut().zip(products).for_each(|(sum, product)| *sum = $add(product, term));
                    }
                }
                black_box(sums);
                steps * size_of_val(&sums) / size_of::<$lane>()
            }
        };
    }
    chains!(avx512_u32, "avx512f", zmm_reg, CHAINS, 8, [0 1 2 3 4 5 6 7], i32,
        _mm512_set1_epi32, _mm512_mullo_epi32, _mm512_add_epi32);
    chains!(avx512_u64, "avx512f,avx512dq", zmm_reg, CHAINS, 8, [0 1 2 3 4 5 6 7], i64,
        _mm512_set1_epi64, _mm512_mullo_epi64, _mm512_add_epi64);
    chains!(avx2_u32, "avx2", ymm_reg, 8, 4, [0 1 2 3], i32, _mm256_set1_epi32, _mm256_mullo_epi32, _mm256_add_epi32);

    #[target_feature(enable = "avx512f,vaes")]
    pub(super) fn aes(steps: usize) -> usize {
        let key = _mm512_set1_epi64(black_box(0x2545_f491));
        let mut blocks: [_; CHAINS] = std::array::from_fn(|i| _mm512_set1_epi64(black_box(i as i64)));
        for _ in 0..steps {
            for block in &mut blocks {
                *block = _mm512_aesenc_epi128(*block, key);
            }
        }
        black_box(blocks);
        steps * size_of_val(&blocks) / ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_count_what_they_do() {
        for bits in [32, 64] {
            let once = multiply_adds(bits, 10);
            assert_eq!(multiply_adds(bits, 20), once.map(|n| 2 * n));
            assert!(once.is_none_or(|n| n > 0));
        }
        assert_eq!(multiply_adds(16, 10), None);
        assert_eq!(aes_bytes(20), aes_bytes(10).map(|n| 2 * n));
    }
}
