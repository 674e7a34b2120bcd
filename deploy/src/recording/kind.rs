//! Kinds of messages by their subject, and which of them a stage takes and publishes.

use protocol::error::StageName;
use protocol::message::{JobId, Modality};
use runtime::subject::Subjects;
use serde::{Deserialize, Serialize};

/// Kind of a message, as its subject says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Requests, as clients publish them.
    Jobs,
    /// Requests that were admitted and wait for a worker.
    Waiting,
    /// Requests to stage-decode.
    Decode,
    /// Frames.
    Frames,
    /// PCM windows.
    Audio,
    /// Encoder outputs.
    Features,
    /// Tokens.
    Tokens,
    /// Events of jobs.
    Events,
    /// Reports of stages to the owners of jobs; core NATS.
    Report,
    /// Cancel, drain; core NATS.
    Control,
    /// Requests for what a file is; core NATS, and the replies go to inboxes, which no recording sees.
    Probe,
    /// Messages that no stage could use.
    Dead,
}

/// Rows of a job that travel in several messages: the kind of these messages, and the modality.
pub type Part = (Kind, Modality);

impl Kind {
    /// Kinds that can be played: those that streams store for stages and clients.
    pub const PLAYABLE: [Kind; 7] =
        [Kind::Jobs, Kind::Decode, Kind::Frames, Kind::Audio, Kind::Features, Kind::Tokens, Kind::Events];

    /// The kind of a subject without its prefix; none for an unknown subject.
    pub fn of(subject: &str) -> Option<Kind> {
        let (first, more) = subject.split_once('.').map_or((subject, false), |(first, _)| (first, true));
        Some(match first {
            "jobs" if more => Kind::Waiting,
            "jobs" => Kind::Jobs,
            "decode" => Kind::Decode,
            "frames" => Kind::Frames,
            "audio" => Kind::Audio,
            "features" => Kind::Features,
            "tokens" => Kind::Tokens,
            "events" => Kind::Events,
            "report" => Kind::Report,
            "control" => Kind::Control,
            "probe" => Kind::Probe,
            "dead" => Kind::Dead,
            _ => return None,
        })
    }

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Jobs => "jobs",
            Kind::Waiting => "waiting",
            Kind::Decode => "decode",
            Kind::Frames => "frames",
            Kind::Audio => "audio",
            Kind::Features => "features",
            Kind::Tokens => "tokens",
            Kind::Events => "events",
            Kind::Report => "report",
            Kind::Control => "control",
            Kind::Probe => "probe",
            Kind::Dead => "dead",
        }
    }

    /// Stage that takes it off the bus; none if no stage does.
    pub fn taken_by(self) -> Option<StageName> {
        match self {
            Kind::Decode => Some(StageName::Decode),
            Kind::Frames => Some(StageName::Vision),
            Kind::Audio => Some(StageName::Audio),
            Kind::Features => Some(StageName::Fuse),
            Kind::Jobs | Kind::Tokens => Some(StageName::Llm),
            _ => None,
        }
    }

    /// Subject that it is published on for `job`; none for what cannot be played.
    pub fn subject(self, subjects: &Subjects, job: &JobId) -> Option<String> {
        match self {
            Kind::Jobs => Some(subjects.jobs()),
            Kind::Events => Some(subjects.events(job)),
            kind => Some(subjects.input(kind.taken_by()?, job)),
        }
    }

    /// Outputs of the stage that takes it; for a request, of all stages.
    pub fn outputs(self) -> &'static [Part] {
        use Modality::{Audio, Image};
        match self {
            Kind::Decode => &[(Kind::Frames, Image), (Kind::Audio, Audio)],
            Kind::Frames => &[(Kind::Features, Image)],
            Kind::Audio => &[(Kind::Features, Audio)],
            Kind::Features => &[(Kind::Tokens, Image), (Kind::Tokens, Audio)],
            Kind::Jobs => &[
                (Kind::Frames, Image),
                (Kind::Audio, Audio),
                (Kind::Features, Image),
                (Kind::Features, Audio),
                (Kind::Tokens, Image),
                (Kind::Tokens, Audio),
            ],
            _ => &[],
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
