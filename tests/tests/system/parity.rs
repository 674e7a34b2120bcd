//! The stages against the golden cases, every boundary, and that a difference does not go unnoticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use config::{ComputeConfig, MediaProducts, Precision};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tests::parity::report::{Report, Verdict};
use tests::parity::{Options, compare};

mod vidi_7b;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn options(case: &str, checkpoint: &str, scrambled: u64) -> Options {
    Options {
        config: config::Config::default(),
        checkpoint: golden("checkpoints").join(checkpoint),
        golden: golden("cases").join(case),
        frames: None,
        pcm: None,
        seed: 1,
        scrambled,
    }
}

/// Every tensor and fact of a case is compared and within tolerance.
fn holds(case: &str, checkpoint: &str, scrambled: u64) -> Report {
    let report = compare(&options(case, checkpoint, scrambled)).unwrap();
    assert!(report.rows.iter().all(|row| row.verdict == Verdict::Ok), "{case}\n{report}");
    // The tool leaves room for what the oracle's own transform may be off by on other sounds; here MODEL.md's limits hold.
    for row in &report.rows {
        let Some(d) = row.distance else { continue };
        let strict = match row.name.as_str() {
            "mel" => d.max_abs <= 1e-4,
            name if name.starts_with("audio_") && !name.starts_with("audio_hidden") => d.relative_rms <= 3e-6,
            _ => true,
        };
        assert!(strict, "{case}: {} is outside MODEL.md's own limit\n{report}", row.name);
    }
    assert_eq!(report.rows.iter().filter(|r| r.name.starts_with("pipeline")).count() as u64, 1 + scrambled);
    report
}

#[test]
fn the_usual_run_is_the_oracles_at_every_boundary() {
    let report = holds("basic", "tied", 3);
    let tensors = report.rows.iter().filter(|r| r.distance.is_some()).count();
    assert_eq!(tensors, 39, "{report}");
}

/// 8 bits are told apart from 16 (the encoders' outcomes are off by a few hundredths) and stay within their limits.
#[test]
fn products_in_8_bits_give_the_oracles_tokens_at_a_bounded_error() {
    let mut options = options("basic", "tied", 0);
    options.config.compute.media_products = MediaProducts::Fp8;
    let report = compare(&options).unwrap();
    assert!(report.failures().is_empty(), "{report}");
    for name in ["vision_features", "audio_features", "image_hidden.3", "step_logits"] {
        let off = report.row(name).unwrap().distance.unwrap().relative_rms;
        assert!(off > 1e-2, "{name} is off by {off} only: were there 8 bits?\n{report}");
    }
}

#[test]
fn a_video_without_sound_is_answered_as_by_the_oracle() {
    holds("no_audio", "tied", 3);
}

#[test]
fn two_windows_of_sound_are_heard_as_by_the_oracle() {
    holds("long_audio", "tied", 3);
}

#[test]
fn a_last_window_that_adds_nothing_changes_nothing() {
    holds("audio_tail", "tied", 2);
}

#[test]
fn a_long_video_is_shrunk_as_by_the_oracle() {
    holds("many_frames", "tied", 1);
}

#[test]
fn a_prompt_longer_than_the_window_is_read_as_by_the_oracle() {
    holds("long_prompt", "tied", 2);
}

#[test]
fn a_prompt_longer_than_the_window_without_a_video_is_read_and_answered_as_by_the_oracle() {
    let report = compare(&options("text_alone", "tied", 0)).unwrap();
    let (jobs, boundaries): (Vec<_>, Vec<_>) = report.rows.iter().partition(|row| row.name == "pipeline");
    assert!(boundaries.iter().all(|row| row.verdict == Verdict::Ok), "{report}");
    // 5 hidden states, final norm, 3 kinds of logits; prompt, ids, totals, answer and its text.
    assert_eq!(boundaries.iter().filter(|row| row.distance.is_some()).count(), 9, "{report}");
    // No job asks without a video: the messages of one are not compared.
    assert!(matches!(&jobs[..], [row] if matches!(row.verdict, Verdict::NotCompared(_))), "{report}");
}

#[test]
fn an_open_question_is_answered_as_by_the_oracle() {
    holds("open_question", "tied", 2);
}

#[test]
fn an_answer_of_time_ranges_ends_and_reads_as_the_oracles() {
    let report = holds("time_ranges", "untied", 2);
    assert!(report.row("time_ranges").is_some() && report.row("stopped_by_eos").is_some());
}

#[test]
fn heads_of_the_real_widths_and_16_bit_weights_give_what_the_oracle_gives() {
    holds("realdims", "realdims", 2);
}

/// A copy of a case of the checkpoint `tied`.
struct Copied(tempfile::TempDir);

impl Copied {
    /// The case without sound, the quickest one.
    fn new() -> Self {
        Copied::of("no_audio")
    }

    fn of(case: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(golden("cases").join(case)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        Copied(dir)
    }

    /// Rewrites one golden tensor.
    fn tensor(self, name: &str, change: impl Fn(&mut [f32])) -> Self {
        let path = self.0.path().join("golden.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let mut data: BTreeMap<String, (Vec<usize>, Vec<u8>)> =
            read.iter().map(|(n, v)| (n.to_owned(), (v.shape().to_vec(), v.data().to_vec()))).collect();
        let raw = &mut data.get_mut(name).unwrap().1;
        let mut values: Vec<f32> = raw.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        change(&mut values);
        *raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let views = data.iter().map(|(n, (shape, bytes))| {
            (n.as_str(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        self
    }

    /// Rewrites golden.json.
    fn json(self, change: impl Fn(&mut serde_json::Value)) -> Self {
        let path = self.0.path().join("golden.json");
        let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        self
    }

    fn compare(&self) -> anyhow::Result<Report> {
        compare(&Options { golden: self.0.path().to_owned(), ..options("", "tied", 0) })
    }

    fn failures(&self) -> Vec<String> {
        self.compare().unwrap().failures().into_iter().map(str::to_owned).collect()
    }

    fn run(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_parity"))
            .arg("--checkpoint")
            .arg(golden("checkpoints/tied"))
            .arg("--golden")
            .arg(self.0.path())
            .args(more)
            .output()
            .unwrap()
    }
}

fn scaled(by: f32) -> impl Fn(&mut [f32]) {
    move |values| values.iter_mut().for_each(|v| *v *= 1.0 + by)
}

#[test]
fn the_command_prints_every_boundary_and_says_by_its_exit_status_that_all_is_well() {
    let output = Copied::new().run(&["--chunking", "7", "--chunkings", "1"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{table}{}", String::from_utf8_lossy(&output.stderr));
    for name in
        ["pixel_values", "vision_layer1_frame0", "image_tokens", "text_hidden.4", "step_logits", "pipeline, seed 7"]
    {
        let line = table.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_default();
        assert!(line.ends_with(" ok"), "{name}: {line:?}\n{table}");
    }
    assert!(table.contains(" 0 failed, 0 not compared, 0 absent"), "{table}");
}

#[test]
fn the_command_fails_and_names_the_boundary_that_is_off_by_little_more_than_its_tolerance() {
    let output = Copied::new().tensor("image_projected", scaled(5e-6)).run(&["--chunkings", "0"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    let failed: Vec<&str> = table.lines().filter(|l| l.contains("FAILED")).collect();
    assert!(failed.len() == 1 && failed[0].starts_with("image_projected "), "{table}");
}

#[test]
fn every_boundary_fails_alone_when_it_is_off_by_more_than_its_tolerance_and_only_then() {
    let tower = [
        "vision_embed_frame0",
        "vision_layer0_frame0",
        "vision_features",
        "pooled",
        "pos_h",
        "pos_t_image",
        "image_tokens",
    ];
    let text = ["image_hidden.3", "text_hidden.0", "text_hidden.4", "text_final_norm", "prefill_logits", "step_logits"];
    for (name, tolerance) in tower.map(|n| (n, 3e-6)).into_iter().chain(text.map(|n| (n, 2e-5))) {
        assert_eq!(Copied::new().tensor(name, scaled(1.5 * tolerance)).failures(), [name]);
        assert!(Copied::new().tensor(name, scaled(0.5 * tolerance)).failures().is_empty(), "{name}");
    }
}

#[test]
fn one_mel_value_fails_when_it_is_off_by_more_than_its_tolerance_and_only_then() {
    let louder = |by: f32| move |values: &mut [f32]| values[900] += by;
    assert_eq!(Copied::of("open_question").tensor("mel", louder(2e-4)).failures(), ["mel"]);
    assert!(Copied::of("open_question").tensor("mel", louder(5e-5)).failures().is_empty());
}

#[test]
fn a_value_that_is_no_number_fails_its_boundary() {
    let spoil = |values: &mut [f32]| values[7] = f32::NAN;
    assert_eq!(Copied::new().tensor("text_hidden.2", spoil).failures(), ["text_hidden.2"]);
}

#[test]
fn a_whole_that_is_off_between_the_stored_values_fails() {
    let louder = |json: &mut serde_json::Value| {
        let rms = json["tensors"]["vision_features"]["rms"].as_f64().unwrap();
        json["tensors"]["vision_features"]["rms"] = (rms * (1.0 + 5e-6)).into();
    };
    assert_eq!(Copied::new().json(louder).failures(), ["vision_features"]);
}

#[test]
fn a_wrong_token_id_or_text_or_total_fails_by_its_name() {
    let token = |json: &mut serde_json::Value| json["generated_token_ids"][5] = 42.into();
    assert_eq!(Copied::new().json(token).failures(), ["generated_token_ids", "pipeline, in order"]);
    let text = |json: &mut serde_json::Value| json["text"] = "something else".into();
    assert_eq!(Copied::new().json(text).failures(), ["text", "pipeline, in order"]);
    let ranges = |json: &mut serde_json::Value| json["time_ranges"]["formatted"] = "00:00:00-00:00:01".into();
    assert_eq!(Copied::new().json(ranges).failures(), ["time_ranges"]);
    let grid = |json: &mut serde_json::Value| json["grid"] = serde_json::json!([13, 13]);
    assert_eq!(Copied::new().json(grid).failures(), ["grid (count)"]);
}

/// Trained weights have more noise than random ones, and a golden directory of such weights brings its own.
#[test]
fn limits_follow_the_noise_that_a_golden_directory_tells() {
    let failures = |compute: ComputeConfig, noise: serde_json::Value| {
        let off = scaled(if compute.dtype == Precision::F32 { 6e-6 } else { 0.0 });
        let copied = Copied::new().tensor("vision_features", off).json(|json| json["noise"] = noise.clone());
        let mut options = Options { golden: copied.0.path().to_owned(), ..options("", "tied", 0) };
        options.config.compute = compute;
        let report = compare(&options).unwrap();
        report.failures().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let single = ComputeConfig::default;
    let half = || ComputeConfig { dtype: Precision::F16, ..single() };
    let eight = || ComputeConfig { media_products: MediaProducts::Fp8, ..single() };
    for (compute, own, other) in [(half(), "f16", "bf16"), (eight(), "fp8", "f16")] {
        assert!(failures(compute.clone(), serde_json::json!({})).is_empty());
        let elsewhere = serde_json::json!({own: {"pooled": 1.0}, other: {"vision_features": 1e-6}});
        assert!(failures(compute.clone(), elsewhere).is_empty());
        assert_eq!(failures(compute, serde_json::json!({own: {"vision_features": 1e-6}})), ["vision_features"]);
    }
    // In f32 noise only widens a limit.
    assert_eq!(failures(single(), serde_json::json!({"f32": {"vision_features": 1e-6}})), ["vision_features"]);
    assert!(failures(single(), serde_json::json!({"f32": {"vision_features": 3e-6}})).is_empty());
}

#[test]
fn a_prompt_that_is_tokenized_differently_fails_where_it_is_tokenized() {
    let query = |json: &mut serde_json::Value| json["query"] = "the chef pouring soup".into();
    let failures = Copied::new().json(query).failures();
    assert_eq!(failures, ["prompt", "text_token_ids", "pipeline, in order"]);
}

#[test]
fn what_is_not_compared_is_listed() {
    let copied = Copied::new();
    let path = copied.0.path().join("golden.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let kept = read.iter().filter(|(name, _)| *name != "pooled");
    let renamed = kept.map(|(name, view)| (if name == "pos_w" { "pos_x" } else { name }.to_owned(), view));
    let copy = safetensors::serialize(renamed.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(&path, copy).unwrap();
    let report = copied
        .json(|json| {
            let tensors = json["tensors"].as_object_mut().unwrap();
            tensors.remove("pooled");
            tensors.remove("pos_w");
        })
        .compare()
        .unwrap();
    let verdict = |name: &str| report.row(name).unwrap().verdict.clone();
    assert_eq!([verdict("pooled"), verdict("pos_w")], [Verdict::Absent, Verdict::Absent]);
    assert!(matches!(verdict("pos_x"), Verdict::NotCompared(_)));
    assert!(report.failures().is_empty(), "{report}");
}

#[test]
fn input_that_cannot_be_used_ends_with_status_2_and_says_why() {
    let refused = |copied: Copied, more: &[&str], why: &str| {
        let output = copied.run(more);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(why), "{why:?} is not in {told:?}");
    };
    refused(Copied::new(), &["--frames", "/nowhere.npy"], "/nowhere.npy");
    refused(Copied::new(), &["--pcm", "/nowhere.npy"], "made without");
    let half = |json: &mut serde_json::Value| json["dtype"] = "float16".into();
    refused(Copied::new().json(half), &[], "float16");
    let frames = |json: &mut serde_json::Value| json["frames"] = 7.into();
    refused(Copied::new().json(frames), &[], "2 frames, the golden directory was made with 7");
    let other = golden("checkpoints/nothing");
    refused(Copied::new(), &["--golden", other.to_str().unwrap()], "cannot be used multiple times");
    let empty = Copied::new();
    std::fs::write(empty.0.path().join("golden.safetensors"), b"").unwrap();
    refused(empty, &[], "golden.safetensors");
    let missing = Copied::new();
    std::fs::remove_file(missing.0.path().join("frames.npy")).unwrap();
    refused(missing, &[], "give the oracle's input with --frames");
}
