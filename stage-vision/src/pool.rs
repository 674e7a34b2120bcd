//! Patch grid to token grid: pad, shrink to the budget, merge 2x2 (MODEL.md 4, steps 1 to 3).

use candle_core::{DType, Device, Result, Tensor};
use common::plan::{IMAGE_POOL, PADDED_SIDE};

/// Weights that shrink a side of `PADDED_SIDE` cells to `side`: bilinear, corners not aligned, no antialiasing, in the
/// single precision arithmetic of PyTorch's `upsample_bilinear2d`. `[side, 28]`, two entries to a row.
fn bilinear_weights(side: usize, device: &Device) -> Result<Tensor> {
    let from = PADDED_SIDE as usize;
    let scale = from as f32 / side as f32;
    let mut weights = vec![0f32; side * from];
    for i in 0..side {
        let source = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let low = (source as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let towards_high = (source - low as f32).clamp(0.0, 1.0);
        weights[i * from + low] += 1.0 - towards_high;
        weights[i * from + high] += towards_high;
    }
    Tensor::from_vec(weights, (side, from), device)
}

/// Shrinks `[n, 28, 28, C]` to `[n, side, side, C]`, columns before rows; f32 inside.
fn resize(x: &Tensor, side: usize) -> Result<Tensor> {
    let (n, rows, columns, channels) = x.dims4()?;
    let weights = bilinear_weights(side, x.device())?;
    let wide = x.to_dtype(DType::F32)?.reshape((n * rows, columns, channels))?;
    let across = weights.broadcast_left(n * rows)?.matmul(&wide)?; // [n*28, side, C]
    let down = weights.broadcast_left(n)?.matmul(&across.reshape((n, rows, side * channels))?)?; // [n, side, side*C]
    down.reshape((n, side, side, channels))?.to_dtype(x.dtype())
}

/// Patch features `[n, 729, C]` to token cells `[n, h, w, 4C]` for a grid of `h = w` cells a side, as the plan has it.
/// A cell's channel `c*4 + dy*2 + dx` is channel `c` of the patch in its row `dy` and column `dx`.
///
/// # Errors
/// The device's.
pub fn pool(features: &Tensor, grid: usize) -> Result<Tensor> {
    let (n, patches, channels) = features.dims3()?;
    let from = patches.isqrt(); // 27
    let padded = PADDED_SIDE as usize;
    let (merge, side) = (IMAGE_POOL as usize, grid * IMAGE_POOL as usize);
    let x = features.reshape((n, from, from, channels))?.pad_with_zeros(1, 0, padded - from)?.pad_with_zeros(
        2,
        0,
        padded - from,
    )?; // [n, 28, 28, C]
    let x = if side == padded { x } else { resize(&x, side)? };
    x.reshape((n, grid, merge, grid, merge, channels))?
        .permute((0, 1, 3, 5, 2, 4))? // [n, h, w, C, 2, 2]
        .reshape((n, grid, grid, channels * merge * merge))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[1, 729, 2]` with value `row*100 + column + 1`, and the negative of it in channel 1.
    fn ramp() -> Result<Tensor> {
        let value = |p: usize| (p / 27 * 100 + p % 27 + 1) as f32;
        let data: Vec<f32> = (0..729).flat_map(|p| [value(p), -value(p)]).collect();
        Tensor::from_vec(data, (1, 729, 2), &Device::Cpu)
    }

    fn cell(x: &Tensor, row: usize, column: usize) -> Result<Vec<f32>> {
        x.get(0)?.get(row)?.get(column)?.to_vec1()
    }

    #[test]
    fn four_patches_become_one_cell_channel_by_channel() -> Result<()> {
        let x = pool(&ramp()?, 14)?;
        assert_eq!(x.dims(), [1, 14, 14, 8]);
        assert_eq!(cell(&x, 0, 0)?, [1., 2., 101., 102., -1., -2., -101., -102.]);
        assert_eq!(cell(&x, 3, 5)?[..4], [611., 612., 711., 712.]);
        Ok(())
    }

    #[test]
    fn the_border_to_the_right_and_below_is_zero() -> Result<()> {
        let x = pool(&ramp()?, 14)?;
        assert_eq!(cell(&x, 13, 13)?, [2627., 0., 0., 0., -2627., 0., 0., 0.]);
        assert_eq!(cell(&x, 13, 0)?[..4], [2601., 2602., 0., 0.]);
        assert_eq!(cell(&x, 0, 13)?[..4], [27., 0., 127., 0.]);
        Ok(())
    }

    #[test]
    fn every_row_of_the_shrinking_weights_sums_to_one_over_neighbours() -> Result<()> {
        for side in [26, 24, 22, 20, 18, 16, 14, 12, 10] {
            let weights = bilinear_weights(side, &Device::Cpu)?.to_vec2::<f32>()?;
            for (i, row) in weights.iter().enumerate() {
                let used: Vec<usize> = (0..28).filter(|&j| row[j] != 0.0).collect();
                let centre: f64 = row.iter().enumerate().map(|(j, &w)| j as f64 * f64::from(w)).sum();
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                assert!(used.len() <= 2 && used.last().unwrap() - used[0] <= 1, "{side} {i} {used:?}");
                assert!((centre - ((i as f64 + 0.5) * 28.0 / side as f64 - 0.5)).abs() < 1e-5);
            }
        }
        Ok(())
    }

    #[test]
    fn halving_the_grid_averages_the_four_patches_around_a_corner() -> Result<()> {
        // side 14: source coordinate 2i + 0.5, so each value is the mean of a 2x2 square of patches.
        let x = pool(&ramp()?, 7)?;
        assert_eq!(x.dims(), [1, 7, 7, 8]);
        assert_eq!(cell(&x, 0, 0)?[..4], [51.5, 53.5, 251.5, 253.5]);
        // The last square holds one patch and three zeros of the border.
        assert_eq!(cell(&x, 6, 6)?[3], 2627.0 / 4.0);
        Ok(())
    }

    #[test]
    fn a_batch_pools_as_its_frames_alone() -> Result<()> {
        let one = ramp()?;
        let batch = Tensor::cat(&[&one, &(&one * 3.0)?, &one.neg()?], 0)?;
        for grid in [14, 9, 5] {
            let whole = pool(&batch, grid)?;
            for i in 0..3 {
                let alone = pool(&batch.narrow(0, i, 1)?, grid)?;
                let same = whole.get(i)?.flatten_all()?.to_vec1::<f32>()? == alone.flatten_all()?.to_vec1::<f32>()?;
                assert!(same, "frame {i} at grid {grid}");
            }
        }
        Ok(())
    }
}
