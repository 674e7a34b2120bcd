//! PyTorch doing the same: a process that runs a case when it reads its name, and answers with the times of its laps.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

use super::clock::Took;

/// The process; ends with this.
pub struct Peer {
    child: Child,
    names: Option<ChildStdin>,
    times: BufReader<ChildStdout>,
    /// What it says of itself, e.g. its version.
    pub version: String,
}

/// The script that it runs.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/cpu_peer.py")
}

impl Peer {
    /// Starts it with a Python that has PyTorch, on so many threads.
    ///
    /// # Errors
    /// A Python that does not start, or has no PyTorch.
    pub fn start(python: &Path, threads: usize) -> anyhow::Result<Self> {
        let mut child = Command::new(python)
            .arg(script())
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start of {}", python.display()))?;
        let (names, times) = (child.stdin.take(), child.stdout.take().context("its output is a pipe")?);
        let mut peer = Peer { child, names, times: BufReader::new(times), version: String::new() };
        peer.version = peer.line().context("PyTorch did not start: does this Python have torch?")?;
        Ok(peer)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.times.read_line(&mut line)? == 0 {
            bail!("the peer ended early; what it wrote to its standard error says why");
        }
        Ok(line.trim().to_owned())
    }

    /// Laps of one run of a case; none of a case that it does not know.
    ///
    /// # Errors
    /// A peer that has ended.
    pub fn run(&mut self, case: &str) -> anyhow::Result<Option<Vec<Took>>> {
        let names = self.names.as_mut().context("the peer reads names until it ends")?;
        writeln!(names, "{case}")?;
        names.flush()?;
        let line = self.line().with_context(|| format!("{case} in PyTorch"))?;
        serde_json::from_str(&line).with_context(|| format!("{case} in PyTorch: {line}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.names.take()); // the end of its input, at which it ends
        let _ = self.child.wait();
    }
}
