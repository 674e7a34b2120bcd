//! Log-mel features of one 30 s window, as `WhisperFeatureExtractor` computes them (MODEL.md 2.3).

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use compute::transfer::upload;
use protocol::plan::{HOP_SAMPLES, SAMPLE_RATE, WINDOW_SAMPLES};
use protocol::tensor::Dtype;
use rayon::prelude::*;
use rustfft::algorithm::butterflies::{Butterfly5, Butterfly16};
use rustfft::algorithm::{GoodThomasAlgorithmSmall, MixedRadixSmall};
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftDirection};

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
pub struct Filter {
    /// First bin with a weight.
    pub first: usize,
    /// Weights of that bin and the ones after it.
    pub weights: Vec<f32>,
}

/// Turns windows of sound into log-mel features.
pub struct LogMel {
    fft: GoodThomasAlgorithmSmall<f64>,
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

/// Fourier transform of [`FFT`] values. Put together by hand: a planner brings everything that its crate can do, and takes 13 s to compile.
fn transform() -> GoodThomasAlgorithmSmall<f64> {
    let forward = FftDirection::Forward;
    let five: Arc<dyn Fft<f64>> = Arc::new(Butterfly5::new(forward));
    let by_25 = Arc::new(MixedRadixSmall::new(five.clone(), five));
    GoodThomasAlgorithmSmall::new(Arc::new(Butterfly16::new(forward)), by_25)
}

/// Power of both frames of a pair, bin by bin, from the transform of one plus `i` times the other. Both are real: the spectrum of one
/// is what mirrors into its conjugate, that of the other what mirrors into the opposite of it.
fn powers(both: &[Complex<f64>]) -> [[f32; BINS]; 2] {
    let mut powers = [[0.0; BINS]; 2];
    for bin in 0..BINS {
        let (value, mirrored) = (both[bin], both[(FFT - bin) % FFT].conj());
        powers[0][bin] = ((value + mirrored) / 2.0).norm_sqr() as f32;
        powers[1][bin] = ((value - mirrored) / 2.0).norm_sqr() as f32;
    }
    powers
}

impl LogMel {
    /// Prepares `mels` filters.
    pub fn new(mels: usize) -> Self {
        let turn = 2.0 * std::f64::consts::PI / FFT as f64;
        LogMel {
            fft: transform(),
            hann: (0..FFT).map(|i| (0.5 - 0.5 * (turn * i as f64).cos()) as f32).collect(),
            filters: slaney_filters(mels),
        }
    }

    /// Filters over the 201 bins of a frame's power, from the lowest to the highest.
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    /// The features of at most 480,000 samples, silence after them: `[mels, 3000]` row-major.
    pub fn window(&self, pcm: &[i16]) -> Vec<f32> {
        let mels = self.filters.len();
        // A frame without a single sample under it is silence. Its logarithm is known.
        let sounding = (pcm.len() + FFT / 2).div_ceil(HOP).min(FRAMES);
        let silence = FLOOR.log10();
        let mut frames = vec![silence; sounding * mels]; // [sounding, mels]
        let scratch = self.fft.get_inplace_scratch_len();
        let zeros = |values: usize| vec![Complex::<f64>::default(); values];
        let padded = padded(pcm, sounding.next_multiple_of(2));
        let under = |frame: usize| &padded[frame * HOP..][..FFT];
        // Two frames in one transform, as the parts of complex values.
        frames.par_chunks_mut(2 * mels).enumerate().for_each_init(
            || (zeros(FFT), zeros(scratch)),
            |(both, scratch), (pair, out)| {
                let samples = under(2 * pair).iter().zip(under(2 * pair + 1));
                for ((value, (a, b)), weight) in both.iter_mut().zip(samples).zip(&self.hann) {
                    *value = Complex::new((a * weight).into(), (b * weight).into());
                }
                self.fft.process_with_scratch(both, scratch);
                for (out, power) in out.chunks_exact_mut(mels).zip(powers(both)) {
                    for (y, filter) in out.iter_mut().zip(&self.filters) {
                        let energy: f32 = filter.weights.iter().zip(&power[filter.first..]).map(|(w, p)| w * p).sum();
                        *y = energy.max(FLOOR).log10();
                    }
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

/// Samples under so many frames, from -1 to 1: what lies before the first sample or behind the window's last is mirrored, what follows a
/// shorter sound is silence.
fn padded(pcm: &[i16], frames: usize) -> Vec<f32> {
    let before = FFT / 2;
    let level = |&sample: &i16| f32::from(sample) / 32768.0;
    let at = |at: usize| pcm.get(at).map_or(0.0, level);
    let mirrored = |past: usize| if past < SAMPLES { past } else { 2 * SAMPLES - 2 - past };
    let mut padded: Vec<f32> = (1..=before).rev().map(at).collect();
    padded.extend(pcm.iter().map(level));
    padded.extend((pcm.len()..frames * HOP + before).map(|past| at(mirrored(past))));
    padded
}
