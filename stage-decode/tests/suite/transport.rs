//! Transport streams as recorders leave them, and their sounds, each against ffmpeg.

use std::path::Path;

use crate::support::reference::{
    check_every_frame, check_pictures, check_samples, check_sound, check_stepped, ffprobe, reference_frames,
    reference_sound,
};
use crate::support::{X264, decode, decode_at, make, picture, refused, sound};
use tempfile::tempdir;

/// Bytes of a packet.
const PACKET: usize = 188;

/// CRC-32 of a programme's table (ISO/IEC 13818-1, annex A).
fn check_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte) << 24, |sum, _| sum << 1 ^ if sum >> 31 == 1 { 0x04c1_1db7 } else { 0 })
    })
}

/// Gives the streams of a type another one in every table of the programme that ffmpeg writes (in packets 0x1000).
fn retype(path: &Path, from: u8, to: u8) {
    let mut all = std::fs::read(path).unwrap();
    let mut changed = 0;
    for packet in all.chunks_exact_mut(PACKET).filter(|p| p[1] & 0x1f == 0x10 && p[2] == 0) {
        let table = 5 + usize::from(packet[4]);
        let end = table + 3 + usize::from(packet[table + 2]) - 4;
        let mut at = table + 12 + usize::from(packet[table + 11]);
        while at < end {
            if packet[at] == from {
                (packet[at], changed) = (to, changed + 1);
            }
            at += 5 + usize::from(packet[at + 4]);
        }
        let sum = check_sum(&packet[table..end]).to_be_bytes();
        packet[end..end + 4].copy_from_slice(&sum);
    }
    assert!(changed > 1, "{changed} tables of {} have type {from}", path.display());
    std::fs::write(path, all).unwrap();
}

/// Leaves of a file what follows a part of it, from the next table on: what comes before that GStreamer does not read.
fn cut_start(path: &Path, part: usize) {
    let whole = std::fs::read(path).unwrap();
    let mut packets = whole.chunks_exact(PACKET).enumerate().skip(whole.len() / PACKET / part);
    let (at, _) = packets.find(|(_, packet)| packet[1] & 0x1f == 0 && packet[2] == 0).unwrap();
    std::fs::write(path, &whole[at * PACKET..]).unwrap();
}

#[test]
fn of_a_piece_without_a_key_frame_the_sound_is_read_and_the_result_says_so() {
    let dir = tempdir().unwrap();
    let options = format!("{X264} -g 1000 -keyint_min 1000 -sc_threshold 0");
    let piece = |name: &str, options: &str, inputs: &[Vec<String>]| {
        let path = make(dir.path(), name, inputs, options);
        cut_start(&path, 2);
        let counted = ffprobe(&path, "-count_frames -select_streams v:0 -show_entries stream=nb_read_frames");
        assert!(counted.is_empty() || counted[0] == "N/A", "ffmpeg decodes pictures of {name}: {counted:?}");
        path
    };
    let x265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=1000:min-keyint=1000:scenecut=0";
    // At rates of which the samples of a packet are whole numbers at 16 kHz.
    for (name, video, audio, rate) in [
        ("a.ts", &options[..], "-c:a aac", 16_000),
        ("b.ts", &options, "-c:a mp2", 16_000),
        ("c.ts", x265, "-c:a ac3", 32_000),
    ] {
        let inputs = [picture("96x64", "10", 8.0), sound(rate, 8.0)];
        let path = piece(name, &format!("{video} {audio}"), &inputs);
        let (info, kept) = decode(&path);
        assert_eq!((info.frames, info.notes.len()), (0, 1), "{name}: {info:?}");
        assert!(info.notes[0].starts_with("video track (h26") && info.notes[0].contains("no key frame"), "{info:?}");
        assert!(!info.notes[0].contains("ffmpeg"), "ffmpeg cannot read it either: {info:?}");
        // Of the sound GStreamer's demuxer leaves out what lies in a packet that begins before the first word of the clock.
        let (ours, theirs) = (kept.pcm(), reference_sound(&path, ""));
        let late = theirs.len().checked_sub(ours.len()).unwrap();
        assert!(late < 16_000, "{name}: {} samples, ffmpeg has {}", ours.len(), theirs.len());
        // To its first packet a decoder adds what it kept of the one before.
        check_samples(name, &ours[3072..], &theirs[late + 3072..]);
    }
    let error = refused(&piece("silent.ts", &options, &[picture("96x64", "10", 8.0)]));
    assert!(error.contains("no key frame"), "{error}");
}

#[test]
fn mpeg_audio_that_is_called_private_data_is_heard() {
    let dir = tempdir().unwrap();
    for (name, audio, named) in
        [("a.ts", "-c:a mp2 -b:a 192k", 3), ("low.ts", "-c:a mp2 -ar 24000", 4), ("b.ts", "-c:a libmp3lame", 3)]
    {
        let inputs = [picture("96x64", "10", 4.0), sound(44_100, 4.0)];
        let path = make(dir.path(), name, &inputs, &format!("{X264} {audio}"));
        retype(&path, named, 6);
        let (info, kept) = decode_at(&path, 10.0);
        assert!(info.has_audio && info.notes.is_empty(), "{name}: {info:?}");
        check_stepped(name, &kept.frames(0), &path, &info, 1);
        check_sound(&path, &kept);
    }
}

#[test]
fn aac_in_latm_packets_is_refused_by_name_and_the_pictures_beside_it_are_read() {
    let dir = tempdir().unwrap();
    let error = refused(&make(dir.path(), "a.latm", &[sound(44_100, 4.0)], "-c:a aac -f latm"));
    assert!(error.contains("LATM") && error.contains("re-encode"), "{error}");
    let inputs = [picture("96x64", "10", 4.0), sound(44_100, 4.0)];
    let path = make(dir.path(), "a.ts", &inputs, &format!("{X264} -c:a aac -mpegts_flags latm"));
    let (info, kept) = decode_at(&path, 10.0);
    assert!(!info.has_audio && info.notes.len() == 1 && info.notes[0].contains("LATM"), "{info:?}");
    let theirs = reference_frames(&path, &info, 1, "");
    check_pictures("a.ts", &kept.frames(0), &theirs, &[]);
}

#[test]
fn pictures_whose_size_changes_are_told_by_the_first_and_each_is_shown_whole() {
    let dir = tempdir().unwrap();
    for (ending, options) in [("ts", X264), ("ts", "-c:v mpeg2video -r 25 -q:v 2"), ("h264", X264)] {
        let parts = [("first", "160x96"), ("second", "96x128")]
            .map(|(name, size)| make(dir.path(), &format!("{name}.{ending}"), &[picture(size, "25", 2.0)], options));
        let path = dir.path().join(format!("resized.{ending}"));
        std::fs::write(&path, parts.clone().map(|part| std::fs::read(part).unwrap()).concat()).unwrap();
        let (info, kept) = decode_at(&path, 25.0);
        assert_eq!((info.width, info.height, info.frames), (160, 96, 100), "{ending}, {options}: {info:?}");
        let noted = info.notes.iter().any(|note| note.contains("the first are 160 x 96, the largest 160 x 96"));
        assert!(noted, "{info:?}");
        let mut theirs = reference_frames(&parts[0], &info, 1, "");
        let second = protocol::plan::MediaInfo { width: 96, height: 128, ..info };
        theirs.extend(reference_frames(&parts[1], &second, 1, ""));
        check_pictures(&format!("resized {ending} of {options}"), &kept.frames(0), &theirs, &[]);
    }
}

#[test]
fn a_stream_that_begins_between_key_frames_shows_what_ffmpeg_shows() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.ts", &[picture("96x64", "25", 4.0)], &format!("{X264} -bf 2 -g 12"));
    cut_start(&path, 3);
    let (info, kept) = decode_at(&path, 25.0);
    check_every_frame(&path, &info, &kept);
}
