//! Capacity of the token stream, waited for before a video is decoded.

use std::time::{Duration, Instant};

use crate::bus::Bus;
use crate::bus::capacity::Capacity;
use crate::run::ending;
use crate::run::job_end::EndSignal;
use protocol::message::JobId;
use protocol::stage::Stop;

/// Time between two questions for capacity.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Time between two questions whether those who hold the capacity are still there.
const HOLDERS_EVERY: Duration = Duration::from_secs(2);

/// Outcome of waiting for capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It is reserved.
    Reserved,
    /// This job holds some of it and has no owner. Whoever takes that job over may be us, so ours gives way.
    HolderLost(JobId),
}

/// Waits until the token stream has capacity for `bytes` of a job's tokens.
///
/// # Errors
/// `does_not_fit` where the stream is too small for this job alone; [`Stop::Cancelled`] once `end` says so.
pub async fn wait(bus: &Bus, job: &JobId, end: &EndSignal, bytes: u64) -> Result<Waited, Stop> {
    let mut looked = Instant::now();
    loop {
        if end.is_set() {
            return Err(Stop::Cancelled);
        }
        let holders = match bus.reserve_capacity(job, bytes).await? {
            Capacity::Reserved => return Ok(Waited::Reserved),
            Capacity::HeldBy(holders) => holders,
        };
        if looked.elapsed() >= HOLDERS_EVERY {
            looked = Instant::now();
            if bus.release_ended(&holders).await {
                continue;
            }
            for holder in holders {
                if !ending::owner_is_there(bus, &holder).await {
                    return Ok(Waited::HolderLost(holder));
                }
            }
        }
        tokio::select! {
            biased;
            () = end.wait() => return Err(Stop::Cancelled),
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}
