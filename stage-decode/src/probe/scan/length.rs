//! How long a scanned file lasts.

use std::sync::MutexGuard;

use super::clock::StatedClock;
use super::counted::Counted;
use crate::pipeline::Kind;
use crate::probe::bytes::Bytes;
use crate::probe::flv::Times;

/// Longest time that one picture is shown in a broadcast.
const LAST_PICTURE_S: f64 = 0.1;

/// Codecs of sounds of which neither header nor GStreamer is believed that they last longer, or less, than their packets.
const COUNTED: [&str; 2] = ["mp3", "audio/x-adpcm"];

/// What is told of a file's length besides its packets.
pub(super) struct Told<'s> {
    /// GStreamer's word; 0 for none.
    pub(super) duration_s: f64,
    /// Whether the demuxer names a container.
    pub(super) names_container: bool,
    pub(super) clock: &'s StatedClock,
    pub(super) tags: Option<&'s Times>,
}

/// Seconds that a file lasts, by its packets where its container or GStreamer only guesses.
pub(super) fn length_s(bytes: &mut Bytes<'_>, tracks: &[MutexGuard<'_, Counted>], told: &Told<'_>) -> f64 {
    let told_s = told.duration_s;
    let all: Vec<&Counted> = tracks.iter().map(|track| &**track).collect();
    let longest = || all.iter().map(|track| track.length_s()).fold(0.0, f64::max);
    let spans = || all.iter().filter_map(|track| track.span);
    let (start, end) = (spans().map(|s| s.0).min().unwrap_or(0), spans().map(|s| s.1).max().unwrap_or(0));
    let spanned_s = (end - start) as f64 / 1e9;
    let is_ts = [0, 4].into_iter().any(|at| bytes.array::<1>(at).is_ok_and(|sync| sync == [0x47]));
    if is_ts && let Some(stated_s) = told.clock.seconds(&all) {
        return stated_s;
    }
    let last_ns = |kind: Kind| {
        let of_kind = all.iter().filter(|track| track.caps_name().is_some_and(|name| kind.takes(name)));
        of_kind.map(|track| track.last_ns).max().unwrap_or(0)
    };
    if let Some(seconds) = told.tags.and_then(|times| times.seconds(last_ns(Kind::Video), last_ns(Kind::Audio))) {
        return seconds;
    }
    let shows = all.iter().any(|track| track.caps_name().is_some_and(|name| Kind::Video.takes(name)));
    let is_flv = bytes.array::<3>(0).is_ok_and(|start| &start == b"FLV");
    let is_bare = !told.names_container && !is_ts && !is_flv;
    let shown_s = || all.iter().map(|track| track.lasting_ns).max().unwrap_or(0) as f64 / 1e9;
    match shows {
        _ if told_s == 0.0 => longest(),
        // GStreamer guesses it by the bit rate, and gives some pictures no time.
        true if is_bare => spanned_s.max(shown_s()),
        // Demuxers of MPEG streams leave out how long the last picture is shown; a transport stream's clock begins before its first.
        true if spanned_s > 0.0 && (is_ts || (0.0..LAST_PICTURE_S).contains(&(spanned_s - told_s))) => spanned_s,
        // A header may have been written for another sound: Xing in an MP3 that was cut or joined.
        false if all.iter().all(|track| COUNTED.contains(&track.codec().as_str())) => {
            Some(longest()).filter(|counted_s| (counted_s - told_s).abs() > LAST_PICTURE_S).unwrap_or(told_s)
        }
        false if spanned_s > 0.0 && is_ts => spanned_s,
        _ => told_s,
    }
}
