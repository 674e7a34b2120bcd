//! Tests of tasks over a real broker: what can be asked is listed, several questions cost one look at the video, and a client
//! hears each answer's text once, whoever writes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use demo_video::truth::Answer;
use deploy::client::{self, Events};
use protocol::error::{ErrorKind, StageName};
use protocol::event::{Event, JobEvent, JobResult, Supported, TimeRange};
use protocol::message::{JobId, JobRequest};
use runtime::bus::events::EventLog;
use tests::harness::{Rig, Setup, signal, terminal, vidi};
use tests::media::{ffmpeg, video};

fn request(job: &str, file: &Path, task: &str, queries: &[&str]) -> anyhow::Result<JobRequest> {
    Ok(JobRequest {
        task: task.to_owned(),
        queries: queries.iter().map(|q| (*q).to_owned()).collect(),
        max_new_tokens: 24,
        ..JobRequest::new(JobId::new(job)?, file.to_string_lossy(), "")
    })
}

fn result(events: &[JobEvent]) -> anyhow::Result<&JobResult> {
    match terminal(events)? {
        Event::Result(result) => Ok(result),
        other => anyhow::bail!("{other:?}"),
    }
}

/// Text that was told of each answer; each piece must stand where it says.
fn told(events: &[JobEvent]) -> anyhow::Result<BTreeMap<Option<u32>, String>> {
    let mut texts: BTreeMap<Option<u32>, String> = BTreeMap::new();
    for event in events {
        let Event::Text { delta, at, question } = &event.event else { continue };
        let text = texts.entry(*question).or_default();
        ensure!(*at == text.len() as u64, "event {}: byte {at} of {question:?} after {} bytes", event.seq, text.len());
        text.push_str(delta);
    }
    Ok(texts)
}

/// Refuses events that tell another text than the answers of their result.
fn check_told(events: &[JobEvent]) -> anyhow::Result<()> {
    let texts = told(events)?;
    for (number, answer) in (0..).zip(&result(events)?.answers) {
        let text = texts.get(&Some(number)).map_or("", |text| text.trim());
        ensure!(text == answer.text, "question {number}: {text:?} was told, {:?} is the answer", answer.text);
    }
    ensure!(!texts.contains_key(&None), "a piece of text names no question");
    Ok(())
}

#[test]
fn vidi_lists_its_tasks_and_those_of_the_users_file_and_refuses_a_wrong_one() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("tasks.toml");
    let set = format!("llm.tasks_file={}", file.display());
    let run = |args: &[&str]| -> anyhow::Result<std::process::Output> {
        Ok(Command::new(vidi()?).env("VIDI_STATE", dir.path()).args(args).stdin(Stdio::null()).output()?)
    };
    let entry =
        "[[task]]\nname = \"caption\"\nsupported = \"experimental\"\nprompt = \"Describe it.\"\nquery = \"none\"\n";
    std::fs::write(&file, entry)?;
    let listed = run(&["tasks", "--set", &set])?;
    let text = String::from_utf8(listed.stdout)?;
    ensure!(listed.status.success() && text.lines().count() == 7, "{text}");
    let tasks: serde_json::Value = serde_json::from_slice(&run(&["tasks", "--json", "--set", &set])?.stdout)?;
    let named = |name: &str| tasks.as_array().and_then(|all| all.iter().find(|t| t["name"] == name)).cloned();
    let expected = [
        ("retrieval", "trained", "reference"),
        ("qa", "trained", "text"),
        ("highlights", "composite", "text"),
        ("chapters", "composite", "text"),
        ("grounding", "experimental", "boxes"),
        ("caption", "experimental", "text"),
    ];
    for (name, supported, parser) in expected {
        let task = named(name).with_context(|| format!("no {name} in {tasks}"))?;
        ensure!(task["supported"] == supported && task["parser"] == parser, "{task}");
    }
    std::fs::write(&file, entry.replace("none", "required"))?;
    let wrong = run(&["tasks", "--set", &set])?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(wrong.status.code() == Some(2) && said.contains("caption") && said.contains("{query}"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_questions_are_answered_as_each_is_alone_and_composites_from_the_same_video() -> anyhow::Result<()> {
    let rig = Rig::start(Setup { keep_video: true, ..Setup::default() }).await?;
    let clip = rig.media().join("clip.mp4");
    video(&clip, 24)?;
    let queries = ["a dog", "a cat", "a bird"];
    let events = rig.answer(&request("several", &clip, "retrieval", &queries)?).await?;
    let several = result(&events).with_context(|| rig.log())?;
    check_told(&events)?;
    ensure!(several.answers.len() == queries.len() && several.supported == Some(Supported::Trained), "{several:?}");
    for (number, query) in queries.iter().enumerate() {
        let alone =
            JobRequest { query: (*query).to_owned(), ..request(&format!("alone-{number}"), &clip, "retrieval", &[])? };
        let events = rig.answer(&alone).await?;
        let alone = result(&events)?;
        ensure!(alone.cached.is_known() && alone.answers.is_empty(), "{alone:?}");
        ensure!(several.answers[number].token_ids == alone.token_ids, "{query}: {:?}", alone.token_ids);
        ensure!(several.answers[number].resolution_s == alone.resolution_s && alone.resolution_s.is_some());
    }
    let events = rig.answer(&request("chapters", &clip, "chapters", &[])?).await?;
    let chapters = result(&events)?;
    check_told(&events)?;
    let (first, last) = (chapters.ranges.first().context("no part")?, chapters.ranges.last().context("no part")?);
    ensure!((first.start_s, last.end_s) == (0.0, chapters.plan.duration_s), "{:?}", chapters.ranges);
    ensure!(chapters.ranges.windows(2).all(|two| two[0].end_s == two[1].start_s), "{:?}", chapters.ranges);
    ensure!(chapters.answers.len() == chapters.ranges.len() && chapters.cached.is_known());
    let output = rig.run(&["ask", &clip.to_string_lossy(), "a dog", "a cat", "--max-new-tokens", "24", "--quiet"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && text.starts_with("a dog") && text.contains("\na cat"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_several_questions_tells_of_each_answer_what_is_left() -> anyhow::Result<()> {
    let set = vec!["bus.ack_wait_s=1".to_owned(), "llm.end_tokens=[1]".to_owned()];
    let rig = Rig::start(Setup { replicas: "llm=2".to_owned(), set, ..Setup::default() }).await?;
    let clip = rig.media().join("clip.mp4");
    video(&clip, 4)?;
    let queries = ["a dog", "a cat"];
    let job = JobRequest { max_new_tokens: 600, ..request("taken-over", &clip, "qa", &queries)? };
    let workers = rig.pids(StageName::Llm);
    let [one, other] = workers[..] else { anyhow::bail!("{workers:?}") };
    signal(other, "STOP")?;
    client::submit(&rig.bus, &job).await?;
    let mut events = Events::new(&rig.bus, &job.job);
    while !matches!(events.next().await?.event, Event::Text { question: Some(1), .. }) {}
    signal(one, "STOP")?;
    signal(other, "CONT")?;
    let events = rig.events(&job.job).await?;
    signal(one, "CONT")?;
    let planned = events.iter().filter(|e| matches!(e.event, Event::Planned { .. })).count();
    ensure!(planned == 2, "the job had one owner, and the test shows nothing: {events:?}");
    check_told(&events).with_context(|| rig.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_broker_does_not_take_ends_its_job_with_the_figures() -> anyhow::Result<()> {
    let rig = Rig::start(Setup { max_payload: 16 << 10, ..Setup::default() }).await?;
    let job = JobId::new("too-long")?;
    let mut log = EventLog::open(&rig.bus, &job).await;
    let long = Event::Text { delta: "a".repeat(20_000), at: 0, question: None };
    for event in [Event::Accepted {}, long] {
        log.append(event).await.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    }
    let events = rig.events(&job).await?;
    let Event::Failed { error } = terminal(&events)? else { anyhow::bail!("{events:?}") };
    ensure!(error.kind == ErrorKind::DoesNotFit && error.hint.contains("max_payload"), "{error:?}");
    ensure!(error.message.contains("an event of 20") && error.message.contains("messages of 15360"), "{error:?}");
    ensure!(log.ended().is_some());
    Ok(())
}

/// Pictures that move, each of another kind.
const SHOTS: [&str; 4] = [
    "testsrc2=size=320x180:rate=25",
    "mandelbrot=size=320x180:rate=25",
    "smptebars=size=320x180:rate=25",
    "life=size=320x180:rate=25:ratio=0.1:death_color=red:life_color=white",
];

/// Makes a video of pictures of `seconds` each, with hard cuts between them.
fn cut_video(path: &Path, shots: &[&str], seconds: u32) -> anyhow::Result<()> {
    let inputs: Vec<String> = shots.iter().map(|shot| format!("-f lavfi -t {seconds} -i {shot}")).collect();
    let same = (0..shots.len()).map(|n| format!("[{n}]format=yuv420p,setsar=1[v{n}];")).collect::<String>();
    let named = (0..shots.len()).map(|n| format!("[v{n}]")).collect::<String>();
    let filter = format!("{same}{named}concat=n={}", shots.len());
    ffmpeg(&format!("{} -filter_complex {filter} -c:v libx264 -preset ultrafast", inputs.join(" ")), path)
}

#[tokio::test(flavor = "multi_thread")]
async fn chapters_begin_at_the_cuts_of_a_video_and_not_where_something_moves() -> anyhow::Result<()> {
    let rig = Rig::start(Setup { model: Some("demo".into()), ..Setup::default() }).await?;
    let chapters = async |name: &str, shots: &[&str], seconds: u32| -> anyhow::Result<JobResult> {
        let clip = rig.media().join(format!("{name}.mp4"));
        cut_video(&clip, shots, seconds)?;
        let events = rig.answer(&request(name, &clip, "chapters", &[])?).await?;
        result(&events).cloned().with_context(|| rig.log())
    };
    let cut = chapters("cut", &SHOTS, 12).await?;
    let starts: Vec<f64> = cut.ranges.iter().map(|range| range.start_s).collect();
    let step_s = cut.resolution_s.context("no resolution")?;
    ensure!((0.9..=1.1).contains(&step_s), "a frame a second: {step_s}");
    ensure!(starts.len() == 4, "{starts:?} {:?}", cut.notes);
    let far = starts.iter().zip([0.0, 12.0, 24.0, 36.0]).map(|(start, cut)| (start - cut).abs()).fold(0.0, f64::max);
    ensure!(far <= step_s, "cuts at 12, 24 and 36 s were found at {starts:?}");
    ensure!(cut.answers.len() == 4 && cut.ranges.iter().all(|range| range.title.is_some()), "{:?}", cut.ranges);
    for shot in SHOTS {
        let (name, _) = shot.split_once('=').context("no name")?;
        let one = chapters(name, &[shot], 36).await?;
        ensure!(one.ranges.len() == 1 && one.notes.len() == 1, "{name}: {:?} {:?}", one.ranges, one.notes);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn highlights_are_what_their_queries_find_and_each_has_a_title() -> anyhow::Result<()> {
    let rig = Rig::start(Setup { model: Some("demo".into()), keep_video: true, ..Setup::default() }).await?;
    let (video, truth) = rig.demo_video(3, 24)?;
    let found = |answer: &Answer| matches!(answer, Answer::Ranges(ranges) if !ranges.is_empty());
    let queries: Vec<&str> = truth
        .questions
        .iter()
        .filter(|q| q.task == "retrieval" && found(&q.answer))
        .map(|q| q.query.as_str())
        .collect();
    let events = rig.answer(&request("queries", &video, "retrieval", &queries)?).await?;
    let retrieval = result(&events)?;
    let events = rig.answer(&request("highlights", &video, "highlights", &queries)?).await?;
    let highlights = result(&events)?;
    check_told(&events)?;
    let (asked, titles) = highlights.answers.split_at(queries.len());
    ensure!(asked == retrieval.answers, "{asked:?}");
    let half_s = highlights.plan.duration_s / 2.0;
    let small = |range: &&TimeRange| range.end_s - range.start_s <= half_s;
    let expected: Vec<&TimeRange> = asked.iter().flat_map(|answer| &answer.ranges).filter(small).collect();
    let some = !expected.is_empty() && !highlights.ranges.is_empty();
    ensure!(some, "nothing was found, and the test shows nothing: {queries:?} {asked:?} {:?}", highlights.notes);
    for range in expected {
        let holds = |whole: &&TimeRange| whole.start_s <= range.start_s && range.end_s <= whole.end_s;
        ensure!(highlights.ranges.iter().any(|r| holds(&r)), "{range:?} is in none of {:?}", highlights.ranges);
    }
    for (range, title) in highlights.ranges.iter().zip(titles) {
        let line = title.text.lines().map(str::trim).find(|line| !line.is_empty());
        ensure!(range.title.as_deref() == line && line.is_some(), "{range:?}: {title:?}");
    }
    ensure!(titles.len() == highlights.ranges.len() && highlights.cached.is_known());
    Ok(())
}
