//! What the CPU forms of the operations share: products of matrices, lanes of SIMD, `exp`, memory.

pub mod exp;
pub mod fresh;
pub mod lanes;
pub mod product;
