//! Key or value of one head and one token in 8 or 4 bits.
//!
//! Group sizes and symmetry come from the measured error of attention's output (`kv::tests` prints it): at 8 bits a
//! group of 64 with one scale is within a tenth of groups of 32; at 4 bits a group of 32 with its own zero beats a
//! symmetric one by a third where a few channels stand out, as they do in keys.

use half::f16;

/// Number of values that share a scale at 8 bits: 8.25 bits a value in total.
pub const GROUP_8: usize = 64;
/// Number of values that share a scale and a zero at 4 bits: 4.5 bits a value in total.
pub const GROUP_4: usize = 32;

/// Largest finite f16 whose four lowest bits are free.
const LARGEST_SCALE: u16 = 0x7BF0;

/// Quantization to signed bytes and one f16 scale a group: `value = byte * scale`.
pub fn encode_8(values: &[f32], bytes: &mut [u8], scales: &mut [u16]) {
    let groups = values.chunks(GROUP_8).zip(bytes.chunks_mut(GROUP_8)).zip(scales);
    for ((values, bytes), scale) in groups {
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let rounded = f16::from_f32((largest / 127.0).min(65_504.0));
        *scale = rounded.to_bits();
        let s = rounded.to_f32();
        for (byte, v) in bytes.iter_mut().zip(values) {
            let q = if s == 0.0 { 0.0 } else { (v / s).round_ties_even().clamp(-127.0, 127.0) };
            *byte = q as i8 as u8;
        }
    }
}

/// Inverse of [`encode_8`].
pub fn decode_8(bytes: &[u8], scales: &[u16], values: &mut [f32]) {
    let groups = values.chunks_mut(GROUP_8).zip(bytes.chunks(GROUP_8)).zip(scales);
    for ((values, bytes), &scale) in groups {
        let s = f16::from_bits(scale).to_f32();
        values.iter_mut().zip(bytes).for_each(|(v, &b)| *v = f32::from(b as i8) * s);
    }
}

/// Quantization to nibbles, eight to a little-endian word, and 16 bits a group: an f16 scale whose four lowest mantissa
/// bits hold the zero instead. `value = (nibble - zero) * scale`. In a word, value 2i is at bit 4i and value 2i + 1 at
/// bit 16 + 4i: one shift and one mask give a pair of neighbours, each in a 16-bit lane of its own.
pub fn encode_4(values: &[f32], bytes: &mut [u8], scales: &mut [u16]) {
    let groups = values.chunks(GROUP_4).zip(bytes.chunks_mut(GROUP_4 / 2)).zip(scales);
    for ((values, bytes), scale) in groups {
        // Zero stays exact: the range always spans it.
        let (low, high) = values.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
        let nearest = f16::from_f32(((high - low) / 15.0).min(65_504.0)).to_bits();
        let bits = ((nearest + 8) & 0xFFF0).min(LARGEST_SCALE);
        let s = f16::from_bits(bits).to_f32();
        let zero = if s == 0.0 { 0.0 } else { (-low / s).round_ties_even().clamp(0.0, 15.0) };
        *scale = bits | zero as u16;
        for (values, word) in values.chunks(8).zip(bytes.chunks_exact_mut(4)) {
            let mut packed = 0u32;
            for (i, v) in values.iter().enumerate() {
                let q = if s == 0.0 { 0.0 } else { ((v / s).round_ties_even() + zero).clamp(0.0, 15.0) };
                packed |= (q as u32) << nibble(i);
            }
            word.copy_from_slice(&packed.to_le_bytes());
        }
    }
}

/// Inverse of [`encode_4`].
pub fn decode_4(bytes: &[u8], scales: &[u16], values: &mut [f32]) {
    let groups = values.chunks_mut(GROUP_4).zip(bytes.chunks(GROUP_4 / 2)).zip(scales);
    for ((values, bytes), &scale) in groups {
        let (s, zero) = (f16::from_bits(scale & 0xFFF0).to_f32(), f32::from(scale & 15));
        for (values, word) in values.chunks_mut(8).zip(bytes.chunks_exact(4)) {
            let packed = u32::from_le_bytes(word.try_into().expect("chunks of four bytes. This is a bug."));
            for (i, v) in values.iter_mut().enumerate() {
                *v = ((packed >> nibble(i) & 15) as f32 - zero) * s;
            }
        }
    }
}

/// Bit at which value `i` of a word begins.
fn nibble(i: usize) -> usize {
    4 * (i / 2) + 16 * (i % 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_comes_back_within_half_a_step(
            values in proptest::collection::vec(-300f32..300.0, 1..20).prop_map(|v| {
                v.iter().cycle().take(8 * v.len()).copied().collect::<Vec<_>>()
            }),
        ) {
            let n = values.len();
            let (mut bytes, mut scales, mut back) = (vec![0; n], vec![0; n.div_ceil(GROUP_8)], vec![0.0; n]);
            encode_8(&values, &mut bytes, &mut scales);
            decode_8(&bytes, &scales, &mut back);
            for (group, back) in values.chunks(GROUP_8).zip(back.chunks(GROUP_8)) {
                let largest = group.iter().fold(0f32, |m, v| m.max(v.abs()));
                // Half a step, and what rounding the scale to 11 bits clips at the end of the range.
                let most = largest / 127.0 * 0.5 + largest / 2048.0;
                prop_assert!(group.iter().zip(back).all(|(a, b)| (a - b).abs() <= most));
            }
            let (mut bytes, mut scales, mut back) = (vec![0; n / 2], vec![0; n.div_ceil(GROUP_4)], vec![0.0; n]);
            encode_4(&values, &mut bytes, &mut scales);
            decode_4(&bytes, &scales, &mut back);
            for (group, back) in values.chunks(GROUP_4).zip(back.chunks(GROUP_4)) {
                let (low, high) = group.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
                // The zero is rounded as well, and the scale to 7 bits.
                let most = (high - low) * (1.0 / 15.0 + 1.0 / 128.0);
                prop_assert!(group.iter().zip(back).all(|(a, b)| (a - b).abs() <= most));
            }
        }
    }

    #[test]
    fn zeros_and_the_largest_values_survive() {
        for values in [[0f32; 32], [1e9; 32], [-1e9; 32], [1e-9; 32]] {
            let (mut bytes, mut scales, mut back) = ([0; 32], [0; 1], [1f32; 32]);
            encode_8(&values, &mut bytes, &mut scales);
            decode_8(&bytes, &scales, &mut back);
            assert!(back.iter().all(|v| v.is_finite() && v.abs() <= values[0].abs()));
            encode_4(&values, &mut bytes[..16], &mut scales);
            decode_4(&bytes[..16], &scales, &mut back);
            assert!(back.iter().all(|v| v.is_finite() && v.abs() <= values[0].abs()));
        }
    }
}
