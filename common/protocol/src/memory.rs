//! Memory that this process holds, of the kind that its budget is about: the device's, once one is open, else the host's; and whether
//! that device still computes.

use std::sync::OnceLock;

/// Bytes that a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes held now.
    pub used_bytes: u64,
    /// Bytes held at most since the process started.
    pub peak_bytes: u64,
    /// Bytes taken from the system, used or not.
    pub reserved_bytes: u64,
}

/// Limits that an allocation on a device can come up against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that this process may hold; none without a budget.
    pub budget_bytes: Option<u64>,
    /// Bytes of the device's memory that nobody holds.
    pub free_bytes: u64,
    /// Bytes of the device's memory.
    pub total_bytes: u64,
}

/// Gauge of a device that tells what a process holds of it, and what is in its way.
pub trait Gauge: Send + Sync {
    /// Bytes that this process holds of the device's memory.
    fn usage(&self) -> Usage;
    /// Limits of the next allocation; none if the device does not say.
    fn limits(&self) -> Option<Limits>;
    /// Why this process cannot compute on the device any more, whatever it tries; none while it can. Waits for what the device is at.
    fn lost(&self) -> Option<String>;
}

static DEVICE: OnceLock<Box<dyn Gauge>> = OnceLock::new();

/// From now on [`usage`] and [`limits`] are what `gauge` says: a device's memory pool. The first one counts.
pub fn watch(gauge: impl Gauge + 'static) {
    // A process computes on one device; who comes second shares its pool.
    let _ = DEVICE.set(Box::new(gauge));
}

/// Bytes that this process holds: of its device's memory if it has opened one, else of the host's.
pub fn usage() -> Usage {
    DEVICE.get().map_or_else(resident, |gauge| gauge.usage())
}

/// Limits that its device's memory sets it; none without a device.
pub fn limits() -> Option<Limits> {
    DEVICE.get()?.limits()
}

/// Why its device is lost to this process, which has to start anew then; none while it computes, and without one. Waits for what the
/// device is at.
pub fn lost() -> Option<String> {
    DEVICE.get()?.lost()
}

/// Memory that the host has left, `MemAvailable`; none where the kernel does not say.
pub fn host_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
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
