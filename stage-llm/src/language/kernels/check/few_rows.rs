//! Check of products of a few rows and a matrix in blocks, in every grid that they have: columns in slices or not, one tile of
//! outputs a warp or two.

use candle_core::{DType, Device, Result, Tensor};

use super::Checks;
use crate::language::quantized::{BlockFormat, Blocks, WeightMatrix};

impl Checks<'_> {
    pub(super) fn few_rows(&mut self) -> Result<()> {
        for (format, bf16) in [(BlockFormat::Q8_0, 0.008), (BlockFormat::Q4K, 0.02), (BlockFormat::Q6K, 0.008)] {
            let bound = self.bound(bf16);
            // Nine units of columns are three slices, the last of one unit.
            self.rows_by_blocks(format, (139, 139, 2_304), &[2, 8, 9, 16, 17, 32, 41], bound)?;
        }
        // So many outputs that a warp has two tiles of them; the last group of 16 tiles has but one.
        let bound = self.bound(0.02);
        self.rows_by_blocks(BlockFormat::Q4K, (64, 24_592, 256), &[5, 12, 32], bound)
    }

    /// Products of so many rows each and a matrix `[outputs, inputs]`, of whose rows the first `different` repeat.
    fn rows_by_blocks(
        &mut self,
        format: BlockFormat,
        (different, outputs, inputs): (usize, usize, usize),
        rows: &[usize],
        bound: f32,
    ) -> Result<()> {
        let values: Vec<f32> = self.draws.normal(different * inputs)?.to_vec1()?;
        let some = format.quantize(&values, inputs)?;
        let row_bytes = some.len() / different;
        let all: Vec<u8> = some.iter().copied().cycle().take(outputs * row_bytes).collect();
        let there = WeightMatrix::Blocks(Blocks::new(format, outputs, inputs, &all, self.device)?);
        let exact =
            Blocks::new(format, different, inputs, &some, &Device::Cpu)?.dequantize(0..different, DType::F32)?;
        for &m in rows {
            let x = self.rows(m, inputs)?;
            let y = there.forward(&x.to_device(self.device)?)?;
            let once = x.to_dtype(DType::F32)?.matmul(&exact.t()?)?; // [m, different]
            let repeated = Tensor::cat(&vec![once; outputs.div_ceil(different)], 1)?.narrow(1, 0, outputs)?;
            self.compare(format!("matmul of {m} rows, {outputs} x {inputs}, {format:?}"), &y, &repeated, bound)?;
        }
        Ok(())
    }
}
