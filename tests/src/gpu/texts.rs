//! Time of a decode step of several texts about one video, beside the floor of this GPU, and their tokens beside those of each
//! text alone.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use candle_core::{Device, Tensor};
use config::Config;
use model::checkpoint::Checkpoint;
use model::config_json::ModelConfig;
use protocol::message::Modality;
use protocol::plan::{AudioPlan, ImagePlan, SAMPLE_RATE};
use runtime::process::ConfigArgs;
use stage_llm::language::LanguageModel;
use stage_llm::language::cache::{MediaCache, TextCache, VideoCache};
use stage_llm::language::choose::first_largest;
use stage_llm::language::chunk::Chunk;

use super::floor::{Ceilings, footprint_of_text};

/// Tokens of each prompt.
const PROMPT: usize = 50;
/// Steps that are timed.
const STEPS: usize = 32;
/// Steps whose tokens are compared with those of each text alone: their logits are kept on the host.
const COMPARED: usize = 12;
/// Errors of a step's logits that rounding explains, in those of the same text alone read by the kernels of many rows: these are
/// the same numbers too, but for the order in which they are summed and rounded.
const MOST_ERRORS: f64 = 3.0;

/// Arguments of the measurement.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Durations of the videos in seconds.
    #[arg(long, value_delimiter = ',', default_values_t = [60, 300])]
    video_seconds: Vec<u64>,
    /// Numbers of texts.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32])]
    texts: Vec<usize>,
    /// Measure only; compare no tokens.
    #[arg(long)]
    no_check: bool,
}

/// Prints a row for each duration and number of texts. Exit status: 0 if all tokens are those of each text alone, 1 if one is
/// not or something fails.
pub fn run(args: &Arguments, config: &ConfigArgs) -> ExitCode {
    let outcome =
        config.load().map_err(|fatal| anyhow::anyhow!("{}", fatal.1)).and_then(|config| measure(args, &config));
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("gpu_bench texts: {wrong} texts have other tokens than alone");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("gpu_bench texts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything; returns the number of texts that came out wrong.
fn measure(args: &Arguments, config: &Config) -> anyhow::Result<usize> {
    let ceilings = Ceilings::of(&config.compute.device).context("rates of the GPU")?;
    let geometry = Checkpoint::configured(&config.model)?.config().clone();
    let footprint = footprint_of_text(&geometry, config)?;
    let stage = stage_llm::open(config)?;
    let model = stage.model();
    println!(
        "copies {:.0} GB/s; weights {:.2} GB, {} bytes a media token, {} a text token",
        ceilings.copy_bytes_per_s / 1e9,
        footprint.fixed.weights_bytes as f64 / 1e9,
        footprint.media_token_bytes,
        footprint.text_token_bytes,
    );
    println!("| video s | tokens | texts | ms per step | of one text | floor ms | floor of one | tokens a second |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut wrong = 0;
    for &seconds in &args.video_seconds {
        let video = video(model, &geometry, seconds, config.llm.chunk_rows.max(1))?;
        let media: u64 = video.present().map(MediaCache::tokens).sum();
        let floor_ms = |texts: usize| {
            let own = texts as u64 * footprint.text_token_bytes * (PROMPT + STEPS / 2) as u64;
            let bytes = footprint.fixed.weights_bytes + footprint.media_token_bytes * media + own;
            1e3 * bytes as f64 / ceilings.copy_bytes_per_s
        };
        let mut one = f64::NAN;
        for &texts in &args.texts {
            let ms = step_ms(model, &video, texts)?;
            if texts == 1 {
                one = ms;
            }
            println!(
                "| {seconds} | {media} | {texts} | {ms:.2} | {:.2} | {:.2} | {:.2} | {:.0} |",
                ms / one,
                floor_ms(texts),
                floor_ms(texts) / floor_ms(1),
                1e3 * texts as f64 / ms,
            );
        }
        if !args.no_check {
            wrong += compared(model, &video, &args.texts)?;
        }
    }
    Ok(wrong)
}

/// Keys and values of a video whose image and audio tokens are noise.
fn video(model: &LanguageModel, geometry: &ModelConfig, seconds: u64, rows: usize) -> anyhow::Result<VideoCache> {
    let image = ImagePlan::on(geometry.image_pool().grid(), 1, seconds).tokens;
    let audio = AudioPlan::new(seconds * SAMPLE_RATE).map_or(0, |a| a.tokens);
    let mut video = VideoCache::default();
    let noise = Tensor::randn(0f32, 1.0, (rows, model.hidden_size()), &Device::Cpu)?;
    let noise = noise.to_dtype(model.dtype())?.to_device(model.device())?;
    for (modality, tokens) in [(Modality::Image, image), (Modality::Audio, audio)].into_iter().filter(|m| m.1 > 0) {
        let mut cache = MediaCache::new(model.geometry(), tokens, model.device())?;
        cache.claim(0..tokens);
        match modality {
            Modality::Image => video.image = Some(cache),
            Modality::Audio => video.audio = Some(cache),
        }
        for offset in (0..tokens).step_by(rows) {
            let n = (tokens - offset).min(rows as u64) as usize;
            // Not the same keys again: another scale for each pass.
            let part = (noise.narrow(0, 0, n)? * (0.5 + (offset / rows as u64 % 7) as f64 / 7.0))?;
            model.absorb_all(&[Chunk { modality, offset, tokens: part }], &video, &mut ())?;
        }
    }
    Ok(video)
}

/// Text number `number`: its prompt read, and its first token `[1]`.
fn read(model: &LanguageModel, video: &VideoCache, number: usize) -> anyhow::Result<(TextCache, Tensor)> {
    let mut text = model.text_cache(PROMPT + STEPS + 3)?;
    let first = first_largest(&model.prefill(&prompt(model, number), &mut text, video, &mut ())?)?;
    Ok((text, first))
}

fn prompt(model: &LanguageModel, number: usize) -> Vec<u32> {
    (0..PROMPT).map(|i| ((1_000 + 7_919 * number + 31 * i) % model.vocabulary()) as u32).collect()
}

/// Texts that are ready for their first step, and their tokens `[texts]`.
fn read_all(model: &LanguageModel, video: &VideoCache, texts: usize) -> anyhow::Result<(Vec<TextCache>, Tensor)> {
    let read = (0..texts).map(|number| read(model, video, number)).collect::<anyhow::Result<Vec<_>>>()?;
    let (texts, ids): (Vec<TextCache>, Vec<Tensor>) = read.into_iter().unzip();
    Ok((texts, Tensor::cat(&ids, 0)?))
}

/// Milliseconds of a step, the tokens chosen on the device and no step waiting for the host, as an answer is generated.
fn step_ms(model: &LanguageModel, video: &VideoCache, texts: usize) -> anyhow::Result<f64> {
    let (mut texts, mut ids) = read_all(model, video, texts)?;
    let mut step = || -> anyhow::Result<()> {
        let mut each: Vec<&mut TextCache> = texts.iter_mut().collect();
        let logits = match each.as_mut_slice() {
            [one] => model.decode_from(&ids, one, video)?,
            _ => model.decode_each_from(&ids, &mut each, video)?,
        };
        ids = first_largest(&logits)?;
        Ok(())
    };
    (0..2).try_for_each(|_| step())?;
    model.device().synchronize()?;
    let started = Instant::now();
    (0..STEPS).try_for_each(|_| step())?;
    model.device().synchronize()?;
    Ok(started.elapsed().as_secs_f64() * 1e3 / STEPS as f64)
}

/// Compares each batch with its texts alone; returns the number of texts that are wrong.
fn compared(model: &LanguageModel, video: &VideoCache, batches: &[usize]) -> anyhow::Result<usize> {
    let most = batches.iter().copied().max().unwrap_or(0);
    let alone = (0..most).map(|number| steps_alone(model, video, number)).collect::<anyhow::Result<Vec<_>>>()?;
    let rounding = rounding(model, video, &alone)?;
    let mut wrong = 0;
    for &texts in batches.iter().filter(|&&texts| texts > 1) {
        let (mut caches, first) = read_all(model, video, texts)?;
        let mut differences = vec![Difference::default(); texts];
        let mut ids = first;
        #[expect(clippy::needless_range_loop, reason = "the step is a step of every text")]
        for step in 0..COMPARED {
            let mut each: Vec<&mut TextCache> = caches.iter_mut().collect();
            let logits = model.decode_each_from(&ids, &mut each, video)?;
            ids = first_largest(&logits)?;
            let (chosen, rows) = (ids.to_vec1::<u32>()?, logits.to_vec2::<f32>()?);
            for (text, difference) in differences.iter_mut().enumerate() {
                difference.note(&alone[text][step], chosen[text], &rows[text]);
            }
        }
        let other = differences.iter().filter(|d| d.ended.is_some()).count();
        let error = differences.iter().map(|d| d.error).fold(0.0, f64::max);
        let bad = differences.iter().filter(|d| !d.ok(rounding)).count();
        println!(
            "{texts} texts beside each alone, {COMPARED} steps: {other} with another token; largest error of a step's logits {error:.4}, \
             of each text alone read by the kernels of many rows {rounding:.4}; {bad} wrong"
        );
        wrong += bad;
    }
    Ok(wrong)
}

/// Step of a text alone: the token that it reads, the token that it chooses, and the logits that this was chosen from.
struct Step {
    read: u32,
    id: u32,
    logits: Vec<f32>,
}

/// Largest error of the last step's logits where a text alone is read in one pass, by the kernels of many rows.
fn rounding(model: &LanguageModel, video: &VideoCache, alone: &[Vec<Step>]) -> anyhow::Result<f64> {
    let mut most = 0f64;
    for (number, steps) in alone.iter().enumerate() {
        let Some(last) = steps.last() else { continue };
        let ids: Vec<u32> = prompt(model, number).into_iter().chain(steps.iter().map(|step| step.read)).collect();
        let mut text = model.text_cache(ids.len())?;
        let logits = model.prefill(&ids, &mut text, video, &mut ())?.to_vec1::<f32>()?;
        most = most.max(error(&last.logits, &logits));
    }
    Ok(most)
}

/// Root mean square of the error of `logits` over that of `alone`. A number that is none is no error that can be compared; it is
/// the largest.
fn error(alone: &[f32], logits: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let (off, size) =
        alone.iter().zip(logits).fold((0.0, 0.0), |(off, size), (&a, &b)| (off + square(b - a), size + square(a)));
    let error = (off / f64::max(size, f64::MIN_POSITIVE)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}

fn steps_alone(model: &LanguageModel, video: &VideoCache, number: usize) -> anyhow::Result<Vec<Step>> {
    let (mut text, mut id) = read(model, video, number)?;
    let step = |_| {
        let read = id.to_vec1::<u32>()?[0];
        let logits = model.decode_from(&id, &mut text, video)?;
        id = first_largest(&logits)?;
        Ok(Step { read, id: id.to_vec1::<u32>()?[0], logits: logits.to_vec1()? })
    };
    (0..COMPARED).map(step).collect()
}

/// How a text among others differs from itself alone, up to its first other token: what follows that is another text.
#[derive(Clone, Debug, Default)]
struct Difference {
    /// Largest error of a step's logits, root mean square over their own.
    error: f64,
    /// Whether the first other token is one that rounding explains; none while there is none.
    ended: Option<bool>,
}

impl Difference {
    fn note(&mut self, alone: &Step, id: u32, logits: &[f32]) {
        if self.ended.is_some() {
            return;
        }
        self.error = self.error.max(error(&alone.logits, logits));
        if id != alone.id {
            let most = alone.logits.iter().zip(logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let margin = alone.logits[alone.id as usize] - alone.logits.get(id as usize).copied().unwrap_or(f32::MIN);
            self.ended = Some(margin <= 2.0 * most);
        }
    }

    /// Whether `rounding`, the error of the same text in other kernels, explains the difference.
    fn ok(&self, rounding: f64) -> bool {
        self.error <= MOST_ERRORS * rounding && self.ended != Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_token_is_wrong_unless_rounding_explains_it_and_what_follows_is_not_compared() {
        let alone = Step { read: 0, id: 1, logits: vec![1.0, 1.01, -3.0] };
        let noted = |ids: &[(u32, [f32; 3])]| {
            let mut difference = Difference::default();
            ids.iter().for_each(|(id, logits)| difference.note(&alone, *id, logits));
            (difference.ok(0.02), difference.ended)
        };
        assert_eq!(noted(&[(1, [1.0, 1.01, -3.0]); 2]), (true, None));
        assert_eq!(noted(&[(0, [1.01, 1.0, -3.0]), (2, [0.0, 0.0, 9.0])]), (true, Some(true)));
        assert_eq!(noted(&[(2, [1.0, 1.01, -3.0])]), (false, Some(false)));
        assert_eq!(noted(&[(1, [1.0, 2.0, -3.0])]), (false, None));
        assert_eq!(noted(&[(1, [1.0, f32::NAN, -3.0])]), (false, None));
    }
}
