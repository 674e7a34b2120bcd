//! A golden checkpoint that both sides can be loaded from, as it is or changed, and the distance between what they compute.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use model::checkpoint::{Checkpoint, Weights};

/// A file or directory of the golden directory.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A golden checkpoint, opened as the stages open it.
pub fn opened(name: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(golden("checkpoints").join(name)).unwrap())
}

/// What our models load from: f32 on the CPU.
pub fn weights(checkpoint: &Arc<Checkpoint>) -> Weights {
    Weights::new(checkpoint.clone(), DType::F32, Device::Cpu)
}

/// A checkpoint in memory: its config.json and all of its tensors in f32.
#[derive(Clone)]
pub struct InMemory {
    /// config.json.
    pub config: serde_json::Value,
    /// Tensors by their names in the checkpoint.
    pub tensors: HashMap<String, Tensor>,
}

impl InMemory {
    /// A golden checkpoint.
    pub fn read(name: &str) -> Self {
        let dir = golden("checkpoints").join(name);
        let config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let mut tensors = HashMap::new();
        for file in std::fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let shard = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
                tensors.extend(shard.into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).unwrap())));
            }
        }
        InMemory { config, tensors }
    }

    /// A number of config.json; `section` is empty for the top level.
    pub fn number(&self, section: &str, key: &str) -> usize {
        let section = if section.is_empty() { &self.config } else { &self.config[section] };
        section[key].as_u64().unwrap() as usize
    }

    /// Changes one tensor.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&Tensor) -> Result<Tensor>) {
        let tensor = self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor {name}"));
        *tensor = change(tensor).unwrap();
    }

    /// What candle's models load from.
    pub fn peer(&self) -> VarBuilder<'static> {
        VarBuilder::from_tensors(self.tensors.clone(), DType::F32, &Device::Cpu)
    }

    /// The same as files on disk, opened as the stages open them.
    pub fn opened(&self) -> Arc<Checkpoint> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        candle_core::safetensors::save(&self.tensors, dir.path().join("model.safetensors")).unwrap();
        // The mapping outlives the directory.
        Arc::new(Checkpoint::open(dir.path()).unwrap())
    }
}

/// `||a - b|| / ||b||`, summed in f64; not a number if any value is not.
pub fn relative_rms(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let size = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>();
    let off = |got: &Tensor, want: &Tensor| -> Result<f64> {
        let [got, want] = [got.to_dtype(DType::F64)?, want.to_dtype(DType::F64)?];
        Ok((size(&(got - &want)?)? / size(&want)?).sqrt())
    };
    off(got, want).unwrap()
}

/// Asserts that two tensors are no further from each other than `tolerance`.
#[track_caller]
pub fn agree(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let off = relative_rms(got, want);
    println!("{what:<75} {off:.1e}, at most {tolerance:.0e}");
    assert!(off <= tolerance, "{what}: off by {off:.2e}, tolerance {tolerance:.0e}");
}

/// Asserts that two tensors are as far from each other as their difference by design makes them: between `least` and
/// `most`.
#[track_caller]
pub fn differ(what: &str, got: &Tensor, want: &Tensor, least: f64, most: f64) {
    let off = relative_rms(got, want);
    println!("{what:<75} {off:.1e}, in {least:.0e}..{most:.0e}");
    assert!((least..=most).contains(&off), "{what}: off by {off:.2e}, expected {least:.0e} to {most:.0e}");
}
