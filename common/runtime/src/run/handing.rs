//! A delivery that one worker hands to another: the message travels in a request, with the subjects that it waits on and is settled
//! on beside it, and whoever takes it settles it with the broker.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::{HeaderMap, Request, Subject};

use super::inbox::Delivery;
use crate::bus::Bus;

/// Header with the subject that the message waits on.
const WAITS_ON: &str = "Vidi-Waits-On";
/// Header with the subject that its delivery is settled on.
const DELIVERY: &str = "Vidi-Delivery";

/// Request that hands a delivery over, to be answered within `wait`.
pub fn request(delivery: &Delivery, wait: Duration) -> Request {
    let mut headers = delivery.message.headers.clone().unwrap_or_default();
    headers.insert(WAITS_ON, delivery.message.subject.as_str());
    headers.insert(DELIVERY, delivery.ack_to().as_str());
    Request::new().headers(headers).payload(delivery.message.payload.clone()).timeout(Some(wait))
}

/// Message of a delivery of `stream` to `consumer` that is handed over; the subject of the answer stands in the request alone.
///
/// # Errors
/// Why it is none, in words.
pub fn read(
    bus: &Bus,
    request: async_nats::Message,
    stream: &str,
    consumer: &str,
) -> Result<jetstream::Message, String> {
    let header = |headers: &HeaderMap, name| headers.get(name).map(|value| Subject::from(value.as_str()));
    let headers = request.headers.as_ref().ok_or("an offer without headers")?;
    let subject = header(headers, WAITS_ON).ok_or_else(|| format!("an offer without {WAITS_ON}"))?;
    let delivery = header(headers, DELIVERY).ok_or_else(|| format!("an offer without {DELIVERY}"))?;
    let message = async_nats::Message { subject, reply: Some(delivery), ..request };
    let message = jetstream::Message { message, context: bus.jetstream().clone() };
    let info = message.info().map_err(|e| format!("no delivery: {e}"))?;
    if (info.stream, info.consumer) != (stream, consumer) {
        return Err(format!("a delivery of {}/{}, not of {stream}/{consumer}", info.stream, info.consumer));
    }
    Ok(message)
}
