//! Storing a message that may be sent again as often as it takes.

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures::FutureExt;

use super::handle::Bus;
use super::tries::{Tries, Trouble};
use protocol::stage::Stop;

/// When the broker stored a message that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Now.
    Now,
    /// Before: it knew the message's id, and dropped this one. What it stored then may have been taken since.
    Before,
}

impl Bus {
    /// Stores one message, with the [headers](super::headers) of its job, and returns when the broker has it. A full
    /// stream, or a broker that is away, is tried again until it works, or until `unwanted` is over: then nobody wants
    /// the message any more. A publish that is on its way is waited for all the same: broken off, it could still arrive,
    /// behind whoever clears up.
    ///
    /// # Errors
    /// [`Stop::Cancelled`]; [`Stop::Unavailable`] when the broker takes smaller messages than when the body was made.
    pub async fn store(
        &self,
        subject: String,
        message_id: &str,
        headers: &HeaderMap,
        body: Bytes,
        unwanted: impl Future<Output = ()>,
    ) -> Result<Stored, Stop> {
        tokio::pin!(unwanted);
        if unwanted.as_mut().now_or_never().is_some() {
            return Err(Stop::Cancelled);
        }
        let mut tries = Tries::new(self, &subject, "publish");
        loop {
            let publish = PublishMessage::build().headers(headers.clone()).message_id(message_id).payload(body.clone());
            let mut reconnects = self.reconnects_from_now();
            let sent = async { self.outlet.send_publish(subject.clone(), publish).await?.await };
            let error = tokio::select! {
                sent = sent => match sent {
                    Ok(ack) if ack.duplicate => return Ok(Stored::Before),
                    Ok(_) => return Ok(Stored::Now),
                    Err(error) => error,
                },
                // What it had to say is lost with the connection. The next one is behind this one, and a duplicate if it was stored:
                // its answer is waited for, wanted or not.
                _ = reconnects.changed() => {
                    tries.again(Trouble::Away, &"the broker was away").await;
                    continue;
                }
            };
            if error.kind() == PublishErrorKind::MaxPayloadExceeded {
                return Err(Stop::Unavailable(format!("publish of {message_id} failed: {error}")));
            }
            tokio::select! {
                biased;
                () = &mut unwanted => return Err(Stop::Cancelled),
                () = tries.again(Trouble::from(&error), &error) => {}
            }
        }
    }
}
