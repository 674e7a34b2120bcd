//! Access check of media paths: only files below the configured media roots may be opened, after every link is followed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use protocol::error::{ErrorKind, JobError};
use rustix::io::Errno;

use crate::beneath;
use crate::media_file::{MediaFile, irregular};

/// Number of attempts to open a path that becomes another one between its check and its opening.
const ATTEMPTS: usize = 16;

/// Directories below which files may be opened.
#[derive(Clone, Debug)]
pub struct MediaRoots {
    roots: Vec<PathBuf>,
}

impl MediaRoots {
    /// Roots as configured; each must be an existing directory.
    ///
    /// # Errors
    /// `bad_request` with the root that does not exist, or if there is none.
    pub fn new<P: AsRef<Path>>(roots: impl IntoIterator<Item = P>) -> Result<Self, JobError> {
        let mut canonical = Vec::new();
        for root in roots {
            let root = root.as_ref();
            let at = root.canonicalize().ok().filter(|r| r.is_dir()).ok_or_else(|| {
                JobError::new(
                    ErrorKind::BadRequest,
                    format!("cannot use media root {}: it is not a directory", root.display()),
                )
                .hint("create it, mount it, or remove it from decode.media_roots")
            })?;
            canonical.push(at);
        }
        if canonical.is_empty() {
            return Err(JobError::new(ErrorKind::BadRequest, "no media root is configured")
                .hint("set decode.media_roots to the directories that hold the videos"));
        }
        Ok(MediaRoots { roots: canonical })
    }

    /// Opens the file that `video`, a path or `file:` URI, names.
    ///
    /// Links are followed first, then the place that they lead to is opened without any: a link that is put in its way
    /// meanwhile is met as such, and not followed.
    ///
    /// # Errors
    /// `bad_request` for text that is neither, `media_not_found`, `forbidden_path` for a file outside every root,
    /// `unsupported_media` for what is not a regular file.
    pub(crate) fn open(&self, video: &str) -> Result<MediaFile, JobError> {
        let path = named_path(video)?;
        for _ in 0..ATTEMPTS {
            let (root, below) = self.resolve(&path)?;
            let error = match beneath::open(root, &below) {
                Ok(file) => return MediaFile::new(root.join(below), file),
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                // Another one than was resolved has taken its place.
                Some(Errno::LOOP | Errno::NOTDIR | Errno::NOENT | Errno::XDEV | Errno::AGAIN) => {}
                // A socket.
                Some(Errno::NXIO) => return Err(irregular(&path)),
                _ => return Err(unreadable(&path, &error)),
            }
        }
        Err(JobError::new(
            ErrorKind::MediaNotFound,
            format!("cannot open {}: it was replaced during each of {ATTEMPTS} attempts", path.display()),
        )
        .hint("submit the job again once the file is no longer being replaced"))
    }

    /// The root that a path lies below once every link is followed, and the place below it, free of links.
    fn resolve(&self, path: &Path) -> Result<(&Path, PathBuf), JobError> {
        let forbidden = || {
            JobError::new(
                ErrorKind::ForbiddenPath,
                format!("cannot open {}: it is outside the media roots {}", path.display(), self.shown().join(", ")),
            )
            .hint("move the file below a media root, or add its directory to decode.media_roots of stage-decode")
        };
        let file = match path.canonicalize() {
            Ok(file) => file,
            // A path outside the roots gets the same answer whether or not a file exists there.
            Err(_) if !self.roots.iter().any(|r| path.starts_with(r)) && path.is_absolute() => {
                return Err(if self.below_a_linked_root(path) { not_found(path) } else { forbidden() });
            }
            Err(_) => return Err(not_found(path)),
        };
        let below = self.roots.iter().find_map(|root| Some((root.as_path(), file.strip_prefix(root).ok()?)));
        let (root, below) = below.ok_or_else(forbidden)?;
        // A device may do something when it is opened.
        if !file.is_file() {
            return Err(irregular(path));
        }
        Ok((root, below.to_owned()))
    }

    /// Whether the nearest existing ancestor of `path` lies below a root, so that the file is missing, not forbidden.
    fn below_a_linked_root(&self, path: &Path) -> bool {
        let ancestor = path.ancestors().skip(1).find_map(|a| a.canonicalize().ok());
        ancestor.is_some_and(|a| self.roots.iter().any(|r| a.starts_with(r)))
    }

    /// The roots as texts, for people.
    pub(crate) fn shown(&self) -> Vec<String> {
        self.roots.iter().map(|r| r.display().to_string()).collect()
    }
}

/// `forbidden_path` for a file that the system does not let this process read.
fn unreadable(path: &Path, error: &std::io::Error) -> JobError {
    JobError::new(ErrorKind::ForbiddenPath, format!("cannot open {}: {error}", path.display()))
        .hint("give the user that runs stage-decode permission to read it")
}

fn not_found(path: &Path) -> JobError {
    JobError::new(
        ErrorKind::MediaNotFound,
        format!("cannot open {}: it does not exist where stage-decode runs", path.display()),
    )
    .hint("check the spelling, and that its directory is mounted there")
}

/// The path that a request names; a relative path, or a URI of another host, names none.
fn named_path(video: &str) -> Result<PathBuf, JobError> {
    let refuse = |why: &str| {
        JobError::new(ErrorKind::BadRequest, format!("cannot open {video:?}: it {why}"))
            .hint("give an absolute path, or file:///path with percent-encoding")
    };
    let scheme = video.get(..5).is_some_and(|s| s.eq_ignore_ascii_case("file:"));
    let bytes = if scheme {
        let rest = &video[5..];
        let local = match rest.strip_prefix("//") {
            Some(authority) => {
                let slash = authority.find('/').ok_or_else(|| refuse("names no file"))?;
                if !matches!(&authority[..slash], "" | "localhost") {
                    return Err(refuse("names a file on another host"));
                }
                &authority[slash..]
            }
            None => rest,
        };
        percent_decoded(local).ok_or_else(|| refuse("has a % without two hex digits after it"))?
    } else {
        video.as_bytes().to_vec()
    };
    if bytes.contains(&0) {
        return Err(refuse("has a zero byte"));
    }
    let path = PathBuf::from(OsString::from_vec(bytes));
    if path.is_absolute() { Ok(path) } else { Err(refuse("is not an absolute path or file: URI")) }
}

/// The bytes of a percent-encoded text; `None` if a % has no two hex digits after it.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || (bytes.next()? as char).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push((high * 16 + low) as u8);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind<T>(result: Result<T, JobError>) -> ErrorKind {
        result.err().expect("should be refused").kind
    }

    #[test]
    fn only_files_under_a_root_are_opened_whatever_links_say() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        for file in [root.join("sub/a b.mp4"), outside.join("secret.mp4")] {
            std::fs::write(file, b"x").unwrap();
        }
        std::os::unix::fs::symlink(outside.join("secret.mp4"), root.join("out.mp4")).unwrap();
        std::os::unix::fs::symlink(root.join("sub/a b.mp4"), root.join("in.mp4")).unwrap();
        std::os::unix::fs::symlink(&root, dir.path().join("linked")).unwrap();
        let roots = MediaRoots::new([&root]).unwrap();
        let at = |p: PathBuf| roots.open(p.to_str().unwrap()).map(|media| media.path().to_owned());
        let real = root.join("sub/a b.mp4").canonicalize().unwrap();

        assert_eq!(at(root.join("sub/a b.mp4")).unwrap(), real);
        assert_eq!(at(root.join("in.mp4")).unwrap(), real);
        assert_eq!(at(dir.path().join("linked/sub/a b.mp4")).unwrap(), real);
        assert_eq!(kind(at(root.join("out.mp4"))), ErrorKind::ForbiddenPath);
        assert_eq!(kind(at(root.join("../outside/secret.mp4"))), ErrorKind::ForbiddenPath);
        assert_eq!(kind(at(outside.join("nothing.mp4"))), ErrorKind::ForbiddenPath);
        assert_eq!(kind(at(root.join("missing.mp4"))), ErrorKind::MediaNotFound);
        assert_eq!(kind(at(dir.path().join("linked/missing.mp4"))), ErrorKind::MediaNotFound);
        assert_eq!(kind(at(root.join("sub"))), ErrorKind::UnsupportedMedia);
    }

    #[test]
    fn file_uris_are_percent_decoded_and_must_be_local() {
        assert_eq!(named_path("file:///a%20b/%C3%A4.mp4").unwrap(), PathBuf::from("/a b/ä.mp4"));
        assert_eq!(named_path("FILE://localhost/x").unwrap(), PathBuf::from("/x"));
        assert_eq!(named_path("file:/x").unwrap(), PathBuf::from("/x"));
        for bad in ["file://host/x", "file:///a%2", "file:///a%zz", "http://h/x", "x.mp4", "file:x", "", "file:///%00"]
        {
            assert_eq!(kind(named_path(bad)), ErrorKind::BadRequest, "{bad}");
        }
    }

    #[test]
    fn a_root_that_is_no_directory_is_named() {
        let error = MediaRoots::new(["/nonexistent/videos"]).unwrap_err();
        assert!(error.message.contains("/nonexistent/videos"));
        assert!(MediaRoots::new(Vec::<PathBuf>::new()).is_err());
    }
}
