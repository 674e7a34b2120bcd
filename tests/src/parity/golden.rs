//! Golden directory: the output of the oracle for one checkpoint and one input (tests/oracle/README.md and
//! tests/golden/README.md).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Fields of `golden.json` that a comparison needs.
#[derive(Clone, Debug, Deserialize)]
pub struct Facts {
    /// Type that the oracle computed in.
    #[serde(default = "single")]
    pub dtype: String,
    /// `ideal` or `official` sliding window.
    #[serde(default)]
    pub sliding_mode: Option<String>,
    /// Length of the answer at most.
    pub max_new_tokens: u32,
    /// The token that ends an answer.
    #[serde(default = "end_of_turn")]
    pub eos_token_id: u32,
    /// Frames; none without a picture.
    #[serde(default)]
    pub frames: Option<u64>,
    /// Token rows and columns of a frame.
    #[serde(default)]
    pub grid: Option<[u32; 2]>,
    /// Image tokens; 0 without a picture.
    #[serde(default)]
    pub image_tokens: Option<u64>,
    /// 10 ms frames; none without sound.
    #[serde(default)]
    pub mel_frames: Option<u64>,
    /// Windows of sound.
    #[serde(default)]
    pub audio_windows: Option<u64>,
    /// Audio tokens.
    #[serde(default)]
    pub audio_tokens: Option<u64>,
    /// The retrieval question's query; none where the whole user turn was given.
    #[serde(default)]
    pub query: Option<String>,
    /// The prompt with the template around it and `<image>` in it.
    #[serde(default)]
    pub prompt: Option<String>,
    /// The prompt as the language model read it.
    pub text_token_ids: Vec<u32>,
    /// The answer.
    pub generated_token_ids: Vec<u32>,
    /// The answer's text, special tokens skipped, stripped.
    #[serde(default)]
    pub text: Option<String>,
    /// Whether the answer ended with the end token.
    #[serde(default)]
    pub stopped_by_eos: Option<bool>,
    /// Seconds that fractions in the answer are fractions of.
    #[serde(default)]
    pub duration: Option<f64>,
    /// Time ranges in the answer.
    #[serde(default)]
    pub time_ranges: Option<TimeRanges>,
    #[serde(default)]
    tensors: BTreeMap<String, Thinning>,
    /// Relative rms errors of the oracle itself, by arithmetic and boundary.
    #[serde(default)]
    noise: BTreeMap<Arithmetic, BTreeMap<String, f64>>,
}

/// Arithmetic whose rounding errors a golden directory may tell.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// f32, held against f64.
    F32,
    /// f16, held against what `golden.safetensors` holds.
    F16,
    /// bf16, likewise.
    Bf16,
    /// bf16 with products of 8 bits (E4M3), likewise.
    Fp8,
}

/// The time ranges of an answer as fractions, in seconds, and written out.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct TimeRanges {
    /// As in the text.
    pub fractions: Vec<(f64, f64)>,
    /// Times the duration.
    pub seconds: Vec<(f64, f64)>,
    /// `HH:MM:SS-HH:MM:SS, ...`
    pub formatted: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Thinning {
    shape: Vec<usize>,
    #[serde(default = "whole")]
    stride: usize,
    #[serde(default)]
    rms: Option<f64>,
}

fn single() -> String {
    "float32".to_owned()
}
fn end_of_turn() -> u32 {
    107
}
fn whole() -> usize {
    1
}

/// One tensor: every `stride`-th value of it, row-major.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Dimensions of the whole tensor.
    pub shape: Vec<usize>,
    /// Steps between stored values.
    pub stride: usize,
    /// Root mean square of the whole tensor, where it is known.
    pub rms: Option<f64>,
    /// The stored values.
    pub values: Vec<f32>,
}

impl Stored {
    /// Values of the whole tensor.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A golden directory, read.
#[derive(Clone, Debug)]
pub struct Golden {
    /// `golden.json`.
    pub facts: Facts,
    tensors: BTreeMap<String, Stored>,
}

impl Golden {
    /// Reads `golden.json` and `golden.safetensors`.
    ///
    /// # Errors
    /// The file that is missing, malformed or contradicts the other one; values that were not computed in f32 or wider.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let json = dir.join("golden.json");
        let text = std::fs::read(&json).with_context(|| json.display().to_string())?;
        let facts: Facts = serde_json::from_slice(&text).with_context(|| json.display().to_string())?;
        if !["float32", "float64"].contains(&facts.dtype.as_str()) {
            bail!("{}: computed in {}, the stages compute in f32 here", json.display(), facts.dtype);
        }
        let file = dir.join("golden.safetensors");
        let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
        let tensors = SafeTensors::deserialize(&bytes).with_context(|| file.display().to_string())?;
        let mut stored = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let values = floats(view.dtype(), view.data());
            let tensor = values.and_then(|values| thinned(facts.tensors.get(name), view.shape(), values));
            stored.insert(name.to_owned(), tensor.with_context(|| format!("{}: {name}", file.display()))?);
        }
        ensure!(!stored.is_empty(), "{}: holds no tensor", file.display());
        if let Some(missing) = facts.tensors.keys().find(|name| !stored.contains_key(*name)) {
            bail!("{}: has no {missing}, which {} lists", file.display(), json.display());
        }
        Ok(Golden { facts, tensors: stored })
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// Relative rms error of the oracle itself at a boundary, where the directory says.
    pub fn noise(&self, of: Arithmetic, boundary: &str) -> Option<f64> {
        self.facts.noise.get(&of)?.get(boundary).copied()
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

fn thinned(note: Option<&Thinning>, found: &[usize], values: Vec<f32>) -> anyhow::Result<Stored> {
    let Some(note) = note else {
        return Ok(Stored { shape: found.to_vec(), stride: 1, rms: None, values });
    };
    let Thinning { shape, stride, rms } = note.clone();
    ensure!(stride > 0, "stride 0");
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).context("the shape overflows")?;
    let want = if stride == 1 { shape.clone() } else { vec![count.div_ceil(stride)] };
    ensure!(found == want, "is {found:?}; {shape:?} with stride {stride} is stored as {want:?}");
    Ok(Stored { shape, stride, rms, values })
}

fn floats(dtype: Dtype, data: &[u8]) -> anyhow::Result<Vec<f32>> {
    Ok(match dtype {
        Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        other => bail!("is {other:?}, not f32"),
    })
}
