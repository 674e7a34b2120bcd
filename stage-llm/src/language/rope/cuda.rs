//! Launches of the kernels that rotate.

use candle_core::op::BackpropOp;
use candle_core::{Device, Layout, Result, Shape, Storage, Tensor};
use compute::kernels::cuda::{Arg, allocate, grid, launch_ahead, pointer, suffix};

use super::RopeTable;
use super::next::Next;
use crate::language::kernels::{KV_WRITE, address, rows};
use crate::language::kv::KvTensor;

pub fn rotate_and_write(
    table: &RopeTable,
    qkv: &Tensor,
    heads: usize,
    first: usize,
    keys: &KvTensor,
    values: &KvTensor,
) -> Result<Tensor> {
    let Device::Cuda(device) = qkv.device() else { candle_core::bail!("rotation refused: rows are not in GPU memory") };
    let (n, _) = qkv.dims2()?;
    let (kv_heads, head_dim) = (keys.kv_heads(), keys.head_dim());
    let (from, stride) = rows(qkv)?;
    let shape = Shape::from((n, heads * head_dim));
    let out = allocate(device, &shape, qkv.dtype())?;
    let arguments = [
        Arg::Pointer(from),
        stride.into(),
        n.into(),
        heads.into(),
        kv_heads.into(),
        head_dim.into(),
        Arg::Pointer(address(&table.cos)?),
        Arg::Pointer(address(&table.sin)?),
        first.into(),
        pointer(&out, &Layout::contiguous(shape.clone()))?,
        Arg::Pointer(address(keys.data())?),
        Arg::Pointer(address(values.data())?),
        keys.capacity().into(),
    ];
    let threads = n * (heads + 2 * kv_heads) * head_dim / 8;
    let name = format!("rotate_{}", suffix(qkv.dtype())?);
    let grid = grid((threads.div_ceil(256), 1, 1), 256, 0);
    // SAFETY: the arguments are the kernel's as kv_write.cu declares them; the caller has checked that the rows
    // fit. The kernel waits before anything else.
    unsafe { KV_WRITE.launch_ahead(device, &name, grid, &arguments) }?;
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}

/// Most texts of a launch: what they have of their own is a parameter of the kernel.
const TEXTS: usize = 64;

/// `Next` of kv_write.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawNext {
    cos: u64,
    sin: u64,
    keys: u64,
    values: u64,
    capacity: i32,
    at: i32,
}

/// `Rotation` of kv_write.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawRotation {
    next: [RawNext; TEXTS],
    qkv: u64,
    queries: u64,
    stride: i32,
    n: i32,
    heads: i32,
    kv_heads: i32,
    width: i32,
    unused: i32,
}

pub fn rotate_and_write_each(qkv: &Tensor, heads: usize, next: &[Next<'_>]) -> Result<Tensor> {
    let (Device::Cuda(device), Some(first)) = (qkv.device(), next.first()) else {
        candle_core::bail!("rotation refused: {} texts, or rows that are not in GPU memory", next.len())
    };
    let (kv_heads, head_dim) = (first.cache.k.kv_heads(), first.cache.k.head_dim());
    for text in next {
        text.table.check(qkv, heads, text.at, 1, &text.cache.k, &text.cache.v)?;
    }
    let (from, stride) = rows(qkv)?;
    let (size, width) = (qkv.dtype().size_in_bytes(), heads * head_dim);
    let shape = Shape::from((next.len(), width));
    let out = allocate(device, &shape, qkv.dtype())?;
    let to = pointer(&out, &Layout::contiguous(shape.clone()))?.address();
    for (part, texts) in next.chunks(TEXTS).enumerate() {
        let skip = part * TEXTS;
        let mut raw = RawRotation {
            next: [RawNext::default(); TEXTS],
            qkv: from + (skip * stride * size) as u64,
            queries: to + (skip * width * size) as u64,
            stride: stride as i32,
            n: texts.len() as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            width: head_dim as i32,
            unused: 0,
        };
        for (raw, text) in raw.next.iter_mut().zip(texts) {
            *raw = RawNext {
                cos: address(&text.table.cos)?,
                sin: address(&text.table.sin)?,
                keys: address(text.cache.k.data())?,
                values: address(text.cache.v.data())?,
                capacity: text.cache.k.capacity() as i32,
                at: text.at as i32,
            };
        }
        let threads = texts.len() * (heads + 2 * kv_heads) * head_dim / 8;
        let config = grid((threads.div_ceil(256), 1, 1), 256, 0);
        let function = KV_WRITE.function(device, &format!("rotate_each_{}", suffix(qkv.dtype())?), 0)?;
        let mut parameters = [(&raw mut raw).cast()];
        // SAFETY: the kernel takes this one structure, as kv_write.cu declares it; every row fits its cache, which was
        // checked. The kernel waits before anything else.
        unsafe { launch_ahead(device, &function, config, &mut parameters) }?;
    }
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}
