//! Check of what a decode step of several texts about one video does.

use candle_core::{Device, Result, Tensor};

use super::{CAP, Checks, FORMATS};
use crate::language::attention::each::attend_each;
use crate::language::attention::{Queries, Scoring, Segment, Visible};
use crate::language::cache::LayerCache;
use crate::language::kv::{KvFormat, KvTensor};
use crate::language::rope::RopeTable;
use crate::language::rope::each::rotate_and_write_each;
use crate::language::rope::next::Next;

/// Lengths of the texts, which repeat.
const LENGTHS: [usize; 7] = [41, 1, 130, 64, 17, 333, 70];

/// Keys and values with the same rows on the CPU and on the device.
struct Kept {
    keys: (KvTensor, KvTensor),
    values: (KvTensor, KvTensor),
    len: usize,
    visible: Visible,
}

impl Kept {
    /// Those on the CPU, or those on the device.
    fn segment(&self, device: &Device) -> Segment<'_> {
        let (keys, values) =
            if device.is_cpu() { (&self.keys.0, &self.values.0) } else { (&self.keys.1, &self.values.1) };
        Segment { keys, values, len: self.len, visible: self.visible }
    }
}

fn segments<'a>(kept: &'a [Kept], device: &Device) -> Vec<Segment<'a>> {
    kept.iter().map(|kept| kept.segment(device)).collect()
}

impl Checks<'_> {
    /// Attention and rotation of several texts: with few rows and many, whole blocks of them and not.
    pub(super) fn several_texts(&mut self) -> Result<()> {
        let dense = (KvFormat::Dense(self.dtype), "16 bit");
        for (format, name) in FORMATS.into_iter().chain([dense]) {
            let bound = self.bound(if format == KvFormat::Q4 { 0.02 } else { 0.008 });
            for (texts, image, audio) in [(2, 300, 77), (5, 1_001, 0), (8, 270, 31), (13, 130, 17), (35, 400, 65)] {
                self.attend_each(format, name, (4, 2, 256), CAP, (texts, image, audio), bound)?;
                self.attend_each(format, name, (8, 2, 128), None, (texts, image, audio), bound)?;
            }
            self.attend_each(format, name, (4, 2, 256), None, (70, 90, 20), bound)?;
            self.attend_each(format, name, (4, 2, 256), None, (3, 0, 0), bound)?;
            self.attend_each(format, name, (4, 2, 40), CAP, (3, 50, 21), bound)?;
        }
        for (texts, heads, kv_heads, width) in [(5, 4, 2, 256), (70, 8, 2, 128), (3, 2, 1, 24)] {
            self.rotate_each(texts, heads, kv_heads, width)?;
        }
        Ok(())
    }

    fn attend_each(
        &mut self,
        format: KvFormat,
        name: &str,
        (heads, kv_heads, width): (usize, usize, usize),
        cap: Option<f64>,
        (texts, image, audio): (usize, usize, usize),
        bound: f32,
    ) -> Result<()> {
        let kept = |format, len, visible| {
            let both = || self.caches(format, kv_heads, &self.rows(len, kv_heads * width)?, 9);
            Ok(Kept { keys: both()?, values: both()?, len, visible })
        };
        let own =
            LENGTHS.into_iter().cycle().take(texts).map(|len| {
                kept(KvFormat::Dense(self.dtype), len, Visible::Causal { first: len - 1, window: Some(100) })
            });
        let own = own.collect::<Result<Vec<Kept>>>()?;
        let media = [image, audio].into_iter().filter(|&len| len > 0).map(|len| kept(format, len, Visible::All));
        let media = media.collect::<Result<Vec<Kept>>>()?;
        // Scores of a few units, so that weights are far from even.
        let (rotated, plain) = ((self.rows(texts, heads * width)? * 2.0)?, (self.rows(texts, heads * width)? * 2.0)?);
        let scoring = Scoring { scale: (width as f64).powf(-0.5), cap };
        let on = |device: &Device| {
            let (rotated, plain) = (rotated.to_device(device)?, plain.to_device(device)?);
            let queries = Queries { rotated: &rotated, plain: &plain };
            attend_each(queries, &segments(&own, device), &segments(&media, device), scoring)
        };
        let (got, exact) = (on(self.device)?, on(&Device::Cpu)?);
        let name = format!(
            "attention, {name}, {texts} texts over {image} + {audio}, {heads}/{kv_heads} x {width}, cap {}",
            cap.unwrap_or(0.0)
        );
        self.compare(name, &got, &exact, bound)
    }

    fn rotate_each(&mut self, texts: usize, heads: usize, kv_heads: usize, width: usize) -> Result<()> {
        let qkv = self.rows(texts, (heads + 2 * kv_heads) * width)?;
        let format = KvFormat::Dense(self.dtype);
        let on = |device: &Device| {
            // Two tables: a long text has one of its own.
            let tables = [20, 40].map(|positions| RopeTable::new(10_000.0, width, positions, self.dtype, device));
            let tables = tables.into_iter().collect::<Result<Vec<_>>>()?;
            let new = |i: usize| KvTensor::new(format, kv_heads, 12 + i % 5, width, device);
            let caches =
                (0..texts).map(|i| Ok(LayerCache { k: new(i)?, v: new(i)? })).collect::<Result<Vec<LayerCache>>>()?;
            let caches_of = caches.iter().enumerate();
            let next: Vec<Next<'_>> =
                caches_of.map(|(i, cache)| Next { table: &tables[i % 2], at: i * 3 % 12, cache }).collect();
            let mut all = vec![rotate_and_write_each(&qkv.to_device(device)?, heads, &next)?.flatten_all()?];
            for cache in &caches {
                for kv in [&cache.k, &cache.v] {
                    all.push(kv.dequantize(0..kv.capacity())?.flatten_all()?);
                }
            }
            Tensor::cat(&all, 0)
        };
        let (got, exact) = (on(self.device)?, on(&Device::Cpu)?);
        let bound = self.bound(1e-3);
        self.compare(format!("rotation of {texts} texts, heads of {width}"), &got, &exact, bound)
    }
}
