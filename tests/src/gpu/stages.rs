//! Time of each stage per message, without a bus.

use std::process::ExitCode;
use std::time::Instant;

use config::Config;
use model::checkpoint::Checkpoint;
use protocol::message::{DecodeRequest, FeatureBatch, JobId, Modality, Output, Segment, TokenBatch};
use protocol::plan::{AudioPlan, ImagePlan, MediaPlan, SAMPLE_RATE};
use protocol::stage::{Port, Stage, Stop};
use protocol::wire::{self, VERSION};
use runtime::process::ConfigArgs;
use stage_llm::language::cache::{MediaCache, VideoCache};

use super::synthetic::SyntheticDecode;

/// Number of runs of each message; the first ones are the warm-up.
const RUNS: usize = 6;
/// Duration in seconds of the video whose messages are used.
const SECONDS: u64 = 300;
/// Number of messages of each kind; the last one has full size.
const MESSAGES: usize = 7;
/// Number of tokens to generate.
const STEPS: u32 = 32;

/// Port that keeps the bodies of a stage's output.
#[derive(Default)]
struct Kept {
    bodies: Vec<(&'static str, Vec<u8>)>,
}

impl Port for Kept {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        let kind = match output {
            Output::Frames(_) => "frames",
            Output::Pcm(_) => "pcm",
            Output::Features(_) => "features",
            Output::Tokens(_) => "tokens",
        };
        let whole = output.encode(usize::MAX).map_err(|e| Stop::Unavailable(e.to_string()))?;
        self.bodies.extend(whole.into_iter().map(|(_, body)| (kind, body)));
        Ok(())
    }

    fn cancelled(&self) -> bool {
        self.bodies.len() > 4 * MESSAGES && self.bodies.iter().filter(|b| b.0 == "frames").count() >= MESSAGES
    }
}

/// Prints milliseconds per message, and for the language model per pass and token.
pub fn run(config: &ConfigArgs) -> ExitCode {
    let outcome = config.load().map_err(|fatal| fatal.1).and_then(|config| measure(&config));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_bench stages: {error}");
            ExitCode::FAILURE
        }
    }
}

fn told(stop: Stop) -> String {
    format!("{stop:?}")
}

/// Output of the last of [`RUNS`] runs of a stage on one message.
fn time<S: Stage>(stage: &mut S, name: &str, body: &[u8]) -> Result<Vec<(&'static str, Vec<u8>)>, String>
where
    for<'a> S::Input<'a>: serde::Deserialize<'a>,
{
    let mut last = Vec::new();
    for run in 0..RUNS {
        let mut port = Kept::default();
        let started = Instant::now();
        let input = wire::decode::<S::Input<'_>>(body).map_err(|e| e.to_string())?;
        stage.process(input, &mut port).map_err(told)?;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        if run + 2 >= RUNS {
            let out = port.bodies.iter().map(|b| b.1.len()).sum::<usize>() as f64 / 1e6;
            println!("{name}: {ms:.2} ms, {:.1} MB in, {out:.1} MB out", body.len() as f64 / 1e6);
        }
        last = port.bodies;
    }
    Ok(last)
}

fn measure(config: &Config) -> Result<(), String> {
    let text = |e: protocol::error::JobError| e.to_string();
    let checkpoint = Checkpoint::configured(&config.model).map_err(|e| e.to_string())?;
    let grid = checkpoint.config().image_pool().grid();
    let plan = MediaPlan {
        content_id: String::new(),
        duration_s: SECONDS as f64,
        image: Some(ImagePlan::on(grid, 1, SECONDS)),
        audio: AudioPlan::new(SECONDS * SAMPLE_RATE),
        notes: Vec::new(),
    };
    let request = DecodeRequest {
        v: VERSION,
        job: JobId::new("stages").map_err(|e| e.to_string())?,
        video: format!("synthetic:{SECONDS}"),
        span: None,
        segment: Segment { first_frame: 0, frames: SECONDS, first_window: 0, windows: 1 },
        plan: plan.clone(),
    };
    let mut made = Kept::default();
    SyntheticDecode::new(config.decode.batch_frames).process(request, &mut made).map_err(told)?;
    // The first messages of a video are small ones.
    let of_kind = |kind: &str| made.bodies.iter().filter(|b| b.0 == kind).map(|b| &b.1).max_by_key(|b| b.len());
    let largest = |kind: &str| of_kind(kind).cloned().unwrap_or_default();

    let features = time(&mut stage_vision::open(config).map_err(text)?, "vision", &largest("frames"))?;
    let states = time(&mut stage_audio::open(config).map_err(text)?, "audio", &largest("pcm"))?;
    let mut fuse = stage_fuse::open(config).map_err(text)?;
    let tokens = time(&mut fuse, "fuse, image", &features[0].1)?;
    time(&mut fuse, "fuse, audio", &states[0].1)?;
    drop(fuse);
    let _: FeatureBatch<'_> = wire::decode(&features[0].1).map_err(|e| e.to_string())?;
    language(config, &plan, &tokens[0].1).map_err(|e| e.to_string())
}

fn language(config: &Config, plan: &MediaPlan, body: &[u8]) -> candle_core::Result<()> {
    let wrong = |e: &dyn std::fmt::Display| candle_core::Error::Msg(e.to_string());
    let stage = stage_llm::open(config).map_err(|e| wrong(&e))?;
    let model = stage.model();
    let batch: TokenBatch<'_> = wire::decode(body).map_err(|e| wrong(&e))?;
    let tokens = compute::transfer::upload(&batch.tensor, model.device())?; // [n, D]
    let count = plan.image.as_ref().map_or(0, |i| i.tokens) as usize;
    let mut image = MediaCache::new(model.geometry(), count as u64, model.device())?;
    image.claim(0..count as u64);
    let video = VideoCache { image: Some(image), audio: None };
    let synchronize = || model.device().synchronize();
    for rows in [512, 1024, 2048, 4096, 8192] {
        let copies = vec![&tokens; rows / tokens.dim(0)? + 1];
        let rows_of = candle_core::Tensor::cat(&copies, 0)?.narrow(0, 0, rows)?;
        for run in 0..3 {
            synchronize()?;
            let started = Instant::now();
            model.absorb(Modality::Image, &rows_of, 0, &video, &mut ())?;
            let launched = started.elapsed().as_secs_f64() * 1e3;
            synchronize()?;
            if run == 2 {
                let ms = started.elapsed().as_secs_f64() * 1e3;
                println!(
                    "llm, pass of {rows} rows: {ms:.2} ms ({launched:.2} to launch), {:.0} rows/s",
                    rows as f64 / ms * 1e3
                );
            }
        }
    }
    let mut text = model.text_cache(1024)?;
    let prompt: Vec<u32> = (0..50).map(|i| 1000 + i).collect();
    for _ in 0..2 {
        text = model.text_cache(1024)?;
        let started = Instant::now();
        model.prefill(&prompt, &mut text, &video, &mut ())?.to_vec1::<f32>()?;
        println!("llm, prompt of 50 over {count} image tokens: {:.2} ms", started.elapsed().as_secs_f64() * 1e3);
    }
    let (mut launch, started) = (0.0, Instant::now());
    for id in 0..STEPS {
        let step = Instant::now();
        let logits = model.decode(2000 + id, &mut text, &video)?;
        launch += step.elapsed().as_secs_f64();
        logits.to_vec1::<f32>()?;
    }
    let (all, launch) = (started.elapsed().as_secs_f64() * 1e3 / f64::from(STEPS), launch * 1e3 / f64::from(STEPS));
    println!("llm, one token over {count} image tokens: {all:.2} ms ({launch:.2} to launch)");
    Ok(())
}
