//! Jobs that one worker offers to another, which keeps their video: the delivery itself is handed over, and whoever takes it
//! settles it with the broker. Nobody has claimed the job before.

use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream;

use crate::bus::Bus;
use crate::bus::queue::queue_of;
use crate::run::handing;
use crate::run::inbox::Delivery;
use crate::subject::StreamName;
use protocol::message::JobRequest;
use protocol::wire;
use protocol::workers::OfferReply;

/// Time within which a worker that is there answers.
const ANSWERS: Duration = Duration::from_millis(300);

/// Answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The job is the other worker's.
    Taken,
    /// It does not want it now.
    Refused,
    /// It is gone. Or its answer is: then it has the job, and its fencing token is ahead.
    Silent,
}

/// Offers the job of a delivery to a worker.
pub async fn offer(bus: &Bus, to: &str, delivery: &Delivery) -> Answered {
    let request = handing::request(delivery, ANSWERS);
    match bus.client().send_request(bus.subjects().offers(to), request).await {
        Ok(reply) => match wire::decode_any::<OfferReply>(&reply.payload) {
            Ok(OfferReply { taken: true, .. }) => Answered::Taken,
            Ok(OfferReply { taken: false, .. }) => Answered::Refused,
            Err(error) => {
                tracing::debug!(%error, to, "reply to an offer unreadable");
                Answered::Silent
            }
        },
        Err(error) => {
            tracing::debug!(%error, to, "offer not answered");
            Answered::Silent
        }
    }
}

/// Job that another worker offers.
pub struct Offer {
    pub request: JobRequest,
    message: jetstream::Message,
    reply: Option<Subject>,
}

impl Offer {
    /// Reads an offer.
    ///
    /// # Errors
    /// Why it is none, in words.
    pub fn read(bus: &Bus, message: async_nats::Message) -> Result<Self, String> {
        let request = wire::decode_any::<JobRequest>(&message.payload).map_err(|e| e.to_string())?;
        let reply = message.reply.clone();
        let stream = StreamName::Line.on(bus.subjects());
        let message = handing::read(bus, message, &stream, &queue_of(request.priority))?;
        if message.subject.as_str() != bus.subjects().waiting(request.priority, &request.job) {
            return Err(format!("a request of {} that waits on {}", request.job, message.subject));
        }
        Ok(Offer { request, message, reply })
    }

    /// Answers it; the delivery, if it is taken.
    pub async fn answer(self, bus: &Bus, taken: bool) -> Option<(JobRequest, Delivery)> {
        let Offer { request, message, reply } = self;
        // Kept before the other worker lets go of it.
        let delivery = if taken { Delivery::handed(bus, message) } else { None };
        if let Some(to) = reply {
            let reply = OfferReply { v: wire::VERSION, taken: delivery.is_some() };
            bus.tell(to.to_string(), wire::encode(&reply)).await;
        }
        Some((request, delivery?))
    }
}
