//! Tests of jobs about one video that are answered together: each as it is alone, whenever it joins and whatever becomes of the
//! others.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fixture::{Batch, Desk, FakePort, HIDDEN, Model, info, random, request};
use candle_core::{DType, Tensor};
use protocol::error::{ErrorKind, StageName};
use protocol::event::{Cached, Event, Finish, JobResult, Mode};
use protocol::message::{JobId, JobRequest, Modality};
use protocol::plan::MediaInfo;
use protocol::stage::{Beside, KeptVideo, OwnedJob, Stop};
use stage_llm::job::answer::{LlmStage, Settings};
use stage_llm::job::steps::Pace;

use Modality::{Audio, Image};

const FRAMES: u64 = 12;
const IMAGE: usize = 12 * 196;
const AUDIO: usize = 24;

fn file() -> MediaInfo {
    MediaInfo { duration_s: 24.0, avg_fps: 0.5, ..info(FRAMES, AUDIO as u64) }
}

/// Rest of the pipeline for the file: two shots of 6 frames, and sound.
fn port(dtype: DType) -> FakePort {
    let frame = |seed| (random(&[196, HIDDEN], seed) * 0.05).unwrap();
    let frames: Vec<Tensor> = (0..FRAMES).map(|n| frame(if n < 6 { 1 } else { 2 })).collect();
    let sound = (random(&[AUDIO, HIDDEN], 9) * 0.05).unwrap();
    let rows = |modality, rows: Tensor| Batch::Rows(modality, 0, rows.to_dtype(dtype).unwrap());
    FakePort::new(file(), [rows(Audio, sound), rows(Image, Tensor::cat(&frames, 0).unwrap())])
}

/// Settings with which only their limit ends answers: they are all of the length that is asked for, and differ.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.llm.end_tokens = Some(Vec::new());
    settings
}

/// Stage that keeps the video.
fn stage_with(settings: Settings, dtype: DType) -> LlmStage {
    let mut stage = Model::new().stage_in(dtype, settings).unwrap();
    stage.answer(&request("a cat", 1), &mut port(dtype)).unwrap();
    stage
}

fn stage() -> LlmStage {
    stage_with(settings(), DType::F32)
}

/// Request of that name, of one question to describe something.
fn qa(job: &str, query: &str, max_new_tokens: u32) -> JobRequest {
    named(job, JobRequest { task: "qa".to_owned(), ..request(query, max_new_tokens) })
}

fn named(job: &str, request: JobRequest) -> JobRequest {
    JobRequest { job: JobId::new(job).unwrap(), ..request }
}

/// Jobs of every kind: one question, one that is sampled, several, and a composite one.
fn kinds() -> [JobRequest; 4] {
    let several = ["why", "where", "who is it"].map(str::to_owned).to_vec();
    [
        request("a cat", 9),
        JobRequest { temperature: 1.0, seed: 7, ..qa("job", "a dog on the table", 5) },
        JobRequest { queries: several, ..qa("job", "", 4) },
        JobRequest { task: "chapters".to_owned(), ..request("", 6) },
    ]
}

fn job(request: JobRequest) -> OwnedJob<FakePort> {
    // What it is about is kept: there is nothing to decode.
    OwnedJob { request, port: FakePort::without_decoder(file()) }
}

/// Answers a job, and those that wait beside it.
fn answered(stage: &mut LlmStage, first: OwnedJob<FakePort>, waiting: Vec<(usize, OwnedJob<FakePort>)>) -> Desk {
    let mut desk = Desk { waiting: waiting.into(), ..Desk::default() };
    stage.answer_with(first, &mut desk);
    desk
}

/// Text that a job's client was told of each question.
fn told(port: &FakePort) -> Vec<(Option<u32>, String)> {
    let mut texts: Vec<(Option<u32>, String)> = Vec::new();
    for event in &port.events {
        let Event::Text { delta, at, question } = event else { continue };
        let place = texts.iter().position(|(number, _)| number == question).unwrap_or_else(|| {
            texts.push((*question, String::new()));
            texts.len() - 1
        });
        let text = &mut texts[place].1;
        assert_eq!(*at, text.len() as u64, "{question:?}");
        text.push_str(delta);
    }
    texts.sort();
    texts
}

/// What has to be the same whoever else is answered: all but times and memory.
fn lasting(result: &JobResult) -> JobResult {
    JobResult { timings: Default::default(), ..result.clone() }
}

/// Checks that a job came out as alone, for its result and for its client.
fn check(desk: &Desk, job: &str, alone: &(JobResult, Vec<(Option<u32>, String)>), case: &str) {
    let (outcome, port) = desk.of(job);
    let result = outcome.as_ref().unwrap_or_else(|stop| panic!("{case}: {job}: {stop:?}"));
    assert_eq!((&lasting(result), &told(port)), (&alone.0, &alone.1), "{case}: {job}");
    let planned = port.events.iter().filter(|e| matches!(e, Event::Planned { .. })).count();
    assert_eq!((planned, port.probes), (1, 1), "{case}: {job}");
    let last = port.events.iter().rev().find_map(|e| match e {
        Event::Progress { stage: StageName::Llm, done, total } => Some(done == total),
        _ => None,
    });
    assert_eq!(last, Some(true), "{case}: {job} was told how far it is to the end");
}

fn alone(stage: &mut LlmStage, request: &JobRequest) -> (JobResult, Vec<(Option<u32>, String)>) {
    let mut port = FakePort::without_decoder(file());
    let result = stage.answer(request, &mut port).unwrap();
    (lasting(&result), told(&port))
}

#[test]
fn jobs_that_join_at_any_step_are_answered_as_each_is_alone() {
    for pace in [Pace::InStep, Pace::Ahead] {
        let mut stage = stage_with(Settings { pace: Some(pace), ..settings() }, DType::F32);
        let single = kinds().map(|request| alone(&mut stage, &request));
        let mut joined = 0;
        for ((a, first), (b, second)) in kinds()
            .iter()
            .enumerate()
            .flat_map(|first| kinds().into_iter().enumerate().map(move |second| (first, second)))
        {
            for calls in [0, 1, 2, 5] {
                let waiting = vec![(calls, job(named("b", second.clone())))];
                let desk = answered(&mut stage, job(named("a", first.clone())), waiting);
                let case = format!("{pace:?}, {b} beside {a} after {calls} steps");
                check(&desk, "a", &single[a], &case);
                if desk.waiting.is_empty() {
                    check(&desk, "b", &single[b], &case);
                    joined += 1;
                }
            }
        }
        assert!(joined >= 48, "{joined} of 64 joined, and the test shows little");
    }
}

#[test]
fn three_jobs_in_any_order_of_joining_and_leaving_are_answered_as_each_is_alone() {
    let mut stage = stage();
    let [one, sampled, several, chapters] = kinds();
    let long = JobRequest { max_new_tokens: 12, ..one.clone() };
    let single = [&one, &sampled, &several, &chapters, &long].map(|request| alone(&mut stage, request));
    let cases = [
        (&long, &sampled, &several, [4, 1, 2]),
        (&one, &long, &chapters, [0, 4, 3]),
        (&several, &one, &sampled, [2, 0, 1]),
    ];
    for (a, b, c, of) in cases {
        for (second, third) in (0..4).flat_map(|second| (second..6).map(move |third| (second, third))) {
            let waiting = vec![(second, job(named("b", b.clone()))), (third, job(named("c", c.clone())))];
            let desk = answered(&mut stage, job(named("a", a.clone())), waiting);
            let case = format!("after {second} and {third}");
            for (name, of) in ["a", "b", "c"].into_iter().zip(of) {
                if desk.order().contains(&name) {
                    check(&desk, name, &single[of], &case);
                }
            }
            assert!(desk.order().len() >= 2 && desk.declined.is_empty(), "{case}");
        }
    }
}

#[test]
fn the_first_job_may_end_first_and_others_join_those_that_are_left() {
    let mut stage = stage();
    let waiting = vec![(0, job(qa("b", "why", 9))), (4, job(qa("c", "where", 3)))];
    let desk = answered(&mut stage, job(qa("a", "who", 3)), waiting);
    assert_eq!(desk.order(), ["a", "c", "b"]);
    assert_eq!(desk.ended_before, [0, 1], "c joined b, when a was done");
    for (name, query, length) in [("a", "who", 3), ("b", "why", 9), ("c", "where", 3)] {
        check(&desk, name, &alone(&mut stage, &qa("job", query, length)), "left alone");
    }
}

#[test]
fn a_job_that_joins_the_first_one_of_a_video_is_answered_as_about_a_kept_one() {
    let mut stage = Model::new().stage(settings()).unwrap();
    let first = OwnedJob { request: qa("a", "who", 6), port: port(DType::F32) };
    let desk = answered(&mut stage, first, vec![(0, job(qa("b", "why", 6)))]);
    let cached = |name| desk.of(name).0.as_ref().unwrap().cached;
    assert_eq!((cached("a"), cached("b")), (Cached::No, Cached::Memory));
    let (_, port) = desk.of("b");
    assert!(
        matches!(&port.events[0], Event::Planned { mode: Mode::Streaming, cached: Cached::Memory, .. }),
        "{:?}",
        port.events[0]
    );
    check(&desk, "b", &alone(&mut stage, &qa("job", "why", 6)), "the first question");
    let name = KeptVideo { video: "video.mp4".to_owned(), span: None, fps: 1.0 };
    assert_eq!(desk.kept, [vec![name]], "said once: it is kept while it is asked about, and after");
}

#[test]
fn what_ends_one_job_ends_it_alone() {
    let mut stage = stage();
    let a = alone(&mut stage, &qa("job", "who", 9));
    let long = "x ".repeat(20_000);
    type Ends = fn(&Result<JobResult, Stop>) -> bool;
    let failed =
        |outcome: &Result<JobResult, Stop>| matches!(outcome, Err(Stop::Failed(e)) if e.kind == ErrorKind::BadRequest);
    let cases: [(&str, OwnedJob<FakePort>, Ends); 6] = [
        ("cancelled before it begins", with(qa("b", "why", 9), |p| p.cancel_after = 0), |o| *o == Err(Stop::Cancelled)),
        ("cancelled while it writes", with(qa("b", "why", 9), |p| p.cancel_after = 4), |o| *o == Err(Stop::Cancelled)),
        ("away", with(qa("b", "why", 9), |p| p.away_after = 4), |o| matches!(o, Err(Stop::Unavailable(_)))),
        ("away when it is planned", with(qa("b", "why", 9), |p| p.away_after = 0), |o| {
            matches!(o, Err(Stop::Unavailable(_)))
        }),
        ("empty", job(qa("b", "", 9)), failed),
        ("too long", job(qa("b", &long, 9)), failed),
    ];
    for (what, other, ends) in cases {
        let desk = answered(&mut stage, job(qa("a", "who", 9)), vec![(1, other), (2, job(qa("c", "who", 9)))]);
        assert!(ends(desk.of("b").0), "{what}: {:?}", desk.of("b").0);
        check(&desk, "a", &a, what);
        check(&desk, "c", &a, what);
        assert!(alone(&mut stage, &qa("job", "who", 9)).0.cached == Cached::Memory, "{what}: the video is kept");
    }
    // So it is with the first one.
    let first = with(qa("a", "why", 9), |p| p.cancel_after = 4);
    let desk = answered(&mut stage, first, vec![(0, job(qa("b", "who", 9)))]);
    assert_eq!((desk.order(), desk.of("a").0), (vec!["a", "b"], &Err(Stop::Cancelled)));
    check(&desk, "b", &a, "the first one cancelled");
}

fn with(request: JobRequest, change: impl FnOnce(&mut FakePort)) -> OwnedJob<FakePort> {
    let mut owned = job(request);
    change(&mut owned.port);
    owned
}

#[test]
fn a_job_about_another_video_is_given_back_without_a_word_to_its_client() {
    let mut stage = stage();
    let other = MediaInfo { content_id: "other".to_owned(), ..file() };
    let spanned = JobRequest { span: Some([0.0, 12.0]), ..qa("c", "why", 3) };
    let waiting = vec![
        (0, OwnedJob { request: qa("b", "why", 3), port: FakePort::without_decoder(other) }),
        (1, job(spanned)),
        (2, job(qa("d", "who", 9))),
    ];
    let desk = answered(&mut stage, job(qa("a", "who", 9)), waiting);
    let declined: Vec<&str> = desk.declined.iter().map(|owned| owned.request.job.as_str()).collect();
    assert_eq!((declined, desk.order()), (vec!["b", "c"], vec!["a", "d"]));
    assert!(desk.declined.iter().all(|owned| owned.port.events.is_empty()));
    // Nothing is known of a file without an identity.
    let nameless = MediaInfo { content_id: String::new(), ..file() };
    let mut first = port(DType::F32);
    first.info = nameless;
    let first = OwnedJob { request: qa("a", "who", 9), port: first };
    assert_eq!(answered(&mut stage, first, vec![(0, job(qa("b", "who", 9)))]).asked, 0);
}

/// Settings whose budget holds the video, with a second of margin for its sound, and so many tokens of text.
fn with_text(tokens: u64) -> Settings {
    let footprint = *Model::new().stage(settings()).unwrap().footprint();
    let budget = footprint.fixed.bytes()
        + footprint.media_token_bytes * (IMAGE + AUDIO + 10) as u64
        + footprint.text_token_bytes * tokens;
    Settings { budget_bytes: Some(budget), ..settings() }
}

/// Tokens of prompt and answer of a question.
fn text_tokens(query: &str, max_new_tokens: u32) -> u64 {
    let stage = Model::new().stage(settings()).unwrap();
    (stage.prompter().encode(query).unwrap().len() + max_new_tokens as usize) as u64
}

#[test]
fn as_many_answers_grow_at_once_as_their_texts_fit_beside_the_video() {
    // The margin of the sound is 10 tokens: less than a text.
    let text = text_tokens("why", 30);
    let waiting = |longest: u32| {
        vec![(0, job(qa("b", "why", 30))), (1, job(qa("c", "why", longest))), (2, job(qa("d", "why", 2)))]
    };
    let declined = |desk: &Desk| desk.declined.iter().map(|job| job.request.job.to_string()).collect::<Vec<_>>();
    // A third one as long as these does not fit: none is asked for before an answer has ended.
    let mut stage = stage_with(with_text(2 * text), DType::F32);
    let desk = answered(&mut stage, job(qa("a", "why", 30)), waiting(30));
    assert_eq!((desk.order(), declined(&desk)), (vec!["a", "b", "d", "c"], vec![]));
    assert_eq!(desk.ended_before, [0, 1, 2]);
    check(&desk, "b", &alone(&mut stage, &qa("job", "why", 30)), "two texts");
    check(&desk, "c", &alone(&mut stage, &qa("job", "why", 30)), "two texts");
    // One as long would, and one that is longer comes: it is given back, and no other asked for before an answer has ended.
    let mut roomy = stage_with(with_text(3 * text), DType::F32);
    let desk = answered(&mut roomy, job(qa("a", "why", 30)), waiting(30 + 2 * text as u32));
    assert_eq!((desk.order(), declined(&desk)), (vec!["a", "b", "d"], vec!["c".to_owned()]));
    assert_eq!(desk.ended_before, [0, 0, 1]);
    // Of one job with three questions the third one waits for one of the others.
    let queries = vec!["why".to_owned(); 3];
    let (_, texts) = alone(&mut stage, &JobRequest { queries: queries.clone(), ..qa("job", "", 30) });
    let mut heard = FakePort::without_decoder(file());
    let result = stage.answer(&JobRequest { queries, ..qa("job", "", 30) }, &mut heard).unwrap();
    let numbers: Vec<u32> = heard
        .events
        .iter()
        .filter_map(|event| if let Event::Text { question, .. } = event { *question } else { None })
        .collect();
    let first = |n| numbers.iter().position(|&number| number == n).unwrap();
    let last = |n| numbers.iter().rposition(|&number| number == n).unwrap();
    assert!(first(1) < last(0) && first(2) > last(0).min(last(1)), "{numbers:?}");
    assert!(texts[1..].iter().all(|(_, text)| *text == texts[0].1) && result.answers.len() == 3);
}

#[test]
fn together_limits_the_answers_at_once_and_one_is_off() {
    let mut limited = settings();
    limited.llm.together = 2;
    let mut stage = stage_with(limited.clone(), DType::F32);
    let waiting = vec![(0, job(qa("b", "why", 9))), (0, job(qa("c", "where", 9)))];
    let desk = answered(&mut stage, job(qa("a", "who", 4)), waiting);
    assert_eq!((desk.order(), &desk.ended_before), (vec!["a", "b", "c"], &vec![0, 1]), "c came when a had gone");
    limited.llm.together = 1;
    let mut stage = stage_with(limited, DType::F32);
    let desk = answered(&mut stage, job(qa("a", "who", 4)), vec![(0, job(qa("b", "why", 9)))]);
    assert_eq!((desk.order(), desk.asked), (vec!["a"], 0));
    let mut forgets = settings();
    forgets.llm.keep_video = false;
    let mut stage = Model::new().stage(forgets).unwrap();
    let first = OwnedJob { request: qa("a", "who", 4), port: port(DType::F32) };
    let desk = answered(&mut stage, first, vec![(0, job(qa("b", "why", 9)))]);
    assert_eq!((desk.asked, desk.kept.len()), (0, 0), "who keeps no video looks at it for every job");
}

#[test]
fn jobs_that_come_without_end_do_not_keep_others_waiting_without_end() {
    /// There is always one more.
    #[derive(Default)]
    struct Endless(Desk);
    impl Beside<FakePort> for Endless {
        fn next(&mut self, _: &JobRequest) -> Option<OwnedJob<FakePort>> {
            self.0.asked += 1;
            Some(job(qa(&format!("job-{}", self.0.asked), "why", 4)))
        }
        fn decline(&mut self, job: OwnedJob<FakePort>) {
            self.0.decline(job);
        }
        fn end(&mut self, job: OwnedJob<FakePort>, outcome: Result<JobResult, Stop>) {
            self.0.end(job, outcome);
        }
        fn keeps(&mut self, videos: Vec<KeptVideo>) {
            self.0.keeps(videos);
        }
    }
    let mut bounded = settings();
    bounded.llm.together_s = 1.5;
    let mut stage = stage_with(bounded, DType::F32);
    let mut endless = Endless::default();
    stage.answer_with(job(qa("a", "who", 4)), &mut endless);
    let Endless(desk) = endless;
    assert!(desk.asked >= 2, "{} joined, and the test shows nothing", desk.asked);
    assert_eq!((desk.ended.len(), desk.declined.len()), (desk.asked + 1, 0));
    assert!(desk.ended.iter().all(|(_, outcome)| outcome.as_ref().is_ok_and(|r| r.finish == Finish::Length)));
    let mut closed = settings();
    closed.llm.together_s = 0.0;
    let desk = answered(&mut stage_with(closed, DType::F32), job(qa("a", "who", 4)), vec![(0, job(qa("b", "why", 4)))]);
    assert_eq!((desk.order(), desk.asked), (vec!["a"], 0));
}

#[test]
fn the_timings_of_a_job_are_its_own() {
    let mut stage = stage();
    let desk = answered(&mut stage, job(qa("a", "who", 60)), vec![(50, job(qa("b", "why", 4)))]);
    let timings = |name| desk.of(name).0.as_ref().unwrap().timings.clone();
    let (a, b) = (timings("a"), timings("b"));
    let stage = |timings: &protocol::event::Timings| timings.stages[&StageName::Llm].clone();
    assert!(stage(&b).busy_s < stage(&a).busy_s && stage(&b).first_at_ms > stage(&a).first_at_ms, "{a:?} {b:?}");
    assert!(b.first_token_s > 0.0 && b.first_token_s <= stage(&b).busy_s && b.tokens_per_s > 0.0, "{b:?}");
}

#[test]
fn in_phases_the_encoders_come_back_once_when_all_are_done() {
    let footprint = *Model::new().stage(settings()).unwrap().footprint();
    let with = |tokens: u64| footprint.fixed.bytes() + tokens * footprint.text_token_bytes;
    let mut phases = Settings { budget_bytes: Some(with(1000)), ..settings() };
    phases.compute.card_bytes = Some(with((IMAGE + AUDIO + 10) as u64 + 2048));
    let mut stage = Model::new().stage(phases).unwrap();
    let first = OwnedJob { request: qa("a", "who", 3), port: port(DType::F32) };
    let desk = answered(&mut stage, first, vec![(0, job(qa("b", "why", 9)))]);
    assert_eq!(desk.order(), ["a", "b"]);
    let gpu = |name: &str| desk.of(name).1.gpu.clone();
    assert_eq!((gpu("a"), gpu("b")), (vec!["take"], vec!["return"]), "whoever is last lets them come back");
    assert_eq!(desk.kept.last(), Some(&Vec::new()), "beside the encoders it does not fit");
}

#[test]
fn in_phases_jobs_that_fit_one_after_the_other_only_go_on_with_the_video_of_the_first() {
    let footprint = *Model::new().stage(settings()).unwrap().footprint();
    let with = |tokens: u64| footprint.fixed.bytes() + tokens * footprint.text_token_bytes;
    let text = text_tokens("why", 12);
    let mut phases = Settings { budget_bytes: Some(with(1000)), ..settings() };
    let media = (IMAGE + AUDIO + 10) as u64 * footprint.media_token_bytes / footprint.text_token_bytes;
    phases.compute.card_bytes = Some(with(media + text + text / 2));
    let mut stage = Model::new().stage(phases).unwrap();
    let first = OwnedJob { request: qa("a", "why", 12), port: port(DType::F32) };
    let waiting = ["b", "c", "d"].map(|name| (0, job(qa(name, "why", 12)))).into();
    let desk = answered(&mut stage, first, waiting);
    assert_eq!((desk.order(), desk.declined.len()), (vec!["a", "b", "c", "d"], 0));
    let gpu = |name: &str| desk.of(name).1.gpu.clone();
    assert_eq!(["a", "b", "c", "d"].map(gpu), [vec!["take"], vec![], vec![], vec!["return"]]);
    let answer = |name: &str| desk.of(name).0.as_ref().unwrap().token_ids.clone();
    assert!(["b", "c", "d"].iter().all(|name| answer(name) == answer("a")), "{:?}", answer("b"));
    assert_eq!(desk.ended_before, [0, 1, 2], "each came when the one before had grown");
}

#[test]
fn an_error_of_the_model_ends_every_job_of_the_batch_and_a_bug_loses_none() {
    let damaged = Model::with(serde_json::json!({}), |name, t| {
        if name == "model.norm.weight" { Some((t? * f64::NAN).unwrap()) } else { t }
    });
    // A greedy step that begins before its tokens are known meets what is no token.
    let mut stage = damaged.stage(Settings { pace: Some(Pace::Ahead), ..settings() }).unwrap();
    let first = OwnedJob { request: qa("a", "who", 3), port: port(DType::F32) };
    let desk = answered(&mut stage, first, vec![(0, job(qa("b", "why", 9)))]);
    for name in ["a", "b"] {
        assert!(
            matches!(desk.of(name).0, Err(Stop::Failed(e)) if e.stage == Some(StageName::Llm)),
            "{:?}",
            desk.of(name).0
        );
    }
    assert_eq!(desk.kept.last(), Some(&Vec::new()), "no video is kept that may be damaged");

    let mut stage = self::stage();
    let mut desk = Desk::default();
    desk.waiting.push_back((0, job(qa("b", "why", 9))));
    desk.waiting.push_back((1, with(qa("c", "why", 9), |p| p.panic_after = 4)));
    let outcome = catch_unwind(AssertUnwindSafe(|| stage.answer_with(job(qa("a", "who", 9)), &mut desk)));
    assert!(outcome.is_err());
    let mut order = desk.order();
    order.sort_unstable();
    assert_eq!(order, ["a", "b", "c"]);
    assert!(desk.ended.iter().all(|(_, outcome)| matches!(outcome, Err(Stop::Unavailable(_)))));
}
