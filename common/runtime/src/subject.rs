//! Names on the bus: subjects, streams and consumers (PROTOCOL.md, "Subjects" and "Streams").

use protocol::error::StageName;
use protocol::message::{JobId, Output};

/// Priorities of PROTOCOL.md, the first one first.
pub const PRIORITIES: [u8; 10] = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0];

/// Builds subjects under one prefix, `vidi.v1` unless configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    /// Subjects under `prefix`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Subjects { prefix: prefix.into() }
    }

    /// The prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where clients publish a `JobRequest`.
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// Where an admitted job waits for a worker.
    pub fn waiting(&self, priority: u8, job: &JobId) -> String {
        format!("{}.jobs.{priority}.{job}", self.prefix)
    }

    /// Where all jobs of a priority wait.
    pub fn all_waiting(&self, priority: u8) -> String {
        format!("{}.jobs.{priority}.*", self.prefix)
    }

    /// Where a job waits, whatever its priority.
    pub fn waiting_anywhere(&self, job: &JobId) -> String {
        format!("{}.jobs.*.{job}", self.prefix)
    }

    /// Answered by the worker that has a job in hand; without one, the broker says that nobody answers.
    pub fn owner(&self, job: &JobId) -> String {
        format!("{}.owner.{job}", self.prefix)
    }

    /// Who holds how much of the token stream.
    pub fn room(&self) -> String {
        format!("{}.room", self.prefix)
    }

    /// The probe service.
    pub fn probe(&self) -> String {
        format!("{}.probe", self.prefix)
    }

    /// A job's events.
    pub fn events(&self, job: &JobId) -> String {
        format!("{}.events.{job}", self.prefix)
    }

    /// A job's tokens, on their way to its owner.
    pub fn tokens(&self, job: &JobId) -> String {
        format!("{}.tokens.{job}", self.prefix)
    }

    /// What stages did for a job, told to its owner; core NATS, may be lost.
    pub fn reports(&self, job: &JobId) -> String {
        format!("{}.report.{job}", self.prefix)
    }

    /// What stages did for any job.
    pub fn all_reports(&self) -> String {
        format!("{}.report.*", self.prefix)
    }

    /// A control verb.
    pub fn control(&self, verb: &str) -> String {
        format!("{}.control.{verb}", self.prefix)
    }

    /// Messages that no stage could use, kept for an operator.
    pub fn dead(&self, stage: StageName, job: &str) -> String {
        format!("{}.dead.{stage}.{job}", self.prefix)
    }

    /// What a stage takes from its work queue, for one job.
    pub fn input(&self, stage: StageName, job: &JobId) -> String {
        format!("{}.{}.{job}", self.prefix, queue(stage))
    }

    /// What a stage takes from its work queue, for every job.
    pub fn all_input(&self, stage: StageName) -> String {
        format!("{}.{}.*", self.prefix, queue(stage))
    }

    /// Where an output goes.
    pub fn output(&self, output: &Output<'_>) -> String {
        let stage = match output {
            Output::Frames(_) => StageName::Vision,
            Output::Pcm(_) => StageName::Audio,
            Output::Features(_) => StageName::Fuse,
            Output::Tokens(_) => StageName::Llm,
        };
        self.input(stage, output.job())
    }

    /// The job that a subject under this prefix belongs to: its last part.
    pub fn job_of(&self, subject: &str) -> Option<JobId> {
        let rest = subject.strip_prefix(self.prefix.as_str())?;
        JobId::new(rest.rsplit_once('.')?.1).ok()
    }
}

/// What a stage's input is called.
fn queue(stage: StageName) -> &'static str {
    match stage {
        StageName::Decode => "decode",
        StageName::Vision => "frames",
        StageName::Audio => "audio",
        StageName::Fuse => "features",
        StageName::Llm => "tokens",
    }
}

/// The streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamName {
    /// Jobs that wait.
    Jobs,
    /// Decode requests.
    Decode,
    /// Frames.
    Frames,
    /// PCM windows.
    Audio,
    /// Encoder outputs.
    Features,
    /// Tokens, kept until their job ends.
    Tokens,
    /// What clients hear.
    Events,
    /// Messages that no stage could use.
    Dead,
    /// Who holds how much of the token stream.
    Room,
}

impl StreamName {
    /// All of them.
    pub const ALL: [StreamName; 9] = [
        StreamName::Jobs,
        StreamName::Decode,
        StreamName::Frames,
        StreamName::Audio,
        StreamName::Features,
        StreamName::Tokens,
        StreamName::Events,
        StreamName::Dead,
        StreamName::Room,
    ];

    /// The name on the server. A prefix other than the default has streams of its own.
    pub fn on(self, subjects: &Subjects) -> String {
        let name = match self {
            StreamName::Jobs => "JOBS",
            StreamName::Decode => "DECODE",
            StreamName::Frames => "FRAMES",
            StreamName::Audio => "AUDIO",
            StreamName::Features => "FEATURES",
            StreamName::Tokens => "TOKENS",
            StreamName::Events => "EVENTS",
            StreamName::Dead => "DEAD",
            StreamName::Room => "ROOM",
        };
        match subjects.prefix() {
            "vidi.v1" => format!("VIDI_{name}"),
            other => format!("VIDI_{name}_{}", other.replace('.', "_")),
        }
    }

    /// Subjects that it stores.
    pub fn subjects(self, s: &Subjects) -> Vec<String> {
        let p = s.prefix();
        match self {
            StreamName::Jobs => std::iter::once(s.jobs()).chain(PRIORITIES.map(|p| s.all_waiting(p))).collect(),
            StreamName::Decode => vec![s.all_input(StageName::Decode)],
            StreamName::Frames => vec![s.all_input(StageName::Vision)],
            StreamName::Audio => vec![s.all_input(StageName::Audio)],
            StreamName::Features => vec![s.all_input(StageName::Fuse)],
            StreamName::Tokens => vec![s.all_input(StageName::Llm)],
            StreamName::Events => vec![format!("{p}.events.*")],
            StreamName::Dead => vec![format!("{p}.dead.>")],
            StreamName::Room => vec![s.room()],
        }
    }

    /// The stream that a stage works off; stage-llm works off the jobs.
    pub fn input_of(stage: StageName) -> StreamName {
        match stage {
            StageName::Decode => StreamName::Decode,
            StageName::Vision => StreamName::Frames,
            StageName::Audio => StreamName::Audio,
            StageName::Fuse => StreamName::Features,
            StageName::Llm => StreamName::Jobs,
        }
    }
}
