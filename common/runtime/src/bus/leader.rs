//! What a cluster of servers cannot answer for a while, and waiting for it: a leader that is being elected, a server that comes
//! back. A process that starts meanwhile waits; what runs asks again in any case (`tries`).

use std::time::{Duration, Instant};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};

use super::error::{BusError, BusErrorKind};
use super::handle::Bus;

/// Longest time that a process which starts waits for a leader: several elections, of up to nine seconds each, and a server that
/// is started again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before the cluster is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// Codes of what passes by itself in a cluster: no leader yet, of the cluster (10008, 10009) or of a stream's servers; servers
/// that are away, so that there are too few for a stream or a consumer (10005, 10023); one that is only starting (10039, 10076).
const PASSING: [ErrorCode; 11] = [
    ErrorCode::CLUSTER_NOT_AVAILABLE,
    ErrorCode::CLUSTER_NOT_LEADER,
    ErrorCode::CLUSTER_NOT_ACTIVE,
    ErrorCode::CLUSTER_NOT_ASSIGNED,
    ErrorCode::CLUSTER_INCOMPLETE,
    ErrorCode::STREAM_OFFLINE,
    ErrorCode::CONSUMER_OFFLINE,
    ErrorCode::CLUSTER_NO_PEERS,
    ErrorCode::INSUFFICIENT_RESOURCES,
    ErrorCode::JETSTREAM_NOT_ENABLED,
    ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
];

/// Error of a request to JetStream.
pub(super) trait Answer {
    /// Whether a cluster may give another answer soon: nobody answered, or with one of [`PASSING`].
    fn may_pass(&self) -> bool;
}

impl Answer for CreateStreamError {
    fn may_pass(&self) -> bool {
        match self.kind() {
            CreateStreamErrorKind::JetStream(e) => PASSING.contains(&e.error_code()),
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable => true,
            _ => false,
        }
    }
}

impl Answer for GetStreamError {
    fn may_pass(&self) -> bool {
        match self.kind() {
            GetStreamErrorKind::JetStream(e) => PASSING.contains(&e.error_code()),
            GetStreamErrorKind::Request => true,
            _ => false,
        }
    }
}

impl Answer for ConsumerError {
    fn may_pass(&self) -> bool {
        match self.kind() {
            ConsumerErrorKind::JetStream(e) => PASSING.contains(&e.error_code()),
            ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => true,
            _ => false,
        }
    }
}

impl Bus {
    /// Whether the broker is a cluster of servers.
    fn is_cluster(&self) -> bool {
        self.client.server_info().cluster.is_some()
    }

    /// Kind of an error, in this broker: of one server, nothing passes by itself.
    pub(super) fn kind_of(&self, error: &impl Answer) -> BusErrorKind {
        if self.is_cluster() && error.may_pass() { BusErrorKind::Leaderless } else { BusErrorKind::JetStream }
    }

    /// Asks again while the cluster has no leader for it, for a minute at most.
    ///
    /// # Errors
    /// Those of `ask`.
    pub(super) async fn once_led<T, A>(&self, ask: impl Fn() -> A) -> Result<T, BusError>
    where
        A: Future<Output = Result<T, BusError>>,
    {
        let until = Instant::now() + PATIENCE;
        let mut told = false;
        loop {
            match ask().await {
                Err(error) if error.kind() == BusErrorKind::Leaderless && Instant::now() < until => {
                    if !told {
                        told = true;
                        tracing::info!(%error, "the cluster has no leader for it yet, waiting");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }
}
