//! The owner's request to stage-decode, and when what is missing of it may be asked for again.

use super::missing;
use crate::bus::{Attempt, FencingToken, Stored};
use protocol::coverage::VideoCoverage;
use protocol::message::DecodeRequest;

/// Attempts of one owner at most, as bits: its fencing token stands above them.
const ATTEMPT_BITS: u32 = 16;

/// Request that was made to stage-decode.
pub struct Asked {
    request: DecodeRequest,
    /// Times that it was repeated.
    again: u64,
    /// Whether the broker had it already, and nobody has looked since whether anything came of it.
    is_inherited: bool,
    /// Connections that had been lost when it was repeated last because nothing was heard.
    silent_at: Option<u64>,
}

impl Asked {
    /// A request that was just made. Where the broker had it [before](Stored::Before), an earlier owner of the job made it.
    pub fn new(request: DecodeRequest, stored: Stored) -> Self {
        Asked { request, again: 0, is_inherited: stored == Stored::Before, silent_at: None }
    }

    /// Whether it is an earlier owner's request: what was made of it may have been lost before this owner's time, and the
    /// broker told that to the earlier one.
    pub fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Times that it was made.
    pub fn times(&self) -> u64 {
        self.again + 1
    }

    /// Request for what has not come, with an attempt that the job has no other of.
    pub fn repeat(&mut self, came: &VideoCoverage, token: FencingToken) -> (DecodeRequest, Attempt) {
        self.again += 1;
        self.is_inherited = false;
        let segment = missing::segment(came, &self.request.plan);
        let attempt = Attempt(token.0 << ATTEMPT_BITS | self.again.min((1 << ATTEMPT_BITS) - 1));
        (DecodeRequest { segment, ..self.request.clone() }, attempt)
    }

    /// The same because nothing was heard: once, and once more after each loss of the connection since, as a broker that was
    /// killed may have lost what it had accepted. None otherwise: nobody works on it.
    pub fn repeat_after_silence(
        &mut self,
        came: &VideoCoverage,
        reconnects: u64,
        token: FencingToken,
    ) -> Option<(DecodeRequest, Attempt)> {
        let repeated_before = self.silent_at.replace(reconnects) == Some(reconnects);
        (!repeated_before).then(|| self.repeat(came, token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::{JobId, Segment};
    use protocol::plan::MediaPlan;
    use protocol::wire::VERSION;

    #[test]
    fn after_silence_what_is_missing_is_asked_for_once_more_and_again_after_each_loss_of_the_connection() {
        let request = DecodeRequest {
            v: VERSION,
            job: JobId::new("job").unwrap(),
            video: "video.mp4".to_owned(),
            span: None,
            plan: MediaPlan::default(),
            segment: Segment { first_frame: 0, frames: 0, first_window: 0, windows: 0 },
        };
        let mut asked = Asked::new(request, Stored::Before);
        assert!(asked.is_inherited());
        let mut attempts: Vec<Option<u64>> = Vec::new();
        for (reconnects, token) in [(3, 7), (3, 7), (4, 7), (4, 7), (6, 7)] {
            let again = asked.repeat_after_silence(&VideoCoverage::default(), reconnects, FencingToken(token));
            attempts.push(again.map(|(_, attempt)| attempt.0));
        }
        // What the broker is known to have lost is asked for besides.
        let (_, lost) = asked.repeat(&VideoCoverage::default(), FencingToken(7));
        let first = 7 << ATTEMPT_BITS;
        assert_eq!(attempts, [Some(first + 1), None, Some(first + 2), None, Some(first + 3)]);
        assert_eq!((lost.0, asked.times()), (first + 4, 5));
        assert!(!asked.is_inherited());
    }
}
