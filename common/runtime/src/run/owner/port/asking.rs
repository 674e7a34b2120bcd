//! What an owner asks stage-decode for, once there is capacity for its tokens, and asks for again where nothing is heard.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::OwnerPort;
use crate::bus::{Attempt, Stored};
use crate::run::owner::asked::Asked;
use crate::run::owner::capacity::{self, Waited};
use crate::run::owner::lost::Lost;
use crate::run::port::Origin;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::DecodeRequest;
use protocol::plan::{AudioPlan, MediaPlan, SAMPLE_RATE};
use protocol::stage::Stop;
use protocol::wire;

/// Time between two looks whether anything of a job that hears nothing is still on its way.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl OwnerPort {
    /// Asks for what is missing again where the broker has [lost](crate::run::owner::lost) work on the job, also before this
    /// owner's time.
    pub(super) fn check_losses(&mut self) -> Result<(), Stop> {
        let Some(mut work) = self.work.take() else { return Ok(()) };
        let lost = self.wait(work.lost(&self.bus));
        self.work = Some(work);
        if lost == Lost::Tokens {
            self.lost_tokens = true;
            self.shown = 0;
        }
        // With the encoders away no work is on its way any more, whatever of what was asked for twice is left in their queues; but
        // tokens that had come were left in the stream until then.
        let is_missed = match self.alone {
            true => self.lost_tokens && !self.wait(self.bus.has_tokens_behind(&self.job, self.shown)),
            false => lost != Lost::Nothing || self.has_inherited_nothing(),
        };
        if !is_missed {
            return Ok(());
        }
        let Some(asked) = &mut self.asked else { return Ok(()) };
        let again = asked.repeat(&self.came, self.token);
        self.ask_again(again, "the broker has lost work on the job")
    }

    /// Whether the request is an earlier owner's and nothing is on its way of what is missing, as far as one look every
    /// [`LOOK_EVERY`] shows.
    fn has_inherited_nothing(&mut self) -> bool {
        if !self.asked.as_ref().is_some_and(Asked::is_inherited) || self.looked.elapsed() < LOOK_EVERY {
            return false;
        }
        self.looked = Instant::now();
        !self.wait(self.bus.is_on_its_way(&self.job, self.shown))
    }

    /// Asks for what is missing again. Where the encoders have left the GPU to the job, nobody would make it: then the job begins
    /// anew, and they come back.
    fn ask_again(&mut self, (request, attempt): (DecodeRequest, Attempt), why: &str) -> Result<(), Stop> {
        if self.alone {
            return Err(Stop::Unavailable(format!("{why}, and the encoders have left the GPU to it: it begins anew")));
        }
        tracing::warn!(segment = ?request.segment, "{why}: what is missing is asked for again");
        self.state.progress().note_heartbeat();
        self.send_request(&request, attempt).map(drop)
    }

    /// Once nothing was heard of the job's work for too long, asks for what is missing again. Fails when nothing is heard for
    /// as long again and it [may not be repeated](Asked::repeat). While this process waits for the broker, patience does not
    /// run out.
    pub(super) fn check_patience(&mut self) -> Result<(), Stop> {
        let patience = Duration::from_secs_f64(self.bus.config().worker_patience_s);
        let (stage, silent, silent_everywhere) = {
            let progress = self.state.progress();
            let stage = progress.behind();
            (stage, progress.silent(), progress.silent_for(stage))
        };
        if silent < patience {
            return Ok(());
        }
        // Without the broker nobody hears of work, nor works: a cluster may be without a leader for longer than patience lasts.
        if self.bus.is_held_up() {
            self.state.progress().note_heartbeat();
            return Ok(());
        }
        // Work on other jobs counts while something of this one waits for its turn.
        if silent_everywhere < patience {
            if self.looked.elapsed() < LOOK_EVERY {
                return Ok(());
            }
            self.looked = Instant::now();
            if self.wait(self.bus.is_on_its_way(&self.job, self.shown)) {
                return Ok(());
            }
        }
        let waited = patience.as_secs_f64();
        let (came, reconnects) = (&self.came, self.bus.reconnects());
        let again = self.asked.as_mut().and_then(|a| a.repeat_after_silence(came, reconnects, self.token));
        if let Some(again) = again {
            return self.ask_again(again, &format!("no heartbeat from stage-{stage} for {waited} s"));
        }
        let times = self.asked.as_ref().map_or(0, Asked::times);
        let text = format!(
            "no heartbeat from stage-{stage} for {waited} s, {times} times: what is missing was asked for again"
        );
        Err(Stop::Failed(
            JobError::new(ErrorKind::WorkerLost, text)
                .at(stage)
                .hint(format!("look whether a stage-{stage} is running (`vidi status`), and at its log")),
        ))
    }

    pub(super) fn send_request(&self, request: &DecodeRequest, attempt: Attempt) -> Result<Stored, Stop> {
        let subject = self.bus.subjects().input(StageName::Decode, &self.job);
        let id = attempt.id(format!("{}/decode/{}", self.job, request.segment.first_frame));
        let body = Bytes::from(wire::encode(request));
        let headers = Origin { attempt, checkpoint: self.kind.checkpoint.clone() }.headers(&self.job);
        let unwanted = self.state.end().wait();
        self.wait(self.bus.store(subject, &id, &headers, body, unwanted))
    }

    /// Waits until the token stream has capacity for a plan's tokens. Where a job that holds some has no owner, this one
    /// goes back to the queue: whoever takes that one over may be us.
    pub(super) fn reserve_capacity(&mut self, plan: &MediaPlan) -> Result<(), Stop> {
        if self.kind.bytes == 0 {
            return Ok(());
        }
        let audio = plan.audio.as_ref().and_then(|a| AudioPlan::new(a.samples.saturating_add(SAMPLE_RATE)));
        let tokens = plan.image.as_ref().map_or(0, |i| i.tokens) + audio.map_or(0, |a| a.tokens);
        let bytes = self.bus.token_stream_bytes(tokens, self.kind.bytes);
        match self.wait(capacity::wait(&self.bus, &self.job, self.state.end(), bytes))? {
            Waited::Reserved => Ok(()),
            Waited::HolderLost(holder) => {
                self.gave_way = true;
                Err(Stop::Unavailable(format!("job {holder} holds capacity for tokens and has lost its worker")))
            }
        }
    }
}
