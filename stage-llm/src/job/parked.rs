//! Waiting for a job's tokens without taking them: they stay on the bus until the encoders have left the card.

use protocol::error::{ErrorKind, JobError};
use protocol::message::{Modality, TokenBatch};
use protocol::plan::MediaPlan;
use protocol::rows::RowSet;

/// Which tokens lie on the bus.
#[derive(Debug)]
pub struct Parked {
    image: Half,
    audio: Half,
}

/// One half's.
#[derive(Debug)]
struct Half {
    seen: RowSet,
    /// How many there will be, once that is settled.
    total: Option<u64>,
}

impl Half {
    fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.seen.first_gap(total).is_none())
    }
}

impl Parked {
    /// Nothing yet of a plan, whose sound's length is settled by its first batch.
    pub fn new(plan: &MediaPlan) -> Self {
        let half = |total| Half { seen: RowSet::new(), total };
        Parked {
            image: half(Some(plan.image.as_ref().map_or(0, |i| i.tokens))),
            audio: half(if plan.audio.is_some() { None } else { Some(0) }),
        }
    }

    /// Notes a batch.
    ///
    /// # Errors
    /// `internal` for rows that overflow.
    pub fn note(&mut self, batch: &TokenBatch<'_>) -> Result<(), JobError> {
        let rows = batch.tensor.rows() as u64;
        let (half, total) = match batch.modality {
            Modality::Image => (&mut self.image, batch.plan.image.as_ref().map(|i| i.tokens)),
            Modality::Audio => (&mut self.audio, batch.plan.audio.as_ref().map(|a| a.tokens)),
        };
        // A batch without rows says that its half turned out to be absent.
        half.total = Some(if rows == 0 { 0 } else { total.or(half.total).unwrap_or(0) });
        let end = batch.offset.checked_add(rows).ok_or_else(|| {
            JobError::new(ErrorKind::Internal, format!("{} tokens from {} on", batch.modality, batch.offset))
        })?;
        half.seen.insert(batch.offset..end);
        Ok(())
    }

    /// Whether all tokens lie there.
    pub fn is_complete(&self) -> bool {
        self.image.is_complete() && self.audio.is_complete()
    }
}
