//! What this process holds of the memory that its budget is about: the device's, once one is open, else the host's.

use std::sync::OnceLock;

/// Bytes held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub used_bytes: u64,
    /// At most since the process started.
    pub peak_bytes: u64,
    /// Taken from the system, used or not.
    pub reserved_bytes: u64,
}

type Gauge = Box<dyn Fn() -> Usage + Send + Sync>;

static DEVICE: OnceLock<Gauge> = OnceLock::new();

/// From now on [`usage`] is what `gauge` says: a device's memory pool. The first one counts.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU has no memory but the host's"))]
pub(crate) fn watch(gauge: impl Fn() -> Usage + Send + Sync + 'static) {
    // A process computes on one device; who comes second shares its pool.
    let _ = DEVICE.set(Box::new(gauge));
}

/// What this process holds: of its device's memory if it has opened one, else of the host's.
pub fn usage() -> Usage {
    DEVICE.get().map_or_else(resident, |gauge| gauge())
}

/// Resident memory, from `/proc/self/status`; zeros where there is none.
pub fn resident() -> Usage {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    let used_bytes = field("VmRSS:");
    Usage { used_bytes, peak_bytes: field("VmHWM:"), reserved_bytes: used_bytes }
}
