//! Arithmetic over `Z_2^k`: tensors, fixed point, bit packing, pseudorandom masks and the kernels beneath them.
//!
//! This crate knows nothing of parties or protocols. Everything in it is constant-time in the *values* it works on;
//! shapes and ring widths are public. It is the only place where `unsafe` may live: instruction-set kernels, one
//! read-only file mapping, and an allocator.

#[cfg(target_endian = "big")]
compile_error!("lanes travel and are stored as they lie in memory, little-endian");

pub mod ceiling;
mod cipher;
pub mod dpf;
mod element;
pub mod fixed;
pub mod heap;
mod mapped;
pub mod matmul;
pub mod onehot;
pub mod pack;
mod pool;
mod prg;
pub mod sharing;
pub mod simd;
pub mod subset;
mod tensor;

pub use element::Element;
pub use heap::Heap;
pub use mapped::Mapped;
pub use pool::Pool;
pub use prg::{Prg, Seed};
pub use tensor::Tensor;
