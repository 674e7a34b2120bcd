//! Frequencies of the position sinusoid that the oracle's host rounded otherwise than ours.
//!
//! They come out of `torch.exp`, which is the vector library's under it: it misses the nearest f32 about once in a
//! hundred, on Intel's processors at other places than on AMD's, with the same torch. MODEL.md 6 reckons with 25 of 1,792.
//! Each turns its angles by up to 6e-4 rad and would hide, at some 2e-5 of an embedding, whatever else is wrong there. So
//! they are found from the golden embeddings themselves, one by one, told, and used: every boundary then has to keep its
//! limit as it stands. What is not such a rounding cannot be mended by one.

use candle_core::{Device, Result, Tensor};
use stage_fuse::frequency::frequencies;
use stage_fuse::{Fuser, PositionEmbedding};

use super::golden::{Golden, Stored};

/// An `exp` may miss the nearest value where the exact one lies this near to the middle between two, in units of the last
/// place: 0.044 was seen.
const NEAR_THE_MIDDLE: f64 = 0.06;
/// Places that are looked at, the last ones: angles are largest there.
const PLACES: usize = 12;
/// A rounding counts as the oracle's if with it the squares of all differences fall by this share at least.
const GAIN: f64 = 1e-3;
/// Embeddings that are off by less than this, relative rms, show no rounding any more, and would count the last bits of
/// sines as such: a third of what the boundary may be off by.
const NOISE: f64 = 1e-6;
/// Share of the frequencies that may be rounded otherwise; more is no matter of rounding.
const MOST: f64 = 0.05;

/// Golden embeddings of some places of a whole.
struct Places {
    first: usize,
    length: usize,
    want: Tensor, // [n, D]
}

impl Places {
    /// The last ones of a golden tensor that is there as a whole.
    fn of(stored: Option<&Stored>) -> Result<Option<Self>> {
        let Some(stored) = stored.filter(|s| s.stride == 1) else { return Ok(None) };
        let [length, width] = stored.shape[..] else { return Ok(None) };
        let first = length.saturating_sub(PLACES);
        let values = stored.values[first * width..].to_vec();
        let want = Tensor::from_vec(values, (length - first, width), &Device::Cpu)?;
        Ok(Some(Places { first, length, want }))
    }

    /// The sum of squares.
    fn size(&self) -> Result<f64> {
        Ok(f64::from(self.want.sqr()?.sum_all()?.to_scalar::<f32>()?))
    }

    /// The sum of squared differences.
    fn off(&self, embedding: &PositionEmbedding) -> Result<f64> {
        let got = embedding.rows(self.first as u64, self.length - self.first, self.length as u64)?;
        Ok(f64::from((got.to_device(&Device::Cpu)? - &self.want)?.sqr()?.sum_all()?.to_scalar::<f32>()?))
    }
}

/// The other neighbour of each frequency whose exact value lies near the middle between two.
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

/// Makes the adapters round their frequencies as the oracle's host did, and says which those are.
///
/// # Errors
/// candle's.
pub fn follow(fuser: &mut Fuser, golden: &Golden) -> Result<()> {
    let halves = ["pos_t_image", "pos_t_audio"].map(|name| Places::of(golden.tensor(name)));
    let mut places = Vec::new();
    for half in halves {
        places.extend(half?.filter(|p| p.want.dims()[1] == fuser.width()));
    }
    let followed = find(fuser, &places)?;
    if !followed.is_empty() {
        let (count, all) = (followed.len(), fuser.width() / 2);
        eprintln!("{count} of {all} frequencies are rounded as the golden directory's host did: {followed:?}");
    }
    Ok(())
}

/// Which frequencies must be rounded otherwise to come to these embeddings; the adapters have them from now on.
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

    /// The last places of 300 as these frequencies have them.
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
