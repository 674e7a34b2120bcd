//! The checkpoint on disk: `config.json`, any number of memory-mapped safetensors shards, and their index.
//!
//! A model asks its [`Weights`] for each tensor by the checkpoint's own name and the shape it needs. The same loading
//! code can be [surveyed](Weights::survey): it then reads nothing and leaves the list of what it asked for, which is
//! what `vidi inspect` and the memory plan are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use serde::Deserialize;

use crate::error::{ErrorKind, JobError};
use crate::model::ModelConfig;

/// What is wrong with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointErrorKind {
    /// The directory or one of its files is not there, or cannot be read.
    Missing,
    /// A file is cut short or not what its name says.
    Malformed,
    /// A tensor that the model needs is in no shard.
    MissingTensor,
    /// A tensor has another shape, or a type that no model computes with.
    Misshapen,
    /// There is no memory for it.
    OutOfMemory,
}

/// A checkpoint that cannot be used: which file or tensor, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointError {
    kind: CheckpointErrorKind,
    detail: String,
}

impl CheckpointError {
    /// An error with a sentence that names file or tensor.
    pub fn new(kind: CheckpointErrorKind, detail: impl Into<String>) -> Self {
        CheckpointError { kind, detail: detail.into() }
    }

    /// Weights that the device has no room for, or that it cannot rearrange.
    pub fn from_device(error: candle_core::Error) -> Self {
        CheckpointError::new(CheckpointErrorKind::OutOfMemory, error.to_string())
    }

    /// What callers match on.
    pub fn kind(&self) -> CheckpointErrorKind {
        self.kind
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for CheckpointError {}

impl From<CheckpointError> for JobError {
    fn from(e: CheckpointError) -> Self {
        let kind = match e.kind {
            CheckpointErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            _ => ErrorKind::Model,
        };
        JobError::new(kind, e.detail).hint("`vidi inspect MODEL` lists what is missing or misshapen")
    }
}

/// One tensor as a shard's header has it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type, as safetensors writes it.
    pub dtype: String,
    /// Bytes on disk.
    pub bytes: usize,
    /// The shard's file name.
    pub file: String,
}

struct Shard {
    file: String,
    map: MmapedSafetensors,
}

/// An opened checkpoint: headers are read, data stays on disk until it is asked for.
pub struct Checkpoint {
    dir: PathBuf,
    config: ModelConfig,
    shards: Vec<Shard>,
    /// Tensor name to shard.
    routing: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, CheckpointError> {
    let text = std::fs::read(path)
        .map_err(|e| CheckpointError::new(CheckpointErrorKind::Missing, format!("{}: {e}", path.display())))?;
    serde_json::from_slice(&text)
        .map_err(|e| CheckpointError::new(CheckpointErrorKind::Malformed, format!("{}: {e}", path.display())))
}

impl ModelConfig {
    /// The geometry that a checkpoint directory's `config.json` states.
    ///
    /// # Errors
    /// A file that is missing, malformed or of an impossible geometry.
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join("config.json");
        let config: ModelConfig = read_json(&path)?;
        config.check().map_err(|what| {
            CheckpointError::new(CheckpointErrorKind::Malformed, format!("{}: {what}", path.display()))
        })?;
        Ok(config)
    }
}

impl Checkpoint {
    /// Opens a directory in the released model's layout.
    ///
    /// # Errors
    /// The file that is missing, cut short or contradicts itself.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let dir = dir.into();
        let config = ModelConfig::read(&dir)?;
        let index = dir.join("model.safetensors.index.json");
        let weight_map = if index.exists() { Some(read_json::<Index>(&index)?.weight_map) } else { None };
        let files: BTreeSet<String> = match &weight_map {
            Some(map) => map.values().cloned().collect(),
            None => BTreeSet::from(["model.safetensors".to_owned()]),
        };
        let mut shards = Vec::new();
        for file in files {
            let path = dir.join(&file);
            if file.contains('/') || !path.is_file() {
                return Err(CheckpointError::new(
                    CheckpointErrorKind::Missing,
                    format!("{}: no such shard, though {} needs it", path.display(), dir.display()),
                ));
            }
            // SAFETY: the mapping is only read; a checkpoint that someone overwrites while it is served is as
            // undefined here as in every other reader of memory-mapped weights.
            let map = unsafe { MmapedSafetensors::new(&path) }.map_err(|e| {
                let detail = format!("{}: cut short or not safetensors: {e}", path.display());
                CheckpointError::new(CheckpointErrorKind::Malformed, detail)
            })?;
            shards.push(Shard { file, map });
        }
        let mut routing = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for (name, _) in shard.map.tensors() {
                // Where the index names a shard for it, that one counts.
                let elsewhere = weight_map.as_ref().and_then(|m| m.get(&name)).is_some_and(|f| *f != shard.file);
                if !elsewhere {
                    routing.insert(name, i);
                }
            }
        }
        Ok(Checkpoint { dir, config, shards, routing })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its geometry.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor that is there.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorInfo)> {
        self.routing.keys().filter_map(|name| Some((name.as_str(), self.info(name)?)))
    }

    /// One tensor's header.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        let shard = &self.shards[*self.routing.get(name)?];
        let view = shard.map.get(name).ok()?;
        Some(TensorInfo {
            shape: view.shape().to_vec(),
            dtype: format!("{:?}", view.dtype()),
            bytes: view.data().len(),
            file: shard.file.clone(),
        })
    }

    /// Copies one tensor to a device and converts it.
    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, CheckpointError> {
        let (shard, path) = self.find(name, shape)?;
        let whole = || -> candle_core::Result<Tensor> {
            let view = shard.map.get(name)?;
            if device.is_cpu() || view.data().len() <= PIECE_BYTES || shape.len() != 2 {
                return float(view.load(device)?)?.to_dtype(dtype);
            }
            let target = uninitialized(shape, dtype, device)?;
            fill(&target, 0, &view)?;
            Ok(target)
        };
        whole().map_err(|e| unusable(&path, name, &e))
    }

    /// Copies one matrix to rows of another, in pieces: neither the source's type nor its size is ever held twice.
    fn load_into(&self, name: &str, shape: &[usize], target: &Tensor, row: usize) -> Result<(), CheckpointError> {
        let (shard, path) = self.find(name, shape)?;
        shard.map.get(name).and_then(|view| fill(target, row, &view)).map_err(|e| unusable(&path, name, &e))
    }

    /// The shard with a tensor of this shape, and its path.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Shard, PathBuf), CheckpointError> {
        let Some(info) = self.info(name) else {
            return Err(CheckpointError::new(
                CheckpointErrorKind::MissingTensor,
                format!("{}: no tensor {name} {shape:?} in any of {} shards", self.dir.display(), self.shards.len()),
            ));
        };
        let path = self.dir.join(&info.file);
        if info.shape != shape {
            return Err(CheckpointError::new(
                CheckpointErrorKind::Misshapen,
                format!("{}: {name} is {:?}, expected {shape:?}", path.display(), info.shape),
            ));
        }
        Ok((&self.shards[self.routing[name]], path))
    }
}

/// Bytes that pass from a shard to a device at a time.
const PIECE_BYTES: usize = 64 << 20;

/// A tensor that will be written before it is read.
fn uninitialized(shape: &[usize], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    // SAFETY: any bits are a float, and callers fill all rows.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// Writes a shard's matrix to rows `row..` of `target`, piece by piece, in `target`'s type.
fn fill(target: &Tensor, row: usize, view: &TensorView<'_>) -> candle_core::Result<()> {
    let &[rows, columns] = view.shape() else { candle_core::bail!("is {:?}, not a matrix", view.shape()) };
    let dtype = DType::try_from(view.dtype())?;
    let row_bytes = columns * dtype.size_in_bytes();
    let step = (PIECE_BYTES / row_bytes.max(1)).max(1);
    for start in (0..rows).step_by(step) {
        let n = step.min(rows - start);
        let bytes = &view.data()[start * row_bytes..(start + n) * row_bytes];
        let piece = Tensor::from_raw_buffer(bytes, dtype, &[n, columns], target.device())?;
        target.slice_set(&float(piece)?.to_dtype(target.dtype())?, 0, row + start)?;
    }
    Ok(())
}

fn float(tensor: Tensor) -> candle_core::Result<Tensor> {
    if !tensor.dtype().is_float() {
        candle_core::bail!("is {}, which is not a float type", tensor.dtype().as_str());
    }
    Ok(tensor)
}

fn unusable(path: &Path, name: &str, error: &candle_core::Error) -> CheckpointError {
    let text = error.to_string();
    let kind =
        if text.contains("OUT_OF_MEMORY") { CheckpointErrorKind::OutOfMemory } else { CheckpointErrorKind::Misshapen };
    CheckpointError::new(kind, format!("{}: {name}: {text}", path.display()))
}

/// A tensor that a model asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    /// The checkpoint's name of it.
    pub name: String,
    /// The shape it must have.
    pub shape: Vec<usize>,
    /// The type it is kept in, unless it is kept in blocks.
    pub dtype: DType,
    /// Bytes in memory.
    pub bytes: u64,
}

#[derive(Clone)]
enum Source {
    Checkpoint(Arc<Checkpoint>),
    Survey(Arc<Mutex<Vec<Need>>>),
}

/// Where a model's layers get their tensors: a checkpoint, a dtype, a device, and a prefix of names.
#[derive(Clone)]
pub struct Weights {
    source: Source,
    dtype: DType,
    device: Device,
    prefix: String,
}

impl Weights {
    /// Weights of a checkpoint, kept in `dtype` on `device`.
    pub fn new(checkpoint: Arc<Checkpoint>, dtype: DType, device: Device) -> Self {
        Weights { source: Source::Checkpoint(checkpoint), dtype, device, prefix: String::new() }
    }

    /// Runs loading code without a checkpoint and returns what it asked for. The tensors that it gets are zeros
    /// that take no memory.
    ///
    /// # Errors
    /// The loading code's.
    pub fn survey<T, E>(dtype: DType, load: impl FnOnce(&Weights) -> Result<T, E>) -> Result<Vec<Need>, E> {
        let needs = Arc::new(Mutex::new(Vec::new()));
        let source = Source::Survey(needs.clone());
        load(&Weights { source, dtype, device: Device::Cpu, prefix: String::new() })?;
        let mut list = needs.lock().expect("no loader panics holding it. This is a bug.");
        Ok(std::mem::take(&mut *list))
    }

    /// The weights below a name: `w.pp("self_attn").get("q_proj.weight", ..)`.
    pub fn pp(&self, name: impl fmt::Display) -> Weights {
        Weights { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The same weights kept in another type.
    pub fn in_dtype(&self, dtype: DType) -> Weights {
        Weights { dtype, ..self.clone() }
    }

    /// The same weights for another device.
    pub fn on(&self, device: Device) -> Weights {
        Weights { device, ..self.clone() }
    }

    /// Whether nothing is read: see [`survey`](Self::survey).
    pub fn is_survey(&self) -> bool {
        matches!(self.source, Source::Survey(_))
    }

    /// In a survey, asks for matrices `[rows, columns]` that will be kept in blocks, `row_bytes` a row.
    ///
    /// # Errors
    /// None.
    pub fn survey_blocks(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
        row_bytes: usize,
    ) -> Result<Tensor, CheckpointError> {
        let stacked = self.stack(parts, columns)?;
        if let Source::Survey(needs) = &self.source {
            let mut needs = needs.lock().expect("no loader panics holding it. This is a bug.");
            let first = needs.len() - parts.len();
            for (need, (_, rows)) in needs[first..].iter_mut().zip(parts) {
                need.bytes = (rows * row_bytes) as u64;
            }
        }
        Ok(stacked)
    }

    /// The type that tensors are kept in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that tensors are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether a tensor is there. A survey says yes.
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Checkpoint(c) => c.routing.contains_key(&format!("{}{name}", self.prefix)),
            Source::Survey(_) => true,
        }
    }

    /// The tensor `name` below the prefix, which must have exactly `shape`.
    ///
    /// # Errors
    /// Name, expected and found shape, and file.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        let name = format!("{}{name}", self.prefix);
        match &self.source {
            Source::Checkpoint(c) => c.load(&name, shape, self.dtype, &self.device),
            Source::Survey(needs) => {
                let zero = Tensor::zeros((), self.dtype, &self.device).and_then(|t| t.broadcast_as(shape));
                let bytes = shape.iter().map(|&d| d as u64).product::<u64>() * self.dtype.size_in_bytes() as u64;
                let need = Need { name, shape: shape.to_vec(), dtype: self.dtype, bytes };
                needs.lock().expect("no loader panics holding it. This is a bug.").push(need);
                zero.map_err(|e| CheckpointError::new(CheckpointErrorKind::Misshapen, e.to_string()))
            }
        }
    }

    /// Matrices `[rows, columns]` below the prefix as one, on top of each other in the order given: projections of the
    /// same input, computed as one product.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn stack(&self, parts: &[(&str, usize)], columns: usize) -> Result<Tensor, CheckpointError> {
        let rows = parts.iter().map(|part| part.1).sum::<usize>();
        match &self.source {
            Source::Survey(_) => {
                for &(name, rows) in parts {
                    self.get(name, &[rows, columns])?;
                }
                let zero = Tensor::zeros((), self.dtype, &self.device).and_then(|t| t.broadcast_as((rows, columns)));
                zero.map_err(|e| CheckpointError::new(CheckpointErrorKind::Misshapen, e.to_string()))
            }
            Source::Checkpoint(c) => {
                let target = uninitialized(&[rows, columns], self.dtype, &self.device)
                    .map_err(|e| unusable(c.dir(), &self.prefix, &e))?;
                let mut row = 0;
                for &(name, rows) in parts {
                    c.load_into(&format!("{}{name}", self.prefix), &[rows, columns], &target, row)?;
                    row += rows;
                }
                Ok(target)
            }
        }
    }

    /// Vectors below the prefix as one, in the order given; `None` stands for zeros. See [`stack`](Self::stack).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn concat(&self, parts: &[(Option<&str>, usize)]) -> Result<Tensor, CheckpointError> {
        let part = |&(name, n): &(Option<&str>, usize)| match name {
            Some(name) => self.get(name, &[n]),
            None => Tensor::zeros(n, self.dtype, &self.device).map_err(|e| unusable(Path::new(&self.prefix), "", &e)),
        };
        let parts = parts.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        Tensor::cat(&parts, 0).map_err(|e| unusable(Path::new(&self.prefix), "", &e))
    }
}
