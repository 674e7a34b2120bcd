//! Source of a model's tensors: a checkpoint, or a survey that only notes what is asked for.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};

use super::Checkpoint;
use super::error::{CheckpointError, CheckpointErrorKind, unusable};
use super::stored::uninitialized;

/// Tensor that a model's loading code asked for.
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

/// Source of a model's tensors: a checkpoint (or a survey), a type, a device, and a prefix of names.
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

    /// In a survey, notes bytes that will be kept besides the checkpoint's tensors, made of them.
    pub fn survey_made(&self, name: &str, bytes: u64) {
        if let Source::Survey(needs) = &self.source {
            let need =
                Need { name: format!("{}{name}", self.prefix), shape: vec![bytes as usize], dtype: DType::U8, bytes };
            needs.lock().expect("no loader panics holding it. This is a bug.").push(need);
        }
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
            Source::Checkpoint(c) => c.contains(&format!("{}{name}", self.prefix)),
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

    /// Some rows of the matrix `name` below the prefix, which must have exactly `shape`.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Panics
    /// In a survey, and for rows that there are not.
    pub fn rows(&self, name: &str, shape: [usize; 2], rows: Range<usize>) -> Result<Tensor, CheckpointError> {
        assert!(rows.start <= rows.end && rows.end <= shape[0], "rows {rows:?} of {name} {shape:?}. This is a bug.");
        match &self.source {
            Source::Checkpoint(c) => {
                c.load_rows(&format!("{}{name}", self.prefix), shape, rows, self.dtype, &self.device)
            }
            Source::Survey(_) => panic!("a survey asks for whole matrices. This is a bug."),
        }
    }

    /// Matrices `[rows, columns]` below the prefix as one, on top of each other in the order given: projections of the
    /// same input, computed as one matmul.
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
                    .map_err(|e| unusable(&c.path(""), &self.prefix, &e))?;
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
