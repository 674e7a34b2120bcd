//! Load for one stage: synthetic messages like those of the stages before it, or recorded ones.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use compute::random::SplitMix64;
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
/// Bytes of a recording that are held in memory at most.
const MOST_BYTES: usize = 512 << 20;

/// Origin of the messages that a stage is given.
pub enum LoadSource<'a> {
    /// Messages of random content, as large as the model's: what a message costs does not depend on what it shows.
    Synthetic(&'a ModelConfig),
    /// The messages of a recording, over and over.
    Recorded(&'a RecordedLoad),
}

/// One message of the load, and the rows of the stage's output that it results in.
#[derive(Clone, Debug)]
pub struct LoadMessage {
    /// Job of the message; each pass through a recording has one of its own.
    pub job: JobId,
    /// `Nats-Msg-Id`.
    pub id: String,
    /// The body.
    pub body: Bytes,
    /// Modality of its rows.
    pub modality: Modality,
    /// First row of its output.
    pub start: u64,
    /// Rows of its output, at least one.
    pub rows: u64,
    /// Frames, windows or feature rows in it.
    pub items: u64,
}

impl LoadMessage {
    /// A batch as a message of the load; none if it results in no rows.
    fn of(output: &Output<'_>, id: String, body: Bytes) -> Option<LoadMessage> {
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
        (rows > 0).then(|| LoadMessage { job: output.job().clone(), id, body, modality, start, rows, items })
    }
}

/// Messages of a recording that one stage takes.
pub struct RecordedLoad {
    records: Vec<Record>,
}

impl RecordedLoad {
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
            ensure!(
                bytes <= MOST_BYTES,
                "{}: its messages for stage-{stage} exceed {MOST_BYTES} bytes",
                path.display()
            );
            records.push(record);
        }
        if let Some(loss) = reader.loss() {
            tracing::warn!(%loss, "recording is incomplete, using what there is");
        }
        ensure!(!records.is_empty(), "{}: the recording holds no message for stage-{stage}", path.display());
        Ok(RecordedLoad { records })
    }

    /// As many messages as asked for, each pass through the recording as a job of its own.
    fn pieces(&self, bus: &Bus, messages: u64, name: &str) -> anyhow::Result<Vec<LoadMessage>> {
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
                    pieces.extend(LoadMessage::of(&output(kind, &p.body)?, p.message_id, p.body.clone()));
                }
            }
            ensure!(pieces.len() > before, "the recording's messages for this stage result in no rows");
        }
        Ok(pieces)
    }
}

impl LoadSource<'_> {
    /// Messages for a stage, as many as asked for.
    ///
    /// # Errors
    /// A stage that is not measured alone; a recording of another wire version.
    pub fn pieces(&self, bus: &Bus, stage: StageName, messages: u64, name: &str) -> anyhow::Result<Vec<LoadMessage>> {
        match self {
            LoadSource::Recorded(taken) => taken.pieces(bus, messages, name),
            LoadSource::Synthetic(model) => (0..messages)
                .map(|i| {
                    let job = JobId::new(format!("bench-{name}"))?;
                    let output = synthetic(stage, model, &job, i, messages)?;
                    let mut bodies = output.encode(usize::MAX)?;
                    let (id, body) = bodies.pop().context("no message")?;
                    LoadMessage::of(&output, id, body.into()).context("a message without rows")
                })
                .collect(),
        }
    }
}

/// Synthetic message `i` of `messages`.
fn synthetic(
    stage: StageName,
    model: &ModelConfig,
    job: &JobId,
    i: u64,
    messages: u64,
) -> anyhow::Result<Output<'static>> {
    let grid = model.image_pool().grid();
    let image = ImagePlan::on(grid, 1, (messages * FRAMES_PER_MESSAGE).max(2));
    let per_frame = image.tokens_per_frame();
    let plan = |image, audio| MediaPlan { duration_s: 1.0, image, audio, ..MediaPlan::default() };
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
            let width = model.image_cell_width();
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

/// Pseudo-random bytes, the same every time.
fn noise(n: usize) -> Vec<u8> {
    let mut numbers = SplitMix64::new(0);
    (0..n).map(|_| numbers.next() as u8).collect()
}
