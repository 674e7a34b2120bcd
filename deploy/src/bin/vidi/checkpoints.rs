//! Commands on a checkpoint's files: inspect, plan, quantize, demo-model.

use std::collections::BTreeMap;
use std::path::Path;

use config::Size;
use config::{Config, ModelSource, WeightFormat};
use deploy::model::{demo_model, inspect, plan, quantize, remedies};
use model::checkpoint::CheckpointError;
use model::config_json::{Family, ModelConfig};
use model::demo_model::Dims;
use runtime::answer;
use runtime::process::{Exit, Fatal};
use runtime::run::Shutdown;

use crate::cli::Bits;
use crate::up::directory;

/// `vidi inspect`: every tensor that the stages need.
///
/// # Errors
/// For a checkpoint that cannot be read, or is incomplete.
pub fn show_tensors(config: &Config, model: &Path, all: bool, json: bool) -> Result<(), Fatal> {
    let model = &directory(model)?;
    let found =
        inspect::inspect(model, config.llm.end_tokens.as_deref()).map_err(|e| Fatal(Exit::Model, e.to_string()))?;
    if json {
        answer!("{}", serde_json::json!(found))?;
    } else {
        inspect::print(&found, all)?;
    }
    if found.is_complete() {
        return Ok(());
    }
    Err(Fatal(Exit::Model, format!("{} is incomplete: see above", model.display())))
}

/// `vidi plan`: what every stage will hold, and which videos fit beside it.
///
/// # Errors
/// For a checkpoint that cannot be read, and when one of the videos does not fit.
pub fn show_plan(
    config: &Config,
    model: Option<&Path>,
    replicas: &plan::Replicas,
    video_seconds: &[u64],
    json: bool,
) -> Result<(), Fatal> {
    let wrong = |e: CheckpointError| Fatal(Exit::Model, e.to_string());
    let model = model.map(directory).transpose()?;
    let source = ModelSource { dir: model.unwrap_or_default(), weights: config.model.weights };
    source.check().map_err(|e| Fatal(Exit::Usage, e))?;
    let model = match source == ModelSource::default() {
        true => ModelConfig::default(),
        false => ModelConfig::configured(&source).map_err(wrong)?,
    };
    let plan = plan::MemoryPlan::new(config, &model, replicas).map_err(wrong)?;
    let mut videos = Vec::new();
    if !json {
        answer!("{plan}")?;
    }
    let mut all_fit = true;
    for &seconds in video_seconds {
        let video = plan.video(seconds);
        let remedies = match video.mode {
            Some(_) => Vec::new(),
            None => remedies::remedies(config, &model, replicas, seconds).map_err(wrong)?,
        };
        all_fit &= video.mode.is_some();
        if json {
            videos.push(serde_json::json!({ "seconds": seconds, "fit": video, "would_fit": remedies }));
            continue;
        }
        match plan.devices.len() {
            1 => answer!("{seconds} s: {video}"),
            _ => answer!("{seconds} s, on {}: {video}", video.device),
        }?;
        for remedy in remedies {
            answer!("    would fit: {remedy}")?;
        }
    }
    if json {
        let mut object = plan.to_json();
        object["videos"] = videos.into();
        answer!("{object}")?;
    }
    if all_fit { Ok(()) } else { Err(Fatal(Exit::DoesNotFit, "not every video fits: see above".to_owned())) }
}

/// `vidi quantize`: writes the file, and prints each matrix and the worst of each kind.
///
/// # Errors
/// For a checkpoint that cannot be read, or a file that cannot be written.
pub fn write_quantized(model: &Path, to: Bits, out: &Path, stop: &Shutdown) -> Result<(), Fatal> {
    let model = &directory(model)?;
    let weights = match to {
        Bits::Q8 => WeightFormat::Q8,
        Bits::Q4 => WeightFormat::Q4,
    };
    let bar = indicatif::ProgressBar::new(0);
    let mut worst: BTreeMap<&'static str, (f64, String)> = BTreeMap::new();
    // The file is written whoever reads along.
    let mut shown = answer!("relative error of matmuls:");
    let done = quantize::quantize(model, weights, out, &|| *stop.borrow(), &mut |matrix, count| {
        bar.set_length(count as u64);
        bar.inc(1);
        if shown.is_ok() {
            shown = bar.suspend(|| answer!("{:<44} {:?}  {:.2e}", matrix.name, matrix.format, matrix.error));
        }
        let kind = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"]
            .into_iter()
            .find(|k| matrix.name.ends_with(k));
        let most = worst.entry(kind.unwrap_or("embedding")).or_default();
        if matrix.error >= most.0 {
            *most = (matrix.error, matrix.name.clone());
        }
    });
    bar.finish_and_clear();
    done.map_err(|e| Fatal(exit_of(&e), format!("{e:#}")))?;
    shown?;
    for (kind, (error, name)) in &worst {
        answer!("worst of {kind}: {error:.2e} ({name})")?;
    }
    answer!(
        "{}: use it with --set llm.weights={} --set llm.quantized={}",
        out.display(),
        format!("{to:?}").to_lowercase(),
        out.display()
    )?;
    Ok(())
}

/// Status of a file that was not written: the command line's fault, the disk's, or the checkpoint's.
fn exit_of(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) if error.kind() == std::io::ErrorKind::InvalidInput => Exit::Usage,
        Some(_) => Exit::Other,
        None => Exit::Model,
    }
}

/// The size of a demo model in the layout of `family`.
///
/// # Errors
/// A size of the other family, and those of this one.
pub fn of_family(size: Size, family: Option<Family>) -> Result<Size, String> {
    match (size, family) {
        (size, None) => Ok(size),
        (Size::Tiny, Some(Family::Mistral)) => Ok(Size::SevenBTiny),
        (Size::Realdims, Some(Family::Mistral)) => Ok(Size::SevenBRealdims),
        (size, Some(family)) if Dims::of(size).family == family => Ok(size),
        (size, Some(family)) => {
            Err(format!("--size {size} is not of --family {family}: take tiny, realdims or {family}"))
        }
    }
}

/// `vidi demo-model`: writes a random checkpoint.
///
/// # Errors
/// When the directory holds something else, or cannot be written.
pub fn write_demo_model(dir: &Path, size: Size, seed: u64) -> Result<(), Fatal> {
    let bar = indicatif::ProgressBar::new(0);
    let written = demo_model::write(dir, &Dims::of(size), seed, &mut |p| {
        bar.set_length(p.total_bytes);
        bar.set_position(p.written_bytes);
    });
    bar.finish_and_clear();
    let summary = written.map_err(|e| Fatal(Exit::Model, e.to_string()))?;
    answer!("{}: {summary:?}", dir.display())?;
    Ok(answer!("The weights are random: answers of this model mean nothing.")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_its_own_sizes_and_refuses_the_others() {
        let sizes = |family| Size::ALL.map(|size| of_family(size, family).ok());
        assert_eq!(sizes(None), Size::ALL.map(Some));
        let [tiny, realdims, full] = [Size::SevenBTiny, Size::SevenBRealdims, Size::SevenB].map(Some);
        assert_eq!(sizes(Some(Family::Mistral)), [tiny, realdims, None, tiny, realdims, full]);
        let [tiny, realdims, full] = [Size::Tiny, Size::Realdims, Size::NineB].map(Some);
        assert_eq!(sizes(Some(Family::Gemma2)), [tiny, realdims, full, None, None, None]);
        let said = of_family(Size::NineB, Some(Family::Mistral)).unwrap_err();
        assert!(said.contains("--size 9b") && said.contains("tiny, realdims or 7b"), "{said}");
    }
}
