//! Colours of films, each against ffmpeg: of single pictures, and where bitstream and container tell of them.

use std::path::{Path, PathBuf};

use crate::support::reference::check_frames;
use crate::support::{X264, decode, input, make, picture, refused, run, words};
use tempfile::tempdir;

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
            let colours = format!("-colorspace {container} -color_primaries {container} -color_trc {container}");
            let path = retold(&plain, container, &colours);
            let (info, kept) = decode(&path);
            check_frames(&path, &info, &kept);
        }
    }
}

/// A copy of a film whose container tells other colours.
fn retold(plain: &Path, name: &str, colours: &str) -> PathBuf {
    let path = plain.with_file_name(format!("{name} {}", plain.file_name().unwrap().display()));
    let mut line = words("-v error -y -i");
    line.push(plain.to_str().unwrap().to_owned());
    line.extend(words(&format!("-c copy {colours} -movflags write_colr")));
    line.push(path.to_str().unwrap().to_owned());
    run("ffmpeg", &line);
    path
}

#[test]
fn of_the_full_range_the_bitstream_is_believed_and_where_it_is_silent_the_container() {
    let dir = tempdir().unwrap();
    let inputs = [picture("96x64", "10", 3.0)];
    let hd = "-colorspace bt709 -color_primaries bt709 -color_trc bt709";
    for ending in ["mp4", "mkv", "mov"] {
        for bitstream in ["", "-color_range tv", "-color_range pc"] {
            let told = if bitstream.is_empty() { String::new() } else { format!("{bitstream} {hd}") };
            let plain = make(dir.path(), &format!("plain.{ending}"), &inputs, &format!("{X264} {told}"));
            for container in ["tv", "pc"] {
                let path = retold(&plain, container, &format!("-color_range {container} {hd}"));
                let (info, kept) = decode(&path);
                check_frames(&path, &info, &kept);
            }
        }
    }
}
