//! Devices that are lost: after a fault on a GPU every pass of its process fails, whoever's message it is. No job ends of that: its message
//! goes back to the queue, this instance takes no further one, and its process ends, for its supervisor to start it anew.

use std::fmt;
use std::sync::{Arc, OnceLock};

use protocol::memory;
use protocol::stage::Stop;

use super::listener::Draining;

/// Question whether an instance's device is lost, and why; what is asked waits for the device.
#[derive(Clone)]
pub struct DeviceLost(pub Arc<dyn Fn() -> Option<String> + Send + Sync>);

impl Default for DeviceLost {
    fn default() -> Self {
        DeviceLost(Arc::new(memory::lost))
    }
}

impl fmt::Debug for DeviceLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceLost")
    }
}

/// Watch over the device of an instance, shared by all that settle messages.
#[derive(Clone)]
pub struct DeviceWatch {
    asked: DeviceLost,
    lost: Arc<OnceLock<String>>,
    draining: Draining,
}

impl DeviceWatch {
    /// Watch of an instance that `draining` makes leave.
    pub fn new(asked: DeviceLost, draining: Draining) -> Self {
        DeviceWatch { asked, lost: Arc::default(), draining }
    }

    /// Outcome of work on a message: one that failed because the device is lost is trouble outside of the message.
    pub async fn judge<T>(&self, outcome: Result<T, Stop>) -> Result<T, Stop> {
        if !matches!(outcome, Err(Stop::Failed(_) | Stop::Unavailable(_))) {
            return outcome;
        }
        let DeviceLost(asked) = self.asked.clone();
        let Ok(Some(lost)) = tokio::task::spawn_blocking(move || asked()).await else { return outcome };
        if self.lost.set(lost.clone()).is_ok() {
            tracing::error!(lost, "the process ends, to be started anew; its messages go back");
            self.draining.begin();
        }
        Err(Stop::Unavailable(lost))
    }

    /// Why the device is lost, if a message failed of that.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }
}
