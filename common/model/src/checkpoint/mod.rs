//! The checkpoint: `config.json` and tensors, from files or made up.
//!
//! A model asks its [`Weights`] for each tensor by the checkpoint's own name and the shape it needs. The same loading
//! code can be [surveyed](Weights::survey): it then reads nothing and leaves the list of what it asked for, which is
//! what `vidi inspect` and the memory plan are made of. The parts: `error`, `files` (memory-mapped safetensors shards and their
//! index), `stored` (one tensor's values, of a shard or of a demo model, on their way to a device), `weights`.

mod error;
mod files;
mod stored;
mod weights;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use crate::config_json::family::POOL_WEIGHT;
use crate::config_json::supported::{refused_key, refused_name};
use crate::config_json::{ModelConfig, Setting};
use crate::demo_model::{DEFAULT_SEED, Dims, tensors};
use config::ModelSource;

pub use error::{CheckpointError, CheckpointErrorKind};
use error::{malformed, parse, read, unsupported, unusable};
use files::Files;
use stored::Stored;
pub use weights::{Need, Weights};

/// One tensor as a shard's header has it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type, as safetensors writes it.
    pub dtype: String,
    /// Bytes on disk.
    pub bytes: usize,
    /// The shard's file name; for random weights, that they are.
    pub file: String,
}

/// Stands for the path of weights that are in no file.
const RANDOM: &str = "random weights";

/// An opened checkpoint: headers are read, data stays on disk until it is asked for. Random weights are made then.
pub struct Checkpoint {
    config: ModelConfig,
    data: Data,
}

enum Data {
    Files(Files),
    Random { seed: u64, tensors: BTreeMap<String, tensors::Tensor> },
}

impl ModelConfig {
    /// The geometry that a checkpoint directory's `config.json` states.
    ///
    /// # Errors
    /// A file that is missing, malformed or of an impossible geometry; one of another model, or of a checkpoint that was
    /// converted for another program.
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        ModelConfig::read_with_settings(dir).map(|(config, _)| config)
    }

    /// [`read`](Self::read), and every key with its value and where that is from.
    ///
    /// # Errors
    /// As `read`.
    pub fn read_with_settings(dir: &Path) -> Result<(Self, Vec<Setting>), CheckpointError> {
        let path = dir.join("config.json");
        let text = read(&path)?;
        let file: Map<String, Value> = parse(&text, &path)?;
        // Before the geometry, which another model may state in other words.
        if let Some(what) = refused_key(&file) {
            return Err(unsupported(&path, &what));
        }
        let config = ModelConfig::of_file(&file).map_err(malformed(&path))?;
        config.check().map_err(malformed(&path))?;
        let settings = config.settings(&file);
        Ok((config, settings))
    }

    /// The geometry of the model that a configuration names. Random weights have one without a file.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn configured(source: &ModelSource) -> Result<Self, CheckpointError> {
        match source.weights {
            None => ModelConfig::read(&source.dir),
            Some(random) => Ok(Dims::of(random.size).model_config()),
        }
    }
}

impl Checkpoint {
    /// Opens a directory in the released model's layout.
    ///
    /// # Errors
    /// The file that is missing, cut short or contradicts itself; a checkpoint of another model, or one that was converted
    /// for another program.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let dir = dir.into();
        let config = ModelConfig::read(&dir)?;
        let files = Files::open(dir)?;
        if let Some(what) = refused_name(files.names()) {
            return Err(unsupported(files.dir(), &what));
        }
        if let Some((pool, _)) = files.view(POOL_WEIGHT) {
            config.check_pool(pool.shape()).map_err(|what| unsupported(files.dir(), &what))?;
        }
        Ok(Checkpoint { config, data: Data::Files(files) })
    }

    /// The demo model of `dims` and `seed`, without its files: each tensor is made when it is asked for, with the values
    /// that the files would have.
    ///
    /// # Errors
    /// Dimensions that do not make a model.
    pub fn random(dims: &Dims, seed: u64) -> Result<Self, CheckpointError> {
        dims.check().map_err(malformed(Path::new(RANDOM)))?;
        let config = dims.model_config();
        config.check().map_err(malformed(Path::new(RANDOM)))?;
        let tensors = tensors::list(dims).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Ok(Checkpoint { config, data: Data::Random { seed, tensors } })
    }

    /// The one that a configuration names: a directory, or random weights of a size.
    ///
    /// # Errors
    /// As [`open`](Self::open); a configuration that names both.
    pub fn configured(source: &ModelSource) -> Result<Self, CheckpointError> {
        source.check().map_err(|e| CheckpointError::new(CheckpointErrorKind::Malformed, e))?;
        match source.weights {
            None => Checkpoint::open(&source.dir),
            Some(random) => Checkpoint::random(&Dims::of(random.size), DEFAULT_SEED),
        }
    }

    /// Its geometry.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor that is there.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorInfo)> {
        let names: Vec<&str> = match &self.data {
            Data::Files(files) => files.names().collect(),
            Data::Random { tensors, .. } => tensors.keys().map(String::as_str).collect(),
        };
        names.into_iter().filter_map(|name| Some((name, self.info(name)?)))
    }

    /// One tensor's header.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        let (stored, file) = self.stored(name)?;
        Some(TensorInfo {
            shape: stored.shape(),
            dtype: stored.dtype_name(),
            bytes: stored.bytes(),
            file: file.to_owned(),
        })
    }

    /// Whether a tensor is there.
    fn contains(&self, name: &str) -> bool {
        match &self.data {
            Data::Files(files) => files.contains(name),
            Data::Random { tensors, .. } => tensors.contains_key(name),
        }
    }

    /// One tensor's values where they are, and the file that they are in.
    fn stored(&self, name: &str) -> Option<(Stored<'_>, &str)> {
        match &self.data {
            Data::Files(files) => files.view(name).map(|(view, file)| (Stored::Mapped(view), file)),
            Data::Random { seed, tensors } => tensors.get(name).map(|t| (Stored::Made(t, t.values(*seed)), RANDOM)),
        }
    }

    /// What messages call a file of it.
    fn path(&self, file: &str) -> PathBuf {
        match &self.data {
            Data::Files(files) => files.dir().join(file),
            Data::Random { .. } => PathBuf::from(RANDOM),
        }
    }

    /// Copies one tensor to a device and converts it.
    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, CheckpointError> {
        let (stored, path) = self.find(name, shape)?;
        stored.load(shape, dtype, device).map_err(|e| unusable(&path, name, &e))
    }

    /// Copies some rows of one matrix to a device and converts them.
    fn load_rows(
        &self,
        name: &str,
        shape: [usize; 2],
        rows: Range<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, CheckpointError> {
        let (stored, path) = self.find(name, &shape)?;
        stored.rows(rows, dtype, device).map_err(|e| unusable(&path, name, &e))
    }

    /// Copies one matrix to rows of another, in pieces: neither the source's type nor its size is ever held twice.
    fn load_into(&self, name: &str, shape: &[usize], target: &Tensor, row: usize) -> Result<(), CheckpointError> {
        let (stored, path) = self.find(name, shape)?;
        stored.fill(target, row).map_err(|e| unusable(&path, name, &e))
    }

    /// The values of a tensor of this shape, and the path of their file.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(Stored<'_>, PathBuf), CheckpointError> {
        let Some((stored, file)) = self.stored(name) else {
            let detail = match &self.data {
                Data::Files(f) => {
                    format!("{}: no tensor {name} {shape:?} in any of {} shards", f.dir().display(), f.len())
                }
                Data::Random { .. } => format!("{RANDOM}: no tensor {name} {shape:?}"),
            };
            return Err(CheckpointError::new(CheckpointErrorKind::MissingTensor, detail));
        };
        let path = self.path(file);
        if stored.shape() != shape {
            return Err(CheckpointError::new(
                CheckpointErrorKind::Misshapen,
                format!("{}: {name} is {:?}, expected {shape:?}", path.display(), stored.shape()),
            ));
        }
        Ok((stored, path))
    }
}
