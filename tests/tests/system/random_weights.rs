//! Tests of random weights: `--weights random:SIZE` makes the tensors that `vidi demo-model --size SIZE` writes.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use compute::random::Draws;
use config::Config;
use config::Size;
use deploy::model::demo_model;
use deploy::model::plan::MemoryPlan;
use model::checkpoint::{Checkpoint, CheckpointErrorKind, TensorInfo, Weights};
use model::config_json::{Family, ModelConfig};
use model::demo_model::size::Dtype;
use model::demo_model::{DEFAULT_SEED, Dims};
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{FeatureBatch, FrameBatch, JobId, JobRequest, Output as Emitted, PcmWindow};
use protocol::plan::{AudioPlan, FRAME_BYTES, FRAME_SIDE, ImagePlan, MediaPlan, WINDOW_SAMPLES};
use protocol::stage::{Port, Stage, Stop};
use protocol::tensor::{Dtype as WireDtype, Tensor as WireTensor};
use protocol::wire::{self, VERSION};
use tempfile::TempDir;
use tests::delivery::Delivery;
use tests::harness::{Rig, Setup, terminal, vidi};
use tests::media::video;
use tests::pipeline::{Pipeline, Video};

fn written(dims: &Dims) -> anyhow::Result<TempDir> {
    let dir = tempfile::tempdir()?;
    demo_model::write(dir.path(), dims, DEFAULT_SEED, &mut |_| {})?;
    Ok(dir)
}

/// The same configuration with the written model of a size, and with random weights of that size; the written one lasts
/// as long as its directory.
fn both(size: Size, name: &str, set: &[&str]) -> anyhow::Result<(TempDir, Config, Config)> {
    let dir = written(&Dims::of(size))?;
    let load = |model: String| {
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).chain([model]).collect();
        Config::load(None, [], &set).map_err(anyhow::Error::msg)
    };
    let (file, random) = (format!("model.dir={}", dir.path().display()), format!("model.weights=random:{name}"));
    Ok((dir, load(file)?, load(random)?))
}

fn values(tensor: &Tensor) -> anyhow::Result<Vec<u32>> {
    // Every narrower float is some f32, and different ones are different.
    let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

#[test]
fn every_tensor_is_the_written_models_in_every_type() -> anyhow::Result<()> {
    let stored_in_16_bit = Dims { dtype: Dtype::Bf16, ..Dims::of(Size::Tiny) };
    let of_a_7b = Dims { dtype: Dtype::Bf16, ..Dims::of(Size::SevenBTiny) };
    for dims in [Dims::of(Size::Tiny), Dims::of(Size::Realdims), stored_in_16_bit, Dims::of(Size::SevenBTiny), of_a_7b]
    {
        let dir = written(&dims)?;
        let (file, random) = (Checkpoint::open(dir.path())?, Checkpoint::random(&dims, DEFAULT_SEED)?);
        ensure!(file.config() == random.config());
        let headers = |checkpoint: &Checkpoint| -> BTreeMap<String, TensorInfo> {
            let nowhere = |info| TensorInfo { file: String::new(), ..info };
            checkpoint.tensors().map(|(name, info)| (name.to_owned(), nowhere(info))).collect()
        };
        let tensors = headers(&file);
        ensure!(tensors == headers(&random) && tensors.len() > 100);
        let (file, random) = (Arc::new(file), Arc::new(random));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let [file, random] = [&file, &random].map(|c| Weights::new(c.clone(), dtype, Device::Cpu));
            for (name, info) in &tensors {
                let (read, made) = (file.get(name, &info.shape)?, random.get(name, &info.shape)?);
                ensure!(made.dtype() == dtype && values(&read)? == values(&made)?, "{name} in {dtype:?}");
            }
        }
    }
    Ok(())
}

/// Larger than what passes to a device at a time, so that pieces meet inside it.
#[test]
fn a_matrix_made_in_pieces_is_the_written_one() -> anyhow::Result<()> {
    let dims = Dims { vocab: 300_001, ..Dims::of(Size::Tiny) };
    let (name, rows) = ("model.embed_tokens.weight", 300_001);
    let dir = written(&dims)?;
    let (file, random) = (Arc::new(Checkpoint::open(dir.path())?), Arc::new(Checkpoint::random(&dims, DEFAULT_SEED)?));
    for dtype in [DType::F32, DType::BF16] {
        let [file, random] = [&file, &random].map(|c| Weights::new(c.clone(), dtype, Device::Cpu));
        let expected = values(&file.get(name, &[rows, 64])?)?;
        ensure!(values(&random.get(name, &[rows, 64])?)? == expected, "{dtype:?}, alone");
        let layer = "model.layers.0.mlp.gate_proj.weight";
        let parts = [(layer, 128), (name, rows)];
        ensure!(values(&random.stack(&parts, 64)?)? == values(&file.stack(&parts, 64)?)?, "{dtype:?}, stacked");
    }
    Ok(())
}

#[test]
fn what_no_demo_model_has_is_missing_and_another_shape_is_refused() -> anyhow::Result<()> {
    let random = Arc::new(Checkpoint::random(&Dims::of(Size::Tiny), DEFAULT_SEED)?);
    let weights = Weights::new(random, DType::F32, Device::Cpu);
    ensure!(weights.contains("model.norm.weight") && !weights.contains("lm_head.weight"));
    let kind = |name: &str, shape: &[usize]| weights.get(name, shape).err().map(|e| e.kind());
    ensure!(kind("lm_head.weight", &[512, 64]) == Some(CheckpointErrorKind::MissingTensor));
    ensure!(kind("model.norm.weight", &[65]) == Some(CheckpointErrorKind::Misshapen));
    let impossible = Checkpoint::random(&Dims { kv_heads: 3, ..Dims::of(Size::Tiny) }, 1).err().map(|e| e.kind());
    ensure!(impossible == Some(CheckpointErrorKind::Malformed), "{impossible:?}");
    Ok(())
}

#[test]
fn the_plan_is_the_written_models() -> anyhow::Result<()> {
    for (size, name) in [
        (Size::Tiny, "tiny"),
        (Size::Realdims, "realdims"),
        (Size::SevenBTiny, "7b-tiny"),
        (Size::SevenBRealdims, "7b-realdims"),
    ] {
        let (_dir, file, random) = both(size, name, &["llm.weights=q8"])?;
        let plan = |c: &Config| anyhow::Ok(MemoryPlan::new(c, &ModelConfig::configured(&c.model)?, &[])?.to_string());
        ensure!(plan(&file)? == plan(&random)?, "{name}");
    }
    let random = Config::load(None, [], &["model.weights=random".to_owned()]).map_err(anyhow::Error::msg)?;
    ensure!(ModelConfig::configured(&random.model)? == ModelConfig::of(Family::Gemma2), "random is not Vidi 1.5 9B");
    let random = Config::load(None, [], &["model.weights=random:7b".to_owned()]).map_err(anyhow::Error::msg)?;
    ensure!(ModelConfig::configured(&random.model)? == ModelConfig::of(Family::Mistral), "random:7b is not Vidi 7B");
    Ok(())
}

/// Keeps what a stage emits as it would travel.
#[derive(Default)]
struct Sent(Vec<Vec<u8>>);

impl Port for Sent {
    fn emit(&mut self, output: Emitted<'_>) -> Result<(), Stop> {
        self.0.push(match output {
            Emitted::Features(m) => wire::encode(&m),
            Emitted::Tokens(m) => wire::encode(&m),
            other => panic!("no encoder emits {}", other.message_id()),
        });
        Ok(())
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// Three frames and a window of noise, and what they come to.
fn noise() -> anyhow::Result<(Vec<u8>, Vec<i16>, MediaPlan)> {
    let draws = Draws::default();
    let frames = draws.bytes(3 * FRAME_BYTES)?.to_vec1::<u8>()?;
    let sound = draws.normal(WINDOW_SAMPLES as usize)?.to_vec1::<f32>()?;
    let sound = sound.into_iter().map(|s| (s * 3000.0) as i16).collect();
    let plan =
        MediaPlan { image: Some(ImagePlan::new(1, 3)), audio: AudioPlan::new(WINDOW_SAMPLES), ..Default::default() };
    Ok((frames, sound, plan))
}

/// Every message of vision, audio and fuse for [`noise`].
fn encoded(config: &Config) -> anyhow::Result<[Vec<Vec<u8>>; 3]> {
    let (frames, sound, plan) = noise()?;
    let failed = |stop: Stop| anyhow::anyhow!("{stop:?}");
    let job = JobId::new("job")?;
    let [mut vision, mut audio, mut fuse] = [Sent::default(), Sent::default(), Sent::default()];
    let tensor = WireTensor::new(WireDtype::U8, &[3, FRAME_SIDE, FRAME_SIDE, 3], frames)?;
    let image = MediaPlan { audio: None, ..plan.clone() };
    let batch = FrameBatch { v: VERSION, job: job.clone(), plan: image, offset: 0, tensor };
    stage_vision::open(config)?.process(batch, &mut vision).map_err(failed)?;
    let plan = MediaPlan { image: None, ..plan };
    let window = PcmWindow { v: VERSION, job, plan, index: 0, tensor: WireTensor::from_i16(&sound) };
    stage_audio::open(config)?.process(window, &mut audio).map_err(failed)?;
    let mut fuser = stage_fuse::open(config)?;
    for body in vision.0.iter().chain(&audio.0) {
        fuser.process(wire::decode::<FeatureBatch<'_>>(body)?, &mut fuse).map_err(failed)?;
    }
    Ok([vision.0, audio.0, fuse.0])
}

#[test]
fn vision_audio_and_fuse_emit_what_they_do_with_the_written_model() -> anyhow::Result<()> {
    for (size, name) in [(Size::Tiny, "tiny"), (Size::Realdims, "realdims")] {
        let (_dir, file, random) = both(size, name, &[])?;
        let (from_file, made) = (encoded(&file)?, encoded(&random)?);
        ensure!(from_file.iter().all(|messages| !messages.is_empty()));
        ensure!(from_file == made, "{name}: other messages");
    }
    Ok(())
}

#[test]
fn the_language_model_answers_what_it_does_with_the_written_model_in_every_format() -> anyhow::Result<()> {
    let (frames, sound, _) = noise()?;
    let video = Video::new(Some(&frames), Some(&sound));
    let request = JobRequest { max_new_tokens: 24, ..JobRequest::new(JobId::new("job")?, "video", "a dog") };
    for (size, name, set) in [
        (Size::Tiny, "tiny", &["llm.weights=dense"][..]),
        (Size::Tiny, "tiny", &["llm.weights=q8"]),
        (Size::Tiny, "tiny", &["compute.dtype=bf16"]),
        (Size::SevenBTiny, "7b-tiny", &["llm.weights=dense"]),
        (Size::SevenBTiny, "7b-tiny", &["llm.weights=q8"]),
    ] {
        let (_dir, file, random) = both(size, name, set)?;
        let answer = |config: &Config| {
            let mut pipeline = Pipeline::open(config)?;
            let answered = pipeline.answer(&video, &request, Delivery::in_order());
            anyhow::Ok(answered.map_err(|stop| anyhow::anyhow!("{stop:?}"))?.result)
        };
        let (read, made) = (answer(&file)?, answer(&random)?);
        ensure!(!read.token_ids.is_empty() && read.token_ids == made.token_ids, "{set:?}: {read:?} {made:?}");
        ensure!(read.text == made.text, "{set:?}: {:?} {:?}", read.text, made.text);
        ensure!(made.model.name == format!("random:{name}"), "{made:?}");
    }
    Ok(())
}

fn run(args: &[&str]) -> anyhow::Result<Output> {
    let state = tempfile::tempdir()?;
    Ok(Command::new(vidi()?).env("VIDI_STATE", state.path()).args(args).stdin(Stdio::null()).output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_processes_answer_without_a_file_and_it_is_said_once_that_this_means_nothing() -> anyhow::Result<()> {
    let set = vec!["model.weights=random:tiny".to_owned()];
    let rig = Rig::start(Setup { model: None, set, ..Setup::default() }).await?;
    let clip = rig.media().join("clip.mp4");
    video(&clip, 3)?;
    let request =
        JobRequest { max_new_tokens: 24, ..JobRequest::new(JobId::new("job")?, clip.to_string_lossy(), "a dog") };
    let events = rig.answer(&request).await?;
    let Event::Result(result) = terminal(&events)? else { anyhow::bail!("{events:?}; {}", rig.log()) };
    ensure!(rig.log().matches("weights are random").count() == 1, "{}", rig.log());

    let dir = written(&Dims::of(Size::Tiny))?;
    let clip = clip.to_str().context("a path in UTF-8")?;
    let ask =
        |model: [&str; 2]| run(&[&["ask", clip, "a dog", "--json", "--max-new-tokens", "24"][..], &model].concat());
    let from_file = ask(["--model", dir.path().to_str().context("a path in UTF-8")?])?;
    let made = ask(["--weights", "random:tiny"])?;
    let ids = |output: &Output| -> anyhow::Result<Vec<u32>> {
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| said(output))?;
        Ok(serde_json::from_value(answer["token_ids"].clone())?)
    };
    ensure!(ids(&from_file)? == result.token_ids && ids(&made)? == result.token_ids, "{result:?}");
    ensure!(said(&made).matches("weights are random").count() == 1, "{}", said(&made));
    ensure!(!said(&from_file).contains("weights are random"), "{}", said(&from_file));
    Ok(())
}

#[test]
fn a_directory_beside_random_weights_and_a_size_that_is_none_are_refused_by_name() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_str().context("a path in UTF-8")?;
    let set = format!("model.dir={path}");
    for args in [
        &["up", "--weights", "random:tiny", "--model", path][..],
        &["ask", path, "a dog", "--weights", "random:tiny", "--model", path],
        &["plan", path, "--weights", "random:tiny"],
        &["stage", "vision", "--weights", "random:tiny", "--set", &set],
    ] {
        let output = run(args)?;
        let said = said(&output);
        ensure!(output.status.code() == Some(2), "{args:?}: {:?} {said}", output.status);
        ensure!(said.contains(path) && said.contains("random:tiny"), "{args:?}: {said}");
    }
    for args in [
        &["stage", "vision", "--weights", "random:huge"][..],
        &["stage", "vision", "--set", "model.weights=random:huge"],
        &["up", "--weights", "tiny"],
    ] {
        let output = run(args)?;
        let said = said(&output);
        ensure!(output.status.code() == Some(2), "{args:?}: {:?} {said}", output.status);
        ensure!(["random:tiny", "random:realdims", "random:9b"].iter().all(|s| said.contains(s)), "{args:?}: {said}");
    }
    let output = run(&["demo-model", path, "--family", "7b", "--size", "9b"])?;
    ensure!(
        output.status.code() == Some(2) && said(&output).contains("--size 9b is not of --family 7b"),
        "{}",
        said(&output)
    );
    Ok(())
}

/// What was read of a Vidi 7B's two files, and what is refused where they are of different checkpoints.
#[test]
fn inspect_shows_the_kernel_of_a_vidi_7b_and_refuses_one_that_its_configuration_does_not_ask_for() -> anyhow::Result<()>
{
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_str().context("a path in UTF-8")?;
    let output = run(&["demo-model", path, "--family", "7b", "--size", "tiny"])?;
    ensure!(output.status.success(), "{}", said(&output));
    let output = run(&["inspect", path])?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{printed}");
    for line in [
        "model_type = \"dattn_mistral\" (config.json)",
        "mm_image_pool_size = 5 (config.json)",
        "mm_rand_img_pool.kernel = 6 (model.mm_rand_img_pool.conv.weight)",
        "sliding_window = null (config.json)",
        "tie_word_embeddings = false (default)",
        "tokenizer: present",
        "chat template: tokenizer_config.json",
    ] {
        ensure!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
    }
    ensure!(!printed.contains("softcapping") && !printed.contains("warning") && !printed.contains("MISS"), "{printed}");
    let file = dir.path().join("config.json");
    let original: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    for (key, value, shown) in [
        (
            "mm_image_pool_size",
            serde_json::json!(9),
            "a kernel of 6 x 6, and mm_image_pool_size = 9 needs ceil(27 / 9) = 3",
        ),
        ("mm_image_pool_size", serde_json::Value::Null, "mm_image_pool_size is not there, and Vidi 7B has no default"),
        ("mm_time_interval", serde_json::Value::Null, "mm_time_interval is not there, and Vidi 7B has no default"),
        ("hidden_act", "gelu".into(), "hidden_act = \"gelu\" is not supported, only \"silu\""),
    ] {
        let mut config = original.clone();
        config[key] = value;
        std::fs::write(&file, config.to_string())?;
        let output = run(&["inspect", path])?;
        ensure!(output.status.code() == Some(6) && said(&output).contains(shown), "{shown}: {}", said(&output));
    }
    Ok(())
}

/// A Gemma without `lm_head.weight` has the embedding; a Mistral lacks a tensor.
#[test]
fn a_vidi_7b_without_its_output_head_is_incomplete() -> anyhow::Result<()> {
    for (size, complete) in [(Size::Tiny, true), (Size::SevenBTiny, false)] {
        let dir = written(&Dims { tied: true, ..Dims::of(size) })?;
        let file = dir.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        config["tie_word_embeddings"] = false.into();
        std::fs::write(&file, config.to_string())?;
        let found = deploy::model::inspect::inspect(dir.path(), None)?;
        let missing: Vec<&str> =
            found.tensors.iter().filter(|row| row.found.is_none()).map(|row| row.name.as_str()).collect();
        ensure!(found.is_complete() == complete, "{size}: {missing:?}");
        ensure!(missing.is_empty() == complete && missing.iter().all(|name| *name == "lm_head.weight"), "{missing:?}");
    }
    Ok(())
}

#[test]
fn inspect_refuses_a_converted_checkpoint_by_name_and_tells_of_other_end_tokens() -> anyhow::Result<()> {
    let dir = written(&Dims::of(Size::Tiny))?;
    let path = dir.path().to_str().context("a path in UTF-8")?;
    let file = dir.path().join("config.json");
    let original: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let with = |key: &str, value: serde_json::Value| -> anyhow::Result<Output> {
        let mut config = original.clone();
        config[key] = value;
        std::fs::write(&file, config.to_string())?;
        run(&["inspect", path])
    };
    for (key, value, shown) in [
        ("model_type", "gemma2".into(), "model_type = \"gemma2\" is not supported, only \"dattn_gemma2\""),
        ("quantization", serde_json::json!({"bits": 4}), "quantization = {\"bits\":4} (made for MLX)"),
    ] {
        let output = with(key, value)?;
        let said = said(&output);
        ensure!(output.status.code() == Some(6), "{key}: {:?} {said}", output.status);
        ensure!(said.contains("config.json") && said.contains(shown), "{key}: {said}");
    }
    // As transformers 5 writes it, and what it cannot mean here.
    let mut newer = original.clone();
    newer.as_object_mut().context("an object")?.remove("rope_theta");
    for (parameters, status, shown) in [
        (
            serde_json::json!({"rope_theta": 50000.0, "rope_type": "default"}),
            0,
            "rope_theta = 50000.0 (config.json, rope_parameters.rope_theta)",
        ),
        (
            serde_json::json!({"rope_theta": 50000.0, "rope_type": "linear", "factor": 2.0}),
            6,
            "rope_parameters.rope_type = \"linear\" is not supported",
        ),
    ] {
        newer["rope_parameters"] = parameters;
        std::fs::write(&file, newer.to_string())?;
        let output = run(&["inspect", path])?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output);
        ensure!(output.status.code() == Some(status) && printed.contains(shown), "{:?} {printed}", output.status);
    }
    let output = with("sliding_window", 48.into())?;
    let printed = String::from_utf8_lossy(&output.stdout);
    for line in [
        "sliding_window = 48 (config.json)",
        "rope_theta = 10000.0 (config.json)",
        "mm_projector_type = \"mlp2x_gelu\" (default)",
    ] {
        ensure!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
    }
    let output = with("eos_token_id", serde_json::json!([1, 107]))?;
    ensure!(output.status.success(), "{}", said(&output));
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(printed.contains("eos_token_id = [1, 107], llm.end_tokens is [107]"), "{printed}");
    Ok(())
}

/// A stage that runs alone reads the same flags as the process that starts them all.
#[test]
fn every_stage_alone_knows_random_weights() -> anyhow::Result<()> {
    for stage in StageName::ALL {
        let output = run(&["stage", stage.as_str(), "--weights", "random:huge"])?;
        ensure!(output.status.code() == Some(2), "{stage}: {}", output.status);
        ensure!(said(&output).contains("random:realdims"), "{stage}: {}", said(&output));
    }
    Ok(())
}
