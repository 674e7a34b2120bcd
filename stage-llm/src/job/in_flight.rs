//! Job in flight: its request, its port, and its clock.

use protocol::error::{JobError, StageName};
use protocol::message::JobRequest;
use protocol::plan::{FrameGrid, MediaPlan};
use protocol::stage::{JobPort, Stop};

use crate::job::clock::{Clock, Progress};

/// Job in flight.
pub struct Job<'a> {
    /// Request of the client.
    pub request: &'a JobRequest,
    /// Port to the stages that prepare the job's tokens, and to its client.
    pub port: &'a mut dyn JobPort,
    /// Clock of the job.
    pub clock: &'a mut Clock,
    /// Progress that the client has heard of.
    pub progress: &'a mut Progress,
    /// Whether the encoders were told to leave the GPU.
    pub has_gpu: &'a mut bool,
}

impl Job<'_> {
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
        *self.has_gpu = true;
        self.port.take_gpu()
    }
}

/// Stop with an error of this stage.
pub fn here(error: JobError) -> Stop {
    Stop::Failed(error.at(StageName::Llm))
}
