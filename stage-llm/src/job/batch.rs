//! Batch of jobs about one video: they share its keys and values, and each step of the model.
//!
//! A job joins between two steps while others are answered, or goes on with the video when the last of them ends, and leaves when its
//! answers are there; whatever ends one of them ends it alone. Only an error of the model in a step of all ends all of them.

use std::time::{Duration, Instant};

use compute::failure::{Failure, is_out_of_memory};
use protocol::error::JobError;
use protocol::event::{Cached, Event, JobResult, Mode};
use protocol::message::JobRequest;
use protocol::stage::Stop;

use crate::job::clock::{Clock, Progress};
use crate::job::fit::Fit;
use crate::job::in_flight::{Job, here};
use crate::job::kept::{self, Kept};
use crate::job::member::Member;
use crate::job::owned::Jobs;
use crate::job::parts::Parts;
use crate::job::steps::Steps;
use crate::job::video::{Video, VideoKey};
use crate::job::voice::{Asked, Taken};

/// End of a batch: its last job, which has not been handed over yet.
pub struct Last {
    /// Number of the job.
    pub number: u64,
    /// What came of it.
    pub outcome: Result<JobResult, Stop>,
    /// Whether the video's keys and values may be kept after all that came of the jobs.
    pub is_sound: bool,
}

/// Batch of jobs about one video.
pub struct Batch<'a, 'j> {
    parts: &'a Parts,
    jobs: &'j mut dyn Jobs,
    /// Other videos, which give way to the texts of answers.
    kept: &'j mut Kept,
    video: &'a Video,
    /// Memory that the batch may hold beside them.
    fit: Fit,
    /// Request of the job that the batch began with.
    about: JobRequest,
    began: Instant,
    steps: Steps<'a>,
    members: Vec<Member<'a>>,
    is_sound: bool,
    /// Number of answers beside which a job's did not fit: no other is asked for until there are fewer.
    crowded: Option<usize>,
    last: Option<(u64, Result<JobResult, Stop>)>,
}

impl<'a, 'j> Batch<'a, 'j> {
    /// Batch that begins with one job, whose video is there.
    pub fn new(
        parts: &'a Parts,
        jobs: &'j mut dyn Jobs,
        kept: &'j mut Kept,
        video: &'a Video,
        fit: Fit,
        first: Member<'a>,
    ) -> Self {
        Batch {
            parts,
            jobs,
            kept,
            video,
            fit,
            about: first.request().clone(),
            began: Instant::now(),
            steps: Steps::new(&parts.model, &video.cache, parts.end_tokens(), parts.pace()),
            members: vec![first],
            is_sound: true,
            crowded: None,
            last: None,
        }
    }

    /// Answers the jobs, and those that join them, until none is left.
    pub fn run(mut self) -> Last {
        loop {
            self.end_cancelled();
            self.conclude();
            if let Some((number, outcome)) = self.last.take() {
                return Last { number, outcome, is_sound: self.is_sound };
            }
            self.read_prompts();
            self.admit();
            self.step();
        }
    }

    /// Ends a job: the last one, which no other follows, is handed over by whoever asked for the batch.
    fn end(&mut self, number: u64, outcome: Result<JobResult, Stop>) {
        self.steps.leave(number);
        self.members.retain(|member| member.number != number);
        self.is_sound &= kept::is_sound(&outcome);
        if self.members.is_empty() && !self.follow() {
            self.last = Some((number, outcome));
        } else {
            self.jobs.end(number, outcome);
        }
    }

    /// Whether a job that waits goes on with the video. Without one the video may have to go: after a job in phases it does not fit
    /// beside the encoders.
    fn follow(&mut self) -> bool {
        while self.is_open()
            && let Some(number) = self.jobs.next(&self.about)
        {
            if self.take_in(number) {
                return true;
            }
        }
        false
    }

    /// Ends the jobs that nobody waits for any more.
    fn end_cancelled(&mut self) {
        let numbers: Vec<u64> = self.members.iter().map(|member| member.number).collect();
        for number in numbers {
            if self.jobs.job(number).1.cancelled() {
                self.end(number, Err(Stop::Cancelled));
            }
        }
    }

    /// Ends the jobs whose questions are all answered.
    fn conclude(&mut self) {
        let Parts { prompter, .. } = self.parts;
        let model = || self.parts.model_name();
        let concluded =
            |member: &mut Member<'a>| Some((member.number, member.conclude(self.video, prompter, &model).transpose()?));
        let ended: Vec<(u64, Result<JobResult, Stop>)> = self.members.iter_mut().filter_map(concluded).collect();
        for (number, outcome) in ended {
            self.end(number, outcome);
        }
    }

    /// Most answers at once.
    fn together(&self) -> usize {
        self.steps.most().min(self.parts.settings.llm.together as usize)
    }

    /// Whether a text as short as the shortest that grows fits into memory beside them, with no video kept for others: a job that is
    /// given back is answered in its turn only, when this video may be gone.
    fn fits_one_more(&self) -> bool {
        let texts = self.fit.texts(self.steps.capacities().chain(self.steps.capacities().min()));
        Fit { kept_bytes: 0, ..texts }.check(&self.video.plan, true).is_ok()
    }

    /// Whether a text of `tokens` fits into memory beside those of the answers that grow. Videos that are kept for others give
    /// way to it, as far as that is enough.
    fn makes_room(&mut self, tokens: usize) -> bool {
        let (fit, plan) = (self.fit.texts(self.steps.capacities().chain([tokens])), &self.video.plan);
        if fit.check(plan, true).is_ok() {
            return true;
        }
        let fits = Fit { kept_bytes: 0, ..fit }.check(plan, true).is_ok();
        if fits {
            self.fit.kept_bytes = self.kept.make_room(fit, plan, true).kept_bytes;
        }
        fits
    }

    /// Reads the prompts of questions that wait, as far as there is capacity for their answers: all of a job that is alone, else
    /// one, so that the answers of others are not held up for long.
    fn read_prompts(&mut self) {
        loop {
            let waiting = |(at, member): (usize, &Member<'a>)| {
                member.waiting().map(|(number, question)| (at, number, question.text_tokens()))
            };
            let Some((at, question, tokens)) = self.members.iter().enumerate().find_map(waiting) else { break };
            // Each text fits alone, as its job was planned.
            if !self.steps.is_empty() && (self.steps.len() >= self.together() || !self.makes_room(tokens)) {
                break;
            }
            let job = self.members[at].number;
            self.read(at, question);
            if self.steps.jobs().any(|other| other != job) {
                break;
            }
            self.end_cancelled();
        }
    }

    /// Reads the prompt of a question of member `at`.
    fn read(&mut self, at: usize, question: usize) {
        let (parts, video) = (self.parts, self.video);
        let member = &mut self.members[at];
        let number = member.number;
        let Some((_, asked)) = member.waiting() else { return };
        match self.steps.begin(Asked { job: number, question }, &asked.prompt, asked.generation, &mut ()) {
            Ok(()) => {
                let told = member.begun(question, video, &parts.prompter, self.jobs.job(number).1);
                told.unwrap_or_else(|stop| self.end(number, Err(stop)));
            }
            Err(error) if is_out_of_memory(&error) && !self.steps.is_empty() => {
                tracing::warn!(%error, answers = self.steps.len(), "out of memory for another answer: it is written later");
                self.steps.note_full();
            }
            Err(error) => self.end(number, Err(here(Failure(error).into()))),
        }
    }

    /// Whether other jobs may join.
    fn is_open(&self) -> bool {
        let llm = &self.parts.settings.llm;
        let in_time = self.began.elapsed() < Duration::try_from_secs_f64(llm.together_s).unwrap_or(Duration::MAX);
        llm.together > 1 && llm.keep_video && self.video.key.is_some() && self.is_sound && in_time
    }

    /// Takes in a job that waits, if its video is this one and its answers fit beside the others.
    fn admit(&mut self) {
        let others_wait = self.members.iter().any(|member| member.waiting().is_some());
        let is_crowded = self.crowded.is_some_and(|answers| self.steps.len() >= answers);
        let has_capacity = !self.steps.is_empty() && self.steps.len() < self.together();
        if others_wait || is_crowded || !has_capacity || !self.is_open() || !self.fits_one_more() {
            return;
        }
        self.crowded = None;
        if let Some(number) = self.jobs.next(&self.about) {
            self.take_in(number);
        }
    }

    /// Takes a job in that came; false if it was given back, or has ended.
    fn take_in(&mut self, number: u64) -> bool {
        match self.planned(number) {
            Ok(Some(member)) => {
                self.members.push(member);
                return true;
            }
            Ok(None) => self.jobs.decline(number),
            Err(stop) => self.jobs.end(number, Err(stop)),
        }
        false
    }

    /// A job that came, planned; none if it is about another video, or does not fit beside the others.
    fn planned(&mut self, number: u64) -> Result<Option<Member<'a>>, Stop> {
        let (mut clock, mut progress) = (Clock::start(), Progress::default());
        let (request, port) = self.jobs.job(number);
        let request = request.clone();
        let mut work = self.parts.work(&request, 0.0).map_err(here)?;
        let mut has_gpu = false;
        let mut job =
            Job { request: &request, port, clock: &mut clock, progress: &mut progress, has_gpu: &mut has_gpu };
        let plan = job.media_plan(self.parts.grid)?;
        if VideoKey::new(&plan, &request) != self.video.key {
            return Ok(None);
        }
        if work.says_duration {
            work = self.parts.work(&request, plan.duration_s).map_err(here)?;
        }
        if !self.makes_room(work.text_tokens()) {
            self.crowded = Some(self.steps.len());
            return Ok(None);
        }
        let planned = Event::Planned {
            plan: self.video.plan.clone(),
            mode: Mode::Streaming,
            cached: Cached::Memory,
            pass_rows: None,
        };
        self.jobs.job(number).1.event(planned)?;
        Ok(Some(Member::new(number, request, work, clock, progress, Cached::Memory)))
    }

    /// Lets every answer grow by a token.
    fn step(&mut self) {
        match self.steps.step(&mut ()) {
            Ok(all) => all.into_iter().for_each(|taken| self.deliver(taken)),
            Err(error) => {
                let error: JobError = Failure(error).into();
                let numbers: Vec<u64> = self.members.iter().map(|member| member.number).collect();
                numbers.into_iter().for_each(|number| self.end(number, Err(here(error.clone()))));
            }
        }
    }

    /// Gives a token to its job.
    fn deliver(&mut self, taken: Taken) {
        let number = taken.asked.job;
        // An earlier token of this step may have ended it.
        let Some(member) = self.members.iter_mut().find(|member| member.number == number) else { return };
        if let Err(stop) = member.token(taken, self.jobs.job(number).1) {
            self.end(number, Err(stop));
        }
    }
}
