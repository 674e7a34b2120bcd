//! A matmul of strided views in f32, on one thread of the CPU: where candle's, which takes whole tensors and all threads, would have
//! views copied first.

use gemm::Parallelism;

/// A matrix in a slice: the element in row r and column c is `data[r * strides[0] + c * strides[1]]`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// View of `shape` (rows, columns) from the start of `data` on.
    ///
    /// # Panics
    /// If an element is beyond `data`.
    pub(super) fn new(data: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Self {
        assert!(end(shape, strides) <= data.len(), "a view of {shape:?} by {strides:?} in {} numbers", data.len());
        View { data, shape, strides }
    }
}

/// First index behind a matrix.
fn end([rows, columns]: [usize; 2], [down, across]: [usize; 2]) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * down + (columns - 1) * across + 1 }
}

/// `scale a b` into `out`, whose rows are `stride` apart.
///
/// # Panics
/// If the shapes do not fit each other or `out`.
pub(super) fn matmul(out: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, scale: f32) {
    let ([rows, inner], [same, columns]) = (a.shape, b.shape);
    assert!(inner == same && columns <= stride, "{:?} times {:?} into rows {stride} apart", a.shape, b.shape);
    assert!(end([rows, columns], [stride, 1]) <= out.len(), "{rows} x {columns} into {} numbers", out.len());
    let stride_of = |n: usize| isize::try_from(n).expect("a slice is shorter than isize::MAX");
    let [a_down, a_across] = a.strides.map(stride_of);
    let [b_down, b_across] = b.strides.map(stride_of);
    // SAFETY: every element that is read or written is inside its slice: asserted above, and where the views are made. `out` is
    // borrowed alone, and not read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            stride_of(stride),
            false,
            a.data.as_ptr(),
            a_across,
            a_down,
            b.data.as_ptr(),
            b_across,
            b_down,
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_may_be_transposed_and_lie_between_other_numbers() {
        // a = [[1, 2], [3, 4]] in rows of 3; b = [[5, 7], [6, 8]], stored by columns.
        let (a, b) = ([1f32, 2., 9., 3., 4.], [5f32, 6., 7., 8.]);
        let mut out = [0f32; 5];
        matmul(&mut out, 3, View::new(&a, [2, 2], [3, 1]), View::new(&b, [2, 2], [1, 2]), 0.5);
        assert_eq!(out, [8.5, 11.5, 0., 19.5, 26.5]);
    }

    #[test]
    #[should_panic(expected = "a view of [2, 2] by [3, 1] in 4 numbers")]
    fn a_view_beyond_its_slice_is_refused() {
        View::new(&[0.0; 4], [2, 2], [3, 1]);
    }
}
