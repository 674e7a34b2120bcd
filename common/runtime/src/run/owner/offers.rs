//! Jobs that one worker offers to another, which keeps their video: the delivery itself is handed over, and whoever takes it
//! settles it with the broker. Nobody has claimed the job before.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::{HeaderMap, Subject};

use crate::bus::Bus;
use crate::bus::queue::queue_of;
use crate::run::inbox::Delivery;
use crate::subject::StreamName;
use protocol::message::JobRequest;
use protocol::wire;
use protocol::workers::OfferReply;

/// Header with the subject that the job waits on.
const WAITS_ON: &str = "Vidi-Waits-On";
/// Header with the subject that its delivery is settled on.
const DELIVERY: &str = "Vidi-Delivery";
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
    let mut headers = delivery.message.headers.clone().unwrap_or_default();
    headers.insert(WAITS_ON, delivery.message.subject.as_str());
    headers.insert(DELIVERY, delivery.ack_to().as_str());
    let request =
        async_nats::Request::new().headers(headers).payload(delivery.message.payload.clone()).timeout(Some(ANSWERS));
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
        let header = |headers: &HeaderMap, name| headers.get(name).map(|value| Subject::from(value.as_str()));
        let headers = message.headers.as_ref().ok_or("an offer without headers")?;
        let subject = header(headers, WAITS_ON).ok_or_else(|| format!("an offer without {WAITS_ON}"))?;
        let delivery = header(headers, DELIVERY).ok_or_else(|| format!("an offer without {DELIVERY}"))?;
        if subject.as_str() != bus.subjects().waiting(request.priority, &request.job) {
            return Err(format!("a request of {} that waits on {subject}", request.job));
        }
        let async_nats::Message { reply, .. } = message.clone();
        let message = async_nats::Message { subject, reply: Some(delivery), ..message };
        let message = jetstream::Message { message, context: bus.jetstream().clone() };
        let info = message.info().map_err(|e| format!("the delivery of {}: {e}", request.job))?;
        let queue = (StreamName::Line.on(bus.subjects()), queue_of(request.priority));
        if (info.stream, info.consumer) != (queue.0.as_str(), queue.1.as_str()) {
            return Err(format!("a delivery of {}/{}, which is not the line's", info.stream, info.consumer));
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
