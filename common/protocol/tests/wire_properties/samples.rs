//! Messages of every type, arbitrary and valid.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::control::{ControlReply, ControlRequest};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{
    Answer, CancelledBy, Event, Finish, JobEvent, JobResult, Mode, ModelName, StageMemory, StageTiming,
};
use protocol::event::{Cached, Supported, TimeRange, TimedBox, Timings};
use protocol::message::{DecodeRequest, FeatureBatch, FrameBatch, JobId, JobRequest, Modality, PcmWindow, ProbeReply};
use protocol::message::{ProbeRequest, Segment, TokenBatch};
use protocol::plan::{AudioPlan, FRAME_BYTES, FRAME_SIDE, FrameGrid, ImagePlan, MediaInfo, MediaPlan, WINDOW_SAMPLES};
use protocol::report::{Done, Report};
use protocol::tensor::{Dtype, Tensor};

/// Bytes that differ from row to row.
pub fn noise(n: usize, seed: u64) -> Vec<u8> {
    (0..n as u64).map(|i| (i.wrapping_add(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

pub fn job() -> impl Strategy<Value = JobId> {
    "[A-Za-z0-9_-]{1,64}".prop_map(|id| JobId::new(id).unwrap())
}

fn seconds() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..1e6f64, Just(f64::MIN_POSITIVE)]
}

fn span() -> impl Strategy<Value = Option<[f64; 2]>> {
    prop::option::of((0.0..1e5f64, 0.001..1e5f64).prop_map(|(start, more)| [start, start + more]))
}

fn stage() -> impl Strategy<Value = StageName> {
    prop::sample::select(StageName::ALL.to_vec())
}

prop_compose! {
    pub fn plan()(
        content_id in "[a-z0-9:]{0,80}", duration_s in seconds(),
        image in prop::option::of((1u64..100, 2u64..2000, prop::option::of(2u32..=27))), replaced in prop::collection::btree_set(0u64..2, 0..3), samples in prop::option::of(3200u64..2_000_000),
        notes in prop::collection::vec("[a-z ]{0,80}", 0..4),
    ) -> MediaPlan {
        MediaPlan {
            content_id,
            duration_s,
            image: image.map(|(step, frames, side)| {
                let replaced = replaced.into_iter().collect();
                let grid = side.map_or(FrameGrid::Budget, FrameGrid::Fixed);
                ImagePlan { replaced, ..ImagePlan::on(grid, step, frames) }
            }),
            audio: samples.and_then(AudioPlan::new),
            notes,
        }
    }
}

prop_compose! {
    pub fn request()(
        job in job(), video in any::<String>(), task in "[a-z]{0,12}", query in any::<String>(), span in span(),
        fps in 0.001..1000f64, max_new_tokens in 1u32..=8192, (temperature, top_p) in (0.0..=10f64, 0.001..=1f64),
        seed in any::<u64>(), deadline_s in prop::option::of(0.001..1e6f64), priority in 0u8..=9,
        (several, parser, pad_s, join_s) in
            (prop::collection::vec(any::<String>(), 0..4), prop::option::of(any::<String>()), seconds(), seconds()),
    ) -> JobRequest {
        let (query, queries) = if several.is_empty() { (query, several) } else { (String::new(), several) };
        JobRequest {
            queries, parser, pad_s, join_s, span, fps, max_new_tokens, temperature, top_p, seed, deadline_s, priority, task,
            ..JobRequest::new(job, video, query)
        }
    }
}

prop_compose! {
    pub fn probe_request()(
        video in any::<String>(), again in any::<bool>(), at in prop::option::of(any::<String>()),
    ) -> ProbeRequest {
        ProbeRequest { v: 1, video, again, at }
    }
}

prop_compose! {
    fn info()(
        duration_s in seconds(), frames in any::<u64>(), avg_fps in 0.0..1000f64, width in any::<u32>(),
        height in any::<u32>(), quarter in 0u32..4, mirrored in any::<bool>(), has_audio in any::<bool>(), audio_samples in any::<u64>(),
        container in any::<String>(), codecs in prop::collection::vec(any::<String>(), 0..4), content_id in any::<String>(),
        notes in prop::collection::vec(any::<String>(), 0..4),
    ) -> MediaInfo {
        let rotation = 90 * quarter;
        MediaInfo {
            v: 1, duration_s, frames, avg_fps, width, height, rotation, mirrored, has_audio, audio_samples, container, codecs,
            content_id, notes,
        }
    }
}

prop_compose! {
    pub fn job_error()(
        kind in prop::sample::select(vec![
            ErrorKind::BadRequest, ErrorKind::MediaNotFound, ErrorKind::ForbiddenPath, ErrorKind::UnsupportedMedia,
            ErrorKind::TooShort, ErrorKind::DoesNotFit, ErrorKind::OutOfMemory, ErrorKind::Deadline,
            ErrorKind::PoisonMessage, ErrorKind::WorkerLost, ErrorKind::Model, ErrorKind::Internal,
        ]),
        stage in prop::option::of(stage()), message in any::<String>(), hint in any::<String>(),
        details in prop::collection::btree_map("[a-z]{1,8}", any::<u32>(), 0..4),
    ) -> JobError {
        let details = details.into_iter().map(|(k, v)| (k, v.into())).collect();
        JobError { kind, stage, message, hint, details }
    }
}

pub fn probe_reply() -> impl Strategy<Value = ProbeReply> {
    let working = (any::<String>(), any::<u64>(), any::<u64>());
    prop_oneof![
        info().prop_map(ProbeReply::Info),
        job_error().prop_map(|error| ProbeReply::Refused { error }),
        working.prop_map(|(working, read_bytes, size_bytes)| ProbeReply::Working { working, read_bytes, size_bytes }),
    ]
}

prop_compose! {
    pub fn decode_request()(
        job in job(), video in any::<String>(), span in span(), plan in plan(), at in prop::array::uniform4(any::<u64>()),
    ) -> DecodeRequest {
        let frames = plan.image.as_ref().map_or(0, |i| i.frames);
        let windows = plan.audio.as_ref().map_or(0, |a| a.windows);
        let (first_frame, first_window) = (at[0] % (frames + 1), at[1] % (windows + 1));
        let segment = Segment {
            first_frame,
            frames: at[2] % (frames - first_frame + 1),
            first_window,
            windows: at[3] % (windows - first_window + 1),
        };
        DecodeRequest { v: 1, job, video, span, plan, segment }
    }
}

fn ranges() -> impl Strategy<Value = Vec<TimeRange>> {
    let range = (seconds(), seconds(), prop::option::of(any::<String>()));
    prop::collection::vec(range.prop_map(|(start_s, end_s, title)| TimeRange { start_s, end_s, title }), 0..4)
}

fn boxes() -> impl Strategy<Value = Vec<TimedBox>> {
    let timed = (seconds(), seconds(), prop::array::uniform4(0.0..=1f64));
    prop::collection::vec(timed.prop_map(|(start_s, end_s, bbox)| TimedBox { start_s, end_s, bbox }), 0..4)
}

fn finish() -> impl Strategy<Value = Finish> {
    prop::sample::select(vec![Finish::Stop, Finish::Length])
}

prop_compose! {
    fn one_answer()(
        query in any::<String>(), text in any::<String>(), token_ids in prop::collection::vec(any::<u32>(), 0..40),
        finish in finish(), ranges in ranges(), boxes in boxes(), reason in prop::option::of(any::<String>()),
        resolution_s in prop::option::of(seconds()), reference_text in prop::option::of(any::<String>()),
    ) -> Answer {
        Answer { query, text, token_ids, finish, ranges, boxes, reason, resolution_s, reference_text }
    }
}

prop_compose! {
    fn timings()(
        stages in prop::collection::btree_map(
            stage(),
            (seconds(), seconds(), any::<u64>(), any::<u64>()).prop_map(|(busy_s, wait_s, first_at_ms, last_at_ms)| {
                StageTiming { busy_s, wait_s, first_at_ms, last_at_ms }
            }),
            0..5,
        ),
        s in seconds(),
    ) -> Timings {
        Timings { stages, first_token_s: s, tokens_per_s: s }
    }
}

fn cached() -> impl Strategy<Value = Cached> {
    prop::sample::select(vec![Cached::No, Cached::Memory, Cached::Disk])
}

prop_compose! {
    fn result()(
        answer in one_answer(), plan in plan(), cached in cached(), timings in timings(),
        memory in prop::collection::btree_map(stage(), (any::<u64>(), any::<u64>()), 0..5), task in "[a-z]{0,12}",
        supported in prop::option::of(prop::sample::select(vec![
            Supported::Trained, Supported::Composite, Supported::Experimental,
        ])),
        parser in "[a-z]{0,9}", pads in (seconds(), seconds()), notes in prop::collection::vec(any::<String>(), 0..3),
        answers in prop::collection::vec(one_answer(), 0..3),
    ) -> JobResult {
        let Answer { text, token_ids, finish, ranges, boxes, reason, resolution_s, reference_text, .. } = answer;
        let memory = memory.into_iter().map(|(stage, (peak_bytes, budget_bytes))| {
            (stage, StageMemory { peak_bytes, budget_bytes })
        });
        JobResult {
            text, token_ids, finish, ranges, plan, cached, timings, memory: memory.collect(),
            model: ModelName { name: "m".to_owned(), ..ModelName::default() },
            task, supported, parser, resolution_s, boxes, reason, reference_text, pad_s: pads.0, join_s: pads.1, notes,
            answers,
        }
    }
}

pub fn event() -> impl Strategy<Value = JobEvent> {
    let mode = prop::sample::select(vec![Mode::Streaming, Mode::Phases]);
    let by = prop::sample::select(vec![CancelledBy::Client, CancelledBy::Deadline, CancelledBy::Operator]);
    let event = prop_oneof![
        Just(Event::Accepted {}),
        any::<u64>().prop_map(|rank| Event::Queued { rank }),
        (plan(), mode, cached(), proptest::option::of(any::<u64>()))
            .prop_map(|(plan, mode, cached, pass_rows)| Event::Planned { plan, mode, cached, pass_rows }),
        (stage(), any::<u64>(), any::<u64>()).prop_map(|(stage, done, total)| Event::Progress { stage, done, total }),
        (any::<String>(), any::<u64>(), prop::option::of(any::<u32>())).prop_map(|(delta, at, question)| Event::Text {
            delta,
            at,
            question
        }),
        result().prop_map(|r| Event::Result(Box::new(r))),
        job_error().prop_map(|error| Event::Failed { error }),
        (by, prop::collection::vec(stage(), 0..5), any::<u64>())
            .prop_map(|(by, stages_stopped, ms)| Event::Cancelled { by, stages_stopped, ms }),
    ];
    (job(), any::<u64>(), any::<u64>(), event).prop_map(|(job, seq, at_ms, event)| JobEvent {
        v: 1,
        job,
        seq,
        at_ms,
        event,
    })
}

prop_compose! {
    pub fn control_request()(
        job in prop::option::of(job()), stage in prop::option::of(stage()), instance in prop::option::of(any::<String>()),
        device in prop::option::of(any::<String>()), ended in any::<bool>(),
    ) -> ControlRequest {
        ControlRequest { v: 1, job, stage, device, instance, ended }
    }
}

prop_compose! {
    pub fn control_reply()(
        stage in stage(), instance in any::<String>(), stopped in any::<bool>(), error in prop::option::of(any::<String>()),
    ) -> ControlReply {
        ControlReply { v: 1, stage, instance, stopped, error }
    }
}

prop_compose! {
    pub fn report()(
        stage in stage(), instance in any::<String>(), n in prop::array::uniform5(any::<u64>()),
        done in prop::collection::vec((modality(), any::<u64>(), any::<u64>()), 0..4),
    ) -> Report {
        let done = done.into_iter().map(|(modality, offset, rows)| Done { modality, offset, rows }).collect();
        let [busy_us, wait_us, at_ms, peak_bytes, budget_bytes] = n;
        Report { v: 1, stage, instance, done, busy_us, wait_us, at_ms, peak_bytes, budget_bytes }
    }
}

pub fn modality() -> impl Strategy<Value = Modality> {
    prop::sample::select(vec![Modality::Image, Modality::Audio])
}

/// Rows that a batch of a half may hold: some of them, from a multiple of `quantum` on, to one or to the end.
fn part(total: Option<u64>, at: u64, n: u64, quantum: u64, most: u64) -> (u64, u64) {
    let Some(total) = total else { return (0, 0) };
    let start = at % total / quantum * quantum;
    let whole = (1 + n % most.div_ceil(quantum)) * quantum;
    (start, whole.min(total - start))
}

fn floats(rows: u64, width: usize, dtype: Dtype, seed: u64) -> Tensor<'static> {
    let bytes = noise(rows as usize * width * dtype.size(), seed);
    Tensor::new(dtype, &[rows as usize, width], bytes).unwrap()
}

fn float_type() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16])
}

prop_compose! {
    /// A batch of up to `most` rows; none of an absent half.
    pub fn tokens(most: u64)(
        job in job(), plan in plan(), modality in modality(), at in any::<u64>(), n in any::<u64>(), width in 1usize..9,
        dtype in float_type(),
    ) -> TokenBatch<'static> {
        let total = match modality {
            Modality::Image => plan.image.as_ref().map(|i| i.tokens),
            Modality::Audio => plan.audio.as_ref().map(|a| a.tokens),
        };
        let (offset, rows) = part(total, at, n, 1, most);
        TokenBatch { v: 1, job, plan, modality, offset, tensor: floats(rows, width, dtype, at) }
    }
}

prop_compose! {
    /// A batch of up to `most` rows; none of an absent half.
    pub fn features(most: u64)(
        job in job(), plan in plan(), modality in modality(), at in any::<u64>(), n in any::<u64>(), width in 1usize..9,
        dtype in float_type(),
    ) -> FeatureBatch<'static> {
        let (total, quantum) = match modality {
            Modality::Image => (plan.image.as_ref().map(|i| i.tokens), 1),
            Modality::Audio => (plan.audio.as_ref().map(|a| a.rows), 5),
        };
        let (offset, rows) = part(total, at, n, quantum, most);
        FeatureBatch { v: 1, job, plan, modality, offset, tensor: floats(rows, width, dtype, at) }
    }
}

prop_compose! {
    /// A batch of up to `most` frames; none of an absent picture.
    pub fn frames(most: u64)(job in job(), plan in plan(), at in any::<u64>(), n in any::<u64>()) -> FrameBatch<'static> {
        let (offset, rows) = part(plan.image.as_ref().map(|i| i.frames), at, n, 1, most);
        let shape = [rows as usize, FRAME_SIDE, FRAME_SIDE, 3];
        let tensor = Tensor::new(Dtype::U8, &shape, noise(rows as usize * FRAME_BYTES, at)).unwrap();
        FrameBatch { v: 1, job, plan, offset, tensor }
    }
}

prop_compose! {
    /// A window of a sound of so many samples; the plan's own picture stays.
    pub fn window(samples: std::ops::Range<u64>)(
        job in job(), plan in plan(), samples in prop::option::weighted(0.9, samples), at in any::<u64>(),
    ) -> PcmWindow<'static> {
        let plan = MediaPlan { audio: samples.and_then(AudioPlan::new), ..plan };
        let index = plan.audio.as_ref().map_or(0, |a| at % a.windows);
        let samples = plan.audio.as_ref().map_or(0, |a| (a.samples - index * WINDOW_SAMPLES).min(WINDOW_SAMPLES));
        let tensor = Tensor::new(Dtype::I16, &[samples as usize], noise(2 * samples as usize, at)).unwrap();
        PcmWindow { v: 1, job, plan, index, tensor }
    }
}

/// Figures for an error, so that every kind of JSON value travels once.
pub fn details() -> BTreeMap<String, serde_json::Value> {
    let value =
        serde_json::json!({"n": -1, "x": 0.5, "s": "é", "b": true, "none": null, "list": [1, [2]], "map": {"k": 1}});
    BTreeMap::from([("all".to_owned(), value)])
}
