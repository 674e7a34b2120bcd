//! The safetensors files and their index, written piece by piece.
//!
//! A file is 8 bytes of header length, a JSON header that gives each tensor its place, then the values, little-endian
//! (<https://github.com/huggingface/safetensors>). Written by hand rather than with the `safetensors` crate, which needs a
//! tensor whole in memory: the embedding of the real model has 1.8 GB.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use model::demo_model::tensors::Tensor;
use serde_json::json;

use super::Error;

/// Name of the file that says which shard holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Values made and written at a time: 16 MB of float32. Two such pieces exist at once.
const PIECE: u64 = 4 << 20;

/// One safetensors file.
#[derive(Clone, Debug)]
pub struct Shard {
    /// `model-0000X-of-0000Y.safetensors`.
    pub file: String,
    /// In the order in which they stand in the file: wider types first, which keeps every tensor aligned, then by name.
    pub tensors: Vec<Tensor>,
}

/// Bytes of a demo model on disk, and of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of tensor data on disk.
    pub written_bytes: u64,
    /// Bytes of tensor data in all.
    pub total_bytes: u64,
}

/// Cuts the list into at most `count` runs of about equal size; runs that would be empty are left out.
pub fn split(tensors: &[Tensor], count: usize) -> Vec<Shard> {
    let total: u64 = tensors.iter().map(Tensor::bytes).sum();
    let mut groups = vec![Vec::new(); count];
    let mut before = 0;
    for tensor in tensors {
        groups[(before * count as u64 / total) as usize].push(tensor.clone());
        before += tensor.bytes();
    }
    groups.retain(|group| !group.is_empty());
    let count = groups.len();
    let shard = |(i, mut tensors): (usize, Vec<Tensor>)| {
        tensors.sort_by(|a, b| (b.dtype.bytes(), &a.name).cmp(&(a.dtype.bytes(), &b.name)));
        Shard { file: format!("model-{:05}-of-{count:05}.safetensors", i + 1), tensors }
    };
    groups.into_iter().enumerate().map(shard).collect()
}

/// The text of [`INDEX_FILE`].
pub fn index(shards: &[Shard]) -> String {
    let mut places: Vec<(&str, &str)> =
        shards.iter().flat_map(|s| s.tensors.iter().map(|t| (t.name.as_str(), s.file.as_str()))).collect();
    places.sort();
    let total: u64 = shards.iter().flat_map(|s| &s.tensors).map(Tensor::bytes).sum();
    let map: serde_json::Map<_, _> = places.into_iter().map(|(name, file)| (name.to_owned(), json!(file))).collect();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    format!("{index:#}\n")
}

impl Shard {
    /// Header length and header, padded with spaces so that the values start at a multiple of 8.
    fn header(&self) -> Vec<u8> {
        let mut entries = vec![("__metadata__".to_owned(), json!({"format": "pt"}))];
        let mut offset = 0;
        for tensor in &self.tensors {
            let end = offset + tensor.bytes();
            let entry = json!({"data_offsets": [offset, end], "dtype": tensor.dtype.name(), "shape": tensor.shape});
            entries.push((tensor.name.clone(), entry));
            offset = end;
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let mut text = json!(entries.into_iter().collect::<serde_json::Map<_, _>>()).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }
}

/// Writes the shards into `dir`; while one piece goes to disk, the next one is made on all threads of the rayon pool.
pub fn write(dir: &Path, shards: &[Shard], seed: u64, progress: &mut dyn FnMut(Written)) -> Result<(), Error> {
    let total_bytes = shards.iter().flat_map(|s| &s.tensors).map(Tensor::bytes).sum();
    let mut written_bytes = 0;
    for shard in shards {
        let path = dir.join(&shard.file);
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut ready = shard.header();
        let mut next = Vec::new();
        for (tensor, first, count) in pieces(&shard.tensors) {
            next.resize((count * tensor.dtype.bytes()) as usize, 0);
            let make = || tensor.values(seed).write(first, tensor.dtype, &mut next);
            let (saved, ()) = rayon::join(|| file.write_all(&ready), make);
            saved.map_err(Error::io("write", &path))?;
            std::mem::swap(&mut ready, &mut next);
            progress(Written { written_bytes, total_bytes });
            written_bytes += ready.len() as u64;
        }
        file.write_all(&ready).map_err(Error::io("write", &path))?;
        progress(Written { written_bytes, total_bytes });
    }
    Ok(())
}

/// Each tensor in turn, cut into runs of at most [`PIECE`] values: the tensor, the first value, the number of values.
fn pieces(tensors: &[Tensor]) -> impl Iterator<Item = (&Tensor, u64, u64)> {
    tensors.iter().flat_map(|tensor| {
        let numel = tensor.numel();
        (0..numel).step_by(PIECE as usize).map(move |first| (tensor, first, PIECE.min(numel - first)))
    })
}
