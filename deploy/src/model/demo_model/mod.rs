//! Writes a demo model ([`model::demo_model`]), for trials and tests where the real checkpoint is not at hand.
//!
//! The same size and seed give the same bytes on every machine. The parts: [`shards`], the safetensors files and their
//! index, streamed to disk, and [`directory`], what may be overwritten.
//!
//! The reference implementation reads the result:
//! `python tests/oracle/vidi_oracle.py run --checkpoint DIR --frames f.npy --prompt-query "a red car" --out OUT`.

pub mod directory;
pub mod shards;

use std::path::{Path, PathBuf};

use model::demo_model::{Dims, config_json, tensors, tokenizer};

pub use shards::Written;

/// Reason why no demo model was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory holds files that this module did not write.
    #[error("{} is not empty and holds no demo model: choose a new directory, or empty this one", .0.display())]
    Occupied(PathBuf),
    /// The dimensions do not make a model.
    #[error("impossible dimensions: {0}")]
    Size(String),
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Operation: `write`, `create`, `remove`, `read`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

/// Figures of a demo model that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Number of tensors in all shards.
    pub tensors: usize,
    /// Number of values in them.
    pub parameters: u64,
    /// Bytes of tensor data; headers, tokenizer and configuration come on top.
    pub weight_bytes: u64,
    /// File names of the shards, in order.
    pub shards: Vec<String>,
}

/// Writes the checkpoint of `dims` and `seed` into `dir`, which is made if it does not exist.
///
/// Weights are made and written in pieces of a few MB, so memory stays below 128 MB at any size. `progress` is called
/// after every piece. An earlier demo model in `dir` is replaced; `config.json` comes last, so what an interrupted
/// call leaves behind is not taken for a checkpoint.
///
/// # Errors
/// [`Error::Occupied`] if `dir` holds anything but a demo model, [`Error::Size`] for impossible dimensions,
/// [`Error::Io`] for what the file system refuses, a full disk among it.
pub fn write(dir: &Path, dims: &Dims, seed: u64, progress: &mut dyn FnMut(Written)) -> Result<Summary, Error> {
    dims.check().map_err(Error::Size)?;
    let tensors = tensors::list(dims);
    let shards = shards::split(&tensors, dims.shards);
    directory::claim(dir, dims.family, &shards, seed)?;
    for (name, text) in [
        ("tokenizer.json", tokenizer::json(dims.family, dims.vocab).as_str()),
        ("tokenizer_config.json", tokenizer::config(dims.family)),
    ] {
        directory::write_text(dir, name, text)?;
    }
    shards::write(dir, &shards, seed, progress)?;
    directory::write_text(dir, shards::INDEX_FILE, &shards::index(&shards))?;
    directory::write_text(dir, "config.json", &config_json::json(dims))?;
    Ok(Summary {
        tensors: tensors.len(),
        parameters: tensors.iter().map(|t| t.numel()).sum(),
        weight_bytes: tensors.iter().map(|t| t.bytes()).sum(),
        shards: shards.into_iter().map(|s| s.file).collect(),
    })
}

#[cfg(test)]
mod tests;
