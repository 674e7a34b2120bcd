//! Opening of a file below a directory by a path in which no component may be a link.
//!
//! A path that was checked may have become another one by the time that it is opened: a link in it then leads anywhere.
//! Here the kernel refuses every link on the way, and a pipe in the place of the file does not wait for a writer.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// Flags of a directory on the way.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Flags of the file itself.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The file at the relative path `below` in the directory `root`.
///
/// # Errors
/// The system's: `ELOOP` for a link on the way.
pub(crate) fn open(root: &Path, below: &Path) -> io::Result<File> {
    let root = openat(CWD, root, DIRECTORY, Mode::empty())?;
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, below, FILE, Mode::empty(), rules) {
        // Kernels before 5.6, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => walk(root, below),
        opened => Ok(opened?.into()),
    }
}

/// The same, one component after the other.
fn walk(root: OwnedFd, below: &Path) -> io::Result<File> {
    let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return Err(Errno::ISDIR.into()) };
    let mut at = root;
    for part in parent.components() {
        let Component::Normal(part) = part else { return Err(Errno::XDEV.into()) };
        at = openat(at.as_fd(), part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(openat(at, name, FILE | OFlags::NOFOLLOW, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    /// Both ways to open a file, which must agree.
    fn both(root: &Path, below: &str) -> Result<String, Errno> {
        let directory = || openat(CWD, root, DIRECTORY, Mode::empty()).unwrap();
        let ways = [open(root, below.as_ref()), walk(directory(), below.as_ref())].map(|opened| {
            let mut text = String::new();
            opened
                .and_then(|mut file| file.read_to_string(&mut text))
                .map(|_| text)
                .map_err(|e| Errno::from_io_error(&e).expect("a system's error"))
        });
        assert_eq!(ways[0], ways[1], "{below}");
        let [way, _] = ways;
        way
    }

    #[test]
    fn a_link_anywhere_on_the_way_is_refused_by_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/film"), "inside").unwrap();
        std::fs::write(dir.path().join("film"), "outside").unwrap();
        symlink("b", root.join("a/linked")).unwrap();
        symlink("film", root.join("a/b/again")).unwrap();
        symlink(dir.path(), root.join("out")).unwrap();
        assert_eq!(both(&root, "a/b/film"), Ok("inside".to_owned()));
        assert_eq!(both(&root, "a/b/again"), Err(Errno::LOOP));
        assert_eq!(both(&root, "a/b/nothing"), Err(Errno::NOENT));
        // A link to a directory is none for the walk.
        assert!(matches!(both_fail(&root, "a/linked/film"), [Errno::LOOP, Errno::NOTDIR]));
        assert!(matches!(both_fail(&root, "out/film"), [Errno::LOOP, Errno::NOTDIR]));
        assert!(matches!(both_fail(&root, "../film"), [Errno::XDEV, Errno::XDEV]));
    }

    fn both_fail(root: &Path, below: &str) -> [Errno; 2] {
        let directory = openat(CWD, root, DIRECTORY, Mode::empty()).unwrap();
        [open(root, below.as_ref()), walk(directory, below.as_ref())]
            .map(|opened| Errno::from_io_error(&opened.expect_err(below)).unwrap())
    }

    #[test]
    fn a_pipe_without_a_writer_opens_at_once() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(CWD, dir.path().join("pipe"), Mode::RUSR).unwrap();
        let opened = open(dir.path(), "pipe".as_ref()).unwrap();
        assert!(!opened.metadata().unwrap().is_file());
    }
}
