//! Reading a subject of a stream from its first message on, for as long as somebody listens.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::Bus;
use crate::subject::StreamName;

/// Bytes asked for at a time: well below the server's `max_pending` of 64 MB.
const AT_ONCE: usize = 16 << 20;
/// How long one pull request waits at the server.
const PULL_WAIT: Duration = Duration::from_secs(2);
/// Pause before a reader that was lost is made again.
const AGAIN: Duration = Duration::from_millis(100);

impl Bus {
    /// Every message on `subject`, from the first one that the stream still has, then new ones as they come. A broker
    /// that goes away and comes back is waited for. Reading ends when the receiver is dropped.
    pub fn follow(&self, stream: StreamName, subject: String) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(1);
        let bus = self.clone();
        tokio::spawn(async move {
            let mut next = 0;
            while !sender.is_closed() {
                match bus.reader(stream, subject.clone(), next).await {
                    Ok(reader) => read(&bus, &reader, &sender, &mut next).await,
                    Err(error) => tracing::warn!(subject, %error, "cannot be read yet"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        receiver
    }
}

/// Reads until the reader is lost (the broker restarted, say); `next` is the sequence where to go on.
async fn read(bus: &Bus, reader: &PullConsumer, sender: &mpsc::Sender<Message>, next: &mut u64) {
    let messages = (AT_ONCE / bus.max_body().max(1)).clamp(1, 64);
    while !sender.is_closed() {
        let pull = reader.batch().max_messages(messages).expires(PULL_WAIT).messages().await;
        let Ok(mut batch) = pull else { return };
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(PULL_WAIT + Duration::from_secs(1), batch.next()) => message,
                () = sender.closed() => return,
            };
            match message {
                Ok(Some(Ok(message))) => {
                    if let Ok(info) = message.info() {
                        *next = info.stream_sequence + 1;
                    }
                    if sender.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Err(error))) => {
                    tracing::debug!(%error, "pull not answered");
                    return;
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
