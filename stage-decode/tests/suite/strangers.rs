//! Files of strangers, each against ffmpeg: headers that are wrong, tracks much shorter than the whole, long gaps, and codecs
//! whose decoders want more than GStreamer tells them.

use std::path::Path;

use crate::support::reference::{
    check_every_frame, check_figures, check_packets, check_samples, check_sound, check_stepped, ffprobe,
    reference_sound,
};
use crate::support::{X264, decode, decode_at, make, picture, refused, sound, words};
use tempfile::tempdir;

/// Changes bytes of a file at a position.
fn patch(path: &Path, at: usize, bytes: &[u8]) {
    let mut all = std::fs::read(path).unwrap();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    std::fs::write(path, all).unwrap();
}

/// Gives all codes of a codec in a file another name.
fn rename(path: &Path, from: &[u8; 4], to: &[u8; 4]) {
    let all = std::fs::read(path).unwrap();
    let places: Vec<usize> = (0..all.len() - 4).filter(|&at| &all[at..at + 4] == from).collect();
    assert!(!places.is_empty(), "{from:?} in {}", path.display());
    places.into_iter().for_each(|at| patch(path, at, to));
}

/// Position of a name in a file.
fn find(path: &Path, name: &[u8]) -> usize {
    let all = std::fs::read(path).unwrap();
    all.windows(name.len()).position(|at| at == name).unwrap_or_else(|| panic!("{name:?} in {}", path.display()))
}

#[test]
fn a_track_of_a_fraction_of_the_whole_is_read() {
    let dir = tempdir().unwrap();
    // GStreamer takes a track of less than a fifth for a preview.
    for (name, pictures_s, sound_s) in [("jingle.mp4", 25.0, 3.0), ("teaser.mov", 3.0, 25.0)] {
        let inputs = [picture("96x64", "10", pictures_s), sound(44_100, sound_s)];
        let path = make(dir.path(), name, &inputs, &format!("{X264} -c:a aac"));
        let (info, kept) = decode_at(&path, 10.0);
        assert_eq!((&info.codecs[..], info.notes.len()), (&["h264".to_owned(), "aac".to_owned()][..], 0), "{info:?}");
        check_every_frame(&path, &info, &kept);
        check_sound(&path, &kept);
    }
}

#[test]
fn gaps_of_ten_seconds_are_as_long_as_the_packets_say() {
    let dir = tempdir().unwrap();
    let gaps = "-vf setpts='if(lt(N,15),N/10,if(lt(N,25),N/10+10,N/10+25))/TB' -vsync vfr";
    for name in ["a.mp4", "a.mkv", "a.ts", "a.flv"] {
        let inputs = [picture("96x64", "10", 4.0), sound(44_100, 4.0)];
        let path = make(dir.path(), name, &inputs, &format!("{gaps} {X264} -c:a aac"));
        let (info, kept) = decode_at(&path, 10.0);
        // FLV's header counts from its clock's zero, to which the first picture is late by two.
        assert!((28.9..29.3).contains(&info.duration_s), "{name}: {} s", info.duration_s);
        // Of the clock of a transport stream GStreamer makes hours.
        let said = info.notes.iter().any(|note| note.contains("times can be off by up to 9.0 s"));
        assert!(said || name == "a.ts", "{name}: {:?}", info.notes);
        match name {
            "a.ts" => check_packets(&path, &info, "pts_time"),
            _ => check_figures(&path, &info),
        }
        let step = kept.batches[0].plan.image.as_ref().unwrap().frame_step;
        check_stepped(name, &kept.frames(0), &path, &info, step);
        check_sound(&path, &kept);
    }
}

#[test]
fn a_recording_that_was_joined_to_itself_lasts_twice_as_long() {
    let dir = tempdir().unwrap();
    let inputs = [picture("96x64", "10", 4.0), sound(44_100, 4.0)];
    let path = make(dir.path(), "twice.ts", &inputs, &format!("{X264} -g 10 -c:a aac"));
    let once = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&once[..], &once].concat()).unwrap();
    let (info, kept) = decode_at(&path, 10.0);
    assert!(info.frames == 80 && (info.duration_s - 8.0).abs() < 0.1, "{info:?}");
    check_sound(&path, &kept);
}

#[test]
fn a_picture_that_begins_after_the_sound_is_read() {
    let dir = tempdir().unwrap();
    // GStreamer gives no times in a transport stream before its clock, which comes with the picture.
    for name in ["late.ts", "late.mkv", "late.flv"] {
        let inputs = [words("-itsoffset 1.5"), picture("96x64", "10", 4.0), sound(44_100, 4.0)].concat();
        let path = make(dir.path(), name, &[inputs], &format!("-map 0 -map 1 {X264} -bf 2 -g 12 -c:a aac"));
        let (info, kept) = decode_at(&path, 10.0);
        assert_eq!(info.frames, 40, "{name}");
        match name {
            "late.flv" => check_figures(&path, &info),
            _ => check_packets(&path, &info, "pts_time"),
        }
        check_stepped(name, &kept.frames(0), &path, &info, 1);
        check_sound(&path, &kept);
    }
}

#[test]
fn a_count_in_an_mp3_that_is_wrong_cuts_nothing_off() {
    let dir = tempdir().unwrap();
    for (name, frames) in [("less.mp3", 50u32), ("more.mp3", 5000)] {
        let path = make(dir.path(), name, &[sound(44_100, 4.0)], "-c:a libmp3lame -b:a 128k");
        let at = find(&path, b"Info");
        patch(&path, at + 8, &frames.to_be_bytes());
        let (info, kept) = decode(&path);
        check_sound(&path, &kept);
        assert!((info.duration_s - 4.05).abs() < 0.05, "{name}: {} s", info.duration_s);
    }
}

#[test]
fn a_wav_is_read_whatever_its_header_says_of_its_size() {
    let dir = tempdir().unwrap();
    let path = |name: &str, options: &str| make(dir.path(), name, &[sound(44_100, 4.0)], options);
    // As a recorder leaves it that could not go back, or that wrote more than 4 GB.
    for (name, size) in [("streamed.wav", [0xff; 4]), ("unfinished.wav", [0; 4])] {
        let path = path(name, "-c:a pcm_s16le");
        let data = find(&path, b"data");
        [4, data + 4].into_iter().for_each(|at| patch(&path, at, &size));
        let (info, kept) = decode(&path);
        assert!((info.duration_s - 4.0).abs() < 2e-3, "{name}: {} s", info.duration_s);
        check_sound(&path, &kept);
    }
    for (name, options) in [
        ("rf64.wav", "-c:a pcm_s16le -rf64 always"),
        ("f32.wav", "-c:a pcm_f32le"),
        ("mulaw.wav", "-c:a pcm_mulaw"),
        ("ima.wav", "-c:a adpcm_ima_wav"),
        ("ms.wav", "-c:a adpcm_ms"),
    ] {
        let path = path(name, options);
        let (info, kept) = decode(&path);
        // Of ADPCM ffprobe guesses by the bit rate.
        let heard_s = kept.pcm().len() as f64 / 16_000.0;
        assert!(
            (info.duration_s - heard_s).abs() < 0.025,
            "{name}: {} s, of which {heard_s} are heard",
            info.duration_s
        );
        check_sound(&path, &kept);
    }
    for (name, options) in [("a.w64", "-c:a pcm_s16le"), ("a.caf", "-c:a pcm_s16be")] {
        let error = refused(&path(name, options));
        assert!(error.contains("convert"), "{error}");
    }
}

#[test]
fn a_cover_is_no_film_and_does_not_lengthen_a_sound() {
    let dir = tempdir().unwrap();
    for (name, options) in [("a.flac", "-c:a flac"), ("a.mp3", "-c:a libmp3lame -id3v2_version 3")] {
        let inputs = [sound(44_100, 4.0), picture("64x64", "1", 1.0)];
        let map = "-map 0 -map 1 -c:v png -disposition:v attached_pic";
        let path = make(dir.path(), name, &inputs, &format!("{map} {options}"));
        let (info, kept) = decode(&path);
        assert_eq!(info.frames, 0, "{name}");
        check_length(&path, info.duration_s);
        check_sound(&path, &kept);
    }
}

#[test]
fn of_streams_without_a_container_the_pictures_are_counted() {
    let dir = tempdir().unwrap();
    let (x265, av1) = ("-c:v libx265 -x265-params log-level=none -preset ultrafast", "-c:v libaom-av1 -cpu-used 8");
    for (name, options) in [("a.h264", X264), ("a.h265", x265), ("a.ivf", av1)] {
        let path = make(dir.path(), name, &[picture("96x64", "10", 4.0)], options);
        let (info, kept) = decode_at(&path, 10.0);
        assert_eq!((info.frames, info.avg_fps), (40, 10.0), "{name}");
        assert!((info.duration_s - 4.0).abs() < 1e-3, "{name}: {} s", info.duration_s);
        check_stepped(name, &kept.frames(0), &path, &info, 1);
    }
}

#[test]
fn odd_sides_many_bits_and_fields_in_one_picture_are_shown_as_ffmpeg_shows_them() {
    let dir = tempdir().unwrap();
    let x265 = "-c:v libx265 -x265-params log-level=none -preset ultrafast -pix_fmt yuv422p10le";
    let fields = "-vf tinterlace=interleave_top,fieldorder=tff -c:v mpeg2video -flags +ildct+ilme -b:v 3M";
    for (name, rate, options) in [
        ("odd.mp4", "10", "-vf scale=161:121 -pix_fmt yuv444p -c:v libx264 -preset veryfast"),
        ("odd.webm", "10", "-vf scale=161:121 -c:v libvpx-vp9 -cpu-used 8 -deadline realtime"),
        ("odd.avi", "10", "-vf scale=161:121 -c:v mjpeg -q:v 2"),
        ("ten.mkv", "10", x265),
        ("fields.mkv", "50", fields),
        ("alpha.webm", "10", "-pix_fmt yuva420p -c:v libvpx -auto-alt-ref 0 -b:v 1M"),
    ] {
        let path = make(dir.path(), name, &[picture("160x120", rate, 4.0)], options);
        let (info, kept) = decode_at(&path, 100.0);
        check_every_frame(&path, &info, &kept);
    }
}

#[test]
fn a_track_that_no_plugin_reads_is_left_out_and_the_rest_is_answered() {
    let dir = tempdir().unwrap();
    let inputs = [picture("160x120", "10", 5.0), sound(44_100, 5.0)];
    let path = make(dir.path(), "a.avi", &inputs, "-c:v mpeg4 -q:v 3 -c:a libmp3lame");
    rename(&path, b"FMP4", b"XYZW");
    let (info, kept) = decode(&path);
    let said = info.notes.iter().any(|note| note.starts_with("video track"));
    assert!(info.frames == 0 && info.codecs == ["mp3"] && said, "{info:?}");
    check_sound(&path, &kept);

    // Beside a sound that is not read the next one is, and the picture with it.
    let inputs = [picture("160x120", "10", 5.0), sound(48_000, 5.0), sound(44_100, 5.0)];
    let map = "-map 0 -map 1 -map 2 -c:v mpeg4 -q:v 3 -c:a:0 pcm_s16le -c:a:1 libmp3lame";
    let path = make(dir.path(), "b.avi", &inputs, map);
    let bytes = std::fs::read(&path).unwrap();
    // The format of the first sound: PCM is number 1.
    let format = bytes.windows(10).position(|at| at.starts_with(b"strf") && at[8..] == [1, 0]).unwrap();
    patch(&path, format + 8, &[0x77, 0x77]);
    let (info, kept) = decode(&path);
    assert!(info.codecs.last().is_some_and(|codec| codec == "mp3") && info.notes.len() == 1, "{info:?}");
    assert!(info.notes[0].starts_with("audio track") && info.frames == 50, "{info:?}");
    check_samples("the second sound", &kept.pcm(), &reference_sound(&path, "-map 0:a:1"));

    // With nothing else the refusal says what is missing.
    let path = make(dir.path(), "c.avi", &[picture("160x120", "10", 2.0)], "-c:v mpeg4 -q:v 3");
    rename(&path, b"FMP4", b"XYZW");
    let error = refused(&path);
    assert!(error.contains("GStreamer has no plugin"), "{error}");
}

#[test]
fn opus_in_mp4_begins_where_its_header_says_without_an_edit_list_and_in_fragments() {
    let dir = tempdir().unwrap();
    for (name, options) in [
        ("listed.mp4", ""),
        ("plain.mp4", "-use_editlist 0"),
        ("fragments.mp4", "-movflags frag_keyframe+empty_moov -frag_duration 500000"),
        ("cmaf.mp4", "-movflags cmaf+frag_keyframe+empty_moov -frag_duration 500000 -use_editlist 0"),
        ("long.mp4", "-use_editlist 0 -frame_duration 60"),
    ] {
        let path = make(dir.path(), name, &[sound(48_000, 4.0)], &format!("-c:a libopus -b:a 128k {options}"));
        let has_list = std::fs::read(&path).unwrap().windows(4).any(|at| at == b"elst");
        assert_eq!(has_list, name == "listed.mp4", "{name}");
        let (info, kept) = decode(&path);
        check_length(&path, info.duration_s);
        check_sound(&path, &kept);
    }
}

/// Checks that the duration of a sound is ffprobe's.
fn check_length(path: &Path, duration_s: f64) {
    let told: f64 = ffprobe(path, "-show_entries format=duration")[0].parse().unwrap();
    assert!((duration_s - told).abs() < 2e-3, "{}: {duration_s} s, ffprobe says {told}", path.display());
}
