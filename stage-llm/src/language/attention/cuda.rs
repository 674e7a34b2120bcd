//! Launches of the attention kernels: which kernel, and how the keys are split among its blocks. Widths of heads, their
//! numbers and the soft cap come with the operands.

use candle_core::backend::BackendStorage;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::LaunchConfig;
use candle_core::cuda::cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Result, Shape, Storage, Tensor};
use compute::kernels::cuda::{Kernels, allocate, grid, launch_ahead, pointer, suffix};

use super::{Queries, SCRATCH_BYTES, Scoring, Segment, Visible};
use crate::language::kernels::{address, rows};
use crate::language::kv::{KvFormat, KvTensor};

static FEW: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attend_few.fatbin")));
static MANY: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attend_many.fatbin")));
static REST: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attend_rest.fatbin")));

/// Fast kernels for heads of a width, in 16 bits.
struct Fast {
    /// Values of a head.
    width: usize,
    /// Shared memory of a block of the kernel for decoding; a block has 101,376 bytes at most on sm_89.
    few_shared: usize,
    /// The same of the kernel for prompts.
    many_shared: usize,
}

/// What attend_few.cu, attend_many.cu and attend_rest.cu have kernels for.
static FAST: [Fast; 2] = [
    Fast { width: 256, few_shared: 98_304, many_shared: 99_328 },
    Fast { width: 128, few_shared: 98_304, many_shared: 49_152 },
];

/// Most rows (tokens x query heads of a kv head) that the kernel for decoding takes.
const DECODE_ROWS: usize = 8;
/// Rows of a block in the kernel for prompts.
const BLOCK_ROWS: usize = 64;
/// Most tokens of a launch: with them the splits' intermediate results stay within [`SCRATCH_BYTES`].
const BLOCK_TOKENS: usize = 256;

/// `Segment` of attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawSegment {
    k: u64,
    v: u64,
    k_scales: u64,
    v_scales: u64,
    format: i32,
    capacity: i32,
    start: i32,
    end: i32,
    causal: i32,
    first: i32,
    window: i32,
    splits: i32,
}

/// `Attention` of attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawAttention {
    segments: [RawSegment; 3],
    rotated: u64,
    plain: u64,
    mixed: u64,
    stats: u64,
    out: u64,
    rotated_stride: i32,
    plain_stride: i32,
    count: i32,
    tokens: i32,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    split_keys: i32,
    scale: f32,
    cap: f32,
}

impl RawSegment {
    /// Segment as tokens `skip..skip + n` of the queries see it.
    fn new(segment: &Segment<'_>, skip: usize, n: usize) -> Result<Self> {
        let planes = |kv: &KvTensor| -> Result<(u64, u64)> {
            let values = address(kv.data())?;
            Ok((values, if matches!(kv.format(), KvFormat::Dense(_)) { 0 } else { values + kv.scales_at() as u64 }))
        };
        let ((k, k_scales), (v, v_scales)) = (planes(segment.keys)?, planes(segment.values)?);
        let mut raw = RawSegment {
            k,
            v,
            k_scales,
            v_scales,
            format: segment.keys.format().code(),
            capacity: segment.keys.capacity() as i32,
            end: segment.len as i32,
            ..RawSegment::default()
        };
        if let Visible::Causal { first, window } = segment.visible {
            let first = first + skip;
            raw.causal = 1;
            raw.first = first as i32;
            // A window that holds all keys is no window.
            raw.window = window.filter(|&w| w < first + n).unwrap_or(0) as i32;
            raw.start = window.map_or(0, |w| (first + 1).saturating_sub(w)) as i32;
            raw.end = segment.len.min(first + n) as i32;
        }
        Ok(raw)
    }

    fn keys(&self) -> usize {
        (self.end - self.start) as usize
    }
}

/// [`super::segments::attend_segments`] on a GPU; shapes are checked there.
pub fn attend(queries: Queries<'_>, segments: &[Segment<'_>], scoring: Scoring) -> Result<Tensor> {
    let (n, width) = queries.plain.dims2()?;
    let dtype = queries.plain.dtype();
    let first = &segments[0];
    let (head_dim, kv_heads) = (first.keys.head_dim(), first.keys.kv_heads());
    let takes = |kv: &KvTensor| !matches!(kv.format(), KvFormat::Dense(d) if d != dtype);
    let alike = |s: &Segment<'_>| {
        s.keys.format() == s.values.format() && s.keys.capacity() == s.values.capacity() && takes(s.keys)
    };
    if queries.rotated.dtype() != dtype || !segments.iter().all(alike) {
        candle_core::bail!(
            "attention refused: keys and values must have one format, dense ones the queries' type {dtype:?}"
        );
    }
    let Device::Cuda(device) = queries.plain.device() else {
        candle_core::bail!("attention kernel refused: queries are not in GPU memory")
    };
    let (rotated, rotated_stride) = rows(queries.rotated)?;
    let (plain, plain_stride) = rows(queries.plain)?;
    let shape = Shape::from((n, width));
    let out = allocate(device, &shape, dtype)?;
    let start = address_of(&out, &shape)?;
    let size = dtype.size_in_bytes();
    let fast = FAST.iter().find(|fast| fast.width == head_dim && dtype != DType::F32);
    let step = if fast.is_some() { BLOCK_TOKENS } else { n };
    for skip in (0..n).step_by(step) {
        let tokens = step.min(n - skip);
        let mut raw = RawAttention {
            rotated: rotated + (skip * rotated_stride * size) as u64,
            plain: plain + (skip * plain_stride * size) as u64,
            out: start + (skip * width * size) as u64,
            rotated_stride: rotated_stride as i32,
            plain_stride: plain_stride as i32,
            count: segments.len() as i32,
            tokens: tokens as i32,
            heads: (width / head_dim) as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            scale: scoring.scale as f32,
            cap: scoring.cap.unwrap_or(0.0) as f32,
            ..RawAttention::default()
        };
        for (to, segment) in raw.segments.iter_mut().zip(segments) {
            *to = RawSegment::new(segment, skip, tokens)?;
        }
        if let Some(fast) = fast {
            in_splits(device, fast, raw, dtype)?;
        } else if head_dim <= 512 {
            let blocks = tokens * width / head_dim;
            launch(device, &REST, &format!("attend_plain_{}", suffix(dtype)?), grid((blocks, 1, 1), 32, 0), &raw)?;
        } else {
            candle_core::bail!("attention kernel refused: heads of {head_dim} are wider than 512");
        }
    }
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}

/// Attention in one launch over all segments and splits, and one that combines them.
fn in_splits(device: &CudaDevice, fast: &Fast, mut raw: RawAttention, dtype: DType) -> Result<()> {
    let (tokens, heads, kv_heads) = (raw.tokens as usize, raw.heads as usize, raw.kv_heads as usize);
    let rows = tokens * heads / kv_heads;
    let few = rows <= DECODE_ROWS;
    let &Fast { width, few_shared, many_shared } = fast;
    // Two blocks of 96 KB fit a multiprocessor of an H200, one fits that of a 4090, and two of 48 KB fit either: full waves
    // on both.
    let context = device.cuda_stream().context().clone();
    let processors = context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).w()? as usize;
    let row_blocks = if few { 1 } else { rows.div_ceil(BLOCK_ROWS) };
    let scratch = SCRATCH_BYTES / (tokens * heads * (width * 4 + 8));
    let wave = (2 * processors / (kv_heads * row_blocks)).min(scratch);
    let keys: Vec<usize> = raw.segments[..raw.count as usize].iter().map(RawSegment::keys).collect();
    // The kernel for few rows takes 16 keys a warp, the other 32 a block.
    let split_keys = if few { split(&keys, wave, 64, 16) } else { split(&keys, wave, 32, 32) };
    let mut splits = 0;
    for (segment, keys) in raw.segments.iter_mut().zip(&keys) {
        segment.splits = keys.div_ceil(split_keys) as i32;
        splits += keys.div_ceil(split_keys);
    }
    raw.split_keys = split_keys as i32;
    let shape = Shape::from((splits, tokens * heads, width));
    let mixed = allocate(device, &shape, DType::F32)?;
    raw.mixed = address_of(&mixed, &shape)?;
    let shape = Shape::from((splits, tokens * heads, 2));
    let stats = allocate(device, &shape, DType::F32)?;
    raw.stats = address_of(&stats, &shape)?;

    let suffix = format!("{width}_{}", suffix(dtype)?);
    let config = grid((splits, kv_heads, row_blocks), 128, if few { few_shared } else { many_shared });
    if few {
        launch(device, &FEW, &format!("attend_few_{suffix}"), config, &raw)?;
    } else {
        launch(device, &MANY, &format!("attend_many_{suffix}"), config, &raw)?;
    }
    launch(
        device,
        &REST,
        &format!("attend_combine_{suffix}"),
        grid((tokens * heads, 1, 1), 256, 4096 + 4 * splits),
        &raw,
    )
}

/// Keys of a split, `least` or more, a multiple of `unit`: the fewest with which all segments together have at most
/// `most` splits. One more would start a wave of blocks that leaves most of the GPU idle.
fn split(keys: &[usize], most: usize, least: usize, unit: usize) -> usize {
    let most = most.max(keys.len());
    let mut split_keys = keys.iter().sum::<usize>().div_ceil(most).next_multiple_of(unit).max(least);
    while keys.iter().map(|k| k.div_ceil(split_keys)).sum::<usize>() > most {
        split_keys += unit;
    }
    split_keys
}

fn address_of(storage: &candle_core::CudaStorage, shape: &Shape) -> Result<u64> {
    debug_assert_eq!(storage.dtype().size_in_bytes() * shape.elem_count() % 2, 0);
    match pointer(storage, &candle_core::Layout::contiguous(shape.clone()))? {
        compute::kernels::cuda::Arg::Pointer(address) => Ok(address),
        _ => candle_core::bail!("a storage's pointer is no pointer argument. This is a bug."),
    }
}

fn launch(device: &CudaDevice, kernels: &Kernels, name: &str, config: LaunchConfig, raw: &RawAttention) -> Result<()> {
    let function = kernels.function(device, name, config.shared_mem_bytes)?;
    let mut parameters = [std::ptr::from_ref(raw).cast_mut().cast()];
    // SAFETY: the kernels take this one structure; its pointers are of tensors that live until the stream has passed
    // them. Before they wait they read image and audio tokens, which are all written before a text token's rows are
    // computed.
    unsafe { launch_ahead(device, &function, config, &mut parameters) }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn splits_fill_whole_waves_and_no_more() {
        for keys in [vec![1], vec![40, 1960, 100], vec![50, 58_800, 3_000], vec![1_000, 90_000, 36_000], vec![4096; 3]]
        {
            for most in [1, 3, 33, 66, 528] {
                let size = split(&keys, most, 64, 16);
                let splits = |size: usize| keys.iter().map(|k: &usize| k.div_ceil(size)).sum::<usize>();
                assert!(size.is_multiple_of(16) && splits(size) <= most.max(keys.len()), "{keys:?} {most}");
                assert!(size == 64 || splits(size - 16) > most.max(keys.len()) || most <= 3, "{keys:?} {most}");
            }
        }
    }
}
