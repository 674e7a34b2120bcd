//! The language model's matrices in blocks, in one file that a stage loads in seconds.
//!
//! The file is safetensors: one U8 tensor per matrix as [`stage_llm::weights`] stacks them, and a description under
//! `vidi` in the header's metadata. Norms, towers and adapters stay in the checkpoint. The same checkpoint and format
//! give the same bytes, whatever the number of threads.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use compute::random::Normal;
use config::WeightFormat;
use model::checkpoint::{Checkpoint, Weights};
use serde_json::json;
use stage_llm::language::quantized::{BlockFormat, Blocks, Strips, WeightMatrix};
use stage_llm::language::untied;
use stage_llm::language::weights::{FileInfo, Matrix, VERSION, matrices, quantized};

use config::replace::Unfinished;

/// Rows of activations that a matrix's error is measured with.
const PROBES: usize = 16;

/// Size and error of a quantized matrix.
#[derive(Clone, Debug)]
pub struct MatrixReport {
    /// Name of the matrix.
    pub name: String,
    /// Block format that it is stored in.
    pub format: BlockFormat,
    /// Bytes in the file.
    pub bytes: u64,
    /// Relative rms error of its matmul with normally distributed activations.
    pub error: f64,
}

/// Writes `file` from the checkpoint in `dir`; `each` hears of every matrix, and how many there are. No more than a
/// strip of a matrix is held at a time. The file appears under its name when it is whole, and in the place of a regular file or
/// of nothing; else nothing is left of it.
///
/// # Errors
/// A checkpoint that cannot be used, `weights` that is no block format, what the file system refuses, and once `stopped` says
/// so, which is asked before each strip.
pub fn quantize(
    dir: &Path,
    weights: WeightFormat,
    file: &Path,
    stopped: &dyn Fn() -> bool,
    each: &mut dyn FnMut(&MatrixReport, usize),
) -> anyhow::Result<()> {
    let at = || format!("{}", file.display());
    let mut unfinished = Unfinished::begin(file).with_context(at)?;
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let source = Weights::new(checkpoint.clone(), DType::F32, Device::Cpu);
    let list = matrices(checkpoint.config(), weights, untied(checkpoint.config(), &source));
    let formats = list.iter().map(|m| m.format).collect::<Option<Vec<_>>>();
    let formats = formats.context("only q8 and q4 are block formats")?;
    let out = unfinished.file();
    out.write_all(&header(weights, &list, &formats)?).with_context(at)?;
    for (matrix, &format) in list.iter().zip(&formats) {
        for rows in Strips::cut(matrix.rows(), matrix.columns) {
            if stopped() {
                let text = format!("interrupted: {} is not written", file.display());
                return Err(Error::new(ErrorKind::Interrupted, text).into());
            }
            out.write_all(&quantized(&source, matrix, format, rows)?).with_context(at)?;
        }
        let bytes = matrix.rows() * format.row_bytes(matrix.columns)?;
        let error = matmul_error(&source, matrix, format)?;
        let report = MatrixReport { name: matrix.name.clone(), format, bytes: bytes as u64, error };
        each(&report, list.len());
    }
    unfinished.finish().with_context(at)
}

/// Header length and header, padded with spaces so that the bytes start at a multiple of 8.
fn header(weights: WeightFormat, list: &[Matrix], formats: &[BlockFormat]) -> anyhow::Result<Vec<u8>> {
    let mut entries = serde_json::Map::new();
    let mut described = BTreeMap::new();
    let mut offset = 0;
    for (matrix, format) in list.iter().zip(formats) {
        let end = offset + matrix.rows() * format.row_bytes(matrix.columns)?;
        let entry = json!({"dtype": "U8", "shape": [end - offset], "data_offsets": [offset, end]});
        entries.insert(matrix.name.clone(), entry);
        described.insert(matrix.name.clone(), (format!("{format:?}"), matrix.rows(), matrix.columns));
        offset = end;
    }
    let info = FileInfo { version: VERSION, weights, matrices: described };
    entries.insert("__metadata__".to_owned(), json!({"vidi": serde_json::to_string(&info)?}));
    let mut text = serde_json::to_string(&entries)?;
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    Ok([&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat())
}

/// Relative rms error of a matrix's matmul with normally distributed activations; of the embedding, which has far
/// more rows than any other, the first 4,096 stand for all.
fn matmul_error(source: &Weights, matrix: &Matrix, format: BlockFormat) -> anyhow::Result<f64> {
    const ROWS: usize = 4096;
    let (name, rows) = &matrix.parts[0];
    let some = (*rows).min(ROWS);
    let dense = source.rows(name, [*rows, matrix.columns], 0..some)?;
    let bytes = quantized(source, matrix, format, 0..some)?;
    let blocks = Blocks::new(format, some, matrix.columns, &bytes, &Device::Cpu)?;
    let normal = Normal::new(1, &matrix.name, 0.0, 1.0);
    let probes = (0..(PROBES * matrix.columns) as u64).map(|i| normal.at(i)).collect();
    let x = Tensor::from_vec(probes, (PROBES, matrix.columns), &Device::Cpu)?;
    let exact = WeightMatrix::Dense(dense).forward(&x)?;
    let off = (WeightMatrix::Blocks(blocks).forward(&x)? - &exact)?;
    let square = |t: &Tensor| -> anyhow::Result<f64> { Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?)) };
    Ok((square(&off)? / square(&exact)?).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{LlmConfig, MediaProducts, Size};
    use model::checkpoint::{CheckpointError, CheckpointErrorKind};
    use stage_llm::LanguageModel;
    use stage_llm::language::cache::VideoCache;

    fn model(dir: &Path, size: Size) {
        let dims = model::demo_model::Dims::of(size);
        crate::model::demo_model::write(dir, &dims, 3, &mut |_| ()).unwrap();
    }

    fn logits(dir: &Path, weights: WeightFormat, quantized: Option<&Path>) -> Result<Vec<f32>, CheckpointError> {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let llm = LlmConfig { weights, quantized: quantized.map(Path::to_owned), ..LlmConfig::default() };
        let w = Weights::new(checkpoint.clone(), DType::F32, Device::Cpu);
        let model = LanguageModel::new(checkpoint.config(), &w, &llm, MediaProducts::Dense)?;
        let mut text = model.text_cache(4).unwrap();
        let prompt = model.prefill(&[2, 106, 17], &mut text, &VideoCache::default(), &mut ());
        Ok(prompt.unwrap().to_vec1().unwrap())
    }

    #[test]
    fn a_file_answers_as_weights_that_are_quantized_while_they_load() {
        // The embedding, and four matrices of each of four layers; of a Vidi 7B the head besides.
        for (size, matrices) in [(Size::Realdims, 1 + 4 * 4), (Size::SevenBRealdims, 1 + 4 * 4 + 1)] {
            answers_as_quantized_while_loading(size, matrices);
        }
    }

    fn answers_as_quantized_while_loading(size: Size, matrices: usize) {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, file) = (dir.path().join("model"), dir.path().join("q"));
        model(&checkpoint, size);
        let exact = logits(&checkpoint, WeightFormat::Dense, None).unwrap();
        for weights in [WeightFormat::Q8, WeightFormat::Q4] {
            let mut reports = Vec::new();
            quantize(&checkpoint, weights, &file, &|| false, &mut |r, _| reports.push(r.clone())).unwrap();
            let bytes = std::fs::read(&file).unwrap();
            quantize(&checkpoint, weights, &file, &|| false, &mut |_, _| ()).unwrap();
            assert!(bytes == std::fs::read(&file).unwrap(), "{weights:?}: other bytes the second time");
            assert_eq!(reports.len(), matrices);
            let head = reports.iter().find(|r| r.name == "lm_head").map(|r| r.format);
            let like_the_embedding = (size == Size::SevenBRealdims).then_some(reports[0].format);
            assert_eq!((reports[0].name.as_str(), head), ("model.embed_tokens", like_the_embedding));
            assert!(reports.iter().all(|r| r.error > 1e-4 && r.error < 0.1), "{reports:?}");
            let from_file = logits(&checkpoint, weights, Some(&file)).unwrap();
            assert_eq!(from_file, logits(&checkpoint, weights, None).unwrap());
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
            let off = norm(&mut from_file.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
            // How far is the matrices' business, asserted above; here, that they were quantized at all.
            assert!(off > 1e-4, "{weights:?}: {off}");
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_and_two_formats_at_once_are_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, out) = (dir.path().join("model"), dir.path().join("out"));
        model(&checkpoint, Size::Realdims);
        std::fs::create_dir(&out).unwrap();
        let [q8, q4] = ["m.q8", "m.q4"].map(|name| out.join(name));
        let names = || std::fs::read_dir(&out).unwrap().count();
        // The second one begins while the first is half done, and ends before it.
        let mut inner = false;
        quantize(&checkpoint, WeightFormat::Q8, &q8, &|| false, &mut |_, _| {
            if !std::mem::replace(&mut inner, true) {
                quantize(&checkpoint, WeightFormat::Q4, &q4, &|| false, &mut |_, _| ()).unwrap();
            }
        })
        .unwrap();
        assert!(names() == 2 && logits(&checkpoint, WeightFormat::Q8, Some(&q8)).is_ok());
        assert!(logits(&checkpoint, WeightFormat::Q4, Some(&q4)).is_ok());
        let whole = std::fs::read(&q8).unwrap();
        let strips = std::cell::Cell::new(0);
        let stopped = || strips.replace(strips.get() + 1) >= 3;
        let error = quantize(&checkpoint, WeightFormat::Q4, &q8, &stopped, &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
        assert!(names() == 2 && std::fs::read(&q8).unwrap() == whole);
        // Told before anything is computed, whoever asks.
        let link = out.join("link");
        std::os::unix::fs::symlink(&q8, &link).unwrap();
        for place in [link.as_path(), Path::new("/dev/null"), out.as_path()] {
            let error = quantize(Path::new("/nowhere"), WeightFormat::Q8, place, &|| false, &mut |_, _| ());
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains("only a regular file is replaced"), "{error}");
        }
        assert!(names() == 3 && std::fs::read(&q8).unwrap() == whole);
    }

    #[test]
    fn a_file_that_is_missing_cut_or_of_another_format_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, file) = (dir.path().join("model"), dir.path().join("q8"));
        model(&checkpoint, Size::Realdims);
        let kind = |weights| logits(&checkpoint, weights, Some(&file)).unwrap_err();
        assert_eq!(kind(WeightFormat::Q8).kind(), CheckpointErrorKind::Missing);
        quantize(&checkpoint, WeightFormat::Q8, &file, &|| false, &mut |_, _| ()).unwrap();
        let other = kind(WeightFormat::Q4);
        assert!(other.kind() == CheckpointErrorKind::Misshapen && other.to_string().contains("Q8"), "{other}");
        let bytes = std::fs::read(&file).unwrap();
        for cut in [4, 100, bytes.len() / 2] {
            std::fs::write(&file, &bytes[..cut]).unwrap();
            let error = kind(WeightFormat::Q8);
            assert!(error.kind() == CheckpointErrorKind::Malformed && error.to_string().contains("q8"), "{error}");
        }
        std::fs::write(&file, b"12345678not json").unwrap();
        assert_eq!(kind(WeightFormat::Q8).kind(), CheckpointErrorKind::Malformed);
        assert!(quantize(&checkpoint, WeightFormat::Dense, &file, &|| false, &mut |_, _| ()).is_err());
    }
}
