//! Uncompressed sound, each against ffmpeg.

use std::f64::consts::PI;

use crate::support::boxes::Mp4;
use crate::support::reference::{check_frames, check_samples, check_sound, reference_sound};
use crate::support::{X264, decode, make, picture, sound, words};
use tempfile::tempdir;

#[test]
fn more_than_33_million_samples_of_pcm_are_a_sound_of_three_minutes() {
    let dir = tempdir().unwrap();
    // ffmpeg takes 3 s longer to compute it.
    let tone = |n: u32| {
        let t = f64::from(n) / 192e3;
        (128.0 + 38.0 * (2.0 * PI * (300.0 + 5.0 * t) * t).sin()).round() as u8
    };
    let raw = dir.path().join("tone.raw");
    std::fs::write(&raw, (0..192_000 * 180).map(tone).collect::<Vec<u8>>()).unwrap();
    let raw = raw.to_str().unwrap().to_owned();
    let inputs = [picture("64x64", "1", 180.0), [words("-f u8 -ar 192000 -ac 1 -i"), vec![raw]].concat()];
    let path = make(dir.path(), "a.mov", &inputs, &format!("{X264} -c:a pcm_u8"));
    assert!(path.metadata().unwrap().len() > 33_554_432);
    let (info, kept) = decode(&path);
    assert_eq!(info.frames, 180);
    check_frames(&path, &info, &kept);
    check_sound(&path, &kept);
}

#[test]
fn uncompressed_sound_of_every_encoding_is_ffmpegs() {
    let dir = tempdir().unwrap();
    let low =
        "pcm_s8 pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_s32be pcm_f32le pcm_f32be pcm_f64le pcm_f64be";
    // Above 65,535 Hz QuickTime describes sound in another way (`lpcm`).
    let codecs = low.split(' ').flat_map(|codec| [(codec, 44_100), (codec, 96_000)]);
    for (codec, rate) in
        codecs.chain([("pcm_u8", 44_100), ("pcm_u8", 96_000), ("pcm_alaw", 44_100), ("adpcm_ima_qt", 44_100)])
    {
        let path = make(dir.path(), "a.mov", &[sound(rate, 2.0)], &format!("-c:a {codec}"));
        let (info, kept) = decode(&path);
        assert!(info.notes.is_empty(), "{codec}: {:?}", info.notes);
        check_samples(&format!("{codec} {rate}"), &kept.pcm(), &reference_sound(&path, ""));
    }
}

/// Options of files with an index, and of those in fragments.
const LAYOUTS: [&str; 2] = ["", "-movflags frag_keyframe+empty_moov -frag_duration 500000"];

#[test]
fn sound_of_cameras_and_of_fragments_is_ffmpegs() {
    let dir = tempdir().unwrap();
    for layout in LAYOUTS {
        for (codec, as_camera) in [
            ("pcm_s16le", None),
            ("pcm_s16be", None),
            ("pcm_s24le", Some(*b"ipcm")),
            ("pcm_s24be", Some(*b"ipcm")),
            ("pcm_f32le", Some(*b"fpcm")),
            ("pcm_f32be", Some(*b"fpcm")),
        ] {
            let name = format!("{codec} {layout}");
            let path = make(dir.path(), "plain.mov", &[sound(48_000, 2.0)], &format!("-c:a {codec} {layout}"));
            let theirs = reference_sound(&path, "");
            check_samples(&name, &decode(&path).1.pcm(), &theirs);
            if let Some(code) = as_camera {
                let camera = dir.path().join("camera.mp4");
                Mp4::read(&path).as_camera_pcm(0, &code, codec.ends_with("le")).write(&camera);
                let (info, kept) = decode(&camera);
                assert_eq!(info.codecs, ["pcm"]);
                check_samples(&name, &kept.pcm(), &theirs);
            }
        }
    }
}
