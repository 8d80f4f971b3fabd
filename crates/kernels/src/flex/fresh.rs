//! Output buffers for operations that write every element.

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// A buffer for several threads to fill. `vec![0.0; n]` would first write the whole buffer on one
/// thread while the others wait; here the thread that fills a chunk also zeros it.
pub(crate) struct Fresh {
    numbers: Vec<f32>,
    len: usize,
}

impl Fresh {
    /// A buffer for `len` numbers.
    pub fn new(len: usize) -> Self {
        Self { numbers: Vec::with_capacity(len), len }
    }

    /// Chunks of `size` zeros; the last one may be shorter.
    pub fn chunks(&mut self, size: usize) -> impl IndexedParallelIterator<Item = &mut [f32]> {
        let room = &mut self.numbers.spare_capacity_mut()[..self.len];
        room.par_chunks_mut(size.max(1)).map(zeroed)
    }

    /// The filled buffer.
    ///
    /// # Safety
    /// All chunks of [`Self::chunks`] must have been consumed.
    pub unsafe fn written(mut self) -> Vec<f32> {
        // SAFETY: every chunk was zeroed when it was consumed.
        unsafe { self.numbers.set_len(self.len) };
        self.numbers
    }
}

/// `len` numbers, written in chunks of `size` on all threads: `write(index, chunk)` receives each
/// chunk as zeros.
pub fn filled(len: usize, size: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut fresh = Fresh::new(len);
    fresh.chunks(size).enumerate().for_each(|(index, chunk)| write(index, chunk));
    // SAFETY: `for_each` consumed all chunks.
    unsafe { fresh.written() }
}

fn zeroed(chunk: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for number in chunk.iter_mut() {
        number.write(0.0);
    }
    // SAFETY: every number was written above.
    unsafe { &mut *(std::ptr::from_mut(chunk) as *mut [f32]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_zeros_in_their_order() {
        for (len, size) in [(0, 4), (3, 4), (8, 4), (1000, 7)] {
            let numbers = filled(len, size, |index, chunk| {
                assert!(chunk.iter().all(|x| *x == 0.0));
                for (offset, x) in chunk.iter_mut().enumerate() {
                    *x = (index * size + offset) as f32;
                }
            });
            assert!(numbers.iter().copied().eq((0..len).map(|i| i as f32)));
        }
    }
}
