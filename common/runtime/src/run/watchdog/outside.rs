//! Waits for the world outside, by which an engine that stands still is told from one that has nothing to do.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::{Pulse, Shared};

/// Future whose waits are no steps of the work: a step is what is between something that wakes it and the next wait.
pub struct Outside<'a, F> {
    pulse: &'a Pulse,
    future: Pin<Box<F>>,
}

impl<'a, F: Future> Outside<'a, F> {
    /// Waits of a piece of work.
    pub fn new(pulse: &'a Pulse, future: F) -> Self {
        Outside { pulse, future: Box::pin(future) }
    }
}

impl<F: Future> Future for Outside<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // No two waits of a piece of work have one number: what wakes an earlier one ends no later one.
        let mut wait = 0;
        self.pulse.change(|work| {
            work.step();
            work.waits += 1;
            (wait, work.wait) = (work.waits, Some(work.waits));
        });
        let Pulse { shared, id } = self.pulse;
        let wakes = Wakes { shared: shared.clone(), id: *id, wait, thread: context.waker().clone() };
        let outcome = self.future.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(wakes))));
        self.pulse.change(|work| match outcome {
            Poll::Ready(_) => work.wait = None,
            // What came meanwhile has ended the wait already.
            Poll::Pending if work.wait == Some(wait) => work.since = None,
            Poll::Pending => {}
        });
        outcome
    }
}

/// Wakes the engine's thread: from now on it has something to do.
struct Wakes {
    shared: Arc<Shared>,
    id: u64,
    wait: u64,
    thread: Waker,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.shared.change(self.id, |work| {
            // What wakes it twice, or after all is done, begins nothing.
            if work.wait == Some(self.wait) {
                work.wait = None;
                work.step();
            }
        });
        self.thread.wake_by_ref();
    }
}
