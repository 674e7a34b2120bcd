//! Launches of the attention kernels: which kernel, and how the keys are split among its blocks. Widths of heads, their
//! numbers and the soft cap come with the operands. [`each`]: of one token of each of several texts.

use candle_core::backend::BackendStorage;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::LaunchConfig;
use candle_core::cuda::cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor};
use compute::kernels::cuda::{Kernels, allocate, grid, launch_ahead, pointer, suffix};

use super::{Queries, SCRATCH_BYTES, Scoring, Segment, Visible};
use crate::language::kernels::{address, rows};
use crate::language::kv::{KvFormat, KvTensor};

mod each;

pub use each::attend_each;

static FEW: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attend_few.fatbin")));
static MANY: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attend_many.fatbin")));
static REST: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attend_rest.fatbin")));

/// Fast kernels for heads of a width, in 16 bits.
struct Fast {
    /// Values of a head.
    width: usize,
    /// Shared memory of a block of the kernel for up to 8 rows; a block has 101,376 bytes at most on sm_89.
    few_shared: usize,
    /// The same of the kernel for blocks of 16 rows.
    some_shared: usize,
    /// The same of the kernel for prompts.
    many_shared: usize,
}

/// What attend_few.cu, attend_many.cu and attend_rest.cu have kernels for.
static FAST: [Fast; 2] = [
    Fast { width: 256, few_shared: 98_304, some_shared: 92_672, many_shared: 99_328 },
    Fast { width: 128, few_shared: 98_304, some_shared: 88_576, many_shared: 49_152 },
];

/// Most rows (tokens x query heads of a kv head) that a block of the kernel for decoding takes.
const FEW_ROWS: usize = 8;
/// Rows of a block of the kernel for decoding several texts.
const SOME_ROWS: usize = 16;
/// Most rows that it is worth launching for: with more, reading the keys once for 64 rows is.
const MOST_SOME_ROWS: usize = 32;
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

impl RawAttention {
    /// Rows that share the keys of a head: tokens x its query heads.
    fn rows(&self) -> usize {
        (self.tokens * self.heads / self.kv_heads) as usize
    }
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

/// Refuses keys and values that the kernels do not take beside queries; returns the queries' device.
fn device_of<'a>(queries: Queries<'a>, segments: &[Segment<'_>]) -> Result<&'a CudaDevice> {
    let dtype = queries.plain.dtype();
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
    Ok(device)
}

/// Fast kernels for heads of a width in a type, if there are any.
fn fast(head_dim: usize, dtype: DType) -> Option<&'static Fast> {
    FAST.iter().find(|fast| fast.width == head_dim && dtype != DType::F32)
}

impl RawAttention {
    /// Attention of `n` of the queries from `skip` on, with heads as `keys` have them, to no segment yet; `out` is where the
    /// outcome of all begins.
    fn new(
        queries: Queries<'_>,
        keys: &KvTensor,
        scoring: Scoring,
        (skip, n): (usize, usize),
        out: u64,
    ) -> Result<Self> {
        let (width, size) = (queries.plain.dim(1)?, queries.plain.dtype().size_in_bytes());
        let (rotated, rotated_stride) = rows(queries.rotated)?;
        let (plain, plain_stride) = rows(queries.plain)?;
        Ok(RawAttention {
            rotated: rotated + (skip * rotated_stride * size) as u64,
            plain: plain + (skip * plain_stride * size) as u64,
            out: out + (skip * width * size) as u64,
            rotated_stride: rotated_stride as i32,
            plain_stride: plain_stride as i32,
            tokens: n as i32,
            heads: (width / keys.head_dim()) as i32,
            kv_heads: keys.kv_heads() as i32,
            head_dim: keys.head_dim() as i32,
            scale: scoring.scale as f32,
            cap: scoring.cap.unwrap_or(0.0) as f32,
            ..RawAttention::default()
        })
    }

    /// The same with segments, as its tokens, from `skip` on, see them.
    fn to(mut self, segments: &[Segment<'_>], skip: usize) -> Result<Self> {
        self.count = segments.len() as i32;
        for (to, segment) in self.segments.iter_mut().zip(segments) {
            *to = RawSegment::new(segment, skip, self.tokens as usize)?;
        }
        Ok(self)
    }
}

/// [`super::segments::attend_segments`] on a GPU; shapes are checked there.
pub fn attend(queries: Queries<'_>, segments: &[Segment<'_>], scoring: Scoring) -> Result<Tensor> {
    let device = device_of(queries, segments)?;
    let ((n, width), dtype) = (queries.plain.dims2()?, queries.plain.dtype());
    let (keys, head_dim) = (segments[0].keys, segments[0].keys.head_dim());
    let shape = Shape::from((n, width));
    let out = allocate(device, &shape, dtype)?;
    let start = address_of(&out, &shape)?;
    let fast = fast(head_dim, dtype);
    let step = if fast.is_some() { BLOCK_TOKENS } else { n };
    for skip in (0..n).step_by(step) {
        let tokens = step.min(n - skip);
        let raw = RawAttention::new(queries, keys, scoring, (skip, tokens), start)?.to(segments, skip)?;
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

/// Kernel for so many rows: its name, the rows and the shared memory of a block, and the least number of keys that its
/// blocks take in a turn: 16 a warp, or 32 a block.
struct Choice {
    name: &'static str,
    kernels: &'static Kernels,
    block_rows: usize,
    shared: usize,
    least: usize,
    unit: usize,
}

impl Choice {
    fn of(rows: usize, fast: &Fast) -> Self {
        let few = |name, block_rows, shared| Choice { name, kernels: &FEW, block_rows, shared, least: 64, unit: 16 };
        match rows {
            ..=FEW_ROWS => few("attend_few", FEW_ROWS, fast.few_shared),
            ..=MOST_SOME_ROWS => few("attend_some", SOME_ROWS, fast.some_shared),
            _ => Choice {
                name: "attend_many",
                kernels: &MANY,
                block_rows: BLOCK_ROWS,
                shared: fast.many_shared,
                least: 32,
                unit: 32,
            },
        }
    }
}

/// Attention in one launch over all segments and splits, and one that combines them.
fn in_splits(device: &CudaDevice, fast: &Fast, mut raw: RawAttention, dtype: DType) -> Result<()> {
    let most = scratch_splits(&raw, fast);
    let splits = split_segments(device, fast, &mut raw, most)?;
    let scratch = Scratch::new(device, &mut raw, splits)?;
    attend_splits(device, fast, &raw, dtype)?;
    scratch.combine(device, &raw, dtype)
}

/// Most splits whose intermediate results fit in [`SCRATCH_BYTES`].
fn scratch_splits(raw: &RawAttention, fast: &Fast) -> usize {
    SCRATCH_BYTES / (raw.tokens as usize * raw.heads as usize * (fast.width * 4 + 8))
}

/// Splits the keys of all segments: one wave of blocks, and at most `most` splits. Returns their number.
fn split_segments(device: &CudaDevice, fast: &Fast, raw: &mut RawAttention, most: usize) -> Result<usize> {
    let choice = Choice::of(raw.rows(), fast);
    let row_blocks = raw.rows().div_ceil(choice.block_rows);
    let wave = (resident(device)? / (raw.kv_heads as usize * row_blocks)).min(most);
    let keys: Vec<usize> = raw.segments[..raw.count as usize].iter().map(RawSegment::keys).collect();
    let split_keys = split(&keys, wave, choice.least, choice.unit);
    let mut splits = 0;
    for (segment, keys) in raw.segments.iter_mut().zip(&keys) {
        segment.splits = keys.div_ceil(split_keys) as i32;
        splits += keys.div_ceil(split_keys);
    }
    raw.split_keys = split_keys as i32;
    Ok(splits)
}

/// Number of blocks that a GPU holds at once: two of 96 KB fit a multiprocessor of an H200, one fits that of a 4090, and two of
/// 48 KB fit either: full waves on both.
fn resident(device: &CudaDevice) -> Result<usize> {
    let context = device.cuda_stream().context().clone();
    Ok(2 * context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).w()? as usize)
}

/// Attention to every split of every segment.
fn attend_splits(device: &CudaDevice, fast: &Fast, raw: &RawAttention, dtype: DType) -> Result<()> {
    let choice = Choice::of(raw.rows(), fast);
    let splits: usize = raw.segments[..raw.count as usize].iter().map(|s| s.splits as usize).sum();
    let blocks = (splits, raw.kv_heads as usize, raw.rows().div_ceil(choice.block_rows));
    let name = format!("{}_{}_{}", choice.name, fast.width, suffix(dtype)?);
    launch(device, choice.kernels, &name, grid(blocks, 128, choice.shared), raw)
}

/// Intermediate results of all splits, which live until their sum is on its way.
struct Scratch {
    _mixed: CudaStorage,
    _stats: CudaStorage,
    splits: usize,
}

impl Scratch {
    /// Memory for so many splits, which the structure is told.
    fn new(device: &CudaDevice, raw: &mut RawAttention, splits: usize) -> Result<Self> {
        let rows = (raw.tokens * raw.heads) as usize;
        let shape = Shape::from((splits, rows, raw.head_dim as usize));
        let mixed = allocate(device, &shape, DType::F32)?;
        raw.mixed = address_of(&mixed, &shape)?;
        let shape = Shape::from((splits, rows, 2));
        let stats = allocate(device, &shape, DType::F32)?;
        raw.stats = address_of(&stats, &shape)?;
        Ok(Scratch { _mixed: mixed, _stats: stats, splits })
    }

    /// Sum of the segments, each over its splits.
    fn combine(self, device: &CudaDevice, raw: &RawAttention, dtype: DType) -> Result<()> {
        let name = format!("attend_combine_{}_{}", raw.head_dim, suffix(dtype)?);
        let config = grid(((raw.tokens * raw.heads) as usize, 1, 1), 256, 4096 + 4 * self.splits);
        launch(device, &REST, &name, config, raw)
    }
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

fn address_of(storage: &CudaStorage, shape: &Shape) -> Result<u64> {
    debug_assert_eq!(storage.dtype().size_in_bytes() * shape.elem_count() % 2, 0);
    match pointer(storage, &candle_core::Layout::contiguous(shape.clone()))? {
        compute::kernels::cuda::Arg::Pointer(address) => Ok(address),
        _ => candle_core::bail!("a storage's pointer is no pointer argument. This is a bug."),
    }
}

fn launch<R>(device: &CudaDevice, kernels: &Kernels, name: &str, config: LaunchConfig, raw: &R) -> Result<()> {
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
