//! Resampling of any rate to 16 kHz, as ffmpeg's libswresample does it with its default settings.
//!
//! Source of the formulas: `libswresample/resample.c`: a sinc of 32 taps (more when the rate falls) under a Kaiser
//! window of beta 9, cut off at 0.97 of the lower Nyquist rate, one filter per exact phase of the ratio; the audio is
//! mirrored at its start (`invert_initial_buffer`) and at its end (`resample_flush`).

use protocol::plan::SAMPLE_RATE;

/// Number of taps at equal rates.
const TAPS: f64 = 32.0;
/// Cutoff frequency as a fraction of the lower Nyquist rate.
const CUTOFF: f64 = 0.97;
/// Shape of the Kaiser window.
const BETA: f64 = 9.0;
/// Vector width to a multiple of which filters are padded.
const LANES: usize = 8;
/// Number of consumed samples after which they are dropped from memory.
const TRIM_AT: usize = 1 << 16;

/// Streaming resampler for one channel.
pub(crate) struct Resampler {
    /// `phases` filters of `stride` values, of which `taps` are not padding.
    bank: Vec<f32>,
    taps: usize,
    stride: usize,
    phases: usize,
    /// Number of input phases between two outputs.
    step: usize,
    /// Input not yet consumed, once `primed` with the mirrored start.
    input: Vec<f32>,
    primed: bool,
    /// Phase of the next output, counted from the start of `input`.
    at: usize,
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Modified Bessel function of the first kind, order zero.
fn bessel(x: f64) -> f64 {
    let (mut sum, mut term, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-18 {
        let half = x / (2.0 * k);
        term *= half * half;
        sum += term;
        k += 1.0;
    }
    sum
}

impl Resampler {
    /// A resampler from `rate` Hz; `None` for 16 kHz.
    pub(crate) fn new(rate: u32) -> Option<Self> {
        let rate = u64::from(rate.max(1));
        if rate == SAMPLE_RATE {
            return None;
        }
        let common = greatest_common_divisor(rate, SAMPLE_RATE);
        let phases = (SAMPLE_RATE / common) as usize;
        let step = (rate / common) as usize;
        let factor = (SAMPLE_RATE as f64 * CUTOFF / rate as f64).min(1.0);
        let taps = ((TAPS / factor).ceil() as usize).next_multiple_of(2);
        let stride = taps.next_multiple_of(LANES);
        let center = (taps - 1) / 2;
        let mut bank = vec![0.0; phases * stride];
        let mut norm = 0.0;
        for (phase, filter) in bank.chunks_exact_mut(stride).enumerate() {
            let weights: Vec<f64> = (0..taps)
                .map(|i| {
                    let x = std::f64::consts::PI * (i as f64 - center as f64 - phase as f64 / phases as f64) * factor;
                    let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
                    let w = 2.0 * x / (factor * taps as f64 * std::f64::consts::PI);
                    sinc * bessel(BETA * (1.0 - w * w).max(0.0).sqrt())
                })
                .collect();
            if phase == 0 {
                norm = weights.iter().sum();
            }
            filter.iter_mut().zip(weights).for_each(|(f, w)| *f = (w / norm) as f32);
        }
        Some(Resampler { bank, taps, stride, phases, step, input: Vec::new(), primed: false, at: 0 })
    }

    /// Takes input and appends the output that can be computed so far.
    pub(crate) fn push(&mut self, input: &[f32], out: &mut Vec<f32>) {
        self.input.extend_from_slice(input);
        if !self.primed {
            if self.input.len() <= self.taps {
                return;
            }
            self.prime();
        }
        self.drain(out);
    }

    /// Ends the input and appends the rest of the output.
    pub(crate) fn finish(mut self, out: &mut Vec<f32>) {
        if !self.primed {
            if self.input.is_empty() {
                return;
            }
            self.prime();
        }
        let end = self.input.len();
        let unused = end.saturating_sub(self.at / self.phases);
        let reflection = unused.min(self.taps).div_ceil(2);
        self.input.extend_from_within(end - reflection..);
        self.input[end..].reverse();
        self.drain(out);
    }

    /// Prepends the mirrored start, so that the first output is centred on the first sample.
    fn prime(&mut self) {
        let center = (self.taps - 1) / 2;
        let mirrored = |n: usize| self.input.get(n).copied().unwrap_or(0.0);
        let before: Vec<f32> = (1..=center).rev().map(mirrored).collect();
        self.input.splice(0..0, before);
        self.primed = true;
    }

    fn drain(&mut self, out: &mut Vec<f32>) {
        loop {
            let (start, phase) = (self.at / self.phases, self.at % self.phases);
            if start + self.taps > self.input.len() {
                break;
            }
            let filter = &self.bank[phase * self.stride..][..self.taps];
            out.push(dot(&self.input[start..start + self.taps], filter));
            self.at += self.step;
        }
        let consumed = (self.at / self.phases).min(self.input.len());
        if consumed >= TRIM_AT {
            self.input.drain(..consumed);
            self.at -= consumed * self.phases;
        }
    }
}

fn dot(samples: &[f32], filter: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (samples, sample_rest) = samples.as_chunks::<LANES>();
    let (filters, filter_rest) = filter.as_chunks::<LANES>();
    for (samples, filter) in samples.iter().zip(filters) {
        // By number: calls into iterators of eight values stay calls in a dev build.
        lanes = std::array::from_fn(|lane| lanes[lane] + samples[lane] * filter[lane]);
    }
    let rest: f32 = sample_rest.iter().zip(filter_rest).map(|(s, f)| s * f).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resampled(rate: u32, input: &[f32], piece: usize) -> Vec<f32> {
        let mut resampler = Resampler::new(rate).unwrap();
        let mut out = Vec::new();
        input.chunks(piece).for_each(|c| resampler.push(c, &mut out));
        resampler.finish(&mut out);
        out
    }

    #[test]
    fn a_tone_keeps_its_phase_and_level_at_every_rate() {
        for rate in [8_000u32, 11_025, 22_050, 44_100, 48_000, 96_000] {
            let tone = |i: usize, rate: f64| (2.0 * std::f64::consts::PI * 440.0 * i as f64 / rate).sin() as f32;
            let input: Vec<f32> = (0..rate as usize).map(|i| tone(i, rate.into())).collect();
            let out = resampled(rate, &input, 1000);
            assert!(out.len().abs_diff(16_000) <= 1, "{rate}: {}", out.len());
            // The ends are mirrored, and a sine is not even: only the middle can be exact.
            for (i, value) in out.iter().enumerate().skip(400).take(15_000) {
                assert!((value - tone(i, 16_000.0)).abs() < 1e-3, "{rate} {i} {value}");
            }
        }
    }

    #[test]
    fn pieces_give_the_same_as_the_whole() {
        let input: Vec<f32> = (0..300_000u32).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
        let whole = resampled(44_100, &input, input.len());
        for piece in [1, 37, 1024, 100_000] {
            assert_eq!(resampled(44_100, &input[..], piece), whole, "{piece}");
        }
    }

    #[test]
    fn a_constant_stays_constant_and_nothing_stays_nothing() {
        let out = resampled(48_000, &[0.25; 9_000], 512);
        assert_eq!(out.len(), 3_000);
        assert!(out.iter().all(|v| (v - 0.25).abs() < 1e-4));
        assert!(resampled(48_000, &[], 1).is_empty());
    }
}
