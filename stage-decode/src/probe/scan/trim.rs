//! What of a scanned sound is kept.

use super::counted::Counted;
use super::length::wma_block;
use crate::probe::bytes::Bytes;
use crate::probe::examined::Trim;
use crate::probe::{mp3, ogg};

/// What of a sound is kept, as its codec and container tell.
pub(super) fn trim(bytes: &mut Bytes<'_>, track: &Counted, codec: &str, is_chained: bool) -> Trim {
    let start_s = track.span.map_or(0.0, |(start, _)| start as f64 / 1e9);
    match codec {
        "mp3" => mp3::trim(bytes),
        "audio/x-wma" => wma(track.field::<i32>("wmaversion"), track.number("rate")),
        "vorbis" if !is_chained => ogg::vorbis(bytes, (start_s * f64::from(track.number("rate"))).round() as u64),
        "opus" if !is_chained && start_s > 0.0 => ogg::late_opus(bytes),
        _ => Trim::default(),
    }
}

/// What ffmpeg leaves out at the start of Windows Media Audio 1 and 2: two blocks (`libavcodec/wmadec.c`).
fn wma(version: Option<i32>, rate: u32) -> Trim {
    let block = wma_block(version, rate);
    if version.is_some_and(|version| version < 3) { Trim::after(2 * block, None) } else { Trim::default() }
}
