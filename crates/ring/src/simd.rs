//! Run-time choice of the instruction set.
//!
//! [`run`] calls a closure inside a function compiled for the best instruction set of this machine, so that plain loops
//! in the closure are vectorised for it. The result cannot depend on the choice: ring arithmetic has no rounding, and
//! Rust never contracts floating-point operations.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compilation target guarantees.
    Portable,
    /// AVX2 with BMI2.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// The best instruction set of this machine.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("bmi2") {
                return Isa::Avx512;
            }
            if has!("avx2") && has!("bmi2") {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }

    /// Every instruction set that this machine can run, the portable one first.
    pub fn available() -> Vec<Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| *isa <= Isa::detect()).collect()
    }

    /// The instruction set in use: the best one, or the one named by `TERCET_SIMD` (`portable`, `avx2`, `avx512`) where
    /// the machine has it.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let wanted = match std::env::var("TERCET_SIMD").as_deref() {
                Ok("portable") => Isa::Portable,
                Ok("avx2") => Isa::Avx2,
                _ => Isa::Avx512,
            };
            wanted.min(Isa::detect())
        })
    }

    /// Runs `work` compiled for this instruction set, or for the best one below it that the machine has.
    #[inline(always)]
    pub fn run<R>(self, work: impl FnOnce() -> R) -> R {
        match self.min(Isa::detect_once()) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `detect_once` has seen every feature that the callee enables.
            Isa::Avx512 => unsafe { avx512(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2(work) },
            _ => work(),
        }
    }

    #[inline(always)]
    fn detect_once() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Isa::detect)
    }
}

/// Runs `work` compiled for the instruction set in use.
#[inline(always)]
pub fn run<R>(work: impl FnOnce() -> R) -> R {
    Isa::current().run(work)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2,avx2")]
fn avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2")]
fn avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}
