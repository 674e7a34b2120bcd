//! Messages for one stage: made up as the stages before it send them, or recorded.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use model::config_json::ModelConfig;
use protocol::error::StageName;
use protocol::message::{FeatureBatch, FrameBatch, JobId, Modality, Output, PcmWindow};
use protocol::plan::{
    AUDIO_POOL, AudioPlan, FRAME_BYTES, FRAME_SIDE, ImagePlan, MediaPlan, WINDOW_ROWS, WINDOW_SAMPLES,
};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire;
use runtime::bus::Bus;
use runtime::bus::events::now_ms;

use crate::recording::publication::{output, publications};
use crate::recording::{Kind, Reader, Record};

/// Frames of one message: two fit the default `max_payload` of 1 MB.
const FRAMES_PER_MESSAGE: u64 = 2;
/// More of a recording is not held in memory.
const MOST_BYTES: usize = 512 << 20;

/// What a stage is given.
pub enum Source<'a> {
    /// Messages of random content, as large as the model's: what a message costs does not depend on what it shows.
    Made(&'a ModelConfig),
    /// The messages of a recording, over and over.
    Recorded(&'a Taken),
}

/// One message, and which rows of the stage's output come of it.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Whose; passes of a recording have a job each.
    pub job: JobId,
    /// `Nats-Msg-Id`.
    pub id: String,
    /// The body.
    pub body: Bytes,
    /// Half of the plan.
    pub modality: Modality,
    /// First row of its output.
    pub start: u64,
    /// Rows of its output, at least one.
    pub rows: u64,
    /// Frames, windows or feature rows in it.
    pub items: u64,
}

impl Piece {
    /// A batch as a piece; none if no rows come of it.
    fn of(output: &Output<'_>, id: String, body: Bytes) -> Option<Piece> {
        let (modality, start, rows, items) = match output {
            Output::Frames(m) => {
                let (n, each) = (m.tensor.rows() as u64, m.plan.image.as_ref()?.tokens_per_frame());
                (Modality::Image, m.offset * each, n * each, n)
            }
            Output::Pcm(m) => (Modality::Audio, m.index * WINDOW_ROWS, m.plan.audio.as_ref()?.window_rows(m.index), 1),
            Output::Features(m) => {
                let n = m.tensor.rows() as u64;
                match m.modality {
                    Modality::Image => m.plan.image.as_ref().map(|_| (Modality::Image, m.offset, n, n))?,
                    Modality::Audio => {
                        let whole = (Modality::Audio, m.offset / AUDIO_POOL, n / AUDIO_POOL, n);
                        m.plan.audio.as_ref().map(|_| whole)?
                    }
                }
            }
            Output::Tokens(_) => return None,
        };
        (rows > 0).then(|| Piece { job: output.job().clone(), id, body, modality, start, rows, items })
    }
}

/// What a recording holds for one stage.
pub struct Taken {
    records: Vec<Record>,
}

impl Taken {
    /// Reads the messages that `stage` takes.
    ///
    /// # Errors
    /// A file that cannot be read, or holds nothing for this stage.
    pub fn open(path: &Path, stage: StageName) -> anyhow::Result<Self> {
        let mut reader = Reader::open(path)?;
        let mut bytes = 0;
        let mut records = Vec::new();
        for record in reader.by_ref().filter(|r| r.kind().and_then(Kind::taken_by) == Some(stage)) {
            bytes += record.body.len();
            ensure!(bytes <= MOST_BYTES, "{}: more than {MOST_BYTES} bytes for stage-{stage}", path.display());
            records.push(record);
        }
        if let Some(loss) = reader.loss() {
            tracing::warn!(%loss, "recording is not whole");
        }
        ensure!(!records.is_empty(), "{}: no message for stage-{stage} in it", path.display());
        Ok(Taken { records })
    }

    /// As many messages as asked for, each pass through the recording as a job of its own.
    fn pieces(&self, bus: &Bus, messages: u64, name: &str) -> anyhow::Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for pass in 0.. {
            let before = pieces.len();
            let job = JobId::new(format!("bench-{name}-{}-{pass}", now_ms()))?;
            for record in &self.records {
                let Some(kind) = record.kind() else { continue };
                for p in publications(record, bus.subjects(), Some(&job), bus.max_body())? {
                    if pieces.len() as u64 == messages {
                        return Ok(pieces);
                    }
                    pieces.extend(Piece::of(&output(kind, &p.body)?, p.message_id, p.body.clone()));
                }
            }
            ensure!(pieces.len() > before, "the recording's messages for this stage carry no rows");
        }
        Ok(pieces)
    }
}

impl Source<'_> {
    /// That many messages for a stage.
    ///
    /// # Errors
    /// A stage that is not measured alone; a recording of another wire version.
    pub fn pieces(&self, bus: &Bus, stage: StageName, messages: u64, name: &str) -> anyhow::Result<Vec<Piece>> {
        match self {
            Source::Recorded(taken) => taken.pieces(bus, messages, name),
            Source::Made(model) => (0..messages)
                .map(|i| {
                    let job = JobId::new(format!("bench-{name}"))?;
                    let output = made(stage, model, &job, i, messages)?;
                    let mut bodies = output.encode(usize::MAX)?;
                    let (id, body) = bodies.pop().context("no message")?;
                    Piece::of(&output, id, body.into()).context("a message without rows")
                })
                .collect(),
        }
    }
}

/// Message `i` of `messages`, with random content.
fn made(stage: StageName, model: &ModelConfig, job: &JobId, i: u64, messages: u64) -> anyhow::Result<Output<'static>> {
    let image = ImagePlan::new(1, (messages * FRAMES_PER_MESSAGE).max(2));
    let per_frame = image.tokens_per_frame();
    let plan = |image, audio| MediaPlan { content_id: String::new(), duration_s: 1.0, image, audio };
    let (v, job) = (wire::VERSION, job.clone());
    Ok(match stage {
        StageName::Vision => {
            let n = FRAMES_PER_MESSAGE;
            let tensor =
                Tensor::new(Dtype::U8, &[n as usize, FRAME_SIDE, FRAME_SIDE, 3], noise(n as usize * FRAME_BYTES))?;
            Output::Frames(FrameBatch { v, job, plan: plan(Some(image), None), offset: i * n, tensor })
        }
        StageName::Audio => {
            let audio = AudioPlan::new(messages * WINDOW_SAMPLES).context("no windows")?;
            let samples: Vec<i16> = noise(WINDOW_SAMPLES as usize).iter().map(|&b| i16::from(b) - 128).collect();
            Output::Pcm(PcmWindow {
                v,
                job,
                plan: plan(None, Some(audio)),
                index: i,
                tensor: Tensor::from_i16(&samples),
            })
        }
        StageName::Fuse => {
            let n = FRAMES_PER_MESSAGE * per_frame;
            let width = 4 * model.vision.hidden_size;
            let values = noise(n as usize * width).into_iter().flat_map(|b| (f32::from(b) / 128.0 - 1.0).to_le_bytes());
            let tensor = Tensor::new(Dtype::F32, &[n as usize, width], values.collect::<Vec<u8>>())?;
            let plan = plan(Some(image), None);
            Output::Features(FeatureBatch { v, job, plan, modality: Modality::Image, offset: i * n, tensor })
        }
        StageName::Decode | StageName::Llm => {
            bail!("stage-{stage} works on whole jobs: measure it with `vidi bench --pipeline`")
        }
    })
}

/// Bytes that look random and are the same every time.
fn noise(n: usize) -> Vec<u8> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
