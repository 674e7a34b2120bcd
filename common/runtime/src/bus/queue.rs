//! Work queues: one consumer that all workers of a queue share, made again where the broker has lost it.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};

use super::error::BusError;
use super::handle::Bus;
use crate::subject::StreamName;

/// Consumer that all workers of a queue share.
#[derive(Clone)]
pub struct WorkQueue {
    stream: StreamName,
    config: pull::Config,
    consumer: PullConsumer,
}

impl WorkQueue {
    /// The consumer. It stays usable when the queue is made again, which gives it the same name.
    pub fn consumer(&self) -> &PullConsumer {
        &self.consumer
    }

    /// Makes the consumer again if it is gone. All that its stream holds is delivered anew then, also what others have in
    /// flight: outputs that are there already are recognised.
    pub async fn restore(&self, bus: &Bus) {
        if let Err(error) = bus.consumer(self.stream, self.config.clone()).await {
            tracing::debug!(%error, "making a queue again failed, retrying");
        }
    }
}

impl Bus {
    /// Opens a queue, which is made if it is not there. `name` tells queues of one stream apart, and `filter` what is
    /// theirs; none where the stream is one queue. A filter is not given without need: nats-server 2.9.10 loses count of a
    /// subject's messages when one is removed twice (acknowledged by two workers, say), and then finds none of them by a
    /// filter with a wildcard. The server delivers without end; whoever receives a message more than `max_deliver` times
    /// fails its job (`Delivery::exhausted` of the run loop). So nothing stays behind in the queue unseen.
    ///
    /// # Errors
    /// [`JetStream`](super::BusErrorKind::JetStream).
    pub async fn work_queue(
        &self,
        stream: StreamName,
        name: &str,
        filter: Option<String>,
    ) -> Result<WorkQueue, BusError> {
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            name: Some(name.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs_f64(self.config().ack_wait_s),
            max_deliver: -1,
            filter_subject: filter.unwrap_or_default(),
            ..Default::default()
        };
        let consumer = self.consumer(stream, config.clone()).await?;
        Ok(WorkQueue { stream, config, consumer })
    }
}
