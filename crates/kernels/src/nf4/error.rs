//! Errors of quantized tensors.

/// Why the parts of a quantized tensor do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nf4Error {
    /// A part has another number of elements than the tensor needs.
    Size {
        /// The part: `codes`, `absmax`, `nested_absmax` or `map`.
        part: &'static str,
        /// Its number of elements.
        found: usize,
        /// The number of elements that the tensor needs.
        expected: usize,
    },
    /// Blocks must have an even number of values.
    Block(usize),
}

impl std::fmt::Display for Nf4Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size { part, found, expected } => {
                write!(f, "`{part}` has {found} elements instead of {expected}")
            }
            Self::Block(block) => write!(f, "a block size of {block} is not supported"),
        }
    }
}

impl std::error::Error for Nf4Error {}
