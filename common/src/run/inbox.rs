//! Pulling messages: one is worked on while the next already waits here, and both are kept from redelivery.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::{Acker, Message};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Shutdown;
use crate::bus::Bus;

/// How long one pull request waits at the server.
const PULL_WAIT: Duration = Duration::from_secs(5);
/// Pause after a pull that the broker did not answer.
const PULL_RETRY: Duration = Duration::from_millis(250);

/// A message in hand. Until it is settled a timer tells the broker that it is being worked on; dropped unsettled, it
/// is delivered again after `ack_wait`.
pub struct Delivery {
    /// The message.
    pub message: async_nats::Message,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the broker stored it, Unix milliseconds.
    pub stored_ms: u64,
    /// Deliveries before this one: a worker died or gave it back.
    pub redeliveries: u64,
    /// No further delivery follows this one.
    pub last_try: bool,
    acker: Arc<Acker>,
    keep: JoinHandle<()>,
}

impl Delivery {
    /// Takes a message in hand.
    pub fn new(bus: &Bus, message: Message) -> Option<Self> {
        let info = message.info().ok()?;
        let sequence = info.stream_sequence;
        let delivered = info.delivered;
        let stored_ms = (info.published.unix_timestamp_nanos() / 1_000_000) as u64;
        let (message, acker) = message.split();
        let acker = Arc::new(acker);
        let every = Duration::from_secs_f64(bus.config().ack_wait_s / 3.0);
        let ticking = acker.clone();
        let keep = tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                if let Err(error) = ticking.ack_with(AckKind::Progress).await {
                    tracing::debug!(%error, "sign of progress not sent");
                }
            }
        });
        Some(Delivery {
            message,
            sequence,
            stored_ms,
            redeliveries: delivered.saturating_sub(1) as u64,
            last_try: delivered >= bus.config().max_deliver,
            acker,
            keep,
        })
    }

    /// Acknowledges: the message leaves its queue. If the broker does not hear it, the message comes again, and its
    /// outputs are found to be there.
    pub async fn done(self) {
        if let Err(error) = self.acker.double_ack().await {
            tracing::debug!(%error, "acknowledgement not confirmed");
        }
    }

    /// Gives the message back, to be tried again after `pause`.
    pub async fn give_back(self, pause: Duration) {
        if let Err(error) = self.acker.ack_with(AckKind::Nak(Some(pause))).await {
            tracing::debug!(%error, "message not given back; it comes again after ack_wait");
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.keep.abort();
    }
}

/// The messages of one queue, one prefetched.
pub struct Inbox {
    deliveries: mpsc::Receiver<Delivery>,
}

impl Inbox {
    /// Starts pulling until `shutdown`.
    pub fn start(bus: &Bus, queue: PullConsumer, mut shutdown: Shutdown) -> Self {
        let (sender, deliveries) = mpsc::channel(1);
        let bus = bus.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    _ = shutdown.wait_for(|&s| s) => return,
                    pulled = pull(&bus, &queue, &sender) => if pulled.is_err() { return },
                }
            }
        });
        Inbox { deliveries }
    }

    /// The next message; none once drained. What was prefetched when shutdown came goes back to the queue.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }
}

/// Waits for room, then for one message. An error means that nobody takes messages any more.
async fn pull(bus: &Bus, queue: &PullConsumer, sender: &mpsc::Sender<Delivery>) -> Result<(), ()> {
    let slot = sender.reserve().await.map_err(|_| ())?;
    let batch = queue.batch().max_messages(1).expires(PULL_WAIT).messages().await;
    let mut batch = match batch {
        Ok(batch) => batch,
        Err(error) => {
            tracing::debug!(%error, "pull not sent");
            tokio::time::sleep(PULL_RETRY).await;
            return Ok(());
        }
    };
    match tokio::time::timeout(PULL_WAIT + Duration::from_secs(1), batch.next()).await {
        Ok(Some(Ok(message))) => {
            if let Some(delivery) = Delivery::new(bus, message) {
                slot.send(delivery);
            }
        }
        Ok(Some(Err(error))) => {
            tracing::debug!(%error, "pull not answered");
            tokio::time::sleep(PULL_RETRY).await;
        }
        Ok(None) | Err(_) => {}
    }
    Ok(())
}
