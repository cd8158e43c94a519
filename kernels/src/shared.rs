//! Memory that several tasks write, each its own part.

use std::marker::PhantomData;

/// A row-major matrix whose rectangles belong to different tasks.
#[derive(Clone, Copy, Debug)]
pub struct SharedRows<'a> {
    data: *mut f32,
    len: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: `row` asks its callers for disjoint rectangles.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// A matrix of rows of `stride` elements.
    pub fn new(data: &'a mut [f32], stride: usize) -> SharedRows<'a> {
        SharedRows { data: data.as_mut_ptr(), len: data.len(), stride, lifetime: PhantomData }
    }

    /// `len` elements of a row from `column`.
    ///
    /// # Safety
    /// No one else uses these elements while the slice lives.
    pub unsafe fn row(&self, row: usize, column: usize, len: usize) -> &'a mut [f32] {
        let at = row * self.stride + column;
        assert!(at + len <= self.len, "row {row} lies outside the matrix");
        // SAFETY: inside the matrix by the assertion, and the caller's alone by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }
}
