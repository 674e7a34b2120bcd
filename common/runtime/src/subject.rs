//! Names on the bus: subjects, streams and consumers (PROTOCOL.md, "Subjects" and "Streams").

use protocol::control::Verb;
use protocol::error::StageName;
use protocol::message::{JobId, Output};

/// Priorities of jobs (PROTOCOL.md), the most urgent first.
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

    /// Prefix of all subjects.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Subject that clients publish a `JobRequest` on.
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// Subject on which an admitted job waits for a worker.
    pub fn waiting(&self, priority: u8, job: &JobId) -> String {
        format!("{}.jobs.{priority}.{job}", self.prefix)
    }

    /// Subjects on which all jobs of a priority wait.
    pub fn all_waiting(&self, priority: u8) -> String {
        format!("{}.jobs.{priority}.*", self.prefix)
    }

    /// Subjects on which a job waits, whatever its priority.
    pub fn waiting_anywhere(&self, job: &JobId) -> String {
        format!("{}.jobs.*.{job}", self.prefix)
    }

    /// Subject that the worker that owns a job answers on; without one, the broker says that nobody answers.
    pub fn owner(&self, job: &JobId) -> String {
        format!("{}.owner.{job}", self.prefix)
    }

    /// Subject on which workers of stage-llm tell each other how they are; core NATS, may be lost.
    pub fn workers(&self) -> String {
        format!("{}.workers", self.prefix)
    }

    /// Subject on which a worker of stage-llm is offered jobs; core NATS.
    pub fn offers(&self, instance: &str) -> String {
        format!("{}.offer.{instance}", self.prefix)
    }

    /// Subject of the ledger of who holds how much of the token stream.
    pub fn capacity(&self) -> String {
        format!("{}.room", self.prefix)
    }

    /// Subject of the probe service.
    pub fn probe(&self) -> String {
        format!("{}.probe", self.prefix)
    }

    /// Subject of the probe service of one instance of stage-decode.
    pub fn probe_of(&self, instance: &str) -> String {
        format!("{}.probe.{instance}", self.prefix)
    }

    /// Subject on which every stage-decode is asked who has a file; core NATS.
    pub fn whereabouts(&self) -> String {
        format!("{}.where", self.prefix)
    }

    /// Subject on which an instance of stage-decode is offered work that another one has no file for; core NATS.
    pub fn hand(&self, instance: &str) -> String {
        format!("{}.hand.{instance}", self.prefix)
    }

    /// Subject of a job's events.
    pub fn events(&self, job: &JobId) -> String {
        format!("{}.events.{job}", self.prefix)
    }

    /// Subject of a job's tokens, on their way to its owner.
    pub fn tokens(&self, job: &JobId) -> String {
        format!("{}.tokens.{job}", self.prefix)
    }

    /// Subject of stages' reports on a job to its owner; core NATS, may be lost.
    pub fn reports(&self, job: &JobId) -> String {
        format!("{}.report.{job}", self.prefix)
    }

    /// Subjects of stages' reports on any job.
    pub fn all_reports(&self) -> String {
        format!("{}.report.*", self.prefix)
    }

    /// Subject of a control verb.
    pub fn control(&self, verb: Verb) -> String {
        format!("{}.control.{verb}", self.prefix)
    }

    /// Subjects of all control verbs, and of what is none.
    pub fn all_control(&self) -> String {
        format!("{}.control.*", self.prefix)
    }

    /// Subject of messages that no stage could use, kept for an operator.
    pub fn dead(&self, stage: StageName, job: &str) -> String {
        format!("{}.dead.{stage}.{job}", self.prefix)
    }

    /// Subject of a stage's input of one job.
    pub fn input(&self, stage: StageName, job: &JobId) -> String {
        format!("{}.{}.{job}", self.prefix, input_name(stage))
    }

    /// Subjects of a stage's input of every job.
    pub fn all_input(&self, stage: StageName) -> String {
        format!("{}.{}.*", self.prefix, input_name(stage))
    }

    /// Subject that an output goes to.
    pub fn output(&self, output: &Output<'_>) -> String {
        let stage = match output {
            Output::Frames(_) => StageName::Vision,
            Output::Pcm(_) => StageName::Audio,
            Output::Features(_) => StageName::Fuse,
            Output::Tokens(_) => StageName::Llm,
        };
        self.input(stage, output.job())
    }

    /// Stream that stores what is published on a subject; none for one that no stream stores.
    pub fn stream_of(&self, subject: &str) -> Option<StreamName> {
        let mut parts = subject.strip_prefix(self.prefix.as_str())?.strip_prefix('.')?.split('.');
        match (parts.next()?, parts.next().is_some()) {
            ("jobs", false) => Some(StreamName::Jobs),
            ("jobs", true) => Some(StreamName::Line),
            ("decode", _) => Some(StreamName::Decode),
            ("frames", _) => Some(StreamName::Frames),
            ("audio", _) => Some(StreamName::Audio),
            ("features", _) => Some(StreamName::Features),
            ("tokens", _) => Some(StreamName::Tokens),
            ("events", _) => Some(StreamName::Events),
            ("dead", _) => Some(StreamName::Dead),
            ("room", _) => Some(StreamName::Capacity),
            _ => None,
        }
    }

    /// Job that a subject under this prefix belongs to: its last part.
    pub fn job_of(&self, subject: &str) -> Option<JobId> {
        let rest = subject.strip_prefix(self.prefix.as_str())?;
        JobId::new(rest.rsplit_once('.')?.1).ok()
    }
}

/// Name of a stage's input.
fn input_name(stage: StageName) -> &'static str {
    match stage {
        StageName::Decode => "decode",
        StageName::Vision => "frames",
        StageName::Audio => "audio",
        StageName::Fuse => "features",
        StageName::Llm => "tokens",
    }
}

/// Stream of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamName {
    /// Requests that are not admitted yet.
    Jobs,
    /// Admitted jobs, in line for a worker. A stream of its own: whatever fills the one that clients write to, an admitted
    /// job has room.
    Line,
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
    /// Events, which clients hear.
    Events,
    /// Messages that no stage could use.
    Dead,
    /// Ledger of who holds how much of the token stream.
    Capacity,
}

impl StreamName {
    /// Every stream.
    pub const ALL: [StreamName; 10] = [
        StreamName::Jobs,
        StreamName::Line,
        StreamName::Decode,
        StreamName::Frames,
        StreamName::Audio,
        StreamName::Features,
        StreamName::Tokens,
        StreamName::Events,
        StreamName::Dead,
        StreamName::Capacity,
    ];

    /// Name on the server. A prefix other than the default has streams of its own.
    pub fn on(self, subjects: &Subjects) -> String {
        let name = match self {
            StreamName::Jobs => "JOBS",
            StreamName::Line => "LINE",
            StreamName::Decode => "DECODE",
            StreamName::Frames => "FRAMES",
            StreamName::Audio => "AUDIO",
            StreamName::Features => "FEATURES",
            StreamName::Tokens => "TOKENS",
            StreamName::Events => "EVENTS",
            StreamName::Dead => "DEAD",
            StreamName::Capacity => "ROOM",
        };
        match subjects.prefix() {
            "vidi.v1" => format!("VIDI_{name}"),
            other => format!("VIDI_{name}_{}", other.replace('.', "_")),
        }
    }

    /// Subjects that the stream stores.
    pub fn subjects(self, s: &Subjects) -> Vec<String> {
        let p = s.prefix();
        match self {
            StreamName::Jobs => vec![s.jobs()],
            StreamName::Line => PRIORITIES.map(|p| s.all_waiting(p)).to_vec(),
            StreamName::Decode => vec![s.all_input(StageName::Decode)],
            StreamName::Frames => vec![s.all_input(StageName::Vision)],
            StreamName::Audio => vec![s.all_input(StageName::Audio)],
            StreamName::Features => vec![s.all_input(StageName::Fuse)],
            StreamName::Tokens => vec![s.all_input(StageName::Llm)],
            StreamName::Events => vec![format!("{p}.events.*")],
            StreamName::Dead => vec![format!("{p}.dead.>")],
            StreamName::Capacity => vec![s.capacity()],
        }
    }

    /// Stream that a stage works off; stage-llm works off the line.
    pub fn input_of(stage: StageName) -> StreamName {
        match stage {
            StageName::Decode => StreamName::Decode,
            StageName::Vision => StreamName::Frames,
            StageName::Audio => StreamName::Audio,
            StageName::Fuse => StreamName::Features,
            StageName::Llm => StreamName::Line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_is_the_one_of_its_subjects_and_of_no_other() {
        let subjects = Subjects::new("a.b");
        for stream in StreamName::ALL {
            for subject in stream.subjects(&subjects) {
                assert_eq!(subjects.stream_of(&subject.replace(['*', '>'], "x")), Some(stream), "{subject}");
            }
        }
        for other in [
            "a.b.workers",
            "a.b.offer.llm-1",
            "a.b.probe",
            "a.b.probe.decode-1",
            "a.b.where",
            "a.b.hand.decode-1",
            "a.b.control.cancel",
            "a.b",
            "a.bjobs",
            "c.jobs",
        ] {
            assert_eq!(subjects.stream_of(other), None, "{other}");
        }
    }
}
