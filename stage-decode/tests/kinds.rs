//! Kinds of files as people have them, each against ffmpeg: which track is read, how it is turned, in which order its parts
//! are shown, and what is refused by name.

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::error::ErrorKind;
use protocol::plan::MediaInfo;
use support::boxes::{Mp4, project, replace};
use support::reference::{
    check_figures, check_frames, check_pictures, check_samples, check_sound, reference_frames, reference_sound,
};
use support::{Kept, decode, decode_at, input, make, picture, sound, stage, words};
use tempfile::tempdir;

const X264: &str = "-c:v libx264 -preset veryfast";

/// A film of five seconds with sound.
fn film(dir: &Path, name: &str, options: &str) -> PathBuf {
    make(dir, name, &[picture("160x120", "10", 5.0), sound(44_100, 5.0)], options)
}

/// The refusal of a file: soon, by name, with what to do.
fn refused(path: &Path) -> String {
    let began = Instant::now();
    let error = stage(path.parent().unwrap()).probe(path.to_str().unwrap()).expect_err("should be refused");
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
    assert!(error.message.contains(path.to_str().unwrap()) && !error.hint.is_empty(), "{error}");
    error.to_string()
}

/// Every frame of a file beside ffmpeg's.
fn check_every_frame(path: &Path, info: &MediaInfo, kept: &Kept) {
    check_figures(path, info);
    let [theirs, after] = [0, 1].map(|first| reference_frames(path, info, 1, first, ""));
    check_pictures(&path.display().to_string(), &kept.frames(0), &theirs, &after);
}

#[test]
fn more_than_33_million_samples_of_pcm_are_a_sound_of_three_minutes() {
    let dir = tempdir().unwrap();
    let tone = input("aevalsrc=0.3*sin(2*PI*(300+5*t)*t):s=192000:d=180".to_owned());
    let inputs = [picture("64x64", "1", 180.0), tone];
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
    for codec in ["pcm_s24le", "pcm_s24be"] {
        let path = make(dir.path(), "plain.mov", &[sound(48_000, 2.0)], &format!("-c:a {codec}"));
        let camera = dir.path().join("camera.mp4");
        Mp4::read(&path).as_ipcm(0, codec == "pcm_s24le").write(&camera);
        let (info, kept) = decode(&camera);
        assert_eq!(info.codecs, ["pcm"]);
        check_samples(codec, &kept.pcm(), &reference_sound(&path, ""));
    }
}

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
            let theirs = reference_frames(plain, &info, 10, 0, filters);
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
            support::reference::ffprobe(&whole, &of)[0].strip_prefix("1/").unwrap().parse().unwrap()
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
fn films_of_single_pictures_keep_their_colours() {
    let dir = tempdir().unwrap();
    for (name, options) in [
        ("png.mov", "-c:v png"),
        ("grey.mov", "-c:v png -pix_fmt gray"),
        ("jpeg2000.mov", "-c:v jpeg2000 -pix_fmt rgb24"),
        ("420.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"),
        ("422.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj422p"),
        ("444.mov", "-c:v mjpeg -q:v 2 -pix_fmt yuvj444p"),
        ("444.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj444p"),
        ("422.mkv", "-c:v mjpeg -q:v 2 -pix_fmt yuvj422p"),
    ] {
        // Colours that change from row to row.
        let path = make(dir.path(), name, &[input("testsrc2=s=160x120:r=5:d=4,rotate=0.3".to_owned())], options);
        let (info, kept) = decode(&path);
        check_frames(&path, &info, &kept);
    }
    // GStreamer's demuxers do not know these.
    for (name, codec, code) in [
        ("jpeg2000.mkv", "-c:v jpeg2000", "V_MS/VFW/FOURCC"),
        ("dnxhr.mov", "-c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p", "AVdh"),
    ] {
        let error = refused(&make(dir.path(), name, &[picture("320x240", "5", 2.0)], codec));
        assert!(error.contains(&format!("video track 1 ({code}) is not read")), "{error}");
    }
}

#[test]
fn a_matrix_that_the_bitstream_tells_is_used_and_believed_before_the_container() {
    let dir = tempdir().unwrap();
    let inputs = [picture("320x240", "25", 4.0)];
    let hd = "-colorspace bt709 -color_primaries bt709 -color_trc bt709";
    let sd = "-colorspace smpte170m -color_primaries smpte170m -color_trc smpte170m";
    for (name, options) in [
        ("mpeg2.ts", format!("-c:v mpeg2video -q:v 2 {hd}")),
        ("mpeg2.mkv", format!("-c:v mpeg2video -q:v 2 {hd}")),
        ("mpeg2.mpg", format!("-c:v mpeg2video -q:v 2 {hd} -f vob")),
        ("untold.ts", "-c:v mpeg2video -q:v 2".to_owned()),
        ("h264.ts", format!("{X264} {hd}")),
        ("h264.flv", format!("{X264} {hd}")),
        ("h265.ts", format!("-c:v libx265 -preset ultrafast -x265-params log-level=error {hd}")),
        ("vp9.webm", format!("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 {hd}")),
        ("prores.mov", format!("-c:v prores_ks {hd}")),
        ("ffv1.mkv", format!("-c:v ffv1 {hd}")),
        ("mpeg4.avi", "-c:v mpeg4 -q:v 2".to_owned()),
    ] {
        let path = make(dir.path(), name, &inputs, &options);
        let (info, kept) = decode(&path);
        check_frames(&path, &info, &kept);
    }
    // The bitstream says one thing, the container another.
    for (bitstream, container) in [(hd, "smpte170m"), (sd, "bt709")] {
        for name in ["a.mp4", "a.mkv"] {
            let plain = make(dir.path(), name, &inputs, &format!("{X264} {bitstream}"));
            let path = dir.path().join(format!("{container} {name}"));
            let mut line = words("-v error -y -i");
            line.extend([plain.to_str().unwrap().to_owned()]);
            line.extend(words(&format!("-c copy -colorspace {container} -color_primaries {container}")));
            line.extend(words(&format!("-color_trc {container} -movflags write_colr")));
            line.push(path.to_str().unwrap().to_owned());
            support::run("ffmpeg", &line);
            let (info, kept) = decode(&path);
            check_frames(&path, &info, &kept);
        }
    }
}

#[test]
fn fields_of_hevc_that_come_one_by_one_are_refused_before_anything_is_planned() {
    let dir = tempdir().unwrap();
    let options = "-vf separatefields -c:v libx265 -preset ultrafast -x265-params log-level=error:interlace=1";
    for name in ["a.mp4", "a.mkv"] {
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

#[test]
fn of_joined_webm_recordings_the_first_is_seen_and_the_result_says_so() {
    let dir = tempdir().unwrap();
    let parts = [("first.webm", 4.0), ("second.webm", 3.0)]
        .map(|(name, s)| make(dir.path(), name, &[picture("160x120", "10", s)], "-c:v libvpx -deadline realtime"));
    let path = dir.path().join("joined.webm");
    std::fs::write(&path, parts.clone().map(|part| std::fs::read(part).unwrap()).concat()).unwrap();
    let (info, kept) = decode_at(&path, 10.0);
    assert!(info.frames == 40 && info.notes[0].contains("another recording begins at byte"), "{info:?}");
    check_every_frame(&parts[0], &info, &kept);
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
    let shown =
        support::reference::ffprobe(&path, "-count_frames -select_streams v:0 -show_entries stream=nb_read_frames");
    assert_eq!(shown[0], "30");
    check_samples("the fragments before", &kept.pcm(), &reference_sound(&path, ""));
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
