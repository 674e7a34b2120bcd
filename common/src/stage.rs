//! What a stage is: a plain struct, one message in, any number of messages out, no bus in sight.

use serde::Deserialize;

use crate::error::{JobError, StageName};
use crate::message::Output;
use crate::wire::Message;

/// Why a stage stopped working on a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// The job cannot succeed, however often this is tried.
    Failed(JobError),
    /// The job was cancelled; nobody waits for the rest.
    Cancelled,
    /// Something outside is away (the bus, a worker); the message is delivered again later.
    Unavailable(String),
}

impl<E: Into<JobError>> From<E> for Stop {
    fn from(e: E) -> Self {
        Stop::Failed(e.into())
    }
}

/// Where a stage's outputs go while it works on one message.
pub trait Port {
    /// Hands on one output; waits while whoever takes it is behind.
    ///
    /// # Errors
    /// [`Stop::Cancelled`] and [`Stop::Unavailable`]: return them at once.
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop>;

    /// True once nobody waits for this job any more. Long work between two outputs asks now and then.
    fn cancelled(&self) -> bool;
}

/// One stage: a library that knows no bus. Outputs are a function of the input alone, so a message may be
/// processed twice, anywhere, with the same result.
pub trait Stage {
    /// Its name in subjects, configuration and events.
    const NAME: StageName;
    /// What it takes.
    type Input<'a>: Message + Deserialize<'a>;

    /// Turns one message into outputs.
    ///
    /// # Errors
    /// See [`Stop`].
    fn process(&mut self, input: Self::Input<'_>, port: &mut dyn Port) -> Result<(), Stop>;
}
