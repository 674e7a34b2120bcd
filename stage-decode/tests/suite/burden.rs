//! Files that ask for more work or memory than media are worth: each is refused soon, with the figures.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Kept, make, picture, request, stage, words};
use protocol::error::{ErrorKind, JobError};
use protocol::plan::MediaInfo;
use protocol::stage::{Stage, Stop};
use stage_decode::{DecodeOptions, DecodeStage};
use tempfile::tempdir;

/// Longest time of a probe of a small file.
const SOON: Duration = Duration::from_secs(20);

fn number(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

/// A box with a content.
fn boxed(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    [&number(8 + content.len() as u32)[..], name, content].concat()
}

/// A box with version, flags and a counted table.
fn table(name: &[u8; 4], rows: &[Vec<u8>]) -> Vec<u8> {
    boxed(name, &[&number(0)[..], &number(rows.len() as u32), &rows.concat()].concat())
}

fn row(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| number(*value)).collect()
}

/// A track of so many samples of a tick each, with edits of a duration and a first tick, and composition offsets.
#[derive(Clone)]
struct Track {
    handler: [u8; 4],
    samples: u32,
    edits: Vec<[u32; 2]>,
    reordered: bool,
}

impl Track {
    fn boxes(&self, id: u32) -> Vec<u8> {
        let header = [row(&[1, 0, 0, id, 0, self.samples]), vec![0; 60]].concat();
        let media_header = row(&[0, 0, 0, 1000, self.samples, 0]);
        let handler = [&number(0)[..], &number(0), &self.handler, &[0; 13]].concat();
        let entry = match &self.handler {
            b"vide" => boxed(b"avc1", &[&[0; 24][..], &[0, 64, 0, 64], &[0; 50]].concat()),
            _ => boxed(b"sowt", &[&[0; 16][..], &[0, 1, 0, 16, 0, 0, 0, 0, 0xbb, 0x80, 0, 0]].concat()),
        };
        let description = boxed(b"stsd", &[&number(0)[..], &number(1), &entry].concat());
        let mut tables = [
            description,
            table(b"stts", &[row(&[self.samples, 1])]),
            boxed(b"stsz", &row(&[0, 1, self.samples])),
            table(b"stsc", &[row(&[1, self.samples, 1])]),
            table(b"stco", &[row(&[0])]),
        ]
        .concat();
        if self.reordered {
            tables.extend(table(b"ctts", &[row(&[self.samples / 2, 2]), row(&[self.samples - self.samples / 2, 0])]));
        }
        let edits: Vec<Vec<u8>> =
            self.edits.iter().map(|[duration, start]| row(&[*duration, *start, 0x1_0000])).collect();
        let edits = if edits.is_empty() { Vec::new() } else { boxed(b"edts", &table(b"elst", &edits)) };
        let media = boxed(
            b"mdia",
            &[boxed(b"mdhd", &media_header), boxed(b"hdlr", &handler), boxed(b"minf", &boxed(b"stbl", &tables))]
                .concat(),
        );
        boxed(b"trak", &[boxed(b"tkhd", &header), edits, media].concat())
    }
}

/// An mp4 of these tracks, without media data.
fn movie(path: &Path, tracks: &[Track]) -> PathBuf {
    let header = [row(&[0, 0, 0, 1000, 1000]), vec![0; 80]].concat();
    let tracks: Vec<u8> = tracks.iter().zip(1..).flat_map(|(track, id)| track.boxes(id)).collect();
    let file = [boxed(b"ftyp", b"isom\0\0\0\0isom"), boxed(b"moov", &[boxed(b"mvhd", &header), tracks].concat())];
    std::fs::write(path, file.concat()).unwrap();
    path.to_owned()
}

/// The outcome of a probe, which must come soon.
fn probed(path: &Path) -> Result<MediaInfo, JobError> {
    let began = Instant::now();
    let probed = stage(path.parent().unwrap()).probe(path.to_str().unwrap());
    assert!(began.elapsed() < SOON, "the probe took {:?}", began.elapsed());
    probed
}

#[test]
fn a_hundred_thousand_edits_of_33_million_samples_are_counted_soon() {
    let dir = tempdir().unwrap();
    let samples = 33_000_000;
    // Every other span of 165 ticks, in an order that is not that of time.
    let edits: Vec<[u32; 2]> = (0..100_000u32).map(|n| [165, n * 7 % 100_000 * 330]).collect();
    let track = Track { handler: *b"vide", samples, edits, reordered: true };
    let path = movie(&dir.path().join("edits.mp4"), &[track]);
    assert!(path.metadata().unwrap().len() < 1_300_000, "a small file");
    let info = probed(&path).unwrap();
    // Half of the samples, less or more those that composition offsets move over a border.
    assert!(info.frames.abs_diff(u64::from(samples) / 2) < 10, "{} frames", info.frames);
}

#[test]
fn small_tables_of_many_tracks_are_refused_beyond_a_budget_of_work() {
    let dir = tempdir().unwrap();
    let tracks = |n: usize| -> Vec<Track> {
        (0..n).map(|_| Track { handler: *b"vide", samples: 33_000_000, edits: Vec::new(), reordered: true }).collect()
    };
    let path = movie(&dir.path().join("tracks.mp4"), &tracks(2_000));
    assert!(path.metadata().unwrap().len() < 1_500_000, "a small file");
    let error = probed(&path).unwrap_err();
    assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
    assert!(error.message.contains("more than 134217728 steps") && error.message.contains("tracks.mp4"), "{error}");
    assert!(probed(&movie(&dir.path().join("few.mp4"), &tracks(3))).is_ok());
}

#[test]
fn an_hour_of_pcm_is_a_table_of_one_row_and_not_refused() {
    let dir = tempdir().unwrap();
    let samples = 3600 * 48_000;
    // Of a tick each, the second hour of two is shown.
    let edits = vec![[samples, samples]];
    let track = Track { handler: *b"soun", samples: 2 * samples, edits, reordered: false };
    let info = probed(&movie(&dir.path().join("pcm.mov"), &[track])).unwrap();
    // Ticks are milliseconds here.
    assert_eq!((info.frames, info.audio_samples), (0, u64::from(samples) * 16));
}

#[test]
fn a_probe_ends_when_nobody_waits_for_it_any_more() {
    let dir = tempdir().unwrap();
    let film = make(dir.path(), "film.mp4", &[picture("64x64", "10", 2.0)], "-c:v libx264 -preset ultrafast");
    let mut stage = stage(dir.path());
    let mut planned = request(&film, &stage.probe(film.to_str().unwrap()).unwrap(), None);
    planned.plan.content_id = String::new();
    // Neither holds what is planned, which a probe that went on to its end would say.
    let text = dir.path().join("text.avi");
    std::fs::write(&text, "no film ".repeat(100_000)).unwrap();
    let silent = Track { handler: *b"soun", samples: 10, edits: Vec::new(), reordered: true };
    let many = movie(&dir.path().join("many.mp4"), &(0..50_000).map(|_| silent.clone()).collect::<Vec<_>>());
    for path in [text, many] {
        path.to_str().unwrap().clone_into(&mut planned.video);
        let mut outcome = |cancel_after| {
            let mut kept = Kept { cancel_after, ..Kept::default() };
            stage.process(planned.clone(), &mut kept).expect_err("nothing to decode")
        };
        assert_eq!(outcome(Some(0)), Stop::Cancelled);
        assert!(matches!(outcome(None), Stop::Failed(_)));
        // One that does not know the file yet.
        let other = crate::support::stage(dir.path());
        assert_eq!(other.probe_telling(path.to_str().unwrap(), &mut |_| false), Err(Stop::Cancelled));
    }
}

/// A stage with a limit on pictures.
fn limited(dir: &Path, max_pixels: u64) -> DecodeStage {
    DecodeStage::new(DecodeOptions { max_pixels, ..DecodeOptions::new([dir]) }).unwrap()
}

#[test]
fn pictures_above_the_configured_size_are_refused_by_probe_and_before_decoding() {
    let dir = tempdir().unwrap();
    for (name, codec) in [
        ("a.mp4", "-c:v libx264 -preset ultrafast"),
        ("a.webm", "-c:v libvpx -deadline realtime"),
        ("a.avi", "-c:v mjpeg"),
        ("a.ts", "-c:v mpeg2video"),
    ] {
        let path = make(dir.path(), name, &[picture("320x240", "25", 2.0)], codec);
        let info = limited(dir.path(), 320 * 240).probe(path.to_str().unwrap()).unwrap();
        let mut small = limited(dir.path(), 320 * 240 - 1);
        let error = small.probe(path.to_str().unwrap()).unwrap_err();
        let Err(Stop::Failed(decoded)) = small.process(request(&path, &info, None), &mut Kept::default()) else {
            panic!("{name} was decoded")
        };
        for error in [error, decoded] {
            assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
            let figures = ["320 x 240", "76800", "decode.max_pixels is 76799", name];
            assert!(figures.iter().all(|figure| error.message.contains(figure)), "{error}");
        }
    }
}

/// Overwrites the size that a Matroska or mp4 header tells, and nothing of the pictures themselves.
fn understate(path: &Path, told: &[u8], instead: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> =
        bytes.windows(told.len()).enumerate().filter(|(_, window)| *window == told).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{} does not tell its size so", path.display());
    places.iter().for_each(|&at| bytes[at..at + told.len()].copy_from_slice(instead));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_container_that_understates_its_pictures_is_refused_all_the_same() {
    let dir = tempdir().unwrap();
    // VP8 in Matroska: PixelWidth (0xb0) and PixelHeight (0xba), of two bytes each.
    let webm = make(dir.path(), "a.webm", &[picture("640x480", "25", 2.0)], "-c:v libvpx -deadline realtime");
    understate(&webm, &[0xb0, 0x82, 0x02, 0x80], &[0xb0, 0x82, 0x00, 0x40]);
    understate(&webm, &[0xba, 0x82, 0x01, 0xe0], &[0xba, 0x82, 0x00, 0x40]);
    // H.264 in mp4: width and height of the sample entry.
    let mp4 = make(dir.path(), "a.mp4", &[picture("640x480", "25", 2.0)], "-c:v libx264 -preset ultrafast");
    understate(&mp4, &[0x02, 0x80, 0x01, 0xe0, 0x00, 0x48], &[0x00, 0x40, 0x00, 0x40, 0x00, 0x48]);
    // Others in Matroska.
    let [vp9, hevc, mpeg2, jpeg] = [
        ("b.webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8"),
        ("c.mkv", "-c:v libx265 -preset ultrafast -x265-params log-level=error"),
        ("d.mkv", "-c:v mpeg2video"),
        ("e.mkv", "-c:v mjpeg"),
    ]
    .map(|(name, codec)| {
        let path = make(dir.path(), name, &[picture("640x480", "25", 2.0)], codec);
        understate(&path, &[0xb0, 0x82, 0x02, 0x80], &[0xb0, 0x82, 0x00, 0x40]);
        understate(&path, &[0xba, 0x82, 0x01, 0xe0], &[0xba, 0x82, 0x00, 0x40]);
        path
    });
    for path in [webm, mp4, vp9, hevc, mpeg2, jpeg] {
        let mut stage = limited(dir.path(), 640 * 480 - 1);
        let mut kept = Kept::default();
        // Where a probe tries whether the track decodes, it is told by then.
        let outcome = match stage.probe(path.to_str().unwrap()) {
            Ok(info) => {
                assert_eq!((info.width, info.height), (64, 64));
                stage.process(request(&path, &info, None), &mut kept)
            }
            Err(error) => Err(Stop::Failed(error)),
        };
        let Err(Stop::Failed(error)) = outcome else { panic!("{}: {outcome:?}", path.display()) };
        assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
        assert!(error.message.contains("640 x 480") && kept.batches.is_empty(), "{error}");
    }
}

#[test]
fn pictures_that_grow_in_the_middle_are_refused_there() {
    let dir = tempdir().unwrap();
    let codec = "-c:v libx264 -preset ultrafast -f h264";
    let parts = [("small.h264", "320x240"), ("large.h264", "640x480")]
        .map(|(name, size)| std::fs::read(make(dir.path(), name, &[picture(size, "25", 2.0)], codec)).unwrap());
    let joined = dir.path().join("joined.h264");
    std::fs::write(&joined, parts.concat()).unwrap();
    let path = dir.path().join("joined.mkv");
    let line = format!("-v error -y -f h264 -framerate 25 -i {} -c copy {}", joined.display(), path.display());
    crate::support::run("ffmpeg", &words(&line));
    let mut stage = limited(dir.path(), 640 * 480 - 1);
    let info = stage.probe(path.to_str().unwrap()).unwrap();
    assert_eq!((info.width, info.height, info.frames), (320, 240, 100));
    let outcome = stage.process(request(&path, &info, None), &mut Kept::default());
    let Err(Stop::Failed(error)) = outcome else { panic!("{outcome:?}") };
    assert!(error.kind == ErrorKind::UnsupportedMedia && error.message.contains("640 x 480"), "{error}");
    let mut kept = Kept::default();
    limited(dir.path(), 640 * 480).process(request(&path, &info, None), &mut kept).unwrap();
    assert_eq!(kept.frames(0).len(), 4);
}
