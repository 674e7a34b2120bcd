//! How a container turns its pictures and orders its parts, each against ffmpeg.

use std::path::Path;

use crate::support::boxes::{Mp4, project};
use crate::support::reference::{
    SAME, check_every_frame, check_frames, check_pictures, check_samples, check_sound, ffprobe, reference_frames,
    reference_sound,
};
use crate::support::{X264, decode, decode_at, film, make, picture, refused, snr, sound};
use tempfile::tempdir;

/// Each of the eight orientations: a display matrix, its turn and mirror, and ffmpeg's filters that do the same.
const ORIENTATIONS: [([i32; 4], u32, bool, &str); 8] = [
    ([1, 0, 0, 1], 0, false, ""),
    ([0, 1, -1, 0], 90, false, ",transpose=clock"),
    ([-1, 0, 0, -1], 180, false, ",hflip,vflip"),
    ([0, -1, 1, 0], 270, false, ",transpose=cclock"),
    ([-1, 0, 0, 1], 0, true, ",hflip"),
    ([0, -1, -1, 0], 90, true, ",transpose=clock_flip"),
    ([1, 0, 0, -1], 180, true, ",vflip"),
    ([0, 1, 1, 0], 270, true, ",transpose=cclock_flip"),
];

#[test]
fn all_eight_orientations_of_mp4_and_matroska_are_shown_as_ffmpeg_shows_them() {
    let dir = tempdir().unwrap();
    let inputs = [picture("160x120", "10", 3.0)];
    let mp4 = make(dir.path(), "plain.mp4", &inputs, X264);
    let colours =
        "-colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv -chroma_sample_location left";
    let mkv = make(dir.path(), "plain.mkv", &inputs, &format!("{X264} {colours}"));
    for (matrix, rotation, mirrored, filters) in ORIENTATIONS {
        let check = |plain: &Path, path: &Path| {
            let (info, kept) = decode(path);
            assert_eq!((info.rotation, info.mirrored), (rotation, mirrored), "{}", path.display());
            let lying = [90, 270].contains(&rotation);
            assert_eq!((info.width, info.height), if lying { (120, 160) } else { (160, 120) });
            let theirs = reference_frames(plain, &info, 10, filters);
            check_pictures(&format!("{filters} {}", path.display()), &kept.frames(0), &theirs, &[]);
            (info, kept)
        };
        let path = dir.path().join("turned.mp4");
        Mp4::read(&mp4).display(0, matrix).write(&path);
        let (info, kept) = check(&mp4, &path);
        // This ffmpeg turns mp4 by itself.
        check_frames(&path, &info, &kept);
        let path = dir.path().join("turned.mkv");
        std::fs::copy(&mkv, &path).unwrap();
        // A roll is counter-clockwise; mirrored, the yaw comes first.
        project(&path, if mirrored { 180.0 } else { 0.0 }, -(rotation as f32));
        check(&mkv, &path);
    }
}

#[test]
fn an_edit_list_is_a_sequence() {
    let dir = tempdir().unwrap();
    // Lists by the seconds at which each part starts and ends.
    let lists: [(&str, &[(f64, f64)]); 6] = [
        ("the middle is cut out", &[(0.0, 1.0), (3.0, 4.5)]),
        ("the second half comes first", &[(2.5, 5.0), (1.2, 2.5)]),
        ("a part is repeated", &[(1.0, 2.0), (1.0, 2.0), (0.5, 1.5)]),
        ("after a pause", &[(-1.0, 0.5), (0.3, 2.0)]),
        ("backwards", &[(4.0, 5.0), (3.0, 4.0), (2.0, 3.0), (1.0, 2.0)]),
        ("a start between frames", &[(1.23, 2.34), (3.45, 4.56)]),
    ];
    for (name, options) in
        [("aac.mp4", format!("{X264} -bf 2 -g 15 -c:a aac")), ("pcm.mov", format!("{X264} -bf 0 -g 15 -c:a pcm_s16le"))]
    {
        let whole = film(dir.path(), name, &options);
        let clock = |track: &str| -> f64 {
            let of = format!("-select_streams {track} -show_entries stream=time_base");
            ffprobe(&whole, &of)[0].strip_prefix("1/").unwrap().parse().unwrap()
        };
        let (picture_clock, sound_clock) = (clock("v"), clock("a"));
        for (what, parts) in lists {
            let path = dir.path().join(format!("{what} {name}"));
            let edits = |clock: f64| -> Vec<(f64, i32)> {
                let start = |from: f64| if from < 0.0 { -1 } else { (from * clock).round() as i32 };
                parts.iter().map(|&(from, to)| (to - from.max(0.0), start(from))).collect()
            };
            let length = parts.iter().map(|(from, to)| to - from.max(0.0)).sum();
            let mut file = Mp4::read(&whole);
            file.edit(0, &edits(picture_clock), length).edit(1, &edits(sound_clock), length).write(&path);
            let (info, kept) = decode_at(&path, 10.0);
            check_every_frame(&path, &info, &kept);
            check_sound(&path, &kept);
        }
    }
}

/// To the first packet of a part ffmpeg's decoder adds what it kept of the part before. Where the packet before the part's first one is
/// in the file, ffmpeg decodes that in between, as is done here, and both are the same to the sample (`an_edit_list_is_a_sequence`).
/// Before the very first packet there is none: ffmpeg adds a sound of another moment, and here the decoder begins anew. So the measure
/// of that packet is ffmpeg's own sound of the part alone. At 16 kHz nothing is resampled, and a packet is 1,024 samples.
#[test]
fn a_later_part_from_the_very_start_sounds_as_it_does_alone() {
    let dir = tempdir().unwrap();
    let whole = make(dir.path(), "whole.m4a", &[sound(16_000, 5.0)], "-c:a aac");
    let edited = |name: &str, edits: &[(f64, i32)], length: f64| {
        let path = dir.path().join(name);
        Mp4::read(&whole).edit(0, edits, length).write(&path);
        path
    };
    let both = edited("both.m4a", &[(1.0, 2 * 16_000), (1.5, 0)], 2.5);
    let [theirs, alone] = [&both, &edited("alone.m4a", &[(1.5, 0)], 1.5)].map(|path| reference_sound(path, ""));
    let ours = decode(&both).1.pcm();
    assert_eq!(ours.len(), theirs.len());
    let second = theirs.len() - alone.len();
    assert!(second.abs_diff(16_000) <= 1024, "the second part begins at {second}");
    check_samples("the second part", &ours[second..], &alone);
    for part in [0..second, second + 1024..ours.len()] {
        assert!(snr(&theirs[part.clone()], &ours[part.clone()]) > SAME, "{part:?}");
    }
    let packet = second..second + 1024;
    assert!(snr(&alone[..1024], &theirs[packet]) < SAME, "ffmpeg adds nothing: compare with it throughout");
}

#[test]
fn an_edit_list_that_goes_back_too_often_is_refused_with_the_figures() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture("160x120", "10", 5.0)], &format!("{X264} -bf 0"));
    let edits: Vec<(f64, i32)> = vec![(1.0, 0); 17];
    Mp4::read(&path).edit(0, &edits, 17.0).write(&path);
    let error = refused(&path);
    assert!(error.contains("goes back in time 16 times, more than 15"), "{error}");
    Mp4::read(&path).edit(0, &edits[1..], 16.0).write(&path);
    let (info, kept) = decode_at(&path, 10.0);
    assert_eq!((info.frames, kept.frames(0).len()), (160, 160));
}
