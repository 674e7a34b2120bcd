//! More work than capacity: full streams, slow consumers, many jobs.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use protocol::error::{ErrorKind, StageName};
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::subject::StreamName;

use super::load::{self, Load, true_setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::harness::{Rig, Setup, signal, terminal};

/// SIGSTOP of stage-vision until the stream of frames is full.
pub async fn full_stream(scale: &Scale) -> Row {
    let expected = "stage-decode waits within 64 MiB, the stream stays within 4 MiB, then the answer comes";
    let case = Case { name: "full stream".to_owned(), expected, bound_s: scale.bound(90.0) };
    case.run(async {
        let mut setup = true_setup(scale);
        setup.set[0] = "bus.ack_wait_s=20".to_owned();
        setup.set.push(format!("bus.stream_bytes={}", 4 << 20));
        let rig = Rig::start(setup).await?;
        let load = Load::long(&rig, 60).await?;
        let vision = *rig.pids(StageName::Vision).first().context("no stage-vision")?;
        let decode = *rig.pids(StageName::Decode).first().context("no stage-decode")?;
        let before = look::resident(decode);
        signal(vision, "STOP")?;
        let request = load.request("full", 0);
        load::submit(&rig.bus, &request).await?;
        let frames = rig.bus.stream(StreamName::Frames).await;
        let (mut most, mut held) = (0, 0);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(6) {
            most = most.max(look::resident(decode));
            held = held.max(frames.get_info().await?.state.bytes);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        signal(vision, "CONT")?;
        ensure!(held > 2 << 20 && held <= 4 << 20, "the stream held {held} bytes");
        ensure!(most < before + (64 << 20), "stage-decode grew from {before} to {most} bytes");
        load.check(&rig, &[request]).await?;
        let injected = "stage-vision stopped for 6 s, 60 s of video (26 MB of frames), streams of 4 MiB".to_owned();
        let mib = |b: u64| b as f64 / f64::from(1 << 20);
        let observed = format!(
            "stream at most {:.1} MiB, stage-decode +{:.0} MiB, right answer",
            mib(held),
            mib(most - before.min(most))
        );
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}

/// Many jobs, three owners, one of each other stage, streams of 4 MiB, and capacity for the tokens of one job at a time.
pub async fn no_deadlock(scale: &Scale) -> Row {
    let expected =
        "every job answered as in an undisturbed run; the one that can never fit is refused with the figures";
    let case = Case {
        name: "many jobs, few workers, small streams".to_owned(),
        expected,
        bound_s: scale.bound(60.0 + scale.jobs as f64 * 2.0),
    };
    case.run(async {
        let mut setup = Setup { replicas: "llm=3".to_owned(), ..true_setup(scale) };
        setup.set.push(format!("bus.stream_bytes={}", 4 << 20));
        // The tokens of 8 s of video and sound are 1.7 MB: two jobs do not fit.
        setup.set.push(format!("bus.token_bytes={}", 2_500_000));
        let rig = Rig::start(setup).await?;
        let load = Load::new(&rig).await?;
        let n = scale.jobs.min(40);
        let mut requests = load.submit(&rig.bus, "many", n).await?;
        // An owner that holds a reservation dies.
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(&pid) = rig.pids(StageName::Llm).first() {
            signal(pid, "KILL")?;
        }
        requests.reverse();
        load.check(&rig, &requests).await?;
        let long = load::long_video(&rig, 30)?;
        let request = JobRequest::new(JobId::new("never")?, long.to_string_lossy(), "a dog");
        let events = rig.answer(&request).await?;
        let Event::Failed { error } = terminal(&events)? else { bail!("{:?}", events.last()) };
        ensure!(error.kind == ErrorKind::DoesNotFit && error.details.contains_key("needed_bytes"), "{error:?}");
        look::empty(&rig).await?;
        let injected = format!("{n} jobs, 3 owners (one killed), token stream of 2.5 MB, others of 4 MiB");
        Ok(Seen { injected, observed: format!("{n} right answers; {error}"), seconds: None })
    })
    .await
}

/// Subscriber to every subject that never reads, and a client that reads its events late.
pub async fn slow_consumer(scale: &Scale) -> Row {
    let expected = "every job answered as in an undisturbed run, all events available to the late client";
    let case =
        Case { name: "slow consumer".to_owned(), expected, bound_s: scale.bound(60.0 + scale.jobs as f64 * 2.0) };
    case.run(async {
        let rig = Rig::start(true_setup(scale)).await?;
        let load = Load::new(&rig).await?;
        let address = rig.broker.url().trim_start_matches("nats://").to_owned();
        let mut deaf = std::net::TcpStream::connect(&address)?;
        deaf.write_all(b"CONNECT {\"verbose\":false}\r\nSUB vidi.> 1\r\nPING\r\n")?;
        let jobs = scale.jobs.min(30);
        let requests = load.submit(&rig.bus, "slow", jobs).await?;
        let mut late = rig.bus.follow(StreamName::Events, rig.bus.subjects().events(&requests[0].job));
        let mut client = client::Events::new(&rig.bus, &requests[0].job);
        client.next().await?;
        load.check(&rig, &requests).await?;
        // `check` found the events complete for a client that comes afterwards; this one subscribed before, and has waited
        // longer than a pull request lasts.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let mut read = 0;
        let whole = look::log_of(&rig.bus, &requests[0].job).await.len();
        while read < whole {
            tokio::time::timeout(Duration::from_secs(10), late.recv()).await?.context("the reader ended")?;
            read += 1;
        }
        for _ in 1..whole {
            tokio::time::timeout(Duration::from_secs(10), client.next()).await.context("no further event")??;
        }
        drop(deaf);
        let injected = format!("a subscriber to vidi.> that never reads, a client that reads late, {jobs} jobs");
        Ok(Seen {
            injected,
            observed: format!("{jobs} right answers, {read} of {whole} events read late"),
            seconds: None,
        })
    })
    .await
}

/// Video many times larger than the streams.
pub async fn long_video(scale: &Scale) -> Row {
    let expected = "no process but the owner of the keys and values, and not the broker, grows by more than 96 MiB";
    let seconds = (scale.jobs as u32 * 4).clamp(60, 300);
    let case =
        Case { name: "memory over a long video".to_owned(), expected, bound_s: scale.bound(30.0 + f64::from(seconds)) };
    case.run(async {
        let mut setup = true_setup(scale);
        setup.set.push(format!("bus.stream_bytes={}", 8 << 20));
        let rig = Rig::start(setup).await?;
        let load = Load::new(&rig).await?;
        load.warm_up(&rig).await?;
        let clip = load::long_video(&rig, seconds)?;
        let watched = [StageName::Decode, StageName::Vision, StageName::Audio, StageName::Fuse];
        let mut pids: Vec<(String, u32)> =
            watched.iter().flat_map(|&s| rig.pids(s).into_iter().map(move |pid| (s.to_string(), pid))).collect();
        pids.push(("broker".to_owned(), rig.broker.pid().context("broker is gone")?));
        let before: Vec<u64> = pids.iter().map(|(_, pid)| look::resident(*pid)).collect();
        let mut most = before.clone();
        let job = JobId::new("long")?;
        let request = JobRequest { max_new_tokens: 4, ..JobRequest::new(job, clip.to_string_lossy(), "a dog") };
        load::submit(&rig.bus, &request).await?;
        let until = Instant::now() + Duration::from_secs(u64::from(seconds));
        loop {
            for ((_, pid), most) in pids.iter().zip(&mut most) {
                *most = (*most).max(look::resident(*pid));
            }
            let events = look::log_of(&rig.bus, &request.job).await;
            if events.last().is_some_and(|e| e.event.is_terminal()) {
                look::result(&events).with_context(|| look::tail(&rig))?;
                break;
            }
            ensure!(Instant::now() < until, "no answer after {seconds} s; {}", look::tail(&rig));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let requests = load.submit(&rig.bus, "after", 2).await?;
        load.check(&rig, &requests).await?;
        let mut grown = String::new();
        for (((name, _), before), most) in pids.iter().zip(before).zip(most) {
            let mib = most.saturating_sub(before) >> 20;
            ensure!(mib <= 96, "{name} grew by {mib} MiB");
            grown.push_str(&format!(" {name} +{mib} MiB"));
        }
        let injected = format!("{seconds} s of video, {} MB of frames, streams of 8 MiB", seconds * 442 / 1000);
        Ok(Seen { injected, observed: grown.trim().to_owned(), seconds: None })
    })
    .await
}
