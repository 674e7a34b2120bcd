//! Answer that grows beside others, and a token of it.

use protocol::error::JobError;
use protocol::event::Finish;

use crate::language::cache::TextCache;
use crate::text::sample::Sampler;

/// Name of an answer that grows: a question of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Number of the job.
    pub job: u64,
    /// Number of the question in it.
    pub question: usize,
}

/// Next token of an answer, or the end of it.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Answer that it is of.
    pub asked: Asked,
    /// Token; the reason for which there is none, with which the answer has ended.
    pub token: Result<u32, JobError>,
    /// Reason for which the answer has ended with this token; none while it goes on.
    pub finish: Option<Finish>,
}

/// Answer that grows.
pub(super) struct Voice {
    pub asked: Asked,
    /// Keys and values of prompt and answer.
    pub text: TextCache,
    pub sampler: Sampler,
    /// Tokens that were taken.
    pub taken: usize,
    /// Most tokens of the answer.
    pub most: usize,
    /// Token that was taken and that the model has not read.
    pub due: Option<u32>,
}

impl Voice {
    /// Whether the token that comes next is not the last one that the answer may have.
    pub fn goes_on(&self) -> bool {
        self.taken + 1 < self.most
    }
}

/// Texts of some answers, in their order.
pub(super) fn texts<'v>(voices: &'v mut [Voice], of: &[Asked]) -> Vec<&'v mut TextCache> {
    let place = |voice: &Voice| of.iter().position(|asked| *asked == voice.asked);
    let mut found: Vec<(usize, &mut TextCache)> =
        voices.iter_mut().filter_map(|voice| Some((place(voice)?, &mut voice.text))).collect();
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, text)| text).collect()
}
