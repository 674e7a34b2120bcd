//! Format of a parked video: a safetensors file with the buffers of each layer as the cache has them, and in the header's metadata
//! what they are, with a checksum of each layer.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use candle_core::DType;
use protocol::event::ModelName;
use protocol::message::Modality;
use protocol::plan::MediaPlan;
use protocol::stage::KeptVideo;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::job::video::VideoKey;
use crate::language::cache::Geometry;

/// Version of the format, and of the numbers in it: raised when this program computes other keys and values from the same video.
const VERSION: u32 = 1;
/// Bytes of a header at most.
const MOST_HEADER_BYTES: u64 = 16 << 20;
/// Alignment of the first tensor in the file.
const ALIGN: usize = 4096;
/// Bytes of the header's length, which stands before it.
const PREFIX: usize = 8;
/// Entry of the header with all that is no tensor.
const METADATA: &str = "__metadata__";
/// Key of the description in the metadata.
const DESCRIPTION: &str = "vidi.parked";
/// Key of the description's checksum.
const DESCRIPTION_CRC32: &str = "vidi.parked.crc32";
/// Digits of a name: the first half of its key's SHA-256.
const NAME_BYTES: usize = 16;

/// What keys and values depend on besides the video.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// [Fingerprint](config::ModelSource::fingerprint) of the checkpoint.
    pub fingerprint: String,
    /// [Fingerprint](config::fingerprint::of_file) of the file with quantized weights; empty without one.
    pub quantized: String,
    /// Compute type.
    pub dtype: String,
    /// Type of the language model's linear layers.
    pub weights: String,
    /// Type of the image and audio keys and values.
    pub kv: String,
    /// How rows of frames, sound and their tokens are multiplied.
    pub media_products: String,
    /// `cpu` or `cuda`: they round differently.
    pub device: String,
}

/// What a parked video is found by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    version: u32,
    video: VideoKey,
    model: Identity,
}

impl Key {
    /// Key of a video with a model's keys and values.
    pub fn new(video: &VideoKey, model: &Identity) -> Self {
        Key { version: VERSION, video: video.clone(), model: model.clone() }
    }

    /// Whether it is of a model, whatever the video.
    pub fn is_of(&self, model: &Identity) -> bool {
        self.version == VERSION && self.model == *model
    }

    /// Fingerprint of the checkpoint.
    pub fn fingerprint(&self) -> &str {
        &self.model.fingerprint
    }

    /// Name of its file, without the ending: 32 hexadecimal digits.
    pub fn name(&self) -> String {
        let json = serde_json::to_vec(self).expect("strings and numbers make JSON. This is a bug.");
        Sha256::digest(json).iter().take(NAME_BYTES).map(|b| format!("{b:02x}")).collect()
    }
}

/// Description of a parked video.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Its key.
    pub key: Key,
    /// Model that computed it.
    pub model: ModelName,
    /// [`KeptVideo::video`].
    pub video: String,
    /// [`KeptVideo::span`].
    pub span: Option<[f64; 2]>,
    /// [`KeptVideo::fps`].
    pub fps: f64,
    /// Its plan, all of it settled.
    pub plan: MediaPlan,
    /// Numbers of each frame in what is known of its pictures.
    pub picture_numbers: usize,
    /// Bytes of all tensors.
    pub data_bytes: u64,
    /// CRC-32 of each [section](Layout::sections), 8 hexadecimal digits.
    pub crc32: Vec<String>,
}

impl Description {
    /// The video as the request by which it came names it.
    pub fn asked(&self) -> KeptVideo {
        KeptVideo { video: self.video.clone(), span: self.span, fps: self.fps }
    }
}

/// Tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    /// Place in the file, bytes from the end of the header.
    pub at: u64,
    /// Its size.
    pub bytes: u64,
}

/// Tensors of a file, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Keys and values of each layer: of the image tokens, then of the audio tokens; then the numbers of the pictures.
    pub pieces: Vec<Piece>,
    /// Pieces that share a checksum: those of a layer.
    pub sections: Vec<Range<usize>>,
    /// Bytes of all.
    pub bytes: u64,
}

impl Layout {
    /// Layout of a settled plan's keys and values, and of `picture_numbers` numbers of each frame.
    pub fn new(geometry: &Geometry, plan: &MediaPlan, picture_numbers: usize) -> Self {
        let mut layout = Layout::default();
        let image = plan.image.as_ref().map(|image| (Modality::Image, image.tokens));
        let audio = plan.audio.as_ref().map(|audio| (Modality::Audio, audio.tokens));
        for (modality, tokens) in image.into_iter().chain(audio) {
            let (dtype, shape) = geometry.media.buffer(geometry.kv_heads, tokens as usize, geometry.head_dim);
            for layer in 0..geometry.layers {
                let first = layout.pieces.len();
                for part in ["k", "v"] {
                    layout.push(
                        format!("{modality}.{layer}.{part}"),
                        dtype_name(dtype),
                        shape.clone(),
                        dtype.size_in_bytes(),
                    );
                }
                layout.sections.push(first..layout.pieces.len());
            }
        }
        if let Some(image) = &plan.image {
            let first = layout.pieces.len();
            let shape = vec![image.frames as usize, picture_numbers];
            layout.push("pictures".to_owned(), "F64", shape, size_of::<f64>());
            layout.sections.push(first..first + 1);
        }
        layout
    }

    fn push(&mut self, name: String, dtype: &'static str, shape: Vec<usize>, size: usize) {
        let count = shape.iter().fold(size as u64, |bytes, &n| bytes.saturating_mul(n as u64));
        self.pieces.push(Piece { name, dtype, shape, at: self.bytes, bytes: count });
        self.bytes = self.bytes.saturating_add(count);
    }

    /// Header of a file with this layout, as JSON.
    fn header(&self, description: &Description) -> Value {
        let text = serde_json::to_string(description).expect("strings and numbers make JSON. This is a bug.");
        let crc32 = hex(crc32fast::hash(text.as_bytes()));
        let tensors = self.pieces.iter().map(|piece| {
            let offsets = [piece.at, piece.at.saturating_add(piece.bytes)];
            (piece.name.clone(), json!({"dtype": piece.dtype, "shape": piece.shape, "data_offsets": offsets}))
        });
        let mut entries: Map<String, Value> = tensors.collect();
        entries.insert(METADATA.to_owned(), json!({DESCRIPTION: text, DESCRIPTION_CRC32: crc32}));
        Value::Object(entries)
    }

    /// First bytes of a file, up to its first tensor; as many whatever the checksums are.
    ///
    /// # Errors
    /// The bytes, if they are too many.
    pub fn head(&self, description: &Description) -> Result<Vec<u8>, String> {
        let mut text = self.header(description).to_string();
        text.push_str(&" ".repeat((PREFIX + text.len()).next_multiple_of(ALIGN) - PREFIX - text.len()));
        if text.len() as u64 > MOST_HEADER_BYTES {
            return Err(format!("its header has {} bytes, and {MOST_HEADER_BYTES} are the limit", text.len()));
        }
        Ok([&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat())
    }
}

/// Checksum as it stands in a description.
pub fn hex(crc32: u32) -> String {
    format!("{crc32:08x}")
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        _ => "U8",
    }
}

/// Head of a file, read: its description is whole, and the file as long as it says.
#[derive(Debug)]
pub struct Head {
    /// What the file holds.
    pub description: Description,
    /// Place of the first tensor.
    pub data_at: u64,
    header: Value,
}

impl Head {
    /// Reads the head of a file.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn read(file: &File) -> Result<Self, String> {
        let wrong = |e: std::io::Error| format!("it cannot be read: {e}");
        let size = file.metadata().map_err(wrong)?.len();
        let mut prefix = [0; PREFIX];
        file.read_exact_at(&mut prefix, 0).map_err(wrong)?;
        let length = u64::from_le_bytes(prefix);
        if length > MOST_HEADER_BYTES || PREFIX as u64 + length > size {
            return Err(format!("its header would have {length} bytes, the file has {size}"));
        }
        let mut text = vec![0; length as usize];
        file.read_exact_at(&mut text, PREFIX as u64).map_err(wrong)?;
        let header: Value = serde_json::from_slice(&text).map_err(|e| format!("its header is no JSON: {e}"))?;
        let said = |key: &str| header[METADATA][key].as_str().ok_or_else(|| format!("its header has no {key}"));
        let (text, crc32) = (said(DESCRIPTION)?, said(DESCRIPTION_CRC32)?);
        if hex(crc32fast::hash(text.as_bytes())) != crc32 {
            return Err("the checksum of its description is wrong".to_owned());
        }
        let description: Description = serde_json::from_str(text).map_err(|e| format!("its description: {e}"))?;
        let data_at = PREFIX as u64 + length;
        let wanted = data_at.saturating_add(description.data_bytes);
        if size != wanted {
            return Err(format!("it has {size} bytes, and its header is of {wanted}"));
        }
        Ok(Head { description, data_at, header })
    }

    /// Layout of the file, whose sizes follow from its plan and a model's geometry.
    ///
    /// # Errors
    /// What is wrong, for a person: it is another key's, or its tensors are not those of its plan.
    pub fn layout(&self, key: &Key, geometry: &Geometry) -> Result<Layout, String> {
        let Description { plan, picture_numbers, data_bytes, crc32, .. } = &self.description;
        if self.description.key != *key {
            return Err("it is of another video or model than its name says".to_owned());
        }
        plan.check().map_err(|e| format!("its plan: {e}"))?;
        let layout = Layout::new(geometry, plan, *picture_numbers);
        if layout.bytes != *data_bytes || layout.sections.len() != crc32.len() {
            let (bytes, sections) = (layout.bytes, layout.sections.len());
            return Err(format!(
                "it has {data_bytes} bytes of tensors in {} sections, its plan needs {bytes} in {sections}",
                crc32.len()
            ));
        }
        if layout.header(&self.description) != self.header {
            return Err("its header is not that of its plan".to_owned());
        }
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::{JobId, JobRequest};

    #[test]
    fn all_that_changes_the_numbers_changes_the_name() {
        let request = JobRequest::new(JobId::new("job").unwrap(), "video.mp4", "a cat");
        let video = |content: &str, fps: f64| {
            let plan = MediaPlan { content_id: content.to_owned(), duration_s: 10.0, ..MediaPlan::default() };
            VideoKey::new(&plan, &JobRequest { fps, ..request.clone() }).unwrap()
        };
        let model = Identity::default;
        let other = || "other".to_owned();
        let models = [
            model(),
            Identity { fingerprint: other(), ..model() },
            Identity { quantized: other(), ..model() },
            Identity { dtype: other(), ..model() },
            Identity { weights: other(), ..model() },
            Identity { kv: other(), ..model() },
            Identity { media_products: other(), ..model() },
            Identity { device: other(), ..model() },
        ];
        let mut names: Vec<String> = models.iter().map(|model| Key::new(&video("a", 1.0), model).name()).collect();
        names.push(Key::new(&video("b", 1.0), &model()).name());
        names.push(Key::new(&video("a", 0.5), &model()).name());
        names.push(Key { version: VERSION + 1, ..Key::new(&video("a", 1.0), &model()) }.name());
        let count = names.len();
        names.sort();
        names.dedup();
        assert!(names.len() == count && names.iter().all(|name| name.len() == 2 * NAME_BYTES), "{names:?}");
    }
}
