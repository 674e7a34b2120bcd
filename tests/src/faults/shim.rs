//! Faults inside of a stage's process, by a library that is preloaded into it: a clock that is off, an engine that stands
//! still.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use protocol::error::StageName;
use tempfile::TempDir;

/// Source of the library.
const SOURCE: &str = include_str!("shim.c");

/// Library for one stage of one rig.
pub struct Shim {
    dir: TempDir,
    stage: StageName,
}

impl Shim {
    /// Compiles the library.
    ///
    /// # Errors
    /// The compiler's.
    pub fn new(stage: StageName) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let source = dir.path().join("shim.c");
        std::fs::write(&source, SOURCE)?;
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread", "-o"])
            .arg(dir.path().join("shim.so"))
            .arg(&source)
            .output()
            .context("cc")?;
        ensure!(made.status.success(), "cc shim.c: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Shim { dir, stage })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Environment of a pipeline whose stage has it: its clock is off by `clock_ms`, and its engine hangs when told.
    pub fn environment(&self, clock_ms: i64) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(&self.path("shim.so"))),
            ("SHIM_STAGE", self.stage.to_string()),
            ("SHIM_CLOCK_MS", clock_ms.to_string()),
            ("SHIM_HANG", text(&self.path("hang"))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Makes the engine of one process of the stage stand still, and returns once it does.
    ///
    /// # Errors
    /// If no process has such an engine.
    pub async fn hang(&self) -> anyhow::Result<()> {
        let file = self.path("hang");
        std::fs::write(&file, "")?;
        for _ in 0..1000 {
            if !file.exists() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        anyhow::bail!("no process of stage-{} has an engine to hang", self.stage)
    }
}
