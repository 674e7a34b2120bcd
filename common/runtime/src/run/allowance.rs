//! Bytes that may be held at a time, so that much small work and little large work are in flight alike, in bounded memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Number of bytes, shared by all clones.
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
    /// Allowance of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Allowance { free: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// Takes `bytes` of it, once they are free and all who asked before have theirs; who asks for more than all of it
    /// gets all. Dropped before that, nothing is taken.
    pub async fn take(&self, bytes: usize) -> Share {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        let permit = self.free.clone().acquire_many_owned(bytes).await;
        Share { _permit: permit.expect("the semaphore is never closed. This is a bug.") }
    }

    /// Takes `bytes` of it if they are free now.
    pub fn try_take(&self, bytes: usize) -> Option<Share> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        self.free.clone().try_acquire_many_owned(bytes).ok().map(|permit| Share { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Nothing comes of waiting this long: nobody gives anything back.
    const A_WHILE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn what_is_taken_stays_within_the_allowance_until_it_is_given_back() {
        let allowance = Allowance::new(10);
        let mut shares = Vec::new();
        for bytes in [4, 3, 3] {
            shares.push(allowance.take(bytes).await);
        }
        let more = tokio::time::timeout(A_WHILE, allowance.take(1)).await;
        assert!(more.is_err() && allowance.try_take(1).is_none(), "eleven bytes of ten");
        shares.pop();
        let free = allowance.try_take(2);
        assert!(free.is_some() && allowance.try_take(2).is_none());
        drop(free);
        allowance.take(3).await;
    }

    #[tokio::test]
    async fn what_is_larger_than_the_allowance_passes_alone() {
        let allowance = Allowance::new(10);
        let _whole = allowance.take(11).await;
        assert!(tokio::time::timeout(A_WHILE, allowance.take(1)).await.is_err());
    }

    #[tokio::test]
    async fn who_waits_no_longer_has_taken_nothing_and_holds_up_nobody() {
        let allowance = Allowance::new(3);
        let held = allowance.take(2).await;
        assert!(tokio::time::timeout(A_WHILE, allowance.take(2)).await.is_err());
        allowance.take(1).await;
        drop(held);
        allowance.take(3).await;
    }
}
