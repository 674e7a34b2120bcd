//! Attention of one token of each of several texts: one launch over the video for all of them, one over the texts.

use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Shape, Storage, Tensor};
use compute::kernels::cuda::{allocate, grid, suffix};

use super::{
    FEW, FEW_ROWS, Fast, RawAttention, RawSegment, Scratch, address_of, attend, attend_splits, device_of, fast, launch,
    resident, scratch_splits, split, split_segments,
};
use crate::language::attention::{Queries, Scoring, Segment};

/// Most texts of a launch: what they have of their own is a parameter of the kernel.
const TEXTS: usize = 64;

/// `Text` of attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawText {
    k: u64,
    v: u64,
    capacity: i32,
    start: i32,
    end: i32,
    unused: i32,
}

/// `Texts` of attention.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawTexts {
    attention: RawAttention,
    texts: [RawText; TEXTS],
}

/// [`attend_each`](crate::language::attention::each::attend_each) on a GPU; shapes are checked there.
pub fn attend_each(
    queries: Queries<'_>,
    own: &[Segment<'_>],
    shared: &[Segment<'_>],
    scoring: Scoring,
) -> Result<Tensor> {
    let device = device_of(queries, &[own, shared].concat())?;
    let ((n, width), dtype) = (queries.plain.dims2()?, queries.plain.dtype());
    let keys = own[0].keys;
    let group = width / (keys.head_dim() * keys.kv_heads());
    let Some(fast) = fast(keys.head_dim(), dtype).filter(|_| group <= FEW_ROWS) else {
        return one_by_one(queries, own, shared, scoring);
    };
    let shape = Shape::from((n, width));
    let out = allocate(device, &shape, dtype)?;
    let start = address_of(&out, &shape)?;
    for (part, texts) in own.chunks(TEXTS).enumerate() {
        let skip = part * TEXTS;
        let of_texts = RawAttention::new(queries, keys, scoring, (skip, texts.len()), start)?;
        let mut raw = of_texts.to(shared, 0)?;
        let mut to = RawTexts { attention: of_texts, texts: [RawText::default(); TEXTS] };
        let own_splits = split_texts(&mut to, texts, resident(device)?)?;
        let most = scratch_splits(&raw, fast).saturating_sub(own_splits);
        let splits = if shared.is_empty() { 0 } else { split_segments(device, fast, &mut raw, most)? };
        let scratch = Scratch::new(device, &mut raw, own_splits + splits)?;
        (to.attention.mixed, to.attention.stats) = (raw.mixed, raw.stats);
        attend_texts(device, fast, &to, (own_splits, texts.len()), dtype)?;

        // The media's splits follow those of the texts.
        let rows = (own_splits * texts.len() * width / fast.width) as u64;
        if !shared.is_empty() {
            let media =
                RawAttention { mixed: raw.mixed + rows * 4 * fast.width as u64, stats: raw.stats + rows * 8, ..raw };
            attend_splits(device, fast, &media, dtype)?;
        }
        raw.segments =
            [RawSegment { splits: own_splits as i32, ..RawSegment::default() }, raw.segments[0], raw.segments[1]];
        raw.count += 1;
        scratch.combine(device, &raw, dtype)?;
    }
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}

/// Tells the kernel the texts, and into how many splits the longest of them is cut, so that all together fill one wave of
/// `blocks`. Returns the number.
fn split_texts(to: &mut RawTexts, texts: &[Segment<'_>], blocks: usize) -> Result<usize> {
    let mut longest = 1;
    for (to, text) in to.texts.iter_mut().zip(texts) {
        let RawSegment { k, v, capacity, start, end, .. } = RawSegment::new(text, 0, 1)?;
        *to = RawText { k, v, capacity, start, end, unused: 0 };
        longest = longest.max((end - start) as usize);
    }
    let most = (blocks / (texts.len() * to.attention.kv_heads as usize)).max(1);
    let split_keys = split(&[longest], most, 64, 16);
    to.attention.split_keys = split_keys as i32;
    Ok(longest.div_ceil(split_keys))
}

/// Attention of every text to itself.
fn attend_texts(
    device: &candle_core::CudaDevice,
    fast: &Fast,
    raw: &RawTexts,
    (splits, texts): (usize, usize),
    dtype: DType,
) -> Result<()> {
    let blocks = (splits, raw.attention.kv_heads as usize, texts);
    let name = format!("attend_texts_{}_{}", fast.width, suffix(dtype)?);
    launch(device, &FEW, &name, grid(blocks, 128, fast.few_shared), raw)
}

/// The same where there is no kernel for all at once: f32, and heads of other widths.
fn one_by_one(queries: Queries<'_>, own: &[Segment<'_>], shared: &[Segment<'_>], scoring: Scoring) -> Result<Tensor> {
    let one = |i: usize| {
        let (rotated, plain) = (queries.rotated.narrow(0, i, 1)?, queries.plain.narrow(0, i, 1)?);
        attend(Queries { rotated: &rotated, plain: &plain }, &[&own[i..=i], shared].concat(), scoring)
    };
    Tensor::cat(&(0..own.len()).map(one).collect::<Result<Vec<_>>>()?, 0)
}
