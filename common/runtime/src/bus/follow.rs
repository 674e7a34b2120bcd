//! Reading a subject of a stream from its first message on, for as long as somebody listens.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::error::BusError;
use super::handle::Bus;
use super::streams::Counted;
use crate::subject::StreamName;

/// Bytes asked for at a time: well below the server's `max_pending` of 64 MB.
const AT_ONCE: usize = 32 << 20;
/// Messages that wait for the listener, so that it can take several together.
const READY: usize = 8;
/// Time that one pull request waits at the server.
const PULL_WAIT: Duration = Duration::from_secs(2);
/// Time between two log lines about a reader that cannot be opened.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Pause before a reader that was lost is made again.
const AGAIN: Duration = Duration::from_millis(100);

impl Bus {
    /// Messages on `subject`, from the first one that the stream still has on, then new ones as they come. A broker
    /// that goes away and comes back is waited for; a stream that counts anew since is read from its first message.
    /// Reading ends when the receiver is dropped.
    pub fn follow(&self, stream: StreamName, subject: String) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(READY);
        let bus = self.clone();
        tokio::spawn(async move {
            let mut next = 0;
            let mut counted = None;
            let place = (stream, subject);
            let mut told = None;
            while !sender.is_closed() {
                match bus.open(&place, &mut counted, &mut next).await {
                    Ok(reader) => read(&bus, &place, &reader, &sender, &mut next).await,
                    Err(error) => tell(&mut told, &place.1, &error),
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        receiver
    }

    /// Opens a reader at sequence `next`, or at the first message of a stream that counts anew since the last reader.
    async fn open(
        &self,
        (stream, subject): &(StreamName, String),
        counted: &mut Option<Counted>,
        next: &mut u64,
    ) -> Result<PullConsumer, BusError> {
        let now = self.counted(*stream).await?;
        if counted.replace(now).is_some_and(|before| now.anew_since(before)) {
            *next = 0;
        }
        self.reader(*stream, subject.clone(), *next).await
    }
}

/// Tells that no reader can be opened, now and then.
fn tell(told: &mut Option<Instant>, subject: &str, error: &BusError) {
    if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
        *told = Some(Instant::now());
        tracing::warn!(subject, %error, "opening a reader failed, retrying");
    }
}

/// Reads until the reader is lost (the broker restarted, say); `next` is the sequence where to go on.
async fn read(
    bus: &Bus,
    place: &(StreamName, String),
    reader: &PullConsumer,
    sender: &mpsc::Sender<Message>,
    next: &mut u64,
) {
    let largest = bus.max_body().min(bus.config().message_bytes).max(1);
    let messages = (AT_ONCE / largest).clamp(1, 64);
    while !sender.is_closed() {
        let pull = reader.batch().max_messages(messages).expires(PULL_WAIT).messages().await;
        let Ok(mut batch) = pull else { return };
        // Taken from the batch at once, however slow the listener is: what waits in a batch when its time is up is lost.
        let mut waiting: VecDeque<Message> = VecDeque::new();
        let mut end = None;
        let mut came = 0;
        while end.is_none() || !waiting.is_empty() {
            tokio::select! {
                message = tokio::time::timeout(PULL_WAIT + Duration::from_secs(1), batch.next()), if end.is_none() => {
                    match message {
                        Ok(Some(Ok(message))) => {
                            came += 1;
                            waiting.push_back(message);
                        }
                        Ok(Some(Err(error))) => {
                            tracing::debug!(%error, "pull not answered, reader lost");
                            end = Some(Pull::Lost);
                        }
                        Ok(None) => end = Some(Pull::Over),
                        Err(_) => end = Some(Pull::Lost),
                    }
                }
                slot = sender.reserve(), if !waiting.is_empty() => {
                    let (Ok(slot), Some(message)) = (slot, waiting.pop_front()) else { return };
                    if let Ok(info) = message.info() {
                        *next = info.stream_sequence + 1;
                    }
                    slot.send(message);
                }
                () = sender.closed() => return,
            }
        }
        if let Some(Pull::Lost) = end {
            return;
        }
        // nats-server 2.9.10 has readers that stand still though there is more: a new one goes on where this one ended.
        if came == 0 && bus.first_from(place.0, &place.1, *next).await.is_some() {
            tracing::debug!(subject = place.1, "reader stalled, opening another");
            return;
        }
    }
}

/// End of a pull.
enum Pull {
    /// All that it asked for came, or its time was up.
    Over,
    /// Nobody answers it any more.
    Lost,
}
