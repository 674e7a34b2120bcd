//! Frames as they travel to pixels as the tower takes them.

use candle_core::{Device, Result, Tensor, bail};
use protocol::plan::{FRAME_BYTES, FRAME_SIDE};

/// What the value of a byte becomes: rescaled in double precision, rounded, then normalised in single (MODEL.md 2.2).
pub fn pixel_table() -> [f32; 256] {
    std::array::from_fn(|v| {
        let x = (v as f64 * 0.003_921_568_627_450_98) as f32;
        (x - 0.5) / 0.5
    })
}

/// Frames `[n, 384, 384, 3]` u8, RGB, to `[n, 3, 384, 384]` f32.
///
/// # Errors
/// When `frames` is not a whole number of frames, or the device has no memory.
pub fn pixel_values(frames: &[u8], device: &Device) -> Result<Tensor> {
    if !frames.len().is_multiple_of(FRAME_BYTES) {
        bail!("{} bytes are not whole frames of {FRAME_BYTES}", frames.len());
    }
    let table = pixel_table();
    let mut planes = Vec::with_capacity(frames.len());
    for frame in frames.chunks_exact(FRAME_BYTES) {
        for channel in 0..3 {
            planes.extend(frame[channel..].iter().step_by(3).map(|&v| table[usize::from(v)]));
        }
    }
    Tensor::from_vec(planes, (frames.len() / FRAME_BYTES, 3, FRAME_SIDE, FRAME_SIDE), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_rescaled_in_double_and_normalised_in_single_precision() {
        let table = pixel_table();
        assert_eq!((table[0], table[255]), (-1.0, 1.0));
        // 51 / 255 = 0.2: f32(0.2) - 0.5 = -0.3 exactly as f32 subtraction leaves it.
        assert_eq!(table[51], (0.2f32 - 0.5) / 0.5);
        for (v, &p) in table.iter().enumerate() {
            assert!((f64::from(p) - (v as f64 / 127.5 - 1.0)).abs() < 1e-7, "{v}");
        }
    }

    #[test]
    fn channels_become_planes_and_rows_stay_rows() -> Result<()> {
        let mut frames = vec![0u8; 2 * FRAME_BYTES];
        // Frame 1, row 2, column 3: (255, 0, 51).
        let at = FRAME_BYTES + (2 * FRAME_SIDE + 3) * 3;
        frames[at] = 255;
        frames[at + 2] = 51;
        let pixels = pixel_values(&frames, &Device::Cpu)?;
        assert_eq!(pixels.dims(), [2, 3, FRAME_SIDE, FRAME_SIDE]);
        let table = pixel_table();
        let at = |n, c| pixels.get(n)?.get(c)?.get(2)?.get(3)?.to_scalar::<f32>();
        assert_eq!([at(1, 0)?, at(1, 1)?, at(1, 2)?], [table[255], table[0], table[51]]);
        assert_eq!(at(0, 0)?, table[0]);
        Ok(())
    }

    #[test]
    fn half_a_frame_is_an_error() {
        assert!(pixel_values(&[0; FRAME_BYTES / 2], &Device::Cpu).is_err());
    }
}
