//! What a pipeline tells about itself while it runs: metrics of every process, one trace through all of them, and `vidi top`.
//!
//! In reading order: `collector` (takes spans), this file.

mod collector;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use collector::{Collector, Span};
use deploy::client;
use futures::{FutureExt, StreamExt};
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::metrics::names;
use runtime::process::Exit;
use serde_json::{Value, json};
use tests::harness::{Rig, Setup, root, terminal, vidi};
use tests::media::video;

/// Longest time of anything that a test waits for.
const SOON: Duration = Duration::from_secs(120);

/// Runs a command; what it said on standard output.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Waits until something is there.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(started.elapsed() < SOON, "{what}: not there after {SOON:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn request(job: &str, file: &Path) -> anyhow::Result<JobRequest> {
    let request = JobRequest::new(JobId::new(job)?, file.to_string_lossy(), "what is to be seen?");
    Ok(JobRequest { max_new_tokens: 4, task: "qa".to_owned(), ..request })
}

async fn answered(rig: &Rig, job: &str, file: &Path) -> anyhow::Result<()> {
    let events = rig.answer(&request(job, file)?).await?;
    ensure!(matches!(terminal(&events)?, Event::Result(_)), "{job}: {events:?}");
    Ok(())
}

/// A clip that stage-decode may open.
fn clip(rig: &Rig, name: &str, seconds: u32) -> anyhow::Result<PathBuf> {
    let path = rig.media().join(name);
    video(&path, seconds)?;
    Ok(path)
}

/// Series of a process by what stands before the value, read by a program that is not ours.
fn scraped(address: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let python = root().join(".vidi/deploy/bin/python");
    ensure!(python.is_file(), "{} is not there: run deploy/setup.sh test", python.display());
    let text = run(Command::new("curl").args(["-sSf", &format!("http://{address}/metrics")]))?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("metrics.txt");
    std::fs::write(&file, text)?;
    let read = run(Command::new(python).arg(root().join("tests/tests/system/seen/metrics.py")).arg(&file))?;
    Ok(serde_json::from_str(&read)?)
}

/// Address of `/metrics` of each instance, as `vidi status --json` names it.
fn addresses(rig: &Rig) -> anyhow::Result<BTreeMap<StageName, String>> {
    let said = rig.run(&["status", "--json"])?;
    let instances: Vec<Value> =
        String::from_utf8(said.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    instances
        .iter()
        .map(|instance| {
            let address = instance["metrics"].as_str().filter(|address| !address.is_empty());
            let address = address.with_context(|| format!("no address of metrics: {instance}"))?;
            Ok((serde_json::from_value(instance["stage"].clone())?, address.to_owned()))
        })
        .collect()
}

/// Address of the gateway of a rig.
fn gateway(rig: &Rig) -> anyhow::Result<String> {
    let log = rig.log();
    let url = log.lines().find_map(|line| line.strip_prefix("gateway: http://")).context("no gateway in the log")?;
    Ok(url.trim_end_matches('/').to_owned())
}

/// Name of a metric in a series, as a query has it.
fn name_of(series: &str) -> &str {
    series.split('{').next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_tells_its_metrics_and_one_trace_goes_through_all_of_them() -> anyhow::Result<()> {
    let closed = Collector::closed().await?;
    let set = [
        "metrics.listen=127.0.0.1:0".to_owned(),
        "http.address=127.0.0.1:0".to_owned(),
        format!("traces.endpoint=http://127.0.0.1:{}", closed.port()),
    ];
    let rig = Rig::start(Setup { set: set.into(), keep_video: true, ..Setup::default() }).await?;

    // A collector that is away costs a line of each process, and no job.
    answered(&rig, "alone", &clip(&rig, "alone.mp4", 2)?).await?;
    until("word of each stage that the collector is away", async || {
        Ok((rig.log().matches("spans not exported").count() >= StageName::ALL.len()).then_some(()))
    })
    .await?;
    answered(&rig, "alone-2", &clip(&rig, "alone-2.mp4", 3)?).await?;
    let told = rig.log().matches("spans not exported").count();
    ensure!(told <= StageName::ALL.len() + 1, "told {told} times: {}", rig.log());

    let collector = closed.open().await?;
    let file = clip(&rig, "traced.mp4", 4)?;
    traced(&rig, &collector, &file).await?;
    answered(&rig, "again", &file).await?;
    metrics(&rig).await
}

/// A job over HTTP is one trace through all processes, the client's.
async fn traced(rig: &Rig, collector: &Collector, file: &Path) -> anyhow::Result<()> {
    let (trace, client) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let body = json!({ "job": "traced", "video": file, "query": "what?", "task": "qa", "max_new_tokens": 4 });
    let mut ask = Command::new("curl");
    ask.args(["-sSf", "-H", "content-type: application/json", "-H", &format!("traceparent: 00-{trace}-{client}-01")]);
    run(ask.args(["-d", &body.to_string(), &format!("http://{}/v1/jobs", gateway(rig)?)]))?;
    let events = rig.events(&JobId::new("traced")?).await?;
    ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}");

    let services: BTreeSet<String> =
        StageName::ALL.iter().map(|stage| format!("vidi-{stage}")).chain(["vidi".to_owned()]).collect();
    // A span is told of when it ends, so that of a child comes before its parent's.
    let spans = until("a trace of all processes without gaps", async || {
        let spans: Vec<Span> = collector.spans()?.into_iter().filter(|span| span.trace == trace).collect();
        let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).chain([client]).collect();
        let is_whole = spans.iter().all(|span| ids.contains(span.parent.as_str()));
        let there: BTreeSet<String> = spans.iter().map(|span| span.service.clone()).collect();
        Ok((is_whole && there == services).then_some(spans))
    })
    .await?;
    let named = |service: &str, name: &str| spans.iter().any(|span| span.service == service && span.name == name);
    ensure!(named("vidi", "POST /v1/jobs"), "{spans:?}");
    ensure!(
        named("vidi-llm", "process vidi.v1.jobs") && named("vidi-llm", "process vidi.v1.jobs.5.{job}"),
        "{spans:?}"
    );
    for (stage, subject) in [("decode", "decode"), ("vision", "frames"), ("audio", "audio"), ("fuse", "features")] {
        ensure!(named(&format!("vidi-{stage}"), &format!("process vidi.v1.{subject}.{{job}}")), "{stage}: {spans:?}");
    }
    for span in spans.iter().filter(|span| span.name.starts_with("process ")) {
        let (system, template) = (span.attribute("messaging.system"), span.attribute("messaging.destination.template"));
        ensure!(system == "nats" && format!("process {template}") == span.name, "{span:?}");
        ensure!(span.attribute("vidi.job") == "traced" && span.kind == Span::CONSUMER, "{span:?}");
    }
    // What a stage makes of a message is a child of its work on it.
    let parent_of = |stage: &str| {
        let span = spans.iter().find(|span| span.service == format!("vidi-{stage}")).context("no span")?;
        let parent = spans.iter().find(|other| other.id == span.parent);
        Ok::<_, anyhow::Error>(parent.map(|parent| parent.service.clone()).unwrap_or_default())
    };
    ensure!(parent_of("decode")? == "vidi-llm" && parent_of("vision")? == "vidi-decode", "{spans:?}");
    ensure!(["vidi-vision", "vidi-audio"].contains(&parent_of("fuse")?.as_str()), "{spans:?}");
    Ok(())
}

/// The figures after four answers to `qa`, the last one about the video of the third.
async fn metrics(rig: &Rig) -> anyhow::Result<()> {
    let addresses = addresses(rig)?;
    ensure!(addresses.keys().copied().collect::<Vec<_>>() == StageName::ALL, "{addresses:?}");
    // The end of a job is told before all of it is counted, and what waits is looked at every now and then.
    let llm = until("four jobs in the metrics, and none that waits", async || {
        let llm = scraped(&addresses[&StageName::Llm])?;
        let counted = llm.get("vidi_job_seconds_count{phase=\"generation\"}") == Some(&4.0);
        Ok((counted && llm.get("vidi_jobs_waiting") == Some(&0.0)).then_some(llm))
    })
    .await?;
    let figure = |series: &str| llm.get(series).copied().with_context(|| format!("no {series} in {llm:?}"));
    ensure!(figure("vidi_jobs_total{outcome=\"answered\",task=\"qa\"}")? == 4.0, "{llm:?}");
    ensure!(llm.keys().filter(|series| name_of(series) == "vidi_jobs_total").count() == 1, "{llm:?}");
    for phase in ["waiting", "prefill", "generation", "total"] {
        ensure!(figure(&format!("vidi_job_seconds_count{{phase=\"{phase}\"}}"))? == 4.0, "{phase}: {llm:?}");
    }
    let sum = |phase: &str| figure(&format!("vidi_job_seconds_sum{{phase=\"{phase}\"}}"));
    ensure!(sum("total")? > 0.0 && sum("prefill")? <= sum("total")?, "{llm:?}");
    ensure!(figure("vidi_time_to_first_token_seconds_count")? == 4.0, "{llm:?}");
    ensure!(figure("vidi_stage_items_total{kind=\"text_tokens\",stage=\"llm\"}")? >= 4.0, "{llm:?}");
    ensure!(figure("vidi_kept_videos{where=\"memory\"}")? >= 1.0, "{llm:?}");
    ensure!(figure("vidi_kept_hits_total{where=\"memory\"}")? == 1.0, "{llm:?}");

    let mut there: BTreeSet<String> = llm.keys().map(|series| name_of(series).to_owned()).collect();
    // Three videos of 2, 3 and 4 s, a frame a second, in one window each: what each stage makes follows, but how it is cut.
    for (stage, kind, made) in [
        (StageName::Decode, "frames", Some(9.0)),
        (StageName::Decode, "windows", Some(3.0)),
        (StageName::Vision, "image_rows", None),
        (StageName::Audio, "audio_rows", None),
        (StageName::Fuse, "image_tokens", None),
        (StageName::Fuse, "audio_tokens", None),
    ] {
        let series = scraped(&addresses[&stage])?;
        let items = series.get(&format!("vidi_stage_items_total{{kind=\"{kind}\",stage=\"{stage}\"}}")).copied();
        ensure!(made.map_or(items.is_some_and(|items| items > 0.0), |made| items == Some(made)), "{stage}: {series:?}");
        let batches = series.get(&format!("vidi_stage_batch_seconds_count{{stage=\"{stage}\"}}"));
        ensure!(batches.is_some_and(|batches| *batches > 0.0), "{stage}: {series:?}");
        ensure!(!series.contains_key("vidi_jobs_running"), "{stage} owns no job: {series:?}");
        there.extend(series.keys().map(|series| name_of(series).to_owned()));
    }
    let read = figure("vidi_stage_items_total{kind=\"image_tokens\",stage=\"llm\"}")?;
    let made = scraped(&addresses[&StageName::Fuse])?["vidi_stage_items_total{kind=\"image_tokens\",stage=\"fuse\"}"];
    ensure!(read == made, "stage-llm has read {read} image tokens, and stage-fuse has made {made}");

    there.extend(scraped(&gateway(rig)?)?.keys().map(|series| name_of(series).to_owned()));
    for name in there.iter().filter(|name| !name.ends_with("_created")) {
        ensure!(names::is_known(name), "{name} is in no file of names");
    }
    // All that a healthy pipeline without a GPU counts is there.
    let absent = [names::GPU_BYTES, names::REDELIVERED, names::DEAD];
    for metric in names::ALL.into_iter().filter(|metric| !absent.contains(metric)) {
        ensure!(there.iter().any(|name| name.starts_with(metric.name)), "no process tells {}: {there:?}", metric.name);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_no_message_has_a_trace_and_top_shows_the_stages() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let mut heard = rig.bus.client().subscribe("vidi.v1.>").await?;
    rig.bus.client().flush().await?;
    answered(&rig, "untraced", &clip(&rig, "untraced.mp4", 2)?).await?;
    let mut subjects = BTreeSet::new();
    while let Some(message) = heard.next().now_or_never().flatten() {
        let headers = message.headers.unwrap_or_default();
        let traced = ["traceparent", "tracestate"].iter().any(|name| headers.get(*name).is_some());
        ensure!(!traced, "{}: {headers:?}", message.subject);
        subjects.extend(message.subject.split('.').nth(2).map(str::to_owned));
    }
    for subject in ["jobs", "events", "decode", "frames", "audio", "features", "tokens"] {
        ensure!(subjects.contains(subject), "no message on {subject}: {subjects:?}");
    }
    for instance in client::statuses(&rig.bus).await? {
        ensure!(instance.metrics.is_empty() && instance.last_error.is_empty(), "{instance:?}");
    }

    // Its last error is shown.
    let lost = rig.answer(&request("lost", &rig.media().join("nowhere.mp4"))?).await?;
    ensure!(matches!(terminal(&lost)?, Event::Failed { .. }), "{lost:?}");
    let top = rig.run(&["top", "--once"])?;
    let said = String::from_utf8(top.stdout)?;
    ensure!(top.status.success() && said.contains("jobs: 0 running, 0 waiting"), "{said}");
    for stage in StageName::ALL {
        let line = said.lines().find(|line| line.starts_with(&format!("{stage}-")));
        ensure!(line.is_some_and(|line| line.contains("idle") && line.contains("cpu")), "{stage}: {said}");
    }
    ensure!(said.contains("nowhere.mp4"), "{said}");

    let piped = rig.run(&["top"])?;
    ensure!(piped.status.code() == Some(Exit::Usage as i32), "{piped:?}");
    ensure!(String::from_utf8_lossy(&piped.stderr).contains("--once"), "{piped:?}");
    let mut terminal = Command::new("python3");
    terminal.arg(root().join("tests/tests/system/seen/terminal.py")).arg(vidi()?);
    terminal.args(["--set", &format!("bus.url={}", rig.broker.url()), "top"]);
    println!("{}", run(&mut terminal)?);
    Ok(())
}

#[test]
fn a_port_that_is_taken_and_a_collector_without_an_address_are_told_as_wrong_configuration() -> anyhow::Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let set = format!("metrics.listen=127.0.0.1:{}", taken.local_addr()?.port());
    let dir = tempfile::tempdir()?;
    let mut up = Command::new(vidi()?);
    up.env("VIDI_STATE", dir.path()).current_dir(dir.path());
    let ended = up.args(["up", "--weights", "random:tiny", "--set", &set]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() == Some(Exit::Usage as i32), "{}: {said}", ended.status);
    ensure!(said.contains("cannot be listened on") && said.contains("vidi status --json"), "{said}");
    let wrong = Command::new(vidi()?).args(["status", "--set", "traces.endpoint=collector:4318"]).output()?;
    ensure!(wrong.status.code() == Some(Exit::Usage as i32), "{wrong:?}");
    ensure!(String::from_utf8_lossy(&wrong.stderr).contains("traces.endpoint"), "{wrong:?}");
    Ok(())
}
