//! Run-time choice of the instruction set.
//!
//! The macro [`run!`](crate::simd::run!) compiles a closure for each instruction set and calls the one for the best that
//! this machine has, so that plain loops in the closure are vectorised for it; the function [`run`](fn@run) does so for
//! small closures. The result cannot depend on the choice: ring arithmetic has no rounding, and Rust never contracts
//! floating-point operations.
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

    /// Whether AVX-512 is in use and permutes bytes and shifts pairs of lanes too (VBMI and VBMI2: Ice Lake, Zen 4 and later).
    pub fn permutes_bytes() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            static PERMUTES: OnceLock<bool> = OnceLock::new();
            *PERMUTES.get_or_init(|| Isa::current() == Isa::Avx512 && has!("avx512vbmi") && has!("avx512vbmi2"))
        }
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs `work` compiled for this instruction set, or for the best one below it that the machine has.
    ///
    /// Only what the compiler inlines here is so compiled, and it inlines no more than a small closure: kernels of
    /// some length take the macro [`run!`](crate::simd::run!).
    #[inline(always)]
    pub fn run<R>(self, work: impl FnOnce() -> R) -> R {
        match self.usable() {
            Isa::Avx512 => avx512(work),
            Isa::Avx2 => avx2(work),
            Isa::Portable => work(),
        }
    }

    /// This instruction set, or the best one below it that the machine has.
    #[inline(always)]
    pub fn usable(self) -> Isa {
        self.min(Isa::detect_once())
    }

    #[inline(always)]
    fn detect_once() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Isa::detect)
    }
}

/// Runs `work` compiled for the instruction set in use; see [`Isa::run`] for how far that reaches.
#[inline(always)]
pub fn run<R>(work: impl FnOnce() -> R) -> R {
    Isa::current().run(work)
}

/// Runs a closure compiled for the instruction set in use, or for the one given first: `run!(|| ..)`, `run!(isa, || ..)`.
///
/// The closure is written out once for each instruction set. Each copy then has one caller, and a function with one
/// caller is inlined however long it is; what it calls in turn is compiled for the instruction set where that is
/// generic code with one caller again, or `#[inline(always)]`.
#[macro_export]
#[doc(hidden)]
macro_rules! __simd_run {
    ($work:expr) => {
        $crate::simd::run!($crate::simd::Isa::current(), $work)
    };
    ($isa:expr, $work:expr) => {
        match $crate::simd::Isa::usable($isa) {
            $crate::simd::Isa::Avx512 => $crate::simd::avx512($work),
            $crate::simd::Isa::Avx2 => $crate::simd::avx2($work),
            $crate::simd::Isa::Portable => ($work)(),
        }
    };
}
#[doc(inline)]
pub use crate::__simd_run as run;

/// Runs `work` compiled for AVX-512: the arm of [`run!`](crate::simd::run!).
///
/// # Panics
/// Where the machine lacks it.
#[doc(hidden)]
#[inline(always)]
pub fn avx512<R>(work: impl FnOnce() -> R) -> R {
    assert!(Isa::detect_once() >= Isa::Avx512, "no AVX-512 here");
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2,avx2")]
        fn compiled<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        // SAFETY: the machine has what the callee enables.
        unsafe { compiled(work) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    work()
}

/// Runs `work` compiled for AVX2: the arm of [`run!`](crate::simd::run!).
///
/// # Panics
/// Where the machine lacks it.
#[doc(hidden)]
#[inline(always)]
pub fn avx2<R>(work: impl FnOnce() -> R) -> R {
    assert!(Isa::detect_once() >= Isa::Avx2, "no AVX2 here");
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,bmi2")]
        fn compiled<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        // SAFETY: the machine has what the callee enables.
        unsafe { compiled(work) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_computes_the_same() {
        let values: Vec<u64> = (0..1000).map(|i| i * 0x9e37_79b9_7f4a_7c15).collect();
        let expected = values.iter().fold(0u64, |s, v| s.wrapping_mul(31).wrapping_add(v >> 7));
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let work = || values.iter().fold(0u64, |s, v| s.wrapping_mul(31).wrapping_add(v >> 7));
            assert_eq!(isa.run(work), expected);
            assert_eq!(
                run!(isa, || values.iter().fold(0u64, |s, v| s.wrapping_mul(31).wrapping_add(v >> 7))),
                expected
            );
        }
        assert_eq!(run(|| values.len()) + run!(|| values.len()), 2000);
    }

    #[test]
    fn what_the_machine_has_is_a_prefix() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::Portable);
        assert!(available.contains(&Isa::current()));
        assert!(available.is_sorted());
        assert_eq!(Isa::Avx512.usable(), Isa::detect());
    }
}
