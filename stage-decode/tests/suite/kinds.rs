//! Kinds of files as people have them, each against ffmpeg: which track is read, and what is refused by name.

use crate::support::boxes::{Mp4, replace};
use crate::support::reference::{check_every_frame, check_frames, check_samples, check_sound, reference_sound};
use crate::support::{X264, decode, film, input, make, picture, refused, sound};
use tempfile::tempdir;

#[test]
fn chapter_pictures_are_no_film() {
    for codec in ["-c:v mjpeg", X264] {
        let dir = tempdir().unwrap();
        let inputs = [sound(44_100, 5.0), picture("320x240", "1", 5.0)];
        let path = make(dir.path(), "book.mp4", &inputs, &format!("-map 0 -map 1 -c:a aac {codec}"));
        Mp4::read(&path).chapters(0, 2).write(&path);
        let (info, kept) = decode(&path);
        assert_eq!((info.frames, info.has_audio, &info.notes[..]), (0, true, &[][..]), "{codec}");
        check_sound(&path, &kept);
    }
    // Beside a film they are larger than it.
    let dir = tempdir().unwrap();
    let inputs = [picture("160x120", "10", 5.0), sound(44_100, 5.0), picture("320x240", "1", 5.0)];
    let path = make(dir.path(), "film.mp4", &inputs, &format!("-map 0 -map 1 -map 2 {X264} -c:a aac"));
    Mp4::read(&path).chapters(1, 3).write(&path);
    let (info, kept) = decode(&path);
    assert_eq!((info.width, info.frames), (160, 50));
    check_frames(&path, &info, &kept);
}

#[test]
fn of_several_tracks_one_that_decodes_is_read_and_the_result_says_which_is_not() {
    let dir = tempdir().unwrap();
    let tones = [440, 660, 1000, 50, 1500, 5000].map(|f| format!("0.25*sin(2*PI*{f}*t)")).join("|");
    let inputs =
        [picture("160x120", "10", 5.0), input(format!("aevalsrc={tones}:s=48000:d=5:c=5.1")), sound(44_100, 5.0)];
    let path = make(dir.path(), "phone.mp4", &inputs, &format!("-map 0 -map 1 -map 2 {X264} -c:a:0 ac3 -c:a:1 aac"));
    Mp4::read(&path).code(1, b"ac-3", b"apac").write(&path);
    let (info, kept) = decode(&path);
    assert!(info.notes.len() == 1 && info.notes[0].contains("track 2 (apac)"), "{:?}", info.notes);
    assert_eq!(kept.batches[0].plan.notes, info.notes);
    check_frames(&path, &info, &kept);
    check_samples("the second sound", &kept.pcm(), &reference_sound(&path, "-map 0:a:1"));
    // Without another one the picture is answered, or the sound.
    Mp4::read(&path).code(2, b"mp4a", b"ipcm").write(&path);
    let (info, kept) = decode(&path);
    assert!(!info.has_audio && info.notes.len() == 2 && info.notes[1].contains("track 3 (ipcm)"), "{:?}", info.notes);
    assert_eq!((info.frames, kept.windows.len()), (50, 0));
    let path = film(dir.path(), "sound.mp4", &format!("{X264} -c:a aac"));
    Mp4::read(&path).code(0, b"avc1", b"xyz1").write(&path);
    let (info, kept) = decode(&path);
    assert!(info.frames == 0 && info.notes[0].contains("video track 1 (xyz1)"), "{:?}", info.notes);
    check_sound(&path, &kept);
    // With nothing else the refusal names both.
    Mp4::read(&path).code(1, b"mp4a", b"apac").write(&path);
    let error = refused(&path);
    assert!(error.contains("xyz1") && error.contains("apac"), "{error}");
}

#[test]
fn a_track_of_matroska_that_does_not_decode_is_passed_over() {
    let dir = tempdir().unwrap();
    let inputs = [picture("160x120", "10", 5.0), sound(48_000, 5.0), sound(44_100, 5.0)];
    let options = format!("-map 0 -map 1 -map 2 {X264} -c:a:0 ac3 -c:a:1 aac");
    let path = make(dir.path(), "a.mkv", &inputs, &options);
    replace(&path, b"A_AC3", b"A_XYZ");
    let (info, kept) = decode(&path);
    assert!(info.notes[0].contains("A_XYZ") && info.codecs == ["h264", "aac"], "{info:?}");
    check_samples("the second sound", &kept.pcm(), &reference_sound(&path, "-map 0:a:1"));
}

#[test]
fn pictures_are_refused_at_once_and_animated_ones_with_a_way_out() {
    let dir = tempdir().unwrap();
    for (name, options, what) in [
        ("a.gif", "", "a GIF"),
        ("a.webp", "-c:v libwebp_anim -loop 0", "a WebP picture"),
        ("a.png", "-f apng", "a PNG picture"),
        ("a.tiff", "-frames:v 1", "a TIFF picture"),
        ("a.bmp", "-frames:v 1", "a BMP picture"),
    ] {
        let path = make(dir.path(), name, &[picture("64x64", "5", 2.0)], options);
        let error = refused(&path);
        assert!(error.contains(what) && error.contains("ffmpeg -i IN"), "{error}");
    }
}

#[test]
fn a_podcast_with_one_picture_is_heard_and_slides_are_all_seen() {
    let dir = tempdir().unwrap();
    for name in ["one.mp4", "one.mkv"] {
        let inputs = [picture("160x120", "10", 0.1), sound(44_100, 5.0)];
        let path = make(dir.path(), name, &inputs, &format!("{X264} -c:a aac"));
        let (info, kept) = decode(&path);
        assert_eq!((info.frames, kept.batches.len()), (1, 0), "{name}");
        assert!(kept.windows[0].plan.notes[0].contains("the picture is not used: 1 frames"), "{name}");
        check_sound(&path, &kept);
    }
    for name in ["slides.mp4", "slides.mkv"] {
        let inputs = [picture("160x120", "1/4", 20.0), sound(44_100, 20.0)];
        let path = make(dir.path(), name, &inputs, &format!("{X264} -c:a aac"));
        let (info, kept) = decode(&path);
        assert_eq!((info.frames, kept.frames(0).len()), (5, 5), "{name}");
        assert!(kept.batches[0].plan.notes[0].contains("every frame is taken"), "{name}");
        check_every_frame(&path, &info, &kept);
        check_sound(&path, &kept);
    }
}
