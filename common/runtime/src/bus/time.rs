//! The broker's time: the one that all processes of a pipeline share.
//!
//! A time that has passed between processes, as since a job's submission, has both ends on this clock; a process's own may
//! be minutes off. The broker tells its time with every consumer that it makes.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, pull};

use super::clock::{Told, now_ms};
use super::error::{BusError, BusErrorKind};
use super::handle::Bus;
use crate::subject::StreamName;
use protocol::message::JobId;

/// Pause before a broker that did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// Time within which a broker that is there tells its time.
const ANSWERS: Duration = Duration::from_secs(1);
/// Time after which the broker forgets the consumer that it was asked its time by.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// Error of a broker that takes longer.
fn late() -> BusError {
    BusError::new(BusErrorKind::JetStream, format!("no answer within {ANSWERS:?}"))
}

impl Bus {
    /// Time of the broker, Unix milliseconds. Asks it unless it has told lately; where it is away, what it told last goes on,
    /// and without that it is waited for.
    pub async fn broker_ms(&self) -> u64 {
        loop {
            let told = self.clock.told();
            if let Some(told) = told.filter(|told| told.is_fresh()) {
                return told.now_ms();
            }
            // Whoever knows it waits no longer than it takes: the server that holds the tokens may be away for minutes.
            let patience = if told.is_some() { ANSWERS } else { Duration::MAX };
            match tokio::time::timeout(patience, self.ask_for_the_time()).await.unwrap_or_else(|_| Err(late())) {
                Ok(told) => self.clock.set(told),
                Err(error) => {
                    if let Some(told) = told {
                        let now = Told { at: Instant::now(), broker_ms: told.now_ms() };
                        self.clock.set(now);
                        return now.broker_ms;
                    }
                    tracing::warn!(%error, "the broker does not tell its time, retrying");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Time of the broker, Unix milliseconds, as far as it was [asked for](Self::broker_ms) in this process; else ours.
    pub fn known_ms(&self) -> u64 {
        self.clock.told().map_or_else(now_ms, Told::now_ms)
    }

    /// Time on the broker's clock of what happened at a time on ours, both Unix milliseconds.
    pub fn broker_ms_of(&self, own_ms: u64) -> u64 {
        self.known_ms().saturating_sub(now_ms().saturating_sub(own_ms))
    }

    async fn ask_for_the_time(&self) -> Result<Told, BusError> {
        let nobody = JobId::new("clock").expect("a constant. This is a bug.");
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            filter_subject: self.subjects().tokens(&nobody),
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            ..Default::default()
        };
        let asked = Instant::now();
        let consumer = self.consumer(StreamName::Tokens, config).await?;
        let made = consumer.cached_info().created;
        // It was made between the question and the answer.
        let at = asked + asked.elapsed() / 2;
        Ok(Told { at, broker_ms: (made.unix_timestamp_nanos() / 1_000_000) as u64 })
    }
}
