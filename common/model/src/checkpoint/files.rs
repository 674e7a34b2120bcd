//! A checkpoint on disk: any number of memory-mapped safetensors shards, and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;

use super::error::{CheckpointError, CheckpointErrorKind, malformed, read_json};

struct Shard {
    file: String,
    map: MmapedSafetensors,
}

/// The opened shards of a directory.
pub struct Files {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to shard.
    routing: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Files {
    /// Maps every shard that the index names, or `model.safetensors` where there is no index.
    ///
    /// # Errors
    /// The file that is missing or cut short.
    pub fn open(dir: PathBuf) -> Result<Self, CheckpointError> {
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
            let map = unsafe { MmapedSafetensors::new(&path) }
                .map_err(|e| malformed(&path)(format!("cut short or not safetensors: {e}")))?;
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
        Ok(Files { dir, shards, routing })
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many shards there are.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Every tensor that is there.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.routing.keys().map(String::as_str)
    }

    /// Whether a tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.routing.contains_key(name)
    }

    /// One tensor in its shard, and the shard's file name.
    pub fn view(&self, name: &str) -> Option<(TensorView<'_>, &str)> {
        let shard = &self.shards[*self.routing.get(name)?];
        Some((shard.map.get(name).ok()?, &shard.file))
    }
}
