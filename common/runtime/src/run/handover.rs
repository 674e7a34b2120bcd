//! Requests to decode whose file is not where they were pulled: all instances of stage-decode share one queue, and each sees its
//! own files. The instance that pulled one keeps it from coming again, finds one that has the file, with the content that was
//! planned, and hands the delivery over; the other one settles it. So a request is counted as tried only where a worker dies of
//! it, and nothing stays in the way of the requests behind it.
//!
//! Where nobody has the file any more, whoever had it may be about to come back: it is waited for, for `worker_patience_s`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Subject, Subscriber};
use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};

use super::handing;
use super::inbox::Delivery;
use super::job_end::EndSignal;
use super::shutdown::{self, Shutdown};
use super::whereabouts::Whereabouts;
use crate::bus::{Bus, BusError, BusErrorKind};
use crate::subject::StreamName;
use protocol::error::{JobError, StageName};
use protocol::message::DecodeRequest;
use protocol::stage::Files;
use protocol::wire;
use protocol::workers::OfferReply;

/// Deliveries that an instance takes over before it works on them.
const WAITING: usize = 2;
/// Time within which an instance that is there answers an offer.
const ANSWERS: Duration = Duration::from_secs(2);
/// Pause before whoever has a file is asked for again.
const PAUSE: Duration = Duration::from_millis(250);
/// Requests that one instance keeps at most, which is what the broker lets a consumer have in flight.
const KEPT: u32 = 1000;
/// Deliveries that were taken over lately: an offer that comes again, since its answer was lost, has been taken.
const REMEMBERED: usize = 64;

/// Way of an instance to others that see other files.
pub struct Elsewhere {
    /// Way to find out who has one; none where the stage has no files.
    pub whereabouts: Option<Whereabouts>,
    /// Way to hand work over; none where the stage has no files.
    pub handover: Option<Arc<Handover>>,
    /// What is handed over to this instance.
    pub handed: mpsc::Receiver<Delivery>,
}

impl Elsewhere {
    /// Begins to answer the others, where the stage has files, and to take work over.
    ///
    /// # Errors
    /// When the broker refuses a subscription.
    pub async fn start(bus: &Bus, files: Option<Files>, shutdown: Shutdown) -> Result<Self, BusError> {
        let (sender, handed) = mpsc::channel(WAITING);
        let Some(files) = files else { return Ok(Elsewhere { whereabouts: None, handover: None, handed }) };
        let whereabouts = Whereabouts::start(bus, files).await?;
        let on = bus.subjects().hand(bus.instance());
        let offers = bus.client().subscribe(on).await;
        let offers = offers.map_err(|e| BusError::new(BusErrorKind::JetStream, format!("handover: {e}")))?;
        tokio::spawn(take_over(bus.clone(), offers, sender, shutdown.clone()));
        let kept = Arc::new(Semaphore::new(KEPT as usize));
        let handover = Handover { bus: bus.clone(), whereabouts: whereabouts.clone(), shutdown, kept };
        Ok(Elsewhere { whereabouts: Some(whereabouts), handover: Some(Arc::new(handover)), handed })
    }
}

/// One instance's way to hand requests over.
pub struct Handover {
    bus: Bus,
    whereabouts: Whereabouts,
    shutdown: Shutdown,
    kept: Arc<Semaphore>,
}

impl Handover {
    /// Finds an instance for a request that this one refuses with `own`, until `end` says that nobody waits for its job. The
    /// request, and why its job is to fail, where nobody has the file; else it is settled, or another instance's.
    pub async fn place(&self, mut delivery: Delivery, end: &EndSignal, own: JobError) -> Option<(Delivery, JobError)> {
        let Ok(request) = wire::decode::<DecodeRequest>(&delivery.message.payload) else {
            return Some((delivery, own));
        };
        delivery.set_aside();
        // Closed never.
        let _kept = self.kept.acquire().await;
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = end.wait() => {
                delivery.done().await;
                return None;
            }
            () = shutdown::begun(&mut shutdown) => {}
            refused = self.hand(&request, &delivery, &own) => return match refused {
                None => {
                    delivery.leave();
                    None
                }
                Some(error) => Some((delivery, error)),
            },
        }
        delivery.give_back(Duration::ZERO).await;
        None
    }

    /// Hands a request over; the reason for which nobody takes it, once that is certain.
    async fn hand(&self, request: &DecodeRequest, delivery: &Delivery, own: &JobError) -> Option<JobError> {
        let content_id = Some(request.plan.content_id.as_str()).filter(|id| !id.is_empty());
        if self.whereabouts.has(&request.video, content_id).await {
            // It is here: what went wrong would go wrong elsewhere.
            return Some(own.clone());
        }
        let patience = Duration::from_secs_f64(self.bus.config().worker_patience_s);
        let mut missing_since = None;
        // Those that have too much to do: another one may have the file as well.
        let mut busy = Vec::new();
        loop {
            let asked = Instant::now();
            let found = self.whereabouts.find(&request.video, content_id, &busy).await;
            if let Some(to) = found.holder(content_id, &busy) {
                missing_since = None;
                if self.offer(to, delivery).await {
                    tracing::info!(to, file = request.video, "request handed over to an instance that has its file");
                    return None;
                }
                busy.push(to.to_owned());
                continue;
            }
            if found.is_heard() && busy.is_empty() {
                let since = *missing_since.get_or_insert(asked);
                if found.is_gone() || since.elapsed() >= patience {
                    return Some(found.refusal(&request.video, content_id, own));
                }
                tracing::debug!(file = request.video, "nobody has the file of a request, waiting for who had it");
            }
            busy.clear();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Offers a delivery to an instance; whether it takes it.
    async fn offer(&self, to: &str, delivery: &Delivery) -> bool {
        let request = handing::request(delivery, ANSWERS);
        match self.bus.client().send_request(self.bus.subjects().hand(to), request).await {
            Ok(reply) => wire::decode_any::<OfferReply>(&reply.payload).is_ok_and(|reply| reply.taken),
            Err(error) => {
                tracing::debug!(%error, to, "offer of a request not answered");
                false
            }
        }
    }

    /// Waits until nothing is kept here any more, in an instance that leaves.
    pub async fn ended(&self) {
        // Closed never.
        let _all = self.kept.acquire_many(KEPT).await;
    }
}

/// Takes over what others offer, as far as there is a place for it.
async fn take_over(bus: Bus, mut offers: Subscriber, sender: mpsc::Sender<Delivery>, shutdown: Shutdown) {
    let (stream, consumer) = (StreamName::Decode.on(bus.subjects()), StageName::Decode.to_string());
    let mut lately: VecDeque<Subject> = VecDeque::new();
    while let Some(offer) = offers.next().await {
        let Some(to) = offer.reply.clone() else { continue };
        let taken = match handing::read(&bus, offer, &stream, &consumer) {
            Err(why) => {
                tracing::warn!(why, "offer of a request refused");
                bus.note_unreadable();
                false
            }
            Ok(message) => {
                let settled_on = message.reply.clone().unwrap_or_else(|| Subject::from_static(""));
                let known = lately.contains(&settled_on);
                // Kept before the other instance lets go of it.
                let place = if known || *shutdown.borrow() { None } else { sender.try_reserve().ok() };
                let delivery = place.and_then(|place| Some((place, Delivery::handed(&bus, message)?)));
                let taken = known || delivery.is_some();
                if let Some((place, delivery)) = delivery {
                    lately.push_back(settled_on);
                    place.send(delivery);
                }
                lately.drain(..lately.len().saturating_sub(REMEMBERED));
                taken
            }
        };
        bus.tell(to.to_string(), wire::encode(&OfferReply { v: wire::VERSION, taken })).await;
    }
}
