//! The stage: batches of frames in, for each its token cells out.

use candle_core::{Device, Result, Tensor};
use compute::failure::Failure;
use compute::transfer::{later, upload};
use protocol::error::StageName;
use protocol::message::{FeatureBatch, FrameBatch, Modality, Output};
use protocol::plan::MediaPlan;
use protocol::stage::{Port, Stage, Stop, Work};

use crate::pool::Pool;
use crate::siglip::SiglipEncoder;

/// Runs the tower on a few frames at a time.
pub struct VisionStage {
    encoder: SiglipEncoder,
    pool: Pool,
    /// Frames that pass the tower together; it bounds the memory of activations.
    batch: usize,
}

/// Message whose frames pass the tower, perhaps in several passes.
struct Seen<'w> {
    /// Place among the messages that came together.
    at: usize,
    input: FrameBatch<'w>,
    port: &'w mut dyn Port,
    /// Cells a side of a frame's grid.
    side: usize,
    /// Frames that have passed the tower.
    passed: usize,
    parts: Vec<Tensor>, // [n*side*side, W] each
}

impl Seen<'_> {
    fn left(&self) -> usize {
        self.input.tensor.rows() - self.passed
    }

    /// Emits the cells of all frames as one batch.
    fn emit(self) -> std::result::Result<(), Stop> {
        let cells = Tensor::cat(&self.parts, 0).map_err(Failure)?; // [n*h*w, W]
        let offset = self.input.offset * self.input.plan.image.as_ref().map_or(0, |image| image.tokens_per_frame());
        emit(&cells, offset, self.input, self.port)
    }
}

impl VisionStage {
    /// A stage that runs `batch` frames through the tower together, at least one.
    pub fn new(encoder: SiglipEncoder, pool: Pool, batch: usize) -> Self {
        VisionStage { encoder, pool, batch: batch.max(1) }
    }

    /// Begins with a message; none for one without a picture, which is done.
    fn begin<'w>(
        &self,
        at: usize,
        Work { input, port }: Work<'w, FrameBatch<'w>>,
    ) -> std::result::Result<Option<Seen<'w>>, Stop> {
        let Some(image) = &input.plan.image else {
            let none = (0, self.pool.width());
            let none = Tensor::zeros(none, self.encoder.dtype(), &Device::Cpu).map_err(Failure)?;
            return emit(&none, 0, input, port).map(|()| None);
        };
        image.expect(self.pool.grid())?;
        let side = image.grid[0] as usize;
        Ok(Some(Seen { at, input, port, side, passed: 0, parts: Vec::new() }))
    }

    /// Passes the next frames of messages through the tower together, so many of each, and keeps the cells of each.
    fn pass(&self, pass: &mut [(&mut Seen<'_>, usize)]) -> Result<()> {
        let device = self.encoder.device();
        let frames = pass.iter().map(|(seen, n)| upload(&seen.input.tensor.narrow(seen.passed, *n), device));
        let frames = frames.collect::<Result<Vec<_>>>()?;
        let frames = Tensor::cat(&frames, 0)?; // [n, 384, 384, 3]
        let features = self.encoder.forward(&frames, &mut |_, _| ())?; // [n, 729, C]
        let mut first = 0;
        for (seen, n) in pass {
            let cells = self.pool.cells(&features.narrow(0, first, *n)?, seen.side)?; // [n, side*side, W]
            seen.parts.push(cells.flatten_to(1)?);
            seen.passed += *n;
            first += *n;
        }
        Ok(())
    }
}

/// Hands on the cells of a message's frames.
fn emit(cells: &Tensor, offset: u64, input: FrameBatch<'_>, port: &mut dyn Port) -> std::result::Result<(), Stop> {
    let (v, job, plan) = (input.v, input.job, MediaPlan { audio: None, ..input.plan });
    let modality = Modality::Image;
    port.emit_later(later(cells, move |tensor| {
        Output::Features(FeatureBatch { v, job, plan, modality, offset, tensor })
    })?)
}

impl Stage for VisionStage {
    const NAME: StageName = StageName::Vision;
    type Input<'a> = FrameBatch<'a>;

    fn units(input: &FrameBatch<'_>) -> u64 {
        input.tensor.rows() as u64
    }

    fn together(&self) -> u64 {
        self.batch as u64
    }

    fn process(&mut self, input: FrameBatch<'_>, port: &mut dyn Port) -> std::result::Result<(), Stop> {
        self.process_together(vec![Work { input, port }]).into_iter().collect()
    }

    /// One batch of features per batch of frames, however many passes of the tower it takes, and whatever else is in them: what
    /// a message comes to must not depend on this worker's settings, nor on what waits beside it, or a redelivery elsewhere would
    /// cut the same rows differently.
    fn process_together<'a>(&mut self, works: Vec<Work<'a, FrameBatch<'a>>>) -> Vec<std::result::Result<(), Stop>> {
        let mut outcomes = vec![Ok(()); works.len()];
        let mut waiting = Vec::new();
        for (at, work) in works.into_iter().enumerate() {
            match self.begin(at, work) {
                Ok(seen) => waiting.extend(seen),
                Err(stop) => outcomes[at] = Err(stop),
            }
        }
        while !waiting.is_empty() {
            let (mut pass, mut room, mut rest) = (Vec::new(), self.batch, Vec::new());
            for seen in waiting {
                if room == 0 && seen.left() > 0 {
                    rest.push(seen);
                } else if seen.port.cancelled() {
                    outcomes[seen.at] = Err(Stop::Cancelled);
                } else {
                    let n = seen.left().min(room);
                    room -= n;
                    pass.push((seen, n));
                }
            }
            let mut members: Vec<_> = pass.iter_mut().map(|(seen, n)| (seen, *n)).collect();
            let passed = if members.is_empty() { Ok(()) } else { self.pass(&mut members) };
            let passed = passed.map_err(|e| Stop::from(Failure(e)));
            // Those that go on are first in the next pass.
            waiting = Vec::new();
            for (seen, _) in pass {
                let at = seen.at;
                match &passed {
                    Err(stop) => outcomes[at] = Err(stop.clone()),
                    Ok(()) if seen.left() > 0 => waiting.push(seen),
                    Ok(()) => outcomes[at] = seen.emit(),
                }
            }
            waiting.append(&mut rest);
        }
        outcomes
    }
}
