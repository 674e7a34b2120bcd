//! The distance of an outcome from the CPU's.

use candle_core::{DType, Device, Result, Tensor};

/// How far two outcomes are apart.
#[derive(Clone, Copy, Default)]
pub struct Difference {
    /// Root mean square of the difference, over that of what is wanted.
    pub rms: f64,
    /// The greatest difference of a value, over its size and the outcome's root mean square together.
    pub outlier: f64,
}

impl Difference {
    /// Of an outcome from the CPU's, anywhere and in one type.
    ///
    /// # Errors
    /// Outcomes of different shapes or types; the device's.
    pub fn between(got: &Tensor, want: &Tensor) -> Result<Self> {
        let flat = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        if got.dims() != want.dims() || got.dtype() != want.dtype() {
            candle_core::bail!("{got:?} where the CPU makes {want:?}");
        }
        let (got, want) = (flat(got)?, flat(want)?);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let mean = |sum: f64| (sum / want.len() as f64).sqrt();
        let size = mean(want.iter().map(|&w| square(w)).sum());
        let rms = mean(got.iter().zip(&want).map(|(g, w)| square(g - w)).sum()) / size;
        let outlier = got.iter().zip(&want).map(|(g, w)| f64::from((g - w).abs()) / (f64::from(w.abs()) + size));
        Ok(Difference { rms, outlier: outlier.fold(0.0, f64::max) })
    }

    /// The worse of both; what is not a number is worst.
    pub fn or(self, other: Self) -> Self {
        let worse = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
        Difference { rms: worse(self.rms, other.rms), outlier: worse(self.outlier, other.outlier) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    #[test]
    fn one_wrong_value_among_many_stands_out() -> Result<()> {
        let want = Draws::default().normal(&[100_000])?;
        let but_one = |value: f32| -> Result<Difference> {
            let mut got = want.to_vec1::<f32>()?;
            got[77_777] = value;
            Difference::between(&Tensor::from_vec(got, want.dims(), &Device::Cpu)?, &want)
        };
        let off = but_one(3.0)?;
        assert!(off.rms < 0.02 && off.outlier > 0.05, "{} {}", off.rms, off.outlier);
        let worst = Difference::default().or(but_one(f32::NAN)?).or(Difference::default());
        assert!(worst.rms.is_nan(), "what is not a number is never within a tolerance");
        Ok(())
    }
}
