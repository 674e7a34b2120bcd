//! Messages that no stage could use, kept where an operator can look at them.

use super::inbox::Delivery;
use crate::bus::{Bus, headers};
use crate::metrics::counts;
use protocol::error::{JobError, StageName};
use protocol::message::JobId;

/// Keeps a message that no stage could use where an operator can look at it.
pub async fn bury(bus: &Bus, stage: StageName, job: Option<&JobId>, delivery: &Delivery, error: &JobError) {
    let name = job.map_or("unknown", JobId::as_str);
    let unknown = JobId::new("unknown").expect("a constant. This is a bug.");
    let id = format!("{name}/dead-{stage}/{}", delivery.sequence);
    let subject = bus.subjects().dead(stage, name);
    let body = delivery.message.payload.clone();
    counts::dead(stage);
    tracing::error!(%error, subject, bytes = body.len(), "message failed, kept as dead");
    let wanted = std::future::pending();
    if let Err(stop) = bus.store(subject, &id, &headers(job.unwrap_or(&unknown)), body, wanted).await {
        tracing::error!(?stop, "publish of a dead message failed, message dropped");
    }
}
