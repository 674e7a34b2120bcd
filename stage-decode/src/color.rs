//! YUV to RGB as ffmpeg's swscale does it for `-pix_fmt rgb24` with its default flags.
//!
//! swscale has two paths, and both are followed. 8-bit planar 4:2:0 and 4:2:2 of even height go through its unscaled
//! converter (`libswscale/x86/yuv_2_rgb.asm`): each chroma sample serves its whole block, products are 16-bit with
//! the fraction cut off. Every other format goes through its scaler (`libswscale/utils.c`, `initFilter`): depth reduced to 8
//! bits, chroma interpolated vertically with a bicubic of a = -0.6, and horizontally only if the width is odd.

use gst_video::prelude::*;
use gst_video::{VideoColorMatrix, VideoFormat, VideoFormatFlags, VideoFrameRef};
use gstreamer_video as gst_video;

use crate::picture::Picture;

/// Decoded formats that are converted here; `videoconvert` converts the others first.
pub(crate) const FORMATS: [VideoFormat; 16] = [
    VideoFormat::I420,
    VideoFormat::Y42b,
    VideoFormat::Y444,
    VideoFormat::I42010le,
    VideoFormat::I42210le,
    VideoFormat::Y44410le,
    VideoFormat::I42012le,
    VideoFormat::I42212le,
    VideoFormat::Y44412le,
    VideoFormat::Nv12,
    VideoFormat::Nv21,
    VideoFormat::Yv12,
    VideoFormat::P01010le,
    VideoFormat::Y41b,
    VideoFormat::Gray8,
    VideoFormat::Rgb,
];

/// Coefficients of a matrix: swscale's `ff_yuv2rgb_coeffs` in 16.16 fixed point, for limited range.
fn coefficients(matrix: VideoColorMatrix) -> [i32; 4] {
    // red from V, blue from U, green from U, green from V
    match matrix {
        VideoColorMatrix::Bt709 => [117_489, 138_438, 13_975, 34_925],
        VideoColorMatrix::Fcc => [104_448, 132_798, 24_759, 53_109],
        VideoColorMatrix::Smpte240m => [117_579, 136_230, 16_907, 35_559],
        VideoColorMatrix::Bt2020 => [110_013, 140_363, 12_277, 42_626],
        // BT.601, also where the stream gives no matrix, however large the picture.
        _ => [104_597, 132_201, 25_675, 53_279],
    }
}

/// Conversion from YUV to RGB, by the matrix and range that the stream gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversion {
    pub(crate) matrix: VideoColorMatrix,
    pub(crate) full_range: bool,
}

impl Conversion {
    /// 16.16 factors: luma offset (in luma steps), luma, then as [`coefficients`].
    fn factors(self) -> (i32, i32, [i32; 4]) {
        let limited = coefficients(self.matrix);
        if self.full_range {
            (0, 1 << 16, limited.map(|c| (i64::from(c) * 224 / 255) as i32))
        } else {
            (16, ((1 << 16) * 255) / 219, limited)
        }
    }
}

/// Converter of decoded pictures to RGB; its scratch rows are reused from picture to picture.
#[derive(Default)]
pub(crate) struct Converter {
    rows: [Vec<u8>; 3],
    wide: [Vec<u8>; 2],
}

impl Converter {
    /// Writes the frame as RGB into `out`.
    pub(crate) fn convert(
        &mut self,
        frame: &VideoFrameRef<&gstreamer::BufferRef>,
        conversion: Conversion,
        out: &mut Picture,
    ) {
        let info = frame.format_info();
        let (width, height) = (frame.width() as usize, frame.height() as usize);
        if info.flags().contains(VideoFormatFlags::RGB) {
            return copy_rgb(frame, out);
        }
        let gray = info.n_components() < 3;
        let planes: Vec<Plane<'_>> = (0..info.n_components().min(3)).map(|c| Plane::new(frame, c)).collect();
        let unscaled = height % 2 == 0 && matches!(frame.format(), VideoFormat::I420 | VideoFormat::Y42b);
        let down = (!unscaled && !gray && planes[1].height < height).then(|| taps(planes[1].height, height));
        let across =
            (!unscaled && !gray && width % 2 == 1 && planes[1].width < width).then(|| taps(planes[1].width, width));

        let neutral = vec![128; if gray { width } else { 0 }];
        for (y, target) in out.rows_mut(width, height).enumerate() {
            let [luma, u, v] = &mut self.rows;
            let luma = planes[0].row(y, luma);
            if gray {
                convert_row(conversion, unscaled, [luma, &neutral, &neutral], target);
                continue;
            }
            let u = planes[1].chroma_row(y, height, down.as_deref(), u);
            let v = planes[2].chroma_row(y, height, down.as_deref(), v);
            let [wide_u, wide_v] = &mut self.wide;
            widen(u, width, across.as_deref(), wide_u);
            widen(v, width, across.as_deref(), wide_v);
            convert_row(conversion, unscaled, [luma, wide_u, wide_v], target);
        }
    }
}

/// Component of a picture, at its own resolution.
struct Plane<'a> {
    data: &'a [u8],
    stride: usize,
    step: usize,
    width: usize,
    height: usize,
    /// Number of bits beyond 8; 0 for a byte format.
    excess_bits: u32,
    /// Whether samples have two bytes.
    wide: bool,
}

impl<'a> Plane<'a> {
    fn new(frame: &'a VideoFrameRef<&gstreamer::BufferRef>, component: u32) -> Self {
        let info = frame.format_info();
        let at = component as usize;
        let depth = info.depth()[at];
        Plane {
            data: frame.comp_data(component).expect("the component exists. This is a bug."),
            stride: frame.comp_stride(component) as usize,
            step: frame.comp_pstride(component) as usize,
            width: frame.comp_width(component) as usize,
            height: frame.comp_height(component) as usize,
            excess_bits: depth - 8 + info.shift()[at],
            wide: depth > 8,
        }
    }

    /// A row in 8 bits: borrowed from the picture where its format allows, else in `scratch`.
    fn row<'s>(&self, y: usize, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        let row = &self.data[y * self.stride..];
        if !self.wide && self.step == 1 {
            return &row[..self.width];
        }
        scratch.clear();
        if self.wide {
            let half = 1 << self.excess_bits >> 1;
            let value = |i: usize| u32::from(u16::from_le_bytes([row[i * self.step], row[i * self.step + 1]]));
            scratch.extend((0..self.width).map(|i| ((value(i) + half) >> self.excess_bits).min(255) as u8));
        } else {
            scratch.extend((0..self.width).map(|i| row[i * self.step]));
        }
        scratch
    }

    /// The chroma row for picture row `y` out of `height`: the block's own, or interpolated from four.
    fn chroma_row<'s>(&self, y: usize, height: usize, down: Option<&[Taps]>, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        let Some(down) = down else {
            return self.row(if self.height < height { y / 2 } else { y }, scratch);
        };
        let taps = &down[y];
        let mut sums = vec![0f32; self.width];
        for (source, weight) in taps.sources.iter().zip(taps.weights) {
            let row = self.row(*source, scratch);
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += weight * f32::from(value));
        }
        scratch.clear();
        scratch.extend(sums.iter().map(|&s| s.round() as u8));
        scratch
    }
}

/// Four source samples and their weights.
struct Taps {
    sources: [usize; 4],
    weights: [f32; 4],
}

/// Bicubic taps that take `source` samples to `target`, both centred (swscale `initFilter`, a = -0.6).
fn taps(source: usize, target: usize) -> Vec<Taps> {
    let kernel = |d: f64| {
        let d = d.abs();
        if d < 1.0 {
            (1.4 * d - 2.4) * d * d + 1.0
        } else if d < 2.0 {
            ((-0.6 * d + 3.0) * d - 4.8) * d + 2.4
        } else {
            0.0
        }
    };
    let ratio = source as f64 / target as f64;
    (0..target)
        .map(|i| {
            let at = (i as f64 + 0.5) * ratio - 0.5;
            let first = at.floor() as isize - 1;
            let place = |t: isize| (first + t).clamp(0, source as isize - 1) as usize;
            Taps {
                sources: [0, 1, 2, 3].map(place),
                weights: [0, 1, 2, 3].map(|t| kernel(at - (first + t) as f64) as f32),
            }
        })
        .collect()
}

/// A chroma row at the width of the picture.
fn widen(row: &[u8], width: usize, across: Option<&[Taps]>, wide: &mut Vec<u8>) {
    wide.clear();
    match across {
        Some(taps) => wide.extend(taps.iter().map(|t| {
            let tap = |n: usize| t.weights[n] * f32::from(row[t.sources[n]]);
            (tap(0) + tap(1) + tap(2) + tap(3)).round() as u8
        })),
        None if row.len() < width => {
            let block = width.div_ceil(row.len());
            if block == 2 {
                wide.resize(row.len() * 2, 0);
                wide.as_chunks_mut::<2>().0.iter_mut().zip(row).for_each(|(pair, &v)| *pair = [v, v]);
            } else {
                wide.extend((0..width).map(|x| row[x / block]));
            }
            wide.truncate(width);
        }
        None => wide.extend_from_slice(&row[..width]),
    }
}

fn convert_row(conversion: Conversion, unscaled: bool, yuv: [&[u8]; 3], target: &mut [[u8; 4]]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as just asked.
        return unsafe { convert_row_avx2(conversion, unscaled, yuv, target) };
    }
    convert_row_plain(conversion, unscaled, yuv, target);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn convert_row_avx2(conversion: Conversion, unscaled: bool, yuv: [&[u8]; 3], target: &mut [[u8; 4]]) {
    convert_row_plain(conversion, unscaled, yuv, target);
}

#[inline(always)]
fn convert_row_plain(conversion: Conversion, unscaled: bool, [y, u, v]: [&[u8]; 3], target: &mut [[u8; 4]]) {
    let (offset, luma, chroma) = conversion.factors();
    let byte = |value: i32| value.clamp(0, 255) as u8;
    let rows = target.iter_mut().zip(y).zip(u.iter().zip(v));
    // Bytes times 20-bit factors cannot overflow; without the check the loops run in vectors.
    let times = |a: i32, b: i32| a.wrapping_mul(b);
    if unscaled {
        // Coefficients in 3.13, operands in 13.3: the product's upper 16 bits are whole levels.
        let coefficient = |c: i32| (c + 4) >> 3;
        let (luma, [rv, bu, gu, gv]) = (coefficient(luma), chroma.map(coefficient));
        let level = |value: u8, zero: i32| i32::from(value).wrapping_sub(zero).wrapping_mul(8);
        for ((pixel, &y), (&u, &v)) in rows {
            let (y, u, v) = (times(level(y, offset), luma) >> 16, level(u, 128), level(v, 128));
            let green = (times(u, -gu) >> 16).wrapping_add(times(v, -gv) >> 16);
            *pixel = [
                byte(y.wrapping_add(times(v, rv) >> 16)),
                byte(y.wrapping_add(green)),
                byte(y.wrapping_add(times(u, bu) >> 16)),
                0,
            ];
        }
    } else {
        let [rv, bu, gu, gv] = chroma;
        let level = |value: u8, zero: i32| i32::from(value).wrapping_sub(zero);
        for ((pixel, &y), (&u, &v)) in rows {
            let (y, u, v) = (times(level(y, offset), luma).wrapping_add(1 << 15), level(u, 128), level(v, 128));
            *pixel = [
                byte(y.wrapping_add(times(v, rv)) >> 16),
                byte(y.wrapping_sub(times(u, gu)).wrapping_sub(times(v, gv)) >> 16),
                byte(y.wrapping_add(times(u, bu)) >> 16),
                0,
            ];
        }
    }
}

fn copy_rgb(frame: &VideoFrameRef<&gstreamer::BufferRef>, out: &mut Picture) {
    let components: [Plane<'_>; 3] = [0, 1, 2].map(|c| Plane::new(frame, c));
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    for (y, target) in out.rows_mut(width, height).enumerate() {
        for (x, pixel) in target.iter_mut().enumerate() {
            let [r, g, b] = [0, 1, 2].map(|c: usize| {
                let plane = &components[c];
                plane.data[y * plane.stride + x * plane.step]
            });
            *pixel = [r, g, b, 0];
        }
    }
}
