//! Messages that their queue has forgotten, sent again.
//!
//! A work queue drops what is acknowledged, so a message at or below the consumer's acknowledgement floor cannot be
//! there; yet nats-server 2.9.10 leaves some when workers die (its filters miss them, see [`Bus::work_queue`]), and never
//! delivers them again.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Stream;

use super::admission::ADMISSION;
use super::line;
use super::shutdown::{self, Shutdown};
use crate::bus::Bus;
use crate::bus::streams::ANY;
use crate::subject::{PRIORITIES, StreamName};
use protocol::error::StageName;

/// Time between two searches of the queues for forgotten messages.
const EVERY: Duration = Duration::from_secs(3);
/// Looks after which a message is sent again: seen once, it may be acknowledged just now.
const LOOKS: u32 = 2;

/// One work queue of a stream.
struct Queue {
    consumer: String,
    /// Subjects that it takes: one, or those that end in `.*`.
    filter: String,
}

/// Messages that may be forgotten, by stream and sequence, and how often they were seen.
type Suspects = HashMap<(StreamName, u64), u32>;

/// Looks, now and then until `shutdown`, for messages that their queue has forgotten, and sends them again. Every
/// stage-llm worker looks.
pub async fn rescue(bus: Bus, mut shutdown: Shutdown) {
    let streams = queues(&bus);
    let mut suspects = Suspects::new();
    loop {
        let mut seen = Suspects::new();
        for (stream, queues) in &streams {
            look(&bus, *stream, queues, &suspects, &mut seen).await;
        }
        suspects = seen;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown::begun(&mut shutdown) => return,
        }
    }
}

/// Queues of every stream that is worked off.
fn queues(bus: &Bus) -> Vec<(StreamName, Vec<Queue>)> {
    let subjects = bus.subjects();
    let stages = StageName::ALL.into_iter().filter(|&s| s != StageName::Llm);
    let mut streams: Vec<(StreamName, Vec<Queue>)> = stages
        .map(|stage| {
            let queue = Queue { consumer: stage.to_string(), filter: subjects.all_input(stage) };
            (StreamName::input_of(stage), vec![queue])
        })
        .collect();
    streams.push((StreamName::Jobs, vec![Queue { consumer: ADMISSION.to_owned(), filter: subjects.jobs() }]));
    let line = PRIORITIES.map(|p| Queue { consumer: line::queue_of(p), filter: subjects.all_waiting(p) });
    streams.push((StreamName::Line, line.into()));
    streams
}

/// Looks through one stream once: suspects go to `seen`, and those that were suspects for long enough are sent again.
async fn look(bus: &Bus, stream: StreamName, queues: &[Queue], suspects: &Suspects, seen: &mut Suspects) {
    let on = bus.stream(stream).await;
    let mut floors = Vec::new();
    for Queue { consumer, filter } in queues {
        let Ok(info) = on.consumer_info(consumer).await else { continue };
        floors.push((filter.as_str(), info.ack_floor.stream_sequence));
    }
    let highest = floors.iter().map(|(_, floor)| *floor).max().unwrap_or(0);
    let mut from = 1;
    while from <= highest
        && let Some(message) = bus.first_from(stream, ANY, from).await
        && message.sequence <= highest
    {
        from = message.sequence + 1;
        let subject = message.subject.as_str();
        if !floors.iter().any(|(filter, floor)| message.sequence <= *floor && takes(filter, subject)) {
            continue;
        }
        let key = (stream, message.sequence);
        let looks = suspects.get(&key).copied().unwrap_or(0) + 1;
        if looks < LOOKS {
            seen.insert(key, looks);
        } else {
            send_again(bus, stream, &on, message).await;
        }
    }
}

/// Sends a forgotten message again, and removes the one that was forgotten.
async fn send_again(bus: &Bus, stream: StreamName, on: &Stream<()>, message: StreamMessage) {
    let sequence = message.sequence;
    tracing::warn!(subject = message.subject.as_str(), sequence, "message forgotten by its queue, publishing again");
    let mut headers = message.headers;
    headers.insert("Nats-Msg-Id", format!("rescued/{}/{sequence}", stream.on(bus.subjects())).as_str());
    let sent = match bus.jetstream().publish_with_headers(message.subject, headers, message.payload).await {
        Ok(ack) => ack.await.is_ok_and(|ack| !ack.duplicate),
        Err(_) => false,
    };
    // Another worker that sent it removes it: nothing is to be removed twice, see `Bus::work_queue`.
    if sent && let Err(error) = on.delete_message(sequence).await {
        tracing::debug!(%error, "removal failed of a message that was published again");
    }
}

/// Whether a queue's filter, a subject or one that ends in `.*`, takes a subject.
fn takes(filter: &str, subject: &str) -> bool {
    match filter.strip_suffix(".*") {
        Some(all_of) => subject.rsplit_once('.').is_some_and(|(parent, _)| parent == all_of),
        None => filter == subject,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_takes_its_own_subjects_only() {
        for (filter, taken, not) in [
            ("v.jobs", "v.jobs", "v.jobs.5.j"),
            ("v.jobs.5.*", "v.jobs.5.j", "v.jobs.6.j"),
            ("v.frames.*", "v.frames.j", "v.audio.j"),
        ] {
            assert!(takes(filter, taken) && !takes(filter, not), "{filter}");
        }
    }
}
