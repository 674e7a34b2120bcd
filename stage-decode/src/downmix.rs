//! Downmix of any channel layout to mono, as `ffmpeg -ac 1` does it.
//!
//! Source of the weights: `libswresample/rematrix.c`, `auto_matrix` with its default mix levels: fronts -3 dB, centre
//! 0 dB, surrounds -6 dB, LFE left out, and everything scaled down if the weights sum up to more than 1.

use std::f32::consts::FRAC_1_SQRT_2;

use gstreamer_audio::{AudioChannelPosition, AudioInfo};

use AudioChannelPosition as Position;

/// Weights of the channels in a mono sum.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Downmix {
    weights: Vec<f32>,
}

/// ffmpeg's layout for channels without positions (`av_channel_layout_default`).
fn default_layout(channels: usize) -> &'static [Position] {
    use Position::{FrontCenter, FrontLeft, FrontRight, Lfe1, RearCenter, RearLeft, RearRight, SideLeft, SideRight};
    match channels {
        1 => &[FrontCenter],
        2 => &[FrontLeft, FrontRight],
        3 => &[FrontLeft, FrontRight, Lfe1],
        4 => &[FrontLeft, FrontRight, FrontCenter, RearCenter],
        5 => &[FrontLeft, FrontRight, FrontCenter, RearLeft, RearRight],
        6 => &[FrontLeft, FrontRight, FrontCenter, Lfe1, RearLeft, RearRight],
        7 => &[FrontLeft, FrontRight, FrontCenter, Lfe1, RearCenter, SideLeft, SideRight],
        8 => &[FrontLeft, FrontRight, FrontCenter, Lfe1, RearLeft, RearRight, SideLeft, SideRight],
        _ => &[],
    }
}

/// Weight of a position before scaling; 0 for one that is left out.
fn weight(position: Position) -> f32 {
    match position {
        Position::Mono | Position::FrontCenter => 1.0,
        Position::FrontLeft | Position::FrontRight | Position::FrontLeftOfCenter | Position::FrontRightOfCenter => {
            FRAC_1_SQRT_2
        }
        Position::RearLeft | Position::RearRight | Position::RearCenter | Position::SideLeft | Position::SideRight => {
            0.5
        }
        _ => 0.0,
    }
}

impl Downmix {
    /// The downmix of a decoder's output.
    pub(crate) fn new(info: &AudioInfo) -> Self {
        let channels = info.channels() as usize;
        let told = info.positions().filter(|p| p.iter().all(|p| weight(*p) > 0.0 || *p > Position::Mono));
        Self::of(told.unwrap_or_else(|| default_layout(channels)), channels)
    }

    fn of(positions: &[Position], channels: usize) -> Self {
        let mut weights: Vec<f32> = positions.iter().map(|p| weight(*p)).collect();
        if weights.iter().sum::<f32>() == 0.0 {
            weights = vec![1.0; channels];
        }
        let sum: f32 = weights.iter().sum();
        if sum > 1.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        Downmix { weights }
    }

    /// Appends the mono sum of interleaved samples.
    pub(crate) fn mix(&self, interleaved: &[f32], out: &mut Vec<f32>) {
        match self.weights[..] {
            [weight] => out.extend(interleaved.iter().map(|s| s * weight)),
            [left, right] => out.extend(interleaved.as_chunks::<2>().0.iter().map(|[l, r]| l * left + r * right)),
            _ => {
                let frames = interleaved.chunks_exact(self.weights.len());
                out.extend(frames.map(|f| f.iter().zip(&self.weights).map(|(s, w)| s * w).sum::<f32>()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_ffmpeg() {
        let of = |channels: usize| Downmix::of(default_layout(channels), channels).weights;
        assert_eq!(of(1), [1.0]);
        assert_eq!(of(2), [0.5, 0.5]);
        // 0.7071 / 3.4142, 1 / 3.4142, 0, 0.5 / 3.4142
        let five_one = of(6);
        let expected = [0.207_106_77, 0.207_106_77, 0.292_893_2, 0.0, 0.146_446_6, 0.146_446_6];
        five_one.iter().zip(expected).for_each(|(w, e)| assert!((w - e).abs() < 1e-6, "{five_one:?}"));
    }

    #[test]
    fn frames_of_several_channels_become_one_sample_each() {
        let mut out = Vec::new();
        Downmix { weights: vec![0.25, 0.5, 0.25] }.mix(&[4.0, 2.0, 0.0, 0.0, 2.0, 8.0], &mut out);
        assert_eq!(out, [2.0, 3.0]);
    }
}
