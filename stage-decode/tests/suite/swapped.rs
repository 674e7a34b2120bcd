//! Files that are replaced while they are opened: none outside of the media roots is read, and none blocks.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::support::{Kept, make, picture, request, stage};
use protocol::error::ErrorKind;
use protocol::stage::{Stage, Stop};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use stage_decode::DecodeStage;
use tempfile::{TempDir, tempdir};

const OPTIONS: &str = "-c:v libx264 -preset ultrafast";
/// Probes of a case, at least; one that waited at a pipe would be among these many.
const PROBES: usize = 30_000;
/// Probes of a case that must have met either of the two places; more are made until then.
const EITHER: usize = 50;
/// Longest time of a case.
const LONGEST: Duration = Duration::from_secs(90);

/// Thread that exchanges two places in the file system over and over, until dropped. Both are there all the time.
struct Swapping {
    stop: Arc<AtomicBool>,
    times: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapping {
    fn start(one: &Path, other: &Path) -> Self {
        let (one, other) = (one.to_owned(), other.to_owned());
        let (stop, times) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), times.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Swapping { stop, times, thread: Some(thread) }
    }

    fn times(&self) -> usize {
        self.times.load(Ordering::Relaxed)
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// A media root with a film of 64 x 64, and a film of 128 x 128 outside of it.
fn inside_and_outside() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&outside).unwrap();
    let inside = make(&root, "inside.mp4", &[picture("64x64", "10", 2.0)], OPTIONS);
    let outside = make(&outside, "outside.mp4", &[picture("128x128", "10", 2.0)], OPTIONS);
    (dir, inside, outside)
}

/// Probes a path many times while what lies there changes: the file of 64 x 64, which is read, or something else, which
/// is refused.
fn probe_all(stage: &DecodeStage, path: &Path, refusals: &[ErrorKind]) {
    let (mut read, mut refused) = (0, 0);
    let began = Instant::now();
    while read + refused < PROBES || (read.min(refused) < EITHER && began.elapsed() < LONGEST) {
        match stage.probe(path.to_str().unwrap()) {
            Ok(info) => {
                assert_eq!((info.width, info.height), (64, 64), "a file outside of the media roots was read");
                read += 1;
            }
            Err(error) => {
                assert!(refusals.contains(&error.kind), "{error}");
                refused += 1;
            }
        }
    }
    assert!(read.min(refused) >= EITHER, "{read} read, {refused} refused");
}

/// What a probe may say of a path that leads out of the media roots, or to another place all the time.
const OUTSIDE: [ErrorKind; 2] = [ErrorKind::ForbiddenPath, ErrorKind::MediaNotFound];

#[test]
fn a_link_in_the_place_of_a_file_never_leads_out_of_the_media_roots() {
    let (dir, inside, outside) = inside_and_outside();
    let root = dir.path().join("root");
    let link = root.join("link.mp4");
    symlink(outside, &link).unwrap();
    let swapping = Swapping::start(&inside, &link);
    probe_all(&stage(&root), &inside, &OUTSIDE);
    assert!(swapping.times() > PROBES, "{} swaps", swapping.times());
}

#[test]
fn a_link_in_the_place_of_a_directory_never_leads_out_of_the_media_roots() {
    let (dir, inside, outside) = inside_and_outside();
    let root = dir.path().join("root");
    let (real, link) = (root.join("real"), root.join("link"));
    std::fs::create_dir(&real).unwrap();
    std::fs::rename(&inside, real.join("film.mp4")).unwrap();
    std::fs::rename(&outside, outside.with_file_name("film.mp4")).unwrap();
    symlink(dir.path().join("outside"), &link).unwrap();
    let swapping = Swapping::start(&real, &link);
    probe_all(&stage(&root), &real.join("film.mp4"), &OUTSIDE);
    assert!(swapping.times() > PROBES, "{} swaps", swapping.times());
}

#[test]
fn what_is_decoded_is_the_file_that_was_probed_whatever_takes_its_place() {
    let (dir, inside, outside) = inside_and_outside();
    let root = dir.path().join("root");
    let mut stage = stage(&root);
    let info = stage.probe(inside.to_str().unwrap()).unwrap();
    let asked = request(&inside, &info, None);
    let mut expected = Kept::default();
    stage.process(asked.clone(), &mut expected).unwrap();
    let link = root.join("link.mp4");
    symlink(outside, &link).unwrap();
    let _swapping = Swapping::start(&inside, &link);
    let (mut decoded, began) = (0, Instant::now());
    while decoded < 20 && began.elapsed() < LONGEST {
        let mut kept = Kept::default();
        match stage.process(asked.clone(), &mut kept) {
            Ok(()) => {
                assert!(kept.frames(0) == expected.frames(0), "another file was decoded");
                decoded += 1;
            }
            Err(Stop::Failed(error)) => assert!(OUTSIDE.contains(&error.kind), "{error}"),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(decoded, 20, "decodings of a file that is replaced all the time");
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_never_blocks() {
    let (dir, inside, _) = inside_and_outside();
    let root = dir.path().join("root");
    let pipe = root.join("pipe");
    crate::support::run("mkfifo", &[pipe.to_str().unwrap().to_owned()]);
    let swapping = Swapping::start(&inside, &pipe);
    let (send, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let refusals = [ErrorKind::UnsupportedMedia, ErrorKind::MediaNotFound];
        probe_all(&stage(&root), &inside, &refusals);
        send.send(()).unwrap();
    });
    ended.recv_timeout(LONGEST * 2).expect("a probe failed or blocks");
    assert!(swapping.times() > PROBES, "{} swaps", swapping.times());
}
