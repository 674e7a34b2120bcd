//! The merged configuration that stages read: a file for each pipeline, which goes with it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use config::Config;

use super::private;

/// Beginning and end of the file's name; the process id of who wrote it stands between.
const NAME: (&str, &str) = ("stages-", ".toml");

/// A merged configuration on disk. It may hold a password: nobody else may read it, and it is removed at the end.
#[derive(Debug)]
pub struct Merged(PathBuf);

impl Merged {
    /// Writes a configuration into a directory that is this process's alone; what earlier ones have left there goes.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn write(config: &Config, dir: &Path) -> anyhow::Result<Self> {
        let named = || format!("{}", dir.display());
        std::fs::create_dir_all(dir).with_context(named)?;
        for entry in std::fs::read_dir(dir).with_context(named)?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(NAME.0) && name.ends_with(NAME.1) {
                std::fs::remove_file(entry.path()).with_context(|| format!("{}", entry.path().display()))?;
            }
        }
        let path = dir.join(format!("{}{}{}", NAME.0, std::process::id(), NAME.1));
        private::write(&path, config.exposed_toml().as_bytes())?;
        Ok(Merged(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        // With a temporary directory it may have gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}
