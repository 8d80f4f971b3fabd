//! What kernels of attention need to know of the heads when they are compiled.

/// The heads of a kind of layer.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct HeadShape {
    /// Elements of a head, a multiple of 8.
    pub width: usize,
    /// Rotary angles of a token, `n`, at most half the width. The first `2 n` elements of a head
    /// are rotated; the others are used as they are.
    pub angles: usize,
    /// Whether scores have a soft cap.
    pub is_capped: bool,
}

impl HeadShape {
    /// Elements of a head that are rotated, the first ones.
    pub fn rotated(self) -> usize {
        2 * self.angles
    }

    /// Elements of a head that are not rotated, the last ones.
    pub fn rest(self) -> usize {
        self.width - self.rotated()
    }

    /// Heads of `width` elements that are rotated as a whole, without a soft cap.
    #[cfg(any(test, feature = "ptx"))]
    pub fn plain(width: usize) -> Self {
        Self { width, angles: width / 2, is_capped: false }
    }
}
