//! The frequencies of the position sinusoid (MODEL.md 6), bit for bit as the golden values have them.
//!
//! Places reach 9999, so one frequency that is rounded to its other neighbour turns its angle by up to 6e-4 rad, and
//! an embedding is off by up to 4e-5 of itself: more than everything else together. The oracle's `exp` is that of the
//! vector library under torch, which misses the nearest value once in a hundred, and on an AMD processor at other
//! places than on an Intel one. [`exp`] misses it where the latter does, on which the golden values were made; where
//! another host's oracle does, `parity` finds out.

use std::f64::consts::LN_2;

/// Parts that an octave is cut into.
const PARTS: f64 = 32.0;
/// Coefficients of the square and the cube of what is left within a part, found by matching torch 2.15 on an Intel
/// processor with AVX-512: of the frequencies of all even widths up to 4096, 147 in 2.1 million differ, and none at 3584 and 4096.
const SQUARE: f32 = 0.500_014_84;
const CUBE: f32 = 0.166_661_22;

/// Frequencies of `width / 2` pairs, falling from 1 to almost 1/10000. Argument and factor are rounded to f32.
pub fn frequencies(width: usize) -> Vec<f32> {
    let step = -(10_000f64.ln() / width as f64) as f32;
    (0..width / 2).map(|j| exp((2 * j) as f32 * step)).collect()
}

/// e to the power of `x`: the power of two at the start of the part that `x` lies in, from a table in two floats, and a
/// cubic for the rest. Within 0.55 of an ulp.
fn exp(x: f32) -> f32 {
    let part = LN_2 / PARTS;
    let (high, low) = (part as f32, (part - f64::from(part as f32)) as f32);
    let parts = (f64::from(x) / part).floor();
    let count = parts as f32;
    let rest = (-count).mul_add(low, (-count).mul_add(high, x));
    let within = parts.rem_euclid(PARTS);
    let start = (within / PARTS).exp2();
    let head = start as f32;
    let tail = (f64::from((start - f64::from(head)) as f32) / f64::from(head)) as f32;
    let grown = CUBE.mul_add(rest, SQUARE).mul_add(rest * rest, rest + tail);
    head.mul_add(grown, head) * 2f32.powi(((parts - within) / PARTS) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frequency_is_within_a_unit_in_the_last_place_of_the_exact_one() {
        for width in [2, 64, 160, 3584, 4096] {
            let step = -(10_000f64.ln() / width as f64) as f32;
            let frequencies = frequencies(width);
            assert_eq!((frequencies.len(), frequencies[0]), (width / 2, 1.0));
            for (j, &got) in frequencies.iter().enumerate() {
                let exact = f64::from((2 * j) as f32 * step).exp();
                let ulp = f64::from(got.next_up()) - f64::from(got);
                assert!((f64::from(got) - exact).abs() < 0.55 * ulp, "width {width}, pair {j}: {got} {exact}");
            }
        }
    }

    #[test]
    fn the_oracles_roundings_are_met_where_they_are_not_the_nearest() {
        // Pairs at which torch.exp(torch.arange(0, width, 2) * -(ln 10000 / width)) is not the nearest value.
        let nearest = |width: usize, j: usize| {
            let step = -(10_000f64.ln() / width as f64) as f32;
            f64::from((2 * j) as f32 * step).exp() as f32
        };
        for (width, j) in TORCH_ROUNDS_AWAY {
            assert_ne!(frequencies(width)[j], nearest(width, j), "width {width}, pair {j}");
        }
    }

    const TORCH_ROUNDS_AWAY: [(usize, usize); 5] = [(64, 11), (128, 22), (160, 1), (256, 13), (3584, 40)];
}
