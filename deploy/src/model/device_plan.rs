//! Memory of the stages on one device: what each holds, what is left for keys and values, and whether a video fits there.

use std::fmt;

use config::Device;
use model::budget::Footprint;
use protocol::bytes::Bytes;
use protocol::error::StageName;
use protocol::event::Mode;
use serde::Serialize;
use stage_llm::language::cache::CacheSize;
use stage_llm::language::footprint::LlmFootprint;

/// Text tokens of a usual question: 64 of the prompt, 1,024 of the answer.
const TEXT_TOKENS: u64 = 64 + 1024;

/// Memory that the processes on one device hold, whatever the job.
#[derive(Clone, Debug)]
pub struct DevicePlan {
    /// The device.
    pub device: Device,
    /// Bytes that all processes there may take together, and the key that says so; none without a cap.
    pub cap: Option<(u64, String)>,
    /// Stage, footprint of one process and number of processes of those of vision, audio and fuse that are there.
    pub encoders: Vec<(StageName, Footprint, u64)>,
    /// Footprint of one process of the language model, where it is there, and number of processes.
    pub llm: Option<(LlmFootprint, u64)>,
}

/// Memory that a video needs beside the stages, and how it fits: on the device of the language model, and where that has several
/// on the one with the least room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VideoFit {
    /// Device that it is about.
    pub device: Device,
    /// Image tokens.
    pub image_tokens: u64,
    /// Audio tokens.
    pub audio_tokens: u64,
    /// Bytes of the keys and values of these tokens and of a usual question.
    pub cache_bytes: u64,
    /// Bytes with all stages there working at once, and such a video in each process of the language model there.
    pub streaming_bytes: u64,
    /// Bytes of the larger of two phases: the encoders leave before the keys and values come. None where several processes of
    /// the language model would take it from each other, and where no encoder is beside it.
    pub phases_bytes: Option<u64>,
    /// Mode in which it fits; none if it does not.
    pub mode: Option<Mode>,
    /// Image and audio tokens that pass the layers together at most, in what is left then.
    pub pass_rows: u64,
}

impl DevicePlan {
    /// Stage, footprint of one process and number of processes of every stage that is there.
    pub fn stages(&self) -> impl Iterator<Item = (StageName, Footprint, u64)> {
        let llm = self.llm.map(|(llm, processes)| (StageName::Llm, llm.fixed, processes));
        self.encoders.iter().copied().chain(llm)
    }

    /// Bytes of all processes of vision, audio and fuse that are there.
    pub fn encoder_bytes(&self) -> u64 {
        self.encoders.iter().map(|(_, f, n)| n * f.bytes()).sum()
    }

    /// Bytes of all processes there, without keys and values.
    pub fn bytes(&self) -> u64 {
        self.stages().map(|(_, f, n)| n * f.bytes()).sum()
    }

    /// Bytes that are left for keys and values, or for others; none without a cap, 0 where the stages exceed it.
    pub fn left_bytes(&self) -> Option<u64> {
        self.cap.as_ref().map(|(bytes, _)| bytes.saturating_sub(self.bytes()))
    }

    /// Whether so many bytes fit the cap.
    pub fn holds(&self, bytes: u64) -> bool {
        self.cap.as_ref().is_none_or(|(cap, _)| bytes <= *cap)
    }

    /// Number of processes of the language model there.
    pub fn llm_processes(&self) -> u64 {
        self.llm.map_or(0, |(_, processes)| processes)
    }

    /// Budgets of one process of each stage there that add up to the cap: the encoders what they take, the language models the
    /// rest in equal parts. None without a cap, or where the stages alone exceed it.
    pub fn budgets(&self) -> Option<Vec<(StageName, u64)>> {
        let (cap, _) = self.cap.as_ref()?;
        let rest = cap.checked_sub(self.encoder_bytes())?;
        let mut budgets: Vec<(StageName, u64)> =
            self.encoders.iter().map(|(stage, f, _)| (*stage, f.bytes())).collect();
        if let Some((llm, processes)) = self.llm {
            let share = rest / processes.max(1);
            if share < llm.fixed.bytes() {
                return None;
            }
            budgets.push((StageName::Llm, share));
        }
        Some(budgets)
    }

    /// How a video of so many tokens fits here; none where the language model is elsewhere. `alone` says whether there is one
    /// process of the language model in all.
    pub fn video(&self, image_tokens: u64, audio_tokens: u64, alone: bool) -> Option<VideoFit> {
        let (llm, processes) = self.llm?;
        let caches = CacheSize {
            text_token_bytes: llm.text_token_bytes,
            media_token_bytes: llm.media_token_bytes,
            text_tokens: TEXT_TOKENS,
            image_tokens,
            audio_tokens,
            chunk_bytes: llm.chunk_bytes,
        };
        let cache_bytes = caches.bytes();
        let streaming_bytes = self.bytes() + processes * cache_bytes;
        let has_encoders = self.encoders.iter().any(|(_, _, n)| *n > 0);
        let phases_bytes = (alone && has_encoders).then(|| self.bytes().max(llm.fixed.bytes() + cache_bytes));
        let in_phases = || phases_bytes.filter(|&bytes| self.holds(bytes)).map(|_| Mode::Phases);
        let mode = if self.holds(streaming_bytes) { Some(Mode::Streaming) } else { in_phases() };
        let device = self.device;
        let taken = match mode {
            Some(Mode::Phases) => llm.fixed.bytes() + cache_bytes,
            _ => streaming_bytes,
        };
        let spare = self.cap.as_ref().map_or(u64::MAX, |(cap, _)| cap.saturating_sub(taken) / processes.max(1));
        let pass_rows = llm.passes.within(spare);
        Some(VideoFit {
            device,
            image_tokens,
            audio_tokens,
            cache_bytes,
            streaming_bytes,
            phases_bytes,
            mode,
            pass_rows,
        })
    }
}

impl fmt::Display for DevicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["processes", "weights", "activations", "context", "together"];
        writeln!(
            f,
            "{:<8} {:>9} {:>11} {:>11} {:>11} {:>11}",
            "stage", heads[0], heads[1], heads[2], heads[3], heads[4]
        )?;
        for (stage, p, n) in self.stages() {
            let [weights, activations, context, all] =
                [p.weights_bytes, p.activation_bytes, p.context_bytes, n * p.bytes()].map(|b| Bytes(b).to_string());
            let stage = stage.as_str();
            writeln!(f, "{stage:<8} {n:>9} {weights:>11} {activations:>11} {context:>11} {all:>11}")?;
        }
        let total = Bytes(self.bytes()).to_string();
        write!(f, "{:<8} {:>9} {:>11} {:>11} {:>11} {total:>11}", "all", "", "", "", "")
    }
}

impl fmt::Display for VideoFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |mode| format!("{}, passes of {} rows", name_of(mode), self.pass_rows);
        let verdict = self.mode.map_or_else(|| "DOES NOT FIT".to_owned(), fits);
        let phases = self.phases_bytes.map_or(String::new(), |b| format!(", {} in phases", Bytes(b)));
        write!(
            f,
            "{} image and {} audio tokens: {} of keys and values; {} streaming{phases}: {verdict}",
            self.image_tokens,
            self.audio_tokens,
            Bytes(self.cache_bytes),
            Bytes(self.streaming_bytes),
        )
    }
}

/// A mode in words.
pub fn name_of(mode: Mode) -> &'static str {
    match mode {
        Mode::Streaming => "streaming",
        Mode::Phases => "in phases",
    }
}
