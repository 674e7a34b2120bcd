//! Values of a demo model's tensors: any of them alone, or a piece of a tensor as a file has it.

use half::bf16;
use rayon::prelude::*;

use super::size::Dtype;
use compute::random::Normal;

/// What makes the values of one tensor under one seed.
#[derive(Clone, Debug)]
pub enum Values {
    /// Independent, normally distributed.
    Normal(Normal),
    /// Whisper's fixed positions.
    Sinusoids {
        /// Of a row.
        width: u64,
    },
}

impl Values {
    /// Value `index` of the flattened tensor.
    pub fn at(&self, index: u64) -> f32 {
        match self {
            Values::Normal(normal) => normal.at(index),
            Values::Sinusoids { width } => {
                let (position, column, half) = ((index / width) as f64, index % width, width / 2);
                let fraction = (column % half) as f64 / (half - 1) as f64;
                let angle = position * libm::exp(-4.0 * std::f64::consts::LN_10 * fraction);
                if column < half { libm::sin(angle) as f32 } else { libm::cos(angle) as f32 }
            }
        }
    }
}

/// Values that one thread makes without looking for other work.
const RUN: usize = 64 << 10;

impl Values {
    /// Puts values from `first` on into `bytes`, as many as fit, as a file has them: in `dtype`, little-endian. On all
    /// threads of the rayon pool.
    pub fn write(&self, first: u64, dtype: Dtype, bytes: &mut [u8]) {
        let width = dtype.bytes() as usize;
        bytes.par_chunks_mut(RUN * width).enumerate().for_each(|(run, bytes)| {
            let first = first + (run * RUN) as u64;
            // The source is matched out here, not per value, so that the loop inside is one the compiler can unroll.
            match self {
                Values::Normal(normal) => encode(bytes, dtype, |i| normal.at(first + i)),
                Values::Sinusoids { .. } => encode(bytes, dtype, |i| self.at(first + i)),
            }
        });
    }
}

fn encode(bytes: &mut [u8], dtype: Dtype, value: impl Fn(u64) -> f32) {
    match dtype {
        Dtype::F32 => {
            for (i, place) in (0..).zip(bytes.as_chunks_mut().0) {
                *place = value(i).to_le_bytes();
            }
        }
        Dtype::Bf16 => {
            for (i, place) in (0..).zip(bytes.as_chunks_mut().0) {
                *place = bf16::from_f32(value(i)).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::size::Dims;
    use super::super::tensors::list;
    use super::*;
    use config::Size;

    #[test]
    fn whispers_positions_are_sines_then_cosines() {
        let tensors = list(&Dims::of(Size::Realdims));
        let positions = tensors.iter().find(|t| t.name == "model.mm_aud.encoder.embed_positions.weight").unwrap();
        let values = positions.values(1);
        let (width, half) = (positions.shape[1], positions.shape[1] / 2);
        for (p, j) in [(0, 0), (1, 0), (1, 5), (1499, half - 1), (700, 40)] {
            let angle = p as f64 * (-(1e4_f64.ln()) / (half - 1) as f64 * j as f64).exp();
            assert!((f64::from(values.at(p * width + j)) - angle.sin()).abs() < 1e-6);
            assert!((f64::from(values.at(p * width + half + j)) - angle.cos()).abs() < 1e-6);
        }
    }

    #[test]
    fn values_from_anywhere_on_are_those_of_the_whole() {
        let tensors = list(&Dims::of(Size::Tiny));
        let count = 3 * RUN + 5;
        for name in ["model.embed_tokens.weight", "model.mm_aud.encoder.embed_positions.weight"] {
            let values = tensors.iter().find(|t| t.name == name).unwrap().values(3);
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let width = dtype.bytes() as usize;
                let mut whole = vec![0; count * width];
                values.write(0, dtype, &mut whole);
                for first in [0, 1, RUN - 1, 2 * RUN + 3] {
                    let mut part = vec![0; (count - first) * width];
                    values.write(first as u64, dtype, &mut part);
                    assert!(part == whole[first * width..], "{name}: {dtype:?} from {first}");
                }
                let last = values.at(count as u64 - 1);
                let stored = match dtype {
                    Dtype::F32 => last.to_le_bytes().to_vec(),
                    Dtype::Bf16 => bf16::from_f32(last).to_le_bytes().to_vec(),
                };
                assert_eq!(whole[whole.len() - width..], stored);
            }
        }
    }
}
