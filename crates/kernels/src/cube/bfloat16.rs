//! A function of the compiler's run-time library that kernels on the CPU call. LLVM emits calls to
//! it on processors without instructions for bfloat16, but only libgcc 13 and later have it. The
//! build scripts of this crate and of the program export it.

/// `x` rounded to the nearest bfloat16, ties to even. The result is in the low 16 bits.
// SAFETY: the name and the calling convention are those of libgcc: a bfloat16 is returned in the
// low half of the register that returns a float.
#[unsafe(no_mangle)]
pub extern "C" fn __truncsfbf2(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = match x.is_nan() {
        true => bits >> 16 | 0x40,
        false => (bits + 0x7fff + (bits >> 16 & 1)) >> 16,
    };
    f32::from_bits(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_nearest_even_bfloat16() {
        let rounded = |x: f32| f32::from_bits(__truncsfbf2(x).to_bits() << 16);
        assert_eq!(rounded(1.0), 1.0);
        assert_eq!(rounded(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(rounded(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded(-1.0 - 1.1 / 256.0), -1.0 - 2.0 / 256.0);
        assert_eq!(rounded(f32::MAX), f32::INFINITY);
        assert_eq!(rounded(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(rounded(f32::NAN).is_nan());
    }
}
