//! How long a job took, for who watches the pipeline.

use crate::bus::Bus;
use crate::metrics::counts;
use crate::run::admission;
use crate::run::inbox::Delivery;
use crate::run::service::Counters;
use protocol::event::Event;

/// Times of a job that this worker owns, Unix milliseconds of the broker.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    submitted_ms: u64,
    taken_ms: u64,
}

impl Course {
    /// Begins with a job that is taken now.
    pub fn begin(bus: &Bus, delivery: &Delivery) -> Self {
        let submitted_ms = admission::submitted_ms(delivery.message.headers.as_ref()).unwrap_or(delivery.stored_ms);
        Course { submitted_ms, taken_ms: bus.known_ms() }
    }

    /// Measures a job that this worker has ended; one that it gave back or left is measured where it ends.
    pub fn end(self, bus: &Bus, end: Option<&Event>, counters: &Counters) {
        let Some(end) = end else { return };
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1000.0;
        let now_ms = bus.known_ms();
        counts::job_phase("waiting", seconds(self.submitted_ms, self.taken_ms));
        counts::job_phase("total", seconds(self.submitted_ms, now_ms));
        match end {
            Event::Result(result) => {
                counts::answered(result);
                counts::job_phase("generation", seconds(self.taken_ms, now_ms) - result.timings.first_token_s);
            }
            Event::Failed { error } => counters.note_error(error),
            _ => {}
        }
    }
}
