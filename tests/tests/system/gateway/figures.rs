//! Figures of tests/BENCHMARKS.md, measured when asked for: `cargo test --workspace --test system gateway::figures -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::ask::{self, End};
use protocol::message::{JobId, JobRequest};
use runtime::remark;
use serde_json::{Value, json};
use tests::harness::Rig;
use tokio::io::AsyncWriteExt;

use super::client::{self, Client};
use super::rig::{Alone, clip, own};
use super::{SECONDS, ensure_true, question};

/// Jobs of each way.
const JOBS: usize = 100;
/// Bytes of the upload.
const UPLOAD_BYTES: u64 = 2 << 30;

/// Median and 90th of a hundred, milliseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    (at(0.5), at(0.9))
}

fn tell(what: &str, times: Vec<Duration>) {
    let (median, ninety) = percentiles(times);
    remark!("{what}: median {median:.2} ms, 90 % below {ninety:.2} ms");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, for tests/BENCHMARKS.md"]
async fn figures() -> anyhow::Result<()> {
    let (rig, client) = own().await?;
    overhead(&rig, &client).await?;
    latency(&rig, &client).await?;
    upload(&rig).await
}

/// The same question about a kept video over the bus alone and over HTTP, in turn; and a video that is not kept, once.
async fn overhead(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let asked = question(&truth, "qa")?;
    let (mut bus, mut http) = (Vec::new(), Vec::new());
    for number in 0..=JOBS {
        let request = JobRequest {
            task: "qa".to_owned(),
            ..JobRequest::new(JobId::new(format!("bus-{number}"))?, video.to_string_lossy(), asked.query.clone())
        };
        let started = Instant::now();
        let end = ask::followed(&rig.bus, &request, |_| {}).await?;
        let took = started.elapsed();
        let End::Answered(result) = end else { anyhow::bail!("{end:?}") };
        ensure!(asked.answer.judge(&result).is_true(), "{result:?}");
        if number == 0 {
            remark!("a demo job of {SECONDS} s of video, not kept, over the bus: {:.0} ms", took.as_secs_f64() * 1e3);
            continue;
        }
        bus.push(took);
        let path = video.to_string_lossy().into_owned();
        let texts = [("video_path", path.as_str()), ("question", &asked.query), ("task", "vqa")];
        let started = Instant::now();
        let answer = client.form("/inference", &texts, None).await?.expect(200)?.json();
        http.push(started.elapsed());
        ensure!(answer["answer"] == result.text.as_str(), "{answer}");
    }
    let more: f64 = percentiles(http.clone()).0 - percentiles(bus.clone()).0;
    tell(&format!("{JOBS} questions about a kept video over the bus"), bus);
    tell(&format!("{JOBS} of the same by POST /inference"), http);
    remark!("overhead: {more:.2} ms");
    Ok(())
}

/// When a reader of server-sent events has an event after a subscriber of the bus has.
async fn latency(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let asked = question(&truth, "retrieval")?;
    let mut late = Vec::new();
    for number in 0..JOBS / 4 {
        let job = format!("late-{number}");
        let mut direct = deploy::client::Events::new(&rig.bus, &JobId::new(job.as_str())?);
        client.post("/v1/jobs", &json!({ "job": job, "video": video, "query": asked.query })).await?.expect(202)?;
        let by_bus = async {
            let mut heard = Vec::new();
            loop {
                let event = direct.next().await?;
                heard.push((event.seq, Instant::now()));
                if event.event.is_terminal() {
                    return anyhow::Ok(heard);
                }
            }
        };
        let by_http = async {
            let mut stream = client.events(&format!("/v1/jobs/{job}/events"), None).await?;
            let (mut heard, mut last) = (Vec::new(), Value::Null);
            while let Some((id, data)) = stream.next().await? {
                last = serde_json::from_str(&data)?;
                heard.push((id.context("no id")?, Instant::now(), last["kind"] == "text"));
            }
            ensure_true(asked, &last)?;
            anyhow::Ok(heard)
        };
        let (bus, http) = tokio::try_join!(by_bus, by_http)?;
        for (seq, at, _) in http.into_iter().filter(|(_, _, is_text)| *is_text) {
            let (_, heard) = bus.iter().find(|(other, _)| *other == seq).context("the bus has not said it")?;
            late.push(at.saturating_duration_since(*heard));
        }
    }
    tell(&format!("{} text deltas by server-sent events, after a reader on the bus has them", late.len()), late);
    Ok(())
}

/// A large file, by HTTP and written to the same disk without it.
async fn upload(rig: &Rig) -> anyhow::Result<()> {
    let gateway = Alone::start(rig, "upload", &["http.upload_bytes=4294967296"], &[]).await?;
    let piece = vec![7; 1 << 20];
    let pieces = UPLOAD_BYTES / piece.len() as u64;
    let speed = |started: Instant| UPLOAD_BYTES as f64 / started.elapsed().as_secs_f64() / 1e6;
    let plain = rig.media().join("plain");
    let started = Instant::now();
    let mut file = tokio::fs::File::create(&plain).await?;
    for _ in 0..pieces {
        file.write_all(&piece).await?;
    }
    file.flush().await?;
    let plain_speed = speed(started);
    std::fs::remove_file(&plain)?;

    let form = client::form(&[], Some(("file", &[])));
    let (start, end) = form.split_at(client::file_at(&form)?);
    let kind = client::form_type();
    let length = form.len() + UPLOAD_BYTES as usize;
    let (before, _) = gateway.memory()?;
    let started = Instant::now();
    let mut socket = gateway.client.send("POST", "/v1/files", &[("content-type", &kind)], start, length).await?;
    for _ in 0..pieces {
        socket.get_mut().write_all(&piece).await?;
    }
    socket.get_mut().write_all(end).await?;
    ensure!(client::head(&mut socket).await?.status == 201);
    let by_http = speed(started);
    let (_, most) = gateway.memory()?;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    remark!(
        "upload of {:.1} GB: {by_http:.0} MB/s; the same file written without HTTP: {plain_speed:.0} MB/s",
        UPLOAD_BYTES as f64 / 1e9
    );
    remark!("memory of the gateway: {:.1} MB before, {:.1} MB at most", mb(before), mb(most));
    Ok(())
}
