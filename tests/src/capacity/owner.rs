//! Owner of jobs in place of the language model: it takes tokens and writes answers as stage-llm does, and waits for as long
//! as that computes.

use protocol::coverage::VideoCoverage;
use protocol::event::{Cached, Event, JobResult, Mode};
use protocol::message::{DecodeRequest, JobRequest, Segment, TokenBatch};
use protocol::plan::{FrameGrid, MediaPlan};
use protocol::stage::{Beside, JobPort, OwnedJob, Owner, Stop};
use protocol::wire::VERSION;
use serde_json::json;

use super::model::{WIDTHS_9B, items, tokens};
use super::pace::Pace;
use super::times::Times;

/// Most rows of a pass through the layers.
const CHUNK_ROWS: u64 = 8192;
/// A pass waits for this share of the tokens that are still to come, and for so many at least, as stage-llm's do
/// (stage-llm/src/job/prefill.rs).
const LEFT_SHARE: u64 = 4;
const LEAST_ROWS: u64 = 512;
/// Piece of text of one token.
const PIECE: &str = "word ";

/// The engine of one stage-llm.
pub struct Answerer {
    times: Times,
    pace: Pace,
}

impl Answerer {
    /// An engine that takes these times.
    pub fn new(times: Times, pace: Pace) -> Self {
        Answerer { times, pace }
    }

    fn answered<P: JobPort>(&mut self, request: &JobRequest, port: &mut P) -> Result<JobResult, Stop> {
        let info = port.probe(&request.video)?;
        let plan = MediaPlan::new(&info, request.span, request.fps, FrameGrid::Budget)?;
        port.event(Event::Planned { plan: plan.clone(), mode: Mode::Streaming, cached: Cached::No, pass_rows: None })?;
        port.request_decode(whole(request, &plan))?;
        self.prefill(&plan, port)?;
        self.pace.wait(self.times.prompt_s);
        let step_s = self.times.step_s + tokens(&plan) as f64 * self.times.step_token_s;
        let mut at = 0;
        for _ in 0..request.max_new_tokens {
            if port.cancelled() {
                return Err(Stop::Cancelled);
            }
            self.pace.wait(step_s);
            port.event(Event::Text { delta: PIECE.to_owned(), at, question: None })?;
            at += PIECE.len() as u64;
        }
        Ok(result(&plan, request.max_new_tokens))
    }

    /// Takes tokens until none is missing, in passes.
    fn prefill<P: JobPort>(&mut self, plan: &MediaPlan, port: &mut P) -> Result<(), Stop> {
        let all = tokens(plan);
        let mut intake = Intake { came: VideoCoverage::planned(plan), held: 0, waiting: 0 };
        while !intake.came.is_complete() || intake.waiting > 0 {
            let enough = CHUNK_ROWS.min((all.saturating_sub(intake.held) / LEFT_SHARE).max(LEAST_ROWS));
            let some = (1..CHUNK_ROWS).contains(&intake.waiting);
            if some && port.more_tokens(&mut |batch| intake.take(&batch))? {
                continue;
            }
            if intake.waiting < enough && !intake.came.is_complete() {
                let before = intake.waiting;
                port.next_tokens(&mut |batch| intake.take(&batch))?;
                // What has come passes once nothing more comes for a while.
                if before == 0 || intake.waiting > before {
                    continue;
                }
            }
            let rows = intake.waiting.min(CHUNK_ROWS);
            // A pass of few rows reads all weights too.
            self.pace.wait((rows as f64 * self.times.prefill_token_s).max(self.times.step_s));
            intake.waiting -= rows;
        }
        Ok(())
    }
}

/// Tokens that have come.
struct Intake {
    came: VideoCoverage,
    /// Those that are new, of all batches.
    held: u64,
    /// Those of them that have not passed the layers.
    waiting: u64,
}

impl Intake {
    fn take(&mut self, batch: &TokenBatch<'_>) -> Result<(), Stop> {
        let new: u64 = self.came.note(batch).into_iter().map(|rows| rows.end - rows.start).sum();
        self.held += new;
        self.waiting += new;
        Ok(())
    }
}

fn whole(request: &JobRequest, plan: &MediaPlan) -> DecodeRequest {
    let (frames, windows) = items(plan);
    let segment = Segment { first_frame: 0, frames, first_window: 0, windows };
    let (job, video) = (request.job.clone(), request.video.clone());
    DecodeRequest { v: VERSION, job, video, span: request.span, plan: plan.clone(), segment }
}

fn result(plan: &MediaPlan, answer_tokens: u32) -> JobResult {
    let ids: Vec<u32> = (0..answer_tokens).collect();
    serde_json::from_value(json!({
        "text": PIECE.repeat(answer_tokens as usize), "token_ids": ids, "finish": "length", "ranges": [],
        "plan": plan, "cached": false, "timings": {"stages": {}, "first_token_s": 0.0, "tokens_per_s": 0.0},
        "memory": {}, "model": {"name": "waiting", "dtype": "", "weights": "", "kv": ""},
    }))
    .expect("a result of the protocol. This is a bug.")
}

impl Owner for Answerer {
    /// One job after another: those that wait beside are about other videos.
    fn answer<P: JobPort>(&mut self, mut job: OwnedJob<P>, beside: &mut dyn Beside<P>) {
        let request = job.request.clone();
        let outcome = self.answered(&request, &mut job.port);
        beside.end(job, outcome);
    }

    fn step_tokens(&self) -> u64 {
        CHUNK_ROWS
    }

    fn token_bytes(&self) -> u64 {
        WIDTHS_9B.token_bytes()
    }
}
