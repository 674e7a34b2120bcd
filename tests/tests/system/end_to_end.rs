//! End-to-end tests: from a video file and a question on the bus, through five processes, to an answer.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use protocol::error::{ErrorKind, StageName};
use protocol::event::{Event, Finish, JobResult};
use protocol::message::{JobId, JobRequest};
use protocol::wire;
use runtime::bus::{Stored, headers};
use tests::harness::{Rig, Setup, brokers, checkpoint, terminal};
use tests::media::{ffmpeg, video};

/// Longest time of what takes a second or two on an idle machine.
const SOON: Duration = Duration::from_secs(60);

fn request(job: &str, video: &Path, query: &str) -> JobRequest {
    let job = JobId::new(job).expect("a test's own id");
    JobRequest { max_new_tokens: 24, ..JobRequest::new(job, video.to_string_lossy(), query) }
}

fn result(events: &[protocol::event::JobEvent]) -> anyhow::Result<&JobResult> {
    match terminal(events)? {
        Event::Result(result) => Ok(result),
        other => anyhow::bail!("{other:?}"),
    }
}

fn error_kind(events: &[protocol::event::JobEvent]) -> anyhow::Result<ErrorKind> {
    match terminal(events)? {
        Event::Failed { error } => {
            ensure!(error.message.len() > 10, "{error:?} does not say what happened");
            Ok(error.kind)
        }
        other => anyhow::bail!("{other:?}"),
    }
}

/// Frames and samples that stage-decode delivered; none for an absent modality.
struct Dumped {
    frames: Option<Vec<u8>>,
    pcm: Option<Vec<i16>>,
}

/// Content of frames.npy and pcm.npy without their headers, as `decode.dump` writes them.
fn dumped(dir: &Path) -> anyhow::Result<Dumped> {
    let body = |name: &str| -> anyhow::Result<Option<Vec<u8>>> {
        let Ok(file) = std::fs::read(dir.join(name)) else { return Ok(None) };
        let header = usize::from(u16::from_le_bytes([file[8], file[9]]));
        Ok(Some(file[10 + header..].to_vec()))
    };
    let pcm = body("pcm.npy")?.map(|bytes| {
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        floats.map(|s| (s * 32768.0) as i16).collect()
    });
    Ok(Dumped { frames: body("frames.npy")?, pcm })
}

/// The pipeline's answer is the answer of the same stages in one process, without a bus, for the frames and samples
/// that stage-decode delivered. (That those stages compute what the reference computes is shown by `parity.rs`.)
#[tokio::test(flavor = "multi_thread")]
async fn five_processes_answer_as_the_stages_do_without_a_bus_whatever_the_broker_and_its_limit() -> anyhow::Result<()>
{
    for broker in brokers() {
        for max_payload in [1 << 20, 8 << 20] {
            let dump = tempfile::tempdir()?;
            let setup = Setup {
                broker: broker.clone(),
                max_payload,
                set: vec![format!("decode.dump={}", dump.path().display())],
                ..Setup::default()
            };
            let rig = Rig::start(setup).await?;
            let file = rig.media().join("clip.mp4");
            // Audio of more than one window.
            video(&file, 33)?;
            let request = request("job", &file, "a man slicing onions");
            let events = rig.answer(&request).await?;
            let result = result(&events).with_context(|| rig.log())?;
            let Dumped { frames, pcm } = dumped(dump.path())?;
            let reference =
                tests::pipeline::answer_in_process(&checkpoint("tied"), frames.as_deref(), pcm.as_deref(), &request)
                    .map_err(|stop| anyhow::anyhow!("{stop:?}"))?;
            ensure!(result.token_ids == reference.token_ids, "{broker:?} {max_payload}: {result:?}");
            ensure!(result.text == reference.text && result.finish == reference.finish, "{result:?}");
            let image = result.plan.image.as_ref().context("no image in the plan")?;
            let audio = result.plan.audio.as_ref().context("no audio in the plan")?;
            ensure!(image.frames == 33 && image.tokens == 33 * 196, "{image:?}");
            ensure!(frames.context("no frames dumped")?.len() == 33 * 384 * 384 * 3);
            ensure!(audio.windows == 2 && audio.samples == pcm.context("no samples dumped")?.len() as u64);
            ensure!(result.timings.stages.len() == 5 && result.memory.len() == 5, "{result:?}");
            for stage in protocol::error::StageName::ALL {
                let last = events.iter().rev().find_map(|e| match &e.event {
                    Event::Progress { stage: s, done, total } if *s == stage => Some((*done, *total)),
                    _ => None,
                });
                let (done, total) = last.with_context(|| format!("no progress of {stage}"))?;
                ensure!(done == total && total > 0, "{stage} stops at {done} of {total}");
            }
            let told: String = events
                .iter()
                .filter_map(|e| match &e.event {
                    Event::Text { delta, .. } => Some(delta.as_str()),
                    _ => None,
                })
                .collect();
            ensure!(told.trim() == result.text, "{told:?} was told, {:?} is the answer", result.text);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_fails_its_job_with_a_reason_and_the_pipeline_answers_the_next() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let media = rig.media();
    let good = media.join("good.mp4");
    video(&good, 3)?;
    std::fs::write(media.join("empty.mp4"), [])?;
    std::fs::write(media.join("text.mp4"), "this is not a video, whatever its name says\n".repeat(50))?;
    let whole = std::fs::read(&good)?;
    std::fs::write(media.join("truncated.mp4"), &whole[..whole.len() / 2])?;
    ffmpeg(
        "-f lavfi -i testsrc2=size=64x64:rate=25 -frames:v 1 -c:v libx264 -pix_fmt yuv420p",
        &media.join("one.mp4"),
    )?;
    let outside = rig.dir.path().join("outside.mp4");
    std::fs::copy(&good, &outside)?;
    std::os::unix::fs::symlink(&outside, media.join("link.mp4"))?;
    let long = "a ".repeat(50_000);

    let cases = [
        ("missing", media.join("missing.mp4"), "x", ErrorKind::MediaNotFound),
        ("empty", media.join("empty.mp4"), "x", ErrorKind::UnsupportedMedia),
        ("text", media.join("text.mp4"), "x", ErrorKind::UnsupportedMedia),
        ("truncated", media.join("truncated.mp4"), "x", ErrorKind::UnsupportedMedia),
        ("one_frame", media.join("one.mp4"), "x", ErrorKind::TooShort),
        ("outside", outside.clone(), "x", ErrorKind::ForbiddenPath),
        ("link", media.join("link.mp4"), "x", ErrorKind::ForbiddenPath),
        ("no_query", good.clone(), "", ErrorKind::BadRequest),
        ("long_query", good.clone(), long.as_str(), ErrorKind::BadRequest),
    ];
    for (job, path, query, expected) in cases {
        let started = Instant::now();
        let events = rig.answer(&request(job, &path, query)).await?;
        let kind = error_kind(&events).with_context(|| format!("{job}: {}", rig.log()))?;
        ensure!(kind == expected, "{job}: {kind:?}, expected {expected:?}");
        ensure!(started.elapsed() < SOON, "{job} took {:?}", started.elapsed());
    }
    let mut unknown = request("unknown_task", &good, "x");
    unknown.task = "dance".to_owned();
    ensure!(error_kind(&rig.answer(&unknown).await?)? == ErrorKind::BadRequest);

    let events = rig.answer(&request("afterwards", &good, "a dog")).await?;
    ensure!(result(&events)?.token_ids.len() == 24 || result(&events)?.finish == Finish::Stop);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_have_is_answered_silent_video_sound_alone_and_a_part_of_a_video() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let media = rig.media();
    let clip = media.join("clip.mp4");
    video(&clip, 8)?;
    ffmpeg("-f lavfi -i testsrc2=size=101x77:rate=24:duration=3 -c:v libvpx-vp9", &media.join("silent.webm"))?;
    ffmpeg("-f lavfi -i sine=frequency=300:duration=5 -c:a libmp3lame", &media.join("sound.mp3"))?;
    ffmpeg(
        "-f lavfi -i testsrc2=size=64x64:rate=25:duration=3 -f lavfi -i anullsrc=duration=3 -c:v libx264 -pix_fmt yuv420p \
         -c:a aac -shortest",
        &media.join("digital_silence.mp4"),
    )?;

    let events = rig.answer(&request("silent", &media.join("silent.webm"), "a dog")).await?;
    let plan = &result(&events).with_context(|| rig.log())?.plan;
    ensure!(plan.audio.is_none() && plan.image.as_ref().is_some_and(|i| i.frames == 3), "{plan:?}");

    let events = rig.answer(&request("sound", &media.join("sound.mp3"), "music")).await?;
    let plan = &result(&events).with_context(|| rig.log())?.plan;
    ensure!(plan.image.is_none() && plan.audio.as_ref().is_some_and(|a| a.windows == 1), "{plan:?}");

    let events = rig.answer(&request("silence", &media.join("digital_silence.mp4"), "a dog")).await?;
    let plan = &result(&events).with_context(|| rig.log())?.plan;
    ensure!(plan.audio.is_none() && plan.image.is_some(), "digital silence counts as absent audio: {plan:?}");

    let mut part = request("part", &clip, "a dog");
    part.span = Some([2.0, 6.0]);
    let events = rig.answer(&part).await?;
    let plan = &result(&events).with_context(|| rig.log())?.plan;
    ensure!(plan.duration_s == 4.0 && plan.image.as_ref().is_some_and(|i| i.frames == 4), "{plan:?}");
    ensure!(plan.audio.as_ref().is_some_and(|a| a.samples == 64_000), "{plan:?}");

    let mut open = request("open", &clip, "What colour is the ball?");
    open.task = "qa".to_owned();
    let events = rig.answer(&open).await?;
    ensure!(result(&events)?.ranges.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_made_to_answer_with_ranges_prints_them_as_times() -> anyhow::Result<()> {
    // The golden checkpoint `untied` answers "0.12-0.34, 0.56-0.78" to its golden inputs; here only the form counts.
    let rig = Rig::start(Setup { model: Some(checkpoint("untied")), ..Setup::default() }).await?;
    let clip = rig.media().join("clip.mp4");
    video(&clip, 3)?;
    let output = rig.run(&["ask", &clip.to_string_lossy(), "the logo", "--json", "--max-new-tokens", "16"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let object: serde_json::Value = serde_json::from_str(&text)?;
    for key in ["job", "text", "token_ids", "ranges", "plan", "timings", "memory"] {
        ensure!(!object[key].is_null(), "{key} is missing in {text}");
    }
    ensure!(object["plan"]["duration_s"] == 3.0, "{text}");
    let missing = rig.run(&["ask", "/nowhere/x.mp4", "the logo"])?;
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(missing.status.code() == Some(3) && said.contains("/nowhere/x.mp4"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_do_not_decode_are_named_in_the_result_and_by_vidi_ask() -> anyhow::Result<()> {
    let rig = Rig::start(Setup { set: vec!["decode.batch_frames=2".to_owned()], ..Setup::default() }).await?;
    let clip = rig.media().join("clip.mp4");
    ffmpeg("-f lavfi -i testsrc2=size=320x180:rate=25:duration=6 -c:v libx264 -preset ultrafast -g 5", &clip)?;
    let ask = || rig.run(&["ask", &clip.to_string_lossy(), "the logo", "--json", "--max-new-tokens", "4"]);
    let replaced = |output: &std::process::Output| -> anyhow::Result<serde_json::Value> {
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice::<serde_json::Value>(&output.stdout)?["plan"]["image"]["replaced"].clone())
    };
    let whole = ask()?;
    ensure!(replaced(&whole)?.is_null() && !String::from_utf8_lossy(&whole.stderr).contains("damaged"));

    // The packets from about 2.7 to 3.6 s; the index of this file stands at its end.
    let mut bytes = std::fs::read(&clip)?;
    let (from, to) = (bytes.len() * 45 / 100, bytes.len() * 60 / 100);
    bytes[from..to].fill(0);
    std::fs::write(&clip, bytes)?;
    let damaged = ask()?;
    let said = String::from_utf8_lossy(&damaged.stderr).into_owned();
    ensure!(replaced(&damaged)? == serde_json::json!([3]), "{:?}", replaced(&damaged));
    ensure!(said.contains("1 of 6 sampled frames (3) did not decode"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_may_speak_json_submit_twice_and_come_late() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let clip = rig.media().join("clip.mp4");
    video(&clip, 3)?;
    let body = serde_json::json!({
        "job": "json", "video": format!("file://{}", clip.display()), "query": "a dog", "max_new_tokens": 8
    });
    let jobs = rig.bus.subjects().jobs();
    for _ in 0..2 {
        rig.bus.client().publish(jobs.clone(), body.to_string().into()).await?;
    }
    let job = JobId::new("json")?;
    let events = rig.events(&job).await?;
    let first = result(&events).with_context(|| rig.log())?.clone();
    // Late, everything is still there, and written as the client writes.
    let late = rig.events(&job).await?;
    ensure!(late == events);
    let mut raw = rig.bus.follow(runtime::subject::StreamName::Events, rig.bus.subjects().events(&job));
    let message = raw.recv().await.context("no event")?;
    ensure!(wire::Encoding::of(&message.payload) == wire::Encoding::Json);
    // Submitted again after its end, the job stays what it was.
    rig.bus.client().publish(jobs, body.to_string().into()).await?;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    ensure!(result(&rig.events(&job).await?)? == &first);

    let wrong = serde_json::json!({ "job": "wrong", "video": 7 });
    rig.bus.client().publish(rig.bus.subjects().jobs(), wrong.to_string().into()).await?;
    ensure!(error_kind(&rig.events(&JobId::new("wrong")?).await?)? == ErrorKind::BadRequest);
    oddly_written(&rig, &clip).await
}

/// As where a job's first owner and the broker, with what it kept in memory, were killed together: the new owner's request to
/// stage-decode has the id of the first one's.
#[tokio::test(flavor = "multi_thread")]
async fn work_that_was_lost_before_a_new_owner_asked_for_it_is_asked_for_again() -> anyhow::Result<()> {
    let set = vec!["bus.worker_patience_s=600".to_owned()];
    let rig = Rig::start(Setup { set, ..Setup::default() }).await?;
    let clip = rig.media().join("clip.mp4");
    video(&clip, 3)?;
    // stage-decode takes this message for another job's, and drops it: the broker knows its id, and nothing comes of it.
    let other = JobId::new("other")?;
    let (subject, id) = (rig.bus.subjects().input(StageName::Decode, &other), "taken-over/decode/0");
    let wanted = std::future::pending();
    let stored = rig.bus.store(subject, id, &headers(&other), "no request".into(), wanted).await;
    ensure!(matches!(stored, Ok(Stored::Now)), "{stored:?}");
    let since = Instant::now();
    while rig.bus.is_on_its_way(&other, 0).await {
        ensure!(since.elapsed() < SOON, "the message is not dropped; {}", rig.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let events = tokio::time::timeout(SOON, rig.answer(&request("taken-over", &clip, "a dog"))).await;
    let events = events.with_context(|| rig.log())??;
    ensure!(!result(&events)?.token_ids.is_empty());
    ensure!(rig.log().contains("what is missing is asked for again"), "{}", rig.log());
    Ok(())
}

/// JSON as editors, shells and other languages write it: what can be read is answered, and of the rest it is told what is
/// wrong and where, as soon as its job is known.
async fn oddly_written(rig: &Rig, clip: &Path) -> anyhow::Result<()> {
    let jobs = rig.bus.subjects().jobs();
    let body = |job: &str, more: &str| {
        format!(
            "{{\"job\": \"{job}\",\n \"video\": \"{}\", \"query\": \"a dog\", \"max_new_tokens\": 2{more}",
            clip.display()
        )
    };
    for (job, before) in [("space", " \r\n\t"), ("mark", "\u{feff}"), ("both", "\u{feff}\n ")] {
        rig.bus.client().publish(jobs.clone(), (before.to_owned() + &body(job, "}")).into()).await?;
        result(&rig.events(&JobId::new(job)?).await?).with_context(|| rig.log())?;
    }
    let mut named = async_nats::HeaderMap::new();
    named.insert("Vidi-Job", "header");
    let cases = [
        ("nan", body("nan", ", \"fps\": NaN}"), "line 2 column"),
        ("cut", body("cut", ", \"par"), "line 2 column"),
        ("comma", body("comma", ",}"), "line 2 column"),
        ("marked", format!("\u{feff} {}", body("marked", ", \"fps\": Infinity}")), "line 2 column"),
        ("header", "{\"video\": \"/x.mp4\", \"job\": \"hea".to_owned(), "line 1 column 31"),
    ];
    for (job, text, place) in cases {
        let headers = if job == "header" { named.clone() } else { async_nats::HeaderMap::new() };
        rig.bus.client().publish_with_headers(jobs.clone(), headers, text.into()).await?;
        let events = rig.events(&JobId::new(job)?).await?;
        ensure!(error_kind(&events)? == ErrorKind::BadRequest, "{job}: {events:?}");
        let Some(Event::Failed { error }) = events.last().map(|event| &event.event) else {
            anyhow::bail!("{events:?}")
        };
        ensure!(error.message.contains(place), "{job}: {error}");
    }
    Ok(())
}

/// The whole demo question, start of broker and stages included. The bound is on CPU time, which other load on the machine
/// hardly changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_a_running_pipeline_starts_one_and_is_answered_with_five_seconds_of_work()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let clip = dir.path().join("clip.mp4");
    video(&clip, 10)?;
    let started = Instant::now();
    let output = std::process::Command::new("bash")
        .args(["-c", "\"$@\"; status=$?; times; exit $status", "ask"])
        .arg(tests::harness::vidi()?)
        .env("VIDI_STATE", dir.path().join("state"))
        .args(["ask", &clip.to_string_lossy(), "a dog", "--json", "--model"])
        .arg(checkpoint("tied"))
        .args(["--max-new-tokens", "32", "--dump"])
        .arg(dir.path().join("dump"))
        .output()?;
    let took = started.elapsed();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(took < SOON, "took {took:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let work = children_cpu_s(&said).with_context(|| said.clone().into_owned())?;
    ensure!(work > 0.0 && work < 5.0, "took {work} CPU seconds");
    ensure!(dir.path().join("dump/frames.npy").is_file() && dir.path().join("dump/pcm.npy").is_file());
    Ok(())
}

/// CPU seconds of the children, in user and system mode, from the last line of the shell's `times`.
fn children_cpu_s(said: &str) -> Option<f64> {
    let seconds = |time: &str| {
        let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    said.lines().last()?.split_whitespace().map(seconds).sum()
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_named_with_file_and_tensor() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let clip = dir.path().join("clip.mp4");
    video(&clip, 3)?;
    let copy = |name: &str| -> anyhow::Result<std::path::PathBuf> {
        let to = dir.path().join(name);
        std::fs::create_dir(&to)?;
        for file in std::fs::read_dir(checkpoint("tied"))? {
            let file = file?;
            std::fs::copy(file.path(), to.join(file.file_name()))?;
        }
        Ok(to)
    };
    let shard = |dir: &Path| -> anyhow::Result<std::path::PathBuf> {
        let mut shards: Vec<_> = std::fs::read_dir(dir)?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        shards.sort();
        shards.pop().context("no shard")
    };
    let truncated = copy("truncated")?;
    let file = shard(&truncated)?;
    let bytes = std::fs::read(&file)?;
    std::fs::write(&file, &bytes[..bytes.len() - 100])?;
    let file_name = file.file_name().context("a file")?.to_string_lossy().into_owned();

    // Renamed in its header, which leaves every length as it is.
    let missing = copy("missing")?;
    let mut renamed = 0;
    for entry in std::fs::read_dir(&missing)?.flatten().map(|e| e.path()) {
        let key = b"\"model.mm_rand_aud_norm.weight\"";
        let mut bytes = std::fs::read(&entry)?;
        if entry.extension().is_some_and(|e| e == "safetensors")
            && let Some(at) = bytes.windows(key.len()).position(|w| w == key)
        {
            bytes[at + key.len() - 2] = b'T';
            std::fs::write(&entry, bytes)?;
            renamed += 1;
        }
    }
    ensure!(renamed == 1, "{renamed} tensors renamed");
    let misshapen = copy("misshapen")?;
    let config = misshapen.join("config.json");
    let text = std::fs::read_to_string(&config)?;
    ensure!(text.contains("\"intermediate_size\": 128"), "{text}");
    std::fs::write(&config, text.replacen("\"intermediate_size\": 128", "\"intermediate_size\": 120", 1))?;
    let no_tokenizer = copy("no_tokenizer")?;
    std::fs::remove_file(no_tokenizer.join("tokenizer.json"))?;

    for (model, says) in [
        (&truncated, file_name.as_str()),
        (&missing, "model.mm_rand_aud_norm.weight"),
        (&misshapen, "mlp.gate_proj.weight is [128, 64], expected [120, 64]"),
        (&no_tokenizer, "tokenizer.json"),
    ] {
        let started = Instant::now();
        let output = std::process::Command::new(tests::harness::vidi()?)
            .env("VIDI_STATE", dir.path().join("state"))
            .args(["ask", &clip.to_string_lossy(), "a dog", "--model"])
            .arg(model)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(6), "{}: {:?} {said}", model.display(), output.status);
        ensure!(said.contains(says), "{}: {said}", model.display());
        ensure!(started.elapsed() < SOON, "took {:?}", started.elapsed());
    }
    Ok(())
}
