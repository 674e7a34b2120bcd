//! Service times of the stages, and the memory that they hold, from the tables of tests/BENCHMARKS.md. What nobody has
//! measured says so in `origin`.

use serde::Serialize;

/// Service times of Vidi 1.5 9B on one kind of GPU, seconds, and GPU memory, bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Times {
    /// Name on the command line.
    pub name: &'static str,
    /// Where the figures come from, and which of them nobody has measured.
    pub origin: &'static str,
    /// One frame in stage-vision.
    pub frame_s: f64,
    /// One window of 30 s in stage-audio.
    pub window_s: f64,
    /// One token in stage-fuse.
    pub fused_token_s: f64,
    /// One image or audio token through the language model's layers, in passes of many.
    pub prefill_token_s: f64,
    /// The prompt, once the video's tokens have passed.
    pub prompt_s: f64,
    /// One token of an answer, besides what the video adds.
    pub step_s: f64,
    /// What each image or audio token of the video adds to one token of an answer.
    pub step_token_s: f64,
    /// Bytes of the GPU, of which a twentieth is left free.
    pub gpu_bytes: f64,
    /// Bytes of stage-vision, stage-audio and stage-fuse together.
    pub encoder_bytes: f64,
    /// Bytes of one stage-llm without a video.
    pub llm_bytes: f64,
    /// Bytes that one image or audio token takes in stage-llm.
    pub kept_token_bytes: f64,
}

/// stage-fuse was never measured alone: its copies in and out (9,216 and 7,168 bytes) at 37.5 GB/s, the rate measured from
/// device to host, and 59 million operations at 700 TFLOP/s.
const FUSED_TOKEN_S: f64 = 0.52e-6;

/// All tables that there are.
pub const ALL: [Times; 5] = [
    Times {
        name: "h200-bf16",
        origin: "H200: kernels of 300 s (vision 0.45 s, audio 0.1, language model 1.45), milliseconds a token; stage-fuse is arithmetic",
        frame_s: 1.5e-3,
        window_s: 10e-3,
        fused_token_s: FUSED_TOKEN_S,
        prefill_token_s: 23.5e-6,
        prompt_s: 0.022,
        step_s: 5.25e-3,
        step_token_s: 0.0761e-6,
        gpu_bytes: 141e9,
        encoder_bytes: 3.6e9,
        llm_bytes: 21.8e9,
        kept_token_bytes: 355e3,
    },
    Times {
        name: "h200-fp8",
        origin: "H200, image and audio in 8 bits: kernels of an hour (vision 3.6 s, audio 0.7, language model 1.7), milliseconds a token \
                 of bf16; stage-fuse is arithmetic",
        frame_s: 1.0e-3,
        window_s: 5.8e-3,
        fused_token_s: FUSED_TOKEN_S,
        prefill_token_s: 13.6e-6,
        prompt_s: 0.022,
        step_s: 5.25e-3,
        step_token_s: 0.0761e-6,
        gpu_bytes: 141e9,
        encoder_bytes: 3.6e9,
        llm_bytes: 20.6e9,
        kept_token_bytes: 355e3,
    },
    Times {
        name: "h200-q4",
        origin: "H200 under a cap, weights, keys and values in 4 bits, image and audio in 8: milliseconds a token and memory measured; the \
                 prefill is that of fp8 and the difference of their first tokens for 300 s (1.95 and 1.60 s); stage-fuse is arithmetic",
        frame_s: 1.0e-3,
        window_s: 5.8e-3,
        fused_token_s: FUSED_TOKEN_S,
        prefill_token_s: 19.3e-6,
        prompt_s: 0.022,
        step_s: 3.5e-3,
        step_token_s: 0.035e-6,
        gpu_bytes: 141e9,
        encoder_bytes: 3.6e9,
        llm_bytes: 8.2e9,
        kept_token_bytes: 98e3,
    },
    Times {
        name: "h100-fp8",
        origin: "H100, image and audio in 8 bits: milliseconds a token measured; prefill and encoders are differences of first tokens with \
                 one GPU and two (an hour: 7.97 and 5.75 s); prompt as on an H200; stage-fuse is arithmetic",
        frame_s: 1.34e-3,
        window_s: 7.8e-3,
        fused_token_s: FUSED_TOKEN_S,
        prefill_token_s: 17.7e-6,
        prompt_s: 0.022,
        step_s: 7.09e-3,
        step_token_s: 0.1125e-6,
        gpu_bytes: 80e9,
        encoder_bytes: 4.0e9,
        llm_bytes: 20.6e9,
        kept_token_bytes: 355e3,
    },
    Times {
        name: "4090-paper",
        origin: "RTX 4090 ON PAPER, nobody has run it: h200-q4, products times 4.5 (1,480 TFLOP/s measured there, 330 in the 4090's data \
                 sheet), a token times 4.2 (4,200 GB/s measured there, 1,008 in the data sheet)",
        frame_s: 4.5e-3,
        window_s: 26e-3,
        fused_token_s: 2.3e-6,
        prefill_token_s: 87e-6,
        prompt_s: 0.1,
        step_s: 14.7e-3,
        step_token_s: 0.147e-6,
        gpu_bytes: 24e9,
        encoder_bytes: 3.6e9,
        llm_bytes: 8.2e9,
        kept_token_bytes: 98e3,
    },
];

impl Times {
    /// The table of a name.
    ///
    /// # Errors
    /// The names that there are.
    pub fn named(name: &str) -> Result<Self, String> {
        ALL.iter().find(|times| times.name == name).cloned().ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|times| times.name).collect();
            format!("{name:?} is no table of service times; there are {}", names.join(", "))
        })
    }

    /// Most stage-llm that one GPU has memory for, beside one of each encoder, each with a video of so many tokens.
    pub fn workers_per_gpu(&self, tokens: u64) -> u64 {
        let left = 0.95 * self.gpu_bytes - self.encoder_bytes;
        (left / (self.llm_bytes + tokens as f64 * self.kept_token_bytes)).max(0.0) as u64
    }
}

/// What a decoder has to do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Footage {
    /// Name on the command line.
    pub name: &'static str,
    /// Where the figures come from.
    pub origin: &'static str,
    /// Seconds that one second of video takes one stage-decode.
    pub second_s: f64,
    /// CPU seconds that it takes.
    pub cpu_s: f64,
}

/// All kinds of footage that there are.
pub const FOOTAGE: [Footage; 4] = [
    Footage {
        name: "1080p",
        origin: "H.264, 1920 x 1080, 30 frames a second, 8 Mbit/s, noisy: measured, two cores a stage-decode",
        second_s: 1.67 / 20.0,
        cpu_s: 2.85 / 20.0,
    },
    Footage {
        name: "720p",
        origin: "H.264, 1280 x 720, 30 frames a second, 4 Mbit/s, noisy: measured, two cores a stage-decode",
        second_s: 1.35 / 30.0,
        cpu_s: 2.19 / 30.0,
    },
    Footage {
        name: "1080p-8",
        origin: "the same as 1080p with eight cores a stage-decode, all in use as the two were: NOT MEASURED",
        second_s: 1.67 / 20.0 / 4.0,
        cpu_s: 2.85 / 20.0,
    },
    Footage { name: "none", origin: "frames that need no decoder, as in gpu_bench", second_s: 0.0, cpu_s: 0.0 },
];

impl Footage {
    /// The footage of a name.
    ///
    /// # Errors
    /// The names that there are.
    pub fn named(name: &str) -> Result<Self, String> {
        FOOTAGE.iter().find(|footage| footage.name == name).copied().ok_or_else(|| {
            let names: Vec<_> = FOOTAGE.iter().map(|footage| footage.name).collect();
            format!("{name:?} is no footage; there are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_token_are_those_that_were_measured_for_four_lengths_of_video() {
        // Tokens of 10, 60, 300 and 3,600 s, and milliseconds a token (tests/BENCHMARKS.md).
        let measured = [("h200-bf16", [5.4, 6.2, 10.0, 14.8]), ("h200-q4", [3.6, 3.9, 5.7, 7.9])];
        for (name, ms) in measured {
            let times = Times::named(name).unwrap();
            for (tokens, ms) in [2_060.0, 12_360.0, 61_800.0, 126_000.0].into_iter().zip(ms) {
                let said = (times.step_s + tokens * times.step_token_s) * 1e3;
                assert!((said / ms - 1.0).abs() < 0.03, "{name}, {tokens} tokens: {said:.2} ms, measured {ms}");
            }
        }
    }

    #[test]
    fn a_gpu_has_memory_for_as_many_workers_as_the_measured_peaks_leave() {
        let of = |name: &str, tokens| Times::named(name).unwrap().workers_per_gpu(tokens);
        assert_eq!((of("h200-bf16", 61_800), of("h100-fp8", 61_800), of("4090-paper", 61_800)), (2, 1, 1));
        assert_eq!((of("h200-q4", 61_800), of("h100-fp8", 250_000)), (9, 0));
        assert!(Times::named("h300").is_err() && Footage::named("8k").is_err());
    }
}
