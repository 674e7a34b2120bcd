//! How many frames the files of a row have, and how long they last.

use std::path::Path;

use protocol::plan::MediaInfo;

use super::Container::{Avi, Flv, Ogg, ProgramStream, Sound, TransportStream, WindowsMedia};
use super::Files;
use super::packets::{packets, spanned_s};
use crate::support::reference::{
    check_figures, check_numbers, check_packets, check_unmarked, ffprobe, packets_s, reference_sound,
};

impl Files {
    /// Checks how many frames there are, and how long the file lasts.
    pub(super) fn check_figures(&self, path: &Path, info: &MediaInfo, name: &str) {
        let is_flac = self.audio.contains("flac");
        match self.container {
            Sound(..) => self.check_sound_length(path, info, name),
            // A picture that others refer to gets its time from the next of these (`compute_pkt_fields`): where the stream is cut the last one
            // has none, and ffprobe's duration is shorter by it.
            ProgramStream if self.is_cut(path) => {
                check_numbers(path, info, spanned_s(&[&packets(path, "v:0"), &packets(path, "a:0")]));
            }
            // Of the last packet of sound in a transport stream ffprobe guesses the length; Windows Media's header is ffmpeg's own, which counts
            // the wait before a late sound twice.
            TransportStream | ProgramStream | WindowsMedia => check_packets(path, info, "pts_time"),
            // Of FLAC in Ogg that is cut ffprobe tells no duration.
            Ogg if is_flac => check_packets(path, info, "pts_time"),
            // Its times are those of decoding, and its header counts packets of different lengths as equal.
            Avi => check_packets(path, info, "dts_time"),
            // Its header says how long the whole was.
            Flv if self.is_cut(path) => check_packets(path, info, "pts_time"),
            _ if self.is_marked(path) => check_unmarked(path, info),
            _ => check_figures(path, info),
        }
    }

    /// Checks how long a sound alone lasts.
    fn check_sound_length(&self, path: &Path, info: &MediaInfo, name: &str) {
        let Sound(kind, _) = self.container else { return };
        let heard_s = || reference_sound(path, "").len() as f64 / 16e3;
        let told_s = || ffprobe(path, "-show_entries format=duration")[0].parse::<f64>().expect("a duration");
        let lasts = match kind {
            // Where ffprobe's clock begins differs by codec: with what the decoder gives first (Opus), before it (Vorbis that begins late), or at
            // 0 though the first page says later (FLAC). What is heard is as long whenever it begins.
            "Ogg" => heard_s()..=heard_s(),
            // What the header of an MP3 says is of the whole.
            "MP3" if self.is_cut(path) => packets_s(path, "pts_time")..=packets_s(path, "pts_time"),
            // ffprobe guesses by the bit rate.
            "MP2" | "ADTS" | "AC-3" => packets_s(path, "pts_time")..=packets_s(path, "pts_time"),
            // Of a block that is cut ffprobe guesses it too.
            "WAV" if self.audio.contains("adpcm") && self.is_cut(path) => heard_s()..=heard_s(),
            // A block of ADPCM holds 93 ms, and GStreamer guesses how much the last one has.
            "WAV" if self.audio.contains("adpcm") => packets_s(path, "pts_time")..=packets_s(path, "pts_time"),
            _ => told_s()..=told_s(),
        };
        let near_s = if self.audio.contains("adpcm") { 10e-3 } else { 2e-3 };
        let near = lasts.start() - near_s..=lasts.end() + near_s;
        assert!(near.contains(&info.duration_s), "{name}: {} s instead of {lasts:?}", info.duration_s);
    }
}
