//! Comparison of the stages with the oracle: boundary by boundary, and the whole pipeline's answer.
//!
//! In reading order: [`golden`] (the oracle's output), [`npy`] and [`inputs`] (its input), [`question`] (its question),
//! [`limits`] (tolerance of a boundary), [`ledger`] (comparison of tensors piece by piece), [`roundings`] (other roundings
//! of the oracle's host), [`towers`] and [`language`] (the stages' parts, observed), [`report`] (the table), [`command`]
//! (all of it as a command). [`crate::pipeline`] runs beside them, with messages between the stages.

pub mod command;
pub mod golden;
pub mod inputs;
pub mod language;
pub mod ledger;
pub mod limits;
pub mod npy;
pub mod question;
pub mod report;
pub mod roundings;
pub mod towers;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use compute::Compute;
use config::Config;
use model::checkpoint::Checkpoint;
use model::config_json::Family;
use protocol::event::Finish;
use protocol::message::{JobId, JobRequest};
use protocol::plan::{AudioPlan, FRAME_BYTES, FrameGrid, ImagePlan};
use stage_llm::text::chat::strip;
use stage_llm::text::detokenize::decode;
use stage_llm::text::reading::Watched;
use stage_llm::text::reading::reference::{self, format_hms};
use stage_llm::text::reading::reference_7b::{self, format_as_printed};
use stage_llm::text::registry::Tasks;
use stage_vision::pixels::pixel_table;

use crate::delivery::Delivery;
use crate::pipeline::{Answered, Pipeline, Video};
use golden::{Facts, Golden, TimeRanges};
use inputs::Passes;
use language::{Answer, Ending, told};
use ledger::Ledger;
use limits::Limits;
use question::Asked;
use report::{Report, Row};

/// Inputs of a comparison.
#[derive(Clone, Debug)]
pub struct Options {
    /// Checkpoint directory.
    pub checkpoint: PathBuf,
    /// Golden directory.
    pub golden: PathBuf,
    /// Frames that the oracle was given; none for `frames.npy` in the golden directory.
    pub frames: Option<PathBuf>,
    /// Audio that the oracle was given; none for `pcm.npy` in the golden directory.
    pub pcm: Option<PathBuf>,
    /// Seed of the first scrambled run of the pipeline.
    pub seed: u64,
    /// Number of scrambled runs of the pipeline.
    pub scrambled: u64,
    /// Device, precision and formats to compare; f32 on the CPU by default.
    pub config: Config,
}

/// Frames or samples of one modality and its totals.
type Input<T, P> = Option<(Vec<T>, P)>;

/// Compares every boundary and fact of a golden directory.
///
/// # Errors
/// Unusable input: files that are missing, malformed or contradict each other. Differences are in the report.
pub fn compare(options: &Options) -> anyhow::Result<Report> {
    let golden = Golden::read(&options.golden)?;
    let facts = &golden.facts;
    let checkpoint = Arc::new(Checkpoint::open(&options.checkpoint)?);
    let mut config = options.config.clone();
    config.model.dir = options.checkpoint.clone();
    config.llm.end_tokens = Some(vec![facts.eos_token_id]);
    config.llm.max_prompt_tokens = config.llm.max_prompt_tokens.max(facts.text_token_ids.len());
    let vocabulary = checkpoint.config().vocab_size;
    if let Some(id) = facts.text_token_ids.iter().find(|id| **id as usize >= vocabulary) {
        bail!("text_token_ids has {id}, the checkpoint's embedding {vocabulary} rows: made with another checkpoint?");
    }
    let grid = checkpoint.config().image_pool().grid();
    let (frames, pcm) = (frames(options, &golden, grid)?, pcm(options, &golden)?);

    let limits = Limits::of(&config);
    let compute = Compute::open(&config.compute, None).map_err(|e| anyhow::anyhow!("{e}"))?;
    let mut ledger = Ledger::new(&golden, limits);
    let modalities = (frames.as_ref().map(|(v, p)| (&v[..], p)), pcm.as_ref().map(|(v, p)| (&v[..], p)));
    let fused = towers::fuse(&checkpoint, &compute, modalities.0, modalities.1, &mut ledger)?;
    let mut pipeline = Pipeline::open(&config).map_err(|e| anyhow::anyhow!("{e}"))?;
    let ending = Ending { end_tokens: &[facts.eos_token_id], max_new_tokens: facts.max_new_tokens.max(1) as usize };
    let model = pipeline.llm().model();
    // With the golden ids, so that a difference of the tokenizer is not mistaken for one of the model.
    let answer = match limits {
        Limits::Exact => language::answer(model, &fused, &facts.text_token_ids, ending, &mut ledger)?,
        // After one different token all later ones differ: each step is compared with the oracle's on its own.
        Limits::Noisy { .. } => {
            let along = &facts.generated_token_ids;
            language::follow(model, &fused, &facts.text_token_ids, along, ending, &mut ledger)?
        }
    };

    let mut rows = ledger.finish();
    if facts.sliding_mode.as_deref() == Some("official") {
        let why = "made with --sliding official, which differs once prompt and answer outgrow the window";
        rows.push(Row::not_compared("sliding_mode", why));
    }
    rows.extend(totals(facts, modalities.0.map(|m| m.1), modalities.1.map(|m| m.1)));
    let family = checkpoint.config().family;
    let asked = Asked::new(facts, family, pipeline.llm().prompter().template());
    rows.extend(prompt_rows(facts, &asked, &pipeline));
    if limits == Limits::Exact {
        rows.extend(answer_rows(facts, &answer, &pipeline, family)?);
        rows.extend(piped(options, facts, &asked, frames.as_ref(), pcm.as_ref(), &mut pipeline));
    } else {
        rows.push(chosen(&golden, &answer));
    }
    Ok(Report { rows })
}

fn input(dir: &Path, given: Option<&PathBuf>, name: &str, wanted: bool) -> anyhow::Result<Option<PathBuf>> {
    let path = given.cloned().unwrap_or_else(|| dir.join(format!("{name}.npy")));
    if !wanted {
        ensure!(given.is_none(), "--{name} is given, but the golden directory was made without");
        return Ok(None);
    }
    ensure!(path.is_file(), "{} does not exist: give the oracle's input with --{name}", path.display());
    Ok(Some(path))
}

fn frames(options: &Options, golden: &Golden, grid: FrameGrid) -> anyhow::Result<Input<u8, ImagePlan>> {
    let facts = &golden.facts;
    let wanted = facts.frames.is_some() || golden.tensor("image_tokens").is_some();
    let given = wanted && golden.tensor("pixel_values").is_none() && golden.tensor("vision_features").is_some();
    ensure!(!given, "the golden directory was made from vision features, the stages start from frames");
    let Some(path) = input(&options.golden, options.frames.as_ref(), "frames", wanted)? else { return Ok(None) };
    let rows = scaled_alike(&path, golden)?;
    let count = (rows.len() / FRAME_BYTES) as u64;
    ensure!(count >= 2, "{}: {count} frames, a video has at least 2", path.display());
    let golden = facts.frames.unwrap_or(count);
    ensure!(golden == count, "{}: {count} frames, the golden directory was made with {golden}", path.display());
    Ok(Some((rows, ImagePlan::on(grid, 1, count))))
}

/// Frames at 384 x 384. Which axis was scaled first depends on the oracle's Pillow, and shows in its pixels.
fn scaled_alike(path: &Path, golden: &Golden) -> anyhow::Result<Vec<u8>> {
    let rows = inputs::frames(path, Passes::WidthFirst)?;
    let Some(want) = golden.tensor("pixel_values") else { return Ok(rows) };
    let table = pixel_table();
    // Pixels lie plane by plane there, and every `stride`-th is kept.
    let differs = |rows: &[u8]| {
        want.values.iter().enumerate().any(|(i, &value)| {
            let (frame, at) = (i * want.stride / FRAME_BYTES, i * want.stride % FRAME_BYTES);
            let (plane, pixel) = (at / (FRAME_BYTES / 3), at % (FRAME_BYTES / 3));
            rows.get(frame * FRAME_BYTES + pixel * 3 + plane)
                .is_none_or(|&v| (table[usize::from(v)] - value).abs() > 1e-6)
        })
    };
    if differs(&rows) {
        let as_13 = inputs::frames(path, Passes::Pillow13)?;
        if !differs(&as_13) {
            eprintln!("{}: scaled height first, as by the Pillow of the golden directory", path.display());
            return Ok(as_13);
        }
    }
    Ok(rows)
}

fn pcm(options: &Options, golden: &Golden) -> anyhow::Result<Input<i16, AudioPlan>> {
    let facts = &golden.facts;
    let wanted = facts.audio_windows.is_some() || golden.tensor("mel").is_some();
    let Some(path) = input(&options.golden, options.pcm.as_ref(), "pcm", wanted)? else { return Ok(None) };
    let samples = inputs::pcm(&path)?;
    let plan = AudioPlan::new(samples.len() as u64);
    let plan =
        plan.with_context(|| format!("{}: {} samples are too few for a token", path.display(), samples.len()))?;
    Ok(Some((samples, plan)))
}

/// The totals that positions and grid follow from.
fn totals(facts: &Facts, image: Option<&ImagePlan>, audio: Option<&AudioPlan>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut check = |name: &str, got: Option<u64>, want: Option<u64>| {
        if want.is_some() {
            rows.push(Row::fact(name, &got, &want));
        }
    };
    check("image_tokens", Some(image.map_or(0, |i| i.tokens)), facts.image_tokens);
    check("mel_frames", audio.map(|a| a.mel_frames), facts.mel_frames);
    check("audio_windows", audio.map(|a| a.windows), facts.audio_windows);
    check("audio_tokens", audio.map(|a| a.tokens), facts.audio_tokens);
    if facts.grid.is_some() {
        rows.push(Row::fact("grid", &image.map(|i| i.grid), &facts.grid));
    }
    rows.iter_mut().for_each(|row| row.name.push_str(" (count)"));
    rows
}

fn prompt_rows(facts: &Facts, asked: &Result<Asked, String>, pipeline: &Pipeline) -> Vec<Row> {
    let asked = match asked {
        Ok(asked) => asked,
        Err(why) => return ["prompt", "text_token_ids"].map(|name| Row::not_compared(name, why)).to_vec(),
    };
    let ids = match pipeline.llm().prompter().encode(&asked.question) {
        Ok(ids) => Row::fact("text_token_ids", &ids, &facts.text_token_ids),
        Err(e) => Row::failed("text_token_ids", e.to_string()),
    };
    let prompt = facts.prompt.as_ref().map(|want| Row::fact("prompt", &asked.prompt, want));
    prompt.into_iter().chain([ids]).collect()
}

/// Row about the tokens chosen along the oracle's answer: another token than the oracle's is allowed only where their
/// logits were closer than the error of that step's logits.
fn chosen(golden: &Golden, answer: &Answer) -> Row {
    let want = &golden.facts.generated_token_ids;
    let Some(steps) = golden.tensor("step_logits").filter(|s| s.stride == 1) else {
        return Row::not_compared("generated_token_ids", "the golden directory has no logits of the steps");
    };
    let width = steps.shape[1];
    for (step, (got, want)) in answer.ids.iter().zip(want).enumerate().filter(|(_, (got, want))| got != want) {
        let logits = &steps.values[step * width..(step + 1) * width];
        let margin = logits[*want as usize] - logits[*got as usize];
        let error = answer.errors.get(step).copied().unwrap_or(0.0);
        if margin > 2.0 * error {
            let what = format!(
                "step {step}: {got} and not {want}, which leads by {margin:.3}; the logits are off by {error:.3}"
            );
            return Row::failed("generated_token_ids", what);
        }
    }
    Row::fact("generated_token_ids", &answer.ids.len(), &want.len())
}

fn answer_rows(facts: &Facts, answer: &Answer, pipeline: &Pipeline, family: Family) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![Row::fact("generated_token_ids", &answer.ids, &facts.generated_token_ids)];
    if let Some(stopped) = facts.stopped_by_eos {
        rows.push(Row::fact("stopped_by_eos", &(answer.finish == Finish::Stop), &stopped));
    }
    let text = decode(pipeline.llm().prompter().tokenizer(), &answer.ids)?;
    let text = strip(&text);
    if let Some(want) = &facts.text {
        rows.push(Row::fact("text", &text, &want.as_str()));
    }
    if let (Some(duration), Some(want)) = (facts.duration, &facts.time_ranges) {
        rows.push(Row::fact("time_ranges", &time_ranges(text, duration, family)?, want));
    }
    Ok(rows)
}

/// Time ranges of an answer, whatever the task: the oracle looks for them in every answer.
fn time_ranges(text: &str, duration_s: f64, family: Family) -> anyhow::Result<TimeRanges> {
    let ranges = Tasks::of(family).get("retrieval")?.parser.read(text, Watched::whole(duration_s)).ranges;
    let (fractions, format): (_, fn(f64) -> String) = match family {
        Family::Gemma2 => (reference::fractions(text), format_hms),
        Family::Mistral => (reference_7b::fractions(text), format_as_printed),
    };
    let written = |start, end| format!("{}-{}", format(start), format(end));
    Ok(TimeRanges {
        fractions,
        seconds: ranges.iter().map(|r| (r.start_s, r.end_s)).collect(),
        formatted: ranges.iter().map(|r| written(r.start_s, r.end_s)).collect::<Vec<_>>().join(", "),
    })
}

/// Rows about the whole pipeline with messages, once in order, then scrambled.
fn piped(
    options: &Options,
    facts: &Facts,
    asked: &Result<Asked, String>,
    frames: Option<&(Vec<u8>, ImagePlan)>,
    pcm: Option<&(Vec<i16>, AudioPlan)>,
    pipeline: &mut Pipeline,
) -> Vec<Row> {
    let zero_frames = frames.is_some_and(|(rows, _)| rows.iter().all(|&b| b == 0));
    let silence = pcm.is_some_and(|(samples, _)| samples.iter().all(|&s| s == 0));
    let asked = match asked {
        Ok(asked) if frames.is_none() && pcm.is_none() => {
            Err(format!("a job of task {} needs video or audio", asked.task))
        }
        Ok(_) if zero_frames || silence => Err("black frames or silence count as absent here".to_owned()),
        Ok(asked) => Ok(asked),
        Err(why) => Err(why.clone()),
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(why) => return vec![Row::not_compared("pipeline", why)],
    };
    let mut video = Video::new(frames.map(|f| &f.0[..]), pcm.map(|p| &p.0[..]));
    video.duration_s = facts.duration.unwrap_or(video.duration_s);
    let mut request = JobRequest::new(JobId::new("parity").expect("a name"), "in-process", &asked.query);
    request.task = asked.task.to_owned();
    request.max_new_tokens = facts.max_new_tokens;
    let seeds = options.seed..options.seed.saturating_add(options.scrambled);
    let scrambled = seeds.map(|seed| (format!("pipeline, seed {seed}"), Delivery::scrambled(seed)));
    let runs = [("pipeline, in order".to_owned(), Delivery::in_order())].into_iter().chain(scrambled);
    runs.map(|(name, delivery)| match pipeline.answer(&video, &request, delivery) {
        Ok(answered) => piped_row(&name, &answered, facts),
        Err(stop) => Row::failed(&name, told(&stop)),
    })
    .collect()
}

fn piped_row(name: &str, answered: &Answered, facts: &Facts) -> Row {
    let result = &answered.result;
    if result.token_ids != facts.generated_token_ids {
        return Row::fact(name, &result.token_ids, &facts.generated_token_ids);
    }
    let streamed = answered.streamed();
    let text = facts.text.as_deref().unwrap_or(&result.text);
    Row::fact(name, &[result.text.as_str(), strip(&streamed)], &[text, text])
}
