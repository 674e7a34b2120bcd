//! A file on a slow share: it is looked into for as long as it takes, and other jobs are answered meanwhile.

#[expect(dead_code, reason = "the tests of stage-decode hold other reads as well")]
#[path = "../../stage-decode/tests/slow/share.rs"]
mod share;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use protocol::event::Event;
use protocol::message::{JobId, JobRequest, ProbeReply, ProbeRequest};
use protocol::wire;
use share::{Hold, hold};
use tests::harness::{Rig, Setup, terminal};
use tests::media::{ffmpeg, video};

/// Time between two reads of the slow file.
const READ: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_file_takes_long_to_look_into_is_answered_and_lets_others_go_first() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let anywhere = dir.path().join("nothing");
    // Before the pipeline starts: its processes inherit what holds up reads.
    hold(&anywhere, Hold::Each(READ));
    let rig = Rig::start(Setup::default()).await?;
    let media = rig.media().canonicalize()?;
    let [slow, quick] = ["slow.ts", "quick.mp4"].map(|name| media.join(name));
    ffmpeg("-f lavfi -i testsrc2=s=160x120:r=10:d=30 -c:v mpeg2video -b:v 300k", &slow)?;
    video(&quick, 4)?;
    hold(&slow, Hold::Each(READ));

    let ask = |name: &str, file: &std::path::Path| -> anyhow::Result<JobRequest> {
        Ok(JobRequest { max_new_tokens: 4, ..JobRequest::new(JobId::new(name)?, file.to_string_lossy(), "a dog") })
    };
    let (first, second) = (ask("slow", &slow)?, ask("quick", &quick)?);
    let began = Instant::now();
    let answered = async |request: &JobRequest, after: Duration| -> anyhow::Result<Duration> {
        tokio::time::sleep(after).await;
        let events = rig.answer(request).await?;
        ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}; {}", rig.log());
        Ok(began.elapsed())
    };
    let (first, second) = tokio::join!(answered(&first, Duration::ZERO), answered(&second, Duration::from_secs(1)));
    let (first, second) = (first.context("slow")?, second.context("quick")?);
    ensure!(first > Duration::from_secs(15), "a look of {first:?} shows nothing");
    ensure!(
        second + Duration::from_secs(2) < first,
        "the quick one was answered after {second:?}, the slow one after {first:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_probe_is_told_that_it_goes_on_and_others_are_answered() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    hold(&dir.path().join("nothing"), Hold::Each(READ));
    let rig = Rig::start(Setup::default()).await?;
    let media = rig.media().canonicalize()?;
    let quick = media.join("quick.mp4");
    video(&quick, 4)?;
    // More than are begun at a time.
    let slow: Vec<_> = (0..5).map(|n| media.join(format!("{n}.ts"))).collect();
    ffmpeg("-f lavfi -i testsrc2=s=160x120:r=10:d=30 -c:v mpeg2video -b:v 300k", &slow[0])?;
    for file in &slow {
        if file != &slow[0] {
            std::fs::copy(&slow[0], file)?;
        }
        hold(file, Hold::Each(READ));
    }
    let probe = async |request: ProbeRequest| -> anyhow::Result<ProbeReply> {
        let request = async_nats::Request::new().payload(wire::encode(&request).into());
        let request = request.timeout(Some(Duration::from_secs(10)));
        let reply = rig.bus.client().send_request(rig.bus.subjects().probe(), request).await?;
        Ok(wire::decode_any::<ProbeReply>(&reply.payload)?)
    };
    let asked = |file: &std::path::Path| ProbeRequest { again: true, ..ProbeRequest::new(file.to_string_lossy()) };
    let all = futures::future::join_all(slow.iter().map(|file| probe(asked(file))));
    let (all, quick) = tokio::join!(all, async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        probe(ProbeRequest::new(quick.to_string_lossy())).await
    });
    ensure!(matches!(quick?, ProbeReply::Info(info) if info.frames > 0));
    let mut told = Vec::new();
    for reply in all {
        let ProbeReply::Working { working, read_bytes, size_bytes } = reply? else { anyhow::bail!("done already") };
        ensure!(!working.is_empty() && read_bytes <= size_bytes * 2, "{read_bytes} of {size_bytes}");
        told.push(working);
    }
    // Another instance does not begin with what one works on.
    let elsewhere = ProbeRequest { at: Some("another".to_owned()), ..asked(&media.join("unknown.ts")) };
    ensure!(
        matches!(probe(elsewhere).await?, ProbeReply::Refused { error } if error.kind == protocol::error::ErrorKind::Busy)
    );
    // Asked again, it goes on from where it is.
    let mut reply = probe(ProbeRequest { at: told.first().cloned(), ..asked(&slow[0]) }).await?;
    let mut read = 0;
    while let ProbeReply::Working { read_bytes, .. } = reply {
        ensure!(read_bytes > read, "{read_bytes} after {read}");
        read = read_bytes;
        reply = probe(asked(&slow[0])).await?;
    }
    ensure!(matches!(reply, ProbeReply::Info(info) if info.frames == 300));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_nobody_asks_for_any_more_ends_and_one_that_is_asked_for_goes_on() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    hold(&dir.path().join("nothing"), Hold::Each(READ));
    let rig = Rig::start(Setup::default()).await?;
    let media = rig.media().canonicalize()?;
    let [left, kept] = ["left.ts", "kept.ts"].map(|name| media.join(name));
    ffmpeg("-f lavfi -i testsrc2=s=160x120:r=10:d=60 -c:v mpeg2video -b:v 600k", &left)?;
    std::fs::copy(&left, &kept)?;
    [&left, &kept].into_iter().for_each(|file| hold(file, Hold::Each(4 * READ)));
    let read = async |file: &std::path::Path| -> anyhow::Result<u64> {
        let request = ProbeRequest { again: true, ..ProbeRequest::new(file.to_string_lossy()) };
        let request = async_nats::Request::new().payload(wire::encode(&request).into());
        let request = request.timeout(Some(Duration::from_secs(10)));
        let reply = rig.bus.client().send_request(rig.bus.subjects().probe(), request).await?;
        match wire::decode_any(&reply.payload)? {
            ProbeReply::Working { read_bytes, .. } => Ok(read_bytes),
            other => anyhow::bail!("{other:?}"),
        }
    };
    let (left_at, kept_at) = tokio::try_join!(read(&left), read(&kept))?;
    let (began, mut kept_now) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(24) {
        kept_now = read(&kept).await?;
    }
    let left_now = read(&left).await?;
    ensure!(kept_now > 4 * kept_at, "{kept_now} bytes after {kept_at}: it did not go on");
    ensure!(left_now < 2 * left_at, "{left_now} bytes after {left_at}: it went on for nobody, and did not begin anew");
    Ok(())
}
