//! Check of every kernel family against its twin on the CPU: the self-test at start, and the parity test on a GPU.
//!
//! A kernel that was built for another GPU may return garbage without any error, as quantized matmuls of sm_89 did on
//! sm_90, and wrong tokens look like tokens. Inputs are small and awkward: lengths that fill no tile, windows whose edge
//! lies within one.

use candle_core::{DType, Device, Result, Tensor};
use compute::kernels::check::Check;
use compute::random::Draws;

use crate::language::attention::segments::attend_segments;
use crate::language::attention::{Queries, Scoring, Segment, Visible};
use crate::language::choose::{NO_TOKEN, first_largest, soft_cap};
use crate::language::fold::fold_heads;
use crate::language::kv::{KvFormat, KvTensor};
use crate::language::quantized::{BlockFormat, Blocks, WeightMatrix};
use crate::language::rope::RopeTable;

mod each;
mod few_rows;

/// Result of every family of kernels on `device` in `dtype`, compared with its twin on the CPU.
pub fn check(device: &Device, dtype: DType) -> Vec<Check> {
    let mut checks = Checks { device, dtype, draws: Draws::default(), outcomes: Vec::new() };
    let outcome = checks
        .cache()
        .and_then(|()| checks.rotation())
        .and_then(|()| checks.attention())
        .and_then(|()| checks.several_texts())
        .and_then(|()| checks.weights())
        .and_then(|()| checks.few_rows())
        .and_then(|()| checks.folding())
        .and_then(|()| checks.choosing());
    if let Err(error) = outcome {
        let name = "kernels of the language model".to_owned();
        checks.outcomes.push(Check {
            name,
            error: f64::NAN,
            tolerance: 0.0,
            ok: false,
            failure: Some(error.to_string()),
        });
    }
    checks.outcomes
}

/// Soft cap of the 9B model's scores; those of the 7B model have none.
const CAP: Option<f64> = Some(50.0);

const FORMATS: [(KvFormat, &str); 2] = [(KvFormat::Q8, "q8"), (KvFormat::Q4, "q4")];

struct Checks<'a> {
    device: &'a Device,
    dtype: DType,
    draws: Draws,
    outcomes: Vec<Check>,
}

impl Checks<'_> {
    /// Random rows on the CPU, rounded to the type.
    fn rows(&self, n: usize, width: usize) -> Result<Tensor> {
        self.draws.normal((n, width))?.to_dtype(self.dtype)
    }

    /// Bound for results of 16 bits, given that for bf16: f16 has three bits more.
    fn bound(&self, bf16: f32) -> f32 {
        match self.dtype {
            DType::BF16 => bf16,
            DType::F16 => bf16 / 4.0,
            _ => 2e-5,
        }
    }

    fn compare(&mut self, name: String, got: &Tensor, exact: &Tensor, bound: f32) -> Result<()> {
        let got = got.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let exact = exact.to_dtype(DType::F32)?;
        let rms = |t: &Tensor| t.sqr()?.mean_all()?.to_scalar::<f32>();
        let error = (rms(&(&got - &exact)?)? / rms(&exact)?.max(f32::MIN_POSITIVE)).sqrt();
        let (error, tolerance) = (f64::from(error), f64::from(bound));
        let name = format!("{name}, {}", self.dtype.as_str());
        // NaN is not within any bound.
        self.outcomes.push(Check { name, error, tolerance, ok: error <= tolerance, failure: None });
        Ok(())
    }

    /// Caches with the same rows on the CPU and on the device, with a capacity of `spare` more tokens.
    fn caches(&self, format: KvFormat, heads: usize, rows: &Tensor, spare: usize) -> Result<(KvTensor, KvTensor)> {
        let (n, width) = rows.dims2()?;
        let new = |device: &Device| KvTensor::new(format, heads, n + spare, width / heads, device);
        let (here, there) = (new(&Device::Cpu)?, new(self.device)?);
        here.write(rows, 0)?;
        there.write(&rows.to_device(self.device)?, 0)?;
        Ok((here, there))
    }

    fn cache(&mut self) -> Result<()> {
        for (heads, width) in [(2, 256), (3, 128), (3, 40)] {
            for (format, name) in FORMATS.into_iter().chain([(KvFormat::Dense(self.dtype), "dense")]) {
                // Columns of a wider matrix, at an odd offset.
                let wide = self.rows(77, 2 * heads * width)?;
                let columns = |t: &Tensor| t.narrow(1, heads * width, heads * width);
                let new = |device: &Device| KvTensor::new(format, heads, 90, width, device);
                let (here, there) = (new(&Device::Cpu)?, new(self.device)?);
                here.write(&columns(&wide)?, 5)?;
                there.write(&columns(&wide.to_device(self.device)?)?, 5)?;
                // A quotient that lies on the edge may round either way.
                let bound = if name == "dense" { 0.0 } else { 2e-3 };
                let (got, exact) = (there.dequantize(0..90)?, here.dequantize(0..90)?);
                self.compare(format!("cache write, {name}, heads of {width}"), &got, &exact, bound)?;
            }
        }
        Ok(())
    }

    fn rotation(&mut self) -> Result<()> {
        for (heads, kv_heads, width) in [(4, 2, 256), (8, 2, 128), (2, 1, 24)] {
            let qkv = self.rows(19, (heads + 2 * kv_heads) * width)?;
            let format = KvFormat::Dense(self.dtype);
            let mut outcomes = Vec::new();
            for device in [&Device::Cpu, self.device] {
                let table = RopeTable::new(10_000.0, width, 40, self.dtype, device)?;
                let new = || KvTensor::new(format, kv_heads, 30, width, device);
                let (k, v) = (new()?, new()?);
                let q = table.rotate_and_write(&qkv.to_device(device)?, heads, 7, &k, &v)?;
                let all = [q, k.dequantize(0..30)?, v.dequantize(0..30)?];
                let all = all.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
                outcomes.push(Tensor::cat(&all, 0)?.to_device(&Device::Cpu)?);
            }
            let bound = self.bound(1e-3);
            self.compare(format!("rotation, heads of {width}"), &outcomes[1], &outcomes[0], bound)?;
        }
        Ok(())
    }

    fn attention(&mut self) -> Result<()> {
        let dense = (KvFormat::Dense(self.dtype), "16 bit");
        // Heads, kv heads, width; queries; text before them, image and audio tokens; window.
        let decode = [(1, 38, 300, 77, None), (1, 90, 1_001, 0, Some(33)), (3, 61, 130, 17, Some(20))];
        let prompt = [(5, 0, 100, 33, None), (50, 0, 270, 31, Some(30)), (300, 17, 65, 40, Some(100))];
        for (format, name) in FORMATS.into_iter().chain([dense]) {
            // A cache of 4 bits is expanded with offsets that bf16 rounds: a tenth of the quantization's own error.
            let bound = self.bound(if format == KvFormat::Q4 { 0.02 } else { 0.008 });
            for case in decode.into_iter().chain(prompt) {
                self.attend(format, name, (4, 2, 256), CAP, case, bound)?;
                self.attend(format, name, (8, 2, 128), None, case, bound)?;
            }
            // Two tokens of four query heads: as many rows as the kernel for decoding takes.
            self.attend(format, name, (8, 2, 128), CAP, (2, 61, 130, 17, Some(20)), bound)?;
            self.attend(format, name, (8, 1, 256), None, (1, 4, 70, 3, None), bound)?;
            self.attend(format, name, (4, 2, 40), CAP, (6, 9, 50, 21, Some(8)), bound)?;
            self.attend(format, name, (4, 1, 40), None, (6, 9, 50, 21, None), bound)?;
        }
        Ok(())
    }

    fn attend(
        &mut self,
        format: KvFormat,
        name: &str,
        (heads, kv_heads, width): (usize, usize, usize),
        cap: Option<f64>,
        (n, before, image, audio, window): (usize, usize, usize, usize, Option<usize>),
        bound: f32,
    ) -> Result<()> {
        let scoring = Scoring { scale: (width as f64).powf(-0.5), cap };
        // Scores of a few units, so that weights are far from even.
        let (rotated, plain) = ((self.rows(n, heads * width)? * 2.0)?, (self.rows(n, heads * width)? * 2.0)?);
        let mut kept = Vec::new();
        for (i, len) in [before + n, image, audio].into_iter().enumerate().filter(|(_, len)| *len > 0) {
            let format = if i == 0 { KvFormat::Dense(self.dtype) } else { format };
            let (k, v) = (self.rows(len, kv_heads * width)?, self.rows(len, kv_heads * width)?);
            let visible = if i == 0 { Visible::Causal { first: before, window } } else { Visible::All };
            kept.push((self.caches(format, kv_heads, &k, 9)?, self.caches(format, kv_heads, &v, 9)?, len, visible));
        }
        let mut outcomes = Vec::new();
        for device in [&Device::Cpu, self.device] {
            let segments: Vec<Segment<'_>> = kept
                .iter()
                .map(|(k, v, len, visible)| {
                    let (keys, values) = if device.is_cpu() { (&k.0, &v.0) } else { (&k.1, &v.1) };
                    Segment { keys, values, len: *len, visible: *visible }
                })
                .collect();
            let (rotated, plain) = (rotated.to_device(device)?, plain.to_device(device)?);
            outcomes.push(attend_segments(Queries { rotated: &rotated, plain: &plain }, &segments, scoring)?);
        }
        let name = format!(
            "attention, {name}, {n} queries over {before} + {image} + {audio}, window {}, {heads}/{kv_heads} x {width}, cap {}",
            window.unwrap_or(0),
            cap.unwrap_or(0.0)
        );
        self.compare(name, &outcomes[1], &outcomes[0], bound)
    }

    fn folding(&mut self) -> Result<()> {
        for (rows, kv_heads, group, width) in [(37, 2, 2, 256), (37, 2, 4, 128), (5, 3, 4, 8)] {
            let weight = self.rows(rows, kv_heads * group * width)?;
            let exact = fold_heads(&weight, kv_heads, width)?;
            let got = fold_heads(&weight.to_device(self.device)?, kv_heads, width)?;
            // Sums of two to four numbers in f32, rounded once: in another order, a rounding may turn.
            let bound = self.bound(1e-3);
            self.compare(format!("folding of {group} heads of {width}"), &got, &exact, bound)?;
        }
        Ok(())
    }

    fn choosing(&mut self) -> Result<()> {
        // The largest logit twice, at the ends of different threads' shares; and a vocabulary that fills no block.
        for (n, cap, largest) in
            [(256_000, Some(30.0), [77_777, 255_999]), (32_768, None, [1, 32_767]), (1_001, Some(30.0), [0, 1_000])]
        {
            let z = (self.rows(1, n)? * 20.0)?;
            let (here, there) = (soft_cap(&z, cap)?, soft_cap(&z.to_device(self.device)?, cap)?);
            let bound = self.bound(1e-3);
            self.compare(format!("soft-capping of {n} logits, cap {}", cap.unwrap_or(0.0)), &there, &here, bound)?;
            let mut logits = here.flatten_all()?.to_vec1::<f32>()?;
            for at in largest {
                logits[at] = 1_000.0;
            }
            let mut got = Vec::new();
            for not_a_number in [None, Some(n / 3)] {
                if let Some(at) = not_a_number {
                    logits[at] = f32::NAN;
                }
                let there = Tensor::new(logits.as_slice(), self.device)?;
                got.push(first_largest(&there)?.to_dtype(DType::F32)?.to_vec1::<f32>()?[0]);
            }
            // Rows of several texts: the first of all, and one that has a number that is none.
            let two = Tensor::new(logits.as_slice(), &Device::Cpu)?;
            let two = Tensor::stack(&[here.flatten_all()?, two], 0)?;
            let ids = |rows: &Tensor| first_largest(rows)?.to_dtype(DType::F32);
            let (there, exact) = (ids(&two.to_device(self.device)?)?, ids(&two)?);
            self.compare(format!("first largest of two rows of {n} logits"), &there, &exact, 0.0)?;
            let exact = Tensor::new(&[largest[0] as f32, NO_TOKEN as f32], &Device::Cpu)?;
            self.compare(format!("first largest of {n} logits"), &Tensor::new(got, &Device::Cpu)?, &exact, 0.0)?;
        }
        Ok(())
    }

    fn weights(&mut self) -> Result<()> {
        for (format, bf16) in [
            (None, 0.008),
            (Some(BlockFormat::Q8_0), 0.008),
            (Some(BlockFormat::Q4K), 0.02),
            (Some(BlockFormat::Q6K), 0.008),
        ] {
            let (rows, cols) = (139, 768);
            let name = format.map_or("dense".to_owned(), |f| format!("{f:?}"));
            let (here, there) = match format {
                None => {
                    let w = self.rows(rows, cols)?;
                    (WeightMatrix::Dense(w.clone()), WeightMatrix::Dense(w.to_device(self.device)?))
                }
                Some(format) => {
                    let values: Vec<f32> = self.draws.normal(rows * cols)?.to_vec1()?;
                    let bytes = format.quantize(&values, cols)?;
                    let on =
                        |device: &Device| Blocks::new(format, rows, cols, &bytes, device).map(WeightMatrix::Blocks);
                    (on(&Device::Cpu)?, on(self.device)?)
                }
            };
            let exact = match &here {
                WeightMatrix::Dense(w) => w.to_dtype(DType::F32)?,
                WeightMatrix::Blocks(b) => b.dequantize(0..rows, DType::F32)?,
            };
            let bound = self.bound(bf16);
            for m in [1, 3, 8, 20, 70] {
                let x = self.rows(m, cols)?;
                let y = there.forward(&x.to_device(self.device)?)?;
                let expected = x.to_dtype(DType::F32)?.matmul(&exact.t()?)?;
                self.compare(format!("matmul of {m} rows, {name}"), &y, &expected, bound)?;
            }
            if self.dtype == DType::BF16 {
                // Blocks are expanded to f32 before they are quantized again: the codes are the CPU's, but for a few
                // that lie on an edge.
                let got = there.e4m3(3..rows - 8)?.expanded()?;
                self.compare(format!("E4M3 of {name}"), &got, &here.e4m3(3..rows - 8)?.expanded()?, 2e-3)?;
            }
            let ids = Tensor::new(&[138u32, 0, 77, 138], &Device::Cpu)?;
            let got = there.gather(&ids.to_device(self.device)?, self.dtype, 59.866_52)?;
            let expected = here.gather(&ids, self.dtype, 59.866_52)?;
            let bound = self.bound(0.003);
            self.compare(format!("embedding, {name}"), &got, &expected, bound)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_in_every_type() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for outcome in check(&Device::Cpu, dtype) {
                assert!(outcome.ok, "{outcome}");
            }
        }
    }
}
