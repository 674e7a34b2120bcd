//! Pulling messages: some are worked on while the next already wait here, and all are kept from redelivery. No more wait than
//! are computed together: what waits here is nobody else's.
//!
//! A message that was delivered before may be what its last worker died of. While it is worked on nothing waits here, so
//! that a neighbour is not counted as tried, again and again, each time that it kills its worker.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::{Acker, Message};
use async_nats::{Request, Subject};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::shutdown::{self, Shutdown};
use crate::bus::{Bus, WorkQueue};

/// Time that one pull request waits at the server.
const PULL_WAIT: Duration = Duration::from_secs(5);
/// Pause after a pull that the broker did not answer.
const PULL_RETRY: Duration = Duration::from_millis(250);
/// Pause before a message that met trouble outside is tried again; it doubles with every try.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Message in flight. Until it is settled a timer tells the broker that it is being worked on; dropped unsettled, it
/// is delivered again after `ack_wait`.
pub struct Delivery {
    /// Message as it came.
    pub message: async_nats::Message,
    /// Sequence in the stream.
    pub sequence: u64,
    /// Time when the broker stored it, Unix milliseconds.
    pub stored_ms: u64,
    /// Deliveries before this one: a worker died or gave it back.
    pub redeliveries: u64,
    /// Whether this is the last delivery that may fail without failing its job.
    pub last_try: bool,
    /// Whether another worker had it first and handed it over.
    pub handed: bool,
    bus: Bus,
    /// Connections that had been lost when it came.
    reconnects: u64,
    ack_to: Subject,
    acker: Arc<Acker>,
    keep: JoinHandle<()>,
    /// Dropped with the delivery, which tells the puller that it is settled.
    settled: Option<oneshot::Sender<()>>,
}

impl Delivery {
    /// Begins with a message; none for one that is no delivery.
    pub fn new(bus: &Bus, message: Message) -> Option<Self> {
        Delivery::kept(bus, message, false)
    }

    /// Begins with a message that another worker had first: the broker hears at once that it is worked on.
    pub fn handed(bus: &Bus, message: Message) -> Option<Self> {
        Delivery::kept(bus, message, true)
    }

    fn kept(bus: &Bus, message: Message, handed: bool) -> Option<Self> {
        let info = message.info().ok()?;
        let sequence = info.stream_sequence;
        let delivered = info.delivered;
        let stored_ms = (info.published.unix_timestamp_nanos() / 1_000_000) as u64;
        let ack_to = message.reply.clone()?;
        let (message, acker) = message.split();
        let acker = Arc::new(acker);
        let every = Duration::from_secs_f64(bus.config().ack_wait_s / 3.0);
        let ticking = acker.clone();
        let keep = tokio::spawn(async move {
            let mut pause = if handed { Duration::ZERO } else { every };
            loop {
                tokio::time::sleep(pause).await;
                pause = every;
                if let Err(error) = ticking.ack_with(AckKind::Progress).await {
                    tracing::debug!(%error, "progress acknowledgement failed");
                }
            }
        });
        Some(Delivery {
            message,
            sequence,
            stored_ms,
            redeliveries: delivered.saturating_sub(1) as u64,
            last_try: delivered >= bus.config().max_deliver,
            handed,
            bus: bus.clone(),
            reconnects: bus.reconnects(),
            ack_to,
            acker,
            keep,
            settled: None,
        })
    }

    /// Subject that its settlement goes to, and with it all that the broker says of the delivery.
    pub fn ack_to(&self) -> &Subject {
        &self.ack_to
    }

    /// Whether every try that it may have has failed: its workers died, or gave it back.
    pub fn exhausted(&self, max_deliver: i64) -> bool {
        self.redeliveries >= max_deliver.max(1) as u64
    }

    /// Stops being in the way of further messages, though this one is not settled: nothing computes on it here.
    pub fn set_aside(&mut self) {
        drop(self.settled.take());
    }

    /// Leaves the message to the worker that it was handed to, which settles it.
    pub fn leave(self) {}

    /// Gives the message back after trouble outside; the pause doubles with every try.
    pub async fn retry_later(self) {
        let pause = RETRY_PAUSE * (1 << self.redeliveries.min(5));
        self.give_back(pause).await;
    }

    /// Whether the broker came back without the message since. Then nobody is to be told of it: its stream counts anew, and what is told
    /// would be of another message, which nats-server drops for an acknowledgement that is not its own.
    async fn is_lost(&self) -> bool {
        if !self.bus.is_connected() {
            let mut reconnects = self.bus.reconnects_from_now();
            let _ = tokio::time::timeout(PULL_WAIT, reconnects.changed()).await;
        }
        let Some(stream) = self.bus.subjects().stream_of(&self.message.subject) else { return false };
        if self.bus.reconnects() == self.reconnects {
            return false;
        }
        match self.bus.counted(stream).await {
            Ok(now) => !now.has_stored(self.sequence, self.stored_ms),
            // A stream that is not there has nobody to hear it.
            Err(_) => false,
        }
    }

    /// Acknowledges: the message leaves its queue. If the broker does not hear it, the message comes again, and its
    /// outputs are found to be there.
    pub async fn done(self) {
        if self.is_lost().await {
            return;
        }
        let mut reconnects = self.bus.reconnects_from_now();
        // A request as any other, where `double_ack` subscribes to an answer of its own for every message.
        let ack = Request::new().payload("+ACK".into());
        tokio::select! {
            answer = self.bus.client().send_request(self.ack_to.clone(), ack) => {
                if let Err(error) = answer {
                    tracing::debug!(%error, "acknowledgement failed, the message may come again");
                }
            }
            // The answer is lost with the connection.
            _ = reconnects.changed() => tracing::debug!("broker was away, the message may come again"),
        }
    }

    /// Gives the message back, to be tried again after `pause`.
    pub async fn give_back(self, pause: Duration) {
        if self.is_lost().await {
            return;
        }
        if let Err(error) = self.acker.ack_with(AckKind::Nak(Some(pause))).await {
            tracing::debug!(%error, "giving a message back failed, it comes again after ack_wait");
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.keep.abort();
        drop(self.settled.take());
    }
}

/// How much of a queue waits here at most.
#[derive(Clone, Copy)]
pub struct Prefetch {
    /// Units of work that are computed together at most. The next message is pulled while fewer wait.
    pub units: u64,
    /// Units of a message, of its body.
    pub of: fn(&[u8]) -> u64,
}

impl Prefetch {
    /// One message.
    pub const ONE: Prefetch = Prefetch { units: 1, of: |_| 1 };

    /// Most messages that may wait: each is one unit at least.
    fn messages(self) -> usize {
        usize::try_from(self.units).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS.min(1 << 16))
    }
}

/// Message that waits here.
pub struct Waiting {
    /// The message.
    pub delivery: Delivery,
    /// Its units of work, at least 1.
    pub units: u64,
    /// Capacity that it takes while it waits.
    slots: OwnedSemaphorePermit,
}

/// Messages of one queue, some prefetched.
pub struct Inbox {
    waiting: mpsc::Receiver<Waiting>,
    /// First of those that wait, which was looked at and left.
    left: Option<Waiting>,
    /// Messages that other workers had first.
    handed: mpsc::Receiver<Delivery>,
}

impl Inbox {
    /// Starts to pull, until `shutdown`. What other workers hand over comes first.
    pub fn start(
        bus: &Bus,
        queue: WorkQueue,
        handed: mpsc::Receiver<Delivery>,
        mut shutdown: Shutdown,
        prefetch: Prefetch,
    ) -> Self {
        let (sender, waiting) = mpsc::channel(prefetch.messages());
        let slots = Arc::new(Semaphore::new(prefetch.messages()));
        let bus = bus.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = shutdown::begun(&mut shutdown) => return,
                    pulled = pull(&bus, &queue, &sender, &slots, prefetch) => if pulled.is_err() { return },
                }
            }
        });
        Inbox { waiting, left: None, handed }
    }

    /// Next message and its units; none once drained. What was prefetched when shutdown came goes back to the queue.
    pub async fn next(&mut self) -> Option<(Delivery, u64)> {
        if let Some(left) = self.left.take() {
            return Some((left.delivery, left.units));
        }
        let pulled = tokio::select! {
            biased;
            Some(delivery) = self.handed.recv() => return Some((delivery, 1)),
            pulled = self.waiting.recv() => pulled,
        };
        if let Some(Waiting { delivery, units, slots: _slots }) = pulled {
            return Some((delivery, units));
        }
        self.handed.close();
        self.handed.recv().await.map(|delivery| (delivery, 1))
    }

    /// Next message if one waits by now and is `wanted`, with its units. It is not waited for.
    pub fn more(&mut self, wanted: impl FnOnce(&Delivery, u64) -> bool) -> Option<(Delivery, u64)> {
        let first = self.left.take().or_else(|| self.waiting.try_recv().ok())?;
        if wanted(&first.delivery, first.units) {
            return Some((first.delivery, first.units));
        }
        self.left = Some(first);
        None
    }
}

/// Waits for capacity, then for one message. An error means that nobody takes messages any more.
async fn pull(
    bus: &Bus,
    queue: &WorkQueue,
    sender: &mpsc::Sender<Waiting>,
    free: &Arc<Semaphore>,
    prefetch: Prefetch,
) -> Result<(), ()> {
    let mut slots = free.clone().acquire_owned().await.map_err(|_| ())?;
    let slot = sender.reserve().await.map_err(|_| ())?;
    let mut reconnects = bus.reconnects_from_now();
    if !bus.is_connected() {
        // A pull that is sent once the broker is back could not be told from one that it has forgotten.
        let _ = tokio::time::timeout(PULL_WAIT, reconnects.changed()).await;
    }
    let batch = queue.consumer().batch().max_messages(1).expires(PULL_WAIT).messages().await;
    let mut batch = match batch {
        Ok(batch) => batch,
        Err(error) => {
            tracing::debug!(%error, "pull failed, retrying");
            tokio::time::sleep(PULL_RETRY).await;
            return Ok(());
        }
    };
    let pulled = tokio::time::timeout(PULL_WAIT + Duration::from_secs(1), batch.next());
    let pulled = tokio::select! {
        biased;
        pulled = pulled => pulled,
        // The broker has forgotten the pull; what it had sent comes again.
        _ = reconnects.changed() => return Ok(()),
    };
    match pulled {
        Ok(Some(Ok(message))) => {
            if let Some(mut delivery) = Delivery::new(bus, message) {
                let (settled, settling) = oneshot::channel();
                let suspect = delivery.redeliveries > 0;
                delivery.settled = Some(settled);
                let units = (prefetch.of)(&delivery.message.payload).max(1);
                // Nobody else takes slots: what is free stays free.
                let more = units.min(prefetch.units) as usize - 1;
                if let Ok(taken) = free.clone().try_acquire_many_owned(more.min(free.available_permits()) as u32) {
                    slots.merge(taken);
                }
                slot.send(Waiting { delivery, units, slots });
                if suspect {
                    // Nothing is ever sent: the sender is dropped with the delivery.
                    let _ = settling.await;
                }
            }
        }
        Ok(Some(Err(error))) => {
            tracing::debug!(%error, "pull not answered, retrying");
            queue.restore(bus).await;
            tokio::time::sleep(PULL_RETRY).await;
        }
        // The broker ends every pull; one that it has not answered may be to a consumer that is gone.
        Err(_) => queue.restore(bus).await,
        Ok(None) => {}
    }
    Ok(())
}
