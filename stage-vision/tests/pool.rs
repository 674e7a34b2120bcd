//! Patch grid to token grid, on a picture whose patches say where they are.

use candle_core::{Device, Result, Tensor};
use compute::kernels::pool;

/// `[1, 729, 2]` with value `row*100 + column + 1`, and the negative of it in channel 1.
fn ramp() -> Result<Tensor> {
    let value = |p: usize| (p / 27 * 100 + p % 27 + 1) as f32;
    let data: Vec<f32> = (0..729).flat_map(|p| [value(p), -value(p)]).collect();
    Tensor::from_vec(data, (1, 729, 2), &Device::Cpu)
}

fn cell(x: &Tensor, row: usize, column: usize) -> Result<Vec<f32>> {
    let side = x.dim(1)?.isqrt();
    x.get(0)?.get(row * side + column)?.to_vec1()
}

#[test]
fn four_patches_become_one_cell_channel_by_channel() -> Result<()> {
    let x = pool(&ramp()?, 14)?;
    assert_eq!(x.dims(), [1, 196, 8]);
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
fn halving_the_grid_averages_the_four_patches_around_a_corner() -> Result<()> {
    // side 14: source coordinate 2i + 0.5, so each value is the mean of a 2x2 square of patches.
    let x = pool(&ramp()?, 7)?;
    assert_eq!(x.dims(), [1, 49, 8]);
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
