//! What each boundary may be off by, for the precision that is compared (MODEL.md, "Decisions", and section 9).

use config::{Config, KvPrecision, MediaProducts, Precision, WeightFormat};

use super::golden::{Arithmetic, Golden};
use super::report::Tolerance;

/// How exactly a run must follow the oracle's single precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limits {
    /// f32: rounding only, token ids identical.
    Exact,
    /// 16 bit: three times the oracle's own noise, as the golden directory tells it or else MODEL.md 9. Quantized, the language model's boundaries have a wider
    /// limit of their own.
    Noisy {
        /// Times the noise of f16.
        noise: Precision,
        /// What encoders, adapters and tokens may be off by, where the encoders multiply in 8 bits.
        media: Option<f64>,
        /// What hidden states and logits may be off by, where weights, keys and values or the tokens' products are
        /// quantized.
        language: Option<f64>,
    },
}

/// What a boundary may be off by, in units of the oracle's own noise.
const TIMES_NOISE: f64 = 3.0;

/// Boundary prefixes with their noise in f16 and bf16 (MODEL.md 9), for random weights. Trained ones have a few activations
/// a hundred times larger than the rest, and more noise: golden directories of such weights tell their own.
const NOISE: [(&str, f64, f64); 12] = [
    ("pixel_values", 8e-4, 6e-3),
    ("vision_", 8e-4, 6e-3),
    ("pooled", 8e-4, 6e-3),
    ("image_projected", 1e-3, 8e-3),
    ("pos_", 3e-4, 2.5e-3),
    ("image_tokens", 8e-4, 6e-3),
    ("audio_tokens", 1e-3, 8e-3),
    ("audio_hidden", 2e-3, 1.7e-2),
    ("audio_", 9e-4, 7e-3),
    ("image_hidden", 2e-3, 1.7e-2),
    ("text_", 2e-3, 1.7e-2),
    ("", 2e-3, 2e-2),
];

/// Relative rms error of hidden states and logits with 8-bit and 4-bit weights or keys and values. Bounds of ours, not
/// MODEL.md's: about three and two times what tests/BENCHMARKS.md measured on random weights. Logits that have nothing to
/// do with each other are off by 1.4.
const LANGUAGE_Q8: f64 = 8e-2;
const LANGUAGE_Q4: f64 = 4e-1;
/// The same for products in 8 bits (E4M3), in the encoders and what they feed, and in the language model.
const MEDIA_FP8: f64 = 1.6e-1;
const LANGUAGE_FP8: f64 = 3e-1;
/// What lies before the first product in 8 bits, or beside them.
const NEVER_FP8: [&str; 4] = ["pixel_values", "vision_embed", "audio_embed", "pos_"];

impl Limits {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        let (weights, kv) = (config.llm.weights, config.llm.kv);
        let fp8 = config.compute.media_products == MediaProducts::Fp8;
        let language = match (weights, kv) {
            (WeightFormat::Q4, _) | (_, KvPrecision::Q4) => Some(LANGUAGE_Q4),
            _ if fp8 => Some(LANGUAGE_FP8),
            (WeightFormat::Q8, _) | (_, KvPrecision::Q8) => Some(LANGUAGE_Q8),
            _ => None,
        };
        let media = fp8.then_some(MEDIA_FP8);
        match (config.compute.dtype, language) {
            (Precision::F32, None) => Limits::Exact,
            // Quantized in f32, what is not has rounding errors only: f16's are wide enough.
            (Precision::F32, _) => Limits::Noisy { noise: Precision::F16, media, language },
            (noise, language) => Limits::Noisy { noise, media, language },
        }
    }

    /// What a boundary of a golden directory may be off by if its largest error is `max_abs`.
    pub fn tolerance(self, golden: &Golden, name: &str, max_abs: f64) -> Tolerance {
        let measured = |of| golden.noise(of, name).map(|noise| TIMES_NOISE * noise);
        let Limits::Noisy { noise, media, language } = self else {
            return match (exact(name, max_abs), measured(Arithmetic::F32)) {
                (Tolerance::RelativeRms(limit), Some(own)) => Tolerance::RelativeRms(limit.max(own)),
                (limit, _) => limit,
            };
        };
        if name == "mel" {
            return exact(name, max_abs);
        }
        let of_language = ["text_", "image_hidden", "audio_hidden", "prefill_", "step_"];
        if let (Some(limit), true) = (language, of_language.iter().any(|prefix| name.starts_with(prefix))) {
            return Tolerance::RelativeRms(limit);
        }
        if let (Some(limit), false) = (media, NEVER_FP8.iter().any(|prefix| name.starts_with(prefix))) {
            return Tolerance::RelativeRms(measured(Arithmetic::Fp8).unwrap_or(limit));
        }
        let (_, f16, bf16) = NOISE.iter().find(|(prefix, ..)| name.starts_with(prefix)).expect("the last one is any");
        let (of, usual) = if noise == Precision::F16 { (Arithmetic::F16, f16) } else { (Arithmetic::Bf16, bf16) };
        Tolerance::RelativeRms(measured(of).unwrap_or(TIMES_NOISE * usual))
    }
}

/// Two limits leave room for the oracle's own transform in single precision, which is up to 1.8e-4 off the exact value
/// where a filter is 80 dB under the loudest, and 2.4e-6 on the whole: `mel` that misses its absolute limit may keep the
/// relative one of the other boundaries, and the audio tower, which starts from it, has 5e-6 instead of 3e-6.
fn exact(name: &str, max_abs: f64) -> Tolerance {
    let fused = ["text_", "image_hidden", "audio_hidden", "prefill_", "step_"];
    if name == "mel" && max_abs <= 1e-4 {
        Tolerance::Absolute(1e-4)
    } else if fused.iter().any(|prefix| name.starts_with(prefix)) {
        Tolerance::RelativeRms(2e-5)
    } else if name.starts_with("audio_") {
        Tolerance::RelativeRms(5e-6)
    } else {
        Tolerance::RelativeRms(3e-6)
    }
}
