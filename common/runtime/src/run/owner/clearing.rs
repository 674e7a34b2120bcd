//! Clearing up behind jobs that have ended, beside the next job: a broker that was just restarted never answers what it was
//! asked before, and each such request waits for seconds.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::Instrument;

use crate::bus::Bus;
use crate::run::control::broadcast_end;
use crate::run::ending;
use crate::run::inbox::Delivery;
use protocol::message::JobId;

/// Time that a worker which leaves has for it; what is left then is swept by another.
const LAST_CLEARING: Duration = Duration::from_secs(2);

/// Clearings that are going on.
#[derive(Default)]
pub struct Clearing(Mutex<JoinSet<()>>);

impl Clearing {
    /// Begins to acknowledge the delivery of a job that has its terminal event, and to drop all that is left of the job.
    pub fn begin(&self, bus: &Bus, job: JobId, delivery: Delivery) {
        let bus = bus.clone();
        let clearing = async move {
            // At once: the stages know a job by its id alone, and that may be in use again when the broker has answered.
            broadcast_end(&bus, &job).await;
            delivery.done().await;
            ending::drop_rest(&bus, &job).await;
        };
        let mut going = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while going.try_join_next().is_some() {}
        going.spawn(clearing.in_current_span());
    }

    /// Waits for those that are going on, but not for long.
    pub async fn end(self) {
        let going = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        if tokio::time::timeout(LAST_CLEARING, going.join_all()).await.is_err() {
            tracing::debug!(waited = ?LAST_CLEARING, "clearing up left to others, the process ends");
        }
    }
}
