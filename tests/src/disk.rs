//! A disk of a size that a test chooses.

use std::path::Path;
use std::process::Command;

/// Small tmpfs, unmounted at the end.
pub struct Disk {
    at: tempfile::TempDir,
}

impl Disk {
    /// A mounted tmpfs; none if mounting is not permitted.
    ///
    /// # Errors
    /// The file system's.
    pub fn mount(mib: usize) -> anyhow::Result<Option<Self>> {
        let at = tempfile::tempdir()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(at.path())
            .stderr(std::process::Stdio::null())
            .status()?;
        Ok(status.success().then_some(Disk { at }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, since a process that is about to end may hold a file. A failure leaves the mount until the next boot.
        let _ = Command::new("umount").arg("-l").arg(self.at.path()).status();
    }
}
