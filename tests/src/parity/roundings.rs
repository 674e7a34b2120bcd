//! Frequencies of the position sinusoid that the oracle's host rounded differently from ours.
//!
//! They are results of `torch.exp`, which calls a vector library: about one in a hundred is not the nearest f32, on Intel's
//! processors others than on AMD's, with the same torch. MODEL.md 6 expects 25 of 1,792. Each changes its angles by up to
//! 6e-4 rad and would hide, at some 2e-5 of an embedding, any other defect there. So they are found from the golden
//! embeddings themselves, one by one, reported, and used: every boundary then has to keep its limit unchanged. A defect
//! of another kind cannot be hidden by such a rounding.

use candle_core::{Device, Result, Tensor};
use stage_fuse::frequency::frequencies;
use stage_fuse::{Fuser, PositionEmbedding};

use super::golden::{Golden, Stored};

/// Largest distance of an exact value from the middle between two f32, in units of the last place, at which `exp` may
/// round to the other one: 0.044 was seen.
const NEAR_THE_MIDDLE: f64 = 0.06;
/// Number of positions that are compared, the last ones, where angles are largest.
const PLACES: usize = 12;
/// Least share by which the sum of squared differences falls with a rounding of the oracle's.
const GAIN: f64 = 1e-3;
/// Relative rms difference below which no rounding shows any more, only the last bits of sines: a third of the tolerance
/// of the boundary.
const NOISE: f64 = 1e-6;
/// Largest share of the frequencies that may be rounded differently.
const MOST: f64 = 0.05;

/// Golden embeddings of the last positions.
struct Places {
    first: usize,
    length: usize,
    want: Tensor, // [n, D]
}

impl Places {
    /// The last positions of a golden tensor; none if it is thinned.
    fn of(stored: Option<&Stored>) -> Result<Option<Self>> {
        let Some(stored) = stored.filter(|s| s.stride == 1) else { return Ok(None) };
        let [length, width] = stored.shape[..] else { return Ok(None) };
        let first = length.saturating_sub(PLACES);
        let values = stored.values[first * width..].to_vec();
        let want = Tensor::from_vec(values, (length - first, width), &Device::Cpu)?;
        Ok(Some(Places { first, length, want }))
    }

    /// Sum of squares.
    fn size(&self) -> Result<f64> {
        Ok(f64::from(self.want.sqr()?.sum_all()?.to_scalar::<f32>()?))
    }

    /// Sum of squared differences.
    fn off(&self, embedding: &PositionEmbedding) -> Result<f64> {
        let got = embedding.rows(self.first as u64, self.length - self.first, self.length as u64)?;
        Ok(f64::from((got.to_device(&Device::Cpu)? - &self.want)?.sqr()?.sum_all()?.to_scalar::<f32>()?))
    }
}

/// Other f32 neighbour of each frequency whose exact value lies near the middle between two.
fn others(ours: &[f32]) -> Vec<(usize, f32)> {
    let width = 2 * ours.len();
    let step = -(10_000f64.ln() / width as f64) as f32;
    let other = |(j, &ours): (usize, &f32)| {
        let exact = f64::from((2 * j) as f32 * step).exp();
        let (below, above) = match f64::from(ours) > exact {
            true => (ours.next_down(), ours),
            false => (ours, ours.next_up()),
        };
        let ulp = f64::from(above) - f64::from(below);
        let middle = (f64::from(above) + f64::from(below)) / 2.0;
        ((exact - middle).abs() < NEAR_THE_MIDDLE * ulp).then_some((j, if ours == above { below } else { above }))
    };
    ours.iter().enumerate().filter_map(other).collect()
}

/// Gives the adapters the oracle's roundings, and reports which those are.
///
/// # Errors
/// candle's.
pub fn follow(fuser: &mut Fuser, golden: &Golden) -> Result<()> {
    let stored = ["pos_t_image", "pos_t_audio"].map(|name| Places::of(golden.tensor(name)));
    let mut places = Vec::new();
    for places_of in stored {
        places.extend(places_of?.filter(|p| p.want.dims()[1] == fuser.width()));
    }
    let followed = find(fuser, &places)?;
    if !followed.is_empty() {
        let (count, all) = (followed.len(), fuser.width() / 2);
        eprintln!("{count} of {all} frequencies are rounded as by the golden directory's host: {followed:?}");
    }
    Ok(())
}

/// Indices of the frequencies that were rounded differently for these embeddings; the adapters then have them.
fn find(fuser: &mut Fuser, places: &[Places]) -> Result<Vec<usize>> {
    let ours = frequencies(fuser.width());
    let (mut taken, mut followed) = (ours.clone(), Vec::new());
    let off = |fuser: &Fuser| places.iter().map(|p| p.off(fuser.pos_t())).sum::<Result<f64>>();
    let mut least = off(fuser)?;
    let size = places.iter().map(Places::size).sum::<Result<f64>>()?;
    for (j, other) in others(&ours) {
        if least <= NOISE * NOISE * size {
            break;
        }
        taken[j] = other;
        fuser.set_frequencies(&taken);
        let now = off(fuser)?;
        if now < least * (1.0 - GAIN) {
            least = now;
            followed.push(j);
        } else {
            taken[j] = ours[j];
        }
    }
    if followed.len() as f64 > (MOST * ours.len() as f64).max(2.0) {
        (taken, followed) = (ours, Vec::new());
    }
    fuser.set_frequencies(&taken);
    Ok(followed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    use candle_core::DType;
    use model::checkpoint::{Checkpoint, Weights};

    fn fuser() -> Fuser {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/checkpoints/tied");
        let checkpoint = Arc::new(Checkpoint::open(dir).unwrap());
        Fuser::new(checkpoint.config(), &Weights::new(checkpoint.clone(), DType::F32, Device::Cpu)).unwrap()
    }

    /// The last of 300 positions with these frequencies.
    fn places(frequencies: &[f32]) -> Vec<Places> {
        let mut other = fuser();
        other.set_frequencies(frequencies);
        let (first, length) = (300 - PLACES, 300);
        let want = other.pos_t().rows(first as u64, PLACES, length as u64).unwrap();
        vec![Places { first, length, want }]
    }

    fn relative(fuser: &Fuser, places: &[Places]) -> f64 {
        (places[0].off(fuser.pos_t()).unwrap() / places[0].size().unwrap()).sqrt()
    }

    #[test]
    fn roundings_of_another_host_are_found_and_followed() {
        let mut fuser = fuser();
        let mut theirs = frequencies(fuser.width());
        let turned: Vec<usize> = others(&theirs).iter().take(2).map(|&(j, other)| (theirs[j] = other, j).1).collect();
        assert_eq!(turned.len(), 2);
        let places = places(&theirs);
        assert!(relative(&fuser, &places) > 3e-6, "the limit of this boundary would not notice");
        assert_eq!(find(&mut fuser, &places).unwrap(), turned);
        assert_eq!(relative(&fuser, &places), 0.0);
    }

    #[test]
    fn our_own_roundings_stay_and_what_is_none_is_not_mended() {
        let mut fuser = fuser();
        let ours = frequencies(fuser.width());
        assert!(find(&mut fuser, &places(&ours)).unwrap().is_empty());
        let stretched: Vec<f32> = ours.iter().map(|f| f * (1.0 + 1e-6)).collect();
        let places = places(&stretched);
        find(&mut fuser, &places).unwrap();
        assert!(relative(&fuser, &places) > 3e-6);
    }
}
