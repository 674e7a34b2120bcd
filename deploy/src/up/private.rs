//! Files for this user alone, which are there as a whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

/// Writes a file that only this user may read. Whoever reads it meanwhile sees the file before, or this one.
///
/// # Errors
/// The file system's, with the path.
pub fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let named = || format!("cannot write {}", path.display());
    let dir = path.parent().with_context(named)?;
    // A temporary file has mode 0600 whatever the umask says, and whatever a file before had.
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(named)?;
    file.write_all(content).with_context(named)?;
    file.persist(path).with_context(named)?;
    Ok(())
}

/// Opens a file that only this user may read to write at its end, whoever else does.
///
/// # Errors
/// The file system's, with the path.
pub fn appended(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_everybody_could_read_is_replaced_by_one_that_nobody_else_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "before").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        write(&path, b"after").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something is left behind");
    }
}
