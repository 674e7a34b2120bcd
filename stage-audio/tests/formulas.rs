//! Log-mel features and convolutions against their formulas, and the filters against published ones.

use candle_core::{Device, Result, Tensor};
use protocol::plan::{SAMPLE_RATE, WINDOW_SAMPLES};
use stage_audio::LogMel;
use stage_audio::conv::Conv1d;
use stage_audio::mel::{FRAMES, Filter};

const SAMPLES: usize = WINDOW_SAMPLES as usize;
/// Bins of a frame's power.
const BINS: usize = 201;
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
    LogMel::new(mels).filters().iter().map(|f| f64::max(energy(f), 1e-10).log10()).collect()
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
    let log_mel = LogMel::new(MELS);
    let filters = log_mel.filters();
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
    let log_mel = LogMel::new(BASE_MELS);
    let filters = log_mel.filters();
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

/// Values of both signs in [-2, 2], the same in every run.
fn varied(shape: &[usize], step: f64) -> Result<Tensor> {
    let values = (1..=shape.iter().product()).map(|i: usize| 2.0 * (i as f64 * step).sin() as f32);
    Tensor::from_vec(values.collect(), shape, &Device::Cpu)
}

#[test]
fn a_convolution_sees_the_neighbours_and_zeros_beyond_the_ends() -> Result<()> {
    let (weight, bias, x) = (varied(&[3, 2, 3], 1.7)?, varied(&[3], 0.9)?, varied(&[2, 8, 2], 2.3)?);
    let conv = Conv1d::new(&weight, bias.clone())?;
    let exact = |x: f64| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
    for (stride, y) in [(1, conv.forward(&x)?), (2, conv.halve(&x)?)] {
        assert_eq!(y.dims(), [2, 8 / stride, 3]);
        let (y, x) = (y.get(1)?.to_vec2::<f32>()?, x.get(1)?.to_vec2::<f32>()?);
        let (w, b) = (weight.to_vec3::<f32>()?, bias.to_vec1::<f32>()?);
        for (t, row) in y.iter().enumerate() {
            for (out, &got) in row.iter().enumerate() {
                let at = |c: usize, k: usize| {
                    (t * stride + k).checked_sub(1).and_then(|i| x.get(i)).map_or(0.0, |r| f64::from(r[c]))
                };
                let taps = (0..2).flat_map(|c| (0..3).map(move |k| (c, k)));
                let sum = f64::from(b[out]) + taps.map(|(c, k)| f64::from(w[out][c][k]) * at(c, k)).sum::<f64>();
                let want = exact(sum);
                let off = (f64::from(got) - want).abs();
                assert!(off < 1e-5, "stride {stride}, channel {out}, {t}: {got} {want}");
            }
        }
    }
    Ok(())
}
