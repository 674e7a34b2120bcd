//! What stays in a spool, and what leaves it.

use std::io::Write;

use super::*;

async fn spool(dir: &Path, quota: u64, age_s: u64) -> Arc<Spool> {
    let http = HttpConfig { spool_bytes: quota, spool_age_s: age_s, ..HttpConfig::default() };
    Arc::new(Spool::open(dir, &http).await.unwrap())
}

/// Puts `bytes` bytes into the spool, as uploads do.
fn put(spool: &Arc<Spool>, name: char, bytes: u64) -> (bool, Held) {
    spool.reserve(bytes).unwrap();
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(spool.dir()).unwrap();
    file.write_all(&vec![0; bytes as usize]).unwrap();
    let id = name.to_string().repeat(64);
    let facts = Facts { file: format!("{id}.mp4"), id, name: String::new(), bytes, created_s: 0 };
    let taken = spool.take(file.into_temp_path(), facts).unwrap();
    spool.release(bytes);
    taken
}

#[tokio::test]
async fn the_least_recently_used_make_way_and_what_a_job_needs_stays() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path(), 100, 1000).await;
    let ids = ['a', 'b', 'c'].map(|name| name.to_string().repeat(64));
    drop(put(&spool, 'a', 40));
    drop(put(&spool, 'b', 40));
    // Used after b.
    drop(spool.hold(&ids[0]).unwrap());
    let (is_new, held) = put(&spool, 'c', 40);
    assert!(is_new && spool.facts(&ids[0]).is_some() && spool.facts(&ids[1]).is_none());
    assert!(!dir.path().join(format!("{}.mp4", ids[1])).exists());
    assert_eq!(spool.remove(&ids[2]).unwrap_err().kind, Kind::Conflict);
    let full = spool.reserve(70).unwrap_err();
    assert_eq!(full.kind, Kind::SpoolFull);
    assert_eq!(full.details["quota_bytes"], 100);
    drop(held);
    spool.reserve(70).unwrap();
    assert!(spool.facts(&ids[2]).is_none());
}

#[tokio::test]
async fn the_same_bytes_are_one_file_with_one_modification_time() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path(), 100, 1000).await;
    let modified = |held: &Held| held.path.metadata().unwrap().modified().unwrap();
    let (first, second) = (put(&spool, 'a', 10), put(&spool, 'a', 10));
    assert_eq!((first.0, second.0), (true, false));
    assert_eq!((&first.1.path, modified(&first.1)), (&second.1.path, modified(&second.1)));
}

#[tokio::test]
async fn a_start_keeps_whole_files_and_removes_what_was_left_unfinished_or_grew_old() {
    let dir = tempfile::tempdir().unwrap();
    let first = spool(dir.path(), 100, 1000).await;
    drop(put(&first, 'a', 10));
    drop(put(&first, 'b', 10));
    assert!(Spool::open(dir.path(), &HttpConfig::default()).await.is_err(), "two have one spool");
    drop(first);
    let [a, b, c] = ['a', 'b', 'c'].map(|name| name.to_string().repeat(64));
    for left in [format!("{UNFINISHED}x"), format!("{c}.mp4"), "mine.txt".to_owned()] {
        std::fs::write(dir.path().join(left), "left").unwrap();
    }
    let used = std::fs::File::options().append(true).open(dir.path().join(format!("{b}.json"))).unwrap();
    used.set_modified(SystemTime::now() - Duration::from_secs(2000)).unwrap();
    let second = spool(dir.path(), 100, 1000).await;
    assert!(second.facts(&a).is_some() && second.facts(&b).is_none());
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, [format!("{a}.json"), format!("{a}.mp4"), "lock".to_owned(), "mine.txt".to_owned()]);
}
