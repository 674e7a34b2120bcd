//! Files that are no media, or not whole, and paths that may not be opened: each gives an error that names the file.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Kept, decode, make, picture, request, sound, stage};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::stage::{Stage, Stop};
use tempfile::tempdir;

/// The refusal of a file, which must come fast, name it and say what to do.
fn refusal(dir: &Path, path: &Path) -> JobError {
    let began = Instant::now();
    let error = stage(dir).probe(path.to_str().unwrap()).expect_err("should be refused");
    assert!(began.elapsed() < Duration::from_secs(30), "took {:?}", began.elapsed());
    assert!(error.message.contains(path.to_str().unwrap()), "{error} does not name the file");
    assert!(!error.hint.is_empty(), "{error} does not say what to do");
    assert_eq!(error.stage, Some(StageName::Decode));
    error
}

#[test]
fn what_is_no_medium_is_refused_by_name() {
    let dir = tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let text = "This is a letter, not a film.\n".repeat(200);
    let noise: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut head_only = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41".to_vec();
    head_only.extend([0; 100]);
    let matroska_only = [0x1a, 0x45, 0xdf, 0xa3, 0x84, 1, 2, 3];
    for path in [
        at("empty.mp4", b""),
        at("letter.mp4", text.as_bytes()),
        at("noise.mkv", &noise),
        at("one.webm", b"x"),
        at("head.mp4", &head_only),
        at("head.mkv", &matroska_only),
    ] {
        assert_eq!(refusal(dir.path(), &path).kind, ErrorKind::UnsupportedMedia, "{}", path.display());
    }
}

#[test]
fn missing_and_foreign_files_are_told_apart() {
    let dir = tempdir().unwrap();
    let outside = tempdir().unwrap();
    std::fs::write(outside.path().join("film.mp4"), b"x").unwrap();
    let link = dir.path().join("link.mp4");
    std::os::unix::fs::symlink(outside.path().join("film.mp4"), &link).unwrap();
    let kind = |path: &Path| refusal(dir.path(), path).kind;
    assert_eq!(kind(&dir.path().join("nowhere.mp4")), ErrorKind::MediaNotFound);
    assert_eq!(kind(&outside.path().join("film.mp4")), ErrorKind::ForbiddenPath);
    assert_eq!(kind(&link), ErrorKind::ForbiddenPath);
}

#[test]
fn an_mp4_that_was_cut_before_its_index_is_refused() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture("320x240", "30", 3.0)], "-c:v libx264 -preset veryfast");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = refusal(dir.path(), &path);
    assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
    assert!(error.message.contains("moov"), "{error}");
}

#[test]
fn a_film_that_was_cut_short_decodes_as_far_as_it_goes() {
    let dir = tempdir().unwrap();
    let inputs = [picture("320x240", "30", 6.0), sound(44_100, 6.0)];
    for (name, options) in [("a.mp4", "-movflags faststart"), ("a.mkv", "")] {
        let options = format!("-c:v libx264 -preset veryfast -c:a aac {options}");
        let path = make(dir.path(), name, &inputs, &options);
        let (whole, _) = decode(&path);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
        let (info, kept) = decode(&path);
        assert!(info.frames < whole.frames && info.frames > whole.frames / 3, "{name}: {} frames", info.frames);
        assert_eq!(kept.frames(0).len() as u64, info.frames.div_ceil(30), "{name}");
        let heard = kept.pcm().len();
        assert!((32_000..80_000).contains(&heard), "{name}: {heard} samples");
    }
}

#[test]
fn damage_in_the_middle_still_gives_every_planned_frame() {
    let dir = tempdir().unwrap();
    let inputs = [picture("320x240", "30", 6.0), sound(44_100, 6.0)];
    let path = make(dir.path(), "a.mp4", &inputs, "-c:v libx264 -preset veryfast -g 30 -c:a aac -movflags faststart");
    let mut bytes = std::fs::read(&path).unwrap();
    let (from, to) = (bytes.len() * 2 / 5, bytes.len() * 3 / 5);
    bytes[from..to].iter_mut().enumerate().for_each(|(i, b)| *b = (i * 31) as u8);
    std::fs::write(&path, bytes).unwrap();
    let (info, kept) = decode(&path);
    assert_eq!(info.frames, 180);
    assert_eq!(kept.frames(0).len(), 6);
    assert!(!kept.pcm().is_empty());
}

#[test]
fn a_file_that_changed_after_it_was_planned_is_not_decoded() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture("320x240", "30", 3.0)], "-c:v libx264 -preset veryfast");
    let mut stage = stage(dir.path());
    let info = stage.probe(path.to_str().unwrap()).unwrap();
    let request = request(&path, &info, None);
    make(dir.path(), "a.mp4", &[picture("320x240", "25", 3.0)], "-c:v libx264 -preset veryfast");
    let stop = stage.process(request, &mut Kept::default()).unwrap_err();
    let Stop::Failed(error) = stop else { panic!("{stop:?}") };
    assert_eq!(error.kind, ErrorKind::MediaNotFound);
    assert!(error.message.contains("changed"), "{error}");
}

#[test]
fn no_cut_of_a_file_crashes_or_hangs_the_probe() {
    let dir = tempdir().unwrap();
    let stage = stage(dir.path());
    for (name, options) in [
        ("a.mp4", "-c:v libx264 -preset veryfast -movflags faststart"),
        ("b.mp4", "-c:v libx264 -preset veryfast -movflags frag_keyframe+empty_moov"),
        ("a.webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8"),
    ] {
        let path = make(dir.path(), name, &[picture("64x64", "10", 1.0)], options);
        let bytes = std::fs::read(&path).unwrap();
        let probed = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            stage.probe(path.to_str().unwrap()).is_ok()
        };
        assert!(probed(&bytes), "{name} is good as it is");
        for cut in (9..bytes.len().min(3000)).step_by(7) {
            probed(&bytes[..cut]);
        }
        // Each byte of the index in turn says something else.
        for at in (4..bytes.len().min(1500)).step_by(3) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            probed(&damaged);
        }
    }
}
