//! One job while it is answered: what was asked, and where its world is.

use protocol::error::{JobError, StageName};
use protocol::message::JobRequest;
use protocol::plan::MediaPlan;
use protocol::stage::{JobPort, Stop};

use crate::clock::{Clock, Progress};
use crate::observe::Observe;

/// A job in hand.
pub struct Job<'a> {
    /// What was asked.
    pub request: &'a JobRequest,
    /// The stages that prepare its tokens, and its client.
    pub port: &'a mut dyn JobPort,
    /// Who watches the model.
    pub observe: &'a mut dyn Observe,
    /// What it takes.
    pub clock: Clock,
    /// What its client has heard of that.
    pub progress: Progress,
    has_card: bool,
}

impl<'a> Job<'a> {
    /// Starts the clock.
    pub fn new(request: &'a JobRequest, port: &'a mut dyn JobPort, observe: &'a mut dyn Observe) -> Self {
        Job { request, port, observe, clock: Clock::start(), progress: Progress::default(), has_card: false }
    }

    /// What its video comes to, as the file is at this moment.
    ///
    /// # Errors
    /// The prober's refusal; a span or rate that picks nothing.
    pub fn plan(&mut self) -> Result<MediaPlan, Stop> {
        let info = self.clock.waiting(|| self.port.probe(&self.request.video))?;
        MediaPlan::new(&info, self.request.span, self.request.fps).map_err(here)
    }

    /// Makes the encoders leave the card.
    ///
    /// # Errors
    /// The port's.
    pub fn take_card(&mut self) -> Result<(), Stop> {
        // Some may have left before one refuses: they are to come back all the same.
        self.has_card = true;
        self.port.take_gpu()
    }

    /// Lets the encoders come back, if they were told to leave. By now the job holds no memory; they can only have what the
    /// pool gives back.
    pub fn return_card(&mut self) {
        if std::mem::take(&mut self.has_card) {
            compute::trim();
            self.port.return_gpu();
        }
    }
}

/// An error of this stage's own.
pub fn here(error: JobError) -> Stop {
    Stop::Failed(error.at(StageName::Llm))
}
