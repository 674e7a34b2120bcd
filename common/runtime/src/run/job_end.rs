//! Why work on a job stops before its answer, told once to all who do some of it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::bus::FencingToken;
use crate::bus::events::Refused;
use protocol::event::CancelledBy;

/// Reason for which work on a job stops before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// The answer is wanted no more; the terminal event that says so may still have to be written.
    Cancelled(CancelledBy),
    /// The job has its terminal event, written elsewhere: it failed in another stage, say.
    Ended,
    /// A newer owner, with this fencing token, has written: the job goes on there.
    Superseded(FencingToken),
}

impl JobEnd {
    /// End of a job whose log has refused an event.
    pub fn of(refused: &Refused) -> Self {
        match refused {
            Refused::Ended(_) => JobEnd::Ended,
            Refused::Superseded(newer) => JobEnd::Superseded(*newer),
        }
    }

    /// Whether this reason replaces an earlier one. The first one stands, but for a newer owner: it decides who may write.
    fn replaces(self, earlier: Option<JobEnd>) -> bool {
        match (earlier, self) {
            (None, _) => true,
            (Some(JobEnd::Superseded(known)), JobEnd::Superseded(newer)) => newer > known,
            (Some(_), end) => matches!(end, JobEnd::Superseded(_)),
        }
    }
}

/// Signal that a job has come to its end, shared by the registry, the engine and the publishers of that job. Code that
/// waits selects on it, the engine's thread asks it.
#[derive(Clone, Debug, Default)]
pub struct EndSignal(Arc<watch::Sender<Option<JobEnd>>>);

impl EndSignal {
    /// Tells all who work on the job.
    pub fn set(&self, end: JobEnd) {
        self.0.send_if_modified(|known| {
            let replaces = end.replaces(*known);
            if replaces {
                *known = Some(end);
            }
            replaces
        });
    }

    /// Reason to stop, if there is one by now.
    pub fn get(&self) -> Option<JobEnd> {
        *self.0.borrow()
    }

    /// Whether there is a reason to stop by now.
    pub fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits for a reason to stop.
    pub async fn wait(&self) {
        // The sender is held here: the channel stays open for as long as this waits.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    /// Whether both are of one registration of one job.
    pub fn is(&self, other: &EndSignal) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CancelledBy::{Client, Deadline};

    #[test]
    fn the_first_reason_stands_until_a_newer_owner_writes() {
        let newer = |n| JobEnd::Superseded(FencingToken(n));
        for (told, stands) in [
            (vec![JobEnd::Cancelled(Deadline), JobEnd::Ended, JobEnd::Cancelled(Client)], JobEnd::Cancelled(Deadline)),
            (vec![JobEnd::Ended, JobEnd::Cancelled(Client)], JobEnd::Ended),
            (vec![JobEnd::Cancelled(Client), newer(7), JobEnd::Ended], newer(7)),
            (vec![newer(7), newer(9), newer(8)], newer(9)),
        ] {
            let signal = EndSignal::default();
            told.iter().for_each(|&end| signal.set(end));
            assert_eq!(signal.get(), Some(stands), "{told:?}");
        }
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_end_and_who_comes_later_does_not_wait() {
        let signal = EndSignal::default();
        let waiting = tokio::spawn({
            let signal = signal.clone();
            async move { signal.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !signal.is_set());
        signal.set(JobEnd::Ended);
        waiting.await.unwrap();
        signal.wait().await;
    }
}
