//! `vidi inspect`: every tensor that the stages ask a checkpoint for, found or not, and every one that no stage asks for.
//!
//! The list is written down nowhere: each stage's own loading code is run against a checkpoint that records the requests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::DType;
use config::{LlmConfig, MediaProducts};
use model::checkpoint::{Checkpoint, CheckpointError, Need, Weights};
use model::config_json::family::POOL_WEIGHT;
use model::config_json::{ImagePool, ModelConfig, Setting};
use protocol::error::StageName;
use runtime::answer;
use runtime::output::Unwritten;
use serde::Serialize;
use stage_llm::Prompter;
use stage_llm::text::chat::ChatTemplate;

/// What `vidi inspect` calls the side of the image pool's kernel.
const KERNEL: &str = "mm_rand_img_pool.kernel";

/// State of a tensor in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Found, with the expected shape.
    Present,
    /// Found in no shard.
    Missing,
    /// Found, with another shape.
    Misshapen,
    /// Found, and asked for by no stage.
    Unused,
}

/// One tensor of a checkpoint, or one that it lacks.
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// Name in the checkpoint.
    pub name: String,
    /// State in the checkpoint.
    pub state: State,
    /// The stage that asks for it.
    pub stage: Option<StageName>,
    /// Shape asked for.
    pub expected: Option<Vec<usize>>,
    /// Shape found.
    pub found: Option<Vec<usize>>,
    /// Type found.
    pub dtype: Option<String>,
    /// Shard that holds it.
    pub file: Option<String>,
}

/// State of a checkpoint, tensor by tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Every tensor, by name.
    pub tensors: Vec<TensorRow>,
    /// Every key of the geometry, with its value and where that is from.
    pub settings: Vec<Setting>,
    /// Bytes that each stage holds in f32.
    pub stage_bytes: BTreeMap<StageName, u64>,
    /// Warnings of what may make answers other than expected, without making the checkpoint unusable.
    pub warnings: Vec<String>,
    /// Whether the tokenizer can be read.
    pub tokenizer: Result<(), String>,
    /// Where the chat template is from: a file of the checkpoint, or this program; or why it cannot be used.
    pub chat_template: Result<String, String>,
}

impl Inspection {
    /// Whether the pipeline can run on it.
    pub fn is_complete(&self) -> bool {
        self.tokenizer.is_ok()
            && self.chat_template.is_ok()
            && self.tensors.iter().all(|r| matches!(r.state, State::Present | State::Unused))
    }
}

/// Tensors that each stage asks of a checkpoint with this geometry.
///
/// # Errors
/// A geometry that no stage can load.
pub fn needs(config: &ModelConfig, untied: bool) -> Result<BTreeMap<StageName, Vec<Need>>, CheckpointError> {
    let mut config = config.clone();
    // As the model decides it: tied unless the configuration says otherwise and the tensor is there.
    config.tie_word_embeddings = !untied;
    let c = &config;
    Ok(BTreeMap::from([
        (StageName::Decode, Vec::new()),
        (StageName::Vision, Weights::survey(DType::F32, |w| stage_vision::load(c, w, MediaProducts::Dense))?),
        (
            StageName::Audio,
            Weights::survey(DType::F32, |w| stage_audio::WhisperEncoder::new(c, w, MediaProducts::Dense))?,
        ),
        (StageName::Fuse, Weights::survey(DType::F32, |w| stage_fuse::Fuser::new(c, w))?),
        (
            StageName::Llm,
            Weights::survey(DType::F32, |w| {
                stage_llm::LanguageModel::new(c, w, &LlmConfig::default(), MediaProducts::Dense)
            })?,
        ),
    ]))
}

/// Inspects a checkpoint directory, which is going to be served with `end_tokens`; with none, those of its model.
///
/// # Errors
/// A directory whose configuration, index or shards cannot even be opened, or which is another model's or converted.
pub fn inspect(dir: &Path, end_tokens: Option<&[u32]>) -> Result<Inspection, CheckpointError> {
    let checkpoint = Checkpoint::open(dir)?;
    let (_, mut settings) = ModelConfig::read_with_settings(dir)?;
    let config = checkpoint.config();
    settings.extend(kernel(&checkpoint));
    let untied = config.untied(checkpoint.info("lm_head.weight").is_some());
    let needs = needs(config, untied)?;
    let mut tensors = Vec::new();
    let mut asked = BTreeSet::new();
    let mut stage_bytes = BTreeMap::new();
    for (stage, list) in needs {
        stage_bytes.insert(stage, list.iter().map(|need| need.bytes).sum());
        for need in list {
            let info = checkpoint.info(&need.name);
            let state = match &info {
                None => State::Missing,
                Some(i) if i.shape != need.shape => State::Misshapen,
                Some(_) => State::Present,
            };
            asked.insert(need.name.clone());
            tensors.push(TensorRow {
                name: need.name,
                state,
                stage: Some(stage),
                expected: Some(need.shape),
                found: info.as_ref().map(|i| i.shape.clone()),
                dtype: info.as_ref().map(|i| i.dtype.clone()),
                file: info.map(|i| i.file),
            });
        }
    }
    for (name, info) in checkpoint.tensors().filter(|(name, _)| !asked.contains(*name)) {
        tensors.push(TensorRow {
            name: name.to_owned(),
            state: State::Unused,
            stage: None,
            expected: None,
            found: Some(info.shape),
            dtype: Some(info.dtype),
            file: Some(info.file),
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let built_in = ChatTemplate::built_in(config.family);
    let tokenizer = Prompter::with(dir, built_in, config.vocab_size, 1).map(drop).map_err(|e| e.to_string());
    let chat_template = ChatTemplate::read(dir, config.family).map(|template| template.origin().to_string());
    let chat_template = chat_template.map_err(|e| e.to_string());
    let warnings = config.end_tokens_warning(end_tokens).into_iter().collect();
    Ok(Inspection { tensors, settings, stage_bytes, warnings, tokenizer, chat_template })
}

/// Side of the kernel of a convolution that pools images, which only its weight's shape says.
fn kernel(checkpoint: &Checkpoint) -> Option<Setting> {
    let side = checkpoint.info(POOL_WEIGHT)?.shape.last().copied()?;
    let convolution = matches!(checkpoint.config().image_pool(), ImagePool::Convolution { .. });
    convolution.then(|| Setting { key: KERNEL.to_owned(), value: side.into(), from: Some(POOL_WEIGHT.to_owned()) })
}

/// Prints what was read of config.json, and a table of the tensors, without those that are in order unless `all`.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(inspection: &Inspection, all: bool) -> Result<(), Unwritten> {
    for Setting { key, value, from } in &inspection.settings {
        let from = match from {
            Some(from) if from == key => "config.json",
            Some(from) if key == KERNEL => from,
            Some(from) => &format!("config.json, {from}"),
            None => "default",
        };
        answer!("{key} = {value} ({from})")?;
    }
    let shape = |s: &Option<Vec<usize>>| s.as_ref().map_or("-".to_owned(), |s| format!("{s:?}"));
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &inspection.tensors {
        let state = match row.state {
            State::Present => "present",
            State::Missing => "MISSING",
            State::Misshapen => "MISSHAPEN",
            State::Unused => "unused",
        };
        *count.entry(state).or_default() += 1;
        if all || row.state != State::Present {
            answer!(
                "{state:<9} {:<6} {:<5} {:<20} {} {}",
                row.stage.map_or("-", StageName::as_str),
                row.dtype.as_deref().unwrap_or("-"),
                shape(&row.found),
                row.name,
                match row.state {
                    State::Missing | State::Misshapen => format!("(expected {})", shape(&row.expected)),
                    _ => row.file.clone().unwrap_or_default(),
                }
            )?;
        }
    }
    let counts: Vec<String> = count.iter().map(|(state, n)| format!("{n} {state}")).collect();
    answer!("tensors: {}", counts.join(", "))?;
    for (stage, bytes) in &inspection.stage_bytes {
        answer!("stage-{stage}: {:.1} MiB in f32", *bytes as f64 / f64::from(1 << 20))?;
    }
    for warning in &inspection.warnings {
        answer!("warning: {warning}")?;
    }
    match &inspection.tokenizer {
        Ok(()) => answer!("tokenizer: present")?,
        Err(e) => answer!("tokenizer: {e}")?,
    }
    let (Ok(said) | Err(said)) = &inspection.chat_template;
    answer!("chat template: {said}")
}
