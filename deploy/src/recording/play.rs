//! `vidi replay`: publishes recorded messages, as stages and clients publish theirs.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::Duration;

use protocol::message::JobId;
use protocol::stage::Stop;
use runtime::bus::{Bus, headers};
use runtime::run::shutdown::{Shutdown, begun};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::kind::Kind;
use super::publication::{Publication, publications};
use super::reader::Reader;

/// Messages in flight to the broker at a time, as many as a stage has.
const IN_FLIGHT: usize = 4;

/// Speed of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Speed {
    /// With the recorded pauses.
    Real,
    /// As fast as the broker takes it.
    Max,
}

/// Selection of the messages to play.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Kinds of messages.
    pub only: Vec<Kind>,
    /// This job of the recording; all if none.
    pub pick: Option<JobId>,
    /// Id to play it under; its own if none.
    pub rename: Option<JobId>,
    /// Speed.
    pub speed: Speed,
}

/// Messages that were played.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// Messages and bytes of bodies, per kind.
    pub kinds: BTreeMap<Kind, (u64, u64)>,
    /// Messages that could not be sent, and why.
    pub refused: Vec<String>,
    /// Stopped before the end.
    pub stopped: bool,
}

/// Publishes a recording's messages. A stream that is full is waited for, as stages wait for it.
pub async fn play<R: BufRead>(bus: &Bus, reader: &mut Reader<R>, what: &Selection, shutdown: &Shutdown) -> Played {
    let mut played = Played::default();
    let mut sending: JoinSet<Result<(), Stop>> = JoinSet::new();
    let mut clock = None;
    while let Some(record) = tokio::task::block_in_place(|| reader.next()) {
        let Some(kind) = record.kind().filter(|k| what.only.contains(k)) else { continue };
        if what.pick.is_some() && record.job() != what.pick {
            continue;
        }
        let out = match publications(&record, bus.subjects(), what.rename.as_ref(), bus.max_body()) {
            Ok(out) => out,
            Err(error) => {
                played.refused.push(format!("{}: {error}", record.subject));
                continue;
            }
        };
        // The clock starts with the first message that is played.
        let (start, first_us) = *clock.get_or_insert((Instant::now(), record.at_us));
        if what.speed == Speed::Real {
            wait_until(start + Duration::from_micros(record.at_us - first_us), shutdown).await;
        }
        let count = played.kinds.entry(kind).or_default();
        *count = (count.0 + 1, count.1 + record.body.len() as u64);
        // Rows may come in any order; requests and events may not.
        let at_a_time = if kind.outputs().is_empty() && kind != Kind::Tokens { 1 } else { IN_FLIGHT };
        for publication in out {
            settle(&mut sending, at_a_time - 1, &mut played).await;
            if *shutdown.borrow() {
                break;
            }
            sending.spawn(store(bus.clone(), publication, shutdown.clone()));
        }
        if *shutdown.borrow() {
            played.stopped = true;
            break;
        }
    }
    settle(&mut sending, 0, &mut played).await;
    played
}

async fn wait_until(due: Instant, shutdown: &Shutdown) {
    let mut shutdown = shutdown.clone();
    tokio::select! {
        () = tokio::time::sleep_until(due) => {}
        _ = shutdown.wait_for(|&s| s) => {}
    }
}

/// Waits until at most `left` messages are in flight.
async fn settle(sending: &mut JoinSet<Result<(), Stop>>, left: usize, played: &mut Played) {
    while sending.len() > left {
        match sending.join_next().await {
            Some(Ok(Ok(()))) | None => {}
            Some(Ok(Err(Stop::Cancelled))) => played.stopped = true,
            Some(Ok(Err(stop))) => played.refused.push(format!("{stop:?}")),
            Some(Err(error)) => played.refused.push(error.to_string()),
        }
    }
}

async fn store(bus: Bus, p: Publication, mut shutdown: Shutdown) -> Result<(), Stop> {
    bus.store(p.subject, &p.message_id, &headers(&p.job), p.body, begun(&mut shutdown)).await.map(drop)
}
