//! Tests of tasks over a real broker: what can be asked is listed, several questions cost one look at the video, and a client
//! hears each answer's text once, whoever writes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use deploy::client::{self, Events};
use protocol::error::StageName;
use protocol::event::{Event, JobEvent, JobResult, Supported};
use protocol::message::{JobId, JobRequest};
use tests::harness::{Rig, Setup, signal, terminal, video, vidi};

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
        ensure!(alone.cached && alone.answers.is_empty(), "{alone:?}");
        ensure!(several.answers[number].token_ids == alone.token_ids, "{query}: {:?}", alone.token_ids);
        ensure!(several.answers[number].resolution_s == alone.resolution_s && alone.resolution_s.is_some());
    }
    let events = rig.answer(&request("chapters", &clip, "chapters", &[])?).await?;
    let chapters = result(&events)?;
    check_told(&events)?;
    let (first, last) = (chapters.ranges.first().context("no part")?, chapters.ranges.last().context("no part")?);
    ensure!((first.start_s, last.end_s) == (0.0, chapters.plan.duration_s), "{:?}", chapters.ranges);
    ensure!(chapters.ranges.windows(2).all(|two| two[0].end_s == two[1].start_s), "{:?}", chapters.ranges);
    ensure!(chapters.answers.len() == chapters.ranges.len() && chapters.cached);
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
