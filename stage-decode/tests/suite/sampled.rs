//! Sampled pictures are the same, byte for byte, as where every picture is decoded: what is passed over is referred to by none that is sampled.

use std::path::Path;

use crate::support::{decode_at, make, picture};
use tempfile::tempdir;

/// Pictures a second of the films.
const RATE: &str = "25";
/// Seconds of the films.
const LENGTH_S: f64 = 4.0;

/// Compares every second, seventh and twenty-fifth picture.
fn check(path: &Path) {
    let (info, all) = decode_at(path, 25.0);
    let all = all.frames(0);
    assert!(all.len() as u64 == info.frames && all.windows(2).all(|w| w[0] != w[1]), "{path:?}: {info:?}");
    for (fps, step) in [(25.0 / 2.0, 2), (25.0 / 7.0, 7), (1.0, 25)] {
        let (_, sampled) = decode_at(path, fps);
        assert_eq!(sampled.batches[0].plan.image.as_ref().unwrap().frame_step, step);
        let expected: Vec<&[u8]> = all.iter().step_by(step as usize).copied().collect();
        assert!(sampled.frames(0) == expected, "{path:?}: every {step}th picture is another one");
    }
}

#[test]
fn sampled_pictures_are_those_of_a_whole_decode() {
    let dir = tempdir().unwrap();
    let h264 = |options: &str| format!("-c:v libx264 -preset fast -g 40 -x264-params b-adapt=0:{options}");
    let h265 =
        |options: &str| format!("-c:v libx265 -preset fast -g 40 -x265-params log-level=none:b-adapt=0:{options}");
    let films = [
        ("pyramid.mp4", h264("bframes=3")),
        ("flat.mkv", h264("bframes=4:b-pyramid=none")),
        ("strict.mov", h264("bframes=5:b-pyramid=strict")),
        ("open.ts", h264("bframes=3:open-gop=1")),
        ("none.mp4", h264("bframes=0")),
        ("blocks.mp4", h264("bframes=3:tff=1")),
        ("program.mpg", "-c:v mpeg2video -bf 2".to_owned()),
        ("flat.flv", h264("bframes=3")),
        ("intra.mp4", h264("keyint=1")),
        ("h265.mp4", h265("bframes=4")),
        ("h265.ts", h265("bframes=4:open-gop=1")),
        ("layers.mkv", h265("bframes=4:temporal-layers=2")),
        ("short.mp4", h264("bframes=3:keyint=10:min-keyint=10")),
        ("short-open.mkv", h264("bframes=3:keyint=12:open-gop=1")),
        ("short-h265.mp4", h265("bframes=3:keyint=10:min-keyint=10")),
        ("short-open-h265.mp4", h265("bframes=3:keyint=12:open-gop=1")),
        ("vp8.webm", "-c:v libvpx -deadline realtime -cpu-used 8 -g 10".to_owned()),
        ("vp9.webm", "-c:v libvpx-vp9 -deadline good -cpu-used 5 -g 15 -auto-alt-ref 1 -lag-in-frames 16".to_owned()),
        ("mpeg4.mp4", "-c:v mpeg4 -bf 2 -g 10".to_owned()),
        ("short-aom.mp4", "-c:v libaom-av1 -cpu-used 8 -row-mt 1 -g 10".to_owned()),
        ("aom.mp4", "-c:v libaom-av1 -cpu-used 8 -row-mt 1".to_owned()),
        ("svt.mkv", "-c:v libsvtav1 -preset 10".to_owned()),
    ];
    for (name, options) in films {
        check(&make(dir.path(), name, &[picture("96x64", RATE, LENGTH_S)], &format!("{options} -pix_fmt yuv420p")));
    }
}
