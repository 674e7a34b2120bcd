//! Speed of attention and rotation of several texts about one video.

use candle_core::Result;

use super::{Bench, COLD_BYTES, Heads};
use crate::language::attention::each::attend_each;
use crate::language::attention::{Queries, Scoring, Segment, Visible};
use crate::language::cache::LayerCache;
use crate::language::kv::KvFormat;
use crate::language::rope::RopeTable;
use crate::language::rope::each::rotate_and_write_each;
use crate::language::rope::next::Next;

/// Tokens of each text.
const TEXT: usize = 80;

fn segment(cache: &LayerCache, len: usize, visible: Visible) -> Segment<'_> {
    Segment { keys: &cache.k, values: &cache.v, len, visible }
}

impl Bench<'_> {
    /// Attention of one layer, of one token of each of `texts` to its own text and to a video, nineteen parts image to one part
    /// audio: the video's bytes are to be moved once. And the rotation before it.
    pub(super) fn several_texts(&mut self, model: Heads, texts: usize, tokens: usize, format: KvFormat) -> Result<()> {
        let Heads { heads, kv_heads, width, cap, window } = model;
        let rows = self.rows(1_000, kv_heads * width)?;
        let dense = KvFormat::Dense(self.dtype);
        let cache = |format, tokens| {
            Ok(LayerCache {
                k: self.cache(model, format, tokens, &rows)?,
                v: self.cache(model, format, tokens, &rows)?,
            })
        };
        let own = (0..texts).map(|_| cache(dense, TEXT)).collect::<Result<Vec<_>>>()?;
        let text_bytes = texts * TEXT * dense.bytes_per_token(kv_heads, width) as usize;
        let (audio, bytes) = (tokens / 20, tokens * format.bytes_per_token(kv_heads, width) as usize);
        let layers = (0..(COLD_BYTES / bytes + 1).min(42))
            .map(|_| Ok([cache(format, tokens - audio)?, cache(format, audio)?]))
            .collect::<Result<Vec<_>>>()?;
        let q = self.rows(texts, heads * width)?;
        let scoring = Scoring { scale: (width as f64).powf(-0.5), cap };
        let causal = Visible::Causal { first: TEXT - 1, window };
        let own_segments: Vec<Segment<'_>> = own.iter().map(|cache| segment(cache, TEXT, causal)).collect();
        let us = self.time(60, |i| {
            let [image, audios] = &layers[i % layers.len()];
            let media = [segment(image, tokens - audio, Visible::All), segment(audios, audio, Visible::All)];
            attend_each(Queries { rotated: &q, plain: &q }, &own_segments, &media, scoring).map(drop)
        })?;
        self.note(
            format!("attention of {texts} texts over {tokens}, {heads} x {width}, {format:?}"),
            us,
            bytes + text_bytes,
        );

        if format == dense {
            let table = RopeTable::new(10_000.0, width, TEXT, self.dtype, self.device)?;
            let qkv = self.rows(texts, (heads + 2 * kv_heads) * width)?;
            let next: Vec<Next<'_>> = own.iter().map(|cache| Next { table: &table, at: TEXT - 1, cache }).collect();
            let us = self.time(60, |_| rotate_and_write_each(&qkv, heads, &next).map(drop))?;
            let bytes = 2 * texts * (heads + 2 * kv_heads) * width * self.dtype.size_in_bytes();
            self.note(format!("rotation of {texts} texts, {heads} x {width}"), us, bytes);
        }
        Ok(())
    }
}
