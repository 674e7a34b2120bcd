//! Files that a command line names: there as a whole or as they were before, and in the place of a regular file or of nothing.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Stands in the name of a file that is not finished, before the ending, by which programs tell its format.
const UNFINISHED: &str = ".unfinished";

/// A file that is being written under a name of its own, which no other run has. It takes the name that was asked for when it
/// is finished; dropped before, it is gone.
#[derive(Debug)]
pub struct Unfinished {
    file: NamedTempFile,
    place: PathBuf,
}

impl Unfinished {
    /// Begins a file that is to be called `place`, in the same directory.
    ///
    /// # Errors
    /// `InvalidInput` where something else than a regular file has that name, with what it is; the file system's.
    pub fn begin(place: &Path) -> Result<Self> {
        let before = replaceable(place)?;
        let dir = place.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // As any new file: what the user's umask leaves of it.
        let mode = before.map_or(0o666, |before| before.permissions().mode() & 0o777);
        let joined = |parts: &[&OsStr]| parts.iter().copied().collect::<OsString>();
        let prefix = joined(&[".".as_ref(), place.file_stem().unwrap_or_default(), ".".as_ref()]);
        let suffix = match place.extension() {
            Some(ending) => joined(&[UNFINISHED.as_ref(), ".".as_ref(), ending]),
            None => UNFINISHED.into(),
        };
        let mut options = tempfile::Builder::new();
        options.prefix(&prefix).suffix(&suffix).permissions(Permissions::from_mode(mode));
        Ok(Unfinished { file: options.tempfile_in(dir)?, place: place.to_owned() })
    }

    /// Its name until it is finished.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file, to be written.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Gives it the name that was asked for, once its bytes are on the disk.
    ///
    /// # Errors
    /// As [`begin`](Self::begin): somebody may have put something else there meanwhile.
    pub fn finish(self) -> Result<()> {
        self.file.as_file().sync_all()?;
        replaceable(&self.place)?;
        self.file.persist(&self.place).map_err(|e| e.error)?;
        Ok(())
    }
}

/// Writes a file as a whole. A regular file is replaced; a link, a pipe or a character device (`/dev/stdout`, `/dev/fd/63`) is
/// written to, as a shell does, and stays what it is.
///
/// # Errors
/// `InvalidInput` for a directory and what else is no file, with what it is; the file system's.
pub fn write(place: &Path, content: &[u8]) -> Result<()> {
    let written_to = std::fs::symlink_metadata(place)
        .map(|there| there.file_type())
        .ok()
        .filter(|kind| kind.is_symlink() || kind.is_fifo() || kind.is_char_device());
    if written_to.is_some() {
        return File::options().write(true).create(true).truncate(true).open(place)?.write_all(content);
    }
    let mut file = Unfinished::begin(place)?;
    file.file().write_all(content)?;
    file.finish()
}

/// Removes a regular file, or nothing.
///
/// # Errors
/// `InvalidInput` where something else than a regular file has that name, with what it is; the file system's.
pub fn remove(place: &Path) -> Result<()> {
    if replaceable(place)?.is_some() { std::fs::remove_file(place) } else { Ok(()) }
}

/// What has a name, where that is a regular file; none where nothing has it.
fn replaceable(place: &Path) -> Result<Option<Metadata>> {
    let there = match std::fs::symlink_metadata(place) {
        Ok(there) => there,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = there.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(Some(there)),
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a link",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    let text = format!("it is {what}, and only a regular file is replaced; name another file");
    Err(Error::new(ErrorKind::InvalidInput, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_as_it_was_until_the_new_one_is_finished_and_two_runs_share_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("q.bin");
        let [mut one, mut other] = [(); 2].map(|()| Unfinished::begin(&place).unwrap());
        assert_ne!(one.path(), other.path());
        one.file().write_all(b"one").unwrap();
        other.file().write_all(b"other").unwrap();
        assert!(!place.exists());
        one.finish().unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"one");
        std::fs::set_permissions(&place, Permissions::from_mode(0o640)).unwrap();
        let third = Unfinished::begin(&place).unwrap();
        drop(other);
        assert_eq!(std::fs::read(&place).unwrap(), b"one");
        third.finish().unwrap();
        assert_eq!((std::fs::read(&place).unwrap(), names(dir.path())), (Vec::new(), vec!["q.bin".to_owned()]));
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn nothing_but_a_regular_file_is_ever_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "before").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        symlink(at("file"), at("link")).unwrap();
        symlink(at("nothing"), at("dangling")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let before = names(dir.path());
        for (name, what) in [
            ("directory", "a directory"),
            ("link", "a link"),
            ("dangling", "a link"),
            ("socket", "a socket"),
            ("pipe", "a pipe"),
        ] {
            let error = Unfinished::begin(&at(name)).unwrap_err();
            assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(what), "{name}: {error}");
            assert_eq!(remove(&at(name)).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        }
        let device = Unfinished::begin(Path::new("/dev/null")).unwrap_err();
        assert!(device.to_string().contains("a device"), "{device}");
        assert_eq!(names(dir.path()), before);
        // Nor is what comes there meanwhile.
        let late = Unfinished::begin(&at("late")).unwrap();
        symlink(at("file"), at("late")).unwrap();
        assert_eq!(late.finish().unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(std::fs::read(at("file")).unwrap(), b"before");
    }

    #[test]
    fn a_link_a_pipe_and_a_device_are_written_to_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "a longer text before").unwrap();
        symlink(at("file"), at("link")).unwrap();
        write(&at("link"), b"text").unwrap();
        assert!(std::fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(std::fs::read(at("file")).unwrap(), b"text");
        write(Path::new("/dev/null"), b"text").unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let pipe = at("pipe");
        let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
        write(&at("pipe"), b"text").unwrap();
        assert_eq!(reader.join().unwrap(), b"text");
        assert_eq!(write(dir.path(), b"text").unwrap_err().kind(), ErrorKind::InvalidInput);
        write(&at("file"), b"whole").unwrap();
        assert_eq!(
            (std::fs::read(at("file")).unwrap(), names(dir.path())),
            (b"whole".to_vec(), vec!["file".to_owned(), "link".to_owned(), "pipe".to_owned()])
        );
    }
}
