//! Rates of this machine, by which floors are reckoned.

use candle_core::Result;
use compute::random::Draws;

use super::clock::Laps;

/// Bytes of each of the two buffers of the copies and comparisons: many times a cache.
const BUFFER: usize = 256 << 20;
/// Side of the matmul.
const SIDE: usize = 2_048;
/// Runs of each; the one of the least CPU time counts.
const RUNS: usize = 5;

/// Measured rates of the machine by a second of CPU time, with all threads at work: other programs lengthen the wall time.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Operations of a matmul of 2048 x 2048 x 2048 in f32; a multiplication and an addition are two.
    pub operations_per_s: f64,
    /// Bytes of a copy, read and written together.
    pub copy_bytes_per_s: f64,
    /// Bytes that are only read, by a comparison.
    pub read_bytes_per_s: f64,
}

impl Ceilings {
    /// Rates measured now.
    ///
    /// # Errors
    /// candle's.
    pub fn measure(threads: usize) -> Result<Self> {
        let draws = Draws::default();
        let (a, b) = (draws.normal((SIDE, SIDE))?, draws.normal((SIDE, SIDE))?);
        let matmul = least_cpu(|| a.matmul(&b).map(drop))?;
        let (from, mut to) = (vec![1u8; BUFFER], vec![1u8; BUFFER]);
        let piece = BUFFER / threads.max(1);
        let copy = least_cpu(|| {
            std::thread::scope(|scope| {
                for (from, to) in from.chunks(piece).zip(to.chunks_mut(piece)) {
                    scope.spawn(move || to.copy_from_slice(from));
                }
            });
            Ok(())
        })?;
        let read = least_cpu(|| {
            std::thread::scope(|scope| {
                for (from, to) in from.chunks(piece).zip(to.chunks(piece)) {
                    scope.spawn(move || assert!(from == to, "a copy differs"));
                }
            });
            Ok(())
        })?;
        Ok(Ceilings {
            operations_per_s: 2.0 * (SIDE as f64).powi(3) / matmul,
            copy_bytes_per_s: 2.0 * BUFFER as f64 / copy,
            read_bytes_per_s: 2.0 * BUFFER as f64 / read,
        })
    }
}

fn least_cpu(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        let mut laps = Laps::begin();
        run()?;
        laps.lap();
        least = least.min(laps.finish()[0].cpu_s);
    }
    Ok(least)
}
