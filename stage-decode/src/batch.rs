//! Messages of decoded rows: frames in batches, audio in windows, and an empty message for an absent modality.

use protocol::message::{DecodeRequest, FrameBatch, JobId, Output, PcmWindow};
use protocol::plan::{AudioPlan, FRAME_BYTES, FRAME_SIDE, MediaPlan, frames_together};
use protocol::stage::{Port, Stop};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire::VERSION;

use crate::video::Frame;

/// Batches of frames under construction.
///
/// A video that is zero in every byte counts as absent (MODEL.md, "Decisions"). So the zero frames at the start of a whole
/// video are only counted until another frame comes.
pub(crate) struct FrameBatches {
    job: JobId,
    plan: MediaPlan,
    /// Number of the first frame in `rows`.
    offset: u64,
    rows: Vec<u8>,
    batch_frames: usize,
    /// Number of zero frames held back; none once another frame has come.
    zeros: Option<u64>,
    /// Number of the next frame.
    next: u64,
    /// Numbers of the frames not yet sent that replace pictures that did not decode.
    replaced: Vec<u64>,
}

impl FrameBatches {
    pub(crate) fn new(request: &DecodeRequest, batch_frames: usize) -> Self {
        let planned = request.plan.image.as_ref().map_or(0, |i| i.frames);
        let whole = request.segment.first_frame == 0 && request.segment.frames == planned;
        FrameBatches {
            job: request.job.clone(),
            plan: MediaPlan { audio: None, ..request.plan.clone() },
            offset: request.segment.first_frame,
            rows: Vec::with_capacity(batch_frames * FRAME_BYTES),
            batch_frames,
            zeros: whole.then_some(0),
            next: request.segment.first_frame,
            replaced: Vec::new(),
        }
    }

    /// Takes the next frame.
    pub(crate) fn push(&mut self, frame: &Frame, port: &mut dyn Port) -> Result<(), Stop> {
        if frame.replaced {
            self.replaced.push(self.next);
        }
        self.next += 1;
        let frame = &frame.rgb;
        if let Some(zeros) = self.zeros {
            if frame.iter().all(|&b| b == 0) {
                self.zeros = Some(zeros + 1);
                return Ok(());
            }
            self.zeros = None;
            for _ in 0..zeros {
                self.gather(&[0; FRAME_BYTES], port)?;
            }
        }
        self.gather(frame, port)
    }

    fn gather(&mut self, frame: &[u8], port: &mut dyn Port) -> Result<(), Stop> {
        self.rows.extend_from_slice(frame);
        let together = frames_together(self.offset, self.batch_frames);
        if self.rows.len() == together * FRAME_BYTES { self.flush(port) } else { Ok(()) }
    }

    fn flush(&mut self, port: &mut dyn Port) -> Result<(), Stop> {
        let count = self.rows.len() / FRAME_BYTES;
        self.emit(count, port)?;
        self.offset += count as u64;
        self.rows.clear();
        Ok(())
    }

    fn emit(&mut self, count: usize, port: &mut dyn Port) -> Result<(), Stop> {
        if let Some(image) = &mut self.plan.image {
            let end = self.offset + count as u64;
            image.replaced = self.replaced.extract_if(.., |&mut frame| frame < end).collect();
        }
        let shape = [count, FRAME_SIDE, FRAME_SIDE, 3];
        port.emit(Output::Frames(FrameBatch {
            v: VERSION,
            job: self.job.clone(),
            plan: self.plan.clone(),
            offset: self.offset,
            tensor: Tensor::new(Dtype::U8, &shape, &self.rows[..])?,
        }))
    }

    /// Sends the remaining frames, or the message that the video is absent.
    pub(crate) fn finish(&mut self, port: &mut dyn Port) -> Result<(), Stop> {
        if self.zeros.is_some() {
            self.plan.image = None;
            return self.emit(0, port);
        }
        if self.rows.is_empty() { Ok(()) } else { self.flush(port) }
    }
}

/// Messages of audio windows, all with the exact plan.
pub(crate) struct Windows {
    job: JobId,
    plan: MediaPlan,
}

impl Windows {
    pub(crate) fn new(request: &DecodeRequest) -> Self {
        Windows { job: request.job.clone(), plan: MediaPlan { image: None, ..request.plan.clone() } }
    }

    /// Sets the exact plan.
    pub(crate) fn settle(&mut self, plan: Option<AudioPlan>) {
        self.plan.audio = plan;
    }

    /// Sends one window of little-endian samples, or an empty one for absent audio.
    pub(crate) fn emit(&self, index: u64, pcm: &[u8], port: &mut dyn Port) -> Result<(), Stop> {
        port.emit(Output::Pcm(PcmWindow {
            v: VERSION,
            job: self.job.clone(),
            plan: self.plan.clone(),
            index,
            tensor: Tensor::new(Dtype::I16, &[pcm.len() / 2], pcm)?,
        }))
    }
}
