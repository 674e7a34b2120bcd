//! The two ends of the vision tower: pixels to patches, and patches to the cells of a token grid.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{Real, elements, with_real};
use protocol::plan::{IMAGE_POOL, PADDED_SIDE};

#[cfg(feature = "cuda")]
static VISION: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/vision.fatbin")));

/// Colours of a pixel.
const CHANNELS: usize = 3;

/// Frames `[n, S, S, 3]` of bytes to rows of patches `[n side^2, 3 patch^2]` of type `dtype`: the values of a patch by
/// colour, row, column, as a convolution's weight has them, normalised as the processor does it (MODEL.md 2.2) and then
/// rounded. Pixels to the right and below that fill no patch are in none.
///
/// # Errors
/// Frames of another form, an odd `patch`; the device's.
pub fn patchify(frames: &Tensor, patch: usize, dtype: DType) -> Result<Tensor> {
    let (_, height, width, channels) = frames.dims4()?;
    if height != width || channels != CHANNELS || frames.dtype() != DType::U8 {
        candle_core::bail!("square frames of three bytes a pixel, not {frames:?}");
    }
    if patch == 0 || !patch.is_multiple_of(2) || patch > width {
        candle_core::bail!("patches of {patch} pixels a side from {width}");
    }
    frames.apply_op1_no_bwd(&Patchify { patch, dtype })
}

/// Patch features `[n, from^2, C]` to cells `[n, grid^2, 4 C]`: zeros to the right and below up to `PADDED_SIDE` a side, a
/// bilinear shrinking to `2 grid` a side if that is less (corners not aligned, in f32), then the four patches of a 2x2
/// square side by side (MODEL.md 4, steps 1 to 3). A cell's channel `c*4 + dy*2 + dx` is channel `c` of the patch in its
/// row `dy` and column `dx`.
///
/// # Errors
/// Features that are not of a square; the device's.
pub fn pool(features: &Tensor, grid: usize) -> Result<Tensor> {
    let (_, patches, _) = features.dims3()?;
    let from = patches.isqrt();
    if from * from != patches || from > PADDED_SIDE as usize || grid == 0 || grid * 2 > PADDED_SIDE as usize {
        candle_core::bail!("a grid of {grid} cells a side from {patches} patches");
    }
    features.apply_op1_no_bwd(&Pool { from, grid })
}

struct Patchify {
    patch: usize,
    dtype: DType,
}

impl Patchify {
    /// Patches a side, and the outcome's shape.
    fn shape(&self, layout: &Layout) -> Result<(usize, Shape)> {
        let (n, size, _, _) = layout.shape().dims4()?;
        let side = size / self.patch;
        Ok((side, (n * side * side, CHANNELS * self.patch * self.patch).into()))
    }

    fn rows<T: Real>(&self, frames: &[u8], size: usize, side: usize, rows: usize) -> Vec<T> {
        let table: Vec<T> = (0..=255u8)
            .map(|v| {
                let x = (f64::from(v) * 0.003_921_568_627_450_98) as f32;
                T::narrow((x - 0.5) / 0.5)
            })
            .collect();
        let patch = self.patch;
        let width = CHANNELS * patch * patch;
        let mut out = vec![T::zero(); rows * width];
        out.par_chunks_mut(width).enumerate().for_each(|(cell, out)| {
            let (n, y, x) = (cell / (side * side), cell / side % side, cell % side);
            for (colour, out) in out.chunks_exact_mut(patch * patch).enumerate() {
                for (dy, out) in out.chunks_exact_mut(patch).enumerate() {
                    let first = (n * size + y * patch + dy) * size + x * patch;
                    let pixels = frames[first * CHANNELS..][..patch * CHANNELS].chunks_exact(CHANNELS);
                    out.iter_mut().zip(pixels).for_each(|(out, pixel)| *out = table[usize::from(pixel[colour])]);
                }
            }
        });
        out
    }
}

impl CustomOp1 for Patchify {
    fn name(&self) -> &'static str {
        "patchify"
    }

    fn cpu_fwd(&self, frames: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (side, shape) = self.shape(layout)?;
        let (frames, size, rows) = (elements::<u8>(frames, layout)?, layout.dims()[1], shape.dims()[0]);
        let out = with_real!(self.dtype, T => T::storage(self.rows::<T>(frames, size, side, rows)));
        Ok((out, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        frames: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        const THREADS: usize = 256;
        let (side, shape) = self.shape(layout)?;
        let out = cuda::allocate(&frames.device, &shape, self.dtype)?;
        let name = format!("patchify_{}", cuda::suffix(self.dtype)?);
        let arguments = [
            cuda::pointer(frames, layout)?,
            cuda::start(&out)?,
            layout.dims()[0].into(),
            layout.dims()[1].into(),
            self.patch.into(),
            side.into(),
        ];
        let grid = cuda::grid(((shape.elem_count() / 2).div_ceil(THREADS), 1, 1), THREADS, 0);
        // SAFETY: the arguments are the kernel's, their shapes the ones that `patchify` expects.
        unsafe { VISION.launch(&frames.device, &name, grid, &arguments)? };
        Ok((out, shape))
    }
}

struct Pool {
    from: usize,
    grid: usize,
}

/// Which two cells of the padded side make one of the shrunk side, and the share of the second: in the single precision
/// arithmetic of PyTorch's `upsample_bilinear2d`.
struct Blend {
    low: usize,
    high: usize,
    to_high: f32,
}

impl Blend {
    fn new(i: usize, side: usize) -> Self {
        let padded = PADDED_SIDE as usize;
        let scale = padded as f32 / side as f32;
        let source = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let low = (source as usize).min(padded - 1);
        Blend { low, high: (low + 1).min(padded - 1), to_high: (source - low as f32).clamp(0.0, 1.0) }
    }

    fn of(&self, low: f32, high: f32) -> f32 {
        (1.0 - self.to_high) * low + self.to_high * high
    }
}

impl Pool {
    fn shape(&self, layout: &Layout) -> Result<Shape> {
        let (n, _, channels) = layout.shape().dims3()?;
        Ok((n, self.grid * self.grid, channels * (IMAGE_POOL * IMAGE_POOL) as usize).into())
    }

    fn cells<T: Real>(&self, features: &[T], channels: usize, n: usize) -> Vec<T> {
        let (from, grid, merge) = (self.from, self.grid, IMAGE_POOL as usize);
        let side = grid * merge;
        let width = channels * merge * merge;
        let blends: Vec<Blend> = (0..side).map(|i| Blend::new(i, side)).collect();
        let mut out = vec![T::zero(); n * grid * grid * width];
        out.par_chunks_mut(width).enumerate().for_each(|(cell, out)| {
            let frame = &features[cell / (grid * grid) * from * from * channels..];
            let patch = |y: usize, x: usize, c: usize| {
                if y < from && x < from { frame[(y * from + x) * channels + c].wide() } else { 0.0 }
            };
            for (i, out) in out.iter_mut().enumerate() {
                let (c, dy, dx) = (i / (merge * merge), i / merge % merge, i % merge);
                let (y, x) = (cell / grid % grid * merge + dy, cell % grid * merge + dx);
                *out = T::narrow(if side == PADDED_SIDE as usize {
                    patch(y, x, c)
                } else {
                    // Across before down, rounded only to f32 in between.
                    let (down, across) = (&blends[y], &blends[x]);
                    let upper = across.of(patch(down.low, across.low, c), patch(down.low, across.high, c));
                    let lower = across.of(patch(down.high, across.low, c), patch(down.high, across.high, c));
                    down.of(upper, lower)
                });
            }
        });
        out
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, features: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (n, _, channels) = layout.shape().dims3()?;
        let out = with_real!(features.dtype(), T => {
            T::storage(self.cells::<T>(elements(features, layout)?, channels, n))
        });
        Ok((out, self.shape(layout)?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        features: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        const THREADS: usize = 256;
        let (n, _, channels) = layout.shape().dims3()?;
        let shape = self.shape(layout)?;
        let out = cuda::allocate(&features.device, &shape, features.dtype())?;
        let bytes = channels * features.dtype().size_in_bytes();
        let mut arguments = vec![cuda::pointer(features, layout)?, cuda::start(&out)?];
        let aligned = cuda::aligned(bytes, &arguments);
        arguments.extend([n, self.from, PADDED_SIDE as usize, self.grid, channels].map(cuda::Arg::from));
        arguments.push(aligned);
        let name = format!("pool_{}", cuda::suffix(features.dtype())?);
        let threads = n * self.grid * self.grid * bytes.div_ceil(16);
        let grid = cuda::grid((threads.div_ceil(THREADS), 1, 1), THREADS, 0);
        // SAFETY: the arguments are the kernel's, their shapes the ones that `pool` expects.
        unsafe { VISION.launch(&features.device, &name, grid, &arguments)? };
        Ok((out, shape))
    }
}
