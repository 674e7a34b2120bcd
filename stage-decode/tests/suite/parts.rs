//! Files of several parts: fields that come one by one, recordings that follow each other, fragments.

use std::path::{Path, PathBuf};

use crate::support::boxes::Mp4;
use crate::support::fields::make_fields;
use crate::support::reference::{
    check_every_frame, check_pictures, check_samples, ffprobe, reference_frames, reference_sound,
};
use crate::support::{X264, decode, decode_at, film, make, picture, refused, sound};
use tempfile::tempdir;

#[test]
fn fields_of_hevc_that_come_one_by_one_are_refused_before_anything_is_planned() {
    let dir = tempdir().unwrap();
    let options = "-vf separatefields -c:v libx265 -preset ultrafast -x265-params log-level=error:interlace=1";
    for name in ["a.mp4", "a.mkv", "a.ts"] {
        let path = make(dir.path(), name, &[picture("160x128", "12", 4.0)], options);
        let error = refused(&path);
        assert!(error.contains("fields come one by one") && error.contains("tinterlace"), "{error}");
    }
}

#[test]
fn every_link_of_a_chained_ogg_is_heard() {
    let dir = tempdir().unwrap();
    for (ending, codec, rates) in [
        ("opus", "libopus", [48_000, 48_000]),
        ("oga", "flac", [48_000, 44_100]),
        ("ogg", "libvorbis", [44_100, 48_000]),
    ] {
        let links = [("first", rates[0], 2.0), ("second", rates[1], 3.0)].map(|(name, rate, seconds)| {
            make(dir.path(), &format!("{name}.{ending}"), &[sound(rate, seconds)], &format!("-c:a {codec}"))
        });
        let path = dir.path().join(format!("chained.{ending}"));
        std::fs::write(&path, links.clone().map(|link| std::fs::read(link).unwrap()).concat()).unwrap();
        let (info, kept) = decode(&path);
        let (ours, theirs) = (kept.pcm(), links.map(|link| reference_sound(&link, "")));
        assert!((info.duration_s - 5.0).abs() < 0.05, "{ending}: {} s", info.duration_s);
        // At the end of a link Vorbis leaves up to a block more.
        let (first, second) = ours.split_at(ours.len() - theirs[1].len());
        assert!(first.len().abs_diff(theirs[0].len()) <= 800, "{ending}: {} samples", ours.len());
        check_samples(ending, &first[..theirs[0].len().min(first.len())], &theirs[0]);
        if ending != "ogg" {
            check_samples(ending, second, &theirs[1]);
        }
    }
}

/// A file of others one behind the other.
fn joined(dir: &Path, name: &str, parts: &[PathBuf]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, parts.iter().map(|part| std::fs::read(part).unwrap()).collect::<Vec<_>>().concat()).unwrap();
    path
}

/// Checks pictures and sound of recordings that follow each other in a file beside what ffmpeg reads of each.
fn check_joined(path: &Path, parts: &[PathBuf], seconds: f64) {
    let name = path.display().to_string();
    let (info, kept) = decode_at(path, 10.0);
    assert!(info.notes.is_empty() && (info.duration_s - seconds).abs() < 0.1, "{name}: {info:?}");
    let theirs: Vec<_> = parts.iter().flat_map(|part| reference_frames(part, &info, 1, "")).collect();
    check_pictures(&name, &kept.frames(0), &theirs, &[]);
    if info.has_audio {
        let theirs: Vec<i16> = parts.iter().flat_map(|part| reference_sound(part, "")).collect();
        check_samples(&name, &kept.pcm(), &theirs);
    }
}

#[test]
fn every_one_of_joined_recordings_is_seen_and_heard() {
    let dir = tempdir().unwrap();
    for (ending, video, audio) in [
        ("webm", "-c:v libvpx -deadline realtime", "-c:a libopus"),
        ("webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8", "-c:a libopus"),
        ("mkv", X264, "-c:a pcm_s16le"),
        ("ogv", "-c:v libtheora -q:v 8", "-c:a flac"),
    ] {
        let parts = [("first", 4.0), ("second", 3.0), ("third", 2.0)].map(|(name, s)| {
            let inputs = [picture("160x120", "10", s), sound(48_000, s)];
            make(dir.path(), &format!("{name}.{ending}"), &inputs, &format!("{video} {audio}"))
        });
        let path = joined(dir.path(), &format!("joined.{ending}"), &parts);
        check_joined(&path, &parts, 9.0);
        // Of two ffmpeg itself reads on to the end.
        if ending == "webm" {
            let two = joined(dir.path(), "two.webm", &parts[..2]);
            let counted = ffprobe(&two, "-count_frames -select_streams v:0 -show_entries stream=nb_read_frames");
            assert_eq!((counted[0].as_str(), decode_at(&two, 10.0).0.frames), ("70", 70));
        }
    }
}

#[test]
fn a_recording_of_other_tracks_that_follows_is_left_out_and_the_result_says_so() {
    let dir = tempdir().unwrap();
    let parts = [("first.mkv", X264), ("second.mkv", "-c:v mpeg4")]
        .map(|(name, codec)| make(dir.path(), name, &[picture("160x120", "10", 4.0)], codec));
    let (info, kept) = decode_at(&joined(dir.path(), "joined.mkv", &parts), 10.0);
    assert!(info.frames == 40 && info.notes[0].contains("left out"), "{info:?}");
    check_every_frame(&parts[0], &info, &kept);
}

#[test]
fn two_fields_in_packets_of_their_own_are_one_picture() {
    let dir = tempdir().unwrap();
    for (name, options) in [
        ("a.ts", ""),
        ("a.mp4", ""),
        ("a.mov", ""),
        ("a.mkv", ""),
        ("fragments.mp4", "-movflags frag_every_frame+empty_moov"),
    ] {
        let path = make_fields(dir.path(), name, 40, options);
        let packets = ffprobe(&path, "-count_packets -select_streams v:0 -show_entries stream=nb_read_packets");
        assert_eq!(packets[0], "80", "{name}");
        let (info, kept) = decode_at(&path, 25.0);
        assert!(info.frames == 40 && (info.avg_fps - 25.0).abs() < 0.1, "{name}: {info:?}");
        check_every_frame(&path, &info, &kept);
        assert!(kept.batches.iter().all(|batch| batch.plan.image.as_ref().unwrap().replaced.is_empty()), "{name}");
    }
    // An edit list counts pictures too.
    let path = make_fields(dir.path(), "whole.mp4", 40, "");
    Mp4::read(&path).edit(0, &[(0.8, 46_800)], 0.8).write(&path);
    let (info, kept) = decode_at(&path, 25.0);
    check_every_frame(&path, &info, &kept);
}

#[test]
fn a_cut_inside_the_index_of_a_fragment_keeps_the_fragments_before_it() {
    let dir = tempdir().unwrap();
    let options = format!("{X264} -g 10 -bf 0 -c:a aac -movflags frag_keyframe+empty_moov");
    let path = film(dir.path(), "a.mp4", &options);
    let bytes = std::fs::read(&path).unwrap();
    let places: Vec<usize> = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"moof").map(|(at, _)| at).collect();
    assert_eq!(places.len(), 5);
    std::fs::write(&path, &bytes[..places[3] + 60]).unwrap();
    let (info, kept) = decode_at(&path, 10.0);
    assert_eq!((info.frames, kept.frames(0).len()), (30, 30));
    let shown = ffprobe(&path, "-count_frames -select_streams v:0 -show_entries stream=nb_read_frames");
    assert_eq!(shown[0], "30");
    check_samples("the fragments before", &kept.pcm(), &reference_sound(&path, ""));
}

#[test]
fn a_cut_inside_the_media_of_a_fragment_keeps_what_is_there() {
    let dir = tempdir().unwrap();
    let options = format!("{X264} -g 10 -bf 0 -c:a aac -movflags frag_keyframe+empty_moov");
    let path = film(dir.path(), "a.mp4", &options);
    let bytes = std::fs::read(&path).unwrap();
    let media: Vec<usize> = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"mdat").map(|(at, _)| at).collect();
    for (nth, behind) in [(2, 10), (2, 3_000), (4, 1_500)] {
        std::fs::write(&path, &bytes[..media[nth] + behind]).unwrap();
        let (info, kept) = decode_at(&path, 10.0);
        check_every_frame(&path, &info, &kept);
        check_samples("what is there", &kept.pcm(), &reference_sound(&path, ""));
    }
}
