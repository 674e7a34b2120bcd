//! Tests of the second question about a video: answered from what the first one left, or as if there had been no first
//! one.

use crate::fixture::{Batch, FakePort, HIDDEN, Model, info, random, request};
use candle_core::Tensor;
use protocol::error::ErrorKind;
use protocol::event::{Cached, Event, JobResult, Mode};
use protocol::message::{JobRequest, Modality};
use protocol::plan::{FrameGrid, MediaInfo, MediaPlan};
use protocol::stage::Stop;
use stage_llm::job::answer::{LlmStage, Settings};

use Cached::{Memory, No};
use Modality::{Audio, Image};

const FRAMES: u64 = 3;
const IMAGE: usize = 3 * 196;
const AUDIO: usize = 40;

fn file() -> MediaInfo {
    info(FRAMES, AUDIO as u64)
}

fn tokens(rows: usize, seed: u64) -> Tensor {
    (random(&[rows, HIDDEN], seed) * 0.05).unwrap()
}

/// Rest of the pipeline for a file whose content is that of `seed`.
fn port(file: MediaInfo, seed: u64) -> FakePort {
    let image =
        MediaPlan::new(&file, None, 1.0, FrameGrid::default()).map_or(IMAGE, |p| p.image.unwrap().tokens as usize);
    FakePort::new(file, [Batch::Rows(Audio, 0, tokens(AUDIO, seed + 1)), Batch::Rows(Image, 0, tokens(image, seed))])
}

fn stage() -> LlmStage {
    Model::new().stage(Settings::default()).unwrap()
}

fn fresh(request: &JobRequest) -> JobResult {
    stage().answer(request, &mut port(file(), 1)).unwrap()
}

/// Stage that has just answered about the file.
fn after_the_first() -> LlmStage {
    let mut stage = stage();
    stage.answer(&request("a cat", 6), &mut port(file(), 1)).unwrap();
    stage
}

fn planned(port: &FakePort) -> (&MediaPlan, Mode, Cached) {
    let find =
        |e| if let &Event::Planned { ref plan, mode, cached, .. } = e { Some((plan, mode, cached)) } else { None };
    port.events.iter().find_map(find).unwrap()
}

#[test]
fn a_second_question_asks_for_no_decoding_and_is_answered_as_a_fresh_stage_answers_it() {
    let mut stage = after_the_first();
    for asked in [request("a dog on the table", 12), request("a cat", 6)] {
        let mut again = FakePort::without_decoder(file());
        let got = stage.answer(&asked, &mut again).unwrap();
        let want = fresh(&asked);
        assert_eq!((&got.token_ids, &got.text, got.finish), (&want.token_ids, &want.text, want.finish));
        assert_eq!((&got.plan, got.cached, want.cached), (&want.plan, Memory, No));
        assert_eq!(again.probes, 1, "the file may have changed");
        assert_eq!(planned(&again), (&want.plan, Mode::Streaming, Memory));
        assert_eq!(again.text().trim(), got.text);
        let last = again.events.iter().rev().find_map(|e| match e {
            Event::Progress { done, total, .. } => Some((*done, *total)),
            _ => None,
        });
        assert!(last.is_some_and(|(done, total)| done == total && total > (IMAGE + AUDIO) as u64), "{last:?}");
    }
}

#[test]
fn the_plan_of_a_second_question_has_the_sound_as_it_was_decoded() {
    let mut container = file();
    container.audio_samples += 5 * 1600;
    let settled = MediaPlan::new(&file(), None, 1.0, FrameGrid::default()).unwrap();
    let mut stage = stage();
    let mut first = port(container.clone(), 1);
    first.plan = Some(settled.clone());
    stage.answer(&request("a cat", 6), &mut first).unwrap();
    let mut again = FakePort::without_decoder(container);
    let result = stage.answer(&request("a dog", 6), &mut again).unwrap();
    assert_eq!((&result.plan, planned(&again).0), (&settled, &settled));
}

#[test]
fn a_changed_file_another_span_and_another_rate_are_decoded_anew() {
    let changed = MediaInfo { content_id: "changed".to_owned(), ..file() };
    let longer = info(FRAMES + 1, AUDIO as u64);
    let nameless = MediaInfo { content_id: String::new(), ..file() };
    let cases = [
        (changed, request("a dog", 6)),
        (longer, request("a dog", 6)),
        (nameless, request("a dog", 6)),
        (file(), JobRequest { span: Some([0.0, 99.0]), ..request("a dog", 6) }),
        // One frame a second is what the file has: the same frames, asked for otherwise.
        (file(), JobRequest { fps: 0.9, ..request("a dog", 6) }),
    ];
    for (file, asked) in cases {
        let mut other = port(file.clone(), 5);
        other.plan = MediaPlan::new(&file, None, 1.0, FrameGrid::default()).ok();
        let result = after_the_first().answer(&asked, &mut other).unwrap();
        assert!(other.requested.is_some() && (result.cached, planned(&other).2) == (No, No), "{file:?} {asked:?}");
        let mut alone = port(file.clone(), 5);
        alone.plan = other.plan;
        assert_eq!(result.token_ids, stage().answer(&asked, &mut alone).unwrap().token_ids, "{file:?} {asked:?}");
    }
}

#[test]
fn a_file_that_is_gone_or_a_question_that_is_none_costs_nothing_that_was_kept() {
    struct Gone(FakePort);
    impl protocol::stage::JobPort for Gone {
        fn probe(&mut self, _: &str) -> Result<MediaInfo, Stop> {
            Err(Stop::Failed(protocol::error::JobError::new(ErrorKind::MediaNotFound, "gone")))
        }
        fn request_decode(&mut self, request: protocol::message::DecodeRequest) -> Result<(), Stop> {
            self.0.request_decode(request)
        }
        fn next_tokens(
            &mut self,
            take: &mut dyn FnMut(protocol::message::TokenBatch<'_>) -> Result<(), Stop>,
        ) -> Result<(), Stop> {
            self.0.next_tokens(take)
        }
        fn more_tokens(
            &mut self,
            take: &mut dyn FnMut(protocol::message::TokenBatch<'_>) -> Result<(), Stop>,
        ) -> Result<bool, Stop> {
            self.0.more_tokens(take)
        }
        fn rewind_tokens(&mut self) {}
        fn take_gpu(&mut self) -> Result<(), Stop> {
            Ok(())
        }
        fn return_gpu(&mut self) {}
        fn event(&mut self, event: Event) -> Result<(), Stop> {
            self.0.event(event)
        }
        fn cancelled(&self) -> bool {
            false
        }
    }
    let mut stage = after_the_first();
    let gone = stage.answer(&request("a dog", 6), &mut Gone(FakePort::without_decoder(file())));
    assert!(matches!(gone, Err(Stop::Failed(e)) if e.kind == ErrorKind::MediaNotFound));
    assert!(stage.answer(&request("", 6), &mut FakePort::without_decoder(file())).is_err());
    assert!(stage.answer(&request("a dog", 6), &mut FakePort::without_decoder(file())).unwrap().cached == Memory);
}

/// File of the same length with another content.
fn named(content_id: &str) -> MediaInfo {
    MediaInfo { content_id: content_id.to_owned(), ..file() }
}

/// Where a video was known already: of those that are, nobody decodes anything.
fn ask(stage: &mut LlmStage, content_id: &str, asked: &JobRequest) -> Cached {
    let seed = content_id.bytes().map(u64::from).sum::<u64>();
    let mut port = port(named(content_id), seed);
    let result = stage.answer(asked, &mut port).unwrap();
    assert_eq!((result.cached, result.cached == No), (planned(&port).2, port.requested.is_some()), "{content_id}");
    result.cached
}

#[test]
fn as_many_videos_are_kept_as_the_budget_holds_and_the_least_recently_used_goes_first() {
    // Three videos, a second of margin, and 512 tokens of text.
    let settings = Settings { budget_bytes: Some(with(3 * 628 + 10 + 512)), ..Settings::default() };
    let mut stage = Model::new().stage(settings).unwrap();
    let ask = |stage: &mut LlmStage, content_id: &str| {
        let mut asked = request("a cat", 6);
        asked.video = format!("{content_id}.mp4");
        ask(stage, content_id, &asked)
    };
    for content_id in ["a", "b", "c"] {
        assert_eq!(ask(&mut stage, content_id), No);
    }
    assert_eq!(["a", "d", "c", "a", "d"].map(|id| ask(&mut stage, id)), [Memory, No, Memory, Memory, Memory]);
    let names: Vec<String> = stage.kept().names().into_iter().map(|kept| kept.video).collect();
    assert_eq!(names, ["d.mp4", "a.mp4", "c.mp4"]);
    assert_eq!(ask(&mut stage, "b"), No);
    assert_eq!(["d", "a"].map(|id| ask(&mut stage, id)), [Memory; 2]);
}

#[test]
fn a_longer_answer_takes_no_more_kept_videos_than_it_must() {
    let settings = Settings { budget_bytes: Some(with(3 * 628 + 10 + 512)), ..Settings::default() };
    let mut stage = Model::new().stage(settings).unwrap();
    let short = request("a cat", 6);
    for content_id in ["a", "b", "c"] {
        ask(&mut stage, content_id, &short);
    }
    assert_eq!(ask(&mut stage, "c", &request("a cat", 700)), Memory);
    assert_eq!(["b", "c"].map(|id| ask(&mut stage, id, &short)), [Memory; 2]);
    assert_eq!(ask(&mut stage, "a", &short), No);
    // One that is refused takes none.
    let refused = stage.answer(&request("a cat", 9000), &mut FakePort::without_decoder(named("d")));
    assert!(matches!(refused, Err(Stop::Failed(e)) if e.kind == ErrorKind::DoesNotFit));
    assert_eq!(["b", "c", "a"].map(|id| ask(&mut stage, id, &short)), [Memory; 3]);
}

#[test]
fn kept_videos_go_before_a_job_is_refused_whose_sound_is_longer_than_its_container_said() {
    let asked = request("a cat", 400);
    let mut full = Model::new().stage(Settings { budget_bytes: Some(with(0)), ..Settings::default() }).unwrap();
    let refused = full.answer(&asked, &mut FakePort::without_decoder(file()));
    let Err(Stop::Failed(error)) = refused else { panic!("it fits into nothing") };
    let text = error.details["text_tokens"].as_u64().unwrap();
    // One video is kept; the other one fits beside it as its container has it, with 10 tokens of margin, and alone as it is.
    let settings = Settings { budget_bytes: Some(with(628 + 588 + 40 + 10 + text)), ..Settings::default() };
    let mut stage = Model::new().stage(settings).unwrap();
    ask(&mut stage, "a", &request("a cat", 6));
    let longer = info(FRAMES, 90);
    let mut port =
        FakePort::new(named("b"), [Batch::Rows(Audio, 0, tokens(90, 8)), Batch::Rows(Image, 0, tokens(IMAGE, 7))]);
    port.plan =
        MediaPlan::new(&MediaInfo { content_id: "b".to_owned(), ..longer }, None, 1.0, FrameGrid::default()).ok();
    let result = stage.answer(&asked, &mut port).unwrap();
    assert_eq!((result.cached, result.plan.audio.map(|audio| audio.tokens)), (No, Some(90)));
    assert_eq!(ask(&mut stage, "a", &request("a cat", 6)), No);
}

#[test]
fn whoever_keeps_no_video_decodes_it_for_every_question() {
    let mut settings = Settings::default();
    settings.llm.keep_video = false;
    let mut stage = Model::new().stage(settings).unwrap();
    for _ in 0..2 {
        let mut port = port(file(), 1);
        assert!(stage.answer(&request("a cat", 6), &mut port).unwrap().cached == No && port.requested.is_some());
    }
}

#[test]
fn a_job_cancelled_or_cut_off_while_it_writes_leaves_its_video_and_one_cut_off_before_leaves_none() {
    let mut settings = Settings::default();
    // An answer that only its limit ends.
    settings.llm.end_tokens = Some(Vec::new());
    let endless = || Model::new().stage(settings.clone()).unwrap();
    let whole = endless().answer(&request("a cat", 500), &mut port(file(), 1)).unwrap();
    for cancel_after in 0..8 {
        let mut stage = endless();
        let mut first = port(file(), 1);
        first.cancel_after = cancel_after;
        assert_eq!(stage.answer(&request("a cat", 500), &mut first).unwrap_err(), Stop::Cancelled);
        let all_came = first.batches.is_empty() && first.events.iter().any(|e| matches!(e, Event::Text { .. }));
        let mut again = port(file(), 1);
        let result = stage.answer(&request("a cat", 500), &mut again).unwrap();
        assert_eq!(result.token_ids, whole.token_ids, "cancelled after {cancel_after} events");
        assert_eq!(result.cached.is_known(), again.requested.is_none());
        assert!(!all_came || result.cached.is_known(), "what was complete was thrown away after {cancel_after} events");
    }
}

#[test]
fn a_job_that_failed_in_the_model_leaves_no_video_behind() {
    let damaged = Model::with(serde_json::json!({}), |name, t| {
        if name == "model.norm.weight" { Some((t? * f64::NAN).unwrap()) } else { t }
    });
    let mut stage = damaged.stage(Settings::default()).unwrap();
    for _ in 0..2 {
        let mut port = port(file(), 1);
        let outcome = stage.answer(&request("a cat", 6), &mut port);
        assert!(matches!(outcome, Err(Stop::Failed(e)) if e.kind == ErrorKind::Model));
        assert!(port.requested.is_some());
    }
}

/// Budget that holds so many tokens beside the model.
fn with(tokens: u64) -> u64 {
    let footprint = *stage().footprint();
    footprint.fixed.bytes() + tokens * footprint.text_token_bytes
}

#[test]
fn a_budget_that_holds_one_video_lets_the_last_one_go_and_answers_streaming() {
    let settings = Settings { budget_bytes: Some(with(638 + 512)), ..Settings::default() };
    let mut stage = Model::new().stage(settings).unwrap();
    for (content_id, seed) in [("a", 1), ("b", 5), ("a", 1)] {
        let mut port = port(MediaInfo { content_id: content_id.to_owned(), ..file() }, seed);
        let result = stage.answer(&request("a cat", 6), &mut port).unwrap();
        assert!(result.cached == No && planned(&port).1 == Mode::Streaming);
    }
    let again = stage.answer(
        &request("a dog", 6),
        &mut FakePort::without_decoder(MediaInfo { content_id: "a".to_owned(), ..file() }),
    );
    assert!(again.unwrap().cached == Memory);
}

#[test]
fn a_longer_answer_than_fits_beside_the_kept_video_is_refused_as_without_it() {
    let settings = Settings { budget_bytes: Some(with(638 + 512)), ..Settings::default() };
    let refusal = |stage: &mut LlmStage| match stage.answer(&request("a dog", 2000), &mut port(file(), 1)) {
        Err(Stop::Failed(error)) => error,
        other => panic!("{other:?}"),
    };
    let mut stage = Model::new().stage(settings.clone()).unwrap();
    stage.answer(&request("a cat", 6), &mut port(file(), 1)).unwrap();
    let after = refusal(&mut stage);
    assert_eq!(after, refusal(&mut Model::new().stage(settings).unwrap()));
    // It took nothing, so the video is still there.
    assert!(stage.answer(&request("a dog", 6), &mut FakePort::without_decoder(file())).unwrap().cached == Memory);
}

#[test]
fn after_a_job_in_phases_a_video_that_does_not_fit_beside_the_encoders_is_gone_before_they_come_back() {
    let mut settings = Settings { budget_bytes: Some(with(100)), ..Settings::default() };
    settings.compute.card_bytes = Some(with(638 + 512));
    let mut stage = Model::new().stage(settings).unwrap();
    for _ in 0..2 {
        let mut port = port(file(), 1);
        let result = stage.answer(&request("a cat", 6), &mut port).unwrap();
        assert!(result.cached == No && planned(&port).1 == Mode::Phases);
        assert_eq!(port.gpu, ["take", "return"]);
    }
}

#[test]
fn after_a_job_in_phases_a_video_that_fits_beside_the_encoders_serves_a_question_with_less_text() {
    // The video and a second of margin fit beside the encoders with 512 tokens of text, not with 600.
    let mut settings = Settings { budget_bytes: Some(with(638 + 512)), ..Settings::default() };
    settings.compute.card_bytes = Some(with(638 + 2048));
    let mut stage = Model::new().stage(settings).unwrap();
    let mut first = port(file(), 1);
    stage.answer(&request("a cat", 600), &mut first).unwrap();
    assert_eq!((planned(&first).1, first.gpu.len()), (Mode::Phases, 2));
    let mut again = FakePort::without_decoder(file());
    let result = stage.answer(&request("a cat", 6), &mut again).unwrap();
    assert!(result.cached == Memory && planned(&again).1 == Mode::Streaming && again.gpu.is_empty());
    assert_eq!(result.token_ids, fresh(&request("a cat", 6)).token_ids);
}
