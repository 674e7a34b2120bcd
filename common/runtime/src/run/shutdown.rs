//! How a process is told to finish and leave.

use tokio::sync::watch;

/// Turns true when the process shall finish what is in flight and leave.
pub type Shutdown = watch::Receiver<bool>;

/// Waits until the process shall leave.
pub async fn begun(shutdown: &mut Shutdown) {
    // A sender that is gone means that the process ends.
    let _ = shutdown.wait_for(|&s| s).await;
}
