//! Bytes that may be held at a time, so that much small work and little large work are in hand alike, in bounded memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whoever waits for a share looks this often whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// A number of bytes, shared by all clones.
#[derive(Clone, Debug)]
pub struct Allowance {
    free: Arc<Semaphore>,
    bytes: u32,
}

/// Bytes taken from an [`Allowance`]; dropped, they are given back.
#[derive(Debug)]
pub struct Share {
    _permit: OwnedSemaphorePermit,
}

impl Allowance {
    /// An allowance of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Allowance { free: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// Takes `bytes` of it, once they are free; who asks for more than all of it gets all. None when `stop` says that
    /// nobody wants them any more.
    pub async fn take(&self, bytes: usize, stop: impl Fn() -> bool) -> Option<Share> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        let mut taken = std::pin::pin!(self.free.clone().acquire_many_owned(bytes));
        loop {
            if stop() {
                return None;
            }
            if let Ok(permit) = tokio::time::timeout(LOOK, &mut taken).await {
                return Some(Share { _permit: permit.expect("the semaphore is never closed. This is a bug.") });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing comes of waiting this long: nobody gives anything back.
    const A_WHILE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn what_is_taken_stays_within_the_allowance_until_it_is_given_back() {
        let allowance = Allowance::new(10);
        let mut shares = Vec::new();
        for bytes in [4, 3, 3] {
            shares.push(allowance.take(bytes, || false).await);
        }
        let more = tokio::time::timeout(A_WHILE, allowance.take(1, || false)).await;
        assert!(more.is_err(), "eleven bytes of ten");
        shares.pop();
        assert!(allowance.take(3, || false).await.is_some());
    }

    #[tokio::test]
    async fn what_is_larger_than_the_allowance_passes_alone() {
        let allowance = Allowance::new(10);
        let whole = allowance.take(11, || false).await;
        assert!(whole.is_some());
        assert!(tokio::time::timeout(A_WHILE, allowance.take(1, || false)).await.is_err());
    }

    #[tokio::test]
    async fn who_is_told_to_stop_waits_no_longer() {
        let allowance = Allowance::new(1);
        let _held = allowance.take(1, || false).await;
        let since = std::time::Instant::now();
        assert!(allowance.take(1, || since.elapsed() > A_WHILE).await.is_none());
    }
}
