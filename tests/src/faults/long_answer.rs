//! A job with so many questions that its true answers, a few tokens each, are hundreds of tokens in all: something can
//! happen in the middle of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use demo_video::truth::Truth;
use deploy::client;
use protocol::event::{Event, JobEvent};
use protocol::message::{JobId, JobRequest};
use runtime::bus::Bus;

use super::look::{self, followed};

/// Seed of the scene whose questions are all answered truly, and its length, seconds.
pub const SCENE: (u64, u32) = (1, 8);

/// Questions of the job: as many as a job may have.
const QUESTIONS: usize = 64;

/// The questions, and the token ids of their true answers in an undisturbed run.
pub struct LongAnswer {
    request: JobRequest,
    answers: Vec<Vec<u32>>,
}

impl LongAnswer {
    /// Asks when each thing of a [`SCENE`] is there, again and again in one job, and holds the answers against the truth.
    ///
    /// # Errors
    /// That of the job, or an answer that is not true.
    pub async fn new(bus: &Bus, video: &Path, truth: &Truth) -> anyhow::Result<Self> {
        let questions: Vec<_> = truth.questions.iter().filter(|q| q.task == "retrieval").collect();
        let all = questions.iter().cycle().take(QUESTIONS);
        let request = JobRequest {
            queries: all.clone().map(|q| q.query.clone()).collect(),
            max_new_tokens: 24,
            ..JobRequest::new(JobId::new("undisturbed-long")?, video.to_string_lossy(), "")
        };
        client::submit(bus, &request).await?;
        let events = followed(bus, &request.job).await?;
        let told = look::result(&events)?;
        ensure!(told.answers.len() == request.queries.len(), "{} answers", told.answers.len());
        for (answer, question) in told.answers.iter().zip(all) {
            let verdict = question.answer.judge_of(&answer.text, &answer.ranges);
            let (query, said, truth) = (&answer.query, &answer.text, &question.answer);
            ensure!(verdict.is_true(), "{query:?}: {said:?}, and the truth is {truth} ({verdict})");
        }
        let answers = told.answers.iter().map(|answer| answer.token_ids.clone()).collect();
        let long = LongAnswer { request, answers };
        long.told_once(&events)?;
        Ok(long)
    }

    /// The same questions as a job of its own.
    ///
    /// # Errors
    /// If the name makes no job id.
    pub fn request(&self, name: &str) -> anyhow::Result<JobRequest> {
        Ok(JobRequest { job: JobId::new(name)?, ..self.request.clone() })
    }

    /// Tokens of all answers.
    pub fn tokens(&self) -> usize {
        self.answers.iter().map(Vec::len).sum()
    }

    /// Checks that a job has one end, the true answers, and that the text of each was told once.
    ///
    /// # Errors
    /// The difference.
    pub fn check(&self, events: &[JobEvent]) -> anyhow::Result<()> {
        let got = look::result(events)?;
        ensure!(got.answers.len() == self.answers.len(), "{} answers", got.answers.len());
        for (answer, truth) in got.answers.iter().zip(&self.answers) {
            ensure!(answer.token_ids == *truth, "{:?}: {:?} is not {truth:?}", answer.query, answer.token_ids);
        }
        self.told_once(events)
    }

    /// Checks that the text events give the answers, each piece once and where it says that it stands.
    fn told_once(&self, events: &[JobEvent]) -> anyhow::Result<()> {
        let mut told: BTreeMap<u32, String> = BTreeMap::new();
        for event in events {
            let Event::Text { delta, at, question } = &event.event else { continue };
            let text = told.entry(question.context("a text of no question")?).or_default();
            let (seq, before) = (event.seq, text.len());
            ensure!(*at == before as u64, "event {seq}: byte {at} of {question:?}, {before} were told before it");
            text.push_str(delta);
        }
        for (number, answer) in (0..).zip(&look::result(events)?.answers) {
            let text = told.get(&number).map_or("", |text| text.trim());
            ensure!(text == answer.text, "question {number}: {text:?} was told, the answer is {:?}", answer.text);
        }
        Ok(())
    }
}
