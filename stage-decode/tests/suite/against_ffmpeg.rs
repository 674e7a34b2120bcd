//! Frames and sound against ffmpeg, on files that ffmpeg makes at test time.
//!
//! Frames are compared at 384 x 384: ffmpeg's own rgb24 pictures, scaled by this crate's resize, which is Pillow's bit
//! for bit (resize.rs). To be sure that the very frame is meant, the one after it must not match.

use crate::support::reference::{SAME, check_frames, check_sound};
use crate::support::{decode, input, make, picture, run, snr, sound, words};
use protocol::plan::MediaInfo;
use tempfile::tempdir;

fn both(name: &str, inputs: &[Vec<String>], options: &str) -> MediaInfo {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), name, inputs, options);
    let (info, kept) = decode(&path);
    check_frames(&path, &info, &kept);
    check_sound(&path, &kept);
    info
}

fn frames(name: &str, inputs: &[Vec<String>], options: &str) -> MediaInfo {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), name, inputs, options);
    let (info, kept) = decode(&path);
    check_frames(&path, &info, &kept);
    assert!(kept.windows.is_empty() && !info.has_audio);
    info
}

fn only_sound(name: &str, rate: u32, options: &str) {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), name, &[sound(rate, 3.0)], options);
    let (info, kept) = decode(&path);
    assert!(kept.batches.is_empty() && info.frames == 0 && info.has_audio);
    check_sound(&path, &kept);
}

const X264: &str = "-c:v libx264 -preset veryfast";

#[test]
fn h264_with_b_frames_at_29_97_and_aac_at_44100() {
    let inputs = [picture("640x360", "30000/1001", 4.0), sound(44_100, 4.0)];
    let info = both("a.mp4", &inputs, &format!("{X264} -bf 3 -c:a aac"));
    assert!((info.avg_fps - 30_000.0 / 1001.0).abs() < 1e-9);
    assert_eq!(info.codecs, ["h264", "aac"]);
}

#[test]
fn vp9_with_hidden_frames_and_opus_in_webm_at_24() {
    let inputs = [picture("320x180", "24", 4.0), sound(48_000, 4.0)];
    let codecs = "-c:v libvpx-vp9 -b:v 300k -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 8 -c:a libopus";
    assert_eq!(both("a.webm", &inputs, codecs).container, "webm");
}

#[test]
fn vp8_with_hidden_frames_and_vorbis_in_webm() {
    let inputs = [picture("320x240", "25", 4.0), sound(44_100, 4.0)];
    both("a.webm", &inputs, "-c:v libvpx -b:v 300k -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 8 -c:a libvorbis");
}

#[test]
fn ten_bit_h265_in_mp4() {
    let codecs =
        "-c:v libx265 -preset ultrafast -x265-params log-level=error -pix_fmt yuv420p10le -tag:v hvc1 -c:a aac";
    both("a.mp4", &[picture("320x240", "30", 3.0), sound(48_000, 3.0)], codecs);
}

#[test]
fn av1_in_mp4_and_webm() {
    let inputs = [picture("320x240", "30", 3.0)];
    frames("a.mp4", &inputs, "-c:v libaom-av1 -cpu-used 8 -usage realtime");
    frames("a.webm", &inputs, "-c:v libaom-av1 -cpu-used 8 -usage realtime");
}

#[test]
fn odd_sizes() {
    for (size, pixels) in
        [("323x241", "yuv420p"), ("322x241", "yuv420p"), ("321x240", "yuv420p"), ("321x241", "yuv444p")]
    {
        // testsrc, unlike testsrc2, keeps an odd size.
        let inputs = [input(format!("testsrc=s={size}:r=10:d=3"))];
        let options = format!("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -pix_fmt {pixels}");
        let info = frames("a.webm", &inputs, &options);
        assert_eq!(format!("{}x{}", info.width, info.height), size);
    }
}

#[test]
fn matrix_and_range_as_tagged() {
    let inputs = [picture("320x240", "25", 3.0)];
    frames("hd.mp4", &inputs, &format!("{X264} -colorspace bt709 -color_primaries bt709 -color_trc bt709"));
    frames("full.mp4", &inputs, &format!("{X264} -pix_fmt yuvj420p"));
    frames("large.mp4", &[picture("1280x720", "5", 3.0)], X264);
    frames("jpeg.mov", &inputs, "-c:v mjpeg -q:v 3");
}

#[test]
fn frames_of_varying_rate_are_counted_not_timed() {
    let gaps = format!("-vf select='not(eq(mod(n,7),3))*not(between(n,40,60))' -vsync vfr {X264}");
    for name in ["a.mp4", "a.mkv"] {
        assert_eq!(frames(name, &[picture("320x240", "30", 6.0)], &gaps).frames, 136);
    }
}

#[test]
fn a_picture_filmed_lying_stands_upright() {
    for turn in [90, 180, 270] {
        let dir = tempdir().unwrap();
        let lying = make(dir.path(), "lying.mp4", &[picture("320x180", "25", 3.0)], X264);
        let path = dir.path().join("turned.mp4");
        let line =
            format!("-v error -y -i {} -c copy -metadata:s:v:0 rotate={turn} {}", lying.display(), path.display());
        run("ffmpeg", &words(&line));
        let (info, kept) = decode(&path);
        assert_ne!(info.rotation, 0, "the tag arrived");
        assert_eq!((info.width, info.height), if turn == 180 { (320, 180) } else { (180, 320) });
        check_frames(&path, &info, &kept);
    }
}

#[test]
fn a_cut_without_re_encoding_shows_what_its_edit_list_says() {
    let dir = tempdir().unwrap();
    let inputs = [picture("320x240", "30", 6.0), sound(44_100, 6.0)];
    let whole = make(dir.path(), "whole.mp4", &inputs, &format!("{X264} -g 60 -bf 2 -c:a aac"));
    let path = dir.path().join("cut.mp4");
    run("ffmpeg", &words(&format!("-v error -y -ss 1.3 -i {} -c copy -t 3 {}", whole.display(), path.display())));
    let (info, kept) = decode(&path);
    check_frames(&path, &info, &kept);
    check_sound(&path, &kept);
}

#[test]
fn an_open_group_of_pictures_that_was_cut_is_not_shifted() {
    let dir = tempdir().unwrap();
    let open = "-c:v libx265 -preset veryfast -x265-params log-level=error:open-gop=1:keyint=25";
    let whole = make(dir.path(), "whole.mkv", &[picture("320x240", "50", 5.0)], open);
    let path = dir.path().join("cut.mp4");
    run("ffmpeg", &words(&format!("-v error -y -ss 1.1 -i {} -c copy {}", whole.display(), path.display())));
    let (info, kept) = decode(&path);
    check_frames(&path, &info, &kept);
}

#[test]
fn opus_that_was_cut_still_loses_its_delay() {
    let dir = tempdir().unwrap();
    let whole = make(dir.path(), "whole.webm", &[sound(48_000, 4.0)], "-c:a libopus");
    let path = dir.path().join("cut.webm");
    run("ffmpeg", &words(&format!("-v error -y -ss 1.2 -i {} -c copy {}", whole.display(), path.display())));
    check_sound(&path, &decode(&path).1);
}

#[test]
fn of_several_sounds_the_one_that_ffmpeg_takes() {
    for (name, options) in [("a.mp4", ""), ("a.mkv", "-disposition:a:0 default"), ("a.ts", "")] {
        let mono = input("aevalsrc=0.3*sin(2*PI*300*t):s=44100:d=3".to_owned());
        let inputs = [picture("320x240", "25", 3.0), mono, sound(48_000, 3.0)];
        let options = format!("-map 0 -map 1 -map 2 {X264} -c:a aac {options}");
        let dir = tempdir().unwrap();
        let path = make(dir.path(), name, &inputs, &options);
        let (_, kept) = decode(&path);
        let mut all = words("-v error -i");
        all.push(path.to_str().unwrap().to_owned());
        all.extend(words("-f s16le -ac 1 -ar 16000 -"));
        let raw = run("ffmpeg", &all);
        let theirs: Vec<i16> = raw.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect();
        assert!(snr(&theirs, &kept.pcm()) > SAME, "{name}");
    }
}

#[test]
fn fragmented_mp4() {
    for flags in ["frag_keyframe+empty_moov", "frag_keyframe"] {
        let inputs = [picture("320x240", "30", 4.0), sound(44_100, 4.0)];
        both("a.mp4", &inputs, &format!("{X264} -g 30 -c:a aac -movflags {flags}"));
    }
}

#[test]
fn sound_of_five_channels_and_a_low_one() {
    let tones = [440, 660, 1000, 50, 1500, 5000].map(|f| format!("0.25*sin(2*PI*{f}*t)")).join("|");
    let inputs = [picture("320x240", "30", 3.0), input(format!("aevalsrc={tones}:s=48000:d=3:c=5.1"))];
    both("a.mp4", &inputs, &format!("{X264} -c:a aac -ac 6"));
    both("a.mkv", &inputs, &format!("{X264} -c:a ac3 -ac 6"));
    both("b.mkv", &inputs, &format!("{X264} -c:a libopus -ac 6"));
}

#[test]
fn sound_that_starts_late_is_not_padded() {
    for name in ["a.mp4", "a.mkv"] {
        let mut late = words("-itsoffset 1.5");
        late.extend(sound(44_100, 2.0));
        both(name, &[picture("320x240", "30", 4.0), late], &format!("{X264} -c:a aac"));
    }
}

#[test]
fn other_containers() {
    let inputs = [picture("320x240", "25", 4.0), sound(44_100, 4.0)];
    both("a.mov", &inputs, &format!("{X264} -c:a aac"));
    both("a.mkv", &inputs, &format!("{X264} -c:a libmp3lame"));
    both("a.avi", &inputs, "-c:v mpeg4 -c:a libmp3lame");
    both("a.flv", &inputs, &format!("{X264} -c:a aac"));
}

#[test]
fn sound_alone() {
    only_sound("a.mp3", 44_100, "-c:a libmp3lame");
    only_sound("plain.mp3", 44_100, "-c:a libmp3lame -write_xing 0");
    only_sound("a.m4a", 44_100, "-c:a aac");
    only_sound("a.wav", 44_100, "");
    only_sound("native.wav", 16_000, "");
    only_sound("a.flac", 48_000, "");
    only_sound("a.opus", 48_000, "-c:a libopus");
    only_sound("a.ogg", 44_100, "-c:a libvorbis");
}

#[test]
fn the_picture_on_a_cover_is_not_a_film() {
    let dir = tempdir().unwrap();
    let cover = make(dir.path(), "cover.png", &[input("testsrc2=s=64x64:r=1:d=1".to_owned())], "-frames:v 1");
    for (name, options) in
        [("a.mp3", "-c:a libmp3lame -id3v2_version 3"), ("a.m4a", "-c:a aac"), ("a.flac", "-c:a flac")]
    {
        let inputs = [sound(44_100, 3.0), vec!["-i".to_owned(), cover.to_str().unwrap().to_owned()]];
        let options = format!("-map 0 -map 1 -c:v copy -disposition:v attached_pic {options}");
        let path = make(dir.path(), name, &inputs, &options);
        let (info, kept) = decode(&path);
        assert_eq!((info.frames, info.has_audio), (0, true), "{name}");
        check_sound(&path, &kept);
    }
}
