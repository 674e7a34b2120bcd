//! Single functions against the oracle's vectors in golden/units. Prompts and their tokens are compared in stage-llm
//! (tests/text.rs), Pillow's resampling in stage-decode (tests/resize.rs).

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use compute::kernels;
use model::config_json::Family;
use protocol::error::ErrorKind;
use protocol::plan::{AudioPlan, FrameGrid, MediaInfo, MediaPlan, frame_step, grid_side};
use serde_json::Value;
use stage_audio::LogMel;
use stage_fuse::frequency::frequencies;
use stage_fuse::position::sinusoid;
use stage_llm::text::reading::Watched;
use stage_llm::text::reading::reference::{format_hms, fractions};
use stage_llm::text::registry::Tasks;
use stage_vision::pixels::pixel_table;
use stage_vision::pool::Convolution;

/// Vectors of Vidi 7B.
const OF_7B: &str = "units_7b.safetensors";

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/units").join(file)
}

fn json(name: &str) -> Value {
    let all: Value = serde_json::from_slice(&std::fs::read(path("units.json")).unwrap()).unwrap();
    all[name].clone()
}

fn tensor(name: &str) -> Tensor {
    tensor_of("units.safetensors", name)
}

fn tensor_of(file: &str, name: &str) -> Tensor {
    candle_core::safetensors::load(path(file), &Device::Cpu).unwrap()[name].clone()
}

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn the_grid_of_every_number_of_frames_is_the_oracles() {
    let sides = json("grid_side_by_frames");
    let mut covered = 0;
    for (side, range) in sides.as_object().unwrap() {
        let [first, last] = [&range[0], &range[1]].map(|n| n.as_u64().unwrap());
        for frames in first..=last {
            assert_eq!(u64::from(grid_side(frames)) * 2, side.parse::<u64>().unwrap(), "{frames} frames");
        }
        covered += last + 1 - first;
    }
    assert_eq!(covered, 7200);
}

#[test]
fn frames_are_sampled_as_by_the_oracle() {
    for case in json("frame_sampling").as_array().unwrap() {
        let (avg_fps, n) = (case["avg_fps"].as_f64().unwrap(), case["n_frames"].as_u64().unwrap());
        let indices: Vec<u64> = case["indices"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
        assert_eq!(frame_step(avg_fps, 1.0), case["step"].as_u64().unwrap(), "{case}");
        let info = MediaInfo {
            v: 1,
            duration_s: n as f64 / avg_fps,
            frames: n,
            avg_fps,
            width: 64,
            height: 64,
            rotation: 0,
            mirrored: false,
            has_audio: false,
            audio_samples: 0,
            container: String::new(),
            codecs: Vec::new(),
            content_id: String::new(),
            notes: Vec::new(),
        };
        match MediaPlan::new(&info, None, 1.0, FrameGrid::default()) {
            Ok(plan) => {
                let image = plan.image.unwrap();
                let sampled: Vec<u64> = (0..image.frames).map(|i| i * image.frame_step).collect();
                assert_eq!(sampled, indices, "{case}");
            }
            Err(e) => assert_eq!((e.kind, indices.len()), (ErrorKind::TooShort, 1), "{case}"),
        }
    }
}

#[test]
fn the_lengths_of_a_sound_are_the_oracles() {
    let cases = json("audio_lengths");
    assert_eq!(cases.as_array().unwrap().len(), 13);
    for case in cases.as_array().unwrap() {
        let plan = AudioPlan::new(case["samples"].as_u64().unwrap()).unwrap();
        for (name, got) in [
            ("windows", plan.windows),
            ("mel_frames", plan.mel_frames),
            ("encoder_frames", plan.rows),
            ("audio_tokens", plan.tokens),
        ] {
            assert_eq!(Some(got), case[name].as_u64(), "{name} of {case}");
        }
    }
}

#[test]
fn answers_are_read_as_by_the_oracle_to_the_last_bit() {
    let tasks = Tasks::of(Family::Gemma2);
    for case in json("postprocess").as_array().unwrap() {
        let (text, duration_s) = (case["text"].as_str().unwrap(), case["duration"].as_f64().unwrap());
        let ranges = tasks.get("retrieval").unwrap().parser.read(text, Watched::whole(duration_s)).ranges;
        let seconds: Vec<(f64, f64)> = ranges.iter().map(|r| (r.start_s, r.end_s)).collect();
        let pairs = |name: &str| serde_json::from_value::<Vec<(f64, f64)>>(case[name].clone()).unwrap();
        assert_eq!((fractions(text), seconds), (pairs("fractions"), pairs("seconds")), "{case}");
        let written: Vec<String> =
            ranges.iter().map(|r| format!("{}-{}", format_hms(r.start_s), format_hms(r.end_s))).collect();
        assert_eq!(written.join(", "), case["formatted"].as_str().unwrap());
    }
}

#[test]
fn pixels_become_the_oracles_values_to_the_last_bit() {
    assert_eq!(pixel_table().to_vec(), tensor("pixel_lut").to_vec1::<f32>().unwrap());
}

#[test]
fn mel_features_follow_from_the_oracles_window_and_filters() {
    let hann = tensor("hann400").to_vec1::<f32>().unwrap();
    let filters = tensor("mel_filterbank_f64").to_vec2::<f64>().unwrap(); // [201, 128]
    let pcm: Vec<i16> =
        (0..64_000u64).map(|i| ((i * i % 32_749) as i32 - 16_374) as i16 / (1 + (i / 9_000) as i16)).collect();
    let mel = LogMel::new(128).window(&pcm);
    let loudest = f64::from(mel.iter().fold(f32::MIN, |a, &b| a.max(b))) * 4.0 - 4.0;
    // Frames away from the ends: mirroring is tested in stage-audio.
    for frame in [5, 130, 255, 390] {
        let x: Vec<f64> =
            (0..400).map(|i| f64::from(pcm[frame * 160 + i - 200]) / 32768.0 * f64::from(hann[i])).collect();
        let power: Vec<f64> = (0..201)
            .map(|bin| {
                let angle = |i: usize| std::f64::consts::TAU * (bin * i % 400) as f64 / 400.0;
                let part = |f: fn(f64) -> f64| x.iter().enumerate().map(|(i, x)| x * f(angle(i))).sum::<f64>();
                part(f64::cos).powi(2) + part(f64::sin).powi(2)
            })
            .collect();
        for filter in 0..128 {
            let energy: f64 = power.iter().zip(&filters).map(|(p, row)| p * row[filter]).sum();
            let want = (energy.max(1e-10).log10().max(loudest - 8.0) + 4.0) / 4.0;
            let got = f64::from(mel[filter * 3000 + frame]);
            assert!((got - want).abs() < 2e-6, "frame {frame}, filter {filter}: {got} {want}");
        }
    }
}

#[test]
fn the_real_widths_frequencies_are_the_oracles_to_the_last_bit() {
    assert_eq!(frequencies(3584), tensor("div_term_3584").to_vec1::<f32>().unwrap());
    assert_eq!(frequencies(4096), tensor_of(OF_7B, "div_term_4096").to_vec1::<f32>().unwrap());
}

#[test]
fn vidi_7bs_patches_are_convolved_and_resized_as_by_the_oracle_for_every_size_of_the_pool() {
    let patches = tensor_of(OF_7B, "pool_in"); // [1, 729, 3]
    for side in [2usize, 5, 7, 9, 10, 14, 26, 27] {
        let want = tensor_of(OF_7B, &format!("pool_out_s{side}")); // [1, s, s, 4]
        let pool = Convolution::new(tensor_of(OF_7B, &format!("pool_weight_s{side}")), 27, side).unwrap();
        let got = pool.cells(&patches).unwrap().reshape(want.shape()).unwrap();
        // Values of about one; the convolution's output is interpolated there, its windows are here.
        assert!(worst(&got, &want) < 2e-6, "side {side}: {}", worst(&got, &want));
    }
}

#[test]
fn vidi_7bs_fractional_positions_are_the_oracles() {
    for (length, n) in [(5, 5), (26, 26), (3600, 10_000)] {
        let want = tensor_of(OF_7B, &format!("pos_sincos_l{length}_n{n}_rows"));
        for (i, row) in [1, length - 1].into_iter().enumerate() {
            let got = sinusoid(row, 1, length, n, &frequencies(4096), &Device::Cpu).unwrap();
            let off = worst(&got, &want.narrow(0, i, 1).unwrap());
            assert!(off < 1.3e-7, "row {row} of {length} to {n}: {off}");
        }
    }
}

#[test]
fn fractional_positions_are_the_oracles() {
    for (length, n) in [(2, 2), (5, 2), (14, 2), (2, 10_000), (30, 10_000), (307, 10_000), (3600, 10_000)] {
        let want = tensor(&format!("pos_sincos_l{length}_n{n}_rows"));
        let mut rows = vec![0, 1, length / 2, length - 1];
        rows.dedup();
        for (i, row) in rows.into_iter().enumerate() {
            let got = sinusoid(row, 1, length, n, &frequencies(3584), &Device::Cpu).unwrap();
            let off = worst(&got, &want.narrow(0, i, 1).unwrap());
            assert!(off < 1.3e-7, "row {row} of {length} to {n}: {off}");
        }
        let places = tensor(&format!("pos_p_l{length}_n{n}")).to_vec1::<f32>().unwrap();
        for (i, place) in places.into_iter().enumerate() {
            let got =
                sinusoid(i as u64, 1, length, n, &frequencies(2), &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            assert!((f64::from(got[0][0]) - f64::from(place).sin()).abs() < 1e-7, "place {i} of {length} to {n}");
        }
    }
}

#[test]
fn patches_are_pooled_to_every_grid_as_by_the_oracle() {
    let patches = tensor("pool_in");
    for side in [10, 12, 14, 16, 18, 20, 22, 24, 26, 28] {
        let want = tensor(&format!("pool_out_side{side}"));
        let off = worst(&kernels::pool(&patches, side / 2).unwrap().reshape(want.shape()).unwrap(), &want);
        // Source coordinates reach 27 in f32: an ulp there is 1.9e-6 of the way from one patch to the next.
        assert!(off < 4e-6, "side {side}: {off}");
    }
}
