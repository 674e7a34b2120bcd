//! Turns on a card that several processes compute on.
//!
//! A driver lets processes compute for some milliseconds each, one after the other, and every change costs it time in which
//! the card does nothing. Where each of them has work for much longer than that, whole passes are better turns: a process
//! that has given the card one keeps the turn until the card is done, and hands it on if another waits. Short work, a token
//! or a reply, waits for nobody: the driver fits it in.

use candle_core::Device;

/// Gives a device the work of one pass, in this process's turn. Returns when the work is given; the turn lasts until it is
/// done. The CPU has no turns: its system knows better.
///
/// # Errors
/// `work`'s.
pub fn pass<T>(device: &Device, work: impl FnOnce() -> candle_core::Result<T>) -> candle_core::Result<T> {
    #[cfg(feature = "cuda")]
    return on_card::pass(device, work);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        work()
    }
}

#[cfg(feature = "cuda")]
pub(super) mod on_card {
    use std::sync::OnceLock;
    use std::time::Duration;

    use candle_core::{Device, Result};

    use crate::compute::party::Party;
    use crate::compute::transfer::Marker;

    /// How long a process waits for its turn before it computes without: longer than two passes of anything take.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// This process, all stages of which are one party; none where it takes no turns.
    static PARTY: OnceLock<Party> = OnceLock::new();

    /// Makes this process take turns with all that name the same card and have the same folder for temporary files.
    ///
    /// # Errors
    /// Files that cannot be made there.
    pub fn join(card: &str) -> std::io::Result<()> {
        let _ = PARTY.set(Party::join(&std::env::temp_dir(), card, PATIENCE)?);
        Ok(())
    }

    pub fn pass<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(party) = PARTY.get() else { return work() };
        party.begin();
        let given = work();
        // What failed may have given it something to do all the same.
        let marker = Marker::behind(device);
        party.until(move || {
            // What went wrong on the device is told by whoever looks at the outcome.
            let _ = marker.and_then(|marker| marker.wait());
        });
        given
    }
}
