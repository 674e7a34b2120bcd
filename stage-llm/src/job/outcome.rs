//! Result of a job, made of the answers to its questions.

use protocol::event::{Answer, Cached, Finish, JobResult, ModelName, TimeRange};
use protocol::message::JobRequest;

use crate::job::clock::Clock;
use crate::job::composite::Found;
use crate::job::reply::Written;
use crate::job::video::Video;
use crate::job::work::{Question, Work};
use crate::text::reading::shape::{joined, padded};
use crate::text::reading::{Reading, Watched};

/// Part of a video that a request is about, as it was planned.
pub fn watched(request: &JobRequest, video: &Video) -> Watched {
    let start_s = request.span.map_or(0.0, |[start, _]| start);
    Watched { start_s, duration_s: video.plan.duration_s }
}

/// Answer to a question, read.
pub fn read(question: &Question, written: Written, watched: Watched) -> Answer {
    let Reading { ranges, boxes, reason, resolution_s, reference_text } = question.parser.read(&written.text, watched);
    let Written { text, token_ids, finish } = written;
    let query = question.query.clone();
    Answer { query, text, token_ids, finish, ranges, boxes, reason, resolution_s, reference_text }
}

/// What all results of a job have, whatever was asked.
pub struct Frame<'a> {
    /// Request of the client.
    pub request: &'a JobRequest,
    /// Questions of the job.
    pub work: &'a Work<'a>,
    /// Video that it is about.
    pub video: &'a Video,
    /// Where its keys and values were already.
    pub cached: Cached,
    /// Clock of the job.
    pub clock: &'a Clock,
    /// Model that answered.
    pub model: ModelName,
}

impl Frame<'_> {
    /// Result of a job without a composite task. Of several questions, ranges have their query for a title, texts a line each,
    /// and token ids stand with their answers alone.
    pub fn of_answers(self, mut answers: Vec<Answer>) -> JobResult {
        let JobRequest { join_s, pad_s, .. } = *self.request;
        let watched = watched(self.request, self.video);
        for answer in &mut answers {
            let ranges = std::mem::take(&mut answer.ranges);
            answer.ranges = padded(joined(ranges, join_s, f64::INFINITY), pad_s, watched);
        }
        let mut result = self.result(&answers, join_s);
        match answers.as_mut_slice() {
            [only] if !self.work.several => {
                result.text = std::mem::take(&mut only.text);
                result.token_ids = std::mem::take(&mut only.token_ids);
                result.ranges = std::mem::take(&mut only.ranges);
                result.reason = only.reason.take();
                result.reference_text = only.reference_text.take();
            }
            _ => {
                result.text = lines(answers.iter().map(|answer| answer.text.as_str()));
                let named = |answer: &Answer| {
                    let title = Some(answer.query.clone());
                    answer.ranges.iter().map(move |r| TimeRange { title: title.clone(), ..*r }).collect::<Vec<_>>()
                };
                result.ranges = answers.iter().flat_map(named).collect();
                result.answers = answers;
            }
        }
        result
    }

    /// Result of a composite task: its ranges, and every answer that they are made of.
    pub fn of_ranges(self, found: Found, answers: Vec<Answer>, join_s: f64) -> JobResult {
        let mut result = self.result(&answers, join_s);
        if found.ranges.is_empty() {
            let asked = self.work.questions.len();
            result.reason = Some(format!("none of the answers to {asked} queries has a range that is kept"));
        }
        result.ranges = padded(found.ranges, self.request.pad_s, watched(self.request, self.video));
        let format = self.work.parser.format();
        let line = |r: &TimeRange| {
            let times = format!("{}-{}", format(r.start_s), format(r.end_s));
            r.title.as_ref().map_or(times.clone(), |title| format!("{times} {title}"))
        };
        result.text = result.ranges.iter().map(line).collect::<Vec<_>>().join("\n");
        result.notes = found.notes;
        result.resolution_s = found.resolution_s;
        result.answers = answers;
        result
    }

    fn result(&self, answers: &[Answer], join_s: f64) -> JobResult {
        let tokens = answers.iter().map(|answer| answer.token_ids.len()).sum();
        let cut_off = answers.iter().any(|answer| answer.finish == Finish::Length);
        JobResult {
            text: String::new(),
            finish: if cut_off { Finish::Length } else { Finish::Stop },
            ranges: Vec::new(),
            plan: self.video.plan.clone(),
            cached: self.cached,
            timings: self.clock.timings(tokens),
            token_ids: Vec::new(),
            memory: Default::default(),
            model: self.model.clone(),
            task: self.work.task.name.clone(),
            supported: Some(self.work.task.supported),
            parser: self.work.parser.as_str().to_owned(),
            resolution_s: answers.iter().filter_map(|answer| answer.resolution_s).reduce(f64::max),
            boxes: answers.iter().flat_map(|answer| answer.boxes.clone()).collect(),
            reason: None,
            reference_text: None,
            pad_s: self.request.pad_s,
            join_s,
            notes: Vec::new(),
            answers: Vec::new(),
        }
    }
}

/// Texts with a line each.
fn lines<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.collect::<Vec<_>>().join("\n")
}
