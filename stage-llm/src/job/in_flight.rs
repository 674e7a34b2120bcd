//! Job in flight: its request, its port, and its clock.

use protocol::error::{JobError, StageName};
use protocol::message::JobRequest;
use protocol::plan::{FrameGrid, MediaPlan};
use protocol::stage::{JobPort, Stop};

use crate::job::clock::{Clock, Progress};
use crate::language::observe::Observe;

/// Job in flight.
pub struct Job<'a> {
    /// Request of the client.
    pub request: &'a JobRequest,
    /// Port to the stages that prepare the job's tokens, and to its client.
    pub port: &'a mut dyn JobPort,
    /// Observer of the model.
    pub observe: &'a mut dyn Observe,
    /// Clock of the job.
    pub clock: Clock,
    /// Progress that the client has heard of.
    pub progress: Progress,
    has_gpu: bool,
}

impl<'a> Job<'a> {
    /// Job whose clock starts now.
    pub fn new(request: &'a JobRequest, port: &'a mut dyn JobPort, observe: &'a mut dyn Observe) -> Self {
        Job { request, port, observe, clock: Clock::start(), progress: Progress::default(), has_gpu: false }
    }

    /// Plan of the job's video, as the file is at this moment, its frames on the `grid` of the checkpoint.
    ///
    /// # Errors
    /// Refusals of the prober; a span or a rate that selects nothing.
    pub fn media_plan(&mut self, grid: FrameGrid) -> Result<MediaPlan, Stop> {
        let info = self.clock.waiting(|| self.port.probe(&self.request.video))?;
        MediaPlan::new(&info, self.request.span, self.request.fps, grid).map_err(here)
    }

    /// Makes the encoders leave the GPU.
    ///
    /// # Errors
    /// Errors of the port.
    pub fn take_gpu(&mut self) -> Result<(), Stop> {
        // Some may have left before one refuses: they come back all the same.
        self.has_gpu = true;
        self.port.take_gpu()
    }

    /// Lets the encoders come back, if they were told to leave. By now the job holds no memory; the pool returns it, so
    /// that the encoders can have it.
    pub fn return_gpu(&mut self) {
        if std::mem::take(&mut self.has_gpu) {
            compute::trim();
            self.port.return_gpu();
        }
    }
}

/// Stop with an error of this stage.
pub fn here(error: JobError) -> Stop {
    Stop::Failed(error.at(StageName::Llm))
}
