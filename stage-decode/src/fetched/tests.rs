//! Files on a bus that is in memory.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Files in memory, with a count of how often one was fetched.
#[derive(Default)]
struct Source {
    files: Mutex<HashMap<String, Vec<u8>>>,
    fetched: AtomicUsize,
}

impl FileSource for Source {
    fn fetch(&self, name: &str, into: &Path, tell: &mut Tell<'_>) -> Result<(), Stop> {
        let bytes = self.files.lock().unwrap()[name].clone();
        self.fetched.fetch_add(1, Ordering::Relaxed);
        if !tell(Looked { read_bytes: 0, size_bytes: bytes.len() as u64 }) {
            return Err(Stop::Cancelled);
        }
        std::fs::write(into, bytes).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_891);
        File::options().append(true).open(into).unwrap().set_modified(at).unwrap();
        Ok(())
    }

    fn size(&self, name: &str) -> Result<u64, Stop> {
        let gone = || Stop::Failed(JobError::new(ErrorKind::MediaNotFound, "gone"));
        self.files.lock().unwrap().get(name).map(|bytes| bytes.len() as u64).ok_or_else(gone)
    }
}

fn name(digit: char) -> String {
    format!("{}.mp4", digit.to_string().repeat(DIGITS))
}

fn spool(dir: &Path, quota: u64, files: &[(char, usize)]) -> (Arc<Fetched>, Arc<Source>) {
    let source = Arc::new(Source::default());
    source.files.lock().unwrap().extend(files.iter().map(|&(digit, bytes)| (name(digit), vec![7; bytes])));
    let fetched = Fetched::open(Some(dir), quota).unwrap();
    *fetched.source.lock().unwrap() = Some(source.clone());
    (fetched, source)
}

#[test]
fn a_file_is_fetched_once_and_its_copy_has_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (fetched, source) = spool(dir.path(), 100, &[('a', 10)]);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| fetched.copy(&name('a'), &mut |_| true).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|path| *path == dir.path().join(name('a'))));
    assert_eq!(source.fetched.load(Ordering::Relaxed), 1);
    let modified = paths[0].metadata().unwrap().modified().unwrap();
    assert_eq!(modified.duration_since(SystemTime::UNIX_EPOCH).unwrap(), Duration::from_nanos(1_234_567_891));
}

#[test]
fn a_copy_that_was_used_long_ago_makes_way_and_one_whose_file_is_gone_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (fetched, source) = spool(dir.path(), 25, &[('a', 10), ('b', 10), ('c', 10)]);
    let copy = |digit| fetched.copy(&name(digit), &mut |_| true);
    let at = |digit, seconds| {
        let time = FileTimes::new().set_accessed(SystemTime::now() - Duration::from_secs(seconds));
        File::options().append(true).open(dir.path().join(name(digit))).unwrap().set_times(time).unwrap();
    };
    for digit in ['a', 'b'] {
        copy(digit).unwrap();
    }
    at('a', 10);
    at('b', 20);
    copy('c').unwrap();
    let here = || ['a', 'b', 'c'].map(|digit| dir.path().join(name(digit)).exists());
    assert_eq!(here(), [true, false, true]);
    source.files.lock().unwrap().remove(&name('c'));
    assert!(matches!(copy('c'), Err(Stop::Failed(e)) if e.kind == ErrorKind::MediaNotFound));
    fetched.sweep();
    assert_eq!(here(), [true, false, false]);
    std::fs::write(dir.path().join("somebody-elses"), "x").unwrap();
    fetched.sweep();
    assert!(dir.path().join("somebody-elses").exists());
}

#[test]
fn a_fetch_that_nobody_waits_for_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (fetched, _) = spool(dir.path(), 100, &[('a', 10)]);
    assert_eq!(fetched.copy(&name('a'), &mut |_| false), Err(Stop::Cancelled));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn only_plain_names_are_names_of_files_on_the_bus() {
    assert_eq!(Fetched::name("/media/a.mp4").unwrap(), None);
    assert_eq!(Fetched::name(&format!("bus:{}", name('a'))).unwrap(), Some(name('a').as_str()));
    assert_eq!(Fetched::name(&format!("bus:{}", "0".repeat(64))).unwrap(), Some("0".repeat(64).as_str()));
    let ending = format!("bus:{}.mp4/../x", "a".repeat(64));
    for wrong in ["bus:", "bus:../../etc/passwd", "bus:a.mp4", ending.as_str(), &format!("bus:{}.", "a".repeat(64))] {
        assert_eq!(Fetched::name(wrong).unwrap_err().kind, ErrorKind::BadRequest, "{wrong}");
    }
}

#[test]
fn without_a_spool_a_file_on_the_bus_is_refused_with_what_to_do() {
    let fetched = Fetched::open(None, 1).unwrap();
    let refused = fetched.copy(&name('a'), &mut |_| true);
    assert!(
        matches!(refused, Err(Stop::Failed(e)) if e.kind == ErrorKind::MediaNotFound && e.hint.contains("decode.spool"))
    );
}
