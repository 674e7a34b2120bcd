//! Layout of blocks in GPU memory: units of 16 rows by 256 columns, in which the operands of a thread lie together
//! (kernels/blocks.cuh). The bits are GGUF's; they are rearranged here, on the way to the GPU, so that nothing but the
//! result is allocated there.

use candle_core::Result;
use rayon::prelude::*;

use super::format::{BlockFormat, UNIT_ROWS as ROWS};

/// Number of columns of a unit.
const COLUMNS: usize = 256;

impl BlockFormat {
    /// Bytes of a unit: those of its blocks, in another order.
    pub(super) fn unit_bytes(self) -> usize {
        ROWS * COLUMNS / self.block_values() * self.ggml().type_size()
    }

    /// Offset in its unit of byte `i` of a block in row `row` that begins at column `column` there.
    fn place(self, row: usize, column: usize, i: usize) -> usize {
        // 16 bytes of each of a piece's 32 lanes: part t of row g is lane 4 g + t's.
        let piece = |p: usize, t: usize| p * 512 + (row % 8 * 4 + t) * 16;
        match self {
            BlockFormat::Q8_0 => match i.checked_sub(2) {
                None => 4096 + (row * 8 + column / 32) * 2 + i,
                Some(value) => {
                    let group = column / 32;
                    piece(row / 8 * 4 + group / 2, value / 8) + group % 2 * 8 + value % 8
                }
            },
            BlockFormat::Q4K => match i.checked_sub(16) {
                None => row * 16 + i,
                Some(byte) => {
                    let run = byte / 32;
                    256 + piece(row / 8 * 2 + run / 2, byte % 32 / 8) + run % 2 * 8 + byte % 8
                }
            },
            BlockFormat::Q6K => {
                let part = |l: usize| l / 16 * 4 + l % 4;
                match i {
                    0..128 => {
                        let (half, b, l) = (i / 64, i % 64 / 32, i % 32);
                        piece(row / 8 * 2 + half, l % 16 / 4) + b * 8 + part(l)
                    }
                    128..192 => {
                        let (half, l) = ((i - 128) / 32, i % 32);
                        2048 + piece(row / 8, l % 16 / 4) + half * 8 + part(l)
                    }
                    192..208 => 3072 + row * 16 + i - 192,
                    _ => 3328 + row * 2 + i - 208,
                }
            }
        }
    }
}

/// Units made from rows of `columns` values in GGUF's blocks, with zeros where the matrix ends within a unit.
///
/// # Errors
/// Rows that are not whole blocks.
pub fn in_units(format: BlockFormat, blocks: &[u8], columns: usize) -> Result<Vec<u8>> {
    let (row_bytes, block_bytes, unit_bytes) =
        (format.row_bytes(columns)?, format.ggml().type_size(), format.unit_bytes());
    let blocks_across = COLUMNS / format.block_values();
    // Two bytes at a time: pairs stay together.
    let places: Vec<usize> = (0..ROWS)
        .flat_map(|row| (0..blocks_across).map(move |block| (row, block * format.block_values())))
        .flat_map(|(row, column)| (0..block_bytes).step_by(2).map(move |i| format.place(row, column, i)))
        .collect();
    let across = columns.div_ceil(COLUMNS);
    let mut units = vec![0; (blocks.len() / row_bytes).div_ceil(ROWS) * across * unit_bytes];
    let tiles = units.par_chunks_mut(across * unit_bytes).zip(blocks.par_chunks(ROWS * row_bytes));
    tiles.for_each(|(units, rows)| {
        for (row, blocks) in rows.chunks_exact(row_bytes).enumerate() {
            let of_row = &places[row * blocks_across * block_bytes / 2..][..blocks_across * block_bytes / 2];
            for (unit, blocks) in units.chunks_exact_mut(unit_bytes).zip(blocks.chunks(blocks_across * block_bytes)) {
                for (pair, &to) in blocks.chunks_exact(2).zip(of_row) {
                    unit[to..to + 2].copy_from_slice(pair);
                }
            }
        }
    });
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q6K];

    #[test]
    fn every_byte_of_a_unit_has_a_place_of_its_own_and_its_pair_beside_it() {
        for format in FORMATS {
            let mut taken = vec![false; format.unit_bytes()];
            for (row, column) in
                (0..ROWS).flat_map(|r| (0..COLUMNS).step_by(format.block_values()).map(move |c| (r, c)))
            {
                for i in 0..format.ggml().type_size() {
                    let at = format.place(row, column, i);
                    assert!(!std::mem::replace(&mut taken[at], true), "{format:?} {row} {column} {i}");
                    assert_eq!(at, format.place(row, column, i / 2 * 2) + i % 2, "{format:?} {row} {column} {i}");
                }
            }
            assert!(taken.iter().all(|&t| t), "{format:?}");
        }
    }

    #[test]
    fn a_matrix_that_ends_within_a_unit_is_filled_up_with_zeros() {
        for (format, columns) in FORMATS.into_iter().zip([3 * 32, 2 * 256, 256]) {
            let (rows, row_bytes) = (21, format.row_bytes(columns).unwrap());
            let blocks: Vec<u8> = (0..rows * row_bytes).map(|i| (i % 251 + 1) as u8).collect();
            let units = in_units(format, &blocks, columns).unwrap();
            assert_eq!(units.len(), 2 * columns.div_ceil(COLUMNS) * format.unit_bytes());
            let across = columns.div_ceil(COLUMNS);
            let mut found = 0;
            for (n, &byte) in blocks.iter().enumerate() {
                let (row, block) = (n / row_bytes, n % row_bytes / format.ggml().type_size());
                let column = block * format.block_values();
                let unit = row / ROWS * across + column / COLUMNS;
                let at = format.place(row % ROWS, column % COLUMNS, n % format.ggml().type_size());
                assert_eq!(units[unit * format.unit_bytes() + at], byte, "{format:?} {n}");
                found += 1;
            }
            assert_eq!(units.iter().filter(|&&b| b != 0).count(), found, "{format:?}");
        }
    }
}
