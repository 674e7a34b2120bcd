//! Parked videos of full size on a GPU: how long one takes to be written and to be read back, beside the raw rates of the disk and of
//! copies between host and device.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use compute::Compute;
use compute::staging::Staging;
use config::{Config, KvPrecision};
use model::checkpoint::Checkpoint;
use protocol::event::ModelName;
use protocol::message::{JobId, JobRequest};
use protocol::plan::{AudioPlan, ImagePlan, MediaPlan, SAMPLE_RATE};
use runtime::process::ConfigArgs;
use rustix::fs::{Advice, fadvise};
use stage_llm::job::parked::format::Identity;
use stage_llm::job::parked::parking::PIECE_BYTES;
use stage_llm::job::parked::{Model, Parked};
use stage_llm::job::pictures::Pictures;
use stage_llm::job::video::{Video, VideoKey, asked};
use stage_llm::language::cache::{Geometry, MediaCache, VideoCache};

/// Arguments of the measurement; model, device and formats are the configuration's.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory on the disk that is measured; what is written there is removed again.
    #[arg(long)]
    dir: PathBuf,
    /// Durations of the videos in seconds, at one frame a second and with sound.
    #[arg(long, value_delimiter = ',', default_values_t = [300, 3600])]
    seconds: Vec<u64>,
}

/// Prints a row for each duration.
pub fn run(arguments: &Arguments, config: &ConfigArgs) -> ExitCode {
    let outcome = config.load().map_err(|fatal| anyhow::anyhow!("{}", fatal.1)).and_then(|config| {
        let model = model_of(&config)?;
        println!(
            "rates in GB/s; cold: the file is not in the host's memory; warm: it is, as just after it was written; device: {}",
            config.compute.device
        );
        println!(
            "| video s | tokens | GB | park s | disk write | device to host | read cold s | read warm s | disk read | host to device |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        arguments.seconds.iter().try_for_each(|&seconds| measure(&model, &arguments.dir, seconds))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_bench parked: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Geometry of the configured model; its weights are not loaded.
fn model_of(config: &Config) -> anyhow::Result<(Model, protocol::plan::FrameGrid)> {
    let checkpoint = Checkpoint::configured(&config.model)?;
    let Compute { device, dtype, .. } = Compute::open(&config.compute, None).map_err(|e| anyhow::anyhow!("{e}"))?;
    let geometry = Geometry::new(checkpoint.config(), dtype, config.llm.kv);
    let kv = match config.llm.kv {
        KvPrecision::Dense => dtype.as_str(),
        KvPrecision::Q8 => "q8",
        KvPrecision::Q4 => "q4",
    };
    let identity = Identity { fingerprint: "gpu_bench".to_owned(), kv: kv.to_owned(), ..Identity::default() };
    let name = ModelName { name: config.model.name(), kv: kv.to_owned(), ..ModelName::default() };
    Ok((Model { identity, name, geometry, device }, checkpoint.config().image_pool().grid()))
}

fn measure((model, grid): &(Model, protocol::plan::FrameGrid), dir: &Path, seconds: u64) -> anyhow::Result<()> {
    let plan = MediaPlan {
        content_id: format!("gpu_bench {seconds}"),
        duration_s: seconds as f64,
        image: Some(ImagePlan::on(*grid, 1, seconds)),
        audio: AudioPlan::new(seconds * SAMPLE_RATE),
        notes: Vec::new(),
    };
    let tokens: Vec<u64> =
        plan.image.iter().map(|image| image.tokens).chain(plan.audio.iter().map(|audio| audio.tokens)).collect();
    let place = tempfile::tempdir_in(dir)?;
    let parked = Parked::open(place.path(), u64::MAX, model.clone(), Box::new(|_| ()))?;
    let request = JobRequest::new(JobId::new("parked")?, format!("synthetic:{seconds}"), "-");
    let key = VideoKey::new(&plan, &request).context("no content id")?;
    let noise = noise(PIECE_BYTES);
    let video = Video {
        key: Some(key.clone()),
        asked: asked(&request),
        pictures: Pictures::of(&plan),
        cache: cache_of(model, &plan, &noise)?,
        plan,
    };
    let bytes = video.cache.bytes();
    let rate = |seconds: f64| bytes as f64 / 1e9 / seconds;

    let started = Instant::now();
    parked.park(&video);
    while parked.is_waiting(&key) {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let park_s = started.elapsed().as_secs_f64();
    let to_host = timed(|| copies(model, &video.cache, false))?;
    let to_device = timed(|| copies(model, &video.cache, true))?;
    drop(video);

    let raw = place.path().join("raw");
    let write_s = timed(|| write_raw(&raw, bytes, &noise))?;
    let read_raw_s = timed(|| read_raw(&raw))?;
    std::fs::remove_file(&raw)?;
    let file = std::fs::read_dir(place.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .context("the video was not parked: see the log")?;
    forget(&File::open(&file)?)?;
    let mut read_s = [0.0; 2];
    for read_s in &mut read_s {
        let found = parked.find(&key).context("the parked video is not found")?;
        *read_s = timed(|| {
            let read = parked.read(&found, &mut |_, _| Ok(()));
            let (cache, _) = read.map_err(|unread| anyhow::anyhow!("{unread:?}"))?;
            model.device.synchronize()?;
            ensure!(cache.bytes() == bytes, "{} bytes of {bytes}", cache.bytes());
            Ok(())
        })?;
    }
    println!(
        "| {seconds} | {} | {:.2} | {park_s:.2} | {:.2} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} |",
        tokens.iter().sum::<u64>(),
        bytes as f64 / 1e9,
        rate(write_s),
        rate(to_host),
        read_s[0],
        read_s[1],
        rate(read_raw_s),
        rate(to_device),
    );
    Ok(())
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Bytes that no file system makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((state >> 32) as u32)
    };
    std::iter::from_fn(next).flat_map(u32::to_le_bytes).take(bytes).collect()
}

/// Keys and values of noise for a plan.
fn cache_of(model: &Model, plan: &MediaPlan, noise: &[u8]) -> anyhow::Result<VideoCache> {
    let allocated = |tokens: u64| -> anyhow::Result<MediaCache> {
        let mut cache = MediaCache::new(&model.geometry, tokens, &model.device)?;
        cache.claim(0..tokens);
        Ok(cache)
    };
    let video = VideoCache {
        image: plan.image.as_ref().map(|image| allocated(image.tokens)).transpose()?,
        audio: plan.audio.as_ref().map(|audio| allocated(audio.tokens)).transpose()?,
    };
    let mut staging = Staging::new(&model.device, noise.len())?;
    each_piece(&video, |buffer, at, n| {
        staging.fill(n)?.copy_from_slice(&noise[..n]);
        staging.write(buffer, at, n)
    })?;
    model.device.synchronize()?;
    Ok(video)
}

/// Copies all of a cache from the host to its device, or back.
fn copies(model: &Model, video: &VideoCache, to_device: bool) -> anyhow::Result<()> {
    let mut staging = Staging::new(&model.device, PIECE_BYTES)?;
    each_piece(video, |buffer, at, n| match to_device {
        true => staging.write(buffer, at, n),
        false => staging.read(buffer, at, n).map(drop),
    })?;
    Ok(model.device.synchronize()?)
}

fn each_piece(
    video: &VideoCache,
    mut each: impl FnMut(&candle_core::Tensor, usize, usize) -> candle_core::Result<()>,
) -> anyhow::Result<()> {
    for buffer in video.present().flat_map(MediaCache::buffers) {
        let bytes = buffer.elem_count() * buffer.dtype().size_in_bytes();
        for at in (0..bytes).step_by(PIECE_BYTES) {
            each(buffer, at, (bytes - at).min(PIECE_BYTES))?;
        }
    }
    Ok(())
}

fn write_raw(path: &Path, bytes: u64, noise: &[u8]) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    let mut left = bytes as usize;
    while left > 0 {
        let n = left.min(noise.len());
        file.write_all(&noise[..n])?;
        left -= n;
    }
    file.sync_all()?;
    forget(&file)
}

fn read_raw(path: &Path) -> anyhow::Result<()> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    while file.read(&mut piece)? > 0 {}
    Ok(())
}

/// Makes the host forget what it has of a file in memory.
fn forget(file: &File) -> anyhow::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{ComputeConfig, ModelSource};

    #[test]
    fn a_measurement_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let model = ModelSource { dir: PathBuf::new(), weights: Some("random:tiny".parse().unwrap()) };
        let config = Config { model, compute: ComputeConfig::default(), ..Config::default() };
        measure(&model_of(&config).unwrap(), dir.path(), 3).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
