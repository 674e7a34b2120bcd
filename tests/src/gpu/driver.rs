//! GPU memory in use by all processes, as the driver reports it.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

/// Interval at which the driver is asked.
const EVERY: Duration = Duration::from_millis(50);

/// Output line of `nvidia-smi --query-gpu=...` for GPU 0.
///
/// # Errors
/// If there is no driver.
pub fn query(what: &str) -> anyhow::Result<String> {
    let output = Command::new("nvidia-smi")
        .args([&format!("--query-gpu={what}"), "--format=csv,noheader,nounits", "--id=0"])
        .stdin(Stdio::null())
        .output()
        .context("nvidia-smi")?;
    ensure!(output.status.success(), "nvidia-smi: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Bytes of GPU memory in use now.
///
/// # Errors
/// If the driver does not report it.
pub fn used_bytes() -> anyhow::Result<u64> {
    Ok(query("memory.used")?.parse::<u64>().context("memory.used")? << 20)
}

/// Watch on GPU memory that ends when dropped.
pub struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// A running watch.
    pub fn start() -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (high, stopping) = (peak.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                high.fetch_max(used_bytes().unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(EVERY);
            }
        });
        Watch { peak, stop }
    }

    /// Peak of the memory in use since the last call.
    pub fn take_peak(&self) -> u64 {
        self.peak.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
