//! Job in a batch: its questions, the answers as far as they have grown, and its result.

use protocol::event::{Answer, Cached, JobResult, ModelName, TimeRange};
use protocol::message::JobRequest;
use protocol::stage::{JobPort, Stop};

use crate::job::clock::{Clock, Progress};
use crate::job::composite::{self, Found, Rule, titled};
use crate::job::in_flight::here;
use crate::job::outcome::{self, Frame};
use crate::job::reply::{Reply, Written};
use crate::job::video::Video;
use crate::job::voice::Taken;
use crate::job::work::{self, Question, Work};
use crate::language::cache::MediaCache;
use crate::text::prompt::Prompter;
use crate::text::reading::Watched;
use crate::text::task::RangeSource;

/// How far a question is.
enum Turn<'a> {
    /// Its prompt has not been read.
    Waiting,
    /// Its answer grows.
    Writing(Reply<'a>),
    /// Its answer is there.
    Written(Written),
}

/// Ranges of a composite task, found in the answers to its first questions.
struct Ranges {
    found: Found,
    /// Seconds that they could be apart to become one.
    join_s: f64,
    /// Number of the first question for a title.
    titles: usize,
}

/// Job in a batch.
pub struct Member<'a> {
    /// Number of the job.
    pub number: u64,
    clock: Clock,
    request: JobRequest,
    work: Work<'a>,
    cached: Cached,
    progress: Progress,
    /// Questions asked so far: those that were known before the video, then those for titles.
    turns: Vec<(Question, Turn<'a>)>,
    ranges: Option<Ranges>,
}

impl<'a> Member<'a> {
    /// Job of which nothing was read yet; `cached` says where its video was already.
    pub fn new(
        number: u64,
        request: JobRequest,
        work: Work<'a>,
        clock: Clock,
        progress: Progress,
        cached: Cached,
    ) -> Self {
        let turns = work.questions.iter().map(|question| (question.clone(), Turn::Waiting)).collect();
        Member { number, clock, request, work, cached, progress, turns, ranges: None }
    }

    /// Request of the job.
    pub fn request(&self) -> &JobRequest {
        &self.request
    }

    /// First question whose prompt has not been read, and its number.
    pub fn waiting(&self) -> Option<(usize, &Question)> {
        let at = self.turns.iter().position(|(_, turn)| matches!(turn, Turn::Waiting))?;
        Some((at, &self.turns[at].0))
    }

    /// Notes that a question's prompt was read, and tells the client how far the job is.
    ///
    /// # Errors
    /// Errors of the port.
    pub fn begun(
        &mut self,
        question: usize,
        video: &Video,
        prompter: &'a Prompter,
        port: &mut dyn JobPort,
    ) -> Result<(), Stop> {
        let number = self.work.several.then_some(question as u32);
        self.turns[question].1 = Turn::Writing(Reply::new(prompter.tokenizer(), number));
        let media = video.cache.present().map(MediaCache::tokens).sum::<u64>();
        let prompts = |wanted: &dyn Fn(&Turn<'_>) -> bool| -> u64 {
            self.turns.iter().filter(|(_, turn)| wanted(turn)).map(|(question, _)| question.prompt.len() as u64).sum()
        };
        let (read, all) = (prompts(&|turn| !matches!(turn, Turn::Waiting)), prompts(&|_| true));
        self.progress.tell(port, media + read, media + all)
    }

    /// Takes the next token of an answer, and tells the client the text that it completes.
    ///
    /// # Errors
    /// The reason for which there is no token; errors of the port.
    pub fn token(&mut self, taken: Taken, port: &mut dyn JobPort) -> Result<(), Stop> {
        let turn = &mut self.turns[taken.asked.question].1;
        let Turn::Writing(reply) = turn else { return Ok(()) };
        let id = taken.token.map_err(here)?;
        self.clock.token();
        reply.token(port, id)?;
        if let Some(finish) = taken.finish
            && let Turn::Writing(reply) = std::mem::replace(turn, Turn::Waiting)
        {
            *turn = Turn::Written(reply.end(port, finish)?);
        }
        Ok(())
    }

    /// Result of the job, once all its questions are answered; none while they are not, or where their answers have led to
    /// more questions.
    ///
    /// # Errors
    /// `bad_request` for the question for a title that is too long.
    pub fn conclude(
        &mut self,
        video: &Video,
        prompter: &Prompter,
        model: &dyn Fn() -> ModelName,
    ) -> Result<Option<JobResult>, Stop> {
        if self.turns.iter().any(|(_, turn)| !matches!(turn, Turn::Written(_))) {
            return Ok(None);
        }
        let watched = outcome::watched(&self.request, video);
        let read = |(question, turn): &(Question, Turn<'_>)| match turn {
            Turn::Written(written) => Some(outcome::read(question, written.clone(), watched)),
            Turn::Waiting | Turn::Writing(_) => None,
        };
        let answers: Vec<Answer> = self.turns.iter().filter_map(read).collect();
        if let Some(source) = &self.work.task.ranges
            && self.ranges.is_none()
        {
            let (found, join_s) = ranges_of(source, &answers, video, watched, &self.request);
            let ask = |r: &TimeRange| {
                let within = [r.start_s - watched.start_s, r.end_s - watched.start_s];
                work::title(self.work.task, within, &self.request, prompter).map_err(here)
            };
            let with_title = found.ranges.iter().filter(|_| self.work.task.has_titles());
            let questions = with_title.map(ask).collect::<Result<Vec<Question>, Stop>>()?;
            self.ranges = Some(Ranges { found, join_s, titles: answers.len() });
            if !questions.is_empty() {
                self.turns.extend(questions.into_iter().map(|question| (question, Turn::Waiting)));
                return Ok(None);
            }
        }
        let Member { request, work, clock, cached, .. } = &*self;
        let frame = Frame { request, work, video, cached: *cached, clock, model: model() };
        Ok(Some(match &self.ranges {
            None => frame.of_answers(answers),
            Some(Ranges { found, join_s, titles }) => {
                let titles = answers[*titles..].iter().map(|title| title.text.as_str());
                let found = Found { ranges: titled(found.ranges.clone(), titles), ..found.clone() };
                frame.of_ranges(found, answers, *join_s)
            }
        }))
    }
}

/// Ranges of a composite task, and the seconds that they could be apart to become one.
fn ranges_of(
    source: &RangeSource,
    answers: &[Answer],
    video: &Video,
    watched: Watched,
    request: &JobRequest,
) -> (Found, f64) {
    match source {
        RangeSource::Queries { join_s, largest_share, most, .. } => {
            let join_s = if request.join_s > 0.0 { request.join_s } else { *join_s };
            let rule = Rule { join_s, largest_share: *largest_share, most: *most };
            (composite::of_answers(answers, rule, watched), join_s)
        }
        RangeSource::Shots { min_s, most } => {
            let frames = video.plan.image.as_ref().map_or(0, |image| image.frames);
            (composite::of_pictures(&video.pictures, frames, *min_s, *most, watched), 0.0)
        }
    }
}
