//! Files that were examined last: whoever decodes what was just probed need not read through it, or try its decoders, again.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::examined::Examined;
use crate::media_file::MediaFile;
use crate::timeline::MAX_LISTED;

/// Files that are kept at most.
const MAX_FILES: usize = 64;

/// What tells a file, and a change of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    device_and_inode: [u64; 2],
    size: u64,
    modified: [i64; 2],
    changed: [i64; 2],
    content_id: String,
}

impl State {
    fn of(media: &MediaFile, content_id: &str) -> io::Result<Self> {
        let meta = media.file().metadata()?;
        Ok(State {
            device_and_inode: [meta.dev(), meta.ino()],
            size: meta.len(),
            modified: [meta.mtime(), meta.mtime_nsec()],
            changed: [meta.ctime(), meta.ctime_nsec()],
            content_id: content_id.to_owned(),
        })
    }
}

/// A file, and what was found of it.
type File = (State, Arc<Examined>);

/// Files that were examined last, newest first; all clones share them.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<Mutex<VecDeque<File>>>);

impl Known {
    /// What was found of a file, if it is the same since.
    pub(super) fn get(&self, media: &MediaFile, content_id: &str) -> Option<Arc<Examined>> {
        let state = State::of(media, content_id).ok()?;
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().find(|(known, _)| *known == state).map(|(_, examined)| examined.clone())
    }

    /// Keeps what was found of a file, unless it is being written, and as many of the earlier ones as memory allows: one of the
    /// largest size, or many small ones.
    pub(super) fn keep(&self, media: &MediaFile, content_id: &str, examined: &Arc<Examined>) {
        let Ok(state) = State::of(media, content_id) else { return };
        if state.size != media.reading().size() {
            return;
        }
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|(known, _)| known.device_and_inode != state.device_and_inode);
        files.push_front((state, examined.clone()));
        let mut left = MAX_LISTED;
        let fit = files.iter().take_while(|(_, examined)| {
            let fits = left > 0;
            left = left.saturating_sub(examined.listed());
            fits
        });
        let fit = fit.count().min(MAX_FILES);
        files.truncate(fit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::examined::blank;
    use super::*;

    fn file(path: &std::path::Path) -> MediaFile {
        MediaFile::new(path.to_owned(), std::fs::File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn a_file_is_known_until_anything_of_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let known = Known::default();
        let examined = Arc::new(Examined { info: blank("mp4", 1.0), video: None, audio: None });
        assert!(known.get(&file(&path), "id").is_none());
        known.keep(&file(&path), "id", &examined);
        assert!(known.clone().get(&file(&path), "id").is_some() && known.get(&file(&path), "other").is_none());
        let copy = dir.path().join("b");
        std::fs::copy(&path, &copy).unwrap();
        assert!(known.get(&file(&copy), "id").is_none());
        let when = path.metadata().unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "two").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(when).unwrap();
        assert!(known.get(&file(&path), "id").is_none(), "written with its old time");
        for n in 0..MAX_FILES {
            let path = dir.path().join(n.to_string());
            std::fs::write(&path, "x").unwrap();
            known.keep(&file(&path), "id", &examined);
        }
        assert_eq!(known.0.lock().unwrap().len(), MAX_FILES);
    }
}
