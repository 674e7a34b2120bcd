//! Tests of several questions in one job, and of the tasks that are made of them: one look at the video, and the answers that
//! each question has alone.

use crate::fixture::{Batch, FakePort, HIDDEN, Model, info, random, request};
use candle_core::Tensor;
use model::config_json::Family;
use protocol::error::ErrorKind;
use protocol::event::{Event, JobResult, Supported};
use protocol::message::{JobRequest, Modality};
use protocol::plan::MediaInfo;
use protocol::stage::Stop;
use stage_llm::job::answer::{LlmStage, Settings};
use stage_llm::job::work::{Work, title};
use stage_llm::text::registry::Tasks;

use Modality::{Audio, Image};

const FRAMES: u64 = 40;
const IMAGE: usize = 40 * 196;
const AUDIO: usize = 40;

fn file() -> MediaInfo {
    MediaInfo { duration_s: 40.0, ..info(FRAMES, AUDIO as u64) }
}

/// Image tokens of two shots of 20 frames.
fn image() -> Tensor {
    let frame = |seed| (random(&[196, HIDDEN], seed) * 0.05).unwrap();
    let frames: Vec<Tensor> = (0..FRAMES).map(|n| frame(if n < 20 { 1 } else { 2 })).collect();
    Tensor::cat(&frames, 0).unwrap()
}

fn port() -> FakePort {
    let sound = (random(&[AUDIO, HIDDEN], 9) * 0.05).unwrap();
    FakePort::new(file(), [Batch::Rows(Audio, 0, sound), Batch::Rows(Image, 0, image())])
}

/// Stage whose answers only their limit ends: they are all of the same length and differ.
fn stage() -> LlmStage {
    let mut settings = Settings::default();
    settings.llm.end_tokens = Some(Vec::new());
    Model::new().stage(settings).unwrap()
}

fn several(queries: &[&str], task: &str) -> JobRequest {
    let queries = queries.iter().map(|q| (*q).to_owned()).collect();
    JobRequest { queries, task: task.to_owned(), ..request("", 12) }
}

/// Text events of one question, put together; each must begin where the one before ended.
fn told(port: &FakePort, number: Option<u32>) -> String {
    let mut text = String::new();
    for event in &port.events {
        if let Event::Text { delta, at, question } = event
            && *question == number
        {
            assert_eq!(*at, text.len() as u64, "{number:?}");
            text.push_str(delta);
        }
    }
    text
}

/// Questions of the text events, in their order.
fn order(port: &FakePort) -> Vec<u32> {
    let number = |event: &Event| if let Event::Text { question, .. } = event { *question } else { None };
    port.events.iter().filter_map(number).collect()
}

fn answer(request: &JobRequest) -> (JobResult, FakePort) {
    let mut port = port();
    (stage().answer(request, &mut port).unwrap(), port)
}

#[test]
fn several_questions_are_answered_as_each_is_alone_from_one_look_at_the_video() {
    let queries = ["a cat", "a dog on the table", "why"];
    for task in ["retrieval", "qa"] {
        let (result, port) = answer(&several(&queries, task));
        assert_eq!((port.probes, result.answers.len()), (1, 3));
        for (number, (query, got)) in (0..).zip(queries.iter().zip(&result.answers)) {
            let (alone, _) = answer(&JobRequest { task: task.to_owned(), ..request(query, 12) });
            assert_eq!((&got.query.as_str(), &got.token_ids, &got.text), (query, &alone.token_ids, &alone.text));
            assert_eq!((got.finish, &got.ranges), (alone.finish, &alone.ranges));
            assert_eq!(told(&port, Some(number)).trim(), got.text, "{task} {number}");
        }
        assert_eq!(told(&port, None), "", "every piece of text names its question");
        assert!(result.token_ids.is_empty(), "they stand with their answers");
    }
}

#[test]
fn a_sampled_answer_beside_others_is_the_one_that_its_seed_gives_alone() {
    let sampled = |request: JobRequest| JobRequest { temperature: 1.0, seed: 7, ..request };
    let (result, _) = answer(&sampled(several(&["a cat", "a dog"], "qa")));
    let (alone, _) = answer(&sampled(JobRequest { task: "qa".to_owned(), ..request("a dog", 12) }));
    assert_eq!(result.answers[1].token_ids, alone.token_ids);
}

#[test]
fn questions_that_do_not_fit_together_are_answered_one_after_another() {
    let request = several(&["a cat", "a dog", "a bird", "a fish"], "qa");
    let (together, heard) = answer(&request);
    assert!(!order(&heard).is_sorted(), "a token of each a step: {:?}", order(&heard));
    let footprint = *stage().footprint();
    // The video with a second of margin and one text, not two.
    let longest = 40;
    let budget = footprint.fixed.bytes()
        + footprint.media_token_bytes * (IMAGE + AUDIO + 10) as u64
        + footprint.text_token_bytes * longest;
    let mut settings = Settings { budget_bytes: Some(budget), ..Settings::default() };
    settings.llm.end_tokens = Some(Vec::new());
    let mut small = Model::new().stage(settings).unwrap();
    let mut heard = port();
    let one_by_one = small.answer(&request, &mut heard).unwrap();
    assert!(order(&heard).is_sorted(), "{:?}", order(&heard));
    assert_eq!(one_by_one.answers, together.answers);
}

#[test]
fn many_answers_are_each_short_enough_for_one_message() {
    let asked = |count: usize| JobRequest { max_new_tokens: 1024, ..several(&vec!["why"; count], "qa") };
    let tasks = Tasks::of(Family::Gemma2);
    let stage = stage();
    let limits = |count| -> Vec<usize> {
        let work = Work::new(&tasks, &asked(count), stage.prompter(), 0.0).unwrap();
        work.questions.iter().map(|question| question.generation.max_new_tokens).collect()
    };
    assert_eq!((limits(16), limits(64)), (vec![1024; 16], vec![256; 64]));
}

#[test]
fn many_titles_are_each_short_enough_for_one_message() {
    let mut tasks = Tasks::of(Family::Gemma2);
    let mine = "[[task]]\nname = \"mine\"\nsupported = \"composite\"\nprompt = \"{start} {end}\"\nquery = \"none\"\n\
                [task.ranges]\nby = \"shots\"\nmin_s = 1.0\nmost = 64\n";
    tasks.add(mine).unwrap();
    let stage = stage();
    let asked = JobRequest { task: "mine".to_owned(), max_new_tokens: 8192, ..request("", 12) };
    let limit = |name: &str| {
        let question = title(tasks.get(name).unwrap(), [0.0, 9.0], &asked, stage.prompter()).unwrap();
        question.generation.max_new_tokens
    };
    assert_eq!((limit("mine"), limit("chapters")), (256, 64));
}

#[test]
fn one_question_in_a_list_is_one_answer_in_a_list() {
    let (result, port) = answer(&several(&["a cat"], "qa"));
    assert_eq!((result.answers.len(), told(&port, Some(0)).trim()), (1, result.text.as_str()));
    let (alone, port) = answer(&JobRequest { task: "qa".to_owned(), ..request("a cat", 12) });
    assert!(alone.answers.is_empty() && told(&port, None).trim() == alone.text && alone.text == result.text);
}

#[test]
fn a_result_names_its_task_its_parser_and_what_was_done_to_its_ranges() {
    let (plain, _) = answer(&request("a cat", 12));
    assert_eq!(
        (plain.task.as_str(), plain.supported, plain.parser.as_str()),
        ("retrieval", Some(Supported::Trained), "reference")
    );
    // Forty seconds are written with two decimals.
    assert_eq!((plain.resolution_s, plain.reason.is_some()), (Some(0.4), plain.ranges.is_empty()));
    assert_eq!((plain.pad_s, plain.join_s), (0.0, 0.0));
    let asked = JobRequest { parser: Some("lenient".to_owned()), pad_s: 1.5, join_s: 2.0, ..request("a cat", 12) };
    let (changed, _) = answer(&asked);
    assert_eq!((changed.parser.as_str(), changed.pad_s, changed.join_s), ("lenient", 1.5, 2.0));
    let (text, _) = answer(&JobRequest { task: "qa".to_owned(), ..request("a cat", 12) });
    assert_eq!((text.parser.as_str(), text.resolution_s, text.reason), ("text", None, None));
    let (boxes, _) = answer(&JobRequest { task: "grounding".to_owned(), ..request("a cat", 12) });
    assert_eq!((boxes.supported, boxes.parser.as_str()), (Some(Supported::Experimental), "boxes"));
}

#[test]
fn chapters_are_cut_where_the_pictures_change_and_each_is_asked_for_a_title() {
    let (result, port) = answer(&JobRequest { task: "chapters".to_owned(), ..request("", 12) });
    let parts: Vec<[f64; 2]> = result.ranges.iter().map(|r| [r.start_s, r.end_s]).collect();
    assert_eq!(parts, [[0.0, 20.0], [20.0, 40.0]]);
    assert_eq!((result.answers.len(), result.resolution_s), (2, Some(1.0)));
    assert!(result.answers[1].query.contains("between 00:00:20 and 00:00:40"), "{:?}", result.answers[1].query);
    for (number, (range, title)) in (0..).zip(result.ranges.iter().zip(&result.answers)) {
        assert_eq!(told(&port, Some(number)).trim(), title.text);
        let line = title.text.lines().map(str::trim).find(|line| !line.is_empty());
        assert_eq!(range.title.as_deref(), line);
    }
    assert_eq!((result.supported, port.probes), (Some(Supported::Composite), 1));
}

#[test]
fn chapters_of_a_video_that_is_known_are_those_of_a_new_one() {
    let chapters = JobRequest { task: "chapters".to_owned(), ..request("", 12) };
    let (first, _) = answer(&chapters);
    let mut stage = stage();
    stage.answer(&request("a cat", 12), &mut port()).unwrap();
    let again = stage.answer(&chapters, &mut FakePort::without_decoder(file())).unwrap();
    assert!(again.cached.is_known());
    assert_eq!((again.ranges, again.answers), (first.ranges, first.answers));
}

#[test]
fn highlights_ask_every_query_and_say_why_they_found_nothing() {
    let asked = |queries: &[&str]| answer(&several(queries, "highlights")).0;
    let result = asked(&["a cat", "a dog"]);
    let queries: Vec<&str> = result.answers.iter().map(|a| a.query.as_str()).collect();
    assert_eq!(queries[..2], ["a cat", "a dog"]);
    assert_eq!(result.answers.len(), 2 + result.ranges.len(), "a question for each title");
    assert_eq!(result.reason.is_some(), result.ranges.is_empty());
    let (default, _) = answer(&JobRequest { task: "highlights".to_owned(), ..request("", 12) });
    assert_eq!(default.answers[0].query, "the most exciting moment");
    let (own, _) = answer(&JobRequest { task: "highlights".to_owned(), ..request("a red car", 12) });
    assert_eq!(own.answers[0].query, "a red car");
}

#[test]
fn queries_of_a_task_that_takes_none_and_empty_ones_are_refused_before_anything_is_decoded() {
    for request in [
        several(&["a cat", " "], "retrieval"),
        several(&["a cat"], "chapters"),
        JobRequest { parser: Some("regex".to_owned()), ..request("a cat", 6) },
    ] {
        let mut port = FakePort::without_decoder(file());
        let outcome = stage().answer(&request, &mut port);
        assert!(matches!(outcome, Err(Stop::Failed(e)) if e.kind == ErrorKind::BadRequest), "{request:?}");
        assert_eq!(port.probes, 0);
    }
}

#[test]
fn a_job_with_several_questions_that_is_cancelled_stops_and_keeps_its_video() {
    let mut stage = stage();
    let request = JobRequest { max_new_tokens: 400, ..several(&["a cat", "a dog"], "qa") };
    let mut first = port();
    first.cancel_after = 40;
    assert_eq!(stage.answer(&request, &mut first).unwrap_err(), Stop::Cancelled);
    assert!(
        stage.answer(&several(&["a cat"], "qa"), &mut FakePort::without_decoder(file())).unwrap().cached.is_known()
    );
}
