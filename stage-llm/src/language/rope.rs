//! Rotary positions of a text's queries and keys, and the write of keys and values into the cache (MODEL.md 7); [`each`]:
//! of one token of each of several texts.

use candle_core::{DType, Device, Result, Tensor};

use crate::language::kv::{KvFormat, KvTensor};

#[cfg(feature = "cuda")]
mod cuda;
pub mod each;
pub mod next;

/// Cosines and sines of every position that a text may have, `[positions, head_dim / 2]` each, computed once: a decode
/// step then uploads nothing. 2,048 positions of the 9B model take 1 MiB.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Tensor,
    sin: Tensor,
    theta: f64,
}

impl RopeTable {
    /// Table of the first `positions` positions, rounded to `dtype`.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn new(theta: f64, head_dim: usize, positions: usize, dtype: DType, device: &Device) -> Result<Self> {
        let exponent = |j: usize| (2 * j) as f32 / head_dim as f32;
        let inv_freq: Vec<f32> = (0..head_dim / 2).map(|j| 1.0 / theta.powf(f64::from(exponent(j))) as f32).collect();
        // The angle is an f32 product; its cosine is taken in f64 so that the table has no error of its own.
        let angles = || (0..positions).flat_map(|p| inv_freq.iter().map(move |f| f64::from(p as f32 * f)));
        let table = |values: Vec<f32>| {
            Tensor::from_vec(values, (positions, head_dim / 2), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
        };
        Ok(RopeTable {
            theta,
            cos: table(angles().map(|a| a.cos() as f32).collect())?,
            sin: table(angles().map(|a| a.sin() as f32).collect())?,
        })
    }

    /// Table of the same model for more positions.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn longer(&self, positions: usize) -> Result<Self> {
        let head_dim = 2 * self.cos.dim(1)?;
        RopeTable::new(self.theta, head_dim, positions, self.cos.dtype(), self.cos.device())
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Rotated queries `[n, heads * head_dim]` of a fused projection `qkv` `[n, (heads + 2 * kv_heads) * head_dim]`,
    /// queries then keys then values, at positions `first` and on (the plain queries are the first columns of `qkv`).
    /// Keys, rotated, and values are written into the cache at those positions. The rotation is half-split, in f32,
    /// rounded once.
    ///
    /// # Errors
    /// Errors of candle; positions or shapes that do not fit; a cache that is not dense in the rows' type.
    pub fn rotate_and_write(
        &self,
        qkv: &Tensor,
        heads: usize,
        first: usize,
        keys: &KvTensor,
        values: &KvTensor,
    ) -> Result<Tensor> {
        self.check(qkv, heads, first, qkv.dim(0)?, keys, values)?;
        let (n, kv_heads, head_dim, dtype) = (qkv.dim(0)?, keys.kv_heads(), keys.head_dim(), qkv.dtype());
        #[cfg(feature = "cuda")]
        if qkv.device().is_cuda() {
            return cuda::rotate_and_write(self, qkv, heads, first, keys, values);
        }
        let (cos, sin) = (self.cos.narrow(0, first, n)?, self.sin.narrow(0, first, n)?);
        let (cos, sin) = (cos.to_dtype(DType::F32)?, sin.to_dtype(DType::F32)?);
        let rotate = |from: usize, heads: usize| {
            let x = qkv.narrow(1, from * head_dim, heads * head_dim)?.to_dtype(DType::F32)?.contiguous()?;
            let x = x.reshape((1, n, heads, head_dim))?.transpose(1, 2)?.contiguous()?; // [1, heads, n, head_dim]
            let x = candle_nn::rotary_emb::rope(&x, &cos, &sin)?;
            x.transpose(1, 2)?.contiguous()?.reshape((n, heads * head_dim))?.to_dtype(dtype)
        };
        keys.write(&rotate(heads, kv_heads)?, first)?;
        values.write(&qkv.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim)?, first)?;
        rotate(0, heads)
    }

    /// Refuses rows of which `n` go to positions `first` and on of a cache, if they do not fit.
    fn check(
        &self,
        qkv: &Tensor,
        heads: usize,
        first: usize,
        n: usize,
        keys: &KvTensor,
        values: &KvTensor,
    ) -> Result<()> {
        let (_, width) = qkv.dims2()?;
        let (kv_heads, head_dim, dtype) = (keys.kv_heads(), keys.head_dim(), qkv.dtype());
        let dense = |kv: &KvTensor| {
            kv.format() == KvFormat::Dense(dtype) && kv.kv_heads() == kv_heads && kv.capacity() == keys.capacity()
        };
        if width != (heads + 2 * kv_heads) * head_dim
            || first + n > self.positions().min(keys.capacity())
            || !dense(keys)
            || !dense(values)
            || self.cos.dtype() != dtype
        {
            let (capacity, table) = (keys.capacity(), self.positions());
            candle_core::bail!(
                "rotation refused: {n} {dtype:?} rows of {width} at {first}, capacity {capacity}, table of {table}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_in_parts_is_rotated_as_at_once_and_as_the_formula_says() {
        let (heads, kv_heads, head_dim, n) = (4, 2, 16, 7);
        let width = (heads + 2 * kv_heads) * head_dim;
        let qkv: Vec<f32> = (0..n * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
        let rows = Tensor::from_vec(qkv.clone(), (n, width), &Device::Cpu).unwrap();
        let table = RopeTable::new(10_000.0, head_dim, 20, DType::F32, &Device::Cpu).unwrap();
        let cache = || KvTensor::new(KvFormat::Dense(DType::F32), kv_heads, 15, head_dim, &Device::Cpu).unwrap();
        let (k, v) = (cache(), cache());
        let q = table.rotate_and_write(&rows, heads, 3, &k, &v).unwrap();
        let q: Vec<Vec<f32>> = q.to_vec2().unwrap();
        let rotated = |token: usize, head: usize, i: usize| {
            let (x, half) = (|i: usize| f64::from(qkv[token * width + head * head_dim + i]), head_dim / 2);
            let angle = (3 + token) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
            let other = if i < half { -x(i + half) } else { x(i - half) };
            (x(i) * angle.cos() + other * angle.sin()) as f32
        };
        let keys: Vec<Vec<Vec<f32>>> = k.dequantize(3..3 + n).unwrap().to_vec3().unwrap();
        let values: Vec<Vec<Vec<f32>>> = v.dequantize(3..3 + n).unwrap().to_vec3().unwrap();
        for (token, q) in q.iter().enumerate() {
            for (i, q) in q.iter().enumerate() {
                assert!((q - rotated(token, i / head_dim, i % head_dim)).abs() < 1e-5);
            }
            for head in 0..kv_heads {
                for i in 0..head_dim {
                    assert!((keys[head][token][i] - rotated(token, heads + head, i)).abs() < 1e-5);
                    let value = qkv[token * width + (heads + kv_heads + head) * head_dim + i];
                    assert_eq!(values[head][token][i], value);
                }
            }
        }
        let (k2, v2) = (cache(), cache());
        for (start, part) in [(4, 3), (0, 4)] {
            table.rotate_and_write(&rows.narrow(0, start, part).unwrap(), heads, 3 + start, &k2, &v2).unwrap();
        }
        let all = |kv: &KvTensor| kv.dequantize(0..15).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((all(&k), all(&v)), (all(&k2), all(&v2)));
        assert!(table.rotate_and_write(&rows, heads, 14, &k, &v).is_err());
    }
}
