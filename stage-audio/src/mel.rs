//! Log-mel features of one 30 s window, as `WhisperFeatureExtractor` computes them (MODEL.md 2.3).

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use compute::transfer::upload;
use protocol::plan::{HOP_SAMPLES, SAMPLE_RATE, WINDOW_SAMPLES};
use protocol::tensor::Dtype;
use rayon::prelude::*;
use realfft::{RealFftPlanner, RealToComplex};

/// Samples under one Fourier transform.
const FFT: usize = 400;
const BINS: usize = FFT / 2 + 1;
const HOP: usize = HOP_SAMPLES as usize;
const SAMPLES: usize = WINDOW_SAMPLES as usize;
/// Mel frames of a window: the last of 3001 centred ones is dropped.
pub const FRAMES: usize = SAMPLES / HOP;
/// Highest frequency of the filters, Hz.
const MAX_HZ: f64 = 8000.0;
/// Least power that the logarithm sees.
const FLOOR: f32 = 1e-10;

/// One triangular filter: its weights from bin `first` on, zero elsewhere.
struct Filter {
    first: usize,
    weights: Vec<f32>,
}

/// Turns windows of sound into log-mel features.
pub struct LogMel {
    fft: Arc<dyn RealToComplex<f64>>,
    hann: Vec<f32>,
    filters: Vec<Filter>,
}

/// Slaney's mel scale: linear to 1 kHz, logarithmic above.
fn hz_to_mel(hz: f64) -> f64 {
    if hz >= 1000.0 { 15.0 + (hz / 1000.0).ln() * (27.0 / 6.4f64.ln()) } else { 3.0 * hz / 200.0 }
}

fn mel_to_hz(mel: f64) -> f64 {
    if mel >= 15.0 { 1000.0 * ((6.4f64.ln() / 27.0) * (mel - 15.0)).exp() } else { 200.0 * mel / 3.0 }
}

/// Triangles over bins, of unit area: in double precision, rounded at the end.
fn slaney_filters(mels: usize) -> Vec<Filter> {
    let step = hz_to_mel(MAX_HZ) / (mels + 1) as f64;
    let edges: Vec<f64> = (0..mels + 2).map(|i| mel_to_hz(step * i as f64)).collect();
    let filter = |edge: &[f64]| {
        let weight = |bin: usize| {
            let hz = bin as f64 * SAMPLE_RATE as f64 / FFT as f64;
            let rise = (hz - edge[0]) / (edge[1] - edge[0]);
            let fall = (edge[2] - hz) / (edge[2] - edge[1]);
            (rise.min(fall).max(0.0) * (2.0 / (edge[2] - edge[0]))) as f32
        };
        let first = (0..BINS).find(|&b| weight(b) > 0.0).unwrap_or(0);
        Filter { first, weights: (first..BINS).map(weight).take_while(|&w| w > 0.0).collect() }
    };
    edges.windows(3).map(filter).collect()
}

impl LogMel {
    /// Prepares `mels` filters.
    pub fn new(mels: usize) -> Self {
        let turn = 2.0 * std::f64::consts::PI / FFT as f64;
        LogMel {
            fft: RealFftPlanner::new().plan_fft_forward(FFT),
            hann: (0..FFT).map(|i| (0.5 - 0.5 * (turn * i as f64).cos()) as f32).collect(),
            filters: slaney_filters(mels),
        }
    }

    /// The features of at most 480,000 samples, silence after them: `[mels, 3000]` row-major.
    pub fn window(&self, pcm: &[i16]) -> Vec<f32> {
        let mels = self.filters.len();
        // A frame without a single sample under it is silence. Its logarithm is known.
        let sounding = (pcm.len() + FFT / 2).div_ceil(HOP).min(FRAMES);
        let silence = FLOOR.log10();
        let mut frames = vec![silence; sounding * mels]; // [sounding, mels]
        frames.par_chunks_mut(mels).enumerate().for_each_init(
            || (self.fft.make_input_vec(), self.fft.make_output_vec(), self.fft.make_scratch_vec()),
            |(input, spectrum, scratch), (frame, out)| {
                for (i, (x, &weight)) in input.iter_mut().zip(&self.hann).enumerate() {
                    *x = f64::from(sample(pcm, (frame * HOP + i) as isize - (FFT / 2) as isize) * weight);
                }
                self.fft
                    .process_with_scratch(input, spectrum, scratch)
                    .expect("the plan made these buffers. This is a bug.");
                let mut power = [0f32; BINS];
                for (p, c) in power.iter_mut().zip(spectrum.iter()) {
                    *p = c.norm_sqr() as f32;
                }
                for (y, filter) in out.iter_mut().zip(&self.filters) {
                    let energy: f32 = filter.weights.iter().zip(&power[filter.first..]).map(|(w, p)| w * p).sum();
                    *y = energy.max(FLOOR).log10();
                }
            },
        );
        // The loudest value of this window, not of the file, sets the floor.
        let floor = frames.iter().fold(silence, |a, &b| a.max(b)) - 8.0;
        let scaled = |y: f32| (y.max(floor) + 4.0) / 4.0;
        let mut out = vec![scaled(silence); mels * FRAMES];
        for (mel, row) in out.chunks_exact_mut(FRAMES).enumerate() {
            for (frame, y) in row[..sounding].iter_mut().enumerate() {
                *y = scaled(frames[frame * mels + mel]);
            }
        }
        out
    }

    /// [`LogMel::window`] as the encoder takes it, `[1, mels, 3000]`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn tensor(&self, pcm: &[i16], device: &Device) -> Result<Tensor> {
        self.upload([self.window(pcm).as_slice()], device)
    }

    /// Features of windows, each as [`window`](Self::window) gives it, in one tensor `[W, mels, 3000]`: one copy, for which the
    /// device's work on other windows is not waited for.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload<'w>(&self, windows: impl IntoIterator<Item = &'w [f32]>, device: &Device) -> Result<Tensor> {
        let values: Vec<f32> = windows.into_iter().flatten().copied().collect();
        let mels = self.filters.len();
        let shape = [values.len() / (mels * FRAMES), mels, FRAMES];
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let tensor = protocol::tensor::Tensor::new(Dtype::F32, &shape, bytes).map_err(candle_core::Error::wrap)?;
        upload(&tensor, device)
    }
}

/// Sample `at` of the padded window, mirrored at both ends.
fn sample(pcm: &[i16], at: isize) -> f32 {
    let at = at.unsigned_abs();
    let at = if at < SAMPLES { at } else { 2 * SAMPLES - 2 - at };
    pcm.get(at).map_or(0.0, |&s| f32::from(s) / 32768.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MELS: usize = 128;
    /// Filters of Whisper's smaller models, large-v2 among them.
    const BASE_MELS: usize = 80;

    /// Two tones and something that no two samples share, loud to quiet.
    fn sound(samples: usize) -> Vec<i16> {
        let value = |i: usize| {
            let t = i as f64 / SAMPLE_RATE as f64;
            let tones = (2764.6 * t).sin() + 0.3 * (19_000.0 * t + 3.0 * t * t).cos();
            (tones * 9000.0 * (1.0 - 0.9 * (i % 7001) as f64 / 7001.0)) as i16 ^ (i * i % 31) as i16
        };
        (0..samples).map(value).collect()
    }

    /// Frame `t` straight from the formulas, before the floor: log10 of the energy of each of `mels` filters.
    fn by_definition(mels: usize, pcm: &[i16], t: usize) -> Vec<f64> {
        let turn = 2.0 * std::f64::consts::PI / 400.0;
        let x: Vec<f64> = (0..400i64)
            .map(|i| {
                let mut at = (t as i64 * 160 + i - 200).abs();
                if at >= 480_000 {
                    at = 2 * 479_999 - at;
                }
                let hann = 0.5 - 0.5 * (turn * i as f64).cos();
                pcm.get(at as usize).map_or(0.0, |&s| f64::from(s) / 32768.0) * hann
            })
            .collect();
        let power: Vec<f64> = (0..201)
            .map(|bin| {
                let angle = |i: usize| turn * (bin * i % 400) as f64;
                let re: f64 = x.iter().enumerate().map(|(i, x)| x * angle(i).cos()).sum();
                let im: f64 = x.iter().enumerate().map(|(i, x)| x * angle(i).sin()).sum();
                re * re + im * im
            })
            .collect();
        let energy = |f: &Filter| f.weights.iter().zip(&power[f.first..]).map(|(&w, p)| f64::from(w) * p).sum();
        slaney_filters(mels).iter().map(|f| f64::max(energy(f), 1e-10).log10()).collect()
    }

    #[test]
    fn frames_follow_from_the_formulas_mirrored_ends_included() {
        let pcm = sound(SAMPLES);
        for mels in [MELS, BASE_MELS] {
            let mel = LogMel::new(mels).window(&pcm);
            assert_eq!(mel.len(), mels * FRAMES);
            let loudest = f64::from(mel.iter().fold(f32::MIN, |a, &b| a.max(b))) * 4.0 - 4.0;
            for t in [0, 1, 2, 777, 2998, 2999] {
                for (m, y) in by_definition(mels, &pcm, t).into_iter().enumerate() {
                    let want = (y.max(loudest - 8.0) + 4.0) / 4.0;
                    let got = f64::from(mel[m * FRAMES + t]);
                    // The window's table is single precision: quiet filters next to loud ones feel that.
                    assert!((got - want).abs() < 1e-5, "frame {t}, filter {m} of {mels}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn silence_is_minus_one_and_a_half_everywhere() {
        for samples in [0, 1, 16_000, SAMPLES] {
            assert!(LogMel::new(MELS).window(&vec![0; samples]).iter().all(|&y| y == -1.5), "{samples}");
        }
    }

    #[test]
    fn a_short_window_is_the_same_window_with_silence_after_it() {
        for samples in [1, 39, 40, 41, 200, 3359, 3360, 3361, 479_000, 479_801] {
            let mut pcm = sound(samples);
            let short = LogMel::new(MELS).window(&pcm);
            pcm.resize(SAMPLES, 0);
            assert!(short == LogMel::new(MELS).window(&pcm), "{samples} samples");
        }
    }

    #[test]
    fn quiet_values_are_lifted_to_eight_decades_under_the_loudest() {
        let mel = LogMel::new(MELS).window(&sound(100_000));
        let loudest = mel.iter().fold(f32::MIN, |a, &b| a.max(b));
        let quietest = mel.iter().fold(f32::MAX, |a, &b| a.min(b));
        assert!((loudest - quietest - 2.0).abs() < 1e-6, "{loudest} {quietest}");
    }

    #[test]
    fn filters_are_triangles_of_unit_area_that_follow_each_other() {
        let filters = slaney_filters(MELS);
        assert_eq!(filters.len(), MELS);
        // The lowest are narrower than bins are apart: the first holds 40 Hz alone.
        assert_eq!((filters[0].first, filters[0].weights.len()), (1, 1));
        for pair in filters.windows(2) {
            assert!(pair[1].first >= pair[0].first, "{}", pair[1].first);
        }
        // Wide filters have enough bins for their sum times 40 Hz to be their area.
        for filter in &filters[100..] {
            let area = 40.0 * filter.weights.iter().sum::<f32>();
            assert!((area - 1.0).abs() < 0.03, "{area}");
        }
        assert!(filters.iter().all(|f| f.first + f.weights.len() <= BINS && !f.weights.is_empty()));
    }

    /// Values of `WhisperFeatureExtractor.mel_filters` (transformers; librosa's filters), rounded to f32 there.
    #[test]
    fn eighty_filters_are_those_that_the_smaller_models_were_trained_with() {
        let filters = slaney_filters(BASE_MELS);
        assert_eq!(filters.len(), BASE_MELS);
        for (mel, bin, want) in [
            (0, 1, 0.024_862_595),
            (1, 1, 0.001_990_822),
            (1, 2, 0.022_871_772),
            (9, 10, 0.006_945_197),
            (39, 41, 0.011_486_922),
            (69, 131, 0.004_875_534),
            (79, 192, 0.003_164_711_6),
            (79, 199, 0.000_448_759),
        ] {
            let got = filters[mel].weights[bin - filters[mel].first];
            assert!((got - want).abs() <= 2e-7 * want, "filter {mel}, bin {bin}: {got} {want}");
        }
        // The last filter ends at 8000 Hz, where the formula gives 0 but for a rounding.
        let count = |f: &Filter| f.weights.iter().filter(|w| **w > 1e-9).count();
        assert_eq!((filters.iter().map(count).sum::<usize>(), count(&filters[0]), count(&filters[79])), (391, 1, 14));
    }
}
