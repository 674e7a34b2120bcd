//! Sources of the model's matrices: the checkpoint as it is, or blocks, from a file of `vidi quantize` or quantized
//! while they load.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device};
use compute::failure::sentence;
use compute::kernels::E4m3Rows;
use config::{LlmConfig, MediaProducts, WeightFormat};
use model::checkpoint::{CheckpointError, CheckpointErrorKind, Weights};
use model::config_json::ModelConfig;
use serde::{Deserialize, Serialize};

use crate::language::quantized::{BlockFormat, Blocks, Strips, WeightMatrix};

/// Version of the file's layout.
pub const VERSION: u32 = 1;

/// Description of a matrix that the model multiplies with: tensors of the checkpoint on top of each other, which share
/// their input.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Name in files, e.g. `model.layers.0.self_attn.qkv_proj`.
    pub name: String,
    /// Tensors of the checkpoint, and the rows of each.
    pub parts: Vec<(String, usize)>,
    /// Number of columns.
    pub columns: usize,
    /// Format in which the matrix is kept; none for the checkpoint's.
    pub format: Option<BlockFormat>,
}

impl Matrix {
    /// Number of rows of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.1).sum()
    }

    /// Bytes of a row in blocks.
    fn row_bytes(&self, format: BlockFormat) -> Result<usize, CheckpointError> {
        format.row_bytes(self.columns).map_err(|e| {
            CheckpointError::new(
                CheckpointErrorKind::Misshapen,
                format!("{}: {}; keep it dense", self.name, sentence(&e)),
            )
        })
    }
}

/// Formats of the kinds of matrices. With 4 bits, two kinds keep 6: the projections to queries, keys and values, whose
/// errors are read again by every later token, and the embedding, which is the head and chooses every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Formats {
    qkv: Option<BlockFormat>,
    others: Option<BlockFormat>,
    embedding: Option<BlockFormat>,
}

impl Formats {
    fn of(weights: WeightFormat) -> Self {
        let all = |format| Formats { qkv: format, others: format, embedding: format };
        match weights {
            WeightFormat::Dense | WeightFormat::Bf16 | WeightFormat::F16 => all(None),
            WeightFormat::Q8 => all(Some(BlockFormat::Q8_0)),
            WeightFormat::Q4 => Formats {
                qkv: Some(BlockFormat::Q6K),
                others: Some(BlockFormat::Q4K),
                embedding: Some(BlockFormat::Q6K),
            },
        }
    }
}

/// Matrices of one decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerMatrices {
    /// Projections to queries, keys and values.
    pub qkv_proj: Matrix,
    /// Output projection of attention.
    pub o_proj: Matrix,
    /// Gates and ups of the feed-forward part.
    pub gate_up_proj: Matrix,
    /// Output projection of the feed-forward part.
    pub down_proj: Matrix,
}

impl LayerMatrices {
    /// Matrices of layer `i`.
    pub fn new(c: &ModelConfig, i: usize, weights: WeightFormat) -> Self {
        let formats = Formats::of(weights);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let matrix = |block: &str, name: &str, parts: &[(&str, usize)], columns, format| Matrix {
            name: format!("model.layers.{i}.{block}.{name}"),
            parts: parts.iter().map(|(p, rows)| (format!("model.layers.{i}.{block}.{p}.weight"), *rows)).collect(),
            columns,
            format,
        };
        let qkv = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        let gate_up = [("gate_proj", inner), ("up_proj", inner)];
        LayerMatrices {
            qkv_proj: matrix("self_attn", "qkv_proj", &qkv, hidden, formats.qkv),
            o_proj: matrix("self_attn", "o_proj", &[("o_proj", hidden)], q, formats.others),
            gate_up_proj: matrix("mlp", "gate_up_proj", &gate_up, hidden, formats.others),
            down_proj: matrix("mlp", "down_proj", &[("down_proj", hidden)], inner, formats.others),
        }
    }
}

/// Embedding, and the output head where it is another matrix.
pub fn embedding(c: &ModelConfig, weights: WeightFormat) -> [Matrix; 2] {
    let format = Formats::of(weights).embedding;
    ["model.embed_tokens", "lm_head"].map(|name| Matrix {
        name: name.to_owned(),
        parts: vec![(format!("{name}.weight"), c.vocab_size)],
        columns: c.hidden_size,
        format,
    })
}

/// All matrices of a model, in the order in which they are used; the head only if `untied`.
pub fn matrices(c: &ModelConfig, weights: WeightFormat, untied: bool) -> Vec<Matrix> {
    let [embedding, head] = embedding(c, weights);
    let layers = (0..c.num_hidden_layers).flat_map(|i| {
        let LayerMatrices { qkv_proj, o_proj, gate_up_proj, down_proj } = LayerMatrices::new(c, i, weights);
        [qkv_proj, o_proj, gate_up_proj, down_proj]
    });
    std::iter::once(embedding).chain(layers).chain(untied.then_some(head)).collect()
}

/// Description of a file of `vidi quantize`, in its header's metadata under `vidi`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Version of the layout: [`VERSION`].
    pub version: u32,
    /// Format of the weights: `q8` or `q4`.
    pub weights: WeightFormat,
    /// Format, rows and columns of each matrix.
    pub matrices: BTreeMap<String, (String, usize, usize)>,
}

/// File of `vidi quantize`, mapped into memory.
pub struct QuantizedFile {
    path: PathBuf,
    map: MmapedSafetensors,
}

impl QuantizedFile {
    /// Opens a file whose matrices have the format `weights`.
    ///
    /// # Errors
    /// The file that is missing, cut short, of another version or of another format.
    pub fn open(path: &Path, weights: WeightFormat) -> Result<Self, CheckpointError> {
        let wrong = |kind, what: String| CheckpointError::new(kind, format!("{}: {what}", path.display()));
        if !path.is_file() {
            let what = "no such file; make it with `vidi quantize MODEL --to q8|q4 --out FILE`";
            return Err(wrong(CheckpointErrorKind::Missing, what.to_owned()));
        }
        let info = read_info(path).map_err(|e| wrong(CheckpointErrorKind::Malformed, e))?;
        if info.version != VERSION {
            let what = format!("version {}, this program reads version {VERSION}", info.version);
            return Err(wrong(CheckpointErrorKind::Malformed, what));
        }
        if info.weights != weights {
            let what = format!("holds {:?} weights, llm.weights asks for {weights:?}", info.weights);
            return Err(wrong(CheckpointErrorKind::Misshapen, what));
        }
        // SAFETY: the mapping is only read; see Checkpoint::open.
        let map = unsafe { MmapedSafetensors::new(path) }
            .map_err(|e| wrong(CheckpointErrorKind::Malformed, format!("cut short or not safetensors: {e}")))?;
        Ok(QuantizedFile { path: path.to_owned(), map })
    }

    fn load(&self, matrix: &Matrix, format: BlockFormat, device: &Device) -> Result<WeightMatrix, CheckpointError> {
        let wrong = |kind, what: String| CheckpointError::new(kind, format!("{}: {what}", self.path.display()));
        let missing = |_| wrong(CheckpointErrorKind::MissingTensor, format!("no {}", matrix.name));
        let view = self.map.get(&matrix.name).map_err(missing)?;
        let expected = matrix.rows() * matrix.row_bytes(format)?;
        if view.data().len() != expected {
            let what = format!("{} has {} bytes, expected {expected}", matrix.name, view.data().len());
            return Err(wrong(CheckpointErrorKind::Misshapen, what));
        }
        let blocks = Blocks::new(format, matrix.rows(), matrix.columns, view.data(), device);
        Ok(WeightMatrix::Blocks(blocks.map_err(CheckpointError::from_device)?))
    }
}

fn read_info(path: &Path) -> Result<FileInfo, String> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| format!("cut short: {e}"))?;
    let length = u64::from_le_bytes(length);
    if length > 64 << 20 {
        return Err("not a safetensors file".to_owned());
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|e| e.to_string())?;
    let header: serde_json::Value = serde_json::from_slice(&header).map_err(|e| format!("its header: {e}"))?;
    let text = header["__metadata__"]["vidi"].as_str().ok_or("not made by `vidi quantize`")?;
    serde_json::from_str(text).map_err(|e| format!("its description: {e}"))
}

/// Loader of matrices in the formats that a configuration asks for.
pub struct Loader<'a> {
    weights: &'a Weights,
    file: Option<QuantizedFile>,
    /// Whether matrices in E4M3 are kept.
    e4m3: bool,
}

impl<'a> Loader<'a> {
    /// Loader from a checkpoint's weights, and from the configured file for those in blocks; image and audio tokens are multiplied
    /// as `products` says.
    ///
    /// # Errors
    /// Errors of [`QuantizedFile::open`]; a survey opens nothing.
    pub fn new(weights: &'a Weights, llm: &LlmConfig, products: MediaProducts) -> Result<Self, CheckpointError> {
        let in_blocks = matches!(llm.weights, WeightFormat::Q8 | WeightFormat::Q4);
        let file = match &llm.quantized {
            Some(path) if in_blocks && !weights.is_survey() => Some(QuantizedFile::open(path, llm.weights)?),
            _ => None,
        };
        Ok(Loader { weights, file, e4m3: llm.keep_fp8 && products == MediaProducts::Fp8 })
    }

    /// Matrix `[rows, columns]` in E4M3 that `make` makes of those that are loaded, if such matrices are kept; noted in a survey.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn kept(
        &self,
        name: &str,
        [rows, columns]: [usize; 2],
        make: impl FnOnce() -> candle_core::Result<E4m3Rows>,
    ) -> Result<Option<E4m3Rows>, CheckpointError> {
        if !self.e4m3 {
            return Ok(None);
        }
        if self.weights.is_survey() {
            self.weights.survey_made(name, E4m3Rows::bytes(rows, columns) as u64);
            return Ok(None);
        }
        make().map(Some).map_err(CheckpointError::from_device)
    }

    /// Type in which the model computes.
    pub fn dtype(&self) -> DType {
        self.weights.dtype()
    }

    /// Matrix on the device.
    ///
    /// # Errors
    /// The tensor or file that is missing or misshapen; no memory.
    pub fn load(&self, matrix: &Matrix) -> Result<WeightMatrix, CheckpointError> {
        let parts: Vec<(&str, usize)> = matrix.parts.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
        let Some(format) = matrix.format else {
            return Ok(WeightMatrix::Dense(self.weights.stack(&parts, matrix.columns)?));
        };
        let row_bytes = matrix.row_bytes(format)?;
        if self.weights.is_survey() {
            return Ok(WeightMatrix::Dense(self.weights.survey_blocks(&parts, matrix.columns, row_bytes)?));
        }
        if let Some(file) = &self.file {
            return file.load(matrix, format, self.weights.device());
        }
        let mut strips = Strips::new(format, matrix.rows(), matrix.columns, self.weights.device());
        for rows in Strips::cut(matrix.rows(), matrix.columns) {
            strips.push(&quantized(self.weights, matrix, format, rows)?).map_err(CheckpointError::from_device)?;
        }
        Ok(WeightMatrix::Blocks(strips.finish().map_err(CheckpointError::from_device)?))
    }
}

/// Blocks of some rows of a matrix, made from the checkpoint's tensors on the CPU. Rows are independent: any cut gives
/// the same bytes.
///
/// # Errors
/// The tensor that is missing or misshapen.
pub fn quantized(
    weights: &Weights,
    matrix: &Matrix,
    format: BlockFormat,
    rows: Range<usize>,
) -> Result<Vec<u8>, CheckpointError> {
    let weights = weights.on(Device::Cpu).in_dtype(DType::F32);
    let mut bytes = Vec::with_capacity(rows.len() * matrix.row_bytes(format)?);
    let mut first = 0;
    for &(ref name, of_part) in &matrix.parts {
        let here = |row: usize| row.clamp(first, first + of_part) - first;
        let wanted = here(rows.start)..here(rows.end);
        first += of_part;
        if wanted.is_empty() {
            continue;
        }
        let part = weights.rows(name, [of_part, matrix.columns], wanted)?;
        let (storage, _) = part.storage_and_layout();
        let made = match &*storage {
            candle_core::Storage::Cpu(storage) => {
                storage.as_slice::<f32>().and_then(|values| format.quantize(values, matrix.columns))
            }
            _ => unreachable!("it was just loaded to the CPU. This is a bug."),
        };
        bytes.extend(made.map_err(CheckpointError::from_device)?);
    }
    Ok(bytes)
}
