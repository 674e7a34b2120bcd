//! How long a scanned file lasts.

use std::sync::MutexGuard;

use super::clock::StatedClock;
use super::counted::Counted;
use crate::pipeline::Kind;
use crate::probe::bytes::Bytes;
use crate::probe::flv::Times;
use crate::probe::ogg;

/// Longest time that one picture is shown in a broadcast.
const LAST_PICTURE_S: f64 = 0.1;

/// Codecs of sounds in a file of nothing else whose length GStreamer guesses by their bit rate.
const GUESSED: [&str; 5] = ["mp1", "mp2", "aac", "ac3", "eac3"];

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
    let spans = || all.iter().filter_map(|track| Some((track.span?.0, track.span?.1 + untold_ns(track))));
    let (start, end) = (spans().map(|s| s.0).min().unwrap_or(0), spans().map(|s| s.1).max().unwrap_or(0));
    let spanned_s = (end - start) as f64 / 1e9;
    let is_ts = [0, 4].into_iter().any(|at| bytes.array::<1>(at).is_ok_and(|sync| sync == [0x47]));
    if is_ts && let Some(stated_s) = told.clock.seconds(&all) {
        return stated_s;
    }
    let last_ns = |kind: Kind| {
        let of_kind = all.iter().filter(|track| track.caps_name().is_some_and(|name| kind.takes(name)));
        of_kind.map(|track| track.last_ns + untold_ns(track)).max().unwrap_or(0)
    };
    if let Some(seconds) = told.tags.and_then(|times| times.seconds(last_ns(Kind::Video), last_ns(Kind::Audio))) {
        return seconds;
    }
    let shows = all.iter().any(|track| track.caps_name().is_some_and(|name| Kind::Video.takes(name)));
    let is_flv = bytes.array::<3>(0).is_ok_and(|start| &start == b"FLV");
    let is_ogg = bytes.array::<4>(0).is_ok_and(|start| &start == b"OggS");
    let is_ps = bytes.array::<4>(0).is_ok_and(|start| start == [0, 0, 1, 0xba]);
    let is_asf = bytes.array::<4>(0).is_ok_and(|start| start == [0x30, 0x26, 0xb2, 0x75]);
    let is_bare = !told.names_container && !is_ts && !is_flv;
    let shown_s = || all.iter().map(|track| track.lasting_ns).max().unwrap_or(0) as f64 / 1e9;
    match shows {
        // Where it is cut its last pictures may have no times; they last as long as the others.
        true if is_ps && spanned_s > 0.0 => {
            let lasting = all.iter().filter_map(|track| Some(track.span?.0 + track.lasting_ns)).max().unwrap_or(0);
            (end.max(lasting) - start) as f64 / 1e9
        }
        _ if told_s == 0.0 => longest(),
        // GStreamer guesses it by the bit rate, and gives some pictures no time.
        true if is_bare => spanned_s.max(shown_s()),
        // The last packet of a sound in Ogg may hold more than is heard, which its page tells.
        true if is_ogg => told_s,
        // Its header says how long the whole was, and before a sound that begins late counts the wait twice.
        true if is_asf && spanned_s > 0.0 => spanned_s,
        // Demuxers of MPEG streams leave out how long the last picture is shown; a transport stream's clock begins before its first.
        true if spanned_s > 0.0 && (is_ts || (0.0..LAST_PICTURE_S).contains(&(spanned_s - told_s))) => spanned_s,
        // Of Opus that begins late it counts what the decoder gives before the sound begins.
        false if is_ogg && start > 0 && all.len() == 1 => told_s - ogg::pre_skip(bytes) as f64 / 48e3,
        false if all.iter().all(|track| GUESSED.contains(&track.codec().as_str())) => longest(),
        // A header may have been written for another sound: Xing in an MP3 that was cut or joined.
        false if all.iter().all(|track| COUNTED.contains(&track.codec().as_str())) => {
            let is_other = |counted_s: &f64| (counted_s - told_s).abs() > LAST_PICTURE_S;
            let is_cut = all.iter().any(|track| track.is_cut);
            Some(longest()).filter(|counted_s| is_cut || is_other(counted_s)).unwrap_or(told_s)
        }
        false if spanned_s > 0.0 && is_ts => spanned_s,
        _ => told_s,
    }
}

/// Nanoseconds that the last packet of a sound lasts, where neither its container nor GStreamer tells: those of AAC in FLV, and of
/// Windows Media Audio.
fn untold_ns(track: &Counted) -> u64 {
    let rate = u64::from(track.number("rate"));
    let samples = match track.codec().as_str() {
        _ if track.lasting_ns > 0 || rate == 0 => return 0,
        "aac" => 1024,
        // Of a packet that is cut ffmpeg counts the part that is there.
        "audio/x-wma" => {
            let (there, whole) = (track.last_bytes as u64, u64::from(track.number("block_align")));
            let block = wma_block(track.field::<i32>("wmaversion"), track.number("rate"));
            (block * there.min(whole)).checked_div(whole).unwrap_or(block)
        }
        _ => return 0,
    };
    samples * 1_000_000_000 / rate
}

/// Samples of a block of Windows Media Audio 1 and 2 (`libavcodec/wma_common.c`, `ff_wma_get_frame_len_bits`).
pub(super) fn wma_block(version: Option<i32>, rate: u32) -> u64 {
    match (version, rate) {
        (_, ..=16_000) => 512,
        (_, ..=22_050) | (Some(1), ..=32_000) => 1024,
        _ => 2048,
    }
}
