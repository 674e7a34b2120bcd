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

/// What an allocation on a device can come up against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What this process may hold; none without a budget.
    pub budget_bytes: Option<u64>,
    /// What nobody holds of the device's memory.
    pub free_bytes: u64,
    /// The device's memory.
    pub total_bytes: u64,
}

/// A device that tells what a process holds of it, and what is in its way.
pub trait Gauge: Send + Sync {
    /// Bytes that this process holds of the device's memory.
    fn usage(&self) -> Usage;
    /// What is in the way of the next allocation; none if the device does not say.
    fn limits(&self) -> Option<Limits>;
}

static DEVICE: OnceLock<Box<dyn Gauge>> = OnceLock::new();

/// From now on [`usage`] and [`limits`] are what `gauge` says: a device's memory pool. The first one counts.
pub fn watch(gauge: impl Gauge + 'static) {
    // A process computes on one device; who comes second shares its pool.
    let _ = DEVICE.set(Box::new(gauge));
}

/// What this process holds: of its device's memory if it has opened one, else of the host's.
pub fn usage() -> Usage {
    DEVICE.get().map_or_else(resident, |gauge| gauge.usage())
}

/// What its device's memory leaves it; none without a device.
pub fn limits() -> Option<Limits> {
    DEVICE.get()?.limits()
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
