//! Patches of a frame to its cells, the first part of the image adapter. It runs here, since what it leaves is a fraction of
//! the tower's output: 25 cells of 1152 where there were 729 patches of 1152 (Vidi 7B).

use candle_core::{DType, Device, Result, Tensor};
use compute::kernels;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::family::POOL_WEIGHT;
use model::config_json::{ImagePool, ModelConfig};
use protocol::plan::{FrameGrid, IMAGE_POOL, PADDED_SIDE};

/// Way from the patches of a frame to its cells, as the checkpoint has it.
pub struct Pool {
    kind: Kind,
    grid: FrameGrid,
    width: usize,
}

enum Kind {
    Merge,
    Convolution(Convolution),
}

impl Pool {
    /// Loads what weights the checkpoint's pool has, from weights at its root.
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(config: &ModelConfig, weights: &Weights) -> std::result::Result<Self, CheckpointError> {
        let pool = config.image_pool();
        Ok(Pool {
            kind: match pool {
                ImagePool::Merge => Kind::Merge,
                ImagePool::Convolution { kernel, side } => {
                    let width = config.vision.hidden_size;
                    let weight = weights.get(POOL_WEIGHT, &[width, width, kernel, kernel])?;
                    let convolution = Convolution::new(weight, config.vision.side(), side);
                    Kind::Convolution(convolution.map_err(CheckpointError::from_device)?)
                }
            },
            grid: pool.grid(),
            width: config.image_cell_width(),
        })
    }

    /// Rule that the grids of its frames follow.
    pub fn grid(&self) -> FrameGrid {
        self.grid
    }

    /// Width of a cell.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Patch features `[n, 729, C]` to the cells `[n, side^2, width]` of grids with `side` cells a side.
    ///
    /// # Errors
    /// The device's; a side that [`grid`](Self::grid) never has.
    pub fn cells(&self, features: &Tensor, side: usize) -> Result<Tensor> {
        match &self.kind {
            Kind::Merge => kernels::pool(features, side),
            Kind::Convolution(convolution) if convolution.side == side => convolution.cells(features),
            Kind::Convolution(Convolution { side: own, .. }) => {
                candle_core::bail!("pool refused: {side} cells a side from a convolution to {own}")
            }
        }
    }

    /// Bytes that it holds at most while `frames` frames pass it, values of `size` bytes.
    pub fn activation_bytes(config: &ModelConfig, frames: u64, size: u64) -> u64 {
        let width = config.vision.hidden_size as u64;
        match config.image_pool() {
            ImagePool::Merge => frames * u64::from(PADDED_SIDE * PADDED_SIDE) * width * size * u64::from(IMAGE_POOL),
            ImagePool::Convolution { kernel, side } => {
                let (cells, patches) = ((side * side) as u64, (config.vision.side() * config.vision.side()) as u64);
                let taps = cells * (kernel * kernel) as u64;
                // The features in f32; the windows in f32, rounded, and turned; the cells. Besides, the shares of the blends.
                frames * width * (4 * patches + taps * (4 + 2 * size) + cells * size) + 4 * taps * patches
            }
        }
    }
}

/// Convolution of `kernel x kernel` without padding, then a bilinear resize of its output to `side x side` with aligned
/// corners (MODEL-7B.md, "Image adapter").
///
/// Both are linear, and a cell of the resize is a blend of four outputs at most. So it is their windows that are blended, and
/// only the blends are multiplied by the weights: 25 rows a frame in place of 484, and nothing as large as the convolution's
/// output exists. In f32 that is the same but for the order of the sums; in 16 bits the blend is rounded before the sum
/// and not after it.
pub struct Convolution {
    weight: Tensor, // [C', C, k, k]
    blends: Tensor, // [s*s*k*k, from*from] f32
    side: usize,
}

impl Convolution {
    /// Pool of frames of `from x from` patches to `side x side` cells by a weight `[C', C, k, k]`.
    ///
    /// # Errors
    /// A weight of another shape, a kernel or a side for which there is no resize; the device's.
    pub fn new(weight: Tensor, from: usize, side: usize) -> Result<Self> {
        let (_, _, kernel, across) = weight.dims4()?;
        if kernel != across || kernel > from || side < 2 {
            candle_core::bail!(
                "pool refused: kernels of {kernel} x {across} on {from} x {from} patches to {side} cells"
            );
        }
        let blends = blends(from, kernel, side)?.to_device(weight.device())?;
        Ok(Convolution { weight, blends, side })
    }

    /// Patch features `[n, from*from, C]` to cells `[n, side*side, C']`.
    ///
    /// # Errors
    /// Features of another shape; the device's.
    pub fn cells(&self, features: &Tensor) -> Result<Tensor> {
        let (n, _, width) = features.dims3()?;
        let kernel = self.weight.dim(2)?;
        let (cells, taps) = (self.side * self.side, kernel * kernel);
        let (rows, patches) = self.blends.dims2()?;
        let blends = self.blends.broadcast_as((n, rows, patches))?;
        let windows = blends.matmul(&features.to_dtype(DType::F32)?)?.to_dtype(features.dtype())?; // [n, s*s*k*k, C]
        // Channel by channel, as the weight has them.
        let windows = windows.reshape((n * cells, taps, width))?.transpose(1, 2)?; // [n*s*s, C, k*k]
        let windows = windows.reshape((n, cells, width * taps))?;
        let weight = self.weight.flatten_from(1)?.t()?; // [C*k*k, C']
        // Frame by frame: how the CPU's kernels sum depends on the number of rows, and a cell's bits must not depend on how many
        // frames pass together.
        let frames = (0..n).map(|i| windows.get(i)?.matmul(&weight));
        Tensor::stack(&frames.collect::<Result<Vec<_>>>()?, 0)
    }
}

/// Shares of the patches `from x from` of a frame in the windows of its cells, `[side^2 * kernel^2, from^2]`: cells by row and
/// column, then the taps of each by row and column.
fn blends(from: usize, kernel: usize, side: usize) -> Result<Tensor> {
    let lines: Vec<Blend> = (0..side).map(|i| Blend::new(i, from + 1 - kernel, side)).collect();
    let patches = from * from;
    let mut shares = vec![0f32; side * side * kernel * kernel * patches];
    let places = (0..side * side * kernel * kernel).map(|row| {
        let (cell, tap) = (row / (kernel * kernel), row % (kernel * kernel));
        [(cell / side, tap / kernel), (cell % side, tap % kernel)]
    });
    for (shares, [(i, dy), (j, dx)]) in shares.chunks_exact_mut(patches).zip(places) {
        for (y, of_row) in lines[i].shares() {
            for (x, of_column) in lines[j].shares() {
                shares[(y + dy) * from + x + dx] += of_row * of_column;
            }
        }
    }
    Tensor::from_vec(shares, (side * side * kernel * kernel, patches), &Device::Cpu)
}

/// The two lines of the convolution's output that a line of cells lies between, in the single precision arithmetic of
/// PyTorch's `upsample_bilinear2d` with `align_corners`.
struct Blend {
    low: usize,
    high: usize,
    to_high: f32,
}

impl Blend {
    fn new(i: usize, from: usize, to: usize) -> Self {
        let scale = (from - 1) as f32 / (to - 1) as f32;
        let source = scale * i as f32;
        let low = (source as usize).min(from - 1);
        Blend { low, high: (low + 1).min(from - 1), to_high: source - low as f32 }
    }

    fn shares(&self) -> [(usize, f32); 2] {
        [(self.low, 1.0 - self.to_high), (self.high, self.to_high)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compute::random::Draws;

    const WIDTH: usize = 3;

    /// The two steps as the reference takes them, in f64: every output of the convolution, then four of them for a cell.
    fn in_two_steps(features: &[Vec<f32>], weight: &[f32], side: usize) -> Vec<Vec<f64>> {
        let kernel = 27usize.div_ceil(side);
        let output = 28 - kernel;
        let convolved = |y: usize, x: usize, c: usize| -> f64 {
            let taps = (0..WIDTH * kernel * kernel).map(|at| {
                let (from, dy, dx) = (at / (kernel * kernel), at / kernel % kernel, at % kernel);
                let value = features[(y + dy) * 27 + x + dx][from];
                f64::from(weight[c * WIDTH * kernel * kernel + at]) * f64::from(value)
            });
            taps.sum()
        };
        let source = |i: usize| i as f64 * (output - 1) as f64 / (side - 1) as f64;
        let cell = |(i, j): (usize, usize)| {
            let (y, x) = (source(i), source(j));
            let (low_y, low_x) = (y as usize, x as usize);
            let (high_y, high_x) = ((low_y + 1).min(output - 1), (low_x + 1).min(output - 1));
            let (down, across) = (y.fract(), x.fract());
            (0..WIDTH)
                .map(|c| {
                    let upper = (1.0 - across) * convolved(low_y, low_x, c) + across * convolved(low_y, high_x, c);
                    let lower = (1.0 - across) * convolved(high_y, low_x, c) + across * convolved(high_y, high_x, c);
                    (1.0 - down) * upper + down * lower
                })
                .collect()
        };
        (0..side * side).map(|at| cell((at / side, at % side))).collect()
    }

    #[test]
    fn blended_windows_give_what_the_convolution_and_then_the_resize_give() -> Result<()> {
        let draws = Draws::default();
        // 5 as in the released model; 27, 26 and 2, whose kernels are 1, 2 and 14; 6, whose cells lie on no output but at
        // the corners.
        for side in [5, 27, 26, 2, 6] {
            let kernel = 27usize.div_ceil(side);
            let weight = draws.normal((WIDTH, WIDTH, kernel, kernel))?;
            let features = draws.normal((2, 729, WIDTH))?;
            let got = Convolution::new(weight.clone(), 27, side)?.cells(&features)?;
            assert_eq!(got.dims(), [2, side * side, WIDTH]);
            let flat = weight.flatten_all()?.to_vec1::<f32>()?;
            for frame in 0..2 {
                let want = in_two_steps(&features.get(frame)?.to_vec2()?, &flat, side);
                for (got, want) in got.get(frame)?.to_vec2::<f32>()?.iter().flatten().zip(want.iter().flatten()) {
                    // Sums of up to 588 products of a few units.
                    assert!((f64::from(*got) - want).abs() < 1e-4, "side {side}: {got} {want}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn corners_are_aligned_and_a_grid_of_the_outputs_own_size_is_left_as_it_is() {
        let lines = |from, to| (0..to).map(|i| Blend::new(i, from, to)).collect::<Vec<_>>();
        let five = lines(22, 5);
        let found: Vec<(usize, f32)> = five.iter().map(|b| (b.low, b.to_high)).collect();
        assert_eq!(found, [(0, 0.0), (5, 0.25), (10, 0.5), (15, 0.75), (21, 0.0)]);
        assert!(lines(26, 26).iter().enumerate().all(|(i, b)| (b.low, b.to_high) == (i, 0.0)));
    }

    #[test]
    fn a_cells_bits_do_not_depend_on_how_many_frames_pass_together() -> Result<()> {
        let draws = Draws::default();
        for side in [2, 3, 5] {
            let kernel = 27usize.div_ceil(side);
            let pool = Convolution::new(draws.normal((WIDTH, WIDTH, kernel, kernel))?, 27, side)?;
            let features = draws.normal((5, 729, WIDTH))?;
            let whole = pool.cells(&features)?.to_vec3::<f32>()?;
            for (first, n) in [(0, 1), (1, 3), (4, 1)] {
                let part = pool.cells(&features.narrow(0, first, n)?)?.to_vec3::<f32>()?;
                assert_eq!(part, whole[first..first + n], "side {side}, frames {first} and {n} together");
            }
        }
        Ok(())
    }
}
