//! Tests of whole jobs, with a port that plays the rest of the pipeline.

use crate::fixture::{Batch, FakePort, HIDDEN, Model, info, random, request};
use candle_core::{DType, Tensor};
use protocol::error::{ErrorKind, StageName};
use protocol::event::{Cached, Event, Finish, JobResult, Mode};
use protocol::message::{JobRequest, Modality};
use protocol::stage::Stop;
use serde_json::json;
use stage_llm::job::answer::{LlmStage, Settings};

use Modality::{Audio, Image};

const FRAMES: u64 = 3;
const IMAGE: usize = 3 * 196;
const AUDIO: usize = 40;

fn image() -> Tensor {
    (random(&[IMAGE, HIDDEN], 1) * 0.05).unwrap()
}

fn audio() -> Tensor {
    (random(&[AUDIO, HIDDEN], 2) * 0.05).unwrap()
}

fn cut(modality: Modality, offset: usize, rows: usize) -> Batch {
    let whole = if modality == Image { image() } else { audio() };
    Batch::Rows(modality, offset as u64, whole.narrow(0, offset, rows).unwrap())
}

fn everything() -> Vec<Batch> {
    vec![cut(Audio, 0, AUDIO), cut(Image, 0, IMAGE)]
}

fn port() -> FakePort {
    FakePort::new(info(FRAMES, AUDIO as u64), everything())
}

fn stage() -> LlmStage {
    Model::new().stage(Settings::default()).unwrap()
}

fn answer(request: &JobRequest, port: &mut FakePort) -> Result<JobResult, Stop> {
    stage().answer(request, port)
}

fn failure(outcome: Result<JobResult, Stop>) -> protocol::error::JobError {
    match outcome {
        Err(Stop::Failed(error)) => error,
        other => panic!("{other:?} is no failure"),
    }
}

#[test]
fn a_job_is_planned_asked_for_taken_and_answered() {
    let mut port = port();
    let result = answer(&request("a cat", 6), &mut port).unwrap();
    let Event::Planned { plan, mode: Mode::Streaming, cached: Cached::No, pass_rows: Some(4096) } = &port.events[0]
    else {
        panic!("{:?}", port.events[0])
    };
    assert_eq!(plan.image.as_ref().unwrap().tokens, IMAGE as u64);
    let asked = port.requested.as_ref().unwrap();
    assert_eq!((asked.segment.frames, asked.segment.windows), (FRAMES, 1));
    assert_eq!((result.token_ids.len(), result.finish), (6, Finish::Length));
    assert_eq!(result.plan, *plan);
    assert_eq!(port.text().trim(), result.text);
    let progress: Vec<(u64, u64)> = port
        .events
        .iter()
        .filter_map(|e| {
            if let Event::Progress { stage: StageName::Llm, done, total } = e { Some((*done, *total)) } else { None }
        })
        .collect();
    assert!(progress.len() >= 2 && progress.is_sorted(), "{progress:?}");
    let &(done, total) = progress.last().unwrap();
    assert!(done == total && total > (IMAGE + AUDIO) as u64, "{progress:?}");
    assert!(result.timings.first_token_s > 0.0 && result.timings.tokens_per_s > 0.0);
    assert!(result.timings.stages[&StageName::Llm].busy_s > 0.0);
    assert_eq!(result.model.dtype, "f32");
}

#[test]
fn order_cuts_and_repetition_of_batches_do_not_change_the_answer() {
    let expected = answer(&request("a cat", 12), &mut port()).unwrap();
    let orders: [Vec<Batch>; 2] = [
        vec![cut(Image, 500, IMAGE - 500), cut(Audio, 39, 1), cut(Image, 0, 500), cut(Audio, 0, 39)],
        vec![
            cut(Image, 100, 200),
            cut(Image, 100, 200),
            cut(Audio, 0, 30),
            cut(Image, 0, 400),
            cut(Audio, 10, 30),
            cut(Audio, 0, AUDIO),
            cut(Image, 300, IMAGE - 300),
        ],
    ];
    let model = Model::new();
    for (batches, chunk_rows) in orders.into_iter().chain([everything()]).zip([4096, 64, 7]) {
        let mut settings = Settings::default();
        settings.llm.chunk_rows = chunk_rows;
        let mut port = FakePort::new(info(FRAMES, AUDIO as u64), batches);
        let got = model.stage(settings).unwrap().answer(&request("a cat", 12), &mut port).unwrap();
        assert_eq!((got.token_ids, got.text), (expected.token_ids.clone(), expected.text.clone()));
        assert!(port.batches.is_empty());
    }
}

#[test]
fn an_end_token_ends_the_answer_and_is_part_of_its_ids() {
    let ids = answer(&request("a cat", 12), &mut port()).unwrap().token_ids;
    let at = ids.iter().position(|&id| id == ids[4]).unwrap();
    let mut settings = Settings::default();
    settings.llm.end_tokens = Some(vec![106, ids[4]]);
    let result = Model::new().stage(settings).unwrap().answer(&request("a cat", 12), &mut port()).unwrap();
    assert_eq!((result.token_ids.as_slice(), result.finish), (&ids[..=at], Finish::Stop));
}

#[test]
fn a_seed_gives_the_same_answer_again() {
    let mut asked = request("a cat", 12);
    (asked.temperature, asked.seed) = (2.0, 11);
    let first = answer(&asked, &mut port()).unwrap().token_ids;
    assert_eq!(first, answer(&asked, &mut port()).unwrap().token_ids);
    asked.seed = 12;
    assert_ne!(first, answer(&asked, &mut port()).unwrap().token_ids);
}

#[test]
fn a_request_that_cannot_be_answered_is_refused_before_anything_is_probed() {
    let mut other = request("a cat", 6);
    other.task = "summaries".to_owned();
    for asked in [other, request("", 6), request(&"x".repeat(100_000), 6)] {
        let mut port = port();
        let error = failure(answer(&asked, &mut port));
        assert_eq!((error.kind, error.stage, port.probes), (ErrorKind::BadRequest, Some(StageName::Llm), 0));
    }
}

#[test]
fn a_job_that_fits_only_without_the_encoders_is_answered_in_phases_and_alike() {
    let model = Model::new();
    let footprint = *model.stage(Settings::default()).unwrap().footprint();
    let with = |tokens: u64| footprint.fixed.bytes() + tokens * footprint.text_token_bytes;
    let mut settings = Settings { budget_bytes: Some(with(100)), ..Settings::default() };
    settings.compute.card_bytes = Some(with(638 + 512));
    let mut in_phases = port();
    let got = model.stage(settings.clone()).unwrap().answer(&request("a cat", 6), &mut in_phases).unwrap();
    let mut streamed = port();
    let want = model.stage(Settings::default()).unwrap().answer(&request("a cat", 6), &mut streamed).unwrap();
    assert_eq!((got.token_ids, got.plan), (want.token_ids, want.plan));
    assert_eq!((in_phases.gpu, streamed.gpu), (vec!["take", "return"], vec![]));
    let mode =
        |port: &[Event]| port.iter().find_map(|e| if let Event::Planned { mode, .. } = e { Some(*mode) } else { None });
    assert_eq!((mode(&in_phases.events), mode(&streamed.events)), (Some(Mode::Phases), Some(Mode::Streaming)));
    // Where the whole GPU does not hold it either, the job is refused with the GPU's figures.
    settings.compute.card_bytes = Some(with(600));
    let error = failure(model.stage(settings).unwrap().answer(&request("a cat", 6), &mut port()));
    assert_eq!((error.kind, &error.details["budget_bytes"]), (ErrorKind::DoesNotFit, &with(600).into()));
}

#[test]
fn a_job_that_does_not_fit_is_refused_with_the_figures_before_decoding_is_asked_for() {
    let model = Model::new();
    let footprint = *model.stage(Settings::default()).unwrap().footprint();
    let resident = footprint.fixed.bytes();
    let with = |tokens: u64| Settings {
        budget_bytes: Some(resident + tokens * footprint.text_token_bytes),
        ..Settings::default()
    };
    // 588 image tokens, 40 audio tokens and 10 for a second of margin, and the text.
    let mut wide = model.stage(with(638 + 512)).unwrap();
    assert!(wide.answer(&request("a cat", 6), &mut port()).is_ok());
    let mut port = port();
    let error = failure(model.stage(with(638)).unwrap().answer(&request("a cat", 6), &mut port));
    assert_eq!(error.kind, ErrorKind::DoesNotFit);
    assert_eq!(error.details["image_tokens"], 588);
    assert_eq!(error.details["audio_tokens"], 50);
    assert_eq!(error.details["available_bytes"], 638 * footprint.text_token_bytes);
    assert!(error.details["needed_bytes"].as_u64() > error.details["available_bytes"].as_u64());
    assert!(port.requested.is_none() && port.events.is_empty());
    let small = Settings { budget_bytes: Some(resident - 1), ..Settings::default() };
    assert_eq!(model.stage(small).err().unwrap().kind, ErrorKind::DoesNotFit);
}

#[test]
fn the_sound_counts_as_its_first_batch_says_not_as_the_container_said() {
    let mut exact = info(FRAMES, AUDIO as u64);
    let expected = answer(&request("a cat", 6), &mut port()).unwrap();
    exact.audio_samples += 5 * 1600;
    let mut port = FakePort::new(exact, everything());
    let settled =
        protocol::plan::MediaPlan::new(&info(FRAMES, AUDIO as u64), None, 1.0, protocol::plan::FrameGrid::default())
            .unwrap();
    port.plan = Some(settled.clone());
    let result = answer(&request("a cat", 6), &mut port).unwrap();
    assert_eq!(result.plan.audio, settled.audio);
    assert_eq!(result.token_ids, expected.token_ids);
}

#[test]
fn an_absent_modality_takes_no_part_and_two_absent_modalities_are_an_error() {
    let mut silent = FakePort::new(info(FRAMES, 0), [cut(Image, 0, IMAGE)]);
    let mut absent = FakePort::new(info(FRAMES, AUDIO as u64), [Batch::Absent(Audio), cut(Image, 0, IMAGE)]);
    let a = answer(&request("a cat", 6), &mut silent).unwrap();
    let b = answer(&request("a cat", 6), &mut absent).unwrap();
    assert_eq!(a.token_ids, b.token_ids);
    assert!(b.plan.audio.is_none());
    assert_ne!(a.token_ids, answer(&request("a cat", 6), &mut port()).unwrap().token_ids);

    let mut black = FakePort::new(info(FRAMES, AUDIO as u64), [cut(Audio, 0, AUDIO), Batch::Absent(Image)]);
    let result = answer(&request("a cat", 6), &mut black).unwrap();
    assert!(result.plan.image.is_none() && result.plan.audio.is_some());

    let mut nothing = FakePort::new(info(FRAMES, AUDIO as u64), [Batch::Absent(Audio), Batch::Absent(Image)]);
    assert_eq!(failure(answer(&request("a cat", 6), &mut nothing)).kind, ErrorKind::UnsupportedMedia);
}

#[test]
fn tokens_of_another_width_or_dtype_are_a_mismatch_of_models() {
    let narrow = Batch::Rows(Image, 0, random(&[IMAGE, HIDDEN / 2], 1));
    let half = Batch::Rows(Image, 0, image().to_dtype(DType::F16).unwrap());
    for batch in [narrow, half] {
        let mut port = FakePort::new(info(FRAMES, 0), [batch]);
        assert_eq!(failure(answer(&request("a cat", 6), &mut port)).kind, ErrorKind::Model);
    }
}

#[test]
fn tokens_beyond_the_plan_are_refused() {
    let mut port = FakePort::new(info(FRAMES, 0), [Batch::Rows(Image, 1, image())]);
    assert_eq!(failure(answer(&request("a cat", 6), &mut port)).kind, ErrorKind::Internal);
}

#[test]
fn a_cancelled_job_stops_between_chunks_and_between_tokens() {
    let mut settings = Settings::default();
    // An answer that only its limit ends.
    settings.llm.end_tokens = Some(Vec::new());
    for events in [1, 4] {
        let mut port = port();
        port.cancel_after = events;
        let mut stage = Model::new().stage(settings.clone()).unwrap();
        assert_eq!(stage.answer(&request("a cat", 500), &mut port).unwrap_err(), Stop::Cancelled);
        assert!(port.events.len() <= events + 1);
    }
}

#[test]
fn a_span_is_planned_and_asked_for_alone() {
    let mut asked = request("a cat", 6);
    asked.span = Some([10.0, 13.0]);
    let mut info = info(100, 0);
    info.duration_s = 100.0;
    let mut port = FakePort::new(info, [cut(Image, 0, IMAGE)]);
    let result = answer(&asked, &mut port).unwrap();
    assert_eq!(result.plan.duration_s, 3.0);
    assert_eq!(port.requested.unwrap().span, Some([10.0, 13.0]));
}

#[test]
fn weights_that_are_no_numbers_fail_the_job_and_not_the_stage() {
    let damaged =
        Model::with(json!({}), |name, t| if name == "model.norm.weight" { Some((t? * f64::NAN).unwrap()) } else { t });
    let mut stage = damaged.stage(Settings::default()).unwrap();
    for _ in 0..2 {
        assert_eq!(failure(stage.answer(&request("a cat", 6), &mut port())).kind, ErrorKind::Model);
    }
}
