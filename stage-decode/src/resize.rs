//! Pillow's 8-bit bicubic resampling, bit for bit (MODEL.md 2.2).
//!
//! Source of the formulas: Pillow `src/libImaging/Resample.c`, `precompute_coeffs`, `normalize_coeffs_8bpc` and
//! `ImagingResampleHorizontal_8bpc`: kernel a = -0.5 whose support grows with the reduction, weights in 22-bit fixed
//! point, a horizontal pass and then a vertical one, each rounded to u8. (From release 13 on, Pillow
//! does the vertical pass first where the height shrinks by over twice as many pixels as the width, which changes single
//! levels; the order here is MODEL.md's and that of the releases before.)

use std::rc::Rc;

use protocol::plan::{FRAME_BYTES, FRAME_SIDE};

use crate::picture::Picture;

/// Fractional bits of a weight: 32 bits less 8 of the pixel and 2 of headroom.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Summand that turns truncation of the fraction into rounding.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Number of source sizes whose weights are kept: width and height of a few videos.
const KEPT_SIZES: usize = 8;

/// Number of rows of the horizontal pass that are computed together.
const ROWS: usize = 4;

/// Weights of every output pixel along one axis.
struct Weights {
    /// First source pixel and number of source pixels of each output pixel.
    bounds: Vec<(usize, usize)>,
    /// `taps` fixed-point weights for each output pixel, zero past its count.
    values: Vec<i32>,
    taps: usize,
    /// The same weights for whole vectors; none if the source is narrower than one window.
    pairs: Option<Pairs>,
}

/// Weights two taps at a time, each repeated for the four bytes of its pixel.
struct Pairs {
    /// First source pixel of each output pixel; `count` pairs from there on lie inside the row.
    firsts: Vec<usize>,
    values: Vec<[i32; 8]>,
    count: usize,
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

impl Weights {
    fn new(source: usize, target: usize) -> Self {
        let scale = source as f64 / target as f64;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let taps = support.ceil() as usize * 2 + 1;
        let mut bounds = Vec::with_capacity(target);
        let mut values = vec![0; target * taps];
        let mut exact = Vec::with_capacity(taps);
        for (at, row) in values.chunks_exact_mut(taps).enumerate() {
            let center = (at as f64 + 0.5) * scale;
            // Truncation towards zero, as C's (int), and then the clamp.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            exact.clear();
            exact.extend((first..end).map(|x| bicubic((x as f64 - center + 0.5) * (1.0 / stretch))));
            let sum: f64 = exact.iter().sum();
            for (weight, fixed) in exact.iter().zip(row) {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                let scaled = weight * f64::from(1u32 << PRECISION_BITS);
                *fixed = (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i32;
            }
            bounds.push((first, end - first));
        }
        let mut weights = Weights { bounds, values, taps, pairs: None };
        weights.pairs = weights.paired(source);
        weights
    }

    fn paired(&self, source: usize) -> Option<Pairs> {
        let count = self.bounds.iter().map(|&(_, n)| n).max()?.div_ceil(2);
        let last = source.checked_sub(count * 2)?;
        let mut pairs = Pairs { firsts: Vec::new(), values: vec![[0; 8]; self.bounds.len() * count], count };
        for ((first, weights), row) in self.iter().zip(pairs.values.chunks_exact_mut(count)) {
            // A window that would reach over the row's end starts earlier, with weights of zero.
            let start = first.min(last);
            for (tap, &weight) in (first - start..).zip(weights) {
                row[tap / 2][tap % 2 * 4..][..4].fill(weight);
            }
            pairs.firsts.push(start);
        }
        Some(pairs)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.bounds.iter().zip(self.values.chunks_exact(self.taps)).map(|(&(first, n), w)| (first, &w[..n]))
    }
}

/// Scaler of pictures of any size to 384 x 384; it keeps the weights of recent sizes. One instance per thread.
#[derive(Default)]
pub struct Resizer {
    kept: Vec<(usize, Rc<Weights>)>,
    /// The picture after the horizontal pass: source rows of 384 pixels.
    narrowed: Vec<u8>,
}

impl Resizer {
    /// Scales `picture` into `out`, [`FRAME_BYTES`] long, rows of RGB.
    ///
    /// # Panics
    /// If the picture is empty or `out` has another length: a bug of the caller.
    pub fn resize(&mut self, picture: &Picture, out: &mut [u8]) {
        assert_eq!(out.len(), FRAME_BYTES, "a frame is 384 x 384 RGB. This is a bug.");
        let (width, height) = (picture.width(), picture.height());
        assert!(width > 0 && height > 0, "an empty picture has no pixels to scale. This is a bug.");
        let (across, down) = (self.weights(width), self.weights(height));
        self.narrowed.resize(height * FRAME_SIDE * 3, 0);
        if width == FRAME_SIDE {
            let pixels = picture.rows().flatten();
            for (rgb, pixel) in self.narrowed.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                rgb.copy_from_slice(&pixel[..3]);
            }
        } else {
            let rows: Vec<&[[u8; 4]]> = picture.rows().collect();
            let targets = self.narrowed.chunks_mut(ROWS * FRAME_SIDE * 3);
            for (rows, targets) in rows.chunks(ROWS).zip(targets) {
                narrow_rows(&across, rows, targets);
            }
        }
        if height == FRAME_SIDE {
            out.copy_from_slice(&self.narrowed);
            return;
        }
        for ((first, weights), target) in down.iter().zip(out.chunks_exact_mut(FRAME_SIDE * 3)) {
            let rows = &self.narrowed[first * FRAME_SIDE * 3..];
            mix_rows(weights, rows, target);
        }
    }

    fn weights(&mut self, source: usize) -> Rc<Weights> {
        if let Some((_, weights)) = self.kept.iter().find(|(size, _)| *size == source) {
            return weights.clone();
        }
        if self.kept.len() == KEPT_SIZES {
            self.kept.remove(0);
        }
        let weights = Rc::new(Weights::new(source, FRAME_SIDE));
        self.kept.push((source, weights.clone()));
        weights
    }
}

/// Level of a sum of weighted levels. Sums cannot overflow: weights add up to 1, their absolute values
/// to less than 2, which the two bits of headroom hold. So the loops that add them do without the check.
fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Up to [`ROWS`] rows of the horizontal pass; `targets` are their results, one after the other.
fn narrow_rows(weights: &Weights, rows: &[&[[u8; 4]]], targets: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if let (Some(pairs), Ok(rows)) = (&weights.pairs, rows.try_into())
        && std::arch::is_x86_feature_detected!("avx2")
    {
        // SAFETY: the processor has AVX2, as just asked.
        return unsafe { narrow_rows_avx2(pairs, rows, targets) };
    }
    for (row, target) in rows.iter().zip(targets.chunks_exact_mut(FRAME_SIDE * 3)) {
        for ((first, weights), rgb) in weights.iter().zip(target.as_chunks_mut::<3>().0) {
            let mut sum = [HALF; 4];
            for (weight, pixel) in weights.iter().zip(&row[first..first + weights.len()]) {
                for (sum, value) in sum.iter_mut().zip(pixel) {
                    *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(*value)));
                }
            }
            *rgb = [rounded(sum[0]), rounded(sum[1]), rounded(sum[2])];
        }
    }
}

/// Several rows at once, so that a weight is loaded once for all of them; eight lanes are two pixels. Written out
/// because the compiler does not find the vectors in it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn narrow_rows_avx2(pairs: &Pairs, rows: &[&[[u8; 4]]; ROWS], targets: &mut [u8]) {
    use std::arch::x86_64::{
        _mm_add_epi32, _mm_cvtsi64_si128, _mm_extract_epi32, _mm_set1_epi32, _mm256_add_epi32, _mm256_castsi256_si128,
        _mm256_cvtepu8_epi32, _mm256_extracti128_si256, _mm256_mullo_epi32, _mm256_setr_epi32, _mm256_setzero_si256,
    };
    let half = _mm_set1_epi32(HALF);
    for (x, (&first, weights)) in pairs.firsts.iter().zip(pairs.values.chunks_exact(pairs.count)).enumerate() {
        let [a, b, c, d] = rows.map(|row| row[first..first + 2 * pairs.count].as_flattened().as_chunks::<8>().0);
        let mut sums = [_mm256_setzero_si256(); ROWS];
        for (at, weight) in weights.iter().enumerate() {
            let [w0, w1, w2, w3, w4, w5, w6, w7] = *weight;
            let weight = _mm256_setr_epi32(w0, w1, w2, w3, w4, w5, w6, w7);
            let plus = |sum, pair: [u8; 8]| {
                let pair = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(pair)));
                _mm256_add_epi32(sum, _mm256_mullo_epi32(pair, weight))
            };
            sums = [plus(sums[0], a[at]), plus(sums[1], b[at]), plus(sums[2], c[at]), plus(sums[3], d[at])];
        }
        for (row, sum) in sums.into_iter().enumerate() {
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, half);
            let at = (row * FRAME_SIDE + x) * 3;
            targets[at] = rounded(_mm_extract_epi32::<0>(sum));
            targets[at + 1] = rounded(_mm_extract_epi32::<1>(sum));
            targets[at + 2] = rounded(_mm_extract_epi32::<2>(sum));
        }
    }
}

/// One row of the vertical pass: the weighted sum of consecutive rows, starting with the first of `rows`.
fn mix_rows(weights: &[i32], rows: &[u8], target: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as just asked.
        return unsafe { mix_rows_avx2(weights, rows, target) };
    }
    mix_rows_plain(weights, rows, target);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn mix_rows_avx2(weights: &[i32], rows: &[u8], target: &mut [u8]) {
    mix_rows_plain(weights, rows, target);
}

#[inline(always)]
fn mix_rows_plain(weights: &[i32], rows: &[u8], target: &mut [u8]) {
    // Sums of this many values stay in registers over all rows.
    const BLOCK: usize = 64;
    let stride = target.len();
    for (block, target) in target.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let mut sum = [HALF; BLOCK];
        for (at, weight) in weights.iter().enumerate() {
            let from = at * stride + block * BLOCK;
            for (sum, value) in sum.iter_mut().zip(&rows[from..from + BLOCK]) {
                *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(*value)));
            }
        }
        for (value, sum) in target.iter_mut().zip(sum) {
            *value = rounded(sum);
        }
    }
}
