//! Files whose reads take long or never come back, as on a slow or silent share: what is limited is the time without
//! progress, and the stage's own word comes with the figures.

mod share;
#[path = "../suite/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use protocol::error::{ErrorKind, JobError};
use protocol::stage::{Looked, Stage, Stop};
use share::{Hold, hold};
use stage_decode::{DecodeOptions, DecodeStage};
use support::reference::{check_frames, check_sound};
use support::{Kept, make, picture, request, sound};
use tempfile::tempdir;

/// Longest time without progress here.
const STALL: Duration = Duration::from_secs(2);
/// Longest time for what is not held up.
const SOON: Duration = Duration::from_secs(2);

fn stage(dir: &Path) -> DecodeStage {
    let options = DecodeOptions { stall_timeout: STALL, ..DecodeOptions::new([dir]) };
    DecodeStage::new(options).unwrap()
}

fn film(dir: &Path, name: &str, codecs: &str) -> PathBuf {
    // Links are followed before a file is opened.
    let dir = dir.canonicalize().unwrap();
    make(&dir, name, &[picture("160x120", "10", 20.0), sound(44_100, 20.0)], codecs)
}

const TS: &str = "-c:v mpeg2video -b:v 200k -c:a mp2";

#[test]
fn a_scan_that_goes_on_is_answered_however_long_it_takes_and_another_file_meanwhile() {
    let dir = tempdir().unwrap();
    let (long, short) = (film(dir.path(), "long.ts", TS), film(dir.path(), "short.ts", TS));
    hold(&long, Hold::Each(Duration::from_millis(40)));
    let stage = &stage(dir.path());
    let (mut told, began) = (Vec::new(), Instant::now());
    let info = thread::scope(|scope| {
        let probing = scope.spawn(|| {
            let mut tell = |looked: Looked| {
                told.push(looked);
                true
            };
            stage.probe_telling(long.to_str().unwrap(), &mut tell)
        });
        thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        assert_eq!(stage.probe(short.to_str().unwrap()).unwrap().frames, 200);
        assert!(began.elapsed() < SOON && !probing.is_finished(), "took {:?}", began.elapsed());
        probing.join().unwrap().unwrap()
    });
    assert!(began.elapsed() > 2 * STALL, "a scan of {:?} shows nothing", began.elapsed());
    // How far it was is told, up to all of the file.
    let size = long.metadata().unwrap().len();
    assert!(told.is_sorted_by_key(|looked| looked.read_bytes) && told.iter().all(|looked| looked.size_bytes == size));
    assert!(told.iter().any(|looked| (1..size / 2).contains(&looked.read_bytes)), "{told:?}");
    assert!(told.last().unwrap().read_bytes >= size / 2, "{told:?}");
    hold(&long, Hold::Each(Duration::ZERO));
    let mut kept = Kept::default();
    stage.clone().process(request(&long, &info, None), &mut kept).unwrap();
    check_frames(&long, &info, &kept);
    check_sound(&long, &kept);
}

/// The error of work on a file of which nothing can be read, which must come soon after the limit.
fn stuck(path: &Path, work: impl FnOnce() -> JobError) {
    let began = Instant::now();
    let error = work();
    let took = began.elapsed();
    assert!(took >= STALL && took < STALL + 3 * SOON, "{}: {took:?}", path.display());
    assert_eq!(error.kind, ErrorKind::MediaNotFound, "{error}");
    let size = path.metadata().unwrap().len().to_string();
    let figures = [path.to_str().unwrap(), "a read at byte", &size, "has not come back for"];
    assert!(figures.iter().all(|figure| error.message.contains(figure)), "{error}");
}

#[test]
fn a_read_that_does_not_come_back_ends_a_probe_and_a_decode_with_its_figures() {
    let dir = tempdir().unwrap();
    // The filter comes before the threads that have one of their own.
    hold(dir.path(), Hold::Each(Duration::ZERO));
    let stage = stage(dir.path());
    let h264 = "-c:v libx264 -preset ultrafast -b:v 400k";
    for (name, codecs, is_read_through) in [
        ("scanned.ts", TS, true),
        ("blocks.mkv", &format!("{h264} -c:a aac"), true),
        ("index.mp4", &format!("{h264} -c:a aac"), false),
        ("pcm.mov", &format!("{h264} -c:a pcm_s16le"), false),
    ] {
        let path = film(dir.path(), name, codecs);
        let size = path.metadata().unwrap().len();
        // Decoding comes to a place that the probe has come by.
        let info = stage.probe(path.to_str().unwrap()).unwrap();
        hold(&path, Hold::Within(size / 3, size / 3 + 32_768));
        let planned = request(&path, &info, None);
        stuck(&path, || match stage.clone().process(planned, &mut Kept::default()) {
            Err(Stop::Failed(error)) => error,
            other => panic!("{name}: {other:?}"),
        });
        let unknown = self::stage(dir.path());
        let probed = || unknown.probe(path.to_str().unwrap());
        match is_read_through {
            true => stuck(&path, || probed().expect_err("nothing more can be read")),
            false => assert_eq!(probed().unwrap(), info),
        }
    }
    // Others are read all the same.
    let path = film(dir.path(), "other.ts", TS);
    assert_eq!(stage.probe(path.to_str().unwrap()).unwrap().frames, 200);
}
