//! Reading of an answer: its text to time ranges and boxes.
//!
//! In reading order: this file (which parser, and what it gives), [`reference`](mod@reference) (the reference's own parser),
//! [`reference_7b`] (that of Vidi 7B's reference),
//! [`envelope`] (what of a text is the answer), [`time`] (one time), [`pairs`] (two that belong together), [`json`] (the
//! same in JSON), [`resolution`] (how exact times are), [`scale`] (times to seconds), [`shape`] (ranges sorted, clipped, joined and
//! padded), [`lenient`] (time ranges however they are written), [`boxes`] (boxes beside times).

pub mod boxes;
pub mod envelope;
pub mod json;
pub mod lenient;
pub mod pairs;
pub mod reference;
pub mod reference_7b;
pub mod resolution;
pub mod scale;
pub mod shape;
#[cfg(test)]
mod tests;
pub mod time;

use protocol::event::{TimeRange, TimedBox};
use serde::{Deserialize, Serialize};

/// Parser of an answer's text. None fails: what it cannot read gives nothing and a reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parser {
    /// Plain text, in which no times are looked for.
    #[default]
    Text,
    /// The reference's own parser: fractions `0.12-0.34`, as they stand (MODEL.md 8).
    Reference,
    /// The parser of Vidi 7B's reference: numbers `0.12-0.34` as fractions, as they stand (MODEL-7B.md, "Post-processing").
    #[serde(rename = "reference-7b")]
    Reference7b,
    /// Time ranges in fractions, percent, seconds or clock times, in text or JSON; sorted and clipped to the video.
    Lenient,
    /// Boxes `[x0, y0, x1, y1]` beside times.
    Boxes,
}

impl Parser {
    /// Every parser.
    pub const ALL: [Parser; 5] = [Parser::Text, Parser::Reference, Parser::Reference7b, Parser::Lenient, Parser::Boxes];

    /// Name in tasks, requests and results.
    pub fn as_str(self) -> &'static str {
        match self {
            Parser::Text => "text",
            Parser::Reference => "reference",
            Parser::Reference7b => "reference-7b",
            Parser::Lenient => "lenient",
            Parser::Boxes => "boxes",
        }
    }

    /// Parser of a name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Parser::ALL.into_iter().find(|parser| parser.as_str() == name)
    }

    /// Whether it looks for time ranges.
    pub fn finds_ranges(self) -> bool {
        matches!(self, Parser::Reference | Parser::Reference7b | Parser::Lenient)
    }

    /// Form in which the times that it finds are written for a person: as the model's reference writes them, with all their
    /// zeros.
    pub fn format(self) -> fn(f64) -> String {
        match self {
            Parser::Reference7b => reference_7b::format_padded,
            Parser::Text | Parser::Reference | Parser::Lenient | Parser::Boxes => reference::format_hms,
        }
    }

    /// What an answer says about a video that was watched.
    pub fn read(self, answer: &str, watched: Watched) -> Reading {
        match self {
            Parser::Text => Reading::default(),
            Parser::Reference => reference::read(answer, watched),
            Parser::Reference7b => reference_7b::read(answer, watched),
            Parser::Lenient => lenient::read(answer, watched),
            Parser::Boxes => boxes::read(answer, watched),
        }
    }
}

/// Part of a video that the model watched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watched {
    /// Start of the part, seconds from the start of the video.
    pub start_s: f64,
    /// Length of the part, seconds: what an answer's fractions are fractions of.
    pub duration_s: f64,
}

impl Watched {
    /// Whole video of `duration_s` seconds.
    pub fn whole(duration_s: f64) -> Self {
        Watched { start_s: 0.0, duration_s }
    }
}

/// What was read of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Time ranges, seconds from the start of the video.
    pub ranges: Vec<TimeRange>,
    /// Boxes with their times.
    pub boxes: Vec<TimedBox>,
    /// Reason for which there are neither; none where there are, or where none were looked for.
    pub reason: Option<String>,
    /// Resolution of the times, seconds; none for a text.
    pub resolution_s: Option<f64>,
    /// What the model's reference prints for the ranges, where its times lack zeros.
    pub reference_text: Option<String>,
}

impl Reading {
    /// Reading that found nothing, and why; times would have been known to the resolution that the model was taught.
    fn nothing(reason: impl Into<String>, watched: Watched) -> Self {
        let resolution_s = Some(resolution::taught_s(watched.duration_s));
        Reading { reason: Some(reason.into()), resolution_s, ..Reading::default() }
    }
}
